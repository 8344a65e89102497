//! The stages composed on the device.

use super::arguments::{DeviceGroupStatistics, Status};
use super::context::CurrentContext;
use super::driver::called;
#[cfg(feature = "candle-cuda")]
use super::forward_pass::{ForwardPass, KeptTargets};
use super::raw::{self, ForwardOutputs, LogRatioInputs, LogRatioOutputs, ObjectiveInputs, ObjectiveOutputs, Upstream};
use super::rewards::{Held, Rewards};
use super::token_log_prob::{Reference, rows, targets};
use super::workspace::{Grown, Scratch, address};
use super::{Cuda, Logits, LogitsMut};
use crate::batch::Batch;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::logits::Shape;
use crate::loss::{PreferenceLoss, sealed};
use crate::loss_options::{LogRatio, LossOptions};
use crate::operand::Operand;
use crate::report::{Report, RowSummary, StageResults};
use crate::stages::{self, GroupStatistics, SoftmaxState, check_length, check_rows};
use crate::step::{Inputs, Step};
use crate::targets::TokenId;
use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, ValidAsZeroBits,
};
#[cfg(feature = "candle-cuda")]
use std::mem::take;
use std::sync::{Arc, OnceLock};

/// Device buffers of a loss, kept between steps: per row (N), per sequence (S) and per group (G), never anything of the
/// size of the logits.
#[derive(Default)]
pub struct CudaWorkspace {
    /// Partial sums, tickets and the status word of this loss.
    pub(super) scratch: Scratch,
    /// Copies of the ids, for the backward pass: one of the two types.
    targets_u32: Grown<u32>,
    targets_i64: Grown<i64>,
    target_bytes: usize,
    log_probs: Grown<f32>,
    states: Grown<SoftmaxState>,
    entropies: Grown<f32>,
    row_sequences: Grown<i32>,
    sequence_offsets: Grown<i64>,
    group_offsets: Grown<i64>,
    rewards: Grown<f64>,
    proposal_offsets: Grown<f64>,
    log_ratios: Grown<f64>,
    log_prob_sums: Grown<f64>,
    entropy_sums: Grown<f64>,
    scored_rows: Grown<i32>,
    group_losses: Grown<f64>,
    coefficients: Grown<f64>,
    sequence_weights: Grown<f64>,
    statistics: Grown<DeviceGroupStatistics>,
    /// The batch whose offsets are on the device.
    batch: Option<Batch>,
    /// What the report needs of the last forward pass.
    options: Option<LossOptions>,
    vocab: usize,
}

impl std::fmt::Debug for CudaWorkspace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CudaWorkspace").field("batch", &self.batch).finish_non_exhaustive()
    }
}

/// Copies host numbers to a buffer, in the stream's order.
fn upload<T: DeviceRepr + ValidAsZeroBits>(
    buffer: &mut Grown<T>,
    stream: &Arc<CudaStream>,
    numbers: &[T],
) -> Result<raw::Address> {
    let slice = buffer.at_least(stream, numbers.len())?;
    if !numbers.is_empty() {
        called("cuMemcpyHtoDAsync", stream.memcpy_htod(numbers, slice))?;
    }
    Ok(slice.device_ptr_mut(stream).0)
}

/// A graph would read the host's memory again when it is launched, long after a step has let go of it.
fn refuse_in_capture(stream: &CudaStream) -> Result<()> {
    let status = called("cuStreamIsCapturing", stream.capture_status())?;
    if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(Error::Cuda {
        call: "cuMemcpyHtoDAsync",
        code: CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as i32,
        message: "in a capture the batch must be that of the step before, and the rewards on the device".to_owned(),
    })
}

fn download<T: DeviceRepr + Clone + Default>(
    slice: Option<&CudaSlice<T>>,
    stream: &Arc<CudaStream>,
    length: usize,
) -> Result<Vec<T>> {
    let mut numbers = vec![T::default(); length];
    if let Some(slice) = slice
        && length > 0
    {
        called("cuMemcpyDtoHAsync", stream.memcpy_dtoh(&slice.slice(..length), &mut numbers))?;
    }
    Ok(numbers)
}

impl sealed::Backend for Cuda {
    type Workspace = CudaWorkspace;

    fn read_report(&self, workspace: &CudaWorkspace) -> Result<Report> {
        let _current = CurrentContext::keep()?;
        workspace.read(&self.stream)
    }
}

impl CudaWorkspace {
    fn read(&self, stream: &Arc<CudaStream>) -> Result<Report> {
        let (Some(batch), Some(options)) = (&self.batch, &self.options) else { return Err(Error::NoForward) };
        let (sequences, groups) = (batch.sequences(), batch.groups());
        let log_ratios = download(self.log_ratios.get(), stream, sequences)?;
        let entropy_sums = download(self.entropy_sums.get(), stream, if options.entropy { sequences } else { 0 })?;
        let scored_rows = download(self.scored_rows.get(), stream, sequences)?;
        let group_losses = download(self.group_losses.get(), stream, groups)?;
        let statistics: Vec<GroupStatistics> =
            download(self.statistics.get(), stream, groups)?.into_iter().map(GroupStatistics::from).collect();
        let status = self.scratch.status.read(stream)?;
        check_status(&status, self.vocab)?;
        let scored: usize = scored_rows.iter().map(|rows| *rows as usize).sum();
        let rows = RowSummary {
            scored_rows: scored,
            non_finite_rows: status.non_finite_rows(),
            first_non_finite_row: status.first_non_finite_row(),
            impossible_targets: status.minus_infinite_targets(),
            empty_sequences: scored_rows.iter().filter(|rows| **rows == 0).count(),
            entropy: (options.entropy && scored > 0).then(|| entropy_sums.iter().sum()),
        };
        let mut report = Report::default();
        report.fill(
            batch,
            &rows,
            &StageResults {
                log_ratios: &log_ratios,
                group_losses: &group_losses,
                statistics: &statistics,
                beta_policy: options.objective.beta_policy(),
                weight: options.reduction.weight(groups),
            },
        );
        Ok(report)
    }
}

/// Inputs that were on the device, and that the host would have refused.
fn check_status(status: &Status, vocab: usize) -> Result<()> {
    if let Some(row) = status.first_bad_target_row() {
        return Err(Error::DeviceTarget { row, count: status.bad_targets(), vocab });
    }
    if status.unplaced_rows() > 0 {
        return Err(Error::ScoredRows { beyond: status.unplaced_rows() });
    }
    if let Some(sequence) = status.first_non_finite_reference_sequence() {
        return Err(Error::NotFinite { what: "reference log-prob", sequence, value: f64::NAN });
    }
    if let Some(sequence) = status.first_bad_reward_sequence() {
        return Err(Error::NotFinite { what: "reward", sequence, value: f64::NAN });
    }
    Ok(())
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
    /// [`PreferenceLoss::<Cpu>::forward`](crate::PreferenceLoss#method.forward); [`Error::Device`] for what lies on
    /// another device or in another context than the backend's stream; [`Error::Cuda`]. A refused call launches nothing. What only the device can see comes out of [`report`](PreferenceLoss::report):
    /// [`Error::DeviceTarget`], [`Error::NotFinite`] (a reference; a reward on the device, whatever the objective has
    /// against it), [`Error::NonFiniteRow`].
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
            unsafe { raw::token_log_probs_with(cuda, scratch, rows, targets, &options, outputs) }
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
    /// [`Error::OtherStep`] if the last forward pass of this loss was another; [`Error::Length`] if logits or gradient do
    /// not have the N and V of the forward pass; [`Error::OtherInputs`] if the logits are others;
    /// [`Error::Device`]; [`Error::Cuda`].
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
    pub(super) fn for_backward(&mut self, rows: usize) -> Result<(raw::Targets, raw::Address, Upstream)> {
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
            raw::token_log_probs_backward(&self.backend, logits, targets, &options, states, 0, upstream, gradients)
        }
    }
}

/// Where logits lie.
fn logit_inputs(address: raw::Address, shape: Shape) -> Inputs {
    let Shape { rows, vocab, row_stride } = shape;
    Inputs { rows, vocab, operands: [Some(Operand::new("logits", address, rows, row_stride)), None, None] }
}

#[cfg(feature = "candle-cuda")]
impl PreferenceLoss<Cuda> {
    /// Takes what the last forward pass has left for backward passes out of the loss.
    pub(crate) fn into_forward_pass(mut self) -> Result<ForwardPass> {
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
            return Err(Error::NoForward);
        };
        Ok(ForwardPass { rows, vocab: work.vocab, options, targets, states, row_sequences, sequence_weights })
    }
}

impl CudaWorkspace {
    /// Brings the offsets to the device, unless the batch is the last one's.
    fn place(&mut self, batch: &Batch, stream: &Arc<CudaStream>) -> Result<()> {
        if self.batch.as_ref() != Some(batch) {
            self.batch = None;
            let offsets = |offsets: &[usize]| offsets.iter().map(|offset| *offset as i64).collect::<Vec<_>>();
            upload(&mut self.sequence_offsets, stream, &offsets(batch.sequence_offsets()))?;
            upload(&mut self.group_offsets, stream, &offsets(batch.group_offsets()))?;
            self.batch = Some(batch.clone());
        }
        Ok(())
    }

    /// Brings rewards of the host to the device.
    fn bring(
        &mut self,
        rewards: stages::Rewards<'_>,
        sequences: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<(raw::Rewards, raw::Address, Held<'static>)> {
        let numbers = |value: &dyn Fn(usize) -> f64| (0..sequences).map(value).collect::<Vec<_>>();
        let values = upload(&mut self.rewards, stream, &numbers(&|sequence| rewards.value(sequence)))?;
        let offsets = if rewards.has_proposal() {
            upload(&mut self.proposal_offsets, stream, &numbers(&|sequence| rewards.offset(sequence)))?
        } else {
            0
        };
        Ok((raw::Rewards::F64(values), offsets, [None, None]))
    }

    /// Copies the ids, which the backward pass reads again.
    fn copy_targets<I: TokenId>(&mut self, from: &CudaView<'_, I>, stream: &Arc<CudaStream>) -> Result<raw::Targets> {
        self.target_bytes = size_of::<I>();
        let copy = self.targets(stream, from.len())?;
        let (raw::Targets::U32(to) | raw::Targets::I64(to)) = copy;
        if !from.is_empty() {
            let (source, _read) = from.device_ptr(stream);
            called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
            // SAFETY: both hold N ids of this type.
            let copied =
                unsafe { cudarc::driver::result::memcpy_dtod_async(to, source, from.num_bytes(), stream.cu_stream()) };
            called("cuMemcpyDtoDAsync", copied)?;
        }
        Ok(copy)
    }

    fn targets(&mut self, stream: &Arc<CudaStream>, count: usize) -> Result<raw::Targets> {
        if self.target_bytes == 4 {
            Ok(targets::<u32>(address(&mut self.targets_u32, stream, count)?))
        } else {
            Ok(targets::<i64>(address(&mut self.targets_i64, stream, count)?))
        }
    }
}
