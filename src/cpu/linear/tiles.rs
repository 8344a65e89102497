//! Tiles of logits made from hidden states and a head: what the passes of the linear stage have in common.
//!
//! A tile is [`ROWS`] × [`COLUMNS`] logits, 512 KiB: it stays in a second-level cache between the matrix product that
//! makes it and the loop that reads it. Every product is one of tiles, on one thread: so its bits depend on the rows and
//! columns that take part and on H, not on N, V, or the number of threads.

use crate::cpu::linear::product::{Block, ProductScratch, Products, Sums};
use crate::data::shard::{SLICE, Shard};
use crate::element::Element;
use crate::host::{Head, Matrix, Targets};

/// Rows of a tile.
pub(crate) const ROWS: usize = 256;

/// Columns of a tile, and the unit in which a row is reduced.
pub(crate) const COLUMNS: usize = 512;

/// The column of a target that another rank has: of no tile.
pub(crate) const ELSEWHERE: usize = usize::MAX;

/// Tiles of a slice of the vocabulary.
pub(crate) const TILES_OF_SLICE: usize = SLICE / COLUMNS;

/// The rows that are scored, next to one another.
pub(crate) struct ScoredRows<T> {
    /// Row and target column of each: [`ELSEWHERE`] where that is no column of the head.
    pub(crate) rows: Vec<(usize, usize)>,
    /// Hidden states, `[M, H]`.
    hidden: Vec<T>,
    hidden_size: usize,
    /// Which of the rows are left out of the sums over rows.
    pub(crate) withheld: Vec<usize>,
}

impl<T: Element> ScoredRows<T> {
    /// For a head of so many columns of the vocabulary that are no padding, from the shard's first on.
    pub(crate) fn new(hidden: &Matrix<'_, T>, targets: Targets<'_>, shard: Shard, columns: usize) -> Self {
        let column = |target| shard.column_of(target, columns).unwrap_or(ELSEWHERE);
        let rows: Vec<(usize, usize)> =
            (0..targets.len()).filter_map(|row| targets.column(row).map(|target| (row, column(target)))).collect();
        let hidden_size = hidden.columns();
        let mut packed = Vec::with_capacity(rows.len() * hidden_size);
        for (row, _) in &rows {
            packed.extend_from_slice(hidden.row(*row));
        }
        Self { rows, hidden: packed, hidden_size, withheld: Vec::new() }
    }

    /// Leaves a row out of the sums over rows, if its gradient is 0 from now on: the product with its hidden state, in which
    /// there may be a NaN, is 0 too.
    pub(crate) fn withhold(&mut self, index: usize) {
        self.hidden[index * self.hidden_size..][..self.hidden_size].fill(T::from_f32(0.0));
        self.withheld.push(index);
    }

    /// Tiles along the rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.len().div_ceil(ROWS)
    }

    /// The scored rows of a tile.
    pub(crate) fn of_tile(&self, tile: usize) -> &[(usize, usize)] {
        &self.rows[tile * ROWS..self.rows.len().min((tile + 1) * ROWS)]
    }

    /// Hidden states of a tile, `[rows, H]`.
    pub(crate) fn hidden(&self, tile: usize) -> Block<'_, T> {
        let rows = self.of_tile(tile).len();
        let data = &self.hidden[tile * ROWS * self.hidden_size..][..rows * self.hidden_size];
        Block { data, rows, columns: self.hidden_size, stride: self.hidden_size }
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

impl<W: Element> Head<'_, W> {
    /// The weight of a tile, `[columns, H]`.
    pub(crate) fn weight_of(&self, tile: VocabTile) -> Block<'_, W> {
        let weight = self.weight();
        Block {
            data: weight.rows_from(tile.first),
            rows: tile.columns(),
            columns: weight.columns(),
            stride: weight.row_stride(),
        }
    }

    /// Logits of hidden states `[rows, H]` over a tile of the vocabulary, in f32: `out`, row stride [`COLUMNS`].
    pub(crate) fn logits<T: Element>(
        &self,
        products: Products,
        hidden: Block<'_, T>,
        tile: VocabTile,
        scratch: &mut ProductScratch,
        out: &mut [f32],
    ) {
        if let Some(bias) = self.bias() {
            for row in out.chunks_exact_mut(COLUMNS).take(hidden.rows) {
                for (logit, bias) in row.iter_mut().zip(&bias[tile.first..tile.last]) {
                    *logit = bias.to_f32();
                }
            }
        }
        let sums = Sums { data: out, stride: COLUMNS, add: self.bias().is_some() };
        products.logits(hidden, self.weight_of(tile), sums, scratch);
    }
}
