//! Tiles of logits made from hidden states and a head: what the passes of the linear stage have in common.
//!
//! A tile is [`ROWS`] × [`COLUMNS`] logits, 512 KiB: it stays in a second-level cache between the matrix product that
//! makes it and the loop that reads it. Every product is one of tiles, on one thread, with a sum of at most [`DEPTH`]
//! terms: so its bits depend on the rows and columns that take part and on H, not on N, V, or the number of threads.

use crate::element::{Dtype, Element};
use crate::host::{Head, Matrix, Targets};
use gemm::{Parallelism, gemm};

/// Rows of a tile.
pub(crate) const ROWS: usize = 256;

/// Columns of a tile, and the unit in which a row is reduced.
pub(crate) const COLUMNS: usize = 512;

/// The most terms that one product sums. Up to this many `gemm` has one way to divide the sum: not to.
pub(crate) const DEPTH: usize = 512;

/// `gemm` has other loops, with other roundings, for products with a side of 1 or of at most 256 elements. Rows are
/// filled up to a multiple of this one and columns to at least the other, so that a row's bits do not depend on how
/// many there are beside it.
pub(crate) const ROW_MULTIPLE: usize = 8;

const FEWEST_COLUMNS: usize = 64;

/// Part of a matrix in f32, to read: element (i, j) is `data[i·row_stride + j·column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Block<'a> {
    /// Rows of contiguous columns.
    pub(crate) fn of_rows(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Columns `first..first + count`.
    pub(crate) fn columns(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.column_stride..], columns: count, ..self }
    }

    fn holds_its_last_element(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.data.len()
    }
}

/// `out` = left·right, or `out` += left·right: `out` has left's rows and right's columns, `out_stride` elements from row
/// to row. A sum of more than [`DEPTH`] terms is divided, into the same parts for every shape.
pub(crate) fn multiply(out: &mut [f32], out_stride: usize, left: Block<'_>, right: Block<'_>, mut add: bool) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(depth, right.rows, "the product's inner sides");
    let out_block = Block::of_rows(out, rows, columns, out_stride);
    assert!(
        left.holds_its_last_element() && right.holds_its_last_element() && out_block.holds_its_last_element(),
        "a block of the product lies outside its buffer"
    );
    let step = depth.div_ceil(depth.div_ceil(DEPTH).max(1)).max(1);
    let mut first = 0;
    while first < depth {
        let count = step.min(depth - first);
        let (left_start, right_start) = (first * left.column_stride, first * right.row_stride);
        // SAFETY: all elements that the shapes and strides reach lie inside of the three slices, as was checked, and
        // `out` is not shared.
        unsafe {
            gemm(
                rows,
                columns,
                count,
                out.as_mut_ptr(),
                1,
                out_stride as isize,
                add,
                left.data.as_ptr().add(left_start),
                left.column_stride as isize,
                left.row_stride as isize,
                right.data.as_ptr().add(right_start),
                right.column_stride as isize,
                right.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        add = true;
        first += count;
    }
}

/// The rows that are scored, next to one another and in f32.
pub(crate) struct ScoredRows {
    /// Row and target column of each.
    pub(crate) rows: Vec<(usize, usize)>,
    /// Hidden states, `[M, H]`; M is their number filled up to a multiple of [`ROW_MULTIPLE`] with rows of zeros.
    hidden: Vec<f32>,
    hidden_size: usize,
    /// Which of the rows are left out of the sums over rows.
    pub(crate) withheld: Vec<usize>,
}

impl ScoredRows {
    pub(crate) fn new<T: Element>(hidden: &Matrix<'_, T>, targets: Targets<'_>) -> Self {
        let rows: Vec<(usize, usize)> =
            (0..targets.len()).filter_map(|row| targets.column(row).map(|column| (row, column))).collect();
        let hidden_size = hidden.columns();
        let mut packed = vec![0.0; rows.len().next_multiple_of(ROW_MULTIPLE) * hidden_size];
        for (packed, (row, _)) in packed.chunks_exact_mut(hidden_size).zip(&rows) {
            widen(hidden.row(*row), packed);
        }
        Self { rows, hidden: packed, hidden_size, withheld: Vec::new() }
    }

    /// Leaves a row out of the sums over rows, if its gradient is 0 from now on: the product with its hidden state, in which
    /// there may be a NaN, is 0 too.
    pub(crate) fn withhold(&mut self, index: usize) {
        self.hidden[index * self.hidden_size..][..self.hidden_size].fill(0.0);
        self.withheld.push(index);
    }

    /// Rows in all, those that fill up included.
    pub(crate) fn padded(&self) -> usize {
        self.rows.len().next_multiple_of(ROW_MULTIPLE)
    }

    /// Tiles along the rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.len().div_ceil(ROWS)
    }

    /// The scored rows of a tile.
    pub(crate) fn of_tile(&self, tile: usize) -> &[(usize, usize)] {
        &self.rows[tile * ROWS..self.rows.len().min((tile + 1) * ROWS)]
    }

    /// Hidden states of a tile, `[rows, H]`, filled up.
    pub(crate) fn hidden(&self, tile: usize) -> Block<'_> {
        let (first, last) = (tile * ROWS, self.padded().min((tile + 1) * ROWS));
        let data = &self.hidden[first * self.hidden_size..last * self.hidden_size];
        Block::of_rows(data, last - first, self.hidden_size, self.hidden_size)
    }
}

pub(crate) fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    for (wide, x) in to.iter_mut().zip(from) {
        *wide = x.to_f32();
    }
}

/// Columns `first..last` of the vocabulary.
#[derive(Clone, Copy)]
pub(crate) struct VocabTile {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl VocabTile {
    pub(crate) fn new(index: usize, vocab: usize) -> Self {
        Self { first: index * COLUMNS, last: vocab.min((index + 1) * COLUMNS) }
    }

    pub(crate) fn columns(self) -> usize {
        self.last - self.first
    }

    /// The target as a column of this tile, if it is one.
    pub(crate) fn column_of(self, target: usize) -> Option<usize> {
        (self.first..self.last).contains(&target).then(|| target - self.first)
    }
}

/// What a task needs beside its results, kept over its tiles.
#[derive(Default)]
pub(crate) struct TileScratch {
    /// Part of a tile's weight in f32: at most [`COLUMNS`] × [`DEPTH`].
    weight: Vec<f32>,
}

impl<T: Element> Head<'_, T> {
    fn hidden_size(&self) -> usize {
        self.weight().columns()
    }

    /// Calls `each(first, block)` with the weight of a tile in f32, `[columns, ≤ DEPTH]` at a time from column `first`
    /// of H on: in place where it is in f32, and has at least `fewest` rows, else as a copy, filled up with zeros.
    pub(crate) fn for_weights(
        &self,
        tile: VocabTile,
        fewest: usize,
        scratch: &mut TileScratch,
        mut each: impl FnMut(usize, Block<'_>),
    ) {
        let (weight, hidden_size) = (self.weight(), self.hidden_size());
        let rows = tile.columns().max(fewest);
        let in_place = T::DTYPE == Dtype::F32 && rows == tile.columns();
        let step = hidden_size.div_ceil(hidden_size.div_ceil(DEPTH));
        for first in (0..hidden_size).step_by(step) {
            let columns = step.min(hidden_size - first);
            if in_place {
                let data = bytemuck::cast_slice(weight.rows_from(tile.first));
                let block = Block::of_rows(data, rows, hidden_size, weight.row_stride());
                each(first, block.columns(first, columns));
                continue;
            }
            scratch.weight.clear();
            scratch.weight.resize(rows * columns, 0.0);
            for (row, wide) in (tile.first..tile.last).zip(scratch.weight.chunks_exact_mut(columns)) {
                widen(&weight.row(row)[first..first + columns], wide);
            }
            each(first, Block::of_rows(&scratch.weight, rows, columns, columns));
        }
    }

    /// Calls `each` with columns `first..first + count` of H, as far as there are so many, of a tile's weight in f32.
    pub(crate) fn weight_columns(
        &self,
        tile: VocabTile,
        first: usize,
        count: usize,
        scratch: &mut TileScratch,
        each: impl FnOnce(Block<'_>),
    ) {
        let (weight, count) = (self.weight(), count.min(self.hidden_size() - first));
        if T::DTYPE == Dtype::F32 {
            let data = bytemuck::cast_slice(weight.rows_from(tile.first));
            return each(Block::of_rows(&data[first..], tile.columns(), count, weight.row_stride()));
        }
        scratch.weight.resize(tile.columns() * count, 0.0);
        for (row, wide) in (tile.first..tile.last).zip(scratch.weight.chunks_exact_mut(count)) {
            widen(&weight.row(row)[first..first + count], wide);
        }
        each(Block::of_rows(&scratch.weight, tile.columns(), count, count));
    }

    /// Logits of hidden states `[rows, H]` over a tile of the vocabulary, in f32: `out`, row stride [`COLUMNS`].
    pub(crate) fn logits(&self, hidden: Block<'_>, tile: VocabTile, scratch: &mut TileScratch, out: &mut [f32]) {
        if let Some(bias) = self.bias() {
            for row in out.chunks_exact_mut(COLUMNS).take(hidden.rows) {
                widen(&bias[tile.first..tile.last], row);
            }
        }
        let with_bias = self.bias().is_some();
        self.for_weights(tile, FEWEST_COLUMNS, scratch, |first, weight| {
            let hidden = hidden.columns(first, weight.columns);
            multiply(out, COLUMNS, hidden, weight.transposed(), with_bias || first > 0);
        });
    }
}
