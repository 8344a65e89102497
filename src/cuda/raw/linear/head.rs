//! Launches of linear/head.cu: gradients of the head.

use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::LinearGradientsAt;
use crate::cuda::raw::linear::pass::Pass;
use crate::cuda::raw::{MatrixAt, bytes, index, launch, passed_by_value};
use crate::element::Dtype;
use crate::error::Result;

/// `kernels/linear/head.cu`: sums over rows.
#[derive(Clone, Copy)]
#[repr(C)]
struct BiasGradient {
    gradients: u64,
    factor: u64,
    coefficients: u64,
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

/// A bias's gradient in f32, by the head's type.
const BIAS_IN_F32: [KernelId; 3] = [
    kernel!("linear/head", "linear_bias_gradient_f32_f32"),
    kernel!("linear/head", "linear_bias_gradient_f16_f32"),
    kernel!("linear/head", "linear_bias_gradient_bf16_f32"),
];

/// The same in the head's type.
const BIAS: [KernelId; 3] = [
    kernel!("linear/head", "linear_bias_gradient_f32_f32"),
    kernel!("linear/head", "linear_bias_gradient_f16_f16"),
    kernel!("linear/head", "linear_bias_gradient_bf16_bf16"),
];

/// The gradients of a head, as the chunks of a pass add to them.
pub(super) struct HeadGradients {
    target: LinearGradientsAt,
    /// The weight's in f32, where several chunks of rows are summed up for a buffer that is not: rounded after each, the sums
    /// would lose their digits.
    weight_sums: Option<MatrixAt>,
}

impl HeadGradients {
    pub(super) fn new(pass: &mut Pass<'_>, target: &LinearGradientsAt) -> Result<Self> {
        let weight_sums = match target.weight {
            Some(weight) if pass.has_several_row_chunks() && weight.dtype != Dtype::F32 => {
                let place = address(&mut pass.work.weight_sums, &pass.cuda.stream, weight.rows * weight.columns)?;
                Some(MatrixAt { address: place, row_stride: weight.columns, dtype: Dtype::F32, ..weight })
            }
            _ => None,
        };
        Ok(Self { target: *target, weight_sums })
    }

    /// Adds what the chunk's rows and the columns from `begin` on say: the gradients of their logits, or what those are but for
    /// `coefficients` (0: none), with which the gathered hidden states are multiplied.
    ///
    /// # Safety
    /// As [`Pass::begin`]; the target is there.
    pub(super) unsafe fn add(
        &self,
        pass: &mut Pass<'_>,
        of_logits: &MatrixAt,
        begin: usize,
        coefficients: Address,
        factors: Address,
    ) -> Result<()> {
        if let Some(weight) = &self.target.weight {
            let target = self.weight_sums.as_ref().unwrap_or(weight);
            let accumulate = !pass.ends().0 || (self.weight_sums.is_none() && self.target.accumulate);
            // SAFETY: the caller's promise.
            unsafe { pass.weight_product(of_logits, (target, begin), accumulate, factors)? };
        }
        if self.target.bias == 0 {
            return Ok(());
        }
        // Kept gradients are scaled row by row, and not by the power of two that the gathered hidden states have.
        let factor = if factors == 0 || coefficients != 0 { 0 } else { factors + 4 };
        // SAFETY: the caller's promise.
        unsafe { pass.bias_sums(of_logits, begin, &self.target, coefficients, factor) }
    }

    /// After the last chunk.
    ///
    /// # Safety
    /// As [`HeadGradients::add`].
    pub(super) unsafe fn finish(&self, pass: &Pass<'_>) -> Result<()> {
        match (&self.weight_sums, &self.target.weight) {
            // SAFETY: the caller's promise.
            (Some(sums), Some(weight)) => unsafe { pass.round_weight(sums, weight, self.target.accumulate) },
            _ => Ok(()),
        }
    }
}

impl Pass<'_> {
    /// A chunk's part of the bias's gradient: the whole of it, or the part of some rows.
    ///
    /// # Safety
    /// `bias` has room from column `begin` on.
    unsafe fn bias_sums(
        &mut self,
        gradients: &MatrixAt,
        begin: usize,
        target: &LinearGradientsAt,
        coefficients: Address,
        factor: Address,
    ) -> Result<()> {
        let (is_first, is_last) = self.ends();
        let sums = if is_first && is_last {
            0
        } else {
            let vocab = self.vocab();
            address(&mut self.work.bias_sums, &self.cuda.stream, vocab)? + (8 * begin) as Address
        };
        let bias = BiasGradient {
            gradients: gradients.address,
            factor,
            coefficients,
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
        let kernels = if target.bias_dtype == Dtype::F32 { BIAS_IN_F32 } else { BIAS };
        let blocks = gradients.columns.div_ceil(BIAS_COLUMNS) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernels[index(self.dtype())], (blocks, 1), &bias) }
    }

    /// A weight's gradient that was summed up in f32, rounded to its buffer.
    ///
    /// # Safety
    /// `gradient` is a buffer of the weight's shape.
    unsafe fn round_weight(&self, sums: &MatrixAt, gradient: &MatrixAt, accumulate: bool) -> Result<()> {
        let round = RoundWeight {
            sums: sums.address,
            gradients: gradient.address,
            sums_stride: sums.row_stride as i64,
            row_stride: gradient.row_stride as i64,
            columns: gradient.columns as i32,
            accumulate: i32::from(accumulate),
        };
        let kernel = match gradient.dtype {
            Dtype::Bf16 => kernel!("linear/head", "linear_round_weight_bf16"),
            // Sums for a buffer in f32 lie in the buffer.
            Dtype::F16 | Dtype::F32 => kernel!("linear/head", "linear_round_weight_f16"),
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel, (gradient.rows as u32, 1), &round) }
    }
}
