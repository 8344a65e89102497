//! Sequence log-ratios.

use super::choices::Choices;
use super::guarded::{Guarded, untouched};
use super::rows;
use super::settings::{self, HostBackend};
use exo_kernels::{Batch, LogRatio, LogRatioOutputs, Reference, RowLogProbs, Targets};

/// A reference in the host's memory.
#[derive(Debug)]
pub(crate) enum Held {
    PerToken(Vec<f32>),
    PerSequence(Vec<f64>),
    None,
}

impl Held {
    /// One of its numbers may be hostile, or its length wrong.
    pub(crate) fn choose(choices: &mut Choices<'_>, batch: &Batch) -> Self {
        match choices.choose(3) {
            0 => {
                let mut log_probs: Vec<f32> =
                    (0..choices.length(batch.rows())).map(|row| -0.5 - row as f32 * 0.25).collect();
                let row = choices.choose(batch.rows().max(1));
                if let Some(log_prob) = log_probs.get_mut(row) {
                    *log_prob = choices.f32(*log_prob);
                }
                Held::PerToken(log_probs)
            }
            1 => {
                let mut log_probs = vec![-1.5; choices.length(batch.sequences())];
                let sequence = choices.choose(batch.sequences().max(1));
                if let Some(log_prob) = log_probs.get_mut(sequence) {
                    *log_prob = choices.f64(*log_prob);
                }
                Held::PerSequence(log_probs)
            }
            _ => Held::None,
        }
    }

    pub(crate) fn view(&self) -> Reference<'_> {
        match self {
            Held::PerToken(log_probs) => Reference::PerToken(log_probs),
            Held::PerSequence(log_probs) => Reference::PerSequence(log_probs),
            Held::None => Reference::None,
        }
    }

    /// Whether it fits the batch, and is finite where it is read.
    pub(crate) fn fits(&self, batch: &Batch, targets: &[i64]) -> bool {
        match self {
            Held::PerToken(log_probs) => {
                let finite = |(log_prob, target): (&f32, &i64)| *target < 0 || log_prob.is_finite();
                log_probs.len() == batch.rows() && log_probs.iter().zip(targets).all(finite)
            }
            Held::PerSequence(log_probs) => {
                log_probs.len() == batch.sequences() && log_probs.iter().all(|log_prob| log_prob.is_finite())
            }
            Held::None => true,
        }
    }
}

/// Where the stage writes.
pub(crate) struct Outputs {
    pub(crate) log_ratios: Guarded<f64>,
    pub(crate) log_prob_sums: Guarded<f64>,
    pub(crate) entropy_sums: Option<Guarded<f64>>,
    pub(crate) scored_rows: Guarded<i32>,
    pub(crate) row_sequences: Guarded<i32>,
    pub(crate) row_targets: Guarded<u32>,
}

impl Outputs {
    pub(crate) fn choose(choices: &mut Choices<'_>, batch: &Batch) -> Self {
        let sequences = batch.sequences();
        Self {
            log_ratios: Guarded::new(choices.length(sequences)),
            log_prob_sums: Guarded::new(choices.length(sequences)),
            entropy_sums: (!choices.yes()).then(|| Guarded::new(choices.length(sequences))),
            scored_rows: Guarded::new(choices.length(sequences)),
            row_sequences: Guarded::new(choices.length(batch.rows())),
            row_targets: Guarded::new(choices.length(batch.rows())),
        }
    }

    pub(crate) fn fit(&self, batch: &Batch) -> bool {
        let sequences = batch.sequences();
        [self.log_ratios.get().len(), self.log_prob_sums.get().len(), self.scored_rows.get().len()] == [sequences; 3]
            && self.entropy_sums.as_ref().is_none_or(|sums| sums.get().len() == sequences)
            && self.row_sequences.get().len() == batch.rows()
            && self.row_targets.get().len() == batch.rows()
    }

    fn views(&mut self) -> LogRatioOutputs<'_> {
        LogRatioOutputs {
            log_ratios: self.log_ratios.get_mut(),
            log_prob_sums: self.log_prob_sums.get_mut(),
            entropy_sums: self.entropy_sums.as_mut().map(Guarded::get_mut),
            scored_rows: self.scored_rows.get_mut(),
            row_sequences: self.row_sequences.get_mut(),
            row_targets: self.row_targets.get_mut(),
        }
    }

    pub(crate) fn untouched(&self) {
        untouched!(self.log_ratios, self.log_prob_sums, self.scored_rows, self.row_sequences, self.row_targets);
        if let Some(sums) = &self.entropy_sums {
            sums.untouched("entropy sums");
        }
    }

    /// Asserts that nothing else was written, and what stands beside the log-ratios.
    pub(crate) fn check(&self, batch: &Batch, targets: &[i64], log_probs: &[f32], entropies: Option<&[f32]>) {
        self.log_ratios.untouched_but("log-ratios", |_| true);
        self.log_prob_sums.untouched_but("log-prob sums", |_| true);
        self.scored_rows.untouched_but("scored rows", |_| true);
        self.row_sequences.untouched_but("row sequences", |_| true);
        self.row_targets.untouched_but("row targets", |_| true);
        for (kept, target) in self.row_targets.get().iter().zip(targets) {
            let kept = i64::from(*kept as i32);
            assert!(kept == (*target).min(i64::from(i32::MAX)) || (kept < 0 && *target < 0), "{kept} for {target}");
        }
        for (sequence, range) in batch.sequence_offsets().windows(2).enumerate() {
            let rows = || (range[0]..range[1]).filter(|row| targets[*row] >= 0);
            let sum = |numbers: &[f32]| rows().map(|row| f64::from(numbers[row])).sum::<f64>();
            assert_eq!(self.scored_rows.get()[sequence] as usize, rows().count());
            assert!((range[0]..range[1]).all(|row| self.row_sequences.get()[row] as usize == sequence));
            check_sum("log-probs", self.log_prob_sums.get()[sequence], sum(log_probs));
            if let (Some(sums), Some(entropies)) = (&self.entropy_sums, entropies) {
                check_sum("entropies", sums.get()[sequence], sum(entropies));
            }
        }
        if let Some(sums) = &self.entropy_sums {
            sums.untouched_but("entropy sums", |_| true);
        }
    }
}

fn check_sum(what: &str, found: f64, expected: f64) {
    let same = found == expected || (found.is_nan() && expected.is_nan());
    assert!(same || (found - expected).abs() <= 1e-12 * expected.abs(), "{what}: {found}, {expected}");
}

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    choices.calls_of(B::VERBS, &["log_ratios"]);
    let batch = rows::batch(choices);
    let count = batch.rows();
    let log_probs = numbers(choices, count);
    let entropies = (!choices.yes()).then(|| numbers(choices, count));
    let mut targets = rows::targets(choices, count);
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let reference = Held::choose(choices, &batch);
    let kind = settings::log_ratio(choices);
    let mut outputs = Outputs::choose(choices, &batch);
    let refused = log_probs.len() != count
        || entropies.as_ref().is_some_and(|entropies| entropies.len() != count)
        || targets.len() != count
        || !outputs.fit(&batch)
        || (entropies.is_none() && outputs.entropy_sums.is_some())
        || !reference.fits(&batch, &targets);

    let backend = B::choose(choices);
    let placed = backend.upload_batch(&batch).expect("memory");
    let narrow = rows::narrow(&targets);
    let ids = if choices.yes() { Targets::from(&narrow) } else { Targets::from(&targets) };
    let inputs = RowLogProbs { log_probs: &log_probs, entropies: entropies.as_deref(), targets: ids };
    let result = backend.log_ratios(&inputs, &reference.view(), &placed, kind, outputs.views());
    if let Err(error) = result {
        assert!(refused, "refused: {error:?}");
        outputs.untouched();
        return;
    }
    assert!(!refused, "accepted");
    outputs.check(&batch, &targets, &log_probs, entropies.as_deref());
    for (sequence, range) in batch.sequence_offsets().windows(2).enumerate() {
        let scored: Vec<usize> = (range[0]..range[1]).filter(|row| targets[*row] >= 0).collect();
        let differences = scored.iter().map(|row| match &reference {
            Held::PerToken(reference) => f64::from(log_probs[*row]) - f64::from(reference[*row]),
            _ => f64::from(log_probs[*row]),
        });
        let mut sum: f64 = differences.sum();
        if let (Held::PerSequence(reference), false) = (&reference, scored.is_empty()) {
            sum -= reference[sequence];
        }
        let expected = if kind == LogRatio::Mean { sum / scored.len().max(1) as f64 } else { sum };
        check_sum("log-ratio", outputs.log_ratios.get()[sequence], expected);
    }
}

/// A negative number per row, one of which may be hostile, or their number wrong.
pub(crate) fn numbers(choices: &mut Choices<'_>, rows: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> = (0..choices.length(rows)).map(|row| -1.0 - row as f32 * 0.5).collect();
    let row = choices.choose(rows.max(1));
    if let Some(number) = numbers.get_mut(row) {
        *number = choices.f32(*number);
    }
    numbers
}
