//! Token log-probs straight from hidden states, forward, on the CPU.
//!
//! A task makes the logits of [`ROWS`] rows over a slice of the vocabulary, tile by tile, and folds each tile into the
//! rows' sums while it is in the second-level cache. A row is summed in units of [`COLUMNS`] columns, each relative to
//! its own 2^r, that come together in ascending order in f64, where scaling by a power of two is exact. So the bits of
//! a row's result depend on its hidden state and the head alone.
//!
//! Besides the outputs this takes, for M scored rows: a copy of their hidden states, at most 32·40·M bytes for the sums,
//! and for each thread a tile of 512 KiB and what a product packs of its operands: 304 KiB (without AVX-512 up to 1.5 MiB,
//! and as much again where types are not f32).

use crate::cpu::Cpu;
use crate::cpu::linear::kept_logits::KeptLogitsMut;
use crate::cpu::linear::product::{ProductScratch, Products};
use crate::cpu::linear::tiles::{COLUMNS, ROWS, ScoredRows, VocabTile};
use crate::cpu::linear::unit_gradient;
use crate::cpu::softmax::{PartialSums, Scale};
use crate::cpu::token_log_prob::RowForward;
use crate::element::Element;
use crate::error::Result;
use crate::host::{Head, Hidden, LinearOutputs, Targets, TokenLogProbs};
use crate::options::LogitOptions;
use crate::stage::linear::check_inputs;
use crate::stage::token_log_prob::SoftmaxState;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// The most slices that a vocabulary is divided into: how many tasks there are for one tile of rows.
const SLICES: usize = 32;

/// What is known of a row after a part of its vocabulary.
#[derive(Clone, Copy)]
pub(crate) struct RowSums {
    sums: PartialSums,
    /// The target's logit, from the part that it lies in; NaN from the others.
    target: f32,
    holds_target: bool,
}

impl RowSums {
    pub(crate) const EMPTY: RowSums = RowSums { sums: PartialSums::EMPTY, target: f32::NAN, holds_target: false };

    pub(crate) fn merge(self, other: Self) -> Self {
        let Self { target, holds_target, .. } = if other.holds_target { other } else { self };
        Self { sums: self.sums.merge(other.sums), target, holds_target }
    }

    pub(crate) fn r(&self) -> f32 {
        self.sums.r
    }

    /// The target's logit.
    pub(crate) fn target(&self) -> f32 {
        self.target
    }

    /// Log-prob, state and entropy of a row whose whole vocabulary has been seen.
    pub(crate) fn finish(&self, forward: &RowForward<'_>) -> (f32, SoftmaxState, f32) {
        forward.finish(self.sums, self.target)
    }
}

/// The sums of a row's logits in one tile; `column`: the target's, if it is there.
pub(crate) fn unit_sums(forward: &RowForward<'_>, logits: &[f32], column: Option<usize>) -> RowSums {
    let target = column.map_or(f32::NAN, |column| logits[column]);
    RowSums { sums: forward.sums(logits), target, holds_target: column.is_some() }
}

/// Adds a tile of logits, row stride [`COLUMNS`], to the sums of its rows.
fn fold(forward: &RowForward<'_>, logits: &[f32], rows: &[(usize, usize)], tile: VocabTile, sums: &mut [RowSums]) {
    for ((logits, sums), (_, target)) in logits.chunks(COLUMNS).zip(sums).zip(rows) {
        let column = tile.column_of(*target);
        *sums = sums.merge(unit_sums(forward, &logits[..tile.columns()], column));
    }
}

/// [`Backend::linear_token_log_probs`](crate::Backend::linear_token_log_probs).
pub(in crate::cpu) fn forward<T: Element, W: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    outputs: LinearOutputs<'_>,
) -> Result<()> {
    options.check_whole(head.vocab())?;
    check_inputs(&cpu, &hidden, head, targets)?;
    outputs.check(&cpu, &hidden, head, W::DTYPE)?;
    let TokenLogProbs { log_probs, states, mut entropies } = outputs.rows;
    log_probs.fill(0.0);
    states.fill(SoftmaxState::default());
    if let Some(entropies) = entropies.as_deref_mut() {
        entropies.fill(0.0);
    }

    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy: entropies.is_some() };
    let scored = ScoredRows::new(hidden.states, targets);
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let sums = match outputs.unit_gradients {
        Some(units) => {
            let (rows, vocab) = (scored.rows.len(), head.vocab());
            let kept = outputs.logit_gradients.map(|words| KeptLogitsMut::new(words, rows, vocab));
            unit_gradient::forward(&forward, products, &scored, head, units, kept)
        }
        None => all_sums(&forward, products, &scored, head),
    };
    for (row, sums) in scored.rows.iter().zip(sums) {
        let (log_prob, state, entropy) = sums.finish(&forward);
        log_probs[row.0] = log_prob;
        states[row.0] = state;
        if let Some(entropies) = entropies.as_deref_mut() {
            entropies[row.0] = entropy;
        }
    }
    Ok(())
}

/// How the tiles of a vocabulary are divided between tasks: by V alone.
#[derive(Clone, Copy)]
pub(crate) struct Slices {
    vocab: usize,
    tiles: usize,
    pub(crate) tiles_per_slice: usize,
}

impl Slices {
    pub(crate) fn new(vocab: usize) -> Self {
        let tiles = vocab.div_ceil(COLUMNS);
        Self { vocab, tiles, tiles_per_slice: tiles.div_ceil(SLICES) }
    }

    fn count(self) -> usize {
        self.tiles.div_ceil(self.tiles_per_slice)
    }

    /// The tiles of a slice.
    pub(crate) fn tiles(self, slice: usize) -> impl Iterator<Item = VocabTile> {
        let last = self.tiles.min((slice + 1) * self.tiles_per_slice);
        (slice * self.tiles_per_slice..last).map(move |tile| VocabTile::new(tile, self.vocab))
    }
}

/// Brings the sums of the slices of some rows together, in ascending order.
fn merge<'a>(parts: impl Iterator<Item = &'a [RowSums]>, rows: usize) -> Vec<RowSums> {
    let mut sums = vec![RowSums::EMPTY; rows];
    for part in parts {
        for (sums, part) in sums.iter_mut().zip(part) {
            *sums = sums.merge(*part);
        }
    }
    sums
}

/// The sums of every scored row over all of the vocabulary.
fn all_sums<T: Element, W: Element>(
    forward: &RowForward<'_>,
    products: Products,
    scored: &ScoredRows<T>,
    head: &Head<'_, W>,
) -> Vec<RowSums> {
    let slices = Slices::new(head.vocab());
    // Tiles of rows next to one another: they share a slice of the weight in the caches.
    let tasks = (0..slices.count() * scored.tiles()).into_par_iter();
    let parts: Vec<Vec<RowSums>> = tasks
        .map_init(
            || (ProductScratch::default(), vec![0.0; ROWS * COLUMNS]),
            |(scratch, logits), task| {
                let (slice, row_tile) = (task / scored.tiles(), task % scored.tiles());
                let rows = scored.of_tile(row_tile);
                let mut sums = vec![RowSums::EMPTY; rows.len()];
                for tile in slices.tiles(slice) {
                    head.logits(products, scored.hidden(row_tile), tile, scratch, logits);
                    fold(forward, logits, rows, tile, &mut sums);
                }
                sums
            },
        )
        .collect();
    (0..scored.tiles())
        .flat_map(|row_tile| {
            let parts = parts.iter().skip(row_tile).step_by(scored.tiles()).map(Vec::as_slice);
            merge(parts, scored.of_tile(row_tile).len())
        })
        .collect()
}
