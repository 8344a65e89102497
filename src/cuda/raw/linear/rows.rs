//! Launches of linear/rows.cu: scored rows found, gathered and scattered.

use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::{MatrixAt, bytes, index, launch, passed_by_value};
use crate::error::Result;
use std::ops::Range;

/// `kernels/linear/rows.cu`: which rows are scored.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ScoredRows {
    pub(crate) targets: u64,
    pub(crate) rows: u64,
    pub(crate) positions: u64,
    pub(crate) log_probs: u64,
    pub(crate) states: u64,
    pub(crate) entropies: u64,
    pub(crate) losses: u64,
    pub(crate) status: u64,
    pub(crate) count: i32,
    pub(crate) capacity: i32,
    pub(crate) target_bytes: i32,
    pub(crate) filled: i32,
}

passed_by_value!(ScoredRows);

/// `kernels/linear/rows.cu`: hidden states of the scored rows.
#[derive(Clone, Copy)]
#[repr(C)]
struct GatherRows {
    hidden: u64,
    gathered: u64,
    rows: u64,
    row_stride: i64,
    gathered_stride: i64,
    columns: i32,
    reserved: i32,
}

passed_by_value!(GatherRows);

/// `kernels/linear/rows.cu`: gradients of all rows.
#[derive(Clone, Copy)]
#[repr(C)]
struct ScatterRows {
    sums: u64,
    gradients: u64,
    positions: u64,
    sums_stride: i64,
    row_stride: i64,
    columns: i32,
    first: i32,
    count: i32,
    reserved: i32,
}

passed_by_value!(ScatterRows);

/// `kernels/linear/rows.cu`: the bias in f32.
#[derive(Clone, Copy)]
#[repr(C)]
struct WidenBias {
    bias: u64,
    wide: u64,
    columns: i32,
    reserved: i32,
}

passed_by_value!(WidenBias);

/// By the head's type.
const BIAS: [KernelId; 3] = [
    kernel!("linear/rows", "linear_bias_f32"),
    kernel!("linear/rows", "linear_bias_f16"),
    kernel!("linear/rows", "linear_bias_bf16"),
];

/// The same.
const SCATTER: [KernelId; 3] = [
    kernel!("linear/rows", "linear_scatter_f32"),
    kernel!("linear/rows", "linear_scatter_f16"),
    kernel!("linear/rows", "linear_scatter_bf16"),
];

impl Pass<'_> {
    /// Finds the scored rows, and widens the bias to f32. The list of them is filled up to `filled`.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn find_scored(&self, results: RowResults, filled: usize) -> Result<()> {
        let (targets, target_bytes) = self.inputs.targets.parts();
        if self.inputs.hidden.rows == 0 {
            return Ok(());
        }
        let scored = ScoredRows {
            targets,
            rows: self.rows,
            positions: self.positions,
            log_probs: results.log_probs,
            states: results.states,
            entropies: results.entropies,
            losses: results.losses,
            status: self.status,
            count: self.inputs.hidden.rows as i32,
            capacity: self.count as i32,
            target_bytes,
            filled: filled as i32,
        };
        // SAFETY: the caller's promise, for the targets and results; ours have the sizes that the kernel takes.
        unsafe { launch(self.cuda, kernel!("linear/rows", "linear_scored_rows"), (1, 1), &scored)? };
        if self.count == 0 || self.bias == 0 {
            return Ok(());
        }
        let vocab = self.vocab();
        let widen = WidenBias { bias: self.inputs.bias, wide: self.bias, columns: vocab as i32, reserved: 0 };
        let kernel = BIAS[index(self.dtype())];
        let threads = self.cuda.kernels.kernel(kernel)?.threads as usize;
        // SAFETY: the caller's promise, for the bias.
        unsafe { launch(self.cuda, kernel, (vocab.div_ceil(threads) as u32, 1), &widen) }
    }

    /// Takes a chunk's rows: gathers their hidden states.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn gather(&mut self, taken: Range<usize>) -> Result<()> {
        let hidden = self.inputs.hidden;
        self.gathered.rows = taken.len();
        self.taken = taken;
        let gather = GatherRows {
            hidden: hidden.address,
            gathered: self.gathered.address,
            rows: self.row_list(),
            row_stride: hidden.row_stride as i64,
            gathered_stride: self.gathered.row_stride as i64,
            columns: hidden.columns as i32,
            reserved: 0,
        };
        let kernel = if bytes(hidden.dtype) == 4 {
            kernel!("linear/rows", "linear_gather_32")
        } else {
            kernel!("linear/rows", "linear_gather_16")
        };
        // SAFETY: the caller's promise; every row in the list is one of N, or none.
        unsafe { launch(self.cuda, kernel, (self.taken.len() as u32, 1), &gather) }
    }

    /// The gradient of the hidden states of the chunk's rows, rounded; with those of the first chunk that of rows that are in
    /// none.
    ///
    /// # Safety
    /// `gradient` is a buffer of the hidden states' shape.
    pub(crate) unsafe fn scatter(&mut self, gradient: &MatrixAt) -> Result<()> {
        if gradient.rows == 0 {
            return Ok(());
        }
        let sums = self.hidden_sums()?;
        let scatter = ScatterRows {
            sums: sums.address,
            gradients: gradient.address,
            positions: self.positions,
            sums_stride: sums.row_stride as i64,
            row_stride: gradient.row_stride as i64,
            columns: gradient.columns as i32,
            first: self.taken.start as i32,
            count: self.taken.len() as i32,
            reserved: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, SCATTER[index(gradient.dtype)], (gradient.rows as u32, 1), &scatter) }
    }
}
