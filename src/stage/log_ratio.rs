//! The contract of the log-ratio stage: what it reads, writes and refuses.

use crate::data::batch::Batch;
use crate::data::memory::{Host, Memory, Place, check_view, check_view_mut};
use crate::data::reference::Reference;
use crate::data::targets::Targets;
use crate::error::{Error, Result};
use crate::stage::objective::check_finite;

/// What the log-ratio stage reads of the token log-prob stage, one number per row.
#[derive(Debug, Clone)]
pub struct RowLogProbs<'a, M: Memory> {
    /// The policy's log-probs, N.
    pub log_probs: M::View<'a, f32>,
    /// Entropies, N, where their sums are wanted.
    pub entropies: Option<M::View<'a, f32>>,
    /// Which rows are scored, N.
    pub targets: Targets<'a, M>,
}

/// Where the log-ratio stage writes.
#[derive(Debug)]
pub struct LogRatioOutputs<'a, M: Memory> {
    /// Log-ratios, S; 0 for a sequence without a scored row.
    pub log_ratios: M::ViewMut<'a, f64>,
    /// Sums of the policy's log-probs over the scored rows, S.
    pub log_prob_sums: M::ViewMut<'a, f64>,
    /// Sums of the entropies over the scored rows, S, for which [`RowLogProbs::entropies`] are needed; `None`: not
    /// computed.
    pub entropy_sums: Option<M::ViewMut<'a, f64>>,
    /// Scored rows, S.
    pub scored_rows: M::ViewMut<'a, i32>,
    /// The sequence of each row, N.
    pub row_sequences: M::ViewMut<'a, i32>,
    /// The target of each row, N, as a backward pass takes it: a copy, in case the targets do not last so long.
    pub row_targets: M::ViewMut<'a, u32>,
}

impl Copy for RowLogProbs<'_, Host> {}

impl<M: Memory> RowLogProbs<'_, M> {
    /// Checks that there is a number per row, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, rows: usize) -> Result<()> {
        check_view(place, "log-probs", &self.log_probs, rows)?;
        check_targets(place, &self.targets, rows)?;
        self.entropies.as_ref().map_or(Ok(()), |entropies| check_view(place, "entropies", entropies, rows))
    }
}

impl<M: Memory> LogRatioOutputs<'_, M> {
    /// Checks that there is an entry for each sequence and row, in the backend's memory, and that there is something to sum.
    pub(crate) fn check<P: Place<Memory = M>>(
        &self,
        place: &P,
        batch: &Batch,
        rows: &RowLogProbs<'_, M>,
    ) -> Result<()> {
        let sequences = batch.sequences();
        check_view_mut(place, "row sequences", &self.row_sequences, batch.rows())?;
        check_view_mut(place, "row targets", &self.row_targets, batch.rows())?;
        check_view_mut(place, "log-ratios", &self.log_ratios, sequences)?;
        check_view_mut(place, "log-prob sums", &self.log_prob_sums, sequences)?;
        check_view_mut(place, "scored rows", &self.scored_rows, sequences)?;
        let Some(sums) = &self.entropy_sums else { return Ok(()) };
        check_view_mut(place, "entropy sums", sums, sequences)?;
        if rows.entropies.is_none() { Err(Error::EntropiesNotKept) } else { Ok(()) }
    }
}

/// Checks that there is an id per row, in the backend's memory. Whether an id is a column only the CPU sees.
pub(crate) fn check_targets<P: Place>(place: &P, targets: &Targets<'_, P::Memory>, rows: usize) -> Result<()> {
    match targets {
        Targets::U32(ids) => check_view(place, "targets", ids, rows),
        Targets::I64(ids) => check_view(place, "targets", ids, rows),
    }
}

/// Checks that the batch divides exactly the rows that there are.
pub(crate) fn check_rows(batch: &Batch, rows: usize) -> Result<()> {
    if batch.rows() == rows {
        Ok(())
    } else {
        Err(Error::OffsetsEnd { what: "sequence offsets", last: batch.rows(), expected: rows })
    }
}

/// Checks the length of the reference, and where it lies.
pub(crate) fn check_reference<P: Place>(place: &P, reference: &Reference<'_, P::Memory>, batch: &Batch) -> Result<()> {
    match reference {
        Reference::PerToken(view) => check_view(place, "reference log-probs per token", view, batch.rows()),
        Reference::PerSequence(view) => check_view(place, "reference log-probs per sequence", view, batch.sequences()),
        Reference::None => Ok(()),
    }
}

/// Checks that a reference of the right length is finite wherever a row is scored.
pub(crate) fn check_finite_reference(
    reference: &Reference<'_, Host>,
    targets: &Targets<'_, Host>,
    batch: &Batch,
) -> Result<()> {
    match reference {
        Reference::PerToken(log_probs) => {
            for (sequence, rows) in batch.sequence_ranges().enumerate() {
                for row in rows {
                    let value = f64::from(log_probs[row]);
                    if !value.is_finite() && targets.is_scored(row) {
                        return Err(Error::NotFinite { what: "reference log-prob", sequence, value });
                    }
                }
            }
            Ok(())
        }
        Reference::PerSequence(log_probs) => check_finite("reference log-prob", log_probs.iter().copied()),
        Reference::None => Ok(()),
    }
}
