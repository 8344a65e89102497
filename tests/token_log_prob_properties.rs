//! Properties of the token log-prob stage at random shapes, strides, types and values.

use exo_kernels::{
    Cpu, Element, LogitOptions, Logits, LogitsMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use proptest::prelude::*;

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

    /// Log-probs and entropies when every row scores `target`, shifted by `shift`.
    fn forward<T: Element>(&self, target: usize, shift: f32) -> (Vec<f32>, Vec<SoftmaxState>, Vec<f32>) {
        let data: Vec<T> = self.values.iter().map(|value| T::from_f32(value + shift)).collect();
        let logits = Logits::strided(&data, self.rows, self.vocab, self.stride()).expect("fits");
        let (mut log_probs, mut entropies) = (vec![f32::NAN; self.rows], vec![f32::NAN; self.rows]);
        let mut states = vec![SoftmaxState::default(); self.rows];
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
        Cpu::default()
            .token_log_probs(logits, &vec![target as u32; self.rows], &self.options(), outputs)
            .expect("forward");
        (log_probs, states, entropies)
    }

    fn has_softmax(&self, row: usize) -> bool {
        self.values[row * self.stride()..][..self.vocab].iter().any(|value| value.is_finite())
    }
}

/// Each log-prob is within 60 roundings of f32 at these sizes (|log-prob| ≤ 60, entropy ≤ 6, softcap/T ≤ 170), see the
/// derived bounds; what is asked here is whether the numbers belong together at all.
const ROUNDING: f64 = 2e-4;

fn probabilities_sum_to_one<T: Element>(case: &Case) {
    let mut sums = vec![0.0f64; case.rows];
    let mut entropies = vec![0.0f64; case.rows];
    let mut reported = Vec::new();
    for target in 0..case.vocab {
        let (log_probs, _, entropy) = case.forward::<T>(target, 0.0);
        for row in 0..case.rows {
            let log_p = f64::from(log_probs[row]);
            sums[row] += log_p.exp();
            entropies[row] -= if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * log_p };
        }
        reported = entropy;
    }
    for row in 0..case.rows {
        if case.has_softmax(row) {
            assert!((sums[row] - 1.0).abs() < ROUNDING, "row {row}: Σp = {}", sums[row]);
            assert!(
                (entropies[row] - f64::from(reported[row])).abs() < 10.0 * ROUNDING,
                "row {row}: H = {}",
                reported[row]
            );
        } else {
            assert!(sums[row].is_nan() && reported[row].is_nan(), "row {row} has no softmax");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn probabilities_of_all_columns_belong_together(case in case()) {
        probabilities_sum_to_one::<f32>(&case);
        probabilities_sum_to_one::<f16>(&case);
        probabilities_sum_to_one::<bf16>(&case);
    }

    #[test]
    fn a_shift_of_the_logits_changes_nothing(case in case(), target in any::<prop::sample::Index>(), eighths in -800i16..800) {
        let case = Case { softcap: 0.0, ..case };
        let target = target.index(case.vocab);
        let (log_probs, _, entropies) = case.forward::<f32>(target, 0.0);
        let (shifted, _, shifted_entropies) = case.forward::<f32>(target, f32::from(eighths) / 8.0);
        for row in 0..case.rows {
            let same = |a: f32, b: f32| (a.is_nan() && b.is_nan()) || a == b || f64::from((a - b).abs()) < ROUNDING;
            prop_assert!(same(log_probs[row], shifted[row]), "{} {}", log_probs[row], shifted[row]);
            prop_assert!(same(entropies[row], shifted_entropies[row]));
        }
    }

    /// The logits enter through a softmax: their gradients cancel. And no padding is written.
    #[test]
    fn gradients_of_a_row_cancel(case in case(), target in any::<prop::sample::Index>(), g in -2.0f32..2.0, e in -1.0f32..1.0) {
        let case = Case { softcap: 0.0, ..case };
        let target = target.index(case.vocab);
        let (_, states, entropies) = case.forward::<f32>(target, 0.0);
        let targets = vec![target as u32; case.rows];
        let mut data = case.values.clone();
        let logits = LogitsMut::strided(&mut data, case.rows, case.vocab, case.stride()).expect("fits");
        let saved = SavedRows { states: &states, entropies: Some(&entropies) };
        let (g, e) = (vec![g; case.rows], vec![e; case.rows]);
        let gradients = RowGradients { log_probs: &g, entropies: Some(&e) };
        Cpu::default()
            .token_log_probs_backward_in_place(logits, &targets, &case.options(), saved, gradients)
            .expect("backward");
        for row in 0..case.rows {
            let at = row * case.stride();
            prop_assert_eq!(&data[at + case.vocab..at + case.stride()], &case.values[at + case.vocab..at + case.stride()]);
            let target_is_excluded = case.values[at + target] == f32::NEG_INFINITY;
            if case.has_softmax(row) && !target_is_excluded {
                let sum: f64 = data[at..at + case.vocab].iter().map(|&value| f64::from(value)).sum();
                prop_assert!(sum.abs() < ROUNDING, "row {}: Σ = {}", row, sum);
            }
        }
    }
}
