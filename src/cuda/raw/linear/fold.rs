//! Launches of linear/fold.cu: a chunk of logits folded into softmax states.

use crate::cuda::kernels::{KernelId, variants};
use crate::cuda::memory::address;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::partial_row::PartialRowsAt;
use crate::cuda::raw::{MatrixAt, launch, passed_by_value, scale};
use crate::error::Result;

/// `kernels/linear/fold.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LinearLogProb {
    pub(crate) logits: u64,
    pub(crate) bias: u64,
    pub(crate) targets: u64,
    pub(crate) rows: u64,
    pub(crate) sums: u64,
    pub(crate) parts: u64,
    pub(crate) log_probs: u64,
    pub(crate) states: u64,
    pub(crate) entropies: u64,
    pub(crate) status: u64,
    pub(crate) row_stride: i64,
    pub(crate) parts_per_row: i64,
    pub(crate) begin: i32,
    pub(crate) columns: i32,
    pub(crate) vocab: i32,
    pub(crate) first_column: i32,
    pub(crate) whole_vocab: i32,
    pub(crate) target_bytes: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

passed_by_value!(LinearLogProb);

/// `kernels/linear/fold.cu`: what a chunk leaves to the next one, for each row. Only the device reads and writes it.
#[repr(C)]
struct RowSums {
    s: f64,
    weighted: f64,
    slice_s: f64,
    slice_weighted: f64,
    r: f32,
    slice_r: f32,
    target_logit: f32,
    reserved: i32,
}

/// The same in numbers of the buffer that they lie in.
const WORDS_OF_ROW_SUMS: usize = size_of::<RowSums>() / size_of::<f64>();

/// By [`Pass::variant`].
const FOLD: [KernelId; 4] = variants!("linear/fold", "linear_log_prob");

/// Where a fold writes.
#[derive(Clone, Copy)]
pub(super) struct Folded {
    /// Results of rows; with parts those of these columns alone, or 0.
    pub(super) results: RowResults,
    /// Parts of rows whose other columns are elsewhere.
    pub(super) parts: Option<PartialRowsAt>,
    pub(super) entropy: bool,
}

impl From<&RowResults> for Folded {
    fn from(results: &RowResults) -> Self {
        Self { results: *results, parts: None, entropy: results.entropies != 0 }
    }
}

impl Pass<'_> {
    /// Folds a chunk of logits into the sums of its rows; writes their results if it is the last of their columns.
    ///
    /// # Safety
    /// As [`Pass::begin`]; what is written has room for all rows.
    pub(super) unsafe fn fold(&mut self, logits: &MatrixAt, begin: usize, folded: impl Into<Folded>) -> Result<()> {
        let Folded { results, parts, entropy } = folded.into();
        let (targets, target_bytes) = self.inputs.targets.parts();
        let one_chunk = logits.columns == self.vocab();
        let fold = LinearLogProb {
            logits: logits.address,
            bias: self.wide_bias(begin),
            targets,
            rows: self.row_list(),
            sums: if one_chunk {
                0
            } else {
                address(&mut self.work.sums, &self.cuda.stream, WORDS_OF_ROW_SUMS * logits.rows)?
            },
            parts: parts.map_or(0, |parts| parts.address),
            log_probs: results.log_probs,
            states: results.states,
            entropies: results.entropies,
            status: self.status,
            row_stride: logits.row_stride as i64,
            parts_per_row: parts.map_or(0, |parts| parts.per_row as i64),
            begin: begin as i32,
            columns: logits.columns as i32,
            vocab: self.vocab() as i32,
            first_column: self.shard.start() as i32,
            whole_vocab: self.shard.vocab() as i32,
            target_bytes,
            scale: scale(self.options),
            softcap: self.options.softcap() as f32,
        };
        let kernel = FOLD[self.variant(entropy)];
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel, (logits.rows as u32, 1), &fold) }
    }
}
