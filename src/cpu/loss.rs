//! The stages composed on the CPU: from logits, or hidden states and a head, to a loss and back.

use crate::cpu::Cpu;
use crate::data::batch::Batch;
use crate::data::head::{Head, LinearGradients};
use crate::data::logits::{Logits, LogitsMut};
use crate::data::matrix::Matrix;
use crate::data::reference::Reference;
use crate::data::rewards::Rewards;
use crate::data::targets;
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::{Error, Result, check_length};
use crate::forward_pass::ForwardPass;
use crate::loss::{PreferenceLoss, inputs, row_gradient, sealed};
use crate::operand::Operand;
use crate::options::LogRatio;
use crate::report::{Report, RowSummary, StageResults};
use crate::stage::log_ratio::{check_reference, check_rows};
use crate::stage::objective::{GroupStatistics, ObjectiveInputs, ObjectiveOutputs, check_rewards};
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState, TokenLogProbs};
use crate::step::{Inputs, Step};
use std::sync::OnceLock;

impl PreferenceLoss<Cpu> {
    /// As [`forward`](Self::forward), with hidden states `[N, H]` and a head in place of logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Length`](crate::Error::Length) for a hidden state that is not as long
    /// as a row of the weight.
    pub fn forward_linear<'a, T: Element, W: Element, I: TokenId>(
        &mut self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        targets: &[I],
        batch: &Batch,
        reference: Reference<'_>,
        rewards: impl Into<Rewards<'a>>,
    ) -> Result<Step> {
        check_length("hidden size", hidden.columns(), head.weight().columns())?;
        let (backend, options) = (self.backend, self.options.logits);
        self.forward_with(linear_inputs(hidden, head), targets, batch, reference, rewards.into(), |targets, outputs| {
            backend.linear_token_log_probs(hidden, head, targets, &options, outputs)
        })
    }

    /// Writes loss scale × the gradients of the loss by the hidden states, the weight and the bias, of those that
    /// `gradients` has. `step` is what [`forward_linear`](Self::forward_linear) gave for these hidden states and this head.
    ///
    /// # Errors
    /// [`Error::OtherStep`](crate::Error::OtherStep) if the last forward pass of this loss was another;
    /// [`Error::Length`](crate::Error::Length) for what does not fit;
    /// [`Error::OtherInputs`](crate::Error::OtherInputs) if hidden states or head are others.
    pub fn backward_linear<T: Element, W: Element, G: Element>(
        &mut self,
        step: &Step,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        self.prepare_backward(step, &linear_inputs(hidden, head))?;
        let (saved, upstream) = self.workspace.for_backward();
        let (targets, options) = (&self.workspace.targets, &self.options.logits);
        self.backend.linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }
}

/// Where hidden states and head lie.
fn linear_inputs<T: Element, W: Element>(hidden: Matrix<'_, T>, head: &Head<'_, W>) -> Inputs {
    let weight = head.weight();
    let bias = head.bias().map(|bias| Operand::new("bias", bias.as_ptr().addr() as u64, 1, 0));
    let matrices = (
        Operand::new("hidden states", hidden.row(0).as_ptr().addr() as u64, hidden.rows(), hidden.row_stride()),
        Operand::new("weight", weight.row(0).as_ptr().addr() as u64, weight.rows(), weight.row_stride()),
    );
    Inputs { rows: hidden.rows(), vocab: head.vocab(), operands: [Some(matrices.0), Some(matrices.1), bias] }
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

    /// Takes what the last forward pass has left for backward passes out of the loss.
    ///
    /// # Errors
    /// [`Error::NoForward`] before any forward pass.
    #[doc(hidden)]
    pub fn into_forward_pass(self) -> Result<ForwardPass> {
        self.last_step.ok_or(Error::NoForward)?;
        let Workspace { targets, states, row_weights, .. } = self.workspace;
        Ok(ForwardPass { backend: self.backend, options: self.options.logits, targets, states, row_weights })
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
