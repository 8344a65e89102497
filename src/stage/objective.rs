//! The contract of the objective stage: what it reads, writes and refuses.

use crate::data::batch::Batch;
use crate::data::memory::{Host, Memory, Place, check_view, check_view_mut};
use crate::data::rewards::Rewards;
use crate::error::{Error, Result, check_length};
use crate::objective::{Objective, Target};
use crate::options::LogRatio;
use bytemuck::{Pod, Zeroable};

/// Where the objective stage writes.
#[derive(Debug)]
pub struct ObjectiveOutputs<'a, M: Memory> {
    /// Loss of each group, G, before the reduction.
    pub group_losses: M::ViewMut<'a, f64>,
    /// d loss / d log-ratio of each sequence, S, with β_π and the reduction's weight in it.
    pub coefficients: M::ViewMut<'a, f64>,
    /// What a trainer logs of each group, G.
    pub statistics: M::ViewMut<'a, GroupStatistics>,
    /// The gradient of rows, for a backward pass; `None`: not computed.
    pub row_weights: Option<RowWeights<'a, M>>,
}

/// From the gradient of a sequence's log-ratio to that of each of its rows' log-probs.
#[derive(Debug)]
pub struct RowWeights<'a, M: Memory> {
    /// What the log-ratios are: of a mean each scored row has its share.
    pub log_ratio: LogRatio,
    /// Scored rows of each sequence, S: as the log-ratio stage wrote them.
    pub scored_rows: M::View<'a, i32>,
    /// d loss / d log-prob of each scored row of a sequence, S; written.
    pub weights: M::ViewMut<'a, f64>,
}

impl<M: Memory> ObjectiveOutputs<'_, M> {
    /// Checks that there is an entry for each group and sequence, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, batch: &Batch) -> Result<()> {
        let (groups, sequences) = (batch.groups(), batch.sequences());
        check_view_mut(place, "group losses", &self.group_losses, groups)?;
        check_view_mut(place, "coefficients", &self.coefficients, sequences)?;
        check_view_mut(place, "group statistics", &self.statistics, groups)?;
        let Some(RowWeights { scored_rows, weights, .. }) = &self.row_weights else { return Ok(()) };
        check_view(place, "scored rows", scored_rows, sequences)?;
        check_view_mut(place, "sequence weights", weights, sequences)
    }
}

/// What a trainer logs of a group.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct GroupStatistics {
    /// 1/Σp²: how many of the K samples carry the policy distribution; K when it is uniform, 1 when one has it all.
    pub effective_sample_size: f64,
    /// Implicit reward of the sequence with the largest q, less the mean of the others'; of several with the largest q,
    /// the mean of what each would have, so that their order does not matter. 0 where all have it, and for K = 1; NaN
    /// where the implicit rewards on both sides are −inf.
    pub margin: f64,
    /// 1 if the sequence with the largest p has the largest q, 0 if not; of several with the largest p, the share that
    /// has it: what a fair coin among them would be right in. 0 where p is NaN.
    pub agreement: f64,
    /// 1 or 0: a number, because every bit pattern is one.
    tied: i64,
}

impl GroupStatistics {
    /// The statistics of a group; `tied`: several sequences have the largest q.
    pub fn new(effective_sample_size: f64, margin: f64, agreement: f64, tied: bool) -> Self {
        Self { effective_sample_size, margin, agreement, tied: i64::from(tied) }
    }

    /// Whether several sequences tie for the largest q.
    pub fn tied(&self) -> bool {
        self.tied != 0
    }
}

/// Checks that rewards and proposal offsets fit the batch and the objective.
pub(crate) fn check_rewards(objective: &Objective, rewards: &Rewards<'_, Host>, batch: &Batch) -> Result<()> {
    let sequences = batch.sequences();
    check_length("rewards", rewards.len(), sequences)?;
    if let Some(offsets) = rewards.proposal {
        check_length("proposal offsets", offsets.len(), sequences)?;
        check_finite("proposal offset", offsets.iter().copied())?;
    }
    match objective.target() {
        Target::Rewards { beta } => {
            check_finite("reward", (0..sequences).map(|i| rewards.value(i)))?;
            check_finite("reward / beta_r", (0..sequences).map(|i| rewards.value(i) / beta))
        }
        Target::Preference { .. } => check_finite("reward", (0..sequences).map(|i| rewards.value(i))),
        Target::OfficialPreference => {
            check_finite("reward", (0..sequences).map(|i| rewards.value(i)))?;
            check_group_sizes(objective, batch)
        }
        Target::Distribution => {
            let (begins_open, ends_open) = batch.open_ends();
            let last = batch.groups().saturating_sub(1);
            for (index, group) in batch.group_ranges().enumerate() {
                let sequence = group.start;
                for i in group.clone() {
                    let value = rewards.value(i);
                    if value.is_nan() || value == f64::INFINITY {
                        return Err(Error::NotFinite { what: "log target probability", sequence: i, value });
                    }
                    if value == f64::NEG_INFINITY && objective.is_infinite_at_zero_target() {
                        return Err(Error::ZeroTarget { sequence: i });
                    }
                }
                // Of a group that lies on several ranks this is not all.
                let is_open = (index == 0 && begins_open) || (index == last && ends_open);
                if !is_open && group.clone().all(|i| rewards.value(i) == f64::NEG_INFINITY) {
                    return Err(Error::ZeroTarget { sequence });
                }
            }
            Ok(())
        }
    }
}

/// Checks that the objective takes groups of these sizes.
pub(crate) fn check_group_sizes(objective: &Objective, batch: &Batch) -> Result<()> {
    if objective.target() != Target::OfficialPreference {
        return Ok(());
    }
    match batch.group_ranges().enumerate().find(|(_, group)| group.len() > 2) {
        Some((group, sequences)) => Err(Error::PairsOnly { group, size: sequences.len() }),
        None => Ok(()),
    }
}

pub(crate) fn check_finite(what: &'static str, values: impl Iterator<Item = f64>) -> Result<()> {
    for (sequence, value) in values.enumerate() {
        if !value.is_finite() {
            return Err(Error::NotFinite { what, sequence, value });
        }
    }
    Ok(())
}
