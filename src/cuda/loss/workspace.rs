//! Device buffers of a loss, kept between steps, and its report read from them.

use crate::cuda::driver::called;
use crate::cuda::memory::{Grown, Scratch, address, download, upload};
use crate::cuda::raw::objective::DeviceGroupStatistics;
use crate::cuda::rewards::Held;
use crate::cuda::status::Status;
use crate::cuda::token_log_prob::targets;
use crate::cuda::{memory, raw};
use crate::data::batch::Batch;
use crate::data::rewards;
use crate::data::targets::TokenId;
use crate::error::{Error, Result};
use crate::options::LossOptions;
use crate::report::{Report, RowSummary, StageResults};
use crate::stage::objective::GroupStatistics;
use crate::stage::token_log_prob::SoftmaxState;
use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaStream, CudaView, DevicePtr, DeviceSlice};
use std::sync::Arc;

/// Device buffers of a loss, kept between steps: per row (N), per sequence (S) and per group (G), never anything of the
/// size of the logits.
#[derive(Default)]
pub struct CudaWorkspace {
    /// Partial sums, tickets and the status word of this loss.
    pub(crate) scratch: Scratch,
    /// Copies of the ids, for the backward pass: one of the two types.
    pub(crate) targets_u32: Grown<u32>,
    pub(crate) targets_i64: Grown<i64>,
    pub(crate) target_bytes: usize,
    pub(crate) log_probs: Grown<f32>,
    pub(crate) states: Grown<SoftmaxState>,
    pub(crate) entropies: Grown<f32>,
    pub(crate) row_sequences: Grown<i32>,
    pub(crate) sequence_offsets: Grown<i64>,
    pub(crate) group_offsets: Grown<i64>,
    rewards: Grown<f64>,
    proposal_offsets: Grown<f64>,
    pub(crate) log_ratios: Grown<f64>,
    pub(crate) log_prob_sums: Grown<f64>,
    pub(crate) entropy_sums: Grown<f64>,
    pub(crate) scored_rows: Grown<i32>,
    pub(crate) group_losses: Grown<f64>,
    pub(crate) coefficients: Grown<f64>,
    pub(crate) sequence_weights: Grown<f64>,
    pub(crate) statistics: Grown<DeviceGroupStatistics>,
    /// The batch whose offsets are on the device.
    pub(crate) batch: Option<Batch>,
    /// What the report needs of the last forward pass.
    pub(crate) options: Option<LossOptions>,
    pub(crate) vocab: usize,
}

impl std::fmt::Debug for CudaWorkspace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CudaWorkspace").field("batch", &self.batch).finish_non_exhaustive()
    }
}

/// A graph would read the host's memory again when it is launched, long after a step has let go of it.
pub(crate) fn refuse_in_capture(stream: &CudaStream) -> Result<()> {
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

impl CudaWorkspace {
    pub(crate) fn read(&self, stream: &Arc<CudaStream>) -> Result<Report> {
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

impl CudaWorkspace {
    /// Brings the offsets to the device, unless the batch is the last one's.
    pub(crate) fn place(&mut self, batch: &Batch, stream: &Arc<CudaStream>) -> Result<()> {
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
    pub(crate) fn bring(
        &mut self,
        rewards: rewards::Rewards<'_>,
        sequences: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<(raw::Rewards, memory::Address, Held<'static>)> {
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
    pub(crate) fn copy_targets<I: TokenId>(
        &mut self,
        from: &CudaView<'_, I>,
        stream: &Arc<CudaStream>,
    ) -> Result<raw::Targets> {
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

    pub(crate) fn targets(&mut self, stream: &Arc<CudaStream>, count: usize) -> Result<raw::Targets> {
        if self.target_bytes == 4 {
            Ok(targets::<u32>(address(&mut self.targets_u32, stream, count)?))
        } else {
            Ok(targets::<i64>(address(&mut self.targets_i64, stream, count)?))
        }
    }
}
