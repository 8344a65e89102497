//! Token log-probs straight from hidden states, forward, on the CPU.
//!
//! A task makes the logits of [`ROWS`] rows over some tiles of the vocabulary, one after the other, and folds each tile into the
//! rows' sums while it is in the second-level cache. A row is summed in units of [`COLUMNS`] columns, each relative to
//! its own 2^r, that come together in ascending order in f64, where scaling by a power of two is exact: the tiles of a task, the
//! tasks of a slice of [`SLICE`](crate::backend::SLICE) columns, the slices of the row. How many tiles make a task is decided by the
//! size of the whole vocabulary, and no task has tiles of two slices. So the bits of a row's result depend on its hidden state and
//! the head alone, and ranks that hold whole slices of the head make what one call over all of it makes.
//!
//! Besides the outputs this takes, for M scored rows: a copy of their hidden states, at most 40 bytes for each task and row (of up to
//! 32 tasks, or of 64 tiles each), and as many for each slice and row,
//! and for each thread a tile of 512 KiB and what a product packs of its operands: 304 KiB (without AVX-512 up to 1.5 MiB,
//! and as much again where types are not f32).

use crate::cpu::Cpu;
use crate::cpu::linear::kept_logits::KeptLogitsMut;
use crate::cpu::linear::product::{ProductScratch, Products};
use crate::cpu::linear::tiles::{COLUMNS, ROWS, ScoredRows, TILES_OF_SLICE, VocabTile};
use crate::cpu::linear::unit_gradient;
use crate::cpu::partial_row::PartialRow;
use crate::cpu::softmax::{PartialSums, Scale};
use crate::cpu::token_log_prob::RowForward;
use crate::element::Element;
use crate::error::Result;
use crate::host::{Head, Hidden, LinearOutputs, Targets, TokenLogProbs};
use crate::options::LogitOptions;
use crate::stage::linear::check_inputs;
use crate::stage::token_log_prob::SoftmaxState;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// About how many tasks there are for one tile of rows, where its vocabulary is not above a million: at most so many.
const TASKS: usize = 32;

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

    /// What ranks exchange.
    pub(crate) fn part(&self) -> PartialRow {
        // Adding 0 makes 0 of -0, as it becomes where ranks add up what they hold.
        PartialRow::new(self.sums, if self.holds_target { self.target + 0.0 } else { 0.0 })
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
    check_inputs(&cpu, &hidden, head, targets, head.vocab())?;
    outputs.check(&cpu, &hidden, head, W::DTYPE)?;
    let TokenLogProbs { log_probs, states, mut entropies } = outputs.rows;
    log_probs.fill(0.0);
    states.fill(SoftmaxState::default());
    if let Some(entropies) = entropies.as_deref_mut() {
        entropies.fill(0.0);
    }

    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy: entropies.is_some() };
    let scored = ScoredRows::new(hidden.states, targets, options.shard_of(head.vocab()), head.vocab());
    let division = Division::new(head.vocab(), head.vocab());
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let sums = match outputs.unit_gradients {
        Some(units) => {
            let (rows, vocab) = (scored.rows.len(), head.vocab());
            let kept = outputs.logit_gradients.map(|words| KeptLogitsMut::new(words, rows, vocab));
            unit_gradient::forward(&forward, products, &scored, head, division, units, kept)
        }
        None => merge(&all_sums(&forward, products, &scored, head, division), scored.rows.len()),
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

/// How the tiles of a head are divided between tasks, and tasks between slices.
#[derive(Clone, Copy)]
pub(crate) struct Division {
    columns: usize,
    tiles: usize,
    /// A power of two, so that a slice has a whole number of tasks.
    pub(crate) tiles_of_task: usize,
}

impl Division {
    /// Of a head that has so many columns of a vocabulary.
    pub(crate) fn new(columns: usize, vocab: usize) -> Self {
        let tiles_of_task = vocab.div_ceil(COLUMNS).div_ceil(TASKS).next_power_of_two().min(TILES_OF_SLICE);
        Self { columns, tiles: columns.div_ceil(COLUMNS), tiles_of_task }
    }

    fn tasks(self) -> usize {
        self.tiles.div_ceil(self.tiles_of_task)
    }

    fn tasks_of_slice(self) -> usize {
        TILES_OF_SLICE / self.tiles_of_task
    }

    pub(crate) fn slices(self) -> usize {
        self.tiles.div_ceil(TILES_OF_SLICE)
    }

    /// The tiles of a task.
    fn tiles(self, task: usize) -> impl Iterator<Item = VocabTile> {
        let last = self.tiles.min((task + 1) * self.tiles_of_task);
        (task * self.tiles_of_task..last).map(move |tile| VocabTile::new(tile, self.columns))
    }
}

/// Adds one sum of each row to that of the same row.
fn add(sums: &mut [RowSums], parts: &[RowSums]) {
    for (sums, part) in sums.iter_mut().zip(parts) {
        *sums = sums.merge(*part);
    }
}

/// The sums of some rows over all slices, in ascending order.
pub(crate) fn merge(slices: &[Vec<RowSums>], rows: usize) -> Vec<RowSums> {
    let mut sums = vec![RowSums::EMPTY; rows];
    for slice in slices {
        add(&mut sums, slice);
    }
    sums
}

/// The sums of every scored row over each slice of the head.
pub(crate) fn all_sums<T: Element, W: Element>(
    forward: &RowForward<'_>,
    products: Products,
    scored: &ScoredRows<T>,
    head: &Head<'_, W>,
    division: Division,
) -> Vec<Vec<RowSums>> {
    // Tiles of rows next to one another: they share a part of the weight in the caches.
    let tasks = (0..division.tasks() * scored.tiles()).into_par_iter();
    let parts: Vec<Vec<RowSums>> = tasks
        .map_init(
            || (ProductScratch::default(), vec![0.0; ROWS * COLUMNS]),
            |(scratch, logits), index| {
                let (task, row_tile) = (index / scored.tiles(), index % scored.tiles());
                let rows = scored.of_tile(row_tile);
                let mut sums = vec![RowSums::EMPTY; rows.len()];
                for tile in division.tiles(task) {
                    head.logits(products, scored.hidden(row_tile), tile, scratch, logits);
                    fold(forward, logits, rows, tile, &mut sums);
                }
                sums
            },
        )
        .collect();
    let mut slices = vec![vec![RowSums::EMPTY; scored.rows.len()]; division.slices()];
    for (index, part) in parts.iter().enumerate() {
        let (task, row_tile) = (index / scored.tiles(), index % scored.tiles());
        add(&mut slices[task / division.tasks_of_slice()][row_tile * ROWS..], part);
    }
    slices
}
