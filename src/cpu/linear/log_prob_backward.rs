//! Token log-probs straight from hidden states, backward, on the CPU.
//!
//! With D `[N, V]` the gradient of the logits, grad hidden = D·W and grad weight = Dᵀ·hidden. Chunks of the vocabulary,
//! one after another: the chunk's logits of all rows are made again and overwritten with D, tile by tile; then its rows of grad
//! weight are finished, and its part of grad hidden is added up in f32. The parts of a sum are those of tiles, in
//! ascending order: the results do not depend on how many tiles make a chunk, nor on the number of threads.
//!
//! Besides the gradients this takes, for M scored rows: a copy of their hidden states, and 4·M·H bytes for their gradient
//! in f32; for D 512 KiB for each thread, and for eight at least, twice, or where that is more 2048·M bytes for each eight threads;
//! and for each thread what products pack, up to 560 KiB with AVX-512, and up to 256 KiB of the weight's gradient where that is
//! not f32.

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
use rayon::slice::ParallelSliceMut;

/// Elements of a tile.
pub(crate) const TILE: usize = ROWS * COLUMNS;

/// The most columns of the gradient of hidden states that one task sums.
pub(crate) const HIDDEN_COLUMNS: usize = 512;

/// Half of the tiles that a chunk has at least, however few the threads.
const FEWEST_TILES: usize = 8;

/// How many threads have work enough with one tile along the vocabulary, where there are many along the rows.
const THREADS_OF_A_TILE: usize = 8;

/// Columns of the vocabulary whose gradient of the weight is one task's.
const PIECE: usize = COLUMNS / PIECES;

/// Such tasks of a tile.
const PIECES: usize = 4;

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
    let shard = options.shard_of(head.vocab());
    saved.check(&cpu, &hidden, head, W::DTYPE, options)?;
    check_inputs(&cpu, &hidden, head, targets, shard.vocab())?;
    check_gradients(&cpu, &gradients, &hidden, head)?;
    let backward = prepare(cpu, hidden.states.rows(), head.vocab(), targets, options, &saved.rows, upstream)?;
    if gradients.hidden.is_none() && gradients.weight.is_none() && gradients.bias.is_none() {
        return Ok(());
    }
    let head = &head.without_padding(shard);
    let mut scored = ScoredRows::new(hidden.states, targets, shard, head.vocab());
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
    if count == 0 {
        clear(gradients);
        return Ok(());
    }
    clear_head(&mut gradients, vocab);
    let kept = saved.logit_gradients.filter(|_| uses_kept && gradients.hidden.is_none());
    let kept: Option<KeptLogits<'_, W>> = kept.map(|words| KeptLogits::new(words, count, vocab));
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let mut sums = GradientSums::new(products, gradients, &scored, head);
    let chunk = chunk_tiles(scored.tiles());
    let mut gradient = vec![0.0; scored.tiles() * chunk.min(vocab.div_ceil(COLUMNS)) * TILE];
    for first in (0..vocab.div_ceil(COLUMNS)).step_by(chunk) {
        let tiles = vocab_tiles(first, chunk, vocab);
        let gradient = &mut gradient[..scored.tiles() * tiles.len() * TILE];
        gradient.par_chunks_exact_mut(TILE).enumerate().for_each_init(ProductScratch::default, |scratch, tile| {
            let (index, logits) = tile;
            let (row_tile, tile) = (index / tiles.len(), tiles[index % tiles.len()]);
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
        sums.add(head, &scored, &LogitGradients { tiles: &tiles, data: gradient });
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

/// Tiles along the vocabulary that are worked on at once, for all `row_tiles` tiles of rows: so the gradient of the weight, and
/// of the bias, is finished chunk by chunk, and no more than a task's part of it is held in f32. Enough tiles that every thread
/// has work, and pieces of the weight's gradient too. It decides about memory, not about the results.
pub(crate) fn chunk_tiles(row_tiles: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tiles = 2 * FEWEST_TILES.max(threads);
    threads.div_ceil(THREADS_OF_A_TILE).max(tiles / row_tiles.max(2))
}

/// The gradients where no row is scored. What is added to stays as it is.
fn clear<T: Element, G: Element>(mut gradients: LinearGradients<'_, T, G>) {
    if let Some(hidden) = &mut gradients.hidden {
        (0..hidden.rows()).for_each(|row| hidden.row_mut(row).fill(T::from_f32(0.0)));
    }
    clear_head(&mut gradients, 0);
}

/// The gradients of the head from column `first` on where no row has any. What is added to stays as it is.
fn clear_head<T: Element, G: Element>(gradients: &mut LinearGradients<'_, T, G>, first: usize) {
    if gradients.accumulate {
        return;
    }
    if let Some(weight) = &mut gradients.weight {
        (first..weight.rows()).for_each(|row| weight.row_mut(row).fill(G::from_f32(0.0)));
    }
    if let Some(bias) = &mut gradients.bias {
        bias[first..].fill(G::from_f32(0.0));
    }
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

/// D of all rows in a chunk of the vocabulary, `[row tiles, vocabulary tiles, ROWS, COLUMNS]`.
struct LogitGradients<'a> {
    tiles: &'a [VocabTile],
    data: &'a [f32],
}

impl<'a> LogitGradients<'a> {
    fn row_tiles(&self) -> usize {
        self.data.len() / (self.tiles.len() * TILE)
    }

    /// A tile, without the rows and columns that only fill it up.
    fn tile<T: Element>(&self, scored: &ScoredRows<T>, row_tile: usize, index: usize) -> Block<'a, f32> {
        let data = &self.data[(row_tile * self.tiles.len() + index) * TILE..][..TILE];
        let rows = scored.of_tile(row_tile).len();
        Block { data, rows, columns: self.tiles[index].columns(), stride: COLUMNS }
    }

    /// [`PIECE`] columns of a tile, or what there is of them.
    fn piece<T: Element>(&self, scored: &ScoredRows<T>, row_tile: usize, piece: usize) -> Block<'a, f32> {
        let tile = self.tile(scored, row_tile, piece / PIECES);
        let first = piece % PIECES * PIECE;
        tile.columns(first, PIECE.min(tile.columns - first))
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
        Self { products, gradients, hidden: vec![0.0; hidden], hidden_columns, hidden_size }
    }

    /// Adds what a chunk of D says to grad hidden, and finishes its part of the other gradients.
    fn add<W: Element>(&mut self, head: &Head<'_, W>, scored: &ScoredRows<T>, chunk: &LogitGradients<'_>) {
        let (products, hidden_size, hidden_columns) = (self.products, self.hidden_size, self.hidden_columns);
        let (first, last) = (chunk.tiles[0].first, chunk.tiles[chunk.tiles.len() - 1].last);
        let accumulate = self.gradients.accumulate;
        if let Some(bias) = &mut self.gradients.bias {
            write_bias(&mut bias[first..last], accumulate, scored, chunk);
        }
        let (weight, hidden) = (&mut self.gradients.weight, &mut self.hidden);
        rayon::join(
            || {
                let Some(weight) = weight else { return };
                let stride = weight.row_stride();
                let pieces = weight.rows_mut(first, last).par_chunks_mut(PIECE * stride).enumerate();
                let start = || (ProductScratch::default(), Vec::new());
                pieces.for_each_init(start, |(scratch, sums), (piece, out)| {
                    let parts = |row_tile: usize| chunk.piece(scored, row_tile, piece);
                    let mut out = WeightPiece { out, stride, accumulate, columns: hidden_size };
                    out.write(products, scored, parts, hidden_columns, scratch, sums);
                });
            },
            || {
                let column_tiles = hidden_size.div_ceil(hidden_columns);
                hidden.par_chunks_exact_mut(ROWS * hidden_columns).enumerate().for_each_init(
                    ProductScratch::default,
                    |scratch, (position, out)| {
                        let (row_tile, column_tile) = (position / column_tiles, position % column_tiles);
                        let first = column_tile * hidden_columns;
                        let count = hidden_columns.min(hidden_size - first);
                        for (index, tile) in chunk.tiles.iter().enumerate() {
                            let weight = head.weight_of(*tile).columns(first, count);
                            let sums = Sums { data: &mut *out, stride: hidden_columns, add: true };
                            products.hidden(chunk.tile(scored, row_tile, index), weight, sums, scratch);
                        }
                    },
                );
            },
        );
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

/// Grad bias of a chunk: column sums of D, in f64.
fn write_bias<T: Element, G: Element>(
    bias: &mut [G],
    accumulate: bool,
    scored: &ScoredRows<T>,
    chunk: &LogitGradients<'_>,
) {
    bias.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, out)| {
        let mut sums = [0.0; COLUMNS];
        for row_tile in 0..chunk.row_tiles() {
            let tile = chunk.tile(scored, row_tile, index);
            for row in tile.data.chunks_exact(COLUMNS).take(tile.rows) {
                for (sum, gradient) in sums.iter_mut().zip(&row[..tile.columns]) {
                    *sum += f64::from(*gradient);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            let before = if accumulate { f64::from(out.to_f32()) } else { 0.0 };
            *out = G::from_f32((before + sum) as f32);
        }
    });
}

/// Grad weight of [`PIECE`] columns of the vocabulary, `[PIECE, H]`.
struct WeightPiece<'a, G> {
    out: &'a mut [G],
    stride: usize,
    columns: usize,
    accumulate: bool,
}

impl<G: Element> WeightPiece<'_, G> {
    /// `piece`: the piece of D of a tile of rows. What is f32 is summed in place; anything else in `sums`, at most `width`
    /// columns at once, and rounded once.
    fn write<'b, T: Element>(
        &mut self,
        products: Products,
        scored: &ScoredRows<T>,
        piece: impl Fn(usize) -> Block<'b, f32>,
        width: usize,
        scratch: &mut ProductScratch,
        sums: &mut Vec<f32>,
    ) {
        let (stride, accumulate) = (self.stride, self.accumulate);
        if G::DTYPE == Dtype::F32 {
            let out: &mut [f32] = bytemuck::cast_slice_mut(self.out);
            for row_tile in 0..scored.tiles() {
                let sums = Sums { data: &mut *out, stride, add: accumulate || row_tile > 0 };
                products.weight(piece(row_tile), scored.hidden(row_tile), sums, scratch);
            }
            return;
        }
        sums.resize(PIECE * width, 0.0);
        for first in (0..self.columns).step_by(width) {
            let count = width.min(self.columns - first);
            for row_tile in 0..scored.tiles() {
                let hidden = scored.hidden(row_tile).columns(first, count);
                let sums = Sums { data: &mut *sums, stride: width, add: row_tile > 0 };
                products.weight(piece(row_tile), hidden, sums, scratch);
            }
            for (out, sums) in self.out.chunks_mut(stride).zip(sums.chunks_exact(width)) {
                for (out, sum) in out[first..][..count].iter_mut().zip(sums) {
                    let before = if accumulate { out.to_f32() } else { 0.0 };
                    *out = G::from_f32(before + sum);
                }
            }
        }
    }
}
