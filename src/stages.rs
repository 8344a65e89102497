//! What the stages take and give, the same on every backend, and the checks that every backend makes first.

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::objective::{Objective, Target};

/// What the softmax of a row leaves for the backward pass: Σ exp z = s·2^r, in base 2.
///
/// r is the largest scaled logit, in base 2, rounded up to an integer, so that bringing two states to a common r
/// multiplies by a power of two, which is exact. The pair keeps the digits that a log-sum-exp in one f32 loses under a
/// large common offset. Zero and NaN for rows that are masked and rows that have no softmax.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SoftmaxState {
    /// Exponent of the scale, in base 2; an integer.
    pub r: f32,
    /// Σ 2^(z·log2 e − r); between ½ and V, or from |r| = 2²⁴ on, where f32 have not every integer, up to 2⁶⁴ times that or as
    /// much less.
    pub s: f32,
}

impl SoftmaxState {
    /// log Σ exp z over the row, in nats.
    pub fn log_sum_exp(self) -> f64 {
        (f64::from(self.r) + f64::from(self.s).log2()) * std::f64::consts::LN_2
    }
}

/// A row whose largest scaled logit, in base 2, is this large or larger in size has no softmax: its log-prob is NaN.
/// Neighbouring f32 are 128 apart there, so that no r keeps 2^(z·log2 e − r) in range.
pub(crate) const LARGEST_EXPONENT: f32 = (1u32 << 30) as f32;

/// Where the token log-prob stage writes: one entry per row, N of each.
#[derive(Debug)]
pub struct TokenLogProbs<'a> {
    /// log softmax(z)\[target\] in nats, never positive; 0 for a masked row, NaN for a row without a softmax.
    pub log_probs: &'a mut [f32],
    /// For the backward pass.
    pub states: &'a mut [SoftmaxState],
    /// Entropy of the row's distribution in nats; 0 for a masked row. `None`: not computed.
    pub entropies: Option<&'a mut [f32]>,
}

impl TokenLogProbs<'_> {
    /// That there is an entry per row.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        check_length("log-probs", self.log_probs.len(), rows)?;
        check_length("softmax states", self.states.len(), rows)?;
        self.entropies.as_ref().map_or(Ok(()), |entropies| check_length("entropies", entropies.len(), rows))
    }
}

/// What the token log-prob stage kept of its forward pass.
#[derive(Debug, Clone, Copy)]
pub struct SavedRows<'a> {
    /// As written by the forward pass, N.
    pub states: &'a [SoftmaxState],
    /// As written by the forward pass, N; needed for an entropy gradient only.
    pub entropies: Option<&'a [f32]>,
}

/// The gradient that comes back to the token log-prob stage, per row; what it says of masked rows is not read.
///
/// A row whose gradient does not fit f32 gets NaN for all of it, as one without a softmax: where 2·|g| + 256·|e| is NaN or
/// more than `f32::MAX`·T·min(1, 2s), with g and e the two numbers, T the temperature and s of the row's [`SoftmaxState`]
/// (½ or more, but for logits of 2²⁴ and more in base 2); or where e is not 0 and the entropy not finite.
#[derive(Debug, Clone, Copy)]
pub struct RowGradients<'a> {
    /// d loss / d log-prob, N.
    pub log_probs: &'a [f32],
    /// d loss / d entropy, N; `None`: the loss has no entropy term.
    pub entropies: Option<&'a [f32]>,
}

/// Where a loss that is a sum over rows is written: one entry per row, N of each.
#[derive(Debug)]
pub struct RowLosses<'a> {
    /// As [`TokenLogProbs::log_probs`].
    pub log_probs: &'a mut [f32],
    /// l of each row; 0 for a masked row, NaN for a row without a softmax (0 if its weight or advantage is).
    pub losses: &'a mut [f32],
}

/// Log-probs of the same tokens under the frozen reference model, at the same temperature and softcap.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a> {
    /// One per row, N. Preferred: the difference is formed per token, before the sum. Not read at masked rows.
    PerToken(&'a [f32]),
    /// One per sequence, S: sums over the scored rows. Keep them in f64; an f32 of 5000 nats is off by up to 2.4e-4.
    PerSequence(&'a [f64]),
    /// None: the log-ratio is the policy's log-prob.
    None,
}

/// Numbers in either float type, read as f64.
#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// What the target distribution is made from, one number per sequence: rewards, or log q for
/// [`Target::Distribution`].
///
/// Made from a slice, array or `Vec` of `f32` or `f64`.
#[derive(Debug, Clone, Copy)]
pub struct Rewards<'a> {
    values: Values<'a>,
    proposal: Option<&'a [f64]>,
}

impl<'a> Rewards<'a> {
    /// Corrects for completions that were not sampled from the reference policy but from a proposal μ.
    ///
    /// `offsets`, one per sequence, are c = log π_ref(y) − log μ(y). They are added to both logits, β_π·S and the
    /// target's: then p and q are the self-normalised importance weights under μ. They carry no
    /// gradient.
    #[must_use]
    pub fn with_proposal(self, offsets: &'a [f64]) -> Self {
        Rewards { proposal: Some(offsets), ..self }
    }

    pub(crate) fn len(&self) -> usize {
        match self.values {
            Values::F32(values) => values.len(),
            Values::F64(values) => values.len(),
        }
    }

    pub(crate) fn value(&self, sequence: usize) -> f64 {
        match self.values {
            Values::F32(values) => f64::from(values[sequence]),
            Values::F64(values) => values[sequence],
        }
    }

    /// Whether there are proposal offsets.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_proposal(&self) -> bool {
        self.proposal.is_some()
    }

    /// c of a sequence; 0 without a proposal.
    pub(crate) fn offset(&self, sequence: usize) -> f64 {
        self.proposal.map_or(0.0, |offsets| offsets[sequence])
    }
}

macro_rules! rewards_from {
    ($($number:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$number]> for Rewards<'a> {
            fn from(values: &'a [$number]) -> Self {
                Rewards { values: Values::$variant(values), proposal: None }
            }
        }

        impl<'a> From<&'a Vec<$number>> for Rewards<'a> {
            fn from(values: &'a Vec<$number>) -> Self {
                Rewards::from(values.as_slice())
            }
        }

        impl<'a, const S: usize> From<&'a [$number; S]> for Rewards<'a> {
            fn from(values: &'a [$number; S]) -> Self {
                Rewards::from(values.as_slice())
            }
        }
    )*};
}

rewards_from!(f32 => F32, f64 => F64);

/// What the objective stage reads.
#[derive(Debug, Clone, Copy)]
pub struct ObjectiveInputs<'a> {
    /// S log-ratios.
    pub log_ratios: &'a [f64],
    /// Which sequences make up which group.
    pub batch: &'a Batch,
    /// S rewards, or log q.
    pub rewards: Rewards<'a>,
}

/// Where the objective stage writes.
#[derive(Debug)]
pub struct ObjectiveOutputs<'a> {
    /// Loss of each group, G, before the reduction.
    pub group_losses: &'a mut [f64],
    /// d loss / d log-ratio of each sequence, S, with β_π and the reduction's weight in it.
    pub coefficients: &'a mut [f64],
    /// What a trainer logs of each group, G.
    pub statistics: &'a mut [GroupStatistics],
}

/// What a trainer logs of a group.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
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
    /// Whether several sequences tie for the largest q.
    pub tied: bool,
}

/// That a buffer has as many elements as it must.
pub(crate) fn check_length(what: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::Length { what, given, expected }) }
}

/// That the batch divides exactly the rows that there are.
pub(crate) fn check_rows(batch: &Batch, rows: usize) -> Result<()> {
    if batch.rows() == rows {
        Ok(())
    } else {
        Err(Error::OffsetsEnd { what: "sequence offsets", last: batch.rows(), expected: rows })
    }
}

/// That the reference has the right length and is finite wherever a row is scored. `scored(row)` tells masked rows.
pub(crate) fn check_reference(reference: Reference<'_>, batch: &Batch, scored: impl Fn(usize) -> bool) -> Result<()> {
    match reference {
        Reference::PerToken(log_probs) => {
            check_length("reference log-probs per token", log_probs.len(), batch.rows())?;
            for (sequence, rows) in batch.sequence_ranges().enumerate() {
                for row in rows {
                    let value = f64::from(log_probs[row]);
                    if !value.is_finite() && scored(row) {
                        return Err(Error::NotFinite { what: "reference log-prob", sequence, value });
                    }
                }
            }
            Ok(())
        }
        Reference::PerSequence(log_probs) => {
            check_length("reference log-probs per sequence", log_probs.len(), batch.sequences())?;
            check_finite("reference log-prob", log_probs.iter().copied())
        }
        Reference::None => Ok(()),
    }
}

/// That rewards and proposal offsets fit the batch and the objective.
pub(crate) fn check_rewards(objective: &Objective, rewards: Rewards<'_>, batch: &Batch) -> Result<()> {
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
            for group in batch.group_ranges() {
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
                if group.clone().all(|i| rewards.value(i) == f64::NEG_INFINITY) {
                    return Err(Error::ZeroTarget { sequence });
                }
            }
            Ok(())
        }
    }
}

/// That the objective takes groups of these sizes.
pub(crate) fn check_group_sizes(objective: &Objective, batch: &Batch) -> Result<()> {
    if objective.target() != Target::OfficialPreference {
        return Ok(());
    }
    match batch.group_ranges().enumerate().find(|(_, group)| group.len() > 2) {
        Some((group, sequences)) => Err(Error::PairsOnly { group, size: sequences.len() }),
        None => Ok(()),
    }
}

fn check_finite(what: &'static str, values: impl Iterator<Item = f64>) -> Result<()> {
    for (sequence, value) in values.enumerate() {
        if !value.is_finite() {
            return Err(Error::NotFinite { what, sequence, value });
        }
    }
    Ok(())
}
