//! Sequence log-ratios.

use super::choices::Choices;
use super::guarded::{Guarded, untouched};
use super::rows;
use super::settings;
use exo_kernels::{Batch, LogRatio, Reference};

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

pub(crate) fn walk(choices: &mut Choices<'_>) {
    choices.calls(&["cpu/log_ratio::Cpu::log_ratios"]);
    let batch = rows::batch(choices);
    let count = batch.rows();
    let mut log_probs: Vec<f32> = (0..choices.length(count)).map(|row| -1.0 - row as f32 * 0.5).collect();
    let row = choices.choose(count.max(1));
    if let Some(log_prob) = log_probs.get_mut(row) {
        *log_prob = choices.f32(*log_prob);
    }
    let mut targets = rows::targets(choices, count);
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let reference = Held::choose(choices, &batch);
    let kind = settings::log_ratio(choices);
    let mut log_ratios = Guarded::<f64>::new(choices.length(batch.sequences()));
    let refused = log_probs.len() != count
        || targets.len() != count
        || log_ratios.get().len() != batch.sequences()
        || !reference.fits(&batch, &targets);

    let cpu = settings::cpu(choices);
    let result = if choices.yes() {
        cpu.log_ratios(&log_probs, &rows::narrow(&targets), reference.view(), &batch, kind, log_ratios.get_mut())
    } else {
        cpu.log_ratios(&log_probs, &targets, reference.view(), &batch, kind, log_ratios.get_mut())
    };
    if let Err(error) = result {
        assert!(refused, "refused: {error:?}");
        untouched!(log_ratios);
        return;
    }
    assert!(!refused, "accepted");
    log_ratios.untouched_but("log-ratios", |_| true);
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
        let found = log_ratios.get()[sequence];
        let same = found == expected || (found.is_nan() && expected.is_nan());
        assert!(same || (found - expected).abs() <= 1e-12 * expected.abs(), "sequence {sequence}: {found}, {expected}");
    }
}
