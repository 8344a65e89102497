//! What a trainer logs of one step.

use crate::data::batch::Batch;
use crate::data::memory::{Host, Memory, Place, check_view};
use crate::data::targets::Targets;
use crate::error::{Error, Result};
use crate::stage::log_ratio::check_targets;
use crate::stage::objective::GroupStatistics;
use std::borrow::Cow;

/// Rows, sequences and groups that are legal but odd. A trainer should know of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Oddities {
    /// Rows whose log-prob is NaN: a NaN or +inf logit, only −inf, or logits out of range ([`Error::NonFiniteRow`]).
    pub non_finite_rows: usize,
    /// The first of them.
    pub first_non_finite_row: Option<usize>,
    /// Scored rows whose target has a logit of −inf: log-prob −inf.
    pub impossible_targets: usize,
    /// Sequences without a scored row: log-ratio 0, still in their group.
    pub empty_sequences: usize,
    /// Groups of one sequence: loss 0, gradient 0.
    pub single_groups: usize,
    /// Groups of two and more in which several sequences tie for the largest target probability.
    pub tied_groups: usize,
}

/// What a trainer logs of one step. Every number comes from the one pass over the logits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The loss, reduced over groups.
    pub loss: f64,
    /// Loss of each group, G.
    pub group_losses: Vec<f64>,
    /// β_π × log-ratio of each sequence, S.
    pub implicit_rewards: Vec<f64>,
    /// Implicit reward of the target's favourite less the mean of the others' in its group, G; 0 for a group of one.
    pub margins: Vec<f64>,
    /// Share of the groups of two and more in which the policy's favourite is the target's; 0 if there is no such
    /// group. A tie of p counts as what a coin among the tied would be right in
    /// ([`GroupStatistics::agreement`]): a pair under a policy equal to its reference as a half.
    pub accuracy: f64,
    /// Mean of the log-ratios over sequences: how far, in nats, the policy has moved from the reference on these
    /// samples.
    pub mean_log_ratio: f64,
    /// Mean over groups of 1/Σp².
    pub effective_sample_size: f64,
    /// Mean entropy of the scored rows in nats, if it was asked for.
    pub entropy: Option<f64>,
    /// Rows that were scored.
    pub scored_rows: usize,
    /// What is legal but odd.
    pub oddities: Oddities,
}

/// What the stages after the token log-probs have left.
#[derive(Debug)]
pub struct StageResults<'a, M: Memory> {
    /// Log-ratios, S.
    pub log_ratios: M::View<'a, f64>,
    /// Loss of each group, G, before the reduction.
    pub group_losses: M::View<'a, f64>,
    /// What a trainer logs of each group, G.
    pub statistics: M::View<'a, GroupStatistics>,
}

impl<M: Memory> StageResults<'_, M> {
    /// Checks that there is a number per sequence and group, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, batch: &Batch) -> Result<()> {
        check_view(place, "log-ratios", &self.log_ratios, batch.sequences())?;
        check_view(place, "group losses", &self.group_losses, batch.groups())?;
        check_view(place, "group statistics", &self.statistics, batch.groups())
    }
}

/// The same on the host, and the rows added up: all that a report is made of.
#[derive(Debug, Clone)]
pub struct ReadResults<'a> {
    /// The rows.
    pub rows: RowSummary,
    /// Log-ratios, S.
    pub log_ratios: Cow<'a, [f64]>,
    /// Loss of each group, G, before the reduction.
    pub group_losses: Cow<'a, [f64]>,
    /// What a trainer logs of each group, G.
    pub statistics: Cow<'a, [GroupStatistics]>,
}

/// What a forward pass knows of its rows.
#[derive(Debug)]
pub struct ScoredLogProbs<'a, M: Memory> {
    /// Log-probs, N.
    pub log_probs: M::View<'a, f32>,
    /// Entropies, N, if they were computed.
    pub entropies: Option<M::View<'a, f32>>,
    /// Sums of the entropies over the scored rows, S, if they were computed.
    pub entropy_sums: Option<M::View<'a, f64>>,
    /// Scored rows, S.
    pub scored_rows: M::View<'a, i32>,
    /// Which rows are scored, N.
    pub targets: Targets<'a, M>,
    /// V.
    pub vocab: usize,
}

impl<M: Memory> ScoredLogProbs<'_, M> {
    /// Checks that there is a number per row and sequence, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, batch: &Batch) -> Result<()> {
        let (rows, sequences) = (batch.rows(), batch.sequences());
        check_view(place, "log-probs", &self.log_probs, rows)?;
        check_targets(place, &self.targets, rows)?;
        check_view(place, "scored rows", &self.scored_rows, sequences)?;
        if let Some(entropies) = &self.entropies {
            check_view(place, "entropies", entropies, rows)?;
        }
        self.entropy_sums.as_ref().map_or(Ok(()), |sums| check_view(place, "entropy sums", sums, sequences))
    }
}

/// What a trainer logs of the rows, added up.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowSummary {
    /// As [`Report::scored_rows`].
    pub scored_rows: usize,
    /// As [`Oddities::non_finite_rows`].
    pub non_finite_rows: usize,
    /// As [`Oddities::first_non_finite_row`].
    pub first_non_finite_row: Option<usize>,
    /// As [`Oddities::impossible_targets`].
    pub impossible_targets: usize,
    /// As [`Oddities::empty_sequences`].
    pub empty_sequences: usize,
    /// Sum of the entropies of the scored rows in nats, if there are any and they were computed.
    pub entropy: Option<f64>,
}

impl RowSummary {
    /// The same with what sequences say: their scored rows, and the sums of their entropies, if these were computed.
    pub(crate) fn with_sequences(self, scored_rows: &[i32], entropy_sums: Option<&[f64]>) -> Self {
        let scored = scored_rows.iter().map(|rows| usize::try_from(*rows).unwrap_or(0)).sum();
        Self {
            scored_rows: scored,
            empty_sequences: scored_rows.iter().filter(|rows| **rows == 0).count(),
            entropy: entropy_sums.filter(|_| scored > 0).map(|sums| sums.iter().sum()),
            ..self
        }
    }

    /// What the host counts in rows, log-probs and targets `[N]`; scored rows, empty sequences and entropies are said by the sequences.
    pub(crate) fn of_rows(log_probs: &[f32], targets: &Targets<'_, Host>) -> Self {
        let mut summary = RowSummary::default();
        for (row, log_prob) in log_probs.iter().enumerate().filter(|(row, _)| targets.is_scored(*row)) {
            if log_prob.is_nan() {
                summary.non_finite_rows += 1;
                summary.first_non_finite_row.get_or_insert(row);
            }
            summary.impossible_targets += usize::from(*log_prob == f32::NEG_INFINITY);
        }
        summary
    }
}

impl Report {
    /// The report, or an error if a row had no softmax.
    ///
    /// # Errors
    /// [`Error::NonFiniteRow`], naming the first such row.
    pub fn check(&self) -> Result<&Self> {
        match self.oddities.first_non_finite_row {
            Some(row) => Err(Error::NonFiniteRow { row, count: self.oddities.non_finite_rows }),
            None => Ok(self),
        }
    }

    /// Fills the report. `weight`: what the reduction multiplies each group's loss with.
    pub(crate) fn fill(&mut self, batch: &Batch, results: &ReadResults<'_>, beta_policy: f64, weight: f64) {
        let ReadResults { rows, log_ratios, group_losses, statistics } = results;
        let mut oddities = Oddities {
            non_finite_rows: rows.non_finite_rows,
            first_non_finite_row: rows.first_non_finite_row,
            impossible_targets: rows.impossible_targets,
            empty_sequences: rows.empty_sequences,
            ..Oddities::default()
        };

        let (mut agreement, mut ranked, mut effective) = (0.0, 0, 0.0);
        for (group, statistics) in batch.group_ranges().zip(statistics.iter()) {
            effective += statistics.effective_sample_size;
            if group.len() == 1 {
                oddities.single_groups += 1;
                continue;
            }
            ranked += 1;
            agreement += statistics.agreement;
            oddities.tied_groups += usize::from(statistics.tied());
        }

        let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        self.loss = weighted_sum(group_losses, weight);
        self.group_losses.clear();
        self.group_losses.extend_from_slice(group_losses);
        self.implicit_rewards.clear();
        self.implicit_rewards.extend(log_ratios.iter().map(|log_ratio| beta_policy * log_ratio));
        self.margins.clear();
        self.margins.extend(statistics.iter().map(|group| group.margin));
        self.accuracy = mean(agreement, ranked);
        self.mean_log_ratio = match log_ratios.len() {
            0 => 0.0,
            count => weighted_sum(log_ratios, 1.0 / count as f64),
        };
        self.effective_sample_size = mean(effective, statistics.len());
        self.entropy = rows.entropy.map(|sum| mean(sum, rows.scored_rows));
        self.scored_rows = rows.scored_rows;
        self.oddities = oddities;
    }
}

/// weight·Σ values, also where the sum alone is no f64.
pub(crate) fn weighted_sum(values: &[f64], weight: f64) -> f64 {
    // The sum of nothing would be -0.
    let sum = values.iter().sum::<f64>() + 0.0;
    if sum.is_finite() { sum * weight } else { values.iter().map(|value| value * weight).sum() }
}
