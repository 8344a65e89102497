//! Properties of the token log-prob stage at random shapes, strides, types and values.

use approx::abs_diff_eq;
use exo_kernels::{Element, LogitOptions};
use half::{bf16, f16};
use proptest::prelude::*;
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    probabilities_of_all_columns_belong_together,
    a_shift_of_the_logits_changes_nothing,
    gradients_of_a_row_cancel,
);

/// A batch of one or a few rows. Values are multiples of 1/8, so that shifting them is exact in every type that holds
/// them.
#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    vocab: usize,
    padding: usize,
    values: Vec<f32>,
    temperature: f64,
    softcap: f64,
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..5, 1usize..200, 0usize..9, 0.3f64..3.0, prop_oneof![Just(0.0), 1.0f64..50.0]).prop_flat_map(
        |(rows, vocab, padding, temperature, softcap)| {
            let value = prop_oneof![9 => (-64i16..64).prop_map(|eighths| f32::from(eighths) / 8.0), 1 => Just(f32::NEG_INFINITY)];
            proptest::collection::vec(value, rows * (vocab + padding))
                .prop_map(move |values| Case { rows, vocab, padding, values, temperature, softcap })
        },
    )
}

impl Case {
    fn options(&self) -> LogitOptions {
        let options = LogitOptions::default().with_temperature(self.temperature).expect("valid");
        options.with_softcap(self.softcap).expect("valid")
    }

    fn stride(&self) -> usize {
        self.vocab + self.padding
    }

    /// The rows, shifted, each scoring `target`.
    fn rows<T: Element>(&self, target: usize, shift: f32) -> Rows<T> {
        let logits = self.values.iter().map(|value| T::from_f32(value + shift)).collect();
        Rows { row_stride: self.stride(), ..Rows::new(logits, vec![target as i64; self.rows], self.vocab) }
    }

    /// Row `row` once for each of its columns, which is the target.
    fn every_target<T: Element>(&self, row: usize) -> Rows<T> {
        let row: Vec<T> = self.row(row).iter().map(|value| T::from_f32(*value)).collect();
        Rows::new(row.repeat(self.vocab), (0..self.vocab as i64).collect(), self.vocab)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride()..][..self.vocab]
    }

    fn has_softmax(&self, row: usize) -> bool {
        self.row(row).iter().any(|value| value.is_finite())
    }
}

/// Each log-prob is within 60 roundings of f32 at these sizes (|log-prob| ≤ 60, entropy ≤ 6, softcap/T ≤ 170), see the
/// derived bounds; what is asked here is whether the numbers belong together at all.
const ROUNDING: f64 = 2e-4;

fn probabilities_sum_to_one<T: Element>(backend: &impl TestBackend, case: &Case) {
    for row in 0..case.rows {
        let found = backend.forward(&case.every_target::<T>(row), &case.options(), true);
        let (mut sum, mut entropy) = (0.0f64, 0.0f64);
        for log_p in found.log_probs.iter().map(|log_prob| f64::from(*log_prob)) {
            sum += log_p.exp();
            entropy -= if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * log_p };
        }
        let reported = f64::from(found.entropies[0]);
        if case.has_softmax(row) {
            assert!(abs_diff_eq!(sum, 1.0, epsilon = ROUNDING), "row {row}: Σp = {sum}");
            assert!(abs_diff_eq!(entropy, reported, epsilon = 10.0 * ROUNDING), "row {row}: H = {reported}");
        } else {
            assert!(sum.is_nan() && reported.is_nan(), "row {row} has no softmax");
        }
    }
}

fn config<B: TestBackend>(_: &B) -> ProptestConfig {
    ProptestConfig { cases: B::pick(64, 16), failure_persistence: None, ..ProptestConfig::default() }
}

fn probabilities_of_all_columns_belong_together(backend: &impl TestBackend) {
    proptest!(config(backend), |(case in case())| {
        probabilities_sum_to_one::<f32>(backend, &case);
        probabilities_sum_to_one::<f16>(backend, &case);
        probabilities_sum_to_one::<bf16>(backend, &case);
    });
}

fn a_shift_of_the_logits_changes_nothing(backend: &impl TestBackend) {
    proptest!(config(backend), |(case in case(), target in any::<prop::sample::Index>(), eighths in -800i16..800)| {
        let case = Case { softcap: 0.0, ..case };
        let target = target.index(case.vocab);
        let found = backend.forward(&case.rows::<f32>(target, 0.0), &case.options(), true);
        let shifted = backend.forward(&case.rows::<f32>(target, f32::from(eighths) / 8.0), &case.options(), true);
        for row in 0..case.rows {
            let close = |a: f32, b: f32| abs_diff_eq!(f64::from(a), f64::from(b), epsilon = ROUNDING);
            let same = |a: f32, b: f32| (a.is_nan() && b.is_nan()) || a == b || close(a, b);
            prop_assert!(same(found.log_probs[row], shifted.log_probs[row]), "{found:?} {shifted:?}");
            prop_assert!(same(found.entropies[row], shifted.entropies[row]), "{found:?} {shifted:?}");
        }
    });
}

/// The logits enter through a softmax: their gradients cancel. And no padding is written.
fn gradients_of_a_row_cancel(backend: &impl TestBackend) {
    let targets = any::<prop::sample::Index>();
    proptest!(config(backend), |(case in case(), target in targets, g in -2.0f32..2.0, e in -1.0f32..1.0)| {
        let case = Case { softcap: 0.0, ..case };
        let target = target.index(case.vocab);
        let rows = case.rows::<f32>(target, 0.0);
        let found = backend.forward(&rows, &case.options(), true);
        let (g, e) = (vec![g; case.rows], vec![e; case.rows]);
        let gradient = backend.backward(&rows, &case.options(), &found, (&g, Some(&e)), true);
        for row in 0..case.rows {
            let padding = row * case.stride() + case.vocab..(row + 1) * case.stride();
            prop_assert_eq!(&gradient[padding.clone()], &case.values[padding]);
            let target_is_excluded = case.row(row)[target] == f32::NEG_INFINITY;
            if case.has_softmax(row) && !target_is_excluded {
                let sum: f64 = rows.row(&gradient, row).iter().map(|&value| f64::from(value)).sum();
                prop_assert!(abs_diff_eq!(sum, 0.0, epsilon = ROUNDING), "row {}: Σ = {}", row, sum);
            }
        }
    });
}
