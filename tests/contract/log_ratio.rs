//! Sequence log-ratios: differences per token first, then a sum in f64; masked rows left out; every kind of reference.
//!
//! Log-probs here are multiples of 2⁻²⁰ below 8 in size: f32 holds them, and f64 their sums, exactly. So the results
//! must be exact, and any f32 on the way shows.

use exo_kernels::{Batch, IGNORE_INDEX, LogRatio, Reference};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::backend::{TestBackend, on_every_backend};

const STEP: f64 = 1.0 / 1_048_576.0;

struct Sequences {
    /// In steps of 2⁻²⁰, as the references.
    log_probs: Vec<i64>,
    references: Vec<i64>,
    targets: Vec<i64>,
    batch: Batch,
}

/// Around a warp, a block, four rows a thread; empty ones.
const LENGTHS: [usize; 14] = [4000, 0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 0, 2500];

/// Completions of these lengths, a tenth of the rows masked, and all rows of one.
fn sequences() -> Sequences {
    let mut random = StdRng::seed_from_u64(17);
    let mut offsets = vec![0];
    offsets.extend(LENGTHS.iter().scan(0, |rows, length| {
        *rows += length;
        Some(*rows)
    }));
    let rows = offsets[LENGTHS.len()];
    let masked = offsets[5]..offsets[6];
    let mut steps = || -> Vec<i64> { (0..rows).map(|_| -random.random_range(0..1 << 23)).collect() };
    let (log_probs, references) = (steps(), steps());
    let is_masked = |row: usize| row % 10 == 3 || masked.contains(&row);
    let targets = (0..rows).map(|row| if is_masked(row) { IGNORE_INDEX } else { 0 }).collect();
    let batch = Batch::new(&offsets, &[0, 2, LENGTHS.len()]).expect("valid");
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

on_every_backend!(
    per_token_references_are_taken_away_before_the_sum,
    neighbouring_log_probs_keep_their_difference,
    per_sequence_references_and_none,
);

fn per_token_references_are_taken_away_before_the_sum(backend: &impl TestBackend) {
    let sequences = sequences();
    let Sequences { targets, batch, .. } = &sequences;
    let (mut log_probs, mut references) = (f32s(&sequences.log_probs), f32s(&sequences.references));
    // Whatever stands in a masked row is left out.
    for row in (0..targets.len()).filter(|&row| targets[row] < 0) {
        (log_probs[row], references[row]) = (0.0, f32::NAN);
    }
    let expected = exact(&sequences, |row| sequences.log_probs[row] - sequences.references[row]);
    let reference = Reference::PerToken(&references);
    for (i, log_ratio) in
        backend.host_log_ratios(&log_probs, targets, reference, batch, LogRatio::Sum).into_iter().enumerate()
    {
        assert_eq!(log_ratio, expected[i].1, "sequence {i}");
    }
    for (i, log_ratio) in
        backend.host_log_ratios(&log_probs, targets, reference, batch, LogRatio::Mean).into_iter().enumerate()
    {
        let (scored, sum) = expected[i];
        assert_eq!(log_ratio, if scored == 0 { 0.0 } else { sum / scored as f64 }, "sequence {i}");
    }
    assert!(expected[0].1 != 0.0 && expected[1] == (0, 0.0) && expected[5] == (0, 0.0));
}

/// A policy next to its reference: the sums are near −16000, their difference is what matters.
fn neighbouring_log_probs_keep_their_difference(backend: &impl TestBackend) {
    let mut sequences = sequences();
    sequences.log_probs = sequences.references.iter().map(|steps| steps - 1).collect();
    let (log_probs, references) = (f32s(&sequences.log_probs), f32s(&sequences.references));
    let expected = exact(&sequences, |_| -1);
    let Sequences { targets, batch, .. } = &sequences;
    let reference = Reference::PerToken(&references);
    for (i, log_ratio) in
        backend.host_log_ratios(&log_probs, targets, reference, batch, LogRatio::Sum).into_iter().enumerate()
    {
        assert_eq!(log_ratio, expected[i].1, "sequence {i}");
    }
    // Also where no f32 holds the difference.
    let one = Batch::padded(1, 1, 1).expect("one row");
    let far = backend.host_log_ratios(&[-16.000_002], &[0], Reference::PerToken(&[-1e-9]), &one, LogRatio::Sum);
    assert_eq!(far, [f64::from(-16.000_002_f32) + f64::from(1e-9_f32)]);
}

fn per_sequence_references_and_none(backend: &impl TestBackend) {
    let sequences = sequences();
    let Sequences { targets, batch, .. } = &sequences;
    let log_probs = f32s(&sequences.log_probs);
    let sums: Vec<f64> = (0..LENGTHS.len()).map(|i| -1000.25 * i as f64 - 3.0).collect();
    let expected = exact(&sequences, |row| sequences.log_probs[row]);
    let run = |reference, kind| backend.host_log_ratios(&log_probs, targets, reference, batch, kind);
    let with = run(Reference::PerSequence(&sums), LogRatio::Sum);
    let mean = run(Reference::PerSequence(&sums), LogRatio::Mean);
    let without = run(Reference::None, LogRatio::Sum);
    for (i, &(scored, sum)) in expected.iter().enumerate() {
        let ratio = if scored == 0 { 0.0 } else { sum - sums[i] };
        assert_eq!((with[i], without[i]), (ratio, sum), "sequence {i}");
        assert_eq!(mean[i], ratio / scored.max(1) as f64, "sequence {i}");
    }
}
