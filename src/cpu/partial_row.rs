//! Rows whose columns lie on several ranks, on the CPU: a rank's part of each row, and the whole of it from all ranks' parts.

use crate::cpu::Cpu;
use crate::cpu::softmax::{PartialSums, Scale};
use crate::cpu::token_log_prob::{GRAIN, RowForward};
use crate::data::shard::SLICE;
use crate::element::Element;
use crate::error::Result;
use crate::host::{Matrix, Targets, TokenLogProbs};
use crate::options::LogitOptions;
use crate::stage::partial_row::{per_row, per_row_of_ranks};
use crate::stage::token_log_prob::{SoftmaxState, check_logits};
use rayon::prelude::*;

/// What the CPU keeps of one slice of a row, for ranks to exchange. 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PartialRow {
    /// Exponent of the scale of the sums, in base 2; an integer.
    pub r: f32,
    /// The target's logit, where it is one of these columns; else 0.
    pub target: f32,
    /// Σ 2^(z·log2 e − r).
    pub sum: f64,
    /// The same, each term times its exponent; for the entropy.
    pub weighted: f64,
}

impl PartialRow {
    /// No column at all.
    pub(super) const EMPTY: Self = Self::new(PartialSums::EMPTY, 0.0);

    pub(super) const fn new(sums: PartialSums, target: f32) -> Self {
        Self { r: sums.r, target, sum: sums.sum, weighted: sums.weighted }
    }

    pub(super) fn sums(self) -> PartialSums {
        PartialSums { r: self.r, sum: self.sum, weighted: self.weighted }
    }
}

/// [`Backend::partial_rows`](crate::Backend::partial_rows).
pub(super) fn partial_rows<T: Element>(
    cpu: Cpu,
    logits: &Matrix<'_, T>,
    targets: Targets<'_>,
    options: &LogitOptions,
    entropy: bool,
    partial_rows: &mut [PartialRow],
) -> Result<()> {
    let rows = logits.rows();
    check_logits(&cpu, logits)?;
    let shard = options.shard_of(logits.columns());
    targets.check(rows, shard.vocab())?;
    let per_row = per_row(partial_rows.len(), rows, logits.columns())?;
    let scale = Scale::new(options);
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy };
    let rows_of_grain = GRAIN.div_ceil(logits.columns());
    partial_rows.par_chunks_mut(per_row).with_min_len(rows_of_grain).enumerate().for_each(|(row, parts)| {
        parts.fill(PartialRow::EMPTY);
        let Some(target) = targets.column(row) else { return };
        let logits = &logits.row(row)[..shard.columns(logits.columns())];
        let target = shard.column_of(target, logits.len());
        parts.par_iter_mut().zip(logits.par_chunks(SLICE)).enumerate().for_each(|(slice, (part, columns))| {
            let target = target.and_then(|target| target.checked_sub(slice * SLICE));
            // Adding 0 makes 0 of -0, as it becomes where ranks add up what they hold.
            let target = target.and_then(|target| columns.get(target)).map_or(0.0, |logit| logit.to_f32() + 0.0);
            *part = PartialRow::new(forward.sums(columns), target);
        });
    });
    Ok(())
}

/// [`Backend::merge_rows`](crate::Backend::merge_rows).
pub(super) fn merge_rows(
    cpu: Cpu,
    partial_rows: &[PartialRow],
    ranks: usize,
    targets: Targets<'_>,
    options: &LogitOptions,
    outputs: TokenLogProbs<'_>,
) -> Result<()> {
    let rows = targets.len();
    let per_row = per_row_of_ranks(partial_rows.len(), rows, ranks)?;
    outputs.check(&cpu, rows)?;
    let scale = Scale::new(options);
    let TokenLogProbs { log_probs, states, mut entropies } = outputs;
    let forward = RowForward { instructions: cpu.instructions, scale: &scale, entropy: entropies.is_some() };
    for row in 0..rows {
        let (log_prob, state, entropy) = if targets.is_scored(row) {
            let parts = (0..ranks).flat_map(|rank| &partial_rows[(rank * rows + row) * per_row..][..per_row]);
            let (sums, target) = merged(parts);
            forward.finish(sums, target)
        } else {
            (0.0, SoftmaxState::default(), 0.0)
        };
        log_probs[row] = log_prob;
        states[row] = state;
        if let Some(entropies) = entropies.as_deref_mut() {
            entropies[row] = entropy;
        }
    }
    Ok(())
}

/// The sums of all parts of a row, in ascending order as those of its slices are added up in one call, and its target's logit.
pub(super) fn merged<'a>(parts: impl Iterator<Item = &'a PartialRow>) -> (PartialSums, f32) {
    parts.fold((PartialSums::EMPTY, 0.0), |(sums, target), part| (sums.merge(part.sums()), target + part.target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch::Available;
    use crate::cpu::token_log_prob::tests::slices_of_many_sizes;

    #[test]
    fn parts_are_added_up_as_slices_are() {
        let logits = slices_of_many_sizes();
        let scale = Scale::new(&LogitOptions::default());
        let forward = RowForward { instructions: Available::best(), scale: &scale, entropy: true };
        let parts: Vec<PartialRow> =
            logits.chunks(SLICE).map(|columns| PartialRow::new(forward.sums(columns), 0.0)).collect();
        let bits = |sums: PartialSums| (sums.r.to_bits(), sums.sum.to_bits(), sums.weighted.to_bits());
        assert_eq!(bits(merged(parts.iter()).0), bits(forward.sums(&logits)));
        assert_ne!(bits(merged(parts.iter().rev()).0), bits(forward.sums(&logits)), "the order shows");
    }
}
