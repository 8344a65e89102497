//! Losses that are a sum over rows, straight from hidden states, on the CPU: forward and backward in three products.
//!
//! The logits of 256 rows over all of the vocabulary are made, folded, and then overwritten with their gradient, so
//! that they need not be made a second time. For that they are held: 1 KiB for each column of the vocabulary, whatever
//! N. The gradient of the weight is read and written once per 256 rows; where it is not f32 it is summed in a buffer of
//! its own, 4·V·H bytes, because sums over rows rounded to 16 bits after each tile would lose their digits.

use crate::cpu::Cpu;
use crate::cpu::linear::log_prob::{RowSums, Slices, fold};
use crate::cpu::linear::log_prob_backward::{GradientSums, TILE, overwrite, vocab_tiles, withhold};
use crate::cpu::linear::product::{ProductScratch, Products};
use crate::cpu::linear::tiles::{ROWS, ScoredRows};
use crate::cpu::softmax::Scale;
use crate::cpu::token_log_prob::RowForward;
use crate::cpu::token_log_prob_backward::{Backward, RowGradient};
use crate::element::Element;
use crate::error::Result;
use crate::host::{Head, Hidden, LinearGradients, RowGradients, RowLosses, SavedRows, Targets};
use crate::options::LogitOptions;
use crate::stage::linear::{check_gradients, check_inputs};
use crate::stage::row_loss::RowLoss;
use crate::stage::token_log_prob::SoftmaxState;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// [`Backend::linear_row_loss`](crate::Backend::linear_row_loss): the bits are those of the two passes.
#[allow(clippy::too_many_arguments)]
pub(in crate::cpu) fn row_loss<T: Element, W: Element, G: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    loss: RowLoss<&[f32]>,
    outputs: RowLosses<'_>,
    gradients: LinearGradients<'_, T, G>,
) -> Result<()> {
    let rows = hidden.states.rows();
    check_inputs(&cpu, &hidden, head, targets)?;
    check_gradients(&cpu, &gradients, &hidden, head)?;
    loss.check(rows, |slice| slice.len())?;
    loss.check_numbers(&targets, options)?;
    outputs.check(&cpu, rows)?;
    let RowLosses { log_probs, losses } = outputs;
    log_probs.fill(0.0);
    losses.fill(0.0);

    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy: false };
    let accumulate = gradients.accumulate;
    let mut scored = ScoredRows::new(hidden.states, targets);
    let slices = Slices::new(head.vocab());
    let tiles = vocab_tiles(0, usize::MAX, head.vocab());
    let mut logits = vec![0.0; if scored.rows.is_empty() { 0 } else { tiles.len() * TILE }];
    let (mut states, mut row_gradients) = (vec![SoftmaxState::default(); rows], vec![0.0; rows]);
    let products = Products::new(cpu.instruction_set(), T::DTYPE, W::DTYPE);
    let mut sums = GradientSums::new(products, gradients, &scored, head);
    sums.begin(&tiles);
    for row_tile in 0..scored.tiles() {
        let scored_rows = scored.of_tile(row_tile);
        let parts: Vec<Vec<RowSums>> = logits
            .par_chunks_mut(slices.tiles_per_slice * TILE)
            .enumerate()
            .map_init(ProductScratch::default, |scratch, (slice, logits)| {
                let mut sums = vec![RowSums::EMPTY; scored_rows.len()];
                for (tile, logits) in slices.tiles(slice).zip(logits.chunks_exact_mut(TILE)) {
                    head.logits(products, scored.hidden(row_tile), tile, scratch, logits);
                    fold(&forward, logits, scored_rows, tile, &mut sums);
                }
                sums
            })
            .collect();
        for ((row, _), sums) in scored_rows.iter().zip(slices.merge(parts.iter().map(Vec::as_slice), scored_rows)) {
            let (log_prob, state, _) = sums.finish(&forward);
            (losses[*row], row_gradients[*row]) = loss.at(*row, log_prob);
            log_probs[*row] = log_prob;
            states[*row] = state;
        }

        let saved = SavedRows { states: &states, entropies: None };
        let upstream = RowGradients::PerRow { log_probs: &row_gradients, entropies: None };
        let backward = Backward::new(cpu.instructions, targets, options, saved, upstream);
        let mut rows: Vec<RowGradient> = scored_rows.iter().map(|(row, _)| backward.row_gradient(*row)).collect();
        if accumulate {
            withhold(&mut rows, &mut scored, row_tile * ROWS);
        }
        logits.par_chunks_exact_mut(TILE).zip(&tiles).for_each(|(logits, tile)| {
            overwrite(&backward, &rows, &scored, row_tile, *tile, logits);
        });
        sums.add(head, &scored, row_tile, &tiles, &logits);
    }
    sums.end(&tiles);
    sums.finish(&scored);
    Ok(())
}
