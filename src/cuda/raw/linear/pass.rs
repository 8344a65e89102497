//! The steps that the calls of the linear stage are made of: each one launch, or one matrix product.

use crate::cuda::Cuda;
use crate::cuda::blas::Product;
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::LinearInputs;
use crate::cuda::raw::{MatrixAt, bytes};
use crate::element::Dtype;
use crate::error::Result;
use crate::options::LogitOptions;
use std::ops::Range;

/// Where rows that are not gathered get their results; 0: nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowResults {
    pub(crate) log_probs: Address,
    pub(crate) states: Address,
    pub(crate) entropies: Address,
    pub(crate) losses: Address,
}

/// Rounded up, so that rows begin at multiples of 16 bytes.
pub(super) fn padded(columns: usize, dtype: Dtype) -> usize {
    columns.next_multiple_of(16 / bytes(dtype))
}

/// One call of the stage: its operands, and the scored rows' hidden states, gathered.
pub(crate) struct Pass<'a> {
    pub(crate) cuda: &'a Cuda,
    pub(crate) work: &'a mut LinearScratch,
    pub(crate) inputs: &'a LinearInputs,
    pub(crate) options: &'a LogitOptions,
    pub(crate) status: Address,
    /// M.
    pub(crate) count: usize,
    pub(crate) rows: Address,
    pub(crate) positions: Address,
    pub(crate) gathered: MatrixAt,
    /// In f32, or 0.
    pub(crate) bias: Address,
}

impl<'a> Pass<'a> {
    /// Finds the scored rows and gathers their hidden states. Nothing is launched if the arguments do not fit, or if
    /// there is no cuBLAS.
    ///
    /// # Safety
    /// The inputs are there as they say, and nothing else writes them until the stream has run the call.
    pub(crate) unsafe fn begin(
        cuda: &'a Cuda,
        work: &'a mut LinearScratch,
        inputs: &'a LinearInputs,
        options: &'a LogitOptions,
        results: RowResults,
    ) -> Result<Self> {
        inputs.check()?;
        let stream = &cuda.stream;
        work.blas(stream)?;
        let status = cuda.status.address(stream)?;
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

    /// V.
    pub(crate) fn vocab(&self) -> usize {
        self.inputs.weight.rows
    }

    /// The head's type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.inputs.weight.dtype
    }

    /// The list entry of a gathered row.
    pub(crate) fn row_list(&self, row: usize) -> Address {
        self.rows + (4 * row) as Address
    }

    pub(crate) fn wide_bias(&self, column: usize) -> Address {
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
    pub(crate) unsafe fn logits(&mut self, rows: Range<usize>, columns: Range<usize>) -> Result<MatrixAt> {
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

    pub(crate) fn variant(&self, entropy: bool) -> String {
        let softcap = if self.options.softcap() > 0.0 { "_softcap" } else { "" };
        format!("{softcap}{}", if entropy { "_entropy" } else { "" })
    }

    /// Adds a chunk's part to the gradient of the gathered hidden states, in f32; `is_first`: begins it.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn hidden_product(
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

    pub(crate) fn hidden_sums(&mut self) -> Result<MatrixAt> {
        let row_stride = padded(self.gathered.columns, Dtype::F32);
        let place = address(&mut self.work.hidden_sums, &self.cuda.stream, self.count * row_stride)?;
        Ok(MatrixAt { address: place, row_stride, dtype: Dtype::F32, ..self.gathered })
    }

    /// A chunk's part of the weight's gradient.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `weight` is a buffer of the weight's shape.
    pub(crate) unsafe fn weight_product(
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
}
