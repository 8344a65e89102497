//! Launches of linear/head.cu: gradients of the head.

use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::LinearGradientsAt;
use crate::cuda::raw::linear::pass::Pass;
use crate::cuda::raw::{MatrixAt, bytes, launch, passed_by_value, suffix};
use crate::error::Result;

/// `kernels/linear/head.cu`: sums over rows.
#[derive(Clone, Copy)]
#[repr(C)]
struct BiasGradient {
    gradients: u64,
    factor: u64,
    sums: u64,
    target: u64,
    row_stride: i64,
    rows: i32,
    columns: i32,
    is_first: i32,
    is_last: i32,
    accumulate: i32,
    reserved: i32,
}

passed_by_value!(BiasGradient);

/// `kernels/linear/head.cu`: the rounding of a sum in f32.
#[derive(Clone, Copy)]
#[repr(C)]
struct RoundWeight {
    sums: u64,
    gradients: u64,
    sums_stride: i64,
    row_stride: i64,
    columns: i32,
    accumulate: i32,
}

passed_by_value!(RoundWeight);

/// Columns of a block of the bias's gradient. As in `kernels/linear/head.cu`.
const BIAS_COLUMNS: usize = 32;

impl Pass<'_> {
    /// A chunk's part of the bias's gradient: the whole of it, or the part of some rows.
    ///
    /// # Safety
    /// `bias` has room from column `begin` on.
    pub(crate) unsafe fn bias_sums(
        &mut self,
        gradients: &MatrixAt,
        begin: usize,
        target: &LinearGradientsAt,
        (is_first, is_last): (bool, bool),
        factors: Address,
    ) -> Result<()> {
        let sums = if is_first && is_last {
            0
        } else {
            let vocab = self.vocab();
            address(&mut self.work.bias_sums, &self.cuda.stream, vocab)? + (8 * begin) as Address
        };
        let bias = BiasGradient {
            gradients: gradients.address,
            factor: if factors == 0 { 0 } else { factors + 4 },
            sums,
            target: target.bias + (begin * bytes(target.bias_dtype)) as Address,
            row_stride: gradients.row_stride as i64,
            rows: gradients.rows as i32,
            columns: gradients.columns as i32,
            is_first: i32::from(is_first),
            is_last: i32::from(is_last),
            accumulate: i32::from(target.accumulate),
            reserved: 0,
        };
        let name = format!("linear_bias_gradient_{}_{}", suffix(self.dtype()), suffix(target.bias_dtype));
        let blocks = gradients.columns.div_ceil(BIAS_COLUMNS) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, "linear/head", &name, (blocks, 1), &bias) }
    }

    /// A weight's gradient that was summed up in f32, rounded to its buffer.
    ///
    /// # Safety
    /// `gradient` is a buffer of the weight's shape.
    pub(crate) unsafe fn round_weight(&self, sums: &MatrixAt, gradient: &MatrixAt, accumulate: bool) -> Result<()> {
        let round = RoundWeight {
            sums: sums.address,
            gradients: gradient.address,
            sums_stride: sums.row_stride as i64,
            row_stride: gradient.row_stride as i64,
            columns: gradient.columns as i32,
            accumulate: i32::from(accumulate),
        };
        let name = format!("linear_round_weight_{}", suffix(gradient.dtype));
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, "linear/head", &name, (gradient.rows as u32, 1), &round) }
    }
}
