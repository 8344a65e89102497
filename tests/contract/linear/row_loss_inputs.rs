//! Which numbers a row loss takes, and what it makes of them up to their ends: nothing that is not finite, and nothing for
//! rows whose numbers do not matter.

use exo_kernels::reference::bounds;
use exo_kernels::reference::row_loss::{self, Clipping};
use exo_kernels::{DEFAULT_LOG_RATIO_LIMIT, Element, Error, LogitOptions, RowLoss};
use half::{bf16, f16};
use support::backend::{Outcome, TestBackend, on_every_backend};
use support::linear::{ALL, Case, Wanted};

on_every_backend!(
    what_cannot_matter_is_not_looked_at,
    the_log_ratio_is_limited,
    targets_without_probability_take_the_limit,
    accepted_numbers_give_finite_results_up_to_their_ends,
    a_bad_number_is_refused_or_withheld,
    numbers_of_masked_rows_are_not_read,
);

/// A row with hidden state 1 under a head of zeros: p = (½, ½), so that the gradient of the weight is (g/2, −g/2)/T.
fn even<T: Element>() -> Case<T, T> {
    let (hidden, weight) = (vec![T::from_f32(1.0)], vec![T::from_f32(0.0); 2]);
    Case { rows: 1, hidden_size: 1, vocab: 2, hidden, weight, bias: None, targets: vec![0] }
}

/// log π of that row.
const LOG_PROB: f32 = -std::f32::consts::LN_2;

/// The numbers of one row.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    weight: f32,
    advantage: f32,
    old_log_prob: f32,
    limit: f32,
}

const LOW: f32 = 0.2;
const HIGH: f32 = 0.3;

fn ratio_loss<T: Element, G: Element>(
    backend: &impl TestBackend,
    case: &Case<T, T>,
    options: &LogitOptions,
    numbers: Numbers,
    wanted: Wanted,
) -> Outcome<T, G> {
    let Numbers { weight, advantage, old_log_prob, limit } = numbers;
    let (weights, advantages, old_log_probs) = (&[weight][..], &[advantage][..], &[old_log_prob][..]);
    let (low, high, log_ratio_limit) = (LOW, HIGH, limit);
    let loss = RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit };
    backend.row_loss(case, options, loss, wanted)
}

/// The first case of the faults: a ratio of e⁷¹⁰ times an advantage of 0, added to what earlier micro-batches left.
fn what_cannot_matter_is_not_looked_at(backend: &impl TestBackend) {
    let options = LogitOptions::default();
    let wanted = Wanted { accumulate: Some(1.5), ..ALL };
    for (weight, advantage) in [(1.0, 0.0), (-2.0, -0.0), (0.0, 1.0), (-0.0, f32::NAN), (0.0, f32::INFINITY)] {
        for old_log_prob in [-711.0, -9999.0, f32::MIN, 9999.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
            let numbers = Numbers { weight, advantage, old_log_prob, limit: DEFAULT_LOG_RATIO_LIMIT };
            let outcome: Outcome<f32, f32> = ratio_loss(backend, &even(), &options, numbers, wanted);
            assert_eq!(outcome.found, Ok(()), "{numbers:?}");
            assert_eq!(outcome.losses, [0.0], "{numbers:?}");
            assert_eq!(outcome.gradients.hidden, [0.0], "{numbers:?}");
            assert_eq!((outcome.gradients.weight, outcome.gradients.bias), (vec![1.5; 2], vec![1.5; 2]), "{numbers:?}");
        }
    }
}

/// The second case: log π − log π_old = 100. Losses and gradients against the reference, on both sides of the limit and at
/// it, for limits up to the ends of their range.
fn the_log_ratio_is_limited(backend: &impl TestBackend) {
    let options = LogitOptions::default();
    for limit in [f32::MIN_POSITIVE, 1e-3, 0.25, 1.0, DEFAULT_LOG_RATIO_LIMIT, 88.0] {
        let distances = [0.0, 0.1, -0.1, 0.5 * limit, 1.0, -1.0, 100.0, -100.0, 9999.0, -9999.0, f32::MAX, f32::MIN];
        for (weight, advantage) in [(1.0, 1.0), (1.0, -1.0), (-0.5, 1.5), (-0.5, -1.5)] {
            for distance in distances {
                let numbers = Numbers { weight, advantage, old_log_prob: LOG_PROB - distance, limit };
                let outcome: Outcome<f32, f32> = ratio_loss(backend, &even(), &options, numbers, ALL);
                assert_eq!(outcome.found, Ok(()), "{numbers:?}");
                let clipping = Clipping { low: LOW.into(), high: HIGH.into(), log_ratio_limit: limit.into() };
                let (log_prob, old) = (f64::from(outcome.log_probs[0]), f64::from(numbers.old_log_prob));
                let exact = row_loss::clipped_ratio(log_prob, weight.into(), advantage.into(), old, clipping);
                // From the log-prob that the row has: the loss's own roundings are left.
                let error = (f64::from(outcome.losses[0]) - exact.loss).abs();
                let bound = bounds::row_loss::loss(exact.loss, exact.loss.abs(), 0.0);
                assert!(error <= bound, "{numbers:?}: {} {} ± {bound}", outcome.losses[0], exact.loss);
                // g/2 is exact but for the rounding of p.
                let gradient = f64::from(outcome.gradients.weight[0]) * 2.0;
                let bound = bounds::row_loss::loss(exact.gradient, exact.gradient.abs(), 1e-6);
                let error = (gradient - exact.gradient).abs();
                assert!(error <= bound, "{numbers:?}: gradient {gradient} {} ± {bound}", exact.gradient);
                assert!(outcome.gradients.hidden[0].is_finite() && outcome.gradients.bias[1].is_finite());
            }
        }
    }
    let numbers = Numbers { weight: 1.0, advantage: -1.0, old_log_prob: LOG_PROB - 100.0, limit: 20.0 };
    let outcome: Outcome<f32, f32> = ratio_loss(backend, &even(), &options, numbers, ALL);
    assert_eq!((outcome.losses[0], outcome.gradients.weight[0]), (485_165_195.409_79_f64 as f32, 0.0));
}

/// log π = −∞: the weighted log-prob is infinite with a finite gradient, the clipped ratio is at its limit and has none.
fn targets_without_probability_take_the_limit(backend: &impl TestBackend) {
    let options = LogitOptions::default();
    let mut case = even::<f32>();
    case.bias = Some(vec![f32::NEG_INFINITY, 0.0]);
    let wanted = Wanted { accumulate: Some(0.5), ..ALL };
    for weight in [0.75_f32, -0.75] {
        let weighted: Outcome<f32, f32> =
            backend.row_loss(&case, &options, RowLoss::Weighted { weights: &[weight][..] }, wanted);
        assert_eq!(weighted.log_probs, [f32::NEG_INFINITY]);
        assert_eq!(weighted.losses, [f32::INFINITY.copysign(weight)]);
        assert_eq!(weighted.gradients.weight, [0.5 - weight, 0.5 + weight]);
        assert_eq!(weighted.gradients.bias, [0.5 - weight, 0.5 + weight]);
        for advantage in [2.0_f32, -2.0] {
            let numbers = Numbers { weight, advantage, old_log_prob: -3.0, limit: DEFAULT_LOG_RATIO_LIMIT };
            let outcome: Outcome<f32, f32> = ratio_loss(backend, &case, &options, numbers, wanted);
            let clipping = Clipping { low: LOW.into(), high: HIGH.into(), log_ratio_limit: 20.0 };
            let (weight, advantage) = (f64::from(weight), f64::from(advantage));
            let exact = row_loss::clipped_ratio(f64::NEG_INFINITY, weight, advantage, -3.0, clipping);
            let error = (f64::from(outcome.losses[0]) - exact.loss).abs();
            assert!(error <= bounds::row_loss::loss(exact.loss, exact.loss.abs(), 0.0), "{numbers:?}");
            assert_eq!((outcome.gradients.weight, outcome.gradients.bias), (vec![0.5; 2], vec![0.5; 2]), "{numbers:?}");
            assert_eq!(outcome.found, Ok(()));
        }
    }
}

/// The largest product of weight and advantage, or the largest weight, that is accepted; and the next f32 is not.
fn accepted_numbers_give_finite_results_up_to_their_ends(backend: &impl TestBackend) {
    fn check<T: Element>(backend: &impl TestBackend, temperatures: &[f64], limits: &[f32], old: &[f32]) {
        let case = even::<T>();
        let finite = |outcome: &Outcome<T, f32>, context: &str| {
            assert_eq!(outcome.found, Ok(()), "{context}");
            let numbers = outcome.losses.iter().chain(&outcome.gradients.weight).chain(&outcome.gradients.bias);
            assert!(numbers.into_iter().all(|number| number.is_finite()), "{context}: {outcome:?}");
        };
        for &temperature in temperatures {
            let options = LogitOptions::default().with_temperature(temperature).expect("valid");
            let room = f64::from(f32::MAX) / (2.0 / temperature).max(1.0);
            // The largest f32 below, or the next one.
            let largest = |exact: f64| {
                let nearest = exact as f32;
                let below = if f64::from(nearest) > exact { nearest.next_down() } else { nearest };
                (below, below.next_up())
            };
            for sign in [1.0, -1.0] {
                let (most, more) = largest(room);
                for weight in [most, f32::MIN_POSITIVE, f32::from_bits(1)] {
                    let weights = &[sign * weight][..];
                    let outcome = backend.row_loss(&case, &options, RowLoss::Weighted { weights }, ALL);
                    finite(&outcome, &format!("T={temperature} w={weights:?}"));
                }
                let weights = &[sign * more][..];
                let refused: Outcome<T, f32> = backend.row_loss(&case, &options, RowLoss::Weighted { weights }, ALL);
                assert!(refused.found.is_err(), "T={temperature} w={weights:?}");

                for &limit in limits {
                    let (most, more) = largest(room / f64::from(limit).exp());
                    for &old_log_prob in old {
                        for (weight, advantage) in [(most, sign), (sign, most)] {
                            let numbers = Numbers { weight, advantage, old_log_prob, limit };
                            let outcome = ratio_loss(backend, &case, &options, numbers, ALL);
                            finite(&outcome, &format!("T={temperature} {numbers:?}"));
                        }
                    }
                    let numbers = Numbers { weight: more, advantage: sign, old_log_prob: -1.0, limit };
                    let refused: Outcome<T, f32> = ratio_loss(backend, &case, &options, numbers, ALL);
                    assert!(refused.found.is_err(), "T={temperature} {numbers:?}");
                }
            }
        }
    }
    check::<f32>(backend, &[1e-30, 1.0, 3.0, 1e30], &[f32::from_bits(1), 20.0, 88.0], &[-9999.0, f32::MAX]);
    check::<bf16>(backend, &[1e-30, 1.0], &[20.0], &[-9999.0]);
    check::<f16>(backend, &[1e-30, 1.0], &[20.0], &[-9999.0]);

    // A loss of finite factors that does not fit f32 stays at its end.
    let mut case = even::<f32>();
    case.bias = Some(vec![-1000.0, 0.0]);
    for weight in [1e36_f32, -1e36] {
        let loss = RowLoss::Weighted { weights: &[weight][..] };
        let outcome: Outcome<f32, f32> = backend.row_loss(&case, &LogitOptions::default(), loss, ALL);
        assert_eq!((outcome.log_probs[0], outcome.losses[0]), (-1000.0, f32::MAX.copysign(weight)));
        assert_eq!(outcome.gradients.weight, [-weight, weight]);
    }
}

fn clipped<'a>(weights: &'a [f32], advantages: &'a [f32], old_log_probs: &'a [f32]) -> RowLoss<&'a [f32]> {
    let (low, high, log_ratio_limit) = (LOW, HIGH, DEFAULT_LOG_RATIO_LIMIT);
    RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit }
}

/// The third case: 300 rows, one number of one of them bad.
fn a_bad_number_is_refused_or_withheld(backend: &impl TestBackend) {
    const ROW: usize = 261;
    let case = Case::<f32, f32>::random(300, 4, 30, true, 3);
    assert!(case.targets[ROW] >= 0);
    let options = LogitOptions::default();
    let weights: Vec<f32> = (0..300).map(|row| 0.01 + row as f32 * 1e-4).collect();
    let advantages: Vec<f32> = (0..300).map(|row| if row % 3 == 0 { -0.5 } else { 0.75 }).collect();
    let old: Vec<f32> = (0..300).map(|row| -3.0 - (row % 7) as f32 * 0.1).collect();
    let with = |numbers: &[f32], value: f32| {
        let mut numbers = numbers.to_vec();
        numbers[ROW] = value;
        numbers
    };
    for accumulate in [None, Some(0.25)] {
        let wanted = Wanted { accumulate, ..ALL };
        let none = with(&weights, 0.0);
        let without = |clip: bool| -> Outcome<f32, f32> {
            let loss =
                if clip { clipped(&none, &advantages, &old) } else { RowLoss::Weighted { weights: none.as_slice() } };
            backend.row_loss(&case, &options, loss, wanted)
        };
        let (plain, of_ratio) = (without(false), without(true));
        let check = |loss: RowLoss<&[f32]>, expected: &Outcome<f32, f32>, what: &str| {
            let outcome: Outcome<f32, f32> = backend.row_loss(&case, &options, loss, wanted);
            if !sees_numbers(backend) {
                assert_eq!(outcome.found, Err(Error::DeviceRowInput { row: ROW, count: 1 }), "{what}");
                assert_eq!(outcome.losses, expected.losses, "{what}");
                assert_eq!(outcome.gradients, expected.gradients, "{what}");
                return;
            }
            match outcome.found {
                Err(error @ Error::RowInput { row: ROW, .. }) => assert!(error.to_string().contains(what), "{error}"),
                other => panic!("{other:?}, {what}"),
            }
            assert!(outcome.losses.iter().chain(&outcome.log_probs).all(|number| *number == f32::MAX), "written");
            assert!(outcome.gradients.hidden.iter().all(|number| number.is_nan()), "written");
            let of_head = outcome.gradients.weight.iter().chain(&outcome.gradients.bias);
            assert!(of_head.into_iter().all(|number| accumulate.map_or(number.is_nan(), |before| *number == before)));
        };
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            let weights_bad = with(&weights, bad);
            check(RowLoss::Weighted { weights: &weights_bad }, &plain, "row weight");
            check(clipped(&weights_bad, &advantages, &old), &of_ratio, "row weight");
            check(clipped(&weights, &with(&advantages, bad), &old), &of_ratio, "advantage");
            check(clipped(&weights, &advantages, &with(&old, bad)), &of_ratio, "old log-prob");
        }
        check(clipped(&weights, &with(&advantages, f32::MAX), &old), &of_ratio, "product");
        check(clipped(&with(&weights, -f32::MAX), &advantages, &old), &of_ratio, "product");
    }
}

fn numbers_of_masked_rows_are_not_read(backend: &impl TestBackend) {
    let case = Case::<bf16, bf16>::random(9, 4, 30, true, 4);
    let numbers: Vec<f32> = case.targets.iter().map(|target| if *target < 0 { f32::NAN } else { -0.5 }).collect();
    let numbers = numbers.as_slice();
    let (low, high, log_ratio_limit) = (LOW, HIGH, DEFAULT_LOG_RATIO_LIMIT);
    let (weights, advantages, old_log_probs) = (numbers, numbers, numbers);
    for loss in [
        RowLoss::Weighted { weights },
        RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit },
    ] {
        let outcome: Outcome<bf16, f32> = backend.row_loss(&case, &LogitOptions::default(), loss, ALL);
        assert_eq!(outcome.found, Ok(()));
        assert!(outcome.losses.iter().chain(&outcome.gradients.weight).all(|number| number.is_finite()));
    }
}

fn sees_numbers<B: TestBackend>(_: &B) -> bool {
    B::SEES_NUMBERS
}
