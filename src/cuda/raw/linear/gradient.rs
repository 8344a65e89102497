//! Launches of linear/gradient.cu: a chunk of logits overwritten with its gradient.

use crate::cuda::kernels::{KernelId, kernel, variants};
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::pass::{Pass, padded};
use crate::cuda::raw::token_log_prob::UpstreamOfRows;
use crate::cuda::raw::{MatrixAt, bytes, index, launch, passed_by_value, scale};
use crate::cuda::tuning;
use crate::element::Dtype;
use crate::error::Result;

/// `kernels/linear/gradient.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LinearLogProbBackward {
    pub(crate) logits: u64,
    pub(crate) bias: u64,
    pub(crate) gradients: u64,
    pub(crate) factor: u64,
    pub(crate) targets: u64,
    pub(crate) rows: u64,
    pub(crate) states: u64,
    pub(crate) upstream: UpstreamOfRows,
    pub(crate) row_stride: i64,
    pub(crate) gradient_row_stride: i64,
    pub(crate) largest_upstream: f64,
    pub(crate) begin: i32,
    pub(crate) columns: i32,
    pub(crate) vocab: i32,
    pub(crate) target_bytes: i32,
    pub(crate) scale: f32,
    pub(crate) inverse_temperature: f32,
    pub(crate) softcap: f32,
    pub(crate) reserved: i32,
}

passed_by_value!(LinearLogProbBackward);

/// `kernels/linear/gradient.cu`: rows that are left out of gradients that are added to.
#[derive(Clone, Copy)]
#[repr(C)]
struct WithholdRows {
    rows: u64,
    positions: u64,
    gathered: u64,
    states: u64,
    upstream: UpstreamOfRows,
    status: u64,
    largest_upstream: f64,
    gathered_words: i32,
    reserved: i32,
}

passed_by_value!(WithholdRows);

/// `kernels/linear/gradient.cu`: the power of two for f16 gradients.
#[derive(Clone, Copy)]
#[repr(C)]
struct GradientScale {
    rows: u64,
    upstream: UpstreamOfRows,
    factors: u64,
    count: i32,
    inverse_temperature: f32,
}

passed_by_value!(GradientScale);

/// By the head's type, then by [`Pass::variant`].
const GRADIENT: [[KernelId; 4]; 3] = [
    variants!("linear/gradient", "linear_log_prob_backward_f32"),
    variants!("linear/gradient", "linear_log_prob_backward_f16"),
    variants!("linear/gradient", "linear_log_prob_backward_bf16"),
];

impl Pass<'_> {
    /// Before gradients of the head that are added to: leaves out the rows of the chunk that would add NaN or an infinity.
    ///
    /// # Safety
    /// `states` and `upstream` are there for all rows; the logits of these rows have been made.
    pub(crate) unsafe fn withhold(&self, (states, upstream): (Address, UpstreamOfRows)) -> Result<()> {
        let withhold = WithholdRows {
            rows: self.row_list(),
            positions: self.positions,
            gathered: self.gathered.address,
            states,
            upstream,
            status: self.status,
            largest_upstream: self.options.largest_upstream(),
            gathered_words: (self.gathered.row_stride * bytes(self.gathered.dtype) / 16) as i32,
            reserved: 0,
        };
        let grid = (self.taken_rows() as u32, 1);
        // SAFETY: the caller's promise; a gathered row is whole words of 16 bytes, see `padded`.
        unsafe { launch(self.cuda, kernel!("linear/gradient", "linear_withhold_rows"), grid, &withhold) }
    }

    /// For f16: the power of two that keeps the gradients of the chunk's rows in range, and its inverse. Else 0.
    ///
    /// # Safety
    /// `upstream` is there for all rows.
    pub(crate) unsafe fn gradient_scale(&mut self, upstream: UpstreamOfRows) -> Result<Address> {
        if self.dtype() != Dtype::F16 {
            return Ok(0);
        }
        let factors = address(&mut self.work.factors, &self.cuda.stream, 4)?;
        let scale = GradientScale {
            rows: self.row_list(),
            upstream,
            factors,
            count: self.taken.len() as i32,
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel!("linear/gradient", "linear_gradient_scale"), (1, 1), &scale)? };
        Ok(factors)
    }

    /// Room for what a chunk's logits become, in the head's type.
    pub(super) fn factors_of_weight(&mut self, logits: &MatrixAt) -> Result<MatrixAt> {
        let (dtype, row_stride) = (self.dtype(), padded(logits.columns, self.dtype()));
        let length = logits.rows * row_stride * bytes(dtype);
        let place = address(&mut self.work.gradients, &self.cuda.stream, length)?;
        Ok(MatrixAt { address: place, row_stride, dtype, ..*logits })
    }

    /// Turns a chunk of logits into their gradient, in the head's type.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `states` and `upstream` are there for all rows.
    pub(crate) unsafe fn gradients(
        &mut self,
        logits: &MatrixAt,
        begin: usize,
        (states, upstream, factors): (Address, UpstreamOfRows, Address),
    ) -> Result<MatrixAt> {
        let dtype = self.dtype();
        // f32 gradients take the logits' place.
        let gradients = if dtype == Dtype::F32 { *logits } else { self.factors_of_weight(logits)? };
        let (targets, target_bytes) = self.inputs.targets.parts();
        let backward = LinearLogProbBackward {
            logits: logits.address,
            bias: self.wide_bias(begin),
            gradients: gradients.address,
            factor: factors,
            targets,
            rows: self.row_list(),
            states,
            upstream,
            row_stride: logits.row_stride as i64,
            gradient_row_stride: gradients.row_stride as i64,
            largest_upstream: self.options.largest_upstream(),
            begin: (self.shard.start() + begin) as i32,
            columns: logits.columns as i32,
            vocab: self.shard.vocab() as i32,
            target_bytes,
            scale: scale(self.options),
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
            softcap: self.options.softcap() as f32,
            reserved: 0,
        };
        let entropy = upstream.entropy_gradients != 0;
        let kernel = GRADIENT[index(dtype)][self.variant(entropy)];
        let grid = (logits.rows as u32, logits.columns.div_ceil(tuning::LINEAR_BLOCK_COLUMNS) as u32);
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel, grid, &backward)? };
        Ok(gradients)
    }
}
