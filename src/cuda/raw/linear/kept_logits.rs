//! Launches of linear/kept_logits.cu: the head's gradients from what the forward pass kept of the logits'.

use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::SavedLinearAt;
use crate::cuda::raw::linear::pass::Pass;
use crate::cuda::raw::token_log_prob::UpstreamOfRows;
use crate::cuda::raw::{MatrixAt, bytes, index, launch, passed_by_value};
use crate::element::Dtype;
use crate::error::Result;
use crate::stage::linear::kept_row_words;

/// `kernels/linear/kept_logits.cu`: what kept gradients of logits lack.
#[derive(Clone, Copy)]
#[repr(C)]
struct RowCoefficients {
    rows: u64,
    states: u64,
    upstream: UpstreamOfRows,
    shifts: u64,
    coefficients: u64,
    factors: u64,
    largest_upstream: f64,
    count: i32,
    inverse_temperature: f32,
}

passed_by_value!(RowCoefficients);

/// `kernels/linear/kept_logits.cu`: hidden states times that.
#[derive(Clone, Copy)]
#[repr(C)]
struct ScaledRows {
    hidden: u64,
    gathered: u64,
    rows: u64,
    coefficients: u64,
    factor: u64,
    row_stride: i64,
    gathered_stride: i64,
    columns: i32,
    reserved: i32,
}

passed_by_value!(ScaledRows);

const COEFFICIENTS: KernelId = kernel!("linear/kept_logits", "linear_row_coefficients");

/// By the head's type.
const SCALED_ROWS: [KernelId; 3] = [
    kernel!("linear/kept_logits", "linear_scaled_rows_f32"),
    kernel!("linear/kept_logits", "linear_scaled_rows_f16"),
    kernel!("linear/kept_logits", "linear_scaled_rows_bf16"),
];

/// Where the kept gradients of the logits of a chunk's rows lie.
pub(super) struct KeptLogits {
    /// `[R, V]` in the head's type.
    pub(super) gradients: MatrixAt,
    /// `[R]` f32: the powers of two that they are multiplied with. After the gradients of all M rows.
    pub(super) shifts: Address,
}

impl KeptLogits {
    /// Of the rows that the pass has taken, in the memory of all of them.
    pub(super) fn of(pass: &Pass<'_>, all: Address) -> Self {
        let (dtype, words) = (pass.dtype(), kept_row_words(pass.dtype(), pass.vocab()));
        let (first, rows) = (pass.taken.start, pass.taken_rows());
        let gradients = MatrixAt {
            address: all + (4 * first * words) as Address,
            rows,
            columns: pass.vocab(),
            row_stride: 4 * words / bytes(dtype),
            dtype,
        };
        Self { gradients, shifts: all + (4 * (pass.count * words + first)) as Address }
    }
}

impl SavedLinearAt {
    /// Of the rows that the pass has taken.
    pub(super) fn logits(&self, pass: &Pass<'_>) -> KeptLogits {
        KeptLogits::of(pass, self.logit_gradients)
    }
}

impl Pass<'_> {
    /// What the kept gradients of the chunk's rows are multiplied with, `[R]`; and for f16 the power of two that keeps products
    /// with it in range, and its inverse, else 0.
    ///
    /// # Safety
    /// `states` and `upstream` are there for all rows, `shifts` for those of the chunk.
    pub(super) unsafe fn coefficients(
        &mut self,
        shifts: Address,
        (states, upstream): (Address, UpstreamOfRows),
    ) -> Result<(Address, Address)> {
        let stream = &self.cuda.stream;
        let coefficients = address(&mut self.work.coefficients, stream, self.taken.len())?;
        let factors = if self.dtype() == Dtype::F16 { address(&mut self.work.factors, stream, 4)? } else { 0 };
        let arguments = RowCoefficients {
            rows: self.row_list(),
            states,
            upstream,
            shifts,
            coefficients,
            factors,
            largest_upstream: self.options.largest_upstream(),
            count: self.taken.len() as i32,
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, COEFFICIENTS, (1, 1), &arguments)? };
        Ok((coefficients, factors))
    }

    /// Gathers the hidden states of the chunk's rows, multiplied.
    ///
    /// # Safety
    /// As [`Pass::begin`]; after [`Pass::coefficients`].
    pub(super) unsafe fn gather_scaled(&mut self, coefficients: Address, factors: Address) -> Result<()> {
        let hidden = self.inputs.hidden;
        self.gathered.rows = self.taken.len();
        let arguments = ScaledRows {
            hidden: hidden.address,
            gathered: self.gathered.address,
            rows: self.row_list(),
            coefficients,
            factor: factors,
            row_stride: hidden.row_stride as i64,
            gathered_stride: self.gathered.row_stride as i64,
            columns: hidden.columns as i32,
            reserved: 0,
        };
        let kernel = SCALED_ROWS[index(hidden.dtype)];
        // SAFETY: the caller's promise; every row in the list is one of N, or none.
        unsafe { launch(self.cuda, kernel, (self.taken.len() as u32, 1), &arguments) }
    }
}
