//! What the forward pass keeps of the gradients of the logits on the CPU: e_j·σ_j of the columns that are not the target, in the
//! head's type. The gradients are c times that, with c = −g/(T·s) of the row and its backward pass.
//!
//! The memory is divided into tiles of 512 columns, one after the other, each `[M, columns]`; after all of them come two numbers
//! for each row: by what e is multiplied to be relative to the row's state, and σ_t·Σ' e relative to that, which stands for the
//! target's column. In f16, which holds nothing below 6e-8, e is 2¹⁴ times as large.

use crate::cpu::linear::log_prob_backward::TILE;
use crate::cpu::linear::tiles::{COLUMNS, ROWS, ScoredRows, VocabTile};
use crate::cpu::linear::unit_gradient::{Rest, rescaled};
use crate::element::{Dtype, Element};
use crate::stage::linear::kept_row_words;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// How much larger e is kept than it is.
fn enlarged<W: Element>() -> f32 {
    if W::DTYPE == Dtype::F16 { 16384.0 } else { 1.0 }
}

/// The kept numbers, to write.
pub(super) struct KeptLogitsMut<'a, W> {
    /// Tile after tile.
    numbers: &'a mut [W],
    /// Two for each row.
    of_rows: &'a mut [f32],
    rows: usize,
    /// What the e of each row in each tile are relative to, `[tiles, M]`.
    r: Vec<f32>,
}

/// The same to read.
pub(super) struct KeptLogits<'a, W> {
    numbers: &'a [W],
    of_rows: &'a [f32],
    rows: usize,
}

/// How many of the words are the numbers of tiles.
fn numbers_of<W: Element>(words: usize, vocab: usize) -> usize {
    let of_row = kept_row_words(W::DTYPE, vocab);
    words / (of_row + 2) * of_row
}

impl<'a, W: Element> KeptLogitsMut<'a, W> {
    /// In memory of [`kept_logit_words`](crate::backend::kept_logit_words) for M rows or more.
    pub(super) fn new(words: &'a mut [u32], rows: usize, vocab: usize) -> Self {
        let (numbers, of_rows) = words.split_at_mut(numbers_of::<W>(words.len(), vocab));
        let numbers: &mut [W] = bytemuck::cast_slice_mut(numbers);
        Self {
            numbers: &mut numbers[..rows * vocab],
            of_rows: &mut bytemuck::cast_slice_mut(of_rows)[..2 * rows],
            rows,
            r: vec![0.0; vocab.div_ceil(COLUMNS) * rows],
        }
    }

    /// Keeps tiles of e·σ of all rows, `[row tiles, vocabulary tiles, ROWS, COLUMNS]`, the first of them at `first`. `r`: what they
    /// are relative to, by row tile, tile and row.
    pub(super) fn write<T: Element>(
        &mut self,
        tiles: &[VocabTile],
        first: usize,
        scored: &ScoredRows<T>,
        exponentials: &[f32],
        r: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) {
        let (rows, row_tiles) = (self.rows, exponentials.len() / (tiles.len() * TILE));
        if rows == 0 {
            return;
        }
        let numbers = self.numbers[rows * tiles[0].first..].par_chunks_mut(rows * COLUMNS);
        let of_tiles = self.r[first * rows..].par_chunks_exact_mut(rows);
        numbers.zip(of_tiles).take(tiles.len()).enumerate().for_each(|(index, (numbers, of_tile))| {
            let columns = tiles[index].columns();
            for row_tile in 0..row_tiles {
                let data = &exponentials[(row_tile * tiles.len() + index) * TILE..][..TILE];
                let start = row_tile * ROWS;
                for row in 0..scored.of_tile(row_tile).len() {
                    let out = &mut numbers[(start + row) * columns..][..columns];
                    for (out, e) in out.iter_mut().zip(&data[row * COLUMNS..]) {
                        *out = W::from_f32(*e * enlarged::<W>());
                    }
                    of_tile[start + row] = r(row_tile, index, row);
                }
            }
        });
    }

    /// Brings all of a row to what its last tile is relative to, by powers of two.
    pub(super) fn finish(&mut self, rests: &[Rest], coefficients: &[(f64, f64)]) {
        if self.rows == 0 {
            return;
        }
        let rows = self.rows;
        self.numbers.par_chunks_mut(rows * COLUMNS).zip(self.r.par_chunks_exact(rows)).for_each(|(numbers, r)| {
            let columns = numbers.len() / rows;
            for ((numbers, r), rest) in numbers.chunks_exact_mut(columns).zip(r).zip(rests) {
                if *r != rest.r {
                    let factor = rescaled(*r, rest.r) as f32;
                    for number in numbers {
                        *number = W::from_f32(number.to_f32() * factor);
                    }
                }
            }
        });
        for (of_row, (coefficient, to_state)) in self.of_rows.chunks_exact_mut(2).zip(coefficients) {
            of_row[0] = (*to_state / f64::from(enlarged::<W>())) as f32;
            of_row[1] = *coefficient as f32;
        }
    }
}

impl<'a, W: Element> KeptLogits<'a, W> {
    /// As [`KeptLogitsMut::new`].
    pub(super) fn new(words: &'a [u32], rows: usize, vocab: usize) -> Self {
        let (numbers, of_rows) = words.split_at(numbers_of::<W>(words.len(), vocab));
        let numbers: &[W] = bytemuck::cast_slice(numbers);
        Self { numbers: &numbers[..rows * vocab], of_rows: &bytemuck::cast_slice(of_rows)[..2 * rows], rows }
    }

    /// The gradients of a row's logits in a tile: `coefficient` is c.
    pub(super) fn gradients(
        &self,
        row: usize,
        coefficient: f32,
        tile: VocabTile,
        target: Option<usize>,
        out: &mut [f32],
    ) {
        let columns = tile.columns();
        let numbers = &self.numbers[self.rows * tile.first + row * columns..][..columns];
        let factor = coefficient * self.of_rows[2 * row];
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = number.to_f32() * factor;
        }
        if let Some(target) = target {
            out[target] = -coefficient * self.of_rows[2 * row + 1];
        }
    }
}
