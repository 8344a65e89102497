//! The contract of what ranks exchange of their sequences.

use crate::data::memory::{Memory, Place, check_view, check_view_mut};
use crate::data::rewards::{Rewards, Values};
use crate::error::{Error, Result};
use crate::options::LogRatio;
use bytemuck::{Pod, Zeroable};

/// What ranks exchange of a sequence, 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SequencePart {
    /// Which of all ranks' sequences it is; −1 for what only fills up, or holds a [`CountPart`].
    pub index: i64,
    /// Scored rows.
    pub scored_rows: i64,
    /// Policy less reference.
    pub log_ratio: f64,
    /// Of the policy.
    pub log_prob_sum: f64,
    /// 0 where entropies are not computed.
    pub entropy_sum: f64,
    /// 0 where it is not exchanged.
    pub reward: f64,
    /// 0 without a proposal.
    pub proposal_offset: f64,
    /// 0.
    pub reserved: f64,
}

/// In the place of a [`SequencePart`]: what a rank's backend has counted in its rows, in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct CountPart {
    /// −1.
    pub index: i64,
    /// As the backend writes them.
    pub counts: [u32; 14],
}

/// A backend's numbers of S sequences, each `[S]`.
#[derive(Debug)]
pub struct Sequences<'a, M: Memory> {
    /// Log-ratios.
    pub log_ratios: M::View<'a, f64>,
    /// Sums of the policy's log-probs.
    pub log_prob_sums: M::View<'a, f64>,
    /// Sums of the entropies, if they were computed.
    pub entropy_sums: Option<M::View<'a, f64>>,
    /// Scored rows.
    pub scored_rows: M::View<'a, i32>,
}

/// The same to write.
#[derive(Debug)]
pub struct SequencesMut<'a, M: Memory> {
    /// Log-ratios.
    pub log_ratios: M::ViewMut<'a, f64>,
    /// Sums of the policy's log-probs.
    pub log_prob_sums: M::ViewMut<'a, f64>,
    /// Sums of the entropies; `None`: not wanted.
    pub entropy_sums: Option<M::ViewMut<'a, f64>>,
    /// Scored rows.
    pub scored_rows: M::ViewMut<'a, i32>,
}

/// Rewards of all ranks' sequences, `[S]` each.
#[derive(Debug)]
pub struct RewardsMut<'a, M: Memory> {
    /// Rewards.
    pub values: M::ViewMut<'a, f64>,
    /// Proposal offsets; `None`: not wanted.
    pub proposal_offsets: Option<M::ViewMut<'a, f64>>,
}

/// How the parts of one sequence that lies on several ranks become its log-ratio.
#[derive(Debug, Clone)]
pub struct RowsOfRanks<'a, M: Memory> {
    /// P: the parts are `[P, S + 1]`, of each rank those of S sequences and its counts.
    pub ranks: usize,
    /// Sum or mean.
    pub log_ratio: LogRatio,
    /// What is subtracted from the sum of a sequence that has a scored row, `[S]`; `None`: nothing.
    pub reference: Option<M::View<'a, f64>>,
}

impl<M: Memory> Sequences<'_, M> {
    /// Checks that there are S of each, in the backend's memory; S.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P) -> Result<usize> {
        let sequences = M::length(&self.log_ratios);
        check_view(place, "log-ratios", &self.log_ratios, sequences)?;
        check_view(place, "log-prob sums", &self.log_prob_sums, sequences)?;
        check_view(place, "scored rows", &self.scored_rows, sequences)?;
        if let Some(sums) = &self.entropy_sums {
            check_view(place, "entropy sums", sums, sequences)?;
        }
        Ok(sequences)
    }
}

/// Checks that there are rewards of so many sequences, in the backend's memory.
pub(crate) fn check_rewards<P: Place>(
    place: &P,
    rewards: Option<&Rewards<'_, P::Memory>>,
    sequences: usize,
) -> Result<()> {
    let Some(rewards) = rewards else { return Ok(()) };
    match &rewards.values {
        Values::F32(values) => check_view(place, "rewards", values, sequences)?,
        Values::F64(values) => check_view(place, "rewards", values, sequences)?,
    }
    match &rewards.proposal {
        Some(offsets) => check_view(place, "proposal offsets", offsets, sequences),
        None => Ok(()),
    }
}

impl<M: Memory> SequencesMut<'_, M> {
    /// Checks that there are S of each, in the backend's memory; S.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P) -> Result<usize> {
        let sequences = M::length_mut(&self.log_ratios);
        check_view_mut(place, "log-ratios", &self.log_ratios, sequences)?;
        check_view_mut(place, "log-prob sums", &self.log_prob_sums, sequences)?;
        check_view_mut(place, "scored rows", &self.scored_rows, sequences)?;
        if let Some(sums) = &self.entropy_sums {
            check_view_mut(place, "entropy sums", sums, sequences)?;
        }
        Ok(sequences)
    }
}

impl<M: Memory> RewardsMut<'_, M> {
    /// Checks that there are S of each, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, sequences: usize) -> Result<()> {
        check_view_mut(place, "rewards", &self.values, sequences)?;
        match &self.proposal_offsets {
            Some(offsets) => check_view_mut(place, "proposal offsets", offsets, sequences),
            None => Ok(()),
        }
    }
}

impl<M: Memory> RowsOfRanks<'_, M> {
    /// Checks that parts of so many sequences are those of all ranks.
    pub(crate) fn check<P: Place<Memory = M>>(
        &self,
        place: &P,
        parts: &M::View<'_, SequencePart>,
        sequences: usize,
    ) -> Result<()> {
        let expected = self.ranks.saturating_mul(sequences.saturating_add(1));
        check_view(place, "parts of sequences", parts, expected)?;
        match &self.reference {
            Some(reference) => check_view(place, "reference log-probs per sequence", reference, sequences),
            None => Ok(()),
        }
    }
}

/// Checks that there are parts for so many sequences, in the backend's memory.
pub(crate) fn check_parts<P: Place>(
    place: &P,
    parts: &<P::Memory as Memory>::ViewMut<'_, SequencePart>,
    sequences: usize,
) -> Result<()> {
    place.check_place_mut("parts of sequences", parts)?;
    let given = P::Memory::length_mut(parts);
    if given >= sequences {
        Ok(())
    } else {
        Err(Error::Length { what: "parts of sequences", given, expected: sequences })
    }
}
