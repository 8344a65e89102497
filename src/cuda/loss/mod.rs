//! The stages composed on the device.

mod linear;
pub(crate) mod workspace;

use crate::cuda::context::CurrentContext;
use crate::cuda::forward_pass::{ForwardPass, KeptTargets};
use crate::cuda::loss::workspace::{CudaWorkspace, refuse_in_capture};
use crate::cuda::memory::{Logits, LogitsMut, Scratch, address};
use crate::cuda::raw::log_ratio::{LogRatioInputs, LogRatioOutputs};
use crate::cuda::raw::objective::{ObjectiveInputs, ObjectiveOutputs};
use crate::cuda::raw::token_log_prob;
use crate::cuda::raw::token_log_prob::{ForwardOutputs, Upstream};
use crate::cuda::rewards::Rewards;
use crate::cuda::token_log_prob::{Reference, rows};
use crate::cuda::{Cuda, memory, raw};
use crate::data::batch::Batch;
use crate::data::logits::Shape;
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::{Result, check_length};
use crate::loss::{PreferenceLoss, sealed};
use crate::operand::Operand;
use crate::options::LogRatio;
use crate::report::Report;
use crate::stage::log_ratio::check_rows;
use crate::step::{Inputs, Step};
use cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use std::mem::take;
use std::sync::OnceLock;

impl sealed::Backend for Cuda {
    type Workspace = CudaWorkspace;

    fn read_report(&self, workspace: &CudaWorkspace) -> Result<Report> {
        let _current = CurrentContext::keep()?;
        workspace.read(&self.stream)
    }
}

impl PreferenceLoss<Cuda> {
    /// Logits `[N, V]`, targets `[N]` and the reference's log-probs on the device, the rewards `[S]` there or on the host
    /// → the loss, as part of the [report](PreferenceLoss::report), which stays on the device until it is asked for, and
    /// the step that the backward pass takes. Does not wait for the device.
    ///
    /// Forward and backward can be captured in a CUDA graph and replayed over whatever the same buffers hold then, if
    /// 1. the stream is not the null stream, and cudarc's event tracking is off
    ///    ([`CudaContext::disable_event_tracking`](cudarc::driver::CudaContext::disable_event_tracking)),
    /// 2. a step of the same batch, shapes and options has run before: it has loaded the kernels, allocated what this
    ///    loss keeps, and brought the batch's offsets to the device,
    /// 3. the [`Rewards`] are on the device: a capture that would have to copy from the host is refused,
    /// 4. the loss outlives the graph, and steps of other shapes are another loss's: the graph holds the addresses of
    ///    this one's buffers, which may move when they grow.
    ///
    /// After a launch of the graph, [`discard_report`](Self::discard_report) before the next report.
    ///
    /// # Errors
    /// Lengths that do not fit, and what is wrong with the rewards, as
    /// [`PreferenceLoss::<Cpu>::forward`](crate::PreferenceLoss#method.forward); [`Error::Device`](crate::Error::Device) for what lies on
    /// another device or in another context than the backend's stream; [`Error::Cuda`](crate::Error::Cuda). A refused
    /// call launches nothing. What only the device can see comes out of [`report`](PreferenceLoss::report):
    /// [`Error::DeviceTarget`](crate::Error::DeviceTarget), [`Error::NotFinite`](crate::Error::NotFinite) (a
    /// reference; a reward on the device, whatever the objective has
    /// against it), [`Error::NonFiniteRow`](crate::Error::NonFiniteRow).
    pub fn forward<'a, T: Element, I: TokenId>(
        &mut self,
        logits: &Logits<'_, T>,
        targets: &CudaView<'_, I>,
        batch: &Batch,
        reference: &Reference<'_>,
        rewards: impl Into<Rewards<'a>>,
    ) -> Result<Step> {
        let _current = CurrentContext::keep()?;
        self.backend.check_context("logits", &logits.data)?;
        let options = self.options.logits;
        let stream = self.backend.stream.clone();
        let (address, _read_logits) = logits.data.device_ptr(&stream);
        let rows = rows::<T>(address, logits.shape);
        let stage = |cuda: &Cuda, scratch: &mut Scratch, targets, outputs| {
            // SAFETY: the logits are borrowed until the launch is ordered in the stream; the others are what the loss
            // gives.
            unsafe { token_log_prob::token_log_probs_with(cuda, scratch, rows, targets, &options, outputs) }
        };
        self.forward_with(logit_inputs(address, logits.shape), targets, batch, reference, &rewards.into(), stage)
    }

    /// The forward pass over token log-probs that `stage` makes, of logits of this shape: given the copies of the targets
    /// and where to write.
    pub(super) fn forward_with<I: TokenId>(
        &mut self,
        inputs: Inputs,
        targets: &CudaView<'_, I>,
        batch: &Batch,
        reference: &Reference<'_>,
        rewards: &Rewards<'_>,
        stage: impl FnOnce(&Cuda, &mut Scratch, raw::Targets, ForwardOutputs) -> Result<()>,
    ) -> Result<Step> {
        let (options, objective) = (self.options, self.options.objective);
        let (count, sequences, groups) = (inputs.rows, batch.sequences(), batch.groups());
        self.backend.check_view("targets", targets, count)?;
        check_rows(batch, count)?;
        self.backend.check_reference(reference, batch)?;
        rewards.check(&self.backend, &objective, batch)?;
        if matches!(rewards, Rewards::Host(_)) || self.workspace.batch.as_ref() != Some(batch) {
            refuse_in_capture(&self.backend.stream)?;
        }

        // From here on the workspace is this pass's: a driver's error leaves no forward pass behind.
        self.last_step = None;
        self.report = OnceLock::new();
        let cuda = &self.backend;
        let stream = cuda.stream.clone();
        let work = &mut self.workspace;
        work.vocab = inputs.vocab;
        work.options = Some(options);
        work.place(batch, &stream)?;
        let (reward_addresses, proposal_offsets, _read_rewards) = match rewards {
            Rewards::Host(rewards) => work.bring(*rewards, batch.sequences(), &stream)?,
            Rewards::Device(rewards) => rewards.addresses(&stream),
        };
        let target_copy = work.copy_targets(targets, &stream)?;
        let scratch = &mut work.scratch;
        scratch.status.clear(&stream)?;

        let log_probs = address(&mut work.log_probs, &stream, count)?;
        let states = address(&mut work.states, &stream, count)?;
        let entropies = if options.entropy { address(&mut work.entropies, &stream, count)? } else { 0 };
        let outputs = ForwardOutputs { log_probs, states, entropies };
        let (mut reference_tokens, mut reference_sequences) = (0, 0);
        let (_read_tokens, _read_sequences);
        match reference {
            Reference::PerToken(reference) => (reference_tokens, _read_tokens) = reference.device_ptr(&stream),
            Reference::PerSequence(reference) => (reference_sequences, _read_sequences) = reference.device_ptr(&stream),
            Reference::None => {}
        }
        let log_ratios = address(&mut work.log_ratios, &stream, sequences)?;
        let scored_rows = address(&mut work.scored_rows, &stream, sequences)?;
        let ratio_inputs = LogRatioInputs {
            log_probs,
            entropies,
            targets: target_copy,
            reference_tokens,
            reference_sequences,
            sequence_offsets: address(&mut work.sequence_offsets, &stream, sequences + 1)?,
            sequences,
            mean: options.log_ratio == LogRatio::Mean,
        };
        let ratio_outputs = LogRatioOutputs {
            log_ratios,
            log_prob_sums: address(&mut work.log_prob_sums, &stream, sequences)?,
            entropy_sums: if options.entropy { address(&mut work.entropy_sums, &stream, sequences)? } else { 0 },
            scored_rows,
            row_sequences: address(&mut work.row_sequences, &stream, count)?,
        };
        let objective_inputs = ObjectiveInputs {
            log_ratios,
            rewards: reward_addresses,
            proposal_offsets,
            group_offsets: address(&mut work.group_offsets, &stream, groups + 1)?,
            scored_rows,
            groups,
            mean: options.log_ratio == LogRatio::Mean,
            weight: options.reduction.weight(groups),
        };
        let objective_outputs = ObjectiveOutputs {
            group_losses: address(&mut work.group_losses, &stream, groups)?,
            coefficients: address(&mut work.coefficients, &stream, sequences)?,
            sequence_weights: address(&mut work.sequence_weights, &stream, sequences)?,
            statistics: address(&mut work.statistics, &stream, groups)?,
        };
        stage(cuda, scratch, target_copy, outputs)?;
        // SAFETY: every buffer of the workspace has the length that its stage takes; the caller's views have those that
        // were checked, and are borrowed until the launches are ordered in the stream; the offsets come from a valid
        // batch.
        unsafe {
            raw::log_ratios_with(cuda, &scratch.status, ratio_inputs, ratio_outputs)?;
            raw::objective_with(cuda, &scratch.status, &objective, objective_inputs, objective_outputs)?;
        }
        let step = Step::new(inputs);
        self.last_step = Some(step.number());
        Ok(step)
    }

    /// Writes loss scale × d loss / d logits, `[N, V]`, to `gradients`. `step` is what [`forward`](Self::forward) gave for
    /// these logits. Does not wait for the device.
    ///
    /// # Errors
    /// [`Error::OtherStep`](crate::Error::OtherStep) if the last forward pass of this loss was another;
    /// [`Error::Length`](crate::Error::Length) if logits or gradient do
    /// not have the N and V of the forward pass; [`Error::OtherInputs`](crate::Error::OtherInputs) if the logits are others;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    pub fn backward<T: Element>(
        &mut self,
        step: &Step,
        logits: &Logits<'_, T>,
        gradients: &mut LogitsMut<'_, T>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.backend.check_context("logits", &logits.data)?;
        self.backend.check_context("gradient", &gradients.data)?;
        let stream = self.backend.stream.clone();
        let (address, _read) = logits.data.device_ptr(&stream);
        step.check(self.last_step, &logit_inputs(address, logits.shape))?;
        let (gradient, _write) = gradients.data.device_ptr_mut(&stream);
        self.launch_backward(rows::<T>(address, logits.shape), rows::<T>(gradient, gradients.shape))
    }

    /// Overwrites the logits with loss scale × d loss / d logits; the bits are those of [`backward`](Self::backward).
    /// The logits are gone afterwards, so this consumes the step.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    #[expect(clippy::needless_pass_by_value, reason = "no other backward pass can follow")]
    pub fn backward_in_place<T: Element>(&mut self, step: Step, logits: &mut LogitsMut<'_, T>) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.backend.check_context("logits", &logits.data)?;
        let stream = self.backend.stream.clone();
        let (address, _write) = logits.data.device_ptr_mut(&stream);
        step.check(self.last_step, &logit_inputs(address, logits.shape))?;
        let both = rows::<T>(address, logits.shape);
        self.launch_backward(both, both)
    }

    /// Forgets the report that was read, so that the next one is read from the device: after a CUDA graph with the forward
    /// pass in it has been launched.
    pub fn discard_report(&mut self) {
        self.report = OnceLock::new();
    }

    /// What the forward pass has left for the gradient of this many rows: their targets, states and upstream gradient.
    pub(super) fn for_backward(&mut self, rows: usize) -> Result<(raw::Targets, memory::Address, Upstream)> {
        let stream = self.backend.stream.clone();
        let work = &mut self.workspace;
        let sequences = work.batch.as_ref().map_or(0, Batch::sequences);
        let upstream = Upstream::PerSequence {
            row_sequences: address(&mut work.row_sequences, &stream, rows)?,
            weights: address(&mut work.sequence_weights, &stream, sequences)?,
            loss_scale: self.loss_scale,
        };
        Ok((work.targets(&stream, rows)?, address(&mut work.states, &stream, rows)?, upstream))
    }

    fn launch_backward(&mut self, logits: raw::Rows, gradients: raw::Rows) -> Result<()> {
        check_length("rows of the gradient", gradients.rows, logits.rows)?;
        check_length("vocabulary of the gradient", gradients.vocab, logits.vocab)?;
        let (targets, states, upstream) = self.for_backward(logits.rows)?;
        let options = self.options.logits;
        // SAFETY: as in the forward pass, whose buffers these are; the gradients are the caller's view, or the logits
        // themselves.
        unsafe {
            token_log_prob::token_log_probs_backward(
                &self.backend,
                logits,
                targets,
                &options,
                states,
                0,
                upstream,
                gradients,
            )
        }
    }
}

/// Where logits lie.
fn logit_inputs(address: memory::Address, shape: Shape) -> Inputs {
    let Shape { rows, vocab, row_stride } = shape;
    Inputs { rows, vocab, operands: [Some(Operand::new("logits", address, rows, row_stride)), None, None] }
}

impl PreferenceLoss<Cuda> {
    /// Takes what the last forward pass has left for backward passes out of the loss.
    ///
    /// # Errors
    /// [`Error::NoForward`](crate::Error::NoForward) before any forward pass.
    #[doc(hidden)]
    pub fn into_forward_pass(mut self) -> Result<ForwardPass> {
        let options = self.options.logits;
        let work = &mut self.workspace;
        let rows = work.batch.as_ref().and_then(|batch| batch.sequence_offsets().last().copied());
        let targets = if work.target_bytes == 4 {
            take(&mut work.targets_u32).into_slice().map(KeptTargets::U32)
        } else {
            take(&mut work.targets_i64).into_slice().map(KeptTargets::I64)
        };
        let (states, row_sequences) = (take(&mut work.states).into_slice(), take(&mut work.row_sequences).into_slice());
        let sequence_weights = take(&mut work.sequence_weights).into_slice();
        let (Some(rows), Some(targets), Some(states), Some(row_sequences), Some(sequence_weights)) =
            (rows, targets, states, row_sequences, sequence_weights)
        else {
            return Err(crate::error::Error::NoForward);
        };
        Ok(ForwardPass { rows, vocab: work.vocab, options, targets, states, row_sequences, sequence_weights })
    }
}
