//! Token log-probs straight from hidden states, backward, on the CPU.
//!
//! With D `[N, V]` the gradient of the logits, grad hidden = D·W and grad weight = Dᵀ·hidden. Chunks of the vocabulary,
//! one after another: the chunk's logits are made again and overwritten with D, tile by tile; then its rows of grad
//! weight are finished, and its part of grad hidden is added up in f32. The parts of a sum are those of tiles, in
//! ascending order: the results do not depend on how many tiles make a chunk, nor on the number of threads.
//!
//! Besides the gradients this takes, for M scored rows: a copy of their hidden states, and 4·M·H bytes for their gradient
//! in f32; for each thread, and for eight at least, up to 2·512 KiB of D; 2048·H bytes for each 512 columns of a chunk where
//! the weight's gradient is not f32; and for each thread what products pack, up to 560 KiB with AVX-512.

use crate::cpu::Cpu;
use crate::cpu::linear::kept_logits::KeptLogits;
use crate::cpu::linear::product::{Block, ProductScratch, Products, Sums};
use crate::cpu::linear::tiles::{COLUMNS, ROWS, ScoredRows, VocabTile};
use crate::cpu::token_log_prob_backward::{Backward, RowGradient, prepare};
use crate::element::{Dtype, Element};
use crate::error::Result;
use crate::host::{Head, Hidden, LinearGradients, MatrixMut, RowGradients, SavedLinear, Targets};
use crate::options::LogitOptions;
use crate::stage::linear::{check_gradients, check_inputs};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// Elements of a tile.
pub(crate) const TILE: usize = ROWS * COLUMNS;

/// The most columns of the gradient of hidden states that one task sums.
pub(crate) const HIDDEN_COLUMNS: usize = 512;

/// Tiles along the rows that a chunk has at most: the more, the less often the weight is read.
pub(crate) const ROW_TILES: usize = 2;

/// Tiles along the vocabulary that a chunk has at least, however few the threads.
const FEWEST_TILES: usize = 8;

/// [`Backend::linear_token_log_probs_backward`](crate::Backend::linear_token_log_probs_backward).
#[allow(clippy::too_many_arguments)]
pub(in crate::cpu) fn backward<T: Element, W: Element, G: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    saved: &SavedLinear<'_>,
    upstream: &RowGradients<'_>,
    gradients: LinearGradients<'_, T, G>,
) -> Result<()> {
    saved.check(&cpu, &hidden, head, W::DTYPE)?;
    check_inputs(&cpu, &hidden, head, targets)?;
    check_gradients(&cpu, &gradients, &hidden, head)?;
    let backward = prepare(cpu, hidden.states.rows(), head.vocab(), targets, options, &saved.rows, upstream)?;
    if gradients.hidden.is_none() && gradients.weight.is_none() && gradients.bias.is_none() {
        return Ok(());
    }
    let mut scored = ScoredRows::new(hidden.states, targets);
    let mut rows: Vec<RowGradient> = scored.rows.iter().map(|(row, _)| backward.row_gradient(*row)).collect();
    // The gradient of an entropy is no multiple of what was kept.
    let uses_kept = !matches!(upstream, RowGradients::PerRow { entropies: Some(_), .. });
    let mut gradients = gradients;
    if let (Some(units), true) = (saved.unit_gradients, uses_kept)
        && let Some(gradient) = gradients.hidden.take()
    {
        write_hidden(&backward, &rows, &scored, units, gradient);
    }
    if gradients.hidden.is_none() && gradients.weight.is_none() && gradients.bias.is_none() {
        return Ok(());
    }
    if gradients.accumulate {
        withhold(&mut rows, &mut scored);
    }
    let (count, vocab) = (scored.rows.len(), head.vocab());
    let kept = saved.logit_gradients.filter(|_| uses_kept && gradients.hidden.is_none());
    let kept: Option<KeptLogits<'_, W>> = kept.map(|words| KeptLogits::new(words, count, vocab));
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let mut sums = GradientSums::new(products, gradients, &scored, head);
    let chunk = chunk_tiles();
    let mut gradient = vec![0.0; ROW_TILES.min(scored.tiles()) * chunk * TILE];
    for first in (0..vocab.div_ceil(COLUMNS)).step_by(chunk) {
        let tiles = vocab_tiles(first, chunk, vocab);
        sums.begin(&tiles);
        for row_tile in (0..scored.tiles()).step_by(ROW_TILES) {
            let row_tiles = ROW_TILES.min(scored.tiles() - row_tile);
            let gradient = &mut gradient[..row_tiles * tiles.len() * TILE];
            gradient.par_chunks_exact_mut(TILE).enumerate().for_each_init(ProductScratch::default, |scratch, tile| {
                let (index, logits) = tile;
                let (row_tile, tile) = (row_tile + index / tiles.len(), tiles[index % tiles.len()]);
                if kept.is_none() {
                    head.logits(products, scored.hidden(row_tile), tile, scratch, logits);
                }
                let of_rows = rows[row_tile * ROWS..].iter().zip(scored.of_tile(row_tile)).enumerate();
                for (logits, (in_tile, (row, (_, target)))) in logits.chunks_exact_mut(COLUMNS).zip(of_rows) {
                    let (logits, column) = (&mut logits[..tile.columns()], tile.column_of(*target));
                    match (row, &kept) {
                        (RowGradient::Run(terms), Some(kept)) => {
                            kept.gradients(row_tile * ROWS + in_tile, terms.coefficient(), tile, column, logits);
                        }
                        _ => backward.overwrite(*row, logits, column),
                    }
                }
            });
            sums.add(head, &scored, row_tile, &tiles, gradient);
        }
        sums.end(&tiles);
    }
    sums.finish(&scored);
    Ok(())
}

/// The gradients of the hidden states from what they are for an upstream gradient of 1, `[M, H]`.
fn write_hidden<T: Element>(
    backward: &Backward<'_, '_, '_>,
    rows: &[RowGradient],
    scored: &ScoredRows<T>,
    units: &[f32],
    mut gradient: MatrixMut<'_, T>,
) {
    for row in 0..gradient.rows() {
        gradient.row_mut(row).fill(T::from_f32(0.0));
    }
    for ((of_row, (row, _)), units) in rows.iter().zip(&scored.rows).zip(units.chunks_exact(gradient.columns())) {
        let out = gradient.row_mut(*row);
        match of_row {
            RowGradient::Zero => {}
            RowGradient::Nan => out.fill(T::NAN),
            RowGradient::Run(terms) => {
                let factor = backward.unit_factor(terms);
                for (out, unit) in out.iter_mut().zip(units) {
                    *out = T::from_f32(factor * unit);
                }
            }
        }
    }
}

/// Tiles along the vocabulary that are worked on at once. It decides about memory, not about the results.
pub(crate) fn chunk_tiles() -> usize {
    FEWEST_TILES.max(rayon::current_num_threads())
}

/// The tiles `first..first + count` of the vocabulary, as far as there are any.
pub(crate) fn vocab_tiles(first: usize, count: usize, vocab: usize) -> Vec<VocabTile> {
    (first..vocab.div_ceil(COLUMNS).min(first.saturating_add(count))).map(|tile| VocabTile::new(tile, vocab)).collect()
}

/// Leaves rows that would add NaN or an infinity out of the sums over rows, so that a buffer that is added to keeps what is
/// in it.
fn withhold<T: Element>(rows: &mut [RowGradient], scored: &mut ScoredRows<T>) {
    for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| matches!(row, RowGradient::Nan)) {
        *row = RowGradient::Zero;
        scored.withhold(index);
    }
}

/// The gradients as they are summed.
struct GradientSums<'a, T: Element, G: Element> {
    products: Products,
    gradients: LinearGradients<'a, T, G>,
    /// Grad hidden in f32, by tiles of [`ROWS`] rows × `hidden_columns` columns, each contiguous: `[row tiles,
    /// column tiles, rows, columns]`. Empty where it is not wanted.
    hidden: Vec<f32>,
    hidden_columns: usize,
    hidden_size: usize,
    /// A chunk of grad weight in f32, `[columns, H]`, where it is not summed in place.
    weight: Vec<f32>,
    /// A chunk of grad bias.
    bias: Vec<f64>,
    /// Whether the next rows are the first of this chunk, and nothing is there to add to.
    fresh: bool,
}

impl<'a, T: Element, G: Element> GradientSums<'a, T, G> {
    fn new<W: Element>(
        products: Products,
        gradients: LinearGradients<'a, T, G>,
        scored: &ScoredRows<T>,
        head: &Head<'_, W>,
    ) -> Self {
        let hidden_size = head.weight().columns();
        let hidden_columns = hidden_size.div_ceil(hidden_size.div_ceil(HIDDEN_COLUMNS));
        let column_tiles = hidden_size.div_ceil(hidden_columns);
        let hidden = if gradients.hidden.is_some() { scored.tiles() * column_tiles * ROWS * hidden_columns } else { 0 };
        Self {
            products,
            gradients,
            hidden: vec![0.0; hidden],
            hidden_columns,
            hidden_size,
            weight: Vec::new(),
            bias: Vec::new(),
            fresh: true,
        }
    }

    /// Before the first rows of a chunk.
    fn begin(&mut self, tiles: &[VocabTile]) {
        self.fresh = true;
        if self.gradients.weight.is_some() && G::DTYPE != Dtype::F32 {
            self.weight.resize(tiles.len() * COLUMNS * self.hidden_size, 0.0);
        }
        if self.gradients.bias.is_some() {
            self.bias.clear();
            self.bias.resize(tiles.len() * COLUMNS, 0.0);
        }
    }

    /// Adds what tiles of D say, `[row tiles, vocabulary tiles, ROWS, COLUMNS]`.
    fn add<W: Element>(
        &mut self,
        head: &Head<'_, W>,
        scored: &ScoredRows<T>,
        first_row_tile: usize,
        tiles: &[VocabTile],
        gradient: &[f32],
    ) {
        let row_tiles = gradient.len() / (tiles.len() * TILE);
        // A tile of D, without the rows and columns behind its end.
        let tile_of = |row_tile: usize, index: usize| {
            let data = &gradient[(row_tile * tiles.len() + index) * TILE..][..TILE];
            let rows = scored.of_tile(first_row_tile + row_tile).len();
            Block { data, rows, columns: tiles[index].columns(), stride: COLUMNS }
        };
        self.add_bias(row_tiles, tiles, tile_of);
        let add = !self.fresh || (self.gradients.accumulate && G::DTYPE == Dtype::F32);
        self.fresh = false;
        let (products, hidden_size, hidden_columns) = (self.products, self.hidden_size, self.hidden_columns);
        let (weight, stride) = weight_rows(&mut self.gradients.weight, &mut self.weight, tiles, hidden_size);
        let column_tiles = hidden_size.div_ceil(hidden_columns);
        let hidden = if self.hidden.is_empty() {
            &mut []
        } else {
            &mut self.hidden[first_row_tile * column_tiles * ROWS * hidden_columns..]
                [..row_tiles * column_tiles * ROWS * hidden_columns]
        };
        rayon::join(
            || {
                weight.par_chunks_mut(COLUMNS * stride.max(1)).take(tiles.len()).enumerate().for_each_init(
                    ProductScratch::default,
                    |scratch, (index, out)| {
                        for row_tile in 0..row_tiles {
                            let hidden = scored.hidden(first_row_tile + row_tile);
                            let sums = Sums { data: &mut *out, stride, add: add || row_tile > 0 };
                            products.weight(tile_of(row_tile, index), hidden, sums, scratch);
                        }
                    },
                );
            },
            || {
                hidden.par_chunks_exact_mut(ROWS * hidden_columns).enumerate().for_each_init(
                    ProductScratch::default,
                    |scratch, (position, out)| {
                        let (row_tile, column_tile) = (position / column_tiles, position % column_tiles);
                        let first = column_tile * hidden_columns;
                        let count = hidden_columns.min(hidden_size - first);
                        for (index, tile) in tiles.iter().enumerate() {
                            let weight = head.weight_of(*tile).columns(first, count);
                            let sums = Sums { data: &mut *out, stride: hidden_columns, add: true };
                            products.hidden(tile_of(row_tile, index), weight, sums, scratch);
                        }
                    },
                );
            },
        );
    }

    /// Column sums of D, in f64.
    fn add_bias<'b>(
        &mut self,
        row_tiles: usize,
        tiles: &[VocabTile],
        tile_of: impl Fn(usize, usize) -> Block<'b, f32> + Sync,
    ) {
        self.bias.par_chunks_mut(COLUMNS).take(tiles.len()).enumerate().for_each(|(index, sums)| {
            for row_tile in 0..row_tiles {
                let tile = tile_of(row_tile, index);
                for row in tile.data.chunks_exact(COLUMNS).take(tile.rows) {
                    for (sum, gradient) in sums.iter_mut().zip(&row[..tile.columns]) {
                        *sum += f64::from(*gradient);
                    }
                }
            }
        });
    }

    /// Behind the last rows of a chunk: rounds its part of the gradients to their type.
    fn end(&mut self, tiles: &[VocabTile]) {
        let (Some(first), Some(last)) = (tiles.first(), tiles.last()) else { return };
        let accumulate = self.gradients.accumulate;
        if let Some(bias) = &mut self.gradients.bias {
            for (out, sum) in bias[first.first..last.last].iter_mut().zip(&self.bias) {
                let before = if accumulate { f64::from(out.to_f32()) } else { 0.0 };
                *out = G::from_f32((before + sum) as f32);
            }
        }
        let Some(weight) = &mut self.gradients.weight else { return };
        if self.fresh {
            // Without a scored row nothing was summed.
            if !accumulate {
                (first.first..last.last).for_each(|row| weight.row_mut(row).fill(G::from_f32(0.0)));
            }
            return;
        }
        if G::DTYPE == Dtype::F32 {
            return;
        }
        let stride = weight.row_stride();
        let out = weight.rows_mut(first.first, last.last);
        out.par_chunks_mut(stride).zip(self.weight.par_chunks(self.hidden_size)).for_each(|(out, sums)| {
            for (out, sum) in out.iter_mut().zip(sums) {
                let before = if accumulate { out.to_f32() } else { 0.0 };
                *out = G::from_f32(before + sum);
            }
        });
    }

    /// Rounds grad hidden to its type and puts it where its rows are.
    fn finish(&mut self, scored: &ScoredRows<T>) {
        let Some(gradient) = &mut self.gradients.hidden else { return };
        for row in 0..gradient.rows() {
            gradient.row_mut(row).fill(T::from_f32(0.0));
        }
        let columns = self.hidden_columns;
        let column_tiles = self.hidden_size.div_ceil(columns);
        for (index, (row, _)) in scored.rows.iter().enumerate() {
            let (row_tile, row_in_tile) = (index / ROWS, index % ROWS);
            for (column_tile, out) in gradient.row_mut(*row).chunks_mut(columns).enumerate() {
                let start = ((row_tile * column_tiles + column_tile) * ROWS + row_in_tile) * columns;
                for (out, sum) in out.iter_mut().zip(&self.hidden[start..]) {
                    *out = T::from_f32(*sum);
                }
            }
        }
        for index in &scored.withheld {
            gradient.row_mut(scored.rows[*index].0).fill(T::NAN);
        }
    }
}

/// Where a chunk of grad weight is summed, and its row stride: the buffer itself where that is f32. Empty where it is
/// not wanted.
fn weight_rows<'b, G: Element>(
    gradient: &'b mut Option<MatrixMut<'_, G>>,
    sums: &'b mut [f32],
    tiles: &[VocabTile],
    hidden_size: usize,
) -> (&'b mut [f32], usize) {
    match (gradient, tiles.first(), tiles.last()) {
        (Some(gradient), Some(first), Some(last)) if G::DTYPE == Dtype::F32 => {
            let stride = gradient.row_stride();
            (bytemuck::cast_slice_mut(gradient.rows_mut(first.first, last.last)), stride)
        }
        (Some(_), ..) => (sums, hidden_size),
        _ => (&mut [], 0),
    }
}
