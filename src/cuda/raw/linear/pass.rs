//! The steps that the calls of the linear stage are made of: each one launch, or one matrix product.

use crate::cuda::Cuda;
use crate::cuda::blas::Product;
use crate::cuda::kernels::variant;
use crate::cuda::linear::workspace::{Chunk, LinearScratch};
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::LinearInputs;
use crate::cuda::raw::{MatrixAt, bytes};
use crate::data::shard::Shard;
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

/// Chunks of `length` that together are `0..end`.
pub(super) fn chunks(end: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(length).map(move |begin| begin..end.min(begin + length))
}

/// One call of the stage: its operands, and which rows are scored. M rows are taken R at a time, the rows of a chunk.
pub(crate) struct Pass<'a> {
    pub(crate) cuda: &'a Cuda,
    pub(crate) work: &'a mut LinearScratch,
    pub(crate) inputs: &'a LinearInputs,
    pub(crate) options: &'a LogitOptions,
    /// Which columns of the vocabulary the head has.
    pub(crate) shard: Shard,
    pub(crate) status: Address,
    /// M.
    pub(crate) count: usize,
    chunk: Chunk,
    pub(crate) rows: Address,
    pub(crate) positions: Address,
    /// The rows of the chunk, of the list; those from M on fill it up.
    pub(crate) taken: Range<usize>,
    /// Their hidden states, `[R, H]`.
    pub(crate) gathered: MatrixAt,
    /// In f32, or 0.
    pub(crate) bias: Address,
}

impl<'a> Pass<'a> {
    /// Finds the scored rows. The head has no padding. Nothing is launched if the arguments do not fit, or if there is no cuBLAS.
    ///
    /// # Safety
    /// The inputs are there as they say, and nothing else writes them until the stream has run the call.
    pub(crate) unsafe fn begin(
        cuda: &'a Cuda,
        work: &'a mut LinearScratch,
        inputs: &'a LinearInputs,
        options: &'a LogitOptions,
        results: RowResults,
        chunk: Chunk,
    ) -> Result<Self> {
        inputs.check()?;
        let stream = &cuda.stream;
        work.blas(stream)?;
        let status = cuda.status.address(stream)?;
        let (rows, count) = (inputs.hidden.rows, inputs.gathered_rows());
        let (width, dtype) = (inputs.hidden.columns, inputs.hidden.dtype);
        let stride = padded(width, dtype);
        let at_once = chunk.rows.min(chunk.filled(count));
        let gathered = address(&mut work.gathered, stream, at_once * stride * bytes(dtype))?;
        let pass = Self {
            rows: address(&mut work.rows, stream, chunk.filled(count))?,
            positions: address(&mut work.positions, stream, rows)?,
            gathered: MatrixAt { address: gathered, rows: 0, columns: width, row_stride: stride, dtype },
            bias: if inputs.bias == 0 { 0 } else { address(&mut work.bias, stream, inputs.weight.rows)? },
            taken: 0..0,
            chunk,
            cuda,
            work,
            inputs,
            options,
            shard: options.shard_of(inputs.weight.rows),
            status,
            count,
        };
        // SAFETY: the caller's promise.
        unsafe { pass.find_scored(results, chunk.filled(count))? };
        Ok(pass)
    }

    /// The rows of the list, a chunk's at a time.
    pub(crate) fn row_chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        chunks(self.chunk.filled(self.count), self.chunk.rows)
    }

    /// The columns of the vocabulary, a chunk's at a time.
    pub(crate) fn column_chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        chunks(self.vocab(), self.chunk.columns)
    }

    /// Whether the rows are taken in several chunks.
    pub(crate) fn has_several_row_chunks(&self) -> bool {
        self.count > self.chunk.rows
    }

    /// Whether these rows are the first of the list, and the last.
    pub(crate) fn ends(&self) -> (bool, bool) {
        (self.taken.start == 0, self.taken.end >= self.count)
    }

    /// How many of the rows of the chunk are not there to fill it up.
    pub(crate) fn taken_rows(&self) -> usize {
        self.taken.end.min(self.count) - self.taken.start
    }

    /// V: columns that the head has.
    pub(crate) fn vocab(&self) -> usize {
        self.inputs.weight.rows
    }

    /// The head's type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.inputs.weight.dtype
    }

    /// The list's entries of the chunk.
    pub(crate) fn row_list(&self) -> Address {
        self.rows + (4 * self.taken.start) as Address
    }

    pub(crate) fn wide_bias(&self, column: usize) -> Address {
        if self.bias == 0 { 0 } else { self.bias + (4 * column) as Address }
    }

    /// # Safety
    /// As [`Blas::product`](crate::cuda::blas::Blas::product).
    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        let precision = self.work.precision;
        let blas = self.work.blas(&self.cuda.stream)?;
        // SAFETY: the caller's promise.
        unsafe { blas.product(product, precision) }
    }

    /// The logits of the chunk's rows and some columns, without the bias, in f32.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn logits(&mut self, columns: Range<usize>) -> Result<MatrixAt> {
        let (rows, row_stride) = (self.taken.len(), padded(columns.len(), Dtype::F32));
        let place = address(&mut self.work.logits, &self.cuda.stream, rows * row_stride)?;
        let logits = MatrixAt { address: place, rows, columns: columns.len(), row_stride, dtype: Dtype::F32 };
        let product = Product {
            a: self.inputs.weight.operand(columns.start, true),
            b: self.gathered.operand(0, false),
            c: logits.operand(0, false),
            m: columns.len(),
            n: rows,
            k: self.gathered.columns,
            accumulate: false,
            factors: 0,
        };
        // SAFETY: the caller's promise for the weight; the others are ours.
        unsafe { self.product(&product)? };
        Ok(logits)
    }

    /// The index of a kernel among its variants.
    pub(crate) fn variant(&self, entropy: bool) -> usize {
        variant(self.options.softcap() > 0.0, entropy)
    }

    /// Adds a chunk's product with the weight's rows from `begin` on to the sums of its rows, `[R, H]` in f32; `is_first`:
    /// begins them.
    ///
    /// # Safety
    /// As [`Pass::begin`].
    pub(crate) unsafe fn hidden_product(
        &mut self,
        factors_of_weight: &MatrixAt,
        begin: usize,
        is_first: bool,
        factors: Address,
    ) -> Result<MatrixAt> {
        let sums = self.hidden_sums()?;
        let product = Product {
            a: self.inputs.weight.operand(begin, false),
            b: factors_of_weight.operand(0, false),
            c: sums.operand(0, false),
            m: sums.columns,
            n: factors_of_weight.rows,
            k: factors_of_weight.columns,
            accumulate: !is_first,
            factors,
        };
        // SAFETY: the caller's promise for the weight; the others are ours.
        unsafe { self.product(&product)? };
        Ok(sums)
    }

    pub(crate) fn hidden_sums(&mut self) -> Result<MatrixAt> {
        let row_stride = padded(self.gathered.columns, Dtype::F32);
        let place = address(&mut self.work.hidden_sums, &self.cuda.stream, self.taken.len() * row_stride)?;
        Ok(MatrixAt { address: place, rows: self.taken.len(), row_stride, dtype: Dtype::F32, ..self.gathered })
    }

    /// A chunk's part of the weight's gradient.
    ///
    /// # Safety
    /// As [`Pass::begin`]; `weight` is a buffer of the weight's shape.
    pub(crate) unsafe fn weight_product(
        &mut self,
        gradients: &MatrixAt,
        (weight, begin): (&MatrixAt, usize),
        accumulate: bool,
        factors: Address,
    ) -> Result<()> {
        let product = Product {
            a: self.gathered.operand(0, false),
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
