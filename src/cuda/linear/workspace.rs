//! How much the linear stage does at once, and the memory it keeps between calls.

use crate::cuda::blas::{Blas, LinearPrecision};
use crate::cuda::context::{Kept, bind};
use crate::cuda::driver::called;
use crate::cuda::memory::Grown;
use crate::cuda::{Cuda, memory, tuning};
use crate::error::{Error, Result};
use crate::stage::token_log_prob::SoftmaxState;
use cudarc::driver::{CudaStream, sys};
use std::sync::{Arc, PoisonError};

/// How much of the logits `[N, V]` the linear stage holds at once. Larger chunks make larger products, smaller ones need
/// less memory; the default suits both. The log-probs have the same bits whatever this is, if those of an element of a
/// product do not depend on the product's other rows and columns (of cuBLAS that is not promised, but see
/// [`batch_invariant`](Self::batch_invariant)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearChunks {
    pub(in crate::cuda) logits: usize,
    columns: usize,
    /// Rows of a chunk of columns at most.
    pub(in crate::cuda) rows: usize,
    pub(in crate::cuda) row_bytes: usize,
    invariant: bool,
    /// Rows of a product of constant shape.
    pub(in crate::cuda) invariant_rows: usize,
}

impl Default for LinearChunks {
    fn default() -> Self {
        Self {
            logits: tuning::LINEAR_LOGITS,
            columns: usize::MAX,
            rows: tuning::LINEAR_ROWS,
            row_bytes: tuning::LINEAR_ROW_BYTES,
            invariant: false,
            invariant_rows: tuning::LINEAR_INVARIANT_ROWS,
        }
    }
}

/// The part of the logits that is made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Products have so many rows even where fewer are left, the others zero.
    pub(crate) is_filled: bool,
}

impl Chunk {
    /// M, filled up.
    pub(crate) fn filled(self, count: usize) -> usize {
        if self.is_filled { count.next_multiple_of(self.rows) } else { count }
    }
}

/// A multiple of 64, which is what tiles of products like, where it is not fewer.
fn of_tiles(rows: usize) -> usize {
    if rows < 64 { rows.max(1) } else { rows / 64 * 64 }
}

impl LinearChunks {
    /// So many logits at once, 2²⁶ by default: with N rows up to 8192 of them, and as many columns as that leaves, 512 at
    /// least. Where all columns of a row are needed at once, as for what is kept of the forward pass, one row at least.
    #[must_use]
    pub fn with_logits(self, logits: usize) -> Self {
        Self { logits, ..self }
    }

    /// So many columns of the vocabulary at once at most, where not all of them are needed.
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

    /// Bytes of logits in f32 at once in [`Backend::linear_row_loss`](crate::Backend::linear_row_loss) where the head is
    /// trained, 2³⁰ by default: it takes whole rows, at least one.
    #[must_use]
    pub fn with_row_bytes(self, row_bytes: usize) -> Self {
        Self { row_bytes, ..self }
    }

    /// Asks cuBLAS for products of one shape only: of 256 rows, zeros where fewer are left, and all columns of the vocabulary.
    /// It chooses its algorithm by the shape, so that a row's bits may otherwise change with N. With this the log-probs of a row
    /// and the gradient of its hidden state depend on that row alone, as on the CPU. The gradients of the head are sums over
    /// rows, and depend on all of them in either case.
    ///
    /// One row costs as much as 256 then, and the weight is read once for every 256 rows.
    #[must_use]
    pub fn batch_invariant(self) -> Self {
        Self { invariant: true, ..self }
    }

    /// Where a row's columns may come one chunk after another. `count`: M.
    pub(crate) fn of_columns(self, count: usize, vocab: usize) -> Chunk {
        if self.invariant {
            return self.of_rows(count, vocab);
        }
        let rows = count.clamp(1, self.rows);
        let columns = (self.logits / rows).min(self.columns) / tuning::LINEAR_UNIT * tuning::LINEAR_UNIT;
        Chunk { rows, columns: columns.max(tuning::LINEAR_UNIT).min(vocab), is_filled: false }
    }

    /// Where all columns of a row are needed at once.
    pub(crate) fn of_rows(self, count: usize, vocab: usize) -> Chunk {
        self.whole_rows(self.logits / vocab.max(1), count, vocab)
    }

    /// The same in a row loss whose head is trained.
    pub(crate) fn of_row_loss(self, count: usize, vocab: usize) -> Chunk {
        self.whole_rows(self.row_bytes / 4 / vocab.max(1), count, vocab)
    }

    fn whole_rows(self, rows: usize, count: usize, vocab: usize) -> Chunk {
        if self.invariant {
            return Chunk { rows: self.invariant_rows, columns: vocab, is_filled: true };
        }
        Chunk { rows: of_tiles(rows).min(count.max(1)), columns: vocab, is_filled: false }
    }
}

/// What the linear stage keeps between calls. M: rows that it gathers; R: those of a chunk.
#[derive(Default)]
pub(crate) struct LinearScratch {
    blas: Kept<Option<Blas>>,
    pub(crate) chunks: LinearChunks,
    pub(crate) precision: LinearPrecision,
    /// `[M]`, `[N]`.
    pub(crate) rows: Grown<i32>,
    pub(crate) positions: Grown<i32>,
    /// `[R, H]` in the head's type.
    pub(crate) gathered: Grown<u8>,
    /// `[V]`.
    pub(crate) bias: Grown<f32>,
    /// A chunk.
    pub(crate) logits: Grown<f32>,
    /// A chunk in the head's type; in f32 only where the logits are needed again.
    pub(crate) gradients: Grown<u8>,
    /// `[R]` of six f64: what is kept of a row from chunk to chunk.
    pub(crate) sums: Grown<f64>,
    /// `[R, H]`, before the rounding.
    pub(crate) hidden_sums: Grown<f32>,
    /// `[R]` and for every 8192 columns one: sums of exponentials; `[R]` of two numbers: of their targets.
    pub(crate) exponential_sums: Grown<f32>,
    pub(crate) targets_of_rows: Grown<f32>,
    /// `[R]`: what the hidden states are multiplied with, of kept gradients of the logits.
    pub(crate) coefficients: Grown<f32>,
    /// `[V, H]` and `[V]`, where several chunks of rows are summed up for a buffer that is not f32.
    pub(crate) weight_sums: Grown<f32>,
    pub(crate) bias_sums: Grown<f64>,
    /// Four f32: as in [`super::blas::Product::factors`].
    pub(crate) factors: Grown<f32>,
    /// `[N]`: of the rows of a row loss.
    pub(crate) row_gradients: Grown<f32>,
    /// `[N]` each: of a row loss, or of rows of which a rank has some columns, as they are without the others.
    pub(crate) states: Grown<SoftmaxState>,
    pub(crate) log_probs: Grown<f32>,
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
            precision: _,
            rows,
            positions,
            gathered,
            bias,
            logits,
            gradients,
            sums,
            hidden_sums,
            exponential_sums,
            targets_of_rows,
            coefficients,
            weight_sums,
            bias_sums,
            factors,
            row_gradients,
            states,
            log_probs,
        } = self;
        let of_blas = if blas.is_some() { Blas::STREAM_REFERENCES } else { 0 };
        of_blas
            + [rows.slices(), positions.slices(), gathered.slices(), bias.slices(), logits.slices()]
                .into_iter()
                .chain([gradients.slices(), sums.slices(), hidden_sums.slices(), weight_sums.slices()])
                .chain([exponential_sums.slices(), targets_of_rows.slices(), coefficients.slices(), bias_sums.slices()])
                .chain([factors.slices(), row_gradients.slices(), states.slices(), log_probs.slices()])
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
    bind(stream.context())?;
    // SAFETY: the caller's promise.
    let done = unsafe { sys::cuMemsetD2D8Async(address, pitch, 0, width, rows, stream.cu_stream()) };
    called("cuMemsetD2D8Async", done.result())
}

impl Cuda {
    /// How much the linear stage does at once, from now on.
    pub fn set_linear_chunks(&self, chunks: LinearChunks) {
        self.linear_settings.lock().unwrap_or_else(PoisonError::into_inner).0 = chunks;
    }

    /// In what the linear stage multiplies numbers of f32, from now on.
    ///
    /// The environment can change it: `NVIDIA_TF32_OVERRIDE=0` forbids TF32 where it is asked for here, and
    /// `CUBLAS_EMULATE_SINGLE_PRECISION=1` makes cuBLAS 13 multiply f32 by bf16 parts where f32 is
    /// (`CUBLAS_EMULATION_STRATEGY` says how eagerly).
    ///
    /// # Errors
    /// [`Error::Cuda`] for [`LinearPrecision::Bf16x9`] in a build for a CUDA before 12.9.
    pub fn set_linear_precision(&self, precision: LinearPrecision) -> Result<()> {
        precision.check()?;
        self.linear_settings.lock().unwrap_or_else(PoisonError::into_inner).1 = precision;
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const ROWS: [usize; 9] = [0, 1, 2, 63, 256, 1000, 8192, 65_536, 1 << 30];
    const VOCABULARIES: [usize; 6] = [1, 511, 32_001, 128_256, 262_144, 1 << 27];

    /// The ceiling of a chunk's logits: it does not grow with the rows, and few rows take all columns at once.
    #[test]
    fn a_chunk_has_a_ceiling_that_does_not_grow_with_the_rows() {
        let chunks = LinearChunks::default();
        for vocab in VOCABULARIES {
            for count in ROWS {
                let context = format!("{count} rows of {vocab}");
                let of_columns = chunks.of_columns(count, vocab);
                assert!(of_columns.rows * of_columns.columns <= tuning::LINEAR_LOGITS, "{context}: {of_columns:?}");
                assert!(of_columns.rows >= count.clamp(1, tuning::LINEAR_ROWS), "{context}: {of_columns:?}");
                let is_whole = of_columns.columns == vocab;
                assert!(
                    is_whole || of_columns.columns.is_multiple_of(tuning::LINEAR_UNIT),
                    "{context}: {of_columns:?}"
                );
                // Not twice as many could be taken.
                assert!(is_whole || of_columns.rows * of_columns.columns > tuning::LINEAR_LOGITS / 2, "{context}");
                let of_rows = chunks.of_rows(count, vocab);
                assert!(of_rows.rows * vocab <= tuning::LINEAR_LOGITS.max(vocab), "{context}: {of_rows:?}");
                assert!(of_rows.rows >= 1 && of_rows.columns == vocab, "{context}: {of_rows:?}");
            }
        }
        assert_eq!(chunks.of_columns(256, 128_256).columns, 128_256, "few rows: one wide product");
        assert_eq!(chunks.of_columns(8192, 128_256).columns, 8192);
    }

    /// One shape of products for a head, whatever the rows.
    #[test]
    fn invariant_chunks_are_all_of_one_shape() {
        let chunks = LinearChunks::default().batch_invariant();
        for vocab in VOCABULARIES {
            let expected = Chunk { rows: tuning::LINEAR_INVARIANT_ROWS, columns: vocab, is_filled: true };
            for count in ROWS {
                for chunk in
                    [chunks.of_columns(count, vocab), chunks.of_rows(count, vocab), chunks.of_row_loss(count, vocab)]
                {
                    assert_eq!(chunk, expected);
                    assert!(chunk.filled(count).is_multiple_of(expected.rows) && chunk.filled(count) >= count);
                }
            }
        }
    }
}
