//! K-sample objectives.

use super::choices::Choices;
use super::guarded::{Guarded, untouched};
use super::rows;
use super::settings::{self, Fit, HostBackend, infinite_at_zero_target};
use exo_kernels::{
    Batch, Divergence, GroupStatistics, LogRatio, Objective, ObjectiveOutputs, Rewards, RowWeights, Target,
};
use std::ops::Range;

/// Rewards in the host's memory, of either type, with or without a proposal.
#[derive(Debug)]
pub(crate) struct Held {
    wide: Vec<f64>,
    narrow: Option<Vec<f32>>,
    proposal: Option<Vec<f64>>,
}

impl Held {
    /// Two of the numbers may be hostile, or the lengths wrong.
    pub(crate) fn choose(choices: &mut Choices<'_>, sequences: usize) -> Self {
        let mut wide: Vec<f64> = (0..choices.length(sequences)).map(|i| 1.0 - i as f64 * 0.5).collect();
        let (one, other) = (choices.choose(sequences.max(1)), choices.choose(sequences.max(1)));
        for sequence in [one, other] {
            if let Some(reward) = wide.get_mut(sequence) {
                *reward = choices.f64(*reward);
            }
        }
        let narrow = choices.yes().then(|| wide.iter().map(|reward| *reward as f32).collect::<Vec<f32>>());
        if let Some(narrow) = &narrow {
            wide = narrow.iter().map(|reward| f64::from(*reward)).collect();
        }
        let proposal = choices.yes().then(|| {
            let mut offsets = vec![0.25; choices.length(sequences)];
            if let Some(offset) = offsets.get_mut(one) {
                *offset = choices.f64(*offset);
            }
            offsets
        });
        Self { wide, narrow, proposal }
    }

    pub(crate) fn view(&self) -> Rewards<'_> {
        let rewards = match &self.narrow {
            Some(narrow) => Rewards::from(narrow),
            None => Rewards::from(&self.wide),
        };
        match &self.proposal {
            Some(offsets) => rewards.with_proposal(offsets),
            None => rewards,
        }
    }

    /// In f64, whatever type they are given in.
    pub(crate) fn wide(&self) -> &[f64] {
        &self.wide
    }

    pub(crate) fn proposal(&self) -> Option<&[f64]> {
        self.proposal.as_deref()
    }

    /// Whether there is a number for each sequence.
    pub(crate) fn have_length(&self, sequences: usize) -> bool {
        self.wide.len() == sequences && self.proposal.as_ref().is_none_or(|offsets| offsets.len() == sequences)
    }

    pub(crate) fn offset(&self, sequence: usize) -> f64 {
        self.proposal.as_ref().map_or(0.0, |offsets| offsets[sequence])
    }

    /// Whether they fit the batch and are what the objective takes.
    pub(crate) fn fit(&self, objective: &Objective, batch: &Batch) -> bool {
        let sequences = batch.sequences();
        let of_proposal = self
            .proposal
            .as_ref()
            .is_none_or(|offsets| offsets.len() == sequences && offsets.iter().all(|offset| offset.is_finite()));
        if self.wide.len() != sequences || !of_proposal {
            return false;
        }
        let finite = self.wide.iter().all(|reward| reward.is_finite());
        match objective.target() {
            Target::Rewards { beta } => finite && self.wide.iter().all(|reward| (reward / beta).is_finite()),
            Target::OfficialPreference => finite && groups(batch).all(|group| group.len() <= 2),
            Target::Distribution => {
                let zeros = infinite_at_zero_target(objective.divergence());
                let some = |group: Range<usize>| self.wide[group].iter().any(|log_q| *log_q != f64::NEG_INFINITY);
                self.wide.iter().all(|log_q| log_q.is_finite() || (*log_q == f64::NEG_INFINITY && !zeros))
                    && groups(batch).all(some)
            }
            _ => finite,
        }
    }

    /// The target's logit of a sequence, as far as its size goes.
    pub(crate) fn target_logit(&self, objective: &Objective, sequence: usize) -> f64 {
        let logit = match objective.target() {
            Target::Rewards { beta } => self.wide[sequence] / beta,
            Target::Distribution => self.wide[sequence],
            // log ε / (K − 1) at most.
            _ => 750.0,
        };
        logit + self.offset(sequence)
    }
}

pub(crate) fn groups(batch: &Batch) -> impl Iterator<Item = Range<usize>> + '_ {
    batch.group_offsets().windows(2).map(|pair| pair[0]..pair[1])
}

/// Where the stage writes, and the scored rows that the gradient of rows is made with.
pub(crate) struct Outputs {
    pub(crate) group_losses: Guarded<f64>,
    pub(crate) coefficients: Guarded<f64>,
    pub(crate) statistics: Guarded<GroupStatistics>,
    pub(crate) row_weights: Option<(LogRatio, Vec<i32>, Guarded<f64>)>,
}

impl Outputs {
    pub(crate) fn choose(choices: &mut Choices<'_>, batch: &Batch) -> Self {
        let (sequences, groups) = (batch.sequences(), batch.groups());
        Self {
            group_losses: Guarded::new(choices.length(groups)),
            coefficients: Guarded::new(choices.length(sequences)),
            statistics: Guarded::new(choices.length(groups)),
            row_weights: (!choices.yes()).then(|| {
                let mut scored_rows = vec![2; choices.length(sequences)];
                if let Some(scored) = scored_rows.first_mut() {
                    *scored = choices.of(2, &[0, 1, -1, i32::MIN, i32::MAX]);
                }
                (settings::log_ratio(choices), scored_rows, Guarded::new(choices.length(sequences)))
            }),
        }
    }

    pub(crate) fn fit(&self, batch: &Batch) -> bool {
        let (sequences, groups) = (batch.sequences(), batch.groups());
        [self.group_losses.get().len(), self.statistics.get().len()] == [groups; 2]
            && self.coefficients.get().len() == sequences
            && self
                .row_weights
                .as_ref()
                .is_none_or(|(_, scored, weights)| [scored.len(), weights.get().len()] == [sequences; 2])
    }

    fn views(&mut self) -> ObjectiveOutputs<'_> {
        ObjectiveOutputs {
            group_losses: self.group_losses.get_mut(),
            coefficients: self.coefficients.get_mut(),
            statistics: self.statistics.get_mut(),
            row_weights: self.row_weights.as_mut().map(|(log_ratio, scored_rows, weights)| RowWeights {
                log_ratio: *log_ratio,
                scored_rows,
                weights: weights.get_mut(),
            }),
        }
    }

    pub(crate) fn untouched(&self) {
        untouched!(self.group_losses, self.coefficients, self.statistics);
        if let Some((_, _, weights)) = &self.row_weights {
            weights.untouched("row weights");
        }
    }

    /// Asserts that nothing else was written, and the gradient of rows.
    pub(crate) fn check(&self) {
        self.group_losses.untouched_but("group losses", |_| true);
        self.coefficients.untouched_but("coefficients", |_| true);
        self.statistics.untouched_but("statistics", |_| true);
        let Some((log_ratio, scored_rows, weights)) = &self.row_weights else { return };
        weights.untouched_but("row weights", |_| true);
        for (sequence, coefficient) in self.coefficients.get().iter().enumerate() {
            let rows = if *log_ratio == LogRatio::Mean { scored_rows[sequence].max(1) } else { 1 };
            let (found, expected) = (weights.get()[sequence], coefficient / f64::from(rows));
            let same = found == expected || (found.is_nan() && expected.is_nan());
            let near = (found - expected).abs() <= 1e-15 * expected.abs() + f64::from_bits(1);
            assert!(same || near, "sequence {sequence}: {found}, {expected}");
        }
    }
}

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    choices.calls_of(B::VERBS, &["objective"]);
    let objective = settings::objective(choices);
    let batch = rows::batch(choices);
    let (reduction, of_reduction) = settings::any_reduction(choices);
    let (sequences, group_count) = (batch.sequences(), batch.groups());
    let mut log_ratios: Vec<f64> = (0..choices.length(sequences)).map(|i| i as f64 * 0.25 - 0.5).collect();
    let (one, other) = (choices.choose(sequences.max(1)), choices.choose(sequences.max(1)));
    for sequence in [one, other] {
        if let Some(log_ratio) = log_ratios.get_mut(sequence) {
            *log_ratio = choices.f64(*log_ratio);
        }
    }
    let rewards = Held::choose(choices, sequences);
    let mut outputs = Outputs::choose(choices, &batch);
    let refused = log_ratios.len() != sequences || !outputs.fit(&batch) || !rewards.fit(&objective, &batch);
    let fit = if refused { Fit::Wrong } else { of_reduction };

    let backend = B::choose(choices);
    let placed = backend.upload_batch(&batch).expect("memory");
    let views = outputs.views();
    let result = backend.objective(&objective, &log_ratios.as_slice(), &placed, &rewards.view(), reduction, views);
    if let Err(error) = result {
        assert_ne!(fit, Fit::Useful, "refused: {error:?}");
        outputs.untouched();
        return;
    }
    assert_ne!(fit, Fit::Wrong, "accepted");
    outputs.check();
    let Outputs { group_losses, coefficients, statistics, .. } = &outputs;
    let factor = objective.beta_policy() * settings::weight(reduction, group_count);
    for (index, group) in groups(&batch).enumerate() {
        let policy: Vec<f64> =
            group.clone().map(|i| objective.beta_policy() * log_ratios[i] + rewards.offset(i)).collect();
        let target: Vec<f64> = group.clone().map(|i| rewards.target_logit(&objective, i)).collect();
        let of_group = (group_losses.get()[index], &coefficients.get()[group.clone()]);
        let ends = policy.iter().zip(&log_ratios[group.clone()]).any(|(f, ratio)| f.is_infinite() && ratio.is_finite());
        if B::HAS_ENDS_OF_F64 || !ends {
            check_group(&objective, &log_ratios[group.clone()], (&policy, &target), of_group, factor);
        }
        check_statistics(&statistics.get()[index], &policy);
    }
}

/// Asserts what a group's loss and coefficients (if they are known) must be, for these logits of policy and target.
pub(crate) fn check_group(
    objective: &Objective,
    log_ratios: &[f64],
    (policy, target): (&[f64], &[f64]),
    (loss, coefficients): (f64, &[f64]),
    factor: f64,
) {
    let told = format!(
        "{objective:?}: log-ratios {log_ratios:?}, f {policy:?}, s {target:?}: loss {loss}, coefficients {coefficients:?} \
         (times {factor})"
    );
    if policy.iter().any(|f| f.is_nan()) {
        assert!(loss.is_nan() && coefficients.iter().all(|coefficient| coefficient.is_nan()), "{told}");
        return;
    }
    // No log-ratio of log-probs is +inf: nothing is promised for its group.
    if log_ratios.contains(&f64::INFINITY) {
        return;
    }
    assert!(!loss.is_nan() && coefficients.iter().all(|coefficient| !coefficient.is_nan()), "{told}");
    assert!(loss >= -1e-4, "{told}");
    // Logits that no f64 holds, of numbers that it does: their limits, which may be infinite.
    let overflown = policy.iter().zip(log_ratios).any(|(f, log_ratio)| f.is_infinite() && log_ratio.is_finite());
    if overflown || target.contains(&f64::INFINITY) {
        return;
    }
    if policy.len() == 1 {
        assert!(loss == 0.0 && coefficients.iter().all(|coefficient| *coefficient == 0.0), "{told}");
        return;
    }
    let dead = policy.iter().filter(|f| **f == f64::NEG_INFINITY).count();
    if dead == policy.len() {
        assert!(loss == f64::INFINITY && coefficients.iter().all(|coefficient| *coefficient == 0.0), "{told}");
        return;
    }
    let size = |values: &[f64]| values.iter().filter(|v| v.is_finite()).fold(1.0, |most: f64, v| most.max(v.abs()));
    let largest = size(policy).max(size(target));
    let forward = matches!(objective.divergence(), Divergence::ForwardKl)
        || matches!(objective.divergence(), Divergence::Alpha(alpha) if alpha == 1.0);
    let some_q = |i: usize| policy[i] == f64::NEG_INFINITY && target[i] > f64::NEG_INFINITY;
    if largest < 4e307 && !(forward && (0..policy.len()).any(some_q)) {
        assert!(loss.is_finite(), "{told}");
    }
    if matches!(objective.divergence(), Divergence::ReverseKl) {
        for (f, coefficient) in policy.iter().zip(coefficients) {
            assert!(*f != f64::NEG_INFINITY || *coefficient == 0.0, "{told}");
        }
    }
    // α(1 − α) is a divisor within the family; β·weight·(what is at most the spread of the logits) may not fit.
    if factor.is_finite() && factor.max(1.0) * largest < 1e290 {
        assert!(coefficients.iter().all(|coefficient| coefficient.is_finite()), "{told}");
    }
}

fn check_statistics(statistics: &GroupStatistics, policy: &[f64]) {
    if policy.iter().all(|f| f.is_finite()) {
        let (size, k) = (statistics.effective_sample_size, policy.len() as f64);
        assert!((1.0 - 1e-9..=k * (1.0 + 1e-9)).contains(&size), "{statistics:?} of {policy:?}");
        let within = policy.iter().all(|f| f.abs() < 1e300);
        assert!(!within || statistics.margin.is_finite(), "{statistics:?} of {policy:?}");
    }
}
