//! The steps that the calls of the linear stage are made of: each one launch, or one matrix product.

use super::linear::{LinearGradientsAt, LinearInputs, MatrixAt};
use super::{Address, bytes, launch, scale, suffix};
use crate::cuda::blas::Product;
use crate::cuda::kernels::Stage;
use crate::cuda::linear_arguments as arguments;
use crate::cuda::linear_workspace::LinearScratch;
use crate::cuda::workspace::{StatusWord, address};
use crate::cuda::{Cuda, tuning};
use crate::element::Dtype;
use crate::error::Result;
use crate::logits::LogitOptions;
use std::ops::Range;

/// Where rows that are not gathered get their results; 0: nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowResults {
    pub(super) log_probs: Address,
    pub(super) states: Address,
    pub(super) entropies: Address,
    pub(super) losses: Address,
}

/// Rounded up, so that rows begin at multiples of 16 bytes.
fn padded(columns: usize, dtype: Dtype) -> usize {
    columns.next_multiple_of(16 / bytes(dtype))
}

/// One call of the stage: its operands, and the scored rows' hidden states, gathered.
pub(super) struct Pass<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) work: &'a mut LinearScratch,
    pub(super) inputs: &'a LinearInputs,
    pub(super) options: &'a LogitOptions,
    pub(super) status: Address,
    /// M.
    pub(super) count: usize,
    rows: Address,
    positions: Address,
    gathered: MatrixAt,
    /// In f32, or 0.
    bias: Address,
}

impl<'a> Pass<'a> {
    /// Finds the scored rows and gathers their hidden states. Nothing is launched if the arguments do not fit, or if
    /// there is no cuBLAS.
    ///
    /// # Safety
    /// The inputs are there as they say, and nothing else writes them until the stream has run the call.
    pub(super) unsafe fn begin(
        cuda: &'a Cuda,
        status: &StatusWord,
        work: &'a mut LinearScratch,
        inputs: &'a LinearInputs,
        options: &'a LogitOptions,
        results: RowResults,
    ) -> Result<Self> {
        inputs.check()?;
        let stream = &cuda.stream;
        work.blas(stream)?;
        let status = status.address(stream)?;
        let (rows, count) = (inputs.hidden.rows, inputs.gathered_rows());
        let (width, dtype) = (inputs.hidden.columns, inputs.hidden.dtype);
        let stride = padded(width, dtype);
        let gathered = address(&mut work.gathered, stream, count * stride * bytes(dtype))?;
        let pass = Self {
            rows: address(&mut work.rows, stream, count)?,
            positions: address(&mut work.positions, stream, rows)?,
            gathered: MatrixAt { address: gathered, rows: count, columns: width, row_stride: stride, dtype },
            bias: if inputs.bias == 0 { 0 } else { address(&mut work.bias, stream, inputs.weight.rows)? },
            cuda,
            work,
            inputs,
            options,
            status,
            count,
        };
        // SAFETY: the caller's promise.
        unsafe { pass.gather(results)? };
        Ok(pass)
    }

    unsafe fn gather(&self, results: RowResults) -> Result<()> {
        let (hidden, gathered) = (self.inputs.hidden, self.gathered);
        let (targets, target_bytes) = self.inputs.targets.parts();
        if hidden.rows == 0 {
            return Ok(());
        }
        let scored = arguments::ScoredRows {
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
        unsafe { launch(self.cuda, Stage::LinearRows, "linear_scored_rows", (1, 1), &scored)? };
        if self.count == 0 {
            return Ok(());
        }
        let gather = arguments::GatherRows {
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
        unsafe { launch(self.cuda, Stage::LinearRows, name, (self.count as u32, 1), &gather)? };
        if self.bias == 0 {
            return Ok(());
        }
        let vocab = self.vocab();
        let widen =
            arguments::WidenBias { bias: self.inputs.bias, wide: self.bias, columns: vocab as i32, reserved: 0 };
        let name = format!("linear_bias_{}", suffix(hidden.dtype));
        let threads = self.cuda.kernels.kernel(Stage::LinearRows, &name)?.threads as usize;
        // SAFETY: as above, for the bias.
        unsafe { launch(self.cuda, Stage::LinearRows, &name, (vocab.div_ceil(threads) as u32, 1), &widen) }
    }

    /// V.
    pub(super) fn vocab(&self) -> usize {
        self.inputs.weight.rows
    }

    /// The head's type.
    pub(super) fn dtype(&self) -> Dtype {
        self.inputs.weight.dtype
    }

    /// The list entry of a gathered row.
    fn row_list(&self, row: usize) -> Address {
        self.rows + (4 * row) as Address
    }

    fn wide_bias(&self, column: usize) -> Address {
        if self.bias == 0 { 0 } else { self.bias + (4 * column) as Address }
    }

    /// # Safety
    /// As [`Blas::product`](crate::cuda::blas::Blas::product).
    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        let blas = self.work.blas(&self.cuda.stream)?;
        // SAFETY: the caller's promise.
        unsafe { blas.product(product) }
    }

    /// The logits of some rows and columns, without the bias, in f32.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(super) unsafe fn logits(&mut self, rows: Range<usize>, columns: Range<usize>) -> Result<MatrixAt> {
        let row_stride = padded(columns.len(), Dtype::F32);
        let place = address(&mut self.work.logits, &self.cuda.stream, rows.len() * row_stride)?;
        let logits =
            MatrixAt { address: place, rows: rows.len(), columns: columns.len(), row_stride, dtype: Dtype::F32 };
        let product = Product {
            a: self.inputs.weight.operand(columns.start, true),
            b: self.gathered.operand(rows.start, false),
            c: logits.operand(0, false),
            m: columns.len(),
            n: rows.len(),
            k: self.gathered.columns,
            accumulate: false,
            factors: 0,
        };
        // SAFETY: the caller's promise for the weight; the others are ours.
        unsafe { self.product(&product)? };
        Ok(logits)
    }

    /// Folds a chunk of logits into the sums of its rows; writes their results if it is the last.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `results` has room for all rows.
    pub(super) unsafe fn fold(
        &mut self,
        logits: &MatrixAt,
        first_row: usize,
        begin: usize,
        results: &RowResults,
    ) -> Result<()> {
        let (targets, target_bytes) = self.inputs.targets.parts();
        let one_chunk = logits.columns == self.vocab();
        let fold = arguments::LinearLogProb {
            logits: logits.address,
            bias: self.wide_bias(begin),
            targets,
            rows: self.row_list(first_row),
            sums: if one_chunk { 0 } else { address(&mut self.work.sums, &self.cuda.stream, 3 * self.count)? },
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
        let name = format!("linear_log_prob{}", self.variant(results.entropies != 0));
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::LinearLogProb, &name, (logits.rows as u32, 1), &fold) }
    }

    fn variant(&self, entropy: bool) -> String {
        let softcap = if self.options.softcap() > 0.0 { "_softcap" } else { "" };
        format!("{softcap}{}", if entropy { "_entropy" } else { "" })
    }

    /// Before gradients of the head that are added to: leaves out the rows that would add NaN or an infinity.
    ///
    /// # Safety
    /// `states` and `upstream` are there for all rows; the logits of these rows have been made.
    pub(super) unsafe fn withhold(
        &self,
        rows: Range<usize>,
        (states, upstream): (Address, arguments::UpstreamOfRows),
    ) -> Result<()> {
        let withhold = arguments::WithholdRows {
            rows: self.row_list(rows.start),
            positions: self.positions,
            gathered: self.gathered.row(rows.start),
            states,
            upstream,
            status: self.status,
            largest_upstream: self.options.largest_upstream(),
            gathered_words: (self.gathered.row_stride * bytes(self.gathered.dtype) / 16) as i32,
            reserved: 0,
        };
        let grid = (rows.len() as u32, 1);
        // SAFETY: the caller's promise; a gathered row is whole words of 16 bytes, see `padded`.
        unsafe { launch(self.cuda, Stage::LinearLogProbBackward, "linear_withhold_rows", grid, &withhold) }
    }

    /// For f16: the power of two that keeps the gradients of these rows in range, and its inverse. Else 0.
    ///
    /// # Safety
    /// `upstream` is there for all rows.
    pub(super) unsafe fn gradient_scale(
        &mut self,
        rows: Range<usize>,
        upstream: arguments::UpstreamOfRows,
    ) -> Result<Address> {
        if self.dtype() != Dtype::F16 {
            return Ok(0);
        }
        let factors = address(&mut self.work.factors, &self.cuda.stream, 4)?;
        let scale = arguments::GradientScale {
            rows: self.row_list(rows.start),
            upstream,
            factors,
            count: rows.len() as i32,
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::LinearLogProbBackward, "linear_gradient_scale", (1, 1), &scale)? };
        Ok(factors)
    }

    /// Turns a chunk of logits into their gradient, in the head's type.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `states` and `upstream` are there for all rows.
    pub(super) unsafe fn gradients(
        &mut self,
        logits: &MatrixAt,
        first_row: usize,
        begin: usize,
        (states, upstream, factors): (Address, arguments::UpstreamOfRows, Address),
    ) -> Result<MatrixAt> {
        let dtype = self.dtype();
        // f32 gradients take the logits' place.
        let gradients = if dtype == Dtype::F32 {
            *logits
        } else {
            let row_stride = padded(logits.columns, dtype);
            let length = logits.rows * row_stride * bytes(dtype);
            let place = address(&mut self.work.gradients, &self.cuda.stream, length)?;
            MatrixAt { address: place, row_stride, dtype, ..*logits }
        };
        let (targets, target_bytes) = self.inputs.targets.parts();
        let backward = arguments::LinearLogProbBackward {
            logits: logits.address,
            bias: self.wide_bias(begin),
            gradients: gradients.address,
            factor: factors,
            targets,
            rows: self.row_list(first_row),
            states,
            upstream,
            row_stride: logits.row_stride as i64,
            gradient_row_stride: gradients.row_stride as i64,
            largest_upstream: self.options.largest_upstream(),
            begin: begin as i32,
            columns: logits.columns as i32,
            vocab: self.vocab() as i32,
            target_bytes,
            scale: scale(self.options),
            inverse_temperature: (1.0 / self.options.temperature()) as f32,
            softcap: self.options.softcap() as f32,
            reserved: 0,
        };
        let entropy = upstream.entropy_gradients != 0;
        let name = format!("linear_log_prob_backward_{}{}", suffix(dtype), self.variant(entropy));
        let grid = (logits.rows as u32, logits.columns.div_ceil(tuning::LINEAR_BLOCK_COLUMNS) as u32);
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::LinearLogProbBackward, &name, grid, &backward)? };
        Ok(gradients)
    }

    /// Adds a chunk's part to the gradient of the gathered hidden states, in f32; `is_first`: begins it.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(super) unsafe fn hidden_product(
        &mut self,
        gradients: &MatrixAt,
        first_row: usize,
        begin: usize,
        is_first: bool,
        factors: Address,
    ) -> Result<()> {
        let sums = self.hidden_sums()?;
        let product = Product {
            a: self.inputs.weight.operand(begin, false),
            b: gradients.operand(0, false),
            c: sums.operand(first_row, false),
            m: sums.columns,
            n: gradients.rows,
            k: gradients.columns,
            accumulate: !is_first,
            factors,
        };
        // SAFETY: the caller's promise for the weight; the others are ours.
        unsafe { self.product(&product) }
    }

    fn hidden_sums(&mut self) -> Result<MatrixAt> {
        let row_stride = padded(self.gathered.columns, Dtype::F32);
        let place = address(&mut self.work.hidden_sums, &self.cuda.stream, self.count * row_stride)?;
        Ok(MatrixAt { address: place, row_stride, dtype: Dtype::F32, ..self.gathered })
    }

    /// A chunk's part of the weight's gradient.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `weight` is a buffer of the weight's shape.
    pub(super) unsafe fn weight_product(
        &mut self,
        gradients: &MatrixAt,
        first_row: usize,
        (weight, begin): (&MatrixAt, usize),
        accumulate: bool,
        factors: Address,
    ) -> Result<()> {
        let product = Product {
            a: self.gathered.operand(first_row, false),
            b: gradients.operand(0, true),
            c: weight.operand(begin, false),
            m: self.gathered.columns,
            n: gradients.columns,
            k: gradients.rows,
            accumulate,
            factors,
        };
        // SAFETY: the caller's promise for the gradient; the others are ours.
        unsafe { self.product(&product) }
    }

    /// A chunk's part of the bias's gradient: the whole of it, or the part of some rows.
    ///
    /// # Safety
    /// `bias` has room from column `begin` on.
    pub(super) unsafe fn bias_sums(
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
        let bias = arguments::BiasGradient {
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
        let blocks = gradients.columns.div_ceil(32) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::LinearGradients, &name, (blocks, 1), &bias) }
    }

    /// The hidden states' gradient, rounded, to all N rows.
    ///
    /// # Safety
    /// `gradient` is a buffer of the hidden states' shape.
    pub(super) unsafe fn scatter(&mut self, gradient: &MatrixAt) -> Result<()> {
        if gradient.rows == 0 {
            return Ok(());
        }
        let sums = self.hidden_sums()?;
        let scatter = arguments::ScatterRows {
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
        unsafe { launch(self.cuda, Stage::LinearRows, &name, (gradient.rows as u32, 1), &scatter) }
    }

    /// A weight's gradient that was summed up in f32, rounded to its buffer.
    ///
    /// # Safety
    /// `gradient` is a buffer of the weight's shape.
    pub(super) unsafe fn round_weight(&self, sums: &MatrixAt, gradient: &MatrixAt, accumulate: bool) -> Result<()> {
        let round = arguments::RoundWeight {
            sums: sums.address,
            gradients: gradient.address,
            sums_stride: sums.row_stride as i64,
            row_stride: gradient.row_stride as i64,
            columns: gradient.columns as i32,
            accumulate: i32::from(accumulate),
        };
        let name = format!("linear_round_weight_{}", suffix(gradient.dtype));
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::LinearGradients, &name, (gradient.rows as u32, 1), &round) }
    }

    /// The row losses of some rows, and their gradients.
    ///
    /// # Safety
    /// The addresses are there for all rows.
    pub(super) unsafe fn row_losses(&self, rows: Range<usize>, mut losses: arguments::RowLossArguments) -> Result<()> {
        losses.rows = self.row_list(rows.start);
        losses.count = rows.len() as i32;
        losses.status = self.status;
        let threads = self.cuda.kernels.kernel(Stage::RowLoss, "row_loss")?.threads as usize;
        let blocks = rows.len().div_ceil(threads) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, Stage::RowLoss, "row_loss", (blocks, 1), &losses) }
    }
}
