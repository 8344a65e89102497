//! Launches of linear/rows.cu: scored rows found, gathered and scattered.

use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::{MatrixAt, bytes, launch, passed_by_value, suffix};
use crate::error::Result;

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
    pub(crate) reserved: i32,
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

impl Pass<'_> {
    /// Finds the scored rows, gathers their hidden states, and widens the bias to f32.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn gather(&self, results: RowResults) -> Result<()> {
        let (hidden, gathered) = (self.inputs.hidden, self.gathered);
        let (targets, target_bytes) = self.inputs.targets.parts();
        if hidden.rows == 0 {
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
            count: hidden.rows as i32,
            capacity: self.count as i32,
            target_bytes,
            reserved: 0,
        };
        // SAFETY: the caller's promise, for the targets and results; ours have the sizes that the kernel takes.
        unsafe { launch(self.cuda, "linear/rows", "linear_scored_rows", (1, 1), &scored)? };
        if self.count == 0 {
            return Ok(());
        }
        let gather = GatherRows {
            hidden: hidden.address,
            gathered: gathered.address,
            rows: self.rows,
            row_stride: hidden.row_stride as i64,
            gathered_stride: gathered.row_stride as i64,
            columns: hidden.columns as i32,
            reserved: 0,
        };
        let name = if bytes(hidden.dtype) == 4 { "linear_gather_32" } else { "linear_gather_16" };
        // SAFETY: as above; every row in the list is one of N.
        unsafe { launch(self.cuda, "linear/rows", name, (self.count as u32, 1), &gather)? };
        if self.bias == 0 {
            return Ok(());
        }
        let vocab = self.vocab();
        let widen = WidenBias { bias: self.inputs.bias, wide: self.bias, columns: vocab as i32, reserved: 0 };
        let name = format!("linear_bias_{}", suffix(hidden.dtype));
        let threads = self.cuda.kernels.kernel("linear/rows", &name)?.threads as usize;
        // SAFETY: as above, for the bias.
        unsafe { launch(self.cuda, "linear/rows", &name, (vocab.div_ceil(threads) as u32, 1), &widen) }
    }

    /// The hidden states' gradient, rounded, to all N rows.
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
            reserved: 0,
        };
        let name = format!("linear_scatter_{}", suffix(gradient.dtype));
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, "linear/rows", &name, (gradient.rows as u32, 1), &scatter) }
    }
}
