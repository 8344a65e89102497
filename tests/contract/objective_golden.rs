//! The objectives against printed values: of fifty-digit arithmetic, of tables of slopes, and of the limits that the
//! closed forms have.

#![allow(clippy::excessive_precision, reason = "the digits are those that were printed")]

use approx::{abs_diff_eq, assert_abs_diff_eq};
use exo_kernels::{Batch, Betas, Objective, Reduction, Rewards};
use support::backend::{Groups, TestBackend, on_backend, on_every_training_backend};

on_every_training_backend!(
    fifty_digits_of_every_divergence,
    fifty_digits_where_one_sample_dominates_and_next_to_the_optimum,
    fifty_digits_of_preferences,
    losses_at_the_start,
    slopes_of_the_second_order_table,
    losses_and_slopes_of_the_pair_table,
    pairs_have_their_closed_forms,
    exo_pref_tends_to_the_sigmoid_loss,
    small_beta_pi_is_the_variance_loss,
    on_policy_exo_is_reinforce_with_a_mean_baseline,
    a_group_of_one_has_nothing_to_learn,
    the_loss_tells_winner_from_loser,
    tied_winners_share,
    groups_of_any_size_are_independent,
    reductions_scale_the_coefficients_and_not_the_group_losses,
    an_impossible_sample_that_the_target_does_not_want_costs_nothing,
);
on_backend!(
    specification,
    exo_kernels::reference::ReferenceBackend,
    a_group_of_one_has_nothing_to_learn,
    an_impossible_sample_that_the_target_does_not_want_costs_nothing,
    fifty_digits_of_every_divergence,
    groups_of_any_size_are_independent,
    on_policy_exo_is_reinforce_with_a_mean_baseline,
    pairs_have_their_closed_forms,
    reductions_scale_the_coefficients_and_not_the_group_losses,
    the_loss_tells_winner_from_loser,
    tied_winners_share,
);

const ONE: Betas = Betas { policy: 1.0, reward: 1.0 };

/// Sixty-four roundings: exp of numbers down to −50 is right to 50u, and a loss takes some ten operations more.
#[track_caller]
fn assert_digits(computed: f64, printed: f64) {
    let error = (computed - printed).abs();
    assert!(error <= 64.0 * 0.5 * f64::EPSILON * printed.abs(), "{computed:e}, not {printed:e}");
}

/// Within half a unit of the last printed digit.
#[track_caller]
fn assert_printed(computed: f64, printed: &str) {
    let value: f64 = printed.parse().expect("a number");
    let (mantissa, exponent) = printed.split_once('e').unwrap_or((printed, "0"));
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len()) as i32;
    let half_unit = 0.5 * 10f64.powi(exponent.parse::<i32>().expect("an exponent") - decimals);
    assert!((computed - value).abs() <= half_unit * (1.0 + 1e-9), "{computed:e}, not {printed}");
}

fn exo() -> Objective {
    Objective::exo(ONE).expect("betas in range")
}

fn exo_pref(epsilon: f64) -> Objective {
    Objective::exo_pref(1.0, epsilon).expect("epsilon in range")
}

fn official() -> Objective {
    Objective::exo_pref_official(1.0).expect("a beta in range")
}

fn dpo_pref(epsilon: f64) -> Objective {
    Objective::dpo_pref(1.0, epsilon).expect("epsilon in range")
}

/// Loss and d loss / d z of a pair with z = f_w − f_l.
fn pair(backend: &impl TestBackend, objective: &Objective, z: f64) -> (f64, f64) {
    let (loss, gradient) = backend.one_group(objective, &[z, 0.0], &[1.0, 0.0], None);
    assert_eq!(gradient[0], -gradient[1]);
    (loss, gradient[0])
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn check_golden(backend: &impl TestBackend, objective: &Objective, f: &[f64], s: &[f64], loss: f64, gradient: &[f64]) {
    let computed = backend.one_group(objective, f, s, None);
    assert_digits(computed.0, loss);
    assert_eq!(computed.1.len(), gradient.len());
    for (computed, printed) in computed.1.iter().zip(gradient) {
        assert_digits(*computed, *printed);
    }
}

fn fifty_digits_of_every_divergence(backend: &impl TestBackend) {
    let (f, s) = ([0.5, -1.25, 2.0, 0.0], [1.5, -0.5, 0.25, -2.0]);
    check_golden(
        backend,
        &exo(),
        &f,
        &s,
        0.804_150_155_931_010_37,
        &[-0.361_814_650_297_537_46, -0.055_936_314_097_176_752, 0.346_625_540_174_894_26, 0.071_125_424_219_819_945],
    );
    check_golden(
        backend,
        &Objective::dpo_rw(ONE).expect("betas in range"),
        &f,
        &s,
        1.712_034_996_903_218_2,
        &[-0.528_993_915_080_827_14, -0.065_453_135_219_883_525, 0.518_384_575_490_043_54, 0.076_062_474_810_667_127],
    );
    check_golden(
        backend,
        &Objective::alpha(0.5, ONE).expect("parameters in range"),
        &f,
        &s,
        0.787_375_377_443_939_3,
        &[-0.406_743_759_888_564_21, -0.057_138_346_581_453_512, 0.398_058_926_915_845_22, 0.065_823_179_554_172_502],
    );
    let jensen_shannon = Objective::jensen_shannon(ONE).expect("betas in range");
    assert_digits(backend.one_group(&jensen_shannon, &f, &s, None).0, 0.189_705_759_815_017_8);
}

fn fifty_digits_where_one_sample_dominates_and_next_to_the_optimum(backend: &impl TestBackend) {
    check_golden(
        backend,
        &exo(),
        &[20.0, -5.0, -6.5, -30.0],
        &[3.0, 4.0, -2.0, 0.5],
        1.336_868_998_006_434_6,
        &[
            4.277_111_519_662_144_9e-10,
            -3.610_865_404_769_908_2e-10,
            -6.662_461_148_006_211_1e-11,
            -9.161_561_777_590_489_4e-21,
        ],
    );
    check_golden(
        backend,
        &exo(),
        &[1.0, 2.0, 3.0],
        &[1.0001, 2.0, 2.9999],
        2.122_080_635_952_601_5e-9,
        &[-1.418_170_936_099_295_3e-5, -1.407_703_574_699_761_2e-5, 2.825_874_510_799_056_5e-5],
    );
}

fn fifty_digits_of_preferences(backend: &impl TestBackend) {
    let smoothed = [
        (-4.0, 6.693_434_169_610_509, -0.192_642_805_395_678_38),
        (0.0, 2.761_230_709_097_915, -1.726_688_694_662_138_4),
        (2.0, 0.458_971_996_551_507_25, -0.515_177_776_906_100_62),
    ];
    let unnormalised = [
        (-4.0, 9.730_043_132_612_908_4, -0.247_277_886_986_075_63),
        (0.0, 4.306_852_819_440_054_7, -2.5),
        (2.0, 0.826_695_365_133_967_95, -0.839_948_683_228_052_14),
    ];
    for (objective, values) in [(exo_pref(1e-3), smoothed), (official(), unnormalised)] {
        for (z, loss, slope) in values {
            let computed = pair(backend, &objective, z);
            assert_digits(computed.0, loss);
            assert_digits(computed.1, slope);
        }
    }
}

fn losses_at_the_start(backend: &impl TestBackend) {
    assert_printed(pair(backend, &exo_pref(1e-3), 0.0).0, "2.7612");
    assert_printed(pair(backend, &official(), 0.0).0, "4.3069");
    assert_printed(pair(backend, &dpo_pref(0.0), 0.0).0, "0.6931");
}

fn slopes_of_the_second_order_table(backend: &impl TestBackend) {
    let table = [
        (-8.0, "-.0050", "-.0060", "-.9987"),
        (-2.0, "-.935", "-1.260", "-.880"),
        (0.0, "-1.727", "-2.500", "-.499"),
        (3.0, "-.176", "-.316", "-.046"),
    ];
    for (z, smoothed, unnormalised, dpo) in table {
        assert_printed(pair(backend, &exo_pref(1e-3), z).1, smoothed);
        assert_printed(pair(backend, &official(), z).1, unnormalised);
        assert_printed(pair(backend, &dpo_pref(1e-3), z).1, dpo);
    }
}

fn losses_and_slopes_of_the_pair_table(backend: &impl TestBackend) {
    let table = [
        (-20.0, "6.9078", "-5.5e-8", "10.000", "-6.2e-8", "-1.000"),
        (-10.0, "6.9069", "-7.7e-4", "9.9990", "-9.1e-4", "-1.000"),
        (0.0, "2.7612", "-1.727", "4.3069", "-2.500", "-0.500"),
        (5.0, "0.00705", "-1.27e-2", "0.0267", "-3.32e-2", "-6.7e-3"),
        (10.0, "8.15e-4", "1.4e-4", "-4.5e-5", "0", "-4.5e-5"),
    ];
    for (z, loss, slope, official_loss, official_slope, dpo) in table {
        let smoothed = pair(backend, &exo_pref(1e-3), z);
        assert_printed(smoothed.0, loss);
        assert_printed(smoothed.1, slope);
        let unnormalised = pair(backend, &official(), z);
        assert_printed(unnormalised.0, official_loss);
        if z == 10.0 {
            // The optimum: −log of the e^(−10) that the code holds is 10 to an ulp or two.
            assert!(unnormalised.1.abs() <= 4.0 * f64::EPSILON * 10.0 * (-10f64).exp(), "{}", unnormalised.1);
        } else {
            assert_printed(unnormalised.1, official_slope);
        }
        assert_printed(pair(backend, &dpo_pref(0.0), z).1, dpo);
    }
}

/// dL/dz = σ(z) σ(−z) (z − z*) for EXO and σ(z) − q_w for DPO, z* = log(q_w/q_l).
fn pairs_have_their_closed_forms(backend: &impl TestBackend) {
    let (beta_r, rewards) = (0.25, [0.75, 0.5]);
    let betas = Betas { policy: 1.0, reward: beta_r };
    let optimum = (rewards[0] - rewards[1]) / beta_r;
    for z in [-6.0, -1.5, 0.25, 1.0, 2.5] {
        let slope = |objective: Objective| backend.one_group(&objective, &[z, 0.0], &rewards, None).1[0];
        let both = sigmoid(z) * sigmoid(-z);
        assert_digits(slope(Objective::exo(betas).expect("betas in range")), both * (z - optimum));
        // σ(z) and q_w are each rounded: the difference loses what they have in common.
        let dpo = slope(Objective::dpo_rw(betas).expect("betas in range"));
        assert_abs_diff_eq!(dpo, sigmoid(z) - sigmoid(optimum), epsilon = 8.0 * f64::EPSILON);
    }
}

/// L/log(1/ε) → σ(−z), and what is missing is the entropy of p over log(1/ε), with log(1 − ε) far below it.
fn exo_pref_tends_to_the_sigmoid_loss(backend: &impl TestBackend) {
    for epsilon in [1e-30, 1e-100, 1e-300] {
        for z in [-3.0, -0.5, 0.0, 1.0, 4.0] {
            let (loss, slope) = pair(backend, &exo_pref(epsilon), z);
            let (gain, p, other) = (-f64::ln(epsilon), sigmoid(z), sigmoid(-z));
            let entropy = -p * p.ln() - other * other.ln();
            assert_abs_diff_eq!(loss / gain, other - entropy / gain, epsilon = 16.0 * f64::EPSILON);
            assert!(
                (loss / gain - other).abs() <= std::f64::consts::LN_2 / gain + 4.0 * f64::EPSILON,
                "{epsilon} {z} {loss}"
            );
            assert!(
                (slope / gain + p * other).abs() <= 2.0 * p * other * z.abs() / gain + 1e-15,
                "{epsilon} {z} {slope}"
            );
        }
    }
}

/// β_π → 0 with β = β_r·β_π fixed: β_r²·L → ½ Var(βΔ − r) for EXO and DPO both, linearly in β_π.
fn small_beta_pi_is_the_variance_loss(backend: &impl TestBackend) {
    let (log_ratios, rewards, beta) = ([0.3, -1.1, 2.4, 0.9, -0.2], [1.0, 0.4, -0.3, 0.8, 0.1], 0.5);
    let residual: Vec<f64> = log_ratios.iter().zip(&rewards).map(|(delta, r)| beta * delta - r).collect();
    let mean = residual.iter().sum::<f64>() / 5.0;
    let variance = residual.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 5.0;
    // With t = 1/β_r, L(t)/t² is off by at most t/6 times the third derivative of L(t) = t E_p x + log mean exp(t·r) −
    // log mean exp(t·βΔ) (for EXO), which is made of third cumulants of numbers with these ranges.
    let range = |values: &[f64]| {
        values.iter().copied().fold(f64::MIN, f64::max) - values.iter().copied().fold(f64::MAX, f64::min)
    };
    let (of_f, of_r, of_x) = (beta * range(&log_ratios), range(&rewards), range(&residual));
    let of_either = of_f.max(of_r);
    let loss_order = 1.01 * (3.0 * of_either * of_either * of_x + of_f.powi(3) + of_r.powi(3)) / 6.0;
    let gradient_order = 2.0 * of_f * of_x + of_f * of_f + of_r * of_r;
    for beta_pi in [1e-3, 1e-5, 1e-7] {
        let betas = Betas { policy: beta_pi, reward: beta / beta_pi };
        let square = betas.reward * betas.reward;
        for objective in [Objective::exo(betas), Objective::alpha(1.0, betas)] {
            let (loss, gradient) = backend.one_group(&objective.expect("betas in range"), &log_ratios, &rewards, None);
            assert!((square * loss - 0.5 * variance).abs() <= loss_order / betas.reward, "{beta_pi} {}", square * loss);
            for (coefficient, x) in gradient.iter().zip(&residual) {
                let expected = (x - mean) / 5.0;
                let scaled = coefficient / beta_pi * betas.reward;
                assert!((scaled - expected).abs() <= gradient_order / betas.reward, "{beta_pi} {scaled} {expected}");
            }
        }
    }
}

/// Samples of the policy itself, corrected with c = log π_ref − log π, and β_π = 1: p_i = 1/K and the gradient is that
/// of REINFORCE with the mean as baseline, g_i = −(R_i − mean R)/(K β_r), R = r − β_r·S.
fn on_policy_exo_is_reinforce_with_a_mean_baseline(backend: &impl TestBackend) {
    let (log_ratios, rewards, beta_r) = ([0.7, -2.3, 1.9, 0.05, -0.6], [1.2, -0.4, 0.3, 2.0, 0.9], 0.4);
    let offsets = log_ratios.map(|log_ratio| -log_ratio);
    let objective = Objective::exo(Betas { policy: 1.0, reward: beta_r }).expect("betas in range");
    let (_, gradient) = backend.one_group(&objective, &log_ratios, &rewards, Some(&offsets));
    let regularised: Vec<f64> = log_ratios.iter().zip(&rewards).map(|(s, r)| r - beta_r * s).collect();
    let mean = regularised.iter().sum::<f64>() / 5.0;
    for (g, r) in gradient.iter().zip(&regularised) {
        let expected = -(r - mean) / (5.0 * beta_r);
        assert_abs_diff_eq!(*g, expected, epsilon = 16.0 * f64::EPSILON);
    }
}

fn a_group_of_one_has_nothing_to_learn(backend: &impl TestBackend) {
    for objective in [exo(), exo_pref(1e-3), official(), dpo_pref(0.0)] {
        assert_eq!(backend.one_group(&objective, &[-37.5], &[2.0], None), (0.0, vec![0.0]));
    }
}

/// f-PO's script has p·Σ(log p − log q) for Σ p (log p − log q), which is the same whoever has won. The right loss is
/// lower by z*·tanh(z/2) when the policy's favourite has.
fn the_loss_tells_winner_from_loser(backend: &impl TestBackend) {
    let epsilon = 1e-3f64;
    let optimum = ((1.0 - epsilon) / epsilon).ln();
    for z in [0.5, 2.0, 5.0] {
        let favourite_won = backend.one_group(&exo_pref(epsilon), &[z, 0.0], &[1.0, 0.0], None).0;
        let favourite_lost = backend.one_group(&exo_pref(epsilon), &[z, 0.0], &[0.0, 1.0], None).0;
        assert_digits(favourite_lost - favourite_won, optimum * (0.5 * z).tanh());
    }
}

fn tied_winners_share(backend: &impl TestBackend) {
    // q − p is what DPO's gradient pulls with, and p = 1/K at the start.
    let targets = |rewards: &[f64], epsilon: f64| -> Vec<f64> {
        let k = rewards.len();
        let (_, gradient) = backend.one_group(&dpo_pref(epsilon), &vec![0.0; k], rewards, None);
        gradient.iter().map(|g| 1.0 / k as f64 - g).collect()
    };
    let check = |rewards: &[f64], epsilon: f64, expected: &[f64]| {
        for (q, expected) in targets(rewards, epsilon).iter().zip(expected) {
            assert!(
                abs_diff_eq!(q, expected, epsilon = 8.0 * f64::EPSILON),
                "{rewards:?} {epsilon}: {q}, not {expected}"
            );
        }
    };
    check(&[1.0, 1.0], 0.1, &[0.5, 0.5]);
    check(&[2.0, -1.0, 2.0], 0.0, &[0.5, 0.0, 0.5]);
    // One of two is drawn and gets 0.8, the other 0.1, as does the loser.
    check(&[2.0, -1.0, 2.0], 0.2, &[0.45, 0.1, 0.45]);
    check(&[3.0; 4], 0.3, &[0.25; 4]);
    check(&[0.0, 0.0, 1.0], 0.1, &[0.05, 0.05, 0.9]);
    assert_eq!(backend.one_group(&exo_pref(1e-3), &[0.0, 0.0], &[1.0, 1.0], None), (0.0, vec![0.0, 0.0]));
}

/// Losses and coefficients of a ragged batch.
fn ragged(
    backend: &impl TestBackend,
    log_ratios: &[f64],
    rewards: &[f64],
    groups: &[usize],
    reduction: Reduction,
) -> (Vec<f64>, Vec<f64>) {
    let sequences: Vec<usize> = (0..=log_ratios.len()).collect();
    let batch = Batch::new(&sequences, groups).expect("offsets that fit");
    let Groups { losses, coefficients, .. } =
        backend.host_objective(&exo(), log_ratios, &batch, Rewards::from(rewards), reduction);
    (losses, coefficients)
}

fn groups_of_any_size_are_independent(backend: &impl TestBackend) {
    let groups = [0usize, 3, 4, 6, 13];
    let log_ratios: Vec<f64> = (0..13).map(|i| f64::from(i * i % 11) * 0.3 - 1.0).collect();
    let rewards: Vec<f64> = (0..13).map(|i| f64::from(i * 7 % 5) * 0.4).collect();
    let (losses, coefficients) = ragged(backend, &log_ratios, &rewards, &groups, Reduction::Sum);
    for group in 0..4 {
        let sequences = groups[group]..groups[group + 1];
        let alone = backend.one_group(&exo(), &log_ratios[sequences.clone()], &rewards[sequences.clone()], None);
        assert_eq!((losses[group], coefficients[sequences].to_vec()), alone, "group {group}");
    }
}

fn reductions_scale_the_coefficients_and_not_the_group_losses(backend: &impl TestBackend) {
    let groups = [0usize, 2, 5, 6, 8];
    let (log_ratios, rewards) = ([0.1, 1.0, -0.7, 0.4, 2.0, 0.3, -1.5, 0.6], [0.5, 0.2, 1.0, 0.0, -1.0, 0.3, 0.9, 0.8]);
    let (losses, sum) = ragged(backend, &log_ratios, &rewards, &groups, Reduction::Sum);
    // Powers of two, so that scaling does not round.
    for (reduction, weight) in [(Reduction::Mean, 0.25), (Reduction::Normalizer(32.0), 0.03125)] {
        let (same, scaled) = ragged(backend, &log_ratios, &rewards, &groups, reduction);
        assert_eq!(same, losses);
        assert_eq!(scaled, sum.iter().map(|c| weight * c).collect::<Vec<_>>());
    }
}

/// A sample with p = 0 whose q has underflowed to 0 contributes nothing to a forward KL: 0 · inf is 0 here, not NaN.
fn an_impossible_sample_that_the_target_does_not_want_costs_nothing(backend: &impl TestBackend) {
    // q of the last sample is e^-800, which is 0 in f64.
    let (log_ratios, rewards) = ([0.5, -0.25, f64::NEG_INFINITY], [0.0, 0.0, -800.0]);
    let (without, gradient_without) =
        backend.one_group(&Objective::dpo_rw(ONE).expect("betas"), &log_ratios[..2], &rewards[..2], None);
    let (loss, gradient) = backend.one_group(&Objective::dpo_rw(ONE).expect("betas"), &log_ratios, &rewards, None);
    assert_eq!(loss, without);
    assert_eq!(gradient, [gradient_without[0], gradient_without[1], 0.0]);
}
