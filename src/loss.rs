//! The stages composed: from logits to a loss, and back to the gradient of the logits.

use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::{Error, Result};
#[cfg(feature = "candle")]
use crate::forward_pass::ForwardPass;
use crate::logits::{Logits, LogitsMut, Shape};
use crate::loss_options::{LogRatio, LossOptions, Reduction};
use crate::operand::Operand;
use crate::report::{Report, RowSummary, StageResults};
use crate::stages::{
    GroupStatistics, ObjectiveInputs, ObjectiveOutputs, Reference, Rewards, RowGradients, SavedRows, SoftmaxState,
    TokenLogProbs, check_reference, check_rewards, check_rows,
};
use crate::step::{Inputs, Step};
use crate::targets::{self, TokenId};
use std::sync::OnceLock;

/// A preference loss on one backend: forward, then backward, with the workspaces kept between steps.
///
/// After the first step of a shape neither pass allocates. Between the two passes the logits must not change: the
/// backward pass reads them again (and, in place, overwrites them with their gradient). That it is given the states of
/// the forward pass over these very logits is what the [`Step`] is for, which one returns and the other takes.
#[derive(Debug)]
pub struct PreferenceLoss<B: Backend> {
    pub(crate) backend: B,
    pub(crate) options: LossOptions,
    pub(crate) workspace: B::Workspace,
    /// Read from the workspace when it is asked for, or put here by the forward pass.
    pub(crate) report: OnceLock<Report>,
    pub(crate) loss_scale: f64,
    /// Number of the last forward pass that was not refused ([`Step::number`]).
    pub(crate) last_step: Option<u64>,
}

/// Where a [`PreferenceLoss`] runs. Implemented by [`Cpu`] and, with the feature `cuda`, by `cuda::Cuda`; by nothing
/// else.
pub trait Backend: sealed::Backend {}

impl<B: sealed::Backend> Backend for B {}

pub(crate) mod sealed {
    use crate::error::Result;
    use crate::report::Report;

    /// What a loss asks of its backend.
    pub trait Backend {
        /// Buffers that are kept between steps.
        type Workspace: std::fmt::Debug + Default;

        /// Reads what the last forward pass left in the workspace.
        fn read_report(&self, workspace: &Self::Workspace) -> Result<Report>;
    }
}

impl sealed::Backend for Cpu {
    type Workspace = Workspace;

    /// The forward pass has put its report into the loss: there is nothing left to read.
    fn read_report(&self, _: &Workspace) -> Result<Report> {
        Err(Error::NoForward)
    }
}

/// Per row (N), per sequence (S) and per group (G): never anything of the size of the logits.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) targets: Vec<i64>,
    log_probs: Vec<f32>,
    states: Vec<SoftmaxState>,
    entropies: Vec<f32>,
    row_gradients: Vec<f32>,
    row_weights: Vec<f64>,
    log_ratios: Vec<f64>,
    coefficients: Vec<f64>,
    group_losses: Vec<f64>,
    statistics: Vec<GroupStatistics>,
}

impl<B: Backend> PreferenceLoss<B> {
    /// A loss on `backend`, from an [`Objective`](crate::Objective) or from full [`LossOptions`].
    pub fn new(backend: B, options: impl Into<LossOptions>) -> Self {
        PreferenceLoss {
            backend,
            options: options.into(),
            workspace: B::Workspace::default(),
            report: OnceLock::new(),
            loss_scale: 1.0,
            last_step: None,
        }
    }

    /// Divides the logits by `temperature`.
    ///
    /// # Errors
    /// As [`LogitOptions::with_temperature`](crate::LogitOptions::with_temperature).
    pub fn with_temperature(mut self, temperature: f64) -> Result<Self> {
        self.options.logits = self.options.logits.with_temperature(temperature)?;
        self.last_step = None;
        Ok(self)
    }

    /// Caps the logits to (−`softcap`, `softcap`), before the temperature.
    ///
    /// # Errors
    /// As [`LogitOptions::with_softcap`](crate::LogitOptions::with_softcap).
    pub fn with_softcap(mut self, softcap: f64) -> Result<Self> {
        self.options.logits = self.options.logits.with_softcap(softcap)?;
        self.last_step = None;
        Ok(self)
    }

    /// Sum or mean over the rows of a sequence.
    #[must_use]
    pub fn with_log_ratio(mut self, log_ratio: LogRatio) -> Self {
        self.options = self.options.with_log_ratio(log_ratio);
        self
    }

    /// Mean or sum over groups, or a normaliser of the caller's.
    ///
    /// # Errors
    /// As [`LossOptions::with_reduction`].
    pub fn with_reduction(mut self, reduction: Reduction) -> Result<Self> {
        self.options = self.options.with_reduction(reduction)?;
        Ok(self)
    }

    /// Whether the report holds the mean entropy of the scored rows.
    #[must_use]
    pub fn with_entropy(mut self, entropy: bool) -> Self {
        self.options = self.options.with_entropy(entropy);
        self
    }

    /// What the next backward passes multiply the gradient by: 1 at first; the upstream gradient, or a loss scale against
    /// underflow in f16. The report is not scaled.
    ///
    /// A scale that is not finite, or with which a row's coefficient no longer fits f32 (also once divided by the
    /// temperature), gives that row a gradient of NaN, which is what dynamic loss scaling looks for.
    pub fn set_loss_scale(&mut self, loss_scale: f64) {
        self.loss_scale = loss_scale;
    }

    /// How the loss is put together.
    pub fn options(&self) -> &LossOptions {
        &self.options
    }

    /// What the last forward pass found, NaN rows and all. On a GPU this waits for the device.
    ///
    /// # Errors
    /// [`Error::NoForward`] before any forward pass; on a GPU what the device found in the inputs, and the driver's
    /// errors.
    pub fn unchecked_report(&self) -> Result<&Report> {
        self.last_step.ok_or(Error::NoForward)?;
        if let Some(report) = self.report.get() {
            return Ok(report);
        }
        let report = self.backend.read_report(&self.workspace)?;
        Ok(self.report.get_or_init(|| report))
    }

    /// What the last forward pass found.
    ///
    /// # Errors
    /// [`Error::NoForward`] before any forward pass; [`Error::NonFiniteRow`] if a row had a NaN or +inf logit or only
    /// −inf. Such a row does not stop the two passes: NaN goes through its group, and through no other, to the
    /// gradient, where loss scaling looks for it.
    pub fn report(&self) -> Result<&Report> {
        self.unchecked_report()?.check()
    }
}

impl PreferenceLoss<Cpu> {
    /// Logits `[N, V]`, targets `[N]`, the reference's log-probs and the rewards `[S]` → the loss, as part of the
    /// [report](PreferenceLoss::report), and the step that the backward pass takes.
    ///
    /// # Errors
    /// Any input that does not fit: [`Error::OffsetsEnd`] if the batch does not divide the N rows, [`Error::Length`],
    /// [`Error::Target`], [`Error::NotFinite`], [`Error::PairsOnly`], [`Error::ZeroTarget`]. A refused call changes
    /// nothing: the report and the backward pass stay those of the forward pass before it.
    pub fn forward<'a, T: Element, I: TokenId>(
        &mut self,
        logits: Logits<'_, T>,
        targets: &[I],
        batch: &Batch,
        reference: Reference<'_>,
        rewards: impl Into<Rewards<'a>>,
    ) -> Result<Step> {
        let (backend, options) = (self.backend, self.options.logits);
        self.forward_with(inputs(logits), targets, batch, reference, rewards.into(), |targets, outputs| {
            backend.token_log_probs(logits, targets, &options, outputs)
        })
    }

    /// The stages in order; `token_log_probs` is the first.
    pub(crate) fn forward_with<I: TokenId>(
        &mut self,
        inputs: Inputs,
        targets: &[I],
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
        token_log_probs: impl FnOnce(&[i64], TokenLogProbs<'_>) -> Result<()>,
    ) -> Result<Step> {
        let (options, objective) = (self.options, self.options.objective);
        let rows = inputs.rows;
        targets::check(targets, rows, inputs.vocab)?;
        check_rows(batch, rows)?;
        check_reference(reference, batch, |row| targets[row].id() >= 0)?;
        check_rewards(&objective, rewards, batch)?;

        let work = &mut self.workspace;
        work.resize(rows, batch, options.entropy);
        work.targets.clear();
        work.targets.extend(targets.iter().map(|target| target.id()));
        let targets = work.targets.as_slice();

        let outputs = TokenLogProbs {
            log_probs: &mut work.log_probs,
            states: &mut work.states,
            entropies: options.entropy.then_some(work.entropies.as_mut_slice()),
        };
        token_log_probs(targets, outputs)?;
        self.backend.log_ratios(&work.log_probs, targets, reference, batch, options.log_ratio, &mut work.log_ratios)?;
        self.backend.objective(
            &objective,
            ObjectiveInputs { log_ratios: &work.log_ratios, batch, rewards },
            options.reduction,
            ObjectiveOutputs {
                group_losses: &mut work.group_losses,
                coefficients: &mut work.coefficients,
                statistics: &mut work.statistics,
            },
        )?;
        for (sequence, rows) in batch.sequence_ranges().enumerate() {
            let scored = targets[rows.clone()].iter().filter(|&&target| target >= 0).count();
            let share = match options.log_ratio {
                LogRatio::Sum => 1.0,
                LogRatio::Mean => 1.0 / scored.max(1) as f64,
            };
            work.row_weights[rows].fill(work.coefficients[sequence] * share);
        }

        let (log_probs, entropies) = (&work.log_probs, &work.entropies);
        let mut report = self.report.take().unwrap_or_default();
        report.fill(
            batch,
            &RowSummary::of(batch, |row| (targets[row] >= 0).then(|| (log_probs[row], entropies.get(row).copied()))),
            &StageResults {
                log_ratios: &work.log_ratios,
                group_losses: &work.group_losses,
                statistics: &work.statistics,
                beta_policy: objective.beta_policy(),
                weight: options.reduction.weight(batch.groups()),
            },
        );
        self.report = OnceLock::from(report);
        let step = Step::new(inputs);
        self.last_step = Some(step.number());
        Ok(step)
    }

    /// Writes loss scale × d loss / d logits, `[N, V]`, to `grad`. `step` is what [`forward`](Self::forward) gave for
    /// these logits.
    ///
    /// # Errors
    /// [`Error::OtherStep`] if the last forward pass of this loss was another; [`Error::Length`] if logits or gradient do
    /// not have the N and V of the forward pass; [`Error::OtherInputs`] if the logits are others.
    pub fn backward<T: Element>(&mut self, step: &Step, logits: Logits<'_, T>, grad: LogitsMut<'_, T>) -> Result<()> {
        self.prepare_backward(step, &inputs(logits))?;
        let work = &self.workspace;
        let (saved, gradients) = work.for_backward();
        self.backend.token_log_probs_backward(logits, &work.targets, &self.options.logits, saved, gradients, grad)
    }

    /// Overwrites the logits with loss scale × d loss / d logits; the bits are those of [`backward`](Self::backward).
    /// The logits are gone afterwards, so this consumes the step.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    #[expect(clippy::needless_pass_by_value, reason = "no other backward pass can follow")]
    pub fn backward_in_place<T: Element>(&mut self, step: Step, logits: LogitsMut<'_, T>) -> Result<()> {
        self.prepare_backward(&step, &inputs(logits.as_logits()))?;
        let work = &self.workspace;
        let (saved, gradients) = work.for_backward();
        let options = &self.options.logits;
        self.backend.token_log_probs_backward_in_place(logits, &work.targets, options, saved, gradients)
    }

    /// Takes the last forward pass and its report out of the loss; `None` before any.
    #[cfg(feature = "candle")]
    pub(crate) fn into_forward_pass(self) -> Option<(ForwardPass, Report)> {
        let report = self.report.into_inner()?;
        let Workspace { targets, states, row_weights, .. } = self.workspace;
        Some((
            ForwardPass { backend: self.backend, options: self.options.logits, targets, states, row_weights },
            report,
        ))
    }

    pub(crate) fn prepare_backward(&mut self, step: &Step, inputs: &Inputs) -> Result<()> {
        step.check(self.last_step, inputs)?;
        let (work, scale) = (&mut self.workspace, self.loss_scale);
        for (gradient, weight) in work.row_gradients.iter_mut().zip(&work.row_weights) {
            *gradient = row_gradient(*weight, scale);
        }
        Ok(())
    }
}

/// Where logits lie.
fn inputs<T: Element>(logits: Logits<'_, T>) -> Inputs {
    let Shape { rows, vocab, row_stride } = logits.shape();
    let operand = Operand::new("logits", logits.row(0).as_ptr().addr() as u64, rows, row_stride);
    Inputs { rows, vocab, operands: [Some(operand), None, None] }
}

/// What a row's log-prob gets back, from its weight in the loss.
pub(crate) fn row_gradient(weight: f64, loss_scale: f64) -> f32 {
    (weight * loss_scale) as f32
}

impl Workspace {
    /// What the token log-prob stage takes back: the loss has no entropy term.
    pub(crate) fn for_backward(&self) -> (SavedRows<'_>, RowGradients<'_>) {
        (
            SavedRows { states: &self.states, entropies: None },
            RowGradients { log_probs: &self.row_gradients, entropies: None },
        )
    }

    fn resize(&mut self, rows: usize, batch: &Batch, entropy: bool) {
        self.log_probs.resize(rows, 0.0);
        self.states.resize(rows, SoftmaxState::default());
        self.entropies.resize(if entropy { rows } else { 0 }, 0.0);
        self.row_gradients.resize(rows, 0.0);
        self.row_weights.resize(rows, 0.0);
        self.log_ratios.resize(batch.sequences(), 0.0);
        self.coefficients.resize(batch.sequences(), 0.0);
        self.group_losses.resize(batch.groups(), 0.0);
        self.statistics.resize(batch.groups(), GroupStatistics::default());
    }
}
