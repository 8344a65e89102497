//! How much the linear stage does at once, and the memory it keeps between calls.

use crate::cuda::blas::Blas;
use crate::cuda::context::Kept;
use crate::cuda::driver::called;
use crate::cuda::memory::Grown;
use crate::cuda::{Cuda, memory, tuning};
use crate::error::{Error, Result};
use crate::stage::token_log_prob::SoftmaxState;
use cudarc::driver::{CudaStream, sys};
use std::sync::{Arc, PoisonError};

/// How much of the logits `[N, V]` the linear stage holds at once. Larger chunks make larger products, smaller ones need
/// less memory; the default suits both. The log-probs have the same bits whatever this is, if those of an element of a
/// product do not depend on the product's other rows and columns (of cuBLAS that is not promised).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearChunks {
    columns: usize,
    row_bytes: usize,
}

impl Default for LinearChunks {
    fn default() -> Self {
        Self { columns: tuning::LINEAR_COLUMNS, row_bytes: tuning::LINEAR_ROW_BYTES }
    }
}

impl LinearChunks {
    /// Columns of the vocabulary at once, for all rows: 4·N·`columns` bytes of logits in f32.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is a multiple of 512 and above 0.
    pub fn with_columns(self, columns: usize) -> Result<Self> {
        if columns == 0 || !columns.is_multiple_of(tuning::LINEAR_UNIT) {
            let expected = "a multiple of 512, above 0";
            return Err(Error::Parameter { name: "columns of a chunk", given: columns as f64, expected });
        }
        Ok(Self { columns, ..self })
    }

    /// Bytes of logits in f32 at once in [`Backend::linear_row_loss`](crate::Backend::linear_row_loss), which takes whole rows: at least one.
    #[must_use]
    pub fn with_row_bytes(self, row_bytes: usize) -> Self {
        Self { row_bytes, ..self }
    }

    /// Columns at once.
    pub(crate) fn columns(self) -> usize {
        self.columns
    }

    /// Rows at once: a multiple of 64, which is what tiles of products like, where it is not fewer.
    pub(crate) fn rows(self, vocab: usize) -> usize {
        let rows = (self.row_bytes / (4 * vocab)).max(1);
        if rows < 64 { rows } else { rows / 64 * 64 }
    }
}

/// What the linear stage keeps between calls. M: rows that it gathers.
#[derive(Default)]
pub(crate) struct LinearScratch {
    blas: Kept<Option<Blas>>,
    pub(crate) chunks: LinearChunks,
    /// `[M]`, `[N]`.
    pub(crate) rows: Grown<i32>,
    pub(crate) positions: Grown<i32>,
    /// `[M, H]` in the head's type.
    pub(crate) gathered: Grown<u8>,
    /// `[V]`.
    pub(crate) bias: Grown<f32>,
    /// A chunk.
    pub(crate) logits: Grown<f32>,
    /// A chunk in the head's type, unless that is f32.
    pub(crate) gradients: Grown<u8>,
    /// `[M]` of three f64: what is kept of a row from chunk to chunk.
    pub(crate) sums: Grown<f64>,
    /// `[M, H]`, before the rounding.
    pub(crate) hidden_sums: Grown<f32>,
    /// `[V, H]` and `[V]`, where several chunks of rows are summed up for a buffer that is not f32.
    pub(crate) weight_sums: Grown<f32>,
    pub(crate) bias_sums: Grown<f64>,
    /// Four f32: as in [`super::blas::Product::factors`].
    pub(crate) factors: Grown<f32>,
    /// `[N]`: of the rows of a row loss.
    pub(crate) row_gradients: Grown<f32>,
    pub(crate) states: Grown<SoftmaxState>,
}

impl LinearScratch {
    /// The handle; made at the first call.
    pub(crate) fn blas(&mut self, stream: &Arc<CudaStream>) -> Result<&Blas> {
        match &mut *self.blas {
            Some(blas) => Ok(blas),
            slot => Ok(slot.insert(Blas::new(stream)?)),
        }
    }
}

impl LinearScratch {
    /// How many references to the stream are held.
    pub(crate) fn stream_references(&self) -> usize {
        // By name, so that a new buffer is not forgotten.
        let Self {
            blas,
            chunks: _,
            rows,
            positions,
            gathered,
            bias,
            logits,
            gradients,
            sums,
            hidden_sums,
            weight_sums,
            bias_sums,
            factors,
            row_gradients,
            states,
        } = self;
        let of_blas = if blas.is_some() { Blas::STREAM_REFERENCES } else { 0 };
        of_blas
            + [rows.slices(), positions.slices(), gathered.slices(), bias.slices(), logits.slices()]
                .into_iter()
                .chain([gradients.slices(), sums.slices(), hidden_sums.slices(), weight_sums.slices()])
                .chain([bias_sums.slices(), factors.slices(), row_gradients.slices(), states.slices()])
                .sum::<usize>()
    }
}

/// Zeros in a matrix of `rows` rows of `width` bytes, `pitch` bytes apart; nothing between the rows.
///
/// # Safety
/// The memory is there, and nothing else touches it until the stream has run this.
pub(crate) unsafe fn clear(
    stream: &Arc<CudaStream>,
    address: memory::Address,
    pitch: usize,
    width: usize,
    rows: usize,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
    // SAFETY: the caller's promise.
    let done = unsafe { sys::cuMemsetD2D8Async(address, pitch, 0, width, rows, stream.cu_stream()) };
    called("cuMemsetD2D8Async", done.result())
}

impl Cuda {
    /// How much the linear stage does at once, from now on.
    pub fn set_linear_chunks(&self, chunks: LinearChunks) {
        *self.linear_chunks.lock().unwrap_or_else(PoisonError::into_inner) = chunks;
    }
}
