//! Sequence log-ratios on the device: launches `kernels/log_ratio.cu`.

use crate::cuda::context::{CurrentContext, Kept};
use crate::cuda::driver::called;
use crate::cuda::token_log_prob::{Reference, targets};
use crate::cuda::{Cuda, raw};
use crate::data::batch::Batch;
use crate::data::targets::TokenId;
use crate::error::Result;
use crate::options::LogRatio;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

/// A batch whose offsets are on the device too.
pub struct DeviceBatch {
    pub(super) batch: Batch,
    pub(super) sequence_offsets: Kept<CudaSlice<i64>>,
    pub(super) group_offsets: Kept<CudaSlice<i64>>,
}

impl DeviceBatch {
    /// The batch.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

/// Where the log-ratio stage writes.
pub struct LogRatios<'a> {
    /// Log-ratios, S.
    pub log_ratios: CudaViewMut<'a, f64>,
    /// Sums of the policy's log-probs over the scored rows, S.
    pub log_prob_sums: CudaViewMut<'a, f64>,
    /// Scored rows, S.
    pub scored_rows: CudaViewMut<'a, i32>,
    /// The sequence of each row, N.
    pub row_sequences: CudaViewMut<'a, i32>,
}

impl Cuda {
    /// Brings a batch's offsets to the device.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn upload_batch(&self, batch: &Batch) -> Result<DeviceBatch> {
        let _current = CurrentContext::keep()?;
        let upload = |offsets: &[usize]| {
            let offsets: Vec<i64> = offsets.iter().map(|offset| *offset as i64).collect();
            called("cuMemcpyHtoDAsync", self.stream.clone_htod(&offsets)).map(Kept::new)
        };
        let sequence_offsets = upload(batch.sequence_offsets())?;
        let group_offsets = upload(batch.group_offsets())?;
        Ok(DeviceBatch { batch: batch.clone(), sequence_offsets, group_offsets })
    }

    /// Token log-probs `[N]`, the reference's, and which rows are scored (target id ≥ 0) → log-ratios `[S]` and their
    /// companions.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for buffers that do not fit the batch;
    /// [`Error::Device`](crate::Error::Device) for one that lies elsewhere;
    /// [`Error::Cuda`](crate::Error::Cuda). A reference log-prob that is not finite is counted in [`Cuda::status`].
    pub fn log_ratios<I: TokenId>(
        &self,
        log_probs: &CudaView<'_, f32>,
        targets: &CudaView<'_, I>,
        reference: &Reference<'_>,
        batch: &DeviceBatch,
        log_ratio: LogRatio,
        outputs: &mut LogRatios<'_>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let (rows, sequences) = (batch.batch.rows(), batch.batch.sequences());
        self.check_view("log-probs", log_probs, rows)?;
        self.check_view("targets", targets, rows)?;
        self.check_view("row sequences", &outputs.row_sequences, rows)?;
        self.check_view("log-ratios", &outputs.log_ratios, sequences)?;
        self.check_view("log-prob sums", &outputs.log_prob_sums, sequences)?;
        self.check_view("scored rows", &outputs.scored_rows, sequences)?;
        self.check_context("batch", &*batch.sequence_offsets)?;
        self.check_reference(reference, &batch.batch)?;
        let stream = &self.stream;
        let (log_probs, _read_log_probs) = log_probs.device_ptr(stream);
        let (target_ids, _read_targets) = targets.device_ptr(stream);
        let (sequence_offsets, _read_offsets) = batch.sequence_offsets.device_ptr(stream);
        let (log_ratios, _write_log_ratios) = outputs.log_ratios.device_ptr_mut(stream);
        let (log_prob_sums, _write_sums) = outputs.log_prob_sums.device_ptr_mut(stream);
        let (scored_rows, _write_scored) = outputs.scored_rows.device_ptr_mut(stream);
        let (row_sequences, _write_rows) = outputs.row_sequences.device_ptr_mut(stream);
        let (mut reference_tokens, mut reference_sequences) = (0, 0);
        let (_read_tokens, _read_sequences);
        match reference {
            Reference::PerToken(reference) => (reference_tokens, _read_tokens) = reference.device_ptr(stream),
            Reference::PerSequence(reference) => (reference_sequences, _read_sequences) = reference.device_ptr(stream),
            Reference::None => {}
        }
        let inputs = raw::LogRatioInputs {
            log_probs,
            entropies: 0,
            targets: self::targets::<I>(target_ids),
            reference_tokens,
            reference_sequences,
            sequence_offsets,
            sequences,
            mean: log_ratio == LogRatio::Mean,
        };
        let outputs = raw::LogRatioOutputs { log_ratios, log_prob_sums, entropy_sums: 0, scored_rows, row_sequences };
        // SAFETY: the lengths were checked, the offsets are a valid batch's, and the views are borrowed until the
        // launch is in the stream.
        unsafe { raw::log_ratios(self, inputs, outputs) }
    }

    /// Checks the reference's length and place.
    pub(super) fn check_reference(&self, reference: &Reference<'_>, batch: &Batch) -> Result<()> {
        match reference {
            Reference::PerToken(view) => self.check_view("reference log-probs per token", view, batch.rows()),
            Reference::PerSequence(view) => {
                self.check_view("reference log-probs per sequence", view, batch.sequences())
            }
            Reference::None => Ok(()),
        }
    }
}
