//! Launches of linear/unit_gradient.cu: gradients of hidden states for an upstream gradient of 1, formed and used.

use crate::cuda::driver::called;
use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::kept_logits::KeptLogits;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::linear::{LinearOutputsAt, SavedLinearAt};
use crate::cuda::raw::token_log_prob::UpstreamOfRows;
use crate::cuda::raw::{MatrixAt, bytes, index, launch, passed_by_value, scale};
use crate::cuda::tuning;
use crate::element::Dtype;
use crate::error::Result;
use cudarc::driver::result;
use std::ops::Range;

/// `kernels/linear/unit_gradient.cu`: what the product with the weight takes.
#[derive(Clone, Copy)]
#[repr(C)]
struct LinearExponentials {
    logits: u64,
    bias: u64,
    exponentials: u64,
    targets: u64,
    rows: u64,
    states: u64,
    log_probs: u64,
    sums: u64,
    targets_of_rows: u64,
    row_stride: i64,
    exponential_row_stride: i64,
    vocab: i32,
    target_bytes: i32,
    keeps_logits: i32,
    scale: f32,
    softcap: f32,
    first_column: i32,
}

passed_by_value!(LinearExponentials);

/// `kernels/linear/unit_gradient.cu`: what the product leaves to do.
#[derive(Clone, Copy)]
#[repr(C)]
struct UnitGradient {
    products: u64,
    unit_gradients: u64,
    exponentials: u64,
    kept_shifts: u64,
    weight: u64,
    targets: u64,
    rows: u64,
    states: u64,
    sums: u64,
    targets_of_rows: u64,
    product_stride: i64,
    unit_stride: i64,
    exponential_row_stride: i64,
    weight_stride: i64,
    columns: i32,
    blocks: i32,
    target_bytes: i32,
    reserved: i32,
}

passed_by_value!(UnitGradient);

/// `kernels/linear/unit_gradient.cu`: the gradients of rows, once there is a loss.
#[derive(Clone, Copy)]
#[repr(C)]
struct HiddenGradient {
    unit_gradients: u64,
    gradients: u64,
    positions: u64,
    states: u64,
    upstream: UpstreamOfRows,
    largest_upstream: f64,
    unit_stride: i64,
    row_stride: i64,
    columns: i32,
    first: i32,
    count: i32,
    inverse_temperature: f32,
}

passed_by_value!(HiddenGradient);

const FILE: &str = "linear/unit_gradient";

/// By the head's type, without a softcap and with one.
const EXPONENTIALS: [[KernelId; 2]; 3] = [
    [kernel!(FILE, "linear_exponentials_f32"), kernel!(FILE, "linear_exponentials_f32_softcap")],
    [kernel!(FILE, "linear_exponentials_f16"), kernel!(FILE, "linear_exponentials_f16_softcap")],
    [kernel!(FILE, "linear_exponentials_bf16"), kernel!(FILE, "linear_exponentials_bf16_softcap")],
];

/// By the head's type.
const UNIT_GRADIENT: [KernelId; 3] = [
    kernel!(FILE, "linear_unit_gradient_f32"),
    kernel!(FILE, "linear_unit_gradient_f16"),
    kernel!(FILE, "linear_unit_gradient_bf16"),
];

/// The same.
const HIDDEN_GRADIENT: [KernelId; 3] = [
    kernel!(FILE, "linear_hidden_gradient_f32"),
    kernel!(FILE, "linear_hidden_gradient_f16"),
    kernel!(FILE, "linear_hidden_gradient_bf16"),
];

impl SavedLinearAt {
    /// The kept unit gradients of all rows.
    pub(super) fn units(&self, pass: &Pass<'_>) -> MatrixAt {
        let columns = pass.inputs.hidden.columns;
        MatrixAt { address: self.unit_gradients, rows: pass.count, columns, row_stride: columns, dtype: Dtype::F32 }
    }
}

impl Pass<'_> {
    /// Forms what the forward pass keeps of the chunk's rows, from all of their logits, which are gone afterwards.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `results` are those of these logits, and `outputs` has room for what is kept.
    pub(super) unsafe fn keep(
        &mut self,
        logits: &MatrixAt,
        results: &RowResults,
        outputs: &LinearOutputsAt,
    ) -> Result<()> {
        let columns = self.inputs.hidden.columns;
        let kept = (outputs.logit_gradients != 0).then(|| KeptLogits::of(self, outputs.logit_gradients));
        // A product of a full chunk reads rows past the last, for which there is no room in what is kept.
        let fits = self.taken_rows() == self.taken.len();
        let exponentials = match &kept {
            Some(kept) if fits => kept.gradients,
            _ if self.dtype() == Dtype::F32 => *logits,
            _ => self.factors_of_weight(logits)?,
        };
        let units = MatrixAt {
            address: outputs.unit_gradients + (4 * self.taken.start * columns) as Address,
            rows: self.taken_rows(),
            columns,
            row_stride: columns,
            dtype: Dtype::F32,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.exponentials(logits, &exponentials, results, false)?;
            if let Some(kept) = kept.as_ref().filter(|_| !fits) {
                self.copy_rows(&exponentials, &kept.gradients)?;
            }
            let products = self.hidden_product(&exponentials, 0, true, 0)?;
            self.unit_gradients(&products, &units, kept.as_ref(), results)
        }
    }

    /// Forms Σ' e_j·σ_j·W_j of the chunk's rows, `[R, H]`, over all columns that the head has and that are not a row's target. The
    /// logits are gone afterwards.
    ///
    /// # Safety
    /// As [`Pass::keep`].
    pub(super) unsafe fn products_of_exponentials(
        &mut self,
        logits: &MatrixAt,
        results: &RowResults,
    ) -> Result<MatrixAt> {
        let exponentials = if self.dtype() == Dtype::F32 { *logits } else { self.factors_of_weight(logits)? };
        // SAFETY: the caller's promise.
        unsafe {
            self.exponentials(logits, &exponentials, results, false)?;
            self.hidden_product(&exponentials, 0, true, 0)
        }
    }

    /// Forms the unit gradients of the chunk's rows, `[R, H]`, from all of their logits. `keeps_logits`: these are read again.
    ///
    /// # Safety
    /// As [`Pass::keep`].
    pub(super) unsafe fn units(
        &mut self,
        logits: &MatrixAt,
        results: &RowResults,
        keeps_logits: bool,
    ) -> Result<MatrixAt> {
        let in_place = self.dtype() == Dtype::F32 && !keeps_logits;
        let exponentials = if in_place { *logits } else { self.factors_of_weight(logits)? };
        // SAFETY: the caller's promise.
        unsafe {
            self.exponentials(logits, &exponentials, results, keeps_logits)?;
            let products = self.hidden_product(&exponentials, 0, true, 0)?;
            self.unit_gradients(&products, &products, None, results)?;
            Ok(products)
        }
    }

    /// # Safety
    /// As [`Pass::keep`]; `exponentials` has a row for each of the logits.
    unsafe fn exponentials(
        &mut self,
        logits: &MatrixAt,
        exponentials: &MatrixAt,
        results: &RowResults,
        keeps_logits: bool,
    ) -> Result<()> {
        let (targets, target_bytes) = self.inputs.targets.parts();
        let blocks = logits.columns.div_ceil(tuning::LINEAR_BLOCK_COLUMNS);
        let stream = &self.cuda.stream;
        let arguments = LinearExponentials {
            logits: logits.address,
            bias: self.wide_bias(0),
            exponentials: exponentials.address,
            targets,
            rows: self.row_list(),
            states: results.states,
            log_probs: results.log_probs,
            sums: address(&mut self.work.exponential_sums, stream, logits.rows * blocks)?,
            targets_of_rows: address(&mut self.work.targets_of_rows, stream, 2 * logits.rows)?,
            row_stride: logits.row_stride as i64,
            exponential_row_stride: exponentials.row_stride as i64,
            vocab: logits.columns as i32,
            target_bytes,
            keeps_logits: i32::from(keeps_logits),
            scale: scale(self.options),
            softcap: self.options.softcap() as f32,
            first_column: self.shard.start() as i32,
        };
        let kernel = EXPONENTIALS[index(self.dtype())][usize::from(self.options.softcap() > 0.0)];
        let grid = (logits.rows as u32, blocks as u32);
        // SAFETY: the caller's promise; the sums are ours.
        unsafe { launch(self.cuda, kernel, grid, &arguments) }
    }

    /// # Safety
    /// As [`Pass::keep`], after [`Pass::exponentials`].
    unsafe fn unit_gradients(
        &mut self,
        products: &MatrixAt,
        units: &MatrixAt,
        kept: Option<&KeptLogits>,
        results: &RowResults,
    ) -> Result<()> {
        let (targets, target_bytes) = self.inputs.targets.parts();
        let (weight, blocks) = (self.inputs.weight, self.vocab().div_ceil(tuning::LINEAR_BLOCK_COLUMNS));
        let stream = &self.cuda.stream;
        let arguments = UnitGradient {
            products: products.address,
            unit_gradients: units.address,
            exponentials: kept.map_or(0, |kept| kept.gradients.address),
            kept_shifts: kept.map_or(0, |kept| kept.shifts),
            weight: weight.address,
            targets,
            rows: self.row_list(),
            states: results.states,
            sums: address(&mut self.work.exponential_sums, stream, self.taken.len() * blocks)?,
            targets_of_rows: address(&mut self.work.targets_of_rows, stream, 2 * self.taken.len())?,
            product_stride: products.row_stride as i64,
            unit_stride: units.row_stride as i64,
            exponential_row_stride: kept.map_or(0, |kept| kept.gradients.row_stride as i64),
            weight_stride: weight.row_stride as i64,
            columns: weight.columns as i32,
            blocks: blocks as i32,
            target_bytes,
            reserved: 0,
        };
        let kernel = UNIT_GRADIENT[index(self.dtype())];
        // SAFETY: the caller's promise; rows that fill a chunk up are left out.
        unsafe { launch(self.cuda, kernel, (self.taken_rows() as u32, 1), &arguments) }
    }

    /// The gradients of the hidden states of rows at these positions of the list, from their unit gradients; with position 0
    /// those of the rows that are not in the list.
    ///
    /// # Safety
    /// `gradient` is a buffer of the hidden states' shape; `states` and `upstream` are there for all rows.
    pub(super) unsafe fn hidden_gradient(
        &self,
        gradient: &MatrixAt,
        units: &MatrixAt,
        positions: Range<usize>,
        (states, upstream): (Address, UpstreamOfRows),
    ) -> Result<()> {
        if gradient.rows == 0 {
            return Ok(());
        }
        let arguments = HiddenGradient {
            unit_gradients: units.address,
            gradients: gradient.address,
            positions: self.positions,
            states,
            upstream,
            largest_upstream: self.options.largest_upstream(),
            unit_stride: units.row_stride as i64,
            row_stride: gradient.row_stride as i64,
            columns: gradient.columns as i32,
            first: positions.start as i32,
            count: positions.len() as i32,
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
        };
        let kernel = HIDDEN_GRADIENT[index(gradient.dtype)];
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, kernel, (gradient.rows as u32, 1), &arguments) }
    }

    /// Copies the chunk's rows without those that fill it up, in the stream's order. Rows of both are as far apart.
    ///
    /// # Safety
    /// Both are there.
    unsafe fn copy_rows(&self, from: &MatrixAt, to: &MatrixAt) -> Result<()> {
        let size = self.taken_rows() * to.row_stride * bytes(to.dtype);
        // SAFETY: the caller's promise.
        let copied = unsafe { result::memcpy_dtod_async(to.address, from.address, size, self.cuda.stream.cu_stream()) };
        called("cuMemcpyDtoDAsync", copied)
    }
}
