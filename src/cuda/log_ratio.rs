//! Sequence log-ratios on the device: launches `kernels/log_ratio.cu`.

use crate::cuda::memory::Grown;
use crate::cuda::token_log_prob::{optional, optional_mut, targets_at};
use crate::cuda::{Cuda, LogRatioOutputs, Reference, RowLogProbs, raw};
use crate::data::batch::Batch;
use crate::error::Result;
use crate::options::LogRatio;
use crate::stage::log_ratio::check_reference;
use cudarc::driver::CudaStream;
use std::sync::Arc;

/// A batch whose offsets are on the device too.
#[derive(Debug, Default)]
pub struct DeviceBatch {
    batch: Batch,
    /// Whether the offsets below are those of the batch.
    placed: bool,
    pub(super) sequence_offsets: Grown<i64>,
    pub(super) group_offsets: Grown<i64>,
}

impl AsRef<Batch> for DeviceBatch {
    fn as_ref(&self) -> &Batch {
        &self.batch
    }
}

impl DeviceBatch {
    /// Brings the offsets of a batch to the device, unless they are there.
    pub(super) fn place(&mut self, batch: &Batch, stream: &Arc<CudaStream>) -> Result<()> {
        if self.placed && self.batch == *batch {
            return Ok(());
        }
        // Should a copy fail, no batch is left whose offsets could be others.
        (self.placed, self.batch) = (false, Batch::default());
        let offsets = |offsets: &[usize]| offsets.iter().map(|offset| *offset as i64).collect::<Vec<_>>();
        self.sequence_offsets.upload(stream, &offsets(batch.sequence_offsets()))?;
        self.group_offsets.upload(stream, &offsets(batch.group_offsets()))?;
        self.batch.become_same(batch);
        self.placed = true;
        Ok(())
    }
}

/// [`Backend::log_ratios`](crate::Backend::log_ratios).
pub(super) fn log_ratios(
    cuda: &Cuda,
    rows: &RowLogProbs<'_>,
    reference: &Reference<'_>,
    batch: &DeviceBatch,
    log_ratio: LogRatio,
    mut outputs: LogRatioOutputs<'_>,
) -> Result<()> {
    let sequences = batch.batch.sequences();
    rows.check(cuda, batch.batch.rows())?;
    outputs.check(cuda, &batch.batch, rows)?;
    cuda.check_context("batch", batch.sequence_offsets.context())?;
    check_reference(cuda, reference, &batch.batch)?;
    let stream = &cuda.stream;
    let (log_probs, _read_log_probs) = rows.log_probs.address(stream);
    let (entropies, _read_entropies) = optional(rows.entropies.as_ref(), stream);
    let (targets, _read_targets) = targets_at(&rows.targets, stream);
    let (log_ratios, _write_log_ratios) = outputs.log_ratios.address(stream);
    let (log_prob_sums, _write_sums) = outputs.log_prob_sums.address(stream);
    let (entropy_sums, _write_entropy_sums) = optional_mut(outputs.entropy_sums.as_mut(), stream);
    let (scored_rows, _write_scored) = outputs.scored_rows.address(stream);
    let (row_sequences, _write_rows) = outputs.row_sequences.address(stream);
    let (row_targets, _write_targets) = outputs.row_targets.address(stream);
    let (per_token, per_sequence) = match reference {
        Reference::PerToken(reference) => (Some(reference), None),
        Reference::PerSequence(reference) => (None, Some(reference)),
        Reference::None => (None, None),
    };
    let (reference_tokens, _read_tokens) = optional(per_token, stream);
    let (reference_sequences, _read_sequences) = optional(per_sequence, stream);
    let inputs = raw::LogRatioInputs {
        log_probs,
        entropies,
        targets,
        reference_tokens,
        reference_sequences,
        sequence_offsets: batch.sequence_offsets.view(sequences + 1).address(stream).0,
        sequences,
        mean: log_ratio == LogRatio::Mean,
    };
    let outputs =
        raw::LogRatioOutputs { log_ratios, log_prob_sums, entropy_sums, scored_rows, row_sequences, row_targets };
    // SAFETY: the lengths were checked, the offsets are a valid batch's, and the views are borrowed until the
    // launch is in the stream.
    unsafe { raw::log_ratios(cuda, inputs, outputs) }
}
