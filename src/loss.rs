//! The stages composed: from logits, or hidden states and a head, to a loss, and back to the gradient.

mod from_hidden;

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::data::matrix::{Matrix, MatrixMut};
use crate::data::reference::Reference;
use crate::data::shard::Shard;
use crate::data::targets::Targets;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::forward_pass::ForwardPass;
use crate::kept_rows::ForBackward;
use crate::options::{LinearKept, LogRatio, LossOptions, Reduction};
use crate::ordered;
use crate::ranks::agreement::{Agreement, Call};
use crate::ranks::exchange_rows;
use crate::ranks::mesh::{Layout, Ranks};
use crate::ranks::sequences::read_results_of_ranks;
use crate::report::{Report, ScoredLogProbs, StageResults};
use crate::stage::log_ratio::check_rows;
use crate::stage::objective::check_group_sizes;
use crate::stage::token_log_prob::{check_gradient, check_logits};
use crate::stages::Stages;
use crate::step::{Inputs, Step};
use crate::workspace::Workspace;
use std::mem::take;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What a forward pass reads besides its logits.
struct StepInputs<'a, 't, 'f, 'r, B: Backend> {
    targets: &'a Targets<'t, B::Memory>,
    batch: &'a Batch,
    reference: &'a Reference<'f, B::Memory>,
    rewards: &'a B::Rewards<'r>,
}

/// A preference loss on one backend: forward, then backward, with the workspaces kept between steps.
///
/// After the first step of a shape neither pass allocates; but from hidden states on the CPU, whose scratch memory is a call's
/// own (`docs/numerics.md` has its size). Between the two passes the logits must not change: the
/// backward pass reads them again (and, in place, overwrites them with their gradient). That it is given the states of
/// the forward pass over these very logits is what the [`Step`](crate::Step) is for, which one returns and the other takes.
///
/// # On a CUDA device
///
/// Neither pass waits for the device: the report stays there until it is asked for. Forward and backward can be captured in a
/// CUDA graph and replayed over whatever the same buffers hold then, if
/// 1. the stream is not the null stream, and cudarc's event tracking is off (`CudaContext::disable_event_tracking`),
/// 2. a step of the same batch, shapes and options has run before: it has loaded the kernels, allocated what this
///    loss keeps, and brought the batch's offsets to the device,
/// 3. the rewards are on the device: a capture that would have to copy from the host is refused,
/// 4. the loss outlives the graph, and steps of other shapes are another loss's: the graph holds the addresses of
///    this one's buffers, which may move when they grow.
///
/// After a launch of the graph, [`discard_report`](Self::discard_report) before the next report.
#[derive(Debug)]
pub struct PreferenceLoss<B: Backend> {
    /// Freed before the backend is dropped.
    workspace: Workspace<B>,
    backend: B,
    options: LossOptions,
    /// Read from the workspace when it is asked for.
    report: OnceLock<Report>,
    /// The report before, whose memory the next one takes.
    spare_report: Mutex<Report>,
    loss_scale: f64,
    ranks: Ranks<B>,
    /// Where the last step's rows and groups lie among those of all ranks.
    layout: Layout,
    /// Number of the last forward pass that was not refused ([`Step::number`]).
    last_step: Option<u64>,
}

impl<B: Backend> PreferenceLoss<B> {
    /// A loss on `backend`, from an [`Objective`](crate::Objective) or from full [`LossOptions`].
    pub fn new(backend: B, options: impl Into<LossOptions>) -> Self {
        PreferenceLoss {
            backend: backend.counting_apart(),
            options: options.into(),
            workspace: Workspace::default(),
            report: OnceLock::new(),
            spare_report: Mutex::default(),
            loss_scale: 1.0,
            ranks: Ranks::default(),
            layout: Layout::default(),
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

    /// What the next forward pass from hidden states keeps for its backward pass.
    #[must_use]
    pub fn with_linear_kept(mut self, linear_kept: LinearKept) -> Self {
        self.options = self.options.with_linear_kept(linear_kept);
        self
    }

    /// The logits are a rank's columns of a larger vocabulary, those that the shard says; for [`with_ranks`](Self::with_ranks).
    #[must_use]
    pub fn with_shard(mut self, shard: Shard) -> Self {
        self.options.logits = self.options.logits.with_shard(shard);
        self.last_step = None;
        self
    }

    /// Divides the loss among ranks. Each makes the same calls in the same order, over what it has of the logits and of the batch; each
    /// gets the gradient of what it has, and the [report](Self::report) of the whole batch, in the same bits as all others.
    ///
    /// The mean over groups is that over all ranks' groups. The gradient is that of the whole loss: what adds up gradients of weights
    /// over ranks must sum, not average. A forward pass exchanges notes on the hosts first, so that what one rank refuses is an
    /// error of all of them, and nothing has been written; nothing waits for the device.
    #[must_use]
    pub fn with_ranks(mut self, ranks: Ranks<B>) -> Self {
        (self.ranks, self.layout, self.last_step) = (ranks, Layout::default(), None);
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

    /// Logits `[N, V]`, targets `[N]`, the reference's log-probs and the rewards `[S]` → the loss, as part of the
    /// [report](PreferenceLoss::report), and the step that the backward pass takes.
    ///
    /// # Errors
    /// Any input that does not fit: [`Error::OffsetsEnd`] if the batch does not divide the N rows, [`Error::Length`],
    /// [`Error::Vocabulary`], [`Error::Target`], [`Error::NotFinite`], [`Error::PairsOnly`], [`Error::ZeroTarget`];
    /// [`Error::Device`] for what lies in the memory of another device or context than the backend's; with ranks [`Error::Rank`] and
    /// [`Error::RanksDisagree`], [`Error::OpenGroup`] without. A refused call changes
    /// nothing: the report and the backward pass stay those of the forward pass before it. After [`Error::Cuda`] there is
    /// none.
    ///
    /// What only a device can see comes out of [`report`](PreferenceLoss::report): [`Error::DeviceTarget`],
    /// [`Error::NotFinite`] (a reference; a reward on the device, whatever the objective has against it),
    /// [`Error::NonFiniteRow`].
    pub fn forward<'i, 'r, T: Element>(
        &mut self,
        logits: &Matrix<'_, T, B::Memory>,
        targets: impl Into<Targets<'i, B::Memory>>,
        batch: &Batch,
        reference: &Reference<'_, B::Memory>,
        rewards: impl Into<B::Rewards<'r>>,
    ) -> Result<Step> {
        let _entered = self.backend.enter()?;
        let (targets, rewards) = (targets.into(), rewards.into());
        let (rows, columns) = (logits.rows(), logits.columns());
        let checked = check_logits(&self.backend, logits);
        let inputs = &StepInputs { targets: &targets, batch, reference, rewards: &rewards };
        self.begin(Call::FromLogits, (rows, columns), (0, 0), checked, inputs)?;
        let Self { backend, options, ranks, layout, workspace, .. } = self;
        let (backend, options, ranks, layout) = (&*backend, &*options, &*ranks, &*layout);
        let (logits, _logits) = ordered::matrix(backend, logits);
        let stages = Stages { backend, options, batch, ranks, layout };
        stages
            .run(workspace, &targets, reference, &rewards, |targets, outputs, first| {
                first.products.keep_nothing();
                match &ranks.vocab {
                    None => backend.token_log_probs(&logits, targets, &options.logits, outputs),
                    Some(line) => {
                        let (most, options, parts) = (layout.columns, &options.logits, first.partial_rows);
                        exchange_rows(backend, line.as_ref(), most, &logits, &targets, options, outputs, parts)
                    }
                }
            })
            .inspect_err(|_| ranks.abort())?;
        let step = Step::new(Inputs::of_logits(&logits));
        self.last_step = Some(step.number());
        Ok(step)
    }

    /// Checks what a forward pass reads, agrees about it with the other ranks, and forgets the pass before. `checked`: whether the logits of
    /// so many rows and columns can be read, or the hidden states, of which `of_hidden` has the size and how many are scored.
    fn begin(
        &mut self,
        call: Call,
        (rows, columns): (usize, usize),
        of_hidden: (usize, usize),
        checked: Result<()>,
        inputs: &StepInputs<'_, '_, '_, '_, B>,
    ) -> Result<()> {
        let StepInputs { batch, reference, rewards, .. } = *inputs;
        let vocab = self.options.logits.shard_of(columns).vocab();
        let checked = checked.and_then(|()| self.check(columns, rows, vocab, inputs));
        if self.ranks.any() {
            let reference = match reference {
                Reference::None => 0,
                Reference::PerToken(_) => 1,
                Reference::PerSequence(_) => 2,
            };
            let of_loss = (reference, B::has_proposal(rewards), of_hidden);
            let agreement = Agreement::new(call, rows, &self.options.logits, columns, self.options.entropy).with_loss(
                &self.options,
                batch,
                of_loss,
                !self.layout.is_of(batch),
            );
            self.ranks.agree(agreement, checked, columns, batch, &mut self.layout)?;
            check_group_sizes(&self.options.objective, &self.layout.batch)?;
        } else {
            checked?;
        }

        // From here on the workspace is this pass's: a driver's error leaves no forward pass.
        self.last_step = None;
        if let Some(report) = self.report.take() {
            *self.spare_report.get_mut().unwrap_or_else(PoisonError::into_inner) = report;
        }
        self.workspace.vocab = vocab;
        self.workspace.options = Some(self.options);
        Ok(())
    }

    /// Checks what a forward pass reads besides its logits, of so many rows of so many columns of the vocabulary.
    fn check(&self, columns: usize, rows: usize, vocab: usize, inputs: &StepInputs<'_, '_, '_, '_, B>) -> Result<()> {
        let StepInputs { targets, batch, reference, rewards } = *inputs;
        let (backend, work) = (&self.backend, &self.workspace);
        if self.ranks.vocab.is_none() {
            self.options.logits.check_whole(columns)?;
        }
        if self.ranks.groups.is_none() && batch.open_ends() != (false, false) {
            let group = if batch.open_ends().0 { 0 } else { batch.groups() - 1 };
            return Err(Error::OpenGroup { group });
        }
        backend.check_targets(targets, rows, vocab)?;
        check_rows(batch, rows)?;
        backend.check_reference(reference, targets, batch)?;
        backend.check_rewards(&self.options.objective, rewards, batch)?;
        backend.check_step(rewards, work.options.is_some() && work.batch.as_ref() == batch)
    }

    /// Writes loss scale × d loss / d logits, `[N, V]`, to `gradient`. `step` is what [`forward`](Self::forward) gave for
    /// these logits.
    ///
    /// # Errors
    /// [`Error::OtherStep`] if the last forward pass of this loss was another; [`Error::Length`] if logits or gradient do
    /// not have the N and V of the forward pass; [`Error::OtherInputs`] if the logits are others; [`Error::Device`];
    /// [`Error::Cuda`].
    pub fn backward<T: Element>(
        &mut self,
        step: &Step,
        logits: &Matrix<'_, T, B::Memory>,
        gradient: MatrixMut<'_, T, B::Memory>,
    ) -> Result<()> {
        let _entered = self.backend.enter()?;
        check_gradient(&self.backend, logits, &gradient)?;
        let (logits, _logits) = ordered::matrix(&self.backend, logits);
        step.check(self.last_step, &Inputs::of_logits(&logits))?;
        let (targets, saved, upstream) = self.for_backward(logits.rows());
        self.backend.token_log_probs_backward(&logits, targets, &self.options.logits, &saved, &upstream, gradient)
    }

    /// Overwrites the logits with loss scale × d loss / d logits; the bits are those of [`backward`](Self::backward).
    /// The logits are gone afterwards, so this consumes the step.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    #[expect(clippy::needless_pass_by_value, reason = "no other backward pass can follow")]
    pub fn backward_in_place<T: Element>(&mut self, step: Step, mut logits: MatrixMut<'_, T, B::Memory>) -> Result<()> {
        let _entered = self.backend.enter()?;
        check_logits(&self.backend, &logits.as_matrix())?;
        let (logits, _logits) = ordered::matrix_mut(&self.backend, &mut logits);
        step.check(self.last_step, &Inputs::of_logits(&logits.as_matrix()))?;
        let (targets, saved, upstream) = self.for_backward(logits.rows());
        self.backend.token_log_probs_backward_in_place(logits, targets, &self.options.logits, &saved, &upstream)
    }

    /// What the forward pass has left for the gradient of its rows.
    fn for_backward(&self, rows: usize) -> ForBackward<'_, B::Memory> {
        let (work, sequences) = (&self.workspace, self.workspace.batch.as_ref().sequences());
        work.kept.for_backward(&self.backend, rows, sequences, self.loss_scale)
    }

    /// Takes what the last forward pass has left for backward passes out of the loss, for frameworks that go backward later,
    /// or several times, or from another thread. `step` is what that pass gave. After a pass from hidden states over ranks that have
    /// parts of the head, this adds up the ranks' shares in the gradients of these: a call that all of them make.
    ///
    /// # Errors
    /// [`Error::OtherStep`] if it was another; [`Error::NoForward`] before any.
    #[expect(clippy::needless_pass_by_value, reason = "the loss is gone: no other backward pass can follow")]
    pub fn into_forward_pass(self, step: Step) -> Result<ForwardPass<B>> {
        step.check_number(self.last_step)?;
        let Some(options) = self.workspace.options else { return Err(Error::NoForward) };
        let mut work = self.workspace;
        if let Some(line) = &self.ranks.vocab {
            let _entered = self.backend.enter()?;
            work.kept.products.sum(&self.backend, line.as_ref(), || Ok(()))?;
        }
        Ok(ForwardPass {
            backend: self.backend,
            options: options.logits,
            inputs: step.inputs(),
            sequences: work.batch.as_ref().sequences(),
            kept: work.kept,
        })
    }

    /// Forgets the report that was read, so that the next one is read from the workspace: after a CUDA graph with the forward
    /// pass in it has been launched.
    pub fn discard_report(&mut self) {
        self.report = OnceLock::new();
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
        let spare = take(&mut *self.spare_report.lock().unwrap_or_else(PoisonError::into_inner));
        let report = self.read_report(spare)?;
        Ok(self.report.get_or_init(|| report))
    }

    fn read_report(&self, mut report: Report) -> Result<Report> {
        let _entered = self.backend.enter()?;
        let (backend, work) = (&self.backend, &self.workspace);
        let Some(options) = work.options else { return Err(Error::NoForward) };
        let divided = self.ranks.divide_sequences();
        let batch = if divided { &self.layout.batch } else { work.batch.as_ref() };
        let (rows, sequences, groups) = (work.batch.as_ref().rows(), batch.sequences(), batch.groups());
        let results = StageResults {
            log_ratios: backend.view(&work.step.log_ratios, sequences),
            group_losses: backend.view(&work.step.group_losses, groups),
            statistics: backend.view(&work.step.statistics, groups),
        };
        let scored_rows = backend.view(&work.step.scored_rows, sequences);
        let entropy_sums = options.entropy.then(|| backend.view(&work.step.entropy_sums, sequences));
        let read = if divided {
            let counts = work.ranks.counts(&self.ranks, &self.layout, backend)?;
            read_results_of_ranks(backend, &self.ranks, &counts, work.vocab, &results, &scored_rows, entropy_sums)?
        } else {
            let found = ScoredLogProbs {
                log_probs: backend.view(&work.log_probs, rows),
                entropies: options.entropy.then(|| backend.view(&work.entropies, rows)),
                entropy_sums,
                scored_rows,
                targets: Targets::U32(backend.view(&work.kept.targets, rows)),
                vocab: work.vocab,
            };
            backend.read_results(&found, &results, batch)?
        };
        report.fill(batch, &read, options.objective.beta_policy(), options.reduction.weight(groups));
        Ok(report)
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
