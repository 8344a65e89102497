//! The gradients of hidden states for an upstream gradient of 1, formed in the forward pass, on the CPU: T·∂ log π/∂h.
//!
//! With e_j = 2^t_j, σ_j the softcap's slope (1 without one) and t the target, that is (σ_t·W_t·Σ' e_j − Σ' e_j·σ_j·W_j)/s over
//! the columns that are not t: all of them would lose the digits of 1 − p where that is small. Chunks of the vocabulary, one
//! after another: the chunk's logits are made and folded, then overwritten with e·σ tile by tile, and their product with the
//! weight is added up in f32, `[M, H]`.
//!
//! A tile's e are relative to 2^r, with r the largest exponent so far of a column that is not the target, rounded up to an
//! integer. Where r grows, what has been summed is multiplied by a power of two, which is exact. So the results depend neither
//! on how many tiles make a chunk nor on the number of threads.
//!
//! Besides the outputs this takes, for M scored rows: a copy of their hidden states, 4·M·H bytes for the sums, as many tiles of e as
//! the backward pass has of D, 24 KiB of sums for each, and for each thread what products pack, up to 560 KiB with AVX-512; where
//! the gradients of the logits are kept 4 bytes for each row and 512 columns besides.

use crate::cpu::dispatch::Kernel;
use crate::cpu::elementary::{clamp_exponent, exp2};
use crate::cpu::linear::kept_logits::KeptLogitsMut;
use crate::cpu::linear::log_prob::{Division, RowSums, merge, unit_sums};
use crate::cpu::linear::log_prob_backward::{HIDDEN_COLUMNS, TILE, chunk_tiles, vocab_tiles};
use crate::cpu::linear::product::{Block, ProductScratch, Products, Sums};
use crate::cpu::linear::tiles::{COLUMNS, ROWS, ScoredRows, TILES_OF_SLICE, VocabTile};
use crate::cpu::softmax::{PartialSums, Scale};
use crate::cpu::token_log_prob::{LANES, RowForward, across_lanes, padded};
use crate::element::Element;
use crate::host::Head;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// What is known of the columns of a row that are not its target, so far.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    pub(super) r: f32,
    /// Σ' e, relative to 2^r.
    pub(super) sum: f64,
}

/// A row while its columns go by.
#[derive(Clone, Copy)]
struct RowState {
    /// Of the tiles so far that the forward pass that keeps nothing brings together in one task.
    task: RowSums,
    rest: Rest,
}

const START: RowState = RowState { task: RowSums::EMPTY, rest: Rest { r: PartialSums::EMPTY.r, sum: 0.0 } };

/// Of one row in one tile.
#[derive(Clone, Copy)]
struct RowOfTile {
    sums: RowSums,
    /// The largest exponent of a column that is not the target, rounded up; once the tiles before are known what e is relative
    /// to.
    r: f32,
    /// By which power of two r has grown: 0 for none.
    growth: f32,
    /// Σ' e.
    sum: f64,
}

const NOTHING: RowOfTile = RowOfTile { sums: RowSums::EMPTY, r: 0.0, growth: 0.0, sum: 0.0 };

/// e·σ in place of logits; Σ e.
struct Exponentials<'a, const SOFTCAP: bool> {
    logits: &'a mut [f32],
    scale: &'a Scale,
    r: f32,
}

impl<const SOFTCAP: bool> Kernel for Exponentials<'_, SOFTCAP> {
    type Output = f64;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> f64 {
        let mut sum = [0.0f32; LANES];
        let (groups, rest) = self.logits.as_chunks_mut::<LANES>();
        for group in groups {
            *group = exponentials::<FMA, SOFTCAP>(group, self.scale, self.r, &mut sum);
        }
        if !rest.is_empty() {
            let group = exponentials::<FMA, SOFTCAP>(&padded(rest), self.scale, self.r, &mut sum);
            rest.copy_from_slice(&group[..rest.len()]);
        }
        f64::from(across_lanes(sum))
    }
}

/// e·σ of a group of lanes, whose e are added to the sum. Not a closure: that would be compiled without the instruction set.
#[inline(always)]
fn exponentials<const FMA: bool, const SOFTCAP: bool>(
    group: &[f32; LANES],
    scale: &Scale,
    r: f32,
    sum: &mut [f32; LANES],
) -> [f32; LANES] {
    let (exponents, slopes) = scale.exponents::<FMA, SOFTCAP>(group, r);
    let mut out = [0.0; LANES];
    for lane in 0..LANES {
        let power = exp2::<FMA>(clamp_exponent(exponents[lane]));
        sum[lane] += power;
        out[lane] = if SOFTCAP { power * slopes[lane] } else { power };
    }
    out
}

/// The power of two by which what is relative to 2^before becomes relative to 2^after; 0 where nothing is left of it.
pub(super) fn rescaled(before: f32, after: f32) -> f64 {
    let distance = f64::from(before) - f64::from(after);
    if distance < -1000.0 { 0.0 } else { distance.exp2() }
}

/// The sums of every scored row over all of the vocabulary, with the bits of a forward pass that keeps nothing;
/// T·∂ log π/∂h of each, `[M, H]`; and, if asked for, what its logits' gradients are made of.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward<T: Element, W: Element>(
    forward: &RowForward<'_>,
    products: Products,
    scored: &ScoredRows<T>,
    head: &Head<'_, W>,
    division: Division,
    units: &mut [f32],
    mut kept: Option<KeptLogitsMut<'_, W>>,
) -> Vec<RowSums> {
    let (slices, rests, products) = unit_sums_of_rows(forward, products, scored, head, division, kept.as_mut());
    let sums = merge(&slices, scored.rows.len());
    let coefficients = products.finish(forward, scored, head, &sums, &rests, units);
    if let Some(kept) = &mut kept {
        kept.finish(&rests, &coefficients);
    }
    sums
}

/// The sums of every scored row over each slice of the head, with the bits of a forward pass that keeps nothing; and, of the columns
/// that are not its target, Σ' e and Σ' e·σ·W.
pub(super) fn unit_sums_of_rows<T: Element, W: Element>(
    forward: &RowForward<'_>,
    products: Products,
    scored: &ScoredRows<T>,
    head: &Head<'_, W>,
    division: Division,
    mut kept: Option<&mut KeptLogitsMut<'_, W>>,
) -> (Vec<Vec<RowSums>>, Vec<Rest>, RowProducts) {
    let mut states = vec![START; scored.rows.len()];
    let mut products_of_rows = RowProducts::new(products, scored, head);
    let chunk = chunk_tiles(scored.tiles());
    let mut slices = vec![vec![RowSums::EMPTY; scored.rows.len()]; division.slices()];
    let mut logits = vec![0.0; scored.tiles() * chunk.min(head.vocab().div_ceil(COLUMNS)) * TILE];
    let mut of_tiles = vec![NOTHING; logits.len() / COLUMNS];
    for first in (0..head.vocab().div_ceil(COLUMNS)).step_by(chunk) {
        let tiles = vocab_tiles(first, chunk, head.vocab());
        let logits = &mut logits[..scored.tiles() * tiles.len() * TILE];
        let of_tiles = &mut of_tiles[..scored.tiles() * tiles.len() * ROWS];
        let at = |index: usize| (index / tiles.len(), tiles[index % tiles.len()]);
        logits.par_chunks_exact_mut(TILE).zip(of_tiles.par_chunks_exact_mut(ROWS)).enumerate().for_each_init(
            ProductScratch::default,
            |scratch, (index, (logits, of_rows))| {
                let (row_tile, tile) = at(index);
                head.logits(products, scored.hidden(row_tile), tile, scratch, logits);
                fold(forward, logits, scored.of_tile(row_tile), tile, of_rows);
            },
        );
        for (index, state) in states.iter_mut().enumerate() {
            for column in 0..tiles.len() {
                let of_row = &mut of_tiles[((index / ROWS) * tiles.len() + column) * ROWS + index % ROWS];
                if (first + column).is_multiple_of(division.tiles_of_task) {
                    state.end_task(&mut slices, index, first + column);
                }
                state.add(of_row);
            }
        }
        logits.par_chunks_exact_mut(TILE).zip(of_tiles.par_chunks_exact_mut(ROWS)).enumerate().for_each(
            |(index, (logits, of_rows))| {
                let (row_tile, tile) = at(index);
                let count = scored.of_tile(row_tile).len();
                for (logits, of_row) in logits.chunks_exact_mut(COLUMNS).zip(of_rows).take(count) {
                    of_row.sum = overwrite(forward, &mut logits[..tile.columns()], of_row.r);
                }
            },
        );
        for (index, state) in states.iter_mut().enumerate() {
            for column in 0..tiles.len() {
                let of_row = of_tiles[((index / ROWS) * tiles.len() + column) * ROWS + index % ROWS];
                state.rest.sum = state.rest.sum * f64::from(of_row.growth).exp2() + of_row.sum;
            }
        }
        if let Some(kept) = &mut kept {
            let r =
                |row_tile: usize, column: usize, row: usize| of_tiles[(row_tile * tiles.len() + column) * ROWS + row].r;
            kept.write(&tiles, first, scored, logits, r);
        }
        products_of_rows.add(head, scored, &tiles, logits, of_tiles);
    }
    for (index, state) in states.iter_mut().enumerate() {
        state.end_task(&mut slices, index, head.vocab().div_ceil(COLUMNS));
    }
    (slices, states.iter().map(|state| state.rest).collect(), products_of_rows)
}

/// The sums of each row of a tile of logits. The target's logit is −inf afterwards: it has no e.
fn fold(
    forward: &RowForward<'_>,
    logits: &mut [f32],
    rows: &[(usize, usize)],
    tile: VocabTile,
    of_rows: &mut [RowOfTile],
) {
    for ((logits, of_row), (_, target)) in logits.chunks_exact_mut(COLUMNS).zip(of_rows).zip(rows) {
        let (logits, column) = (&mut logits[..tile.columns()], tile.column_of(*target));
        let sums = unit_sums(forward, logits, column);
        let r = match column {
            Some(column) => {
                logits[column] = f32::NEG_INFINITY;
                RowForward { entropy: false, ..*forward }.sums(logits).r
            }
            None => sums.r(),
        };
        *of_row = RowOfTile { sums, r, growth: 0.0, sum: 0.0 };
    }
}

fn overwrite(forward: &RowForward<'_>, logits: &mut [f32], r: f32) -> f64 {
    let (run, scale) = (forward.instructions, forward.scale);
    if scale.has_softcap() {
        run.run(Exponentials::<true> { logits, scale, r })
    } else {
        run.run(Exponentials::<false> { logits, scale, r })
    }
}

impl RowState {
    /// Before tile `next`: adds the tiles of the last task to the slice that they are of.
    fn end_task(&mut self, slices: &mut [Vec<RowSums>], row: usize, next: usize) {
        let Some(tile) = next.checked_sub(1) else { return };
        let slice = &mut slices[tile / TILES_OF_SLICE][row];
        *slice = slice.merge(self.task);
        self.task = RowSums::EMPTY;
    }

    /// Adds a tile's sums; then the tile knows what its e are relative to.
    fn add(&mut self, of_row: &mut RowOfTile) {
        self.task = self.task.merge(of_row.sums);
        let before = self.rest.r;
        if of_row.r > before {
            self.rest.r = of_row.r;
        }
        of_row.r = self.rest.r;
        // From the start on nothing has been summed.
        of_row.growth = (before - self.rest.r).max(-1000.0);
    }
}

/// Σ' e·σ·W of each row, `[M, H]` in f32.
pub(super) struct RowProducts {
    products: Products,
    /// By tiles of [`ROWS`] rows × `columns` columns, each contiguous: `[row tiles, column tiles, rows, columns]`.
    sums: Vec<f32>,
    columns: usize,
    hidden_size: usize,
}

impl RowProducts {
    fn new<T: Element, W: Element>(products: Products, scored: &ScoredRows<T>, head: &Head<'_, W>) -> Self {
        let hidden_size = head.weight().columns();
        let columns = hidden_size.div_ceil(hidden_size.div_ceil(HIDDEN_COLUMNS));
        let sums = vec![0.0; scored.tiles() * hidden_size.div_ceil(columns) * ROWS * columns];
        Self { products, sums, columns, hidden_size }
    }

    /// Adds what tiles of e·σ say, `[row tiles, vocabulary tiles, ROWS, COLUMNS]`.
    fn add<T: Element, W: Element>(
        &mut self,
        head: &Head<'_, W>,
        scored: &ScoredRows<T>,
        tiles: &[VocabTile],
        exponentials: &[f32],
        of_tiles: &[RowOfTile],
    ) {
        let (products, columns, hidden_size) = (self.products, self.columns, self.hidden_size);
        let (column_tiles, length) = (hidden_size.div_ceil(columns), ROWS * columns);
        self.sums.par_chunks_exact_mut(length).enumerate().for_each_init(
            ProductScratch::default,
            |scratch, (position, out)| {
                let (row_tile, column_tile) = (position / column_tiles, position % column_tiles);
                let (first, rows) = (column_tile * columns, scored.of_tile(row_tile).len());
                let count = columns.min(hidden_size - first);
                for (index, tile) in tiles.iter().enumerate() {
                    let place = row_tile * tiles.len() + index;
                    for (row, of_row) in out.chunks_exact_mut(columns).zip(&of_tiles[place * ROWS..][..rows]) {
                        if of_row.growth < 0.0 {
                            let factor = of_row.growth.exp2();
                            for sum in row {
                                *sum *= factor;
                            }
                        }
                    }
                    let tile_of_e = Block {
                        data: &exponentials[place * TILE..][..TILE],
                        rows,
                        columns: tile.columns(),
                        stride: COLUMNS,
                    };
                    let weight = head.weight_of(*tile).columns(first, count);
                    products.hidden(tile_of_e, weight, Sums { data: &mut *out, stride: columns, add: true }, scratch);
                }
            },
        );
    }

    /// Writes the unit gradients, `[M, H]`; gives σ_t·Σ' e of each row, relative to its state.
    fn finish<T: Element, W: Element>(
        &self,
        forward: &RowForward<'_>,
        scored: &ScoredRows<T>,
        head: &Head<'_, W>,
        sums: &[RowSums],
        rests: &[Rest],
        units: &mut [f32],
    ) -> Vec<(f64, f64)> {
        let rows = units.chunks_exact_mut(self.hidden_size).zip(&scored.rows).zip(sums.iter().zip(rests)).enumerate();
        rows.map(|(index, ((units, (_, target)), (sums, rest)))| {
            let (_, state, _) = sums.finish(forward);
            if state.s.is_nan() {
                units.fill(f32::NAN);
                return (f64::NAN, f64::NAN);
            }
            let coefficient = rest.sum * forward.scale.exact_slope(sums.target());
            let to_state = rescaled(rest.r, state.r);
            let factor = to_state / f64::from(state.s);
            self.write(index, units);
            UnitGradient { coefficient, to_common: 1.0, factor }.write(units, Some(head.weight().row(*target)));
            (coefficient * to_state, to_state)
        })
        .collect()
    }

    /// The sums of a row, `[H]`.
    pub(super) fn write(&self, row: usize, out: &mut [f32]) {
        let column_tiles = self.hidden_size.div_ceil(self.columns);
        for (column_tile, out) in out.chunks_mut(self.columns).enumerate() {
            let start = ((row / ROWS * column_tiles + column_tile) * ROWS + row % ROWS) * self.columns;
            out.copy_from_slice(&self.sums[start..][..out.len()]);
        }
    }
}

/// What turns Σ' e·σ·W of a row into its unit gradient, or into the share of some columns in it.
pub(super) struct UnitGradient {
    /// σ_t·Σ' e of all columns, relative to what is common to both sums; without the target 0.
    pub(super) coefficient: f64,
    /// The power of two that brings Σ' e·σ·W to that.
    pub(super) to_common: f64,
    /// From there to the row's state, over s.
    pub(super) factor: f64,
}

impl UnitGradient {
    /// In place. `weight`: the target's, where it is one of these columns.
    pub(super) fn write<W: Element>(&self, sums: &mut [f32], weight: Option<&[W]>) {
        let of_sum = |sum: f32| f64::from(sum) * self.to_common;
        match weight {
            Some(weight) => {
                for (sum, weight) in sums.iter_mut().zip(weight) {
                    *sum = ((self.coefficient * f64::from(weight.to_f32()) - of_sum(*sum)) * self.factor) as f32;
                }
            }
            None => sums.iter_mut().for_each(|sum| *sum = (-of_sum(*sum) * self.factor) as f32),
        }
    }
}
