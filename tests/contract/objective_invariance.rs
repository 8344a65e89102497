//! What the objectives do not depend on, that their gradient is their derivative, and what an impossible sample is
//! worth: properties of any group.

use exo_kernels::reference::{bounds, objective as reference};
use exo_kernels::{Batch, Divergence, Objective, Reduction, Rewards, Target};
use proptest::prelude::*;
use support::backend::{Groups, TestBackend, on_backend, on_every_training_backend};
use support::objective_cases::DIVERGENCES;

on_every_training_backend!(
    a_shift_of_all_log_ratios_changes_nothing,
    a_shift_of_all_rewards_changes_nothing,
    a_shift_that_rounds_stays_within_the_bounds,
    a_permutation_permutes_the_coefficients,
    proposal_offsets_are_added_to_both_logits,
    coefficients_sum_to_zero_and_losses_are_not_negative,
    gradients_are_derivatives,
    an_impossible_sample_is_a_limit,
    a_group_of_impossible_samples_has_no_gradient,
    a_nan_poisons_its_own_group_only,
    a_group_of_one_has_no_loss,
);
on_backend!(
    specification,
    exo_kernels::reference::ReferenceBackend,
    a_group_of_impossible_samples_has_no_gradient,
    a_group_of_one_has_no_loss,
    a_nan_poisons_its_own_group_only,
    a_permutation_permutes_the_coefficients,
    a_shift_that_rounds_stays_within_the_bounds,
    an_impossible_sample_is_a_limit,
    gradients_are_derivatives,
    proposal_offsets_are_added_to_both_logits,
);

/// Every number of a case is a launch or two on a device.
fn config<B: TestBackend>(_: &B) -> ProptestConfig {
    ProptestConfig { cases: B::pick(512, 48), failure_persistence: None, ..ProptestConfig::default() }
}

fn objective(target: Target, divergence: Divergence, beta_policy: f64) -> Objective {
    Objective::new(target, divergence, beta_policy).expect("parameters in range")
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Rewards { beta: 0.5 }),
        Just(Target::Preference { label_smoothing: 1e-3 }),
        Just(Target::Preference { label_smoothing: 0.25 }),
        Just(Target::Distribution),
    ]
}

fn objectives() -> impl Strategy<Value = Objective> {
    let betas = prop_oneof![Just(0.25), Just(1.0), Just(2.0)];
    (targets(), proptest::sample::select(&DIVERGENCES[..]), betas)
        .prop_map(|(target, divergence, beta)| objective(target, divergence, beta))
}

/// Multiples of 2^(−10) up to `limit`: sums, differences and products with the betas above are exact.
fn dyadic(limit: i32) -> impl Strategy<Value = f64> {
    (-limit * 1024..=limit * 1024).prop_map(|numerator| f64::from(numerator) / 1024.0)
}

/// Log-ratios and rewards of 1 to 9 samples.
fn groups() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    (1usize..10).prop_flat_map(|k| (proptest::collection::vec(dyadic(8), k), proptest::collection::vec(dyadic(4), k)))
}

/// Absolute bounds of loss and coefficients, from the reference's own results.
fn absolute_bounds(objective: &Objective, log_ratios: &[f64], rewards: &[f64]) -> bounds::GroupBounds {
    let zeros = vec![0.0; log_ratios.len()];
    let logits = reference::target_logits(objective.target(), rewards, &zeros);
    bounds::group(objective, log_ratios, &logits, 0.0, &reference::group_loss(objective, log_ratios, rewards, &zeros))
}

fn moved(values: &[f64], by: f64) -> Vec<f64> {
    values.iter().map(|value| value + by).collect()
}

/// The derivative of `function` at 0 from seven points a distance of `STEP` apart: right to STEP⁶/140 times the seventh
/// derivative.
fn central_difference(function: impl Fn(f64) -> f64) -> f64 {
    let pair = |steps: f64| function(steps * STEP) - function(-steps * STEP);
    (45.0 * pair(1.0) - 9.0 * pair(2.0) + pair(3.0)) / (60.0 * STEP)
}

const STEP: f64 = 1.0 / 64.0;

/// How far the difference quotient may be from the derivative in f.
///
/// As a function of one f_i the loss is analytic in the disc of radius 1 around it: there Re e^z ≥ cos 1·|e^z|, so Σ
/// e^f keeps away from 0, Σ |p| is at most 1/cos 1 < 1.9, and no log p moves by more than 3. So |L| there is below 1.9
/// (A + 3), A the largest |log p| or |log q|, or, for an order α strictly between 0 and 1, below (1 + 1.9 e)/(α(1 −
/// α)). By Cauchy's estimate the seventh derivative is at most 7! times that. The values of the loss are off by their
/// bound, and weigh in with 110/60 in all, over the step.
fn difference_error(objective: &Objective, group: &reference::GroupLoss, loss_bound: f64) -> f64 {
    let smallest = group.policy.iter().chain(&group.target).copied().fold(1.0, f64::min);
    let largest_loss = match objective.divergence() {
        Divergence::Alpha(alpha) if alpha > 0.0 && alpha < 1.0 => 6.2 / (alpha * (1.0 - alpha)),
        _ => 1.9 * (3.0 - smallest.ln()),
    };
    5040.0 / 140.0 * STEP.powi(6) * largest_loss + 110.0 / 60.0 / STEP * loss_bound
}

/// In numbers that shift without rounding, not a bit may change.
fn a_shift_of_all_log_ratios_changes_nothing(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives(), by in dyadic(4096))| {
        prop_assert_eq!(
            backend.one_group(&objective, &moved(&log_ratios, by), &rewards, None),
            backend.one_group(&objective, &log_ratios, &rewards, None)
        );
    });
}

fn a_shift_of_all_rewards_changes_nothing(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives(), by in dyadic(4096))| {
        prop_assert_eq!(
            backend.one_group(&objective, &log_ratios, &moved(&rewards, by), None),
            backend.one_group(&objective, &log_ratios, &rewards, None)
        );
    });
}

/// Shifts by any number round f and s once more, by u times their size each: to first order the loss moves by Σ |g|
/// times that, and `bounds::group` has that term for inputs of the shifted size.
fn a_shift_that_rounds_stays_within_the_bounds(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives(), by in -1e4..1e4f64, reward_by in -1e4..1e4f64)| {
        let (shifted, shifted_rewards) = (moved(&log_ratios, by), moved(&rewards, reward_by));
        let bound = absolute_bounds(&objective, &shifted, &shifted_rewards);
        let (loss, coefficients) = backend.one_group(&objective, &log_ratios, &rewards, None);
        let (shifted_loss, shifted_coefficients) = backend.one_group(&objective, &shifted, &shifted_rewards, None);
        prop_assert!((loss - shifted_loss).abs() <= 2.0 * bound.loss, "{loss} {shifted_loss}");
        for (one, other) in coefficients.iter().zip(&shifted_coefficients) {
            prop_assert!((one - other).abs() <= 2.0 * bound.coefficient, "{one} {other}");
        }
    });
}

/// Sums are taken in another order: each result is within its bound of what is exact.
fn a_permutation_permutes_the_coefficients(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives(), seed in any::<u64>())| {
        let k = log_ratios.len();
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by_key(|&i| (seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let permuted = |values: &[f64]| order.iter().map(|&i| values[i]).collect::<Vec<f64>>();
        let (loss, coefficients) = backend.one_group(&objective, &log_ratios, &rewards, None);
        let (other_loss, others) = backend.one_group(&objective, &permuted(&log_ratios), &permuted(&rewards), None);
        let bound = absolute_bounds(&objective, &log_ratios, &rewards);
        prop_assert!((loss - other_loss).abs() <= 2.0 * bound.loss, "{loss} {other_loss}");
        for (one, other) in permuted(&coefficients).iter().zip(&others) {
            prop_assert!((one - other).abs() <= 2.0 * bound.coefficient, "{one} {other}");
        }
    });
}

/// A proposal's offset c is the same as c on both logits: β_π·S + c and, for log targets, log q + c.
fn proposal_offsets_are_added_to_both_logits(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), divergence in proptest::sample::select(&DIVERGENCES[..]), seed in dyadic(3))| {
        let objective = objective(Target::Distribution, divergence, 1.0);
        let offsets: Vec<f64> = rewards.iter().rev().map(|reward| seed - 1.5 * reward).collect();
        let with = |values: &[f64]| values.iter().zip(&offsets).map(|(value, c)| value + c).collect::<Vec<f64>>();
        prop_assert_eq!(
            backend.one_group(&objective, &log_ratios, &rewards, Some(&offsets)),
            backend.one_group(&objective, &with(&log_ratios), &with(&rewards), None)
        );
        let zeros = vec![0.0; offsets.len()];
        prop_assert_eq!(
            reference::group_loss(&objective, &log_ratios, &rewards, &offsets),
            reference::group_loss(&objective, &with(&log_ratios), &with(&rewards), &zeros)
        );
    });
}

fn coefficients_sum_to_zero_and_losses_are_not_negative(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives())| {
        let (loss, coefficients) = backend.one_group(&objective, &log_ratios, &rewards, None);
        prop_assert!(loss >= 0.0, "{loss}");
        // One is minus the sum of the others: K additions here and there, and the product with β.
        let sizes: f64 = coefficients.iter().map(|c| c.abs()).sum();
        let sum: f64 = coefficients.iter().sum();
        prop_assert!(sum.abs() <= (2 * coefficients.len() + 2) as f64 * f64::EPSILON * sizes, "{sum} of {sizes}");
    });
}

/// The gradient is the derivative of the loss that is returned, on the CPU and in the reference.
fn gradients_are_derivatives(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives())| {
        let (k, beta) = (log_ratios.len(), objective.beta_policy());
        let zeros = vec![0.0; k];
        let group = reference::group_loss(&objective, &log_ratios, &rewards, &zeros);
        let bound = absolute_bounds(&objective, &log_ratios, &rewards);
        let error = difference_error(&objective, &group, bound.loss);
        let (_, coefficients) = backend.one_group(&objective, &log_ratios, &rewards, None);
        for i in 0..k {
            let at = |step: f64| {
                let mut log_ratios = log_ratios.clone();
                log_ratios[i] += step / beta;
                log_ratios
            };
            let cpu = central_difference(|step| backend.one_group(&objective, &at(step), &rewards, None).0);
            let derivative = coefficients[i] / beta;
            prop_assert!((cpu - derivative).abs() <= error + bound.coefficient / beta, "{i}: {cpu}, not {derivative}");
            let plain = central_difference(|step| reference::group_loss(&objective, &at(step), &rewards, &zeros).loss);
            let derivative = group.gradient[i];
            prop_assert!((plain - derivative).abs() <= error + bound.coefficient / beta, "{i}: {plain}, not {derivative}");
        }
    });
}

/// p = 0 for a log-ratio of −∞: no coefficient of its own, and the others' are those of the group with q spread
/// over all.
fn an_impossible_sample_is_a_limit(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives(), which in any::<usize>())| {
        prop_assume!(log_ratios.len() > 1);
        let which = which % log_ratios.len();
        let (mut impossible, mut far) = (log_ratios.clone(), log_ratios);
        impossible[which] = f64::NEG_INFINITY;
        // exp(−750) is 0 in f64.
        far[which] = -1000.0 / objective.beta_policy();
        let (loss, coefficients) = backend.one_group(&objective, &impossible, &rewards, None);
        let plain = reference::group_loss(&objective, &impossible, &rewards, &vec![0.0; impossible.len()]);
        let is_forward = matches!(objective.divergence(), Divergence::ForwardKl | Divergence::Alpha(1.0));
        if is_forward {
            prop_assert_eq!(loss, f64::INFINITY);
            prop_assert_eq!(plain.loss, f64::INFINITY);
            prop_assert!(coefficients[which] < 0.0);
        } else {
            prop_assert_eq!(coefficients[which], 0.0);
            prop_assert!(loss >= 0.0 && loss.is_finite());
        }
        prop_assert!(coefficients.iter().chain(&plain.gradient).all(|c| c.is_finite()), "{coefficients:?} {plain:?}");
        // At order α the far sample still has p^(1−α) = exp(−1000 (1 − α)) against q^α: nothing but for an α near 1.
        if !is_forward && objective.divergence() != Divergence::Alpha(0.9) {
            let bound = absolute_bounds(&objective, &far, &rewards);
            let (far_loss, far_coefficients) = backend.one_group(&objective, &far, &rewards, None);
            prop_assert!((loss - far_loss).abs() <= 2.0 * bound.loss, "{loss} {far_loss}");
            for (one, other) in coefficients.iter().zip(&far_coefficients) {
                prop_assert!((one - other).abs() <= 2.0 * bound.coefficient, "{one} {other}");
            }
        }
    });
}

/// No p at all: an infinite loss, and nothing to pull.
fn a_group_of_impossible_samples_has_no_gradient(backend: &impl TestBackend) {
    proptest!(config(backend), |((log_ratios, rewards) in groups(), objective in objectives())| {
        prop_assume!(log_ratios.len() > 1);
        let k = log_ratios.len();
        let impossible = vec![f64::NEG_INFINITY; k];
        prop_assert_eq!(backend.one_group(&objective, &impossible, &rewards, None), (f64::INFINITY, vec![0.0; k]));
        let plain = reference::group_loss(&objective, &impossible, &rewards, &vec![0.0; k]);
        prop_assert_eq!((plain.loss, plain.gradient), (f64::INFINITY, vec![0.0; k]));
    });
}

/// NaN goes through its own group and into no other.
fn a_nan_poisons_its_own_group_only(backend: &impl TestBackend) {
    proptest!(config(backend), |(first in groups(), second in groups(), third in groups(), objective in objectives(), which in any::<usize>())| {
        let sizes = [first.0.len(), second.0.len(), third.0.len()];
        let mut log_ratios = [first.0.clone(), second.0.clone(), third.0.clone()].concat();
        let rewards = [first.1.clone(), second.1.clone(), third.1.clone()].concat();
        let total = log_ratios.len();
        let groups = [0, sizes[0], sizes[0] + sizes[1], total];
        log_ratios[sizes[0] + which % sizes[1]] = f64::NAN;
        let batch = Batch::new(&(0..=total).collect::<Vec<usize>>(), &groups).expect("offsets that fit");
        let Groups { losses, coefficients, .. } =
            backend.host_objective(&objective, &log_ratios, &batch, Rewards::from(&rewards), Reduction::Sum);
        prop_assert!(losses[1].is_nan() && coefficients[groups[1]..groups[2]].iter().all(|c| c.is_nan()));
        for (group, alone) in [(0, &first), (2, &third)] {
            let expected = backend.one_group(&objective, &alone.0, &alone.1, None);
            prop_assert_eq!((losses[group], coefficients[groups[group]..groups[group + 1]].to_vec()), expected);
        }
    });
}

/// Also when the only sample is impossible: with one, there is nothing to choose from.
fn a_group_of_one_has_no_loss(backend: &impl TestBackend) {
    for divergence in DIVERGENCES {
        let objective = objective(Target::Rewards { beta: 0.5 }, divergence, 0.25);
        for log_ratio in [-3.5, f64::NEG_INFINITY] {
            assert_eq!(backend.one_group(&objective, &[log_ratio], &[1.25], None), (0.0, vec![0.0]));
        }
        for log_ratio in [f64::NAN, f64::INFINITY] {
            let (loss, coefficients) = backend.one_group(&objective, &[log_ratio], &[1.25], None);
            assert!(loss.is_nan() && coefficients[0].is_nan(), "{log_ratio}");
        }
    }
}
