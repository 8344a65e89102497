//! Sequence log-ratios: differences per token first, then a sum in f64; masked rows left out; every kind of reference.
//!
//! Log-probs here are multiples of 2⁻²⁰ below 8 in size: f32 holds them, and f64 their sums, exactly. So the results
//! must be exact, and any f32 on the way shows.

use exo_kernels::{Batch, Cpu, IGNORE_INDEX, LogRatio, Reference};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STEP: f64 = 1.0 / 1_048_576.0;

struct Sequences {
    /// In steps of 2⁻²⁰, as the references.
    log_probs: Vec<i64>,
    references: Vec<i64>,
    targets: Vec<i64>,
    batch: Batch,
}

/// Completions of 4000, 0, 1 and 2500 rows, a tenth of the rows masked.
fn sequences() -> Sequences {
    let mut random = StdRng::seed_from_u64(17);
    let rows = 6501;
    let mut steps = || -> Vec<i64> { (0..rows).map(|_| -random.random_range(0..1 << 23)).collect() };
    let (log_probs, references) = (steps(), steps());
    let targets = (0..rows).map(|row| if row % 10 == 3 { IGNORE_INDEX } else { 0 }).collect();
    let batch = Batch::new(&[0, 4000, 4000, 4001, rows], &[0, 2, 4]).expect("valid");
    Sequences { log_probs, references, targets, batch }
}

fn f32s(steps: &[i64]) -> Vec<f32> {
    steps.iter().map(|&steps| (steps as f64 * STEP) as f32).collect()
}

/// Scored rows and the exact sum of `value` over them, per sequence.
fn exact(sequences: &Sequences, value: impl Fn(usize) -> i64) -> Vec<(usize, f64)> {
    let ranges = sequences.batch.sequence_offsets().windows(2);
    ranges
        .map(|range| {
            let scored: Vec<usize> = (range[0]..range[1]).filter(|&row| sequences.targets[row] >= 0).collect();
            (scored.len(), scored.iter().map(|&row| value(row)).sum::<i64>() as f64 * STEP)
        })
        .collect()
}

fn run(sequences: &Sequences, log_probs: &[f32], reference: Reference<'_>, kind: LogRatio) -> Vec<f64> {
    let mut log_ratios = vec![f64::NAN; sequences.batch.sequences()];
    let Sequences { targets, batch, .. } = sequences;
    Cpu::default().log_ratios(log_probs, targets, reference, batch, kind, &mut log_ratios).expect("fits");
    log_ratios
}

#[test]
fn per_token_references_are_taken_away_before_the_sum() {
    let sequences = sequences();
    let (mut log_probs, mut references) = (f32s(&sequences.log_probs), f32s(&sequences.references));
    // Whatever stands in a masked row is left out.
    for row in (0..6501).filter(|row| row % 10 == 3) {
        (log_probs[row], references[row]) = (0.0, f32::NAN);
    }
    let expected = exact(&sequences, |row| sequences.log_probs[row] - sequences.references[row]);
    let reference = Reference::PerToken(&references);
    for (i, log_ratio) in run(&sequences, &log_probs, reference, LogRatio::Sum).into_iter().enumerate() {
        assert_eq!(log_ratio, expected[i].1, "sequence {i}");
    }
    for (i, log_ratio) in run(&sequences, &log_probs, reference, LogRatio::Mean).into_iter().enumerate() {
        let (scored, sum) = expected[i];
        assert_eq!(log_ratio, if scored == 0 { 0.0 } else { sum / scored as f64 }, "sequence {i}");
    }
    assert!(expected[0].1 != 0.0 && expected[1] == (0, 0.0));
}

/// A policy next to its reference: the sums are near −16000, their difference is what matters.
#[test]
fn neighbouring_log_probs_keep_their_difference() {
    let mut sequences = sequences();
    sequences.log_probs = sequences.references.iter().map(|steps| steps - 1).collect();
    let (log_probs, references) = (f32s(&sequences.log_probs), f32s(&sequences.references));
    let expected = exact(&sequences, |_| -1);
    for (i, log_ratio) in
        run(&sequences, &log_probs, Reference::PerToken(&references), LogRatio::Sum).into_iter().enumerate()
    {
        assert_eq!(log_ratio, expected[i].1, "sequence {i}");
    }
}

#[test]
fn per_sequence_references_and_none() {
    let sequences = sequences();
    let log_probs = f32s(&sequences.log_probs);
    let sums = [-16_000.25, -3.0, -1.5, -9_000.125];
    let expected = exact(&sequences, |row| sequences.log_probs[row]);
    let with = run(&sequences, &log_probs, Reference::PerSequence(&sums), LogRatio::Sum);
    let mean = run(&sequences, &log_probs, Reference::PerSequence(&sums), LogRatio::Mean);
    let without = run(&sequences, &log_probs, Reference::None, LogRatio::Sum);
    for (i, &(scored, sum)) in expected.iter().enumerate() {
        let ratio = if scored == 0 { 0.0 } else { sum - sums[i] };
        assert_eq!((with[i], without[i]), (ratio, sum), "sequence {i}");
        assert_eq!(mean[i], ratio / scored.max(1) as f64, "sequence {i}");
    }
}
