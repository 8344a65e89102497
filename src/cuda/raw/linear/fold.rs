//! Launches of linear/fold.cu: a chunk of logits folded into softmax states.

use crate::cuda::kernels::{KernelId, variants};
use crate::cuda::memory::address;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
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
    pub(crate) log_probs: u64,
    pub(crate) states: u64,
    pub(crate) entropies: u64,
    pub(crate) status: u64,
    pub(crate) row_stride: i64,
    pub(crate) begin: i32,
    pub(crate) columns: i32,
    pub(crate) vocab: i32,
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
    r: f32,
    target_logit: f32,
}

/// The same in numbers of the buffer that they lie in.
const WORDS_OF_ROW_SUMS: usize = size_of::<RowSums>() / size_of::<f64>();

/// By [`Pass::variant`].
const FOLD: [KernelId; 4] = variants!("linear/fold", "linear_log_prob");

impl Pass<'_> {
    /// Folds a chunk of logits into the sums of its rows; writes their results if it is the last of their columns.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `results` has room for all rows.
    pub(crate) unsafe fn fold(&mut self, logits: &MatrixAt, begin: usize, results: &RowResults) -> Result<()> {
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
            log_probs: results.log_probs,
            states: results.states,
            entropies: results.entropies,
            status: self.status,
            row_stride: logits.row_stride as i64,
            begin: begin as i32,
            columns: logits.columns as i32,
            vocab: self.vocab() as i32,
            target_bytes,
            scale: scale(self.options),
            softcap: self.options.softcap() as f32,
        };
        let kernel = FOLD[self.variant(results.entropies != 0)];
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel, (logits.rows as u32, 1), &fold) }
    }
}
