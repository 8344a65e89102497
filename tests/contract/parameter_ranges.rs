//! Accepted parameters give right results over their whole range: betas, orders, label smoothings, normalisers, rewards,
//! log-ratios and proposals to the ends of f64, against arithmetic of a hundred digits; temperature and softcap to their
//! ends, against the f64 reference.

use approx::assert_relative_eq;
use exo_kernels::reference::{bounds, objective as reference, token_log_prob};
use exo_kernels::{
    Backend, Batch, Betas, Cpu, Divergence, Error, GroupStatistics, LogitOptions, LossOptions, Objective,
    ObjectiveOutputs, Reduction, Rewards, Target,
};
use support::backend::{Rows, TestBackend, on_backend, on_every_training_backend};
use support::fifty_digits::{Exact, Group, Real};
use support::objective_cases::{
    ALPHAS, Case, Numbers, ROUNDED, Used, check_group, error, preference_objectives, reward_objectives,
};

on_every_training_backend!(
    betas_to_both_ends,
    orders_to_both_ends,
    label_smoothing_to_both_ends,
    the_table_of_faults,
    logits_to_the_ends_of_f64,
    normalisers_to_both_ends,
    temperatures_and_softcaps_to_both_ends,
    a_softcap_far_above_the_temperature_is_none,
);
on_backend!(
    specification,
    exo_kernels::reference::ReferenceBackend,
    a_softcap_far_above_the_temperature_is_none,
    normalisers_to_both_ends,
    temperatures_and_softcaps_to_both_ends,
);

/// The smallest f64, a subnormal number, and the smallest normal one; then as far as any order is distinguished from 0;
/// next to ½ and next to 1.
const ORDERS: [f64; 15] = [
    5e-324,
    1e-310,
    f64::MIN_POSITIVE,
    1e-300,
    1e-100,
    1e-30,
    1e-17,
    8.8e-16,
    9e-16,
    1e-15,
    0.5 - f64::EPSILON / 4.0,
    0.5 + f64::EPSILON / 2.0,
    1.0 - 1e-12,
    1.0 - 1e-15,
    1.0 - f64::EPSILON / 2.0,
];

fn group_of(objective: &Objective, case: &Case) -> (Group, Exact) {
    let zeros = vec![0.0; case.log_ratios.len()];
    let offsets = case.offsets.as_deref().unwrap_or(&zeros);
    let group = Group::new(objective, &case.log_ratios, &case.rewards, offsets);
    let exact = group.exact(objective);
    (group, exact)
}

/// Every case with every objective that it has, within the bounds of `objective_bounds`.
fn check(backend: &impl TestBackend, cases: &[Case], objectives: impl Fn(&Case) -> Vec<Objective>) {
    let mut used = Used::default();
    for case in cases {
        for objective in objectives(case) {
            let (group, exact) = group_of(&objective, case);
            let (loss, coefficients) =
                backend.one_group(&objective, &case.log_ratios, &case.rewards, case.offsets.as_deref());
            check_group(case, &objective, (loss, &coefficients), &group, &exact, &mut used);
        }
    }
    println!("{}", backend.name());
    used.check();
}

/// Logits of ordinary size, next to the optimum, and with one sample that has all the weight.
fn ordinary(betas: Betas) -> Vec<Case> {
    let mut numbers = Numbers(3);
    let mut cases = Vec::new();
    for k in [2, 3, 8] {
        let (f, s) = (numbers.take(k, 3.0), numbers.take(k, 3.0));
        cases.push(Case::from_logits(format!("generic, K = {k}, {betas:?}"), betas, &f, &s));
        let near: Vec<f64> = s.iter().map(|s| s + 1e-6 * numbers.draw()).collect();
        cases.push(Case::from_logits(format!("near the optimum, K = {k}, {betas:?}"), betas, &near, &s));
        let mut gap = f.clone();
        gap[k - 1] += 60.0;
        cases.push(Case::from_logits(format!("gap 60, K = {k}, {betas:?}"), betas, &gap, &s));
    }
    cases
}

fn betas_to_both_ends<B: TestBackend>(backend: &B) {
    for (policy, reward) in [(1e-200, 1e-200), (1e-200, 1e200), (1e200, 1e-200), (1e200, 1e200), (1e-30, 1e30)] {
        let betas = Betas { policy, reward };
        let cases = ordinary(betas);
        check(backend, &cases[..B::pick(6, 2)], |case| reward_objectives(case.betas));
        check(backend, &cases[..B::pick(3, 1)], |case| preference_objectives(case.betas, case.log_ratios.len()));
    }
    for (beta, ok) in [(1e-200, true), (1e200, true), (0.99e-200, false), (1.01e200, false), (5e-324, false)] {
        assert_eq!(Objective::exo(Betas { policy: beta, reward: 1.0 }).is_ok(), ok, "{beta}");
        assert_eq!(Objective::dpo_rw(Betas { policy: 1.0, reward: beta }).is_ok(), ok, "{beta}");
    }
}

fn orders_to_both_ends<B: TestBackend>(backend: &B) {
    let cases = ordinary(ROUNDED);
    check(backend, &cases[..B::pick(cases.len(), 3)], |case| {
        ORDERS.iter().map(|&alpha| Objective::alpha(alpha, case.betas).expect("an order")).collect()
    });
    // The plain reference too: it is no closer than its bound, so it is held to EXO's there.
    for case in &cases {
        let zeros = vec![0.0; case.log_ratios.len()];
        let group = |objective: Objective| reference::group_loss(&objective, &case.log_ratios, &case.rewards, &zeros);
        let exo = group(Objective::exo(case.betas).expect("in range"));
        for alpha in [5e-324, 1e-310, f64::MIN_POSITIVE, 1e-100, 1e-30] {
            let found = group(Objective::alpha(alpha, case.betas).expect("in range"));
            let size = exo.gradient.iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
            for (g, exact) in found.gradient.iter().zip(&exo.gradient) {
                // Of log-probs up to 100, and K additions.
                assert!((g - exact).abs() <= 2000.0 * f64::EPSILON * (1.0 + size), "{}, {alpha}", case.name);
            }
            assert!(
                (found.loss - exo.loss).abs() <= 2000.0 * f64::EPSILON * (1.0 + exo.loss),
                "{}, {alpha}",
                case.name
            );
        }
    }
}

fn label_smoothing_to_both_ends<B: TestBackend>(backend: &B) {
    let mut cases = ordinary(ROUNDED);
    for case in &mut cases {
        // Some ties.
        case.rewards.iter_mut().for_each(|reward| *reward = reward.round());
    }
    check(backend, &cases[..B::pick(cases.len(), 5)], |case| {
        let divergences =
            [Divergence::ReverseKl, Divergence::ForwardKl, Divergence::JensenShannon, Divergence::Alpha(0.3)];
        let of = |epsilon: f64| {
            divergences.map(|divergence| {
                Objective::new(Target::Preference { label_smoothing: epsilon }, divergence, case.betas.policy)
                    .expect("in range")
            })
        };
        [5e-324, 1e-310, f64::MIN_POSITIVE, 1e-300, 0.5 - f64::EPSILON / 4.0].into_iter().flat_map(of).collect()
    });
}

/// Rewards of ±1e308; an order that is no normal number.
fn the_table_of_faults(backend: &impl TestBackend) {
    let exo = Objective::exo(Betas { policy: 0.1, reward: 1.0 }).expect("in range");
    let (loss, coefficients) = backend.one_group(&exo, &[0.25, -0.25], &[-1e308, 1e308], None);
    // p of the first is 1/(1 + e^(−0.05)): p·2e308.
    assert_relative_eq!(loss, 1.024_994_792e308, epsilon = 0.0, max_relative = 1e-8);
    let (other, _) = backend.one_group(&exo, &[0.25, -0.25], &[1e308, -1e308], None);
    assert_relative_eq!(other, 0.975_005_208e308, epsilon = 0.0, max_relative = 1e-8);
    // β_π p_1 p_2 (d_1 − d_2): its 2e308 is no f64, ten times less is.
    assert_relative_eq!(coefficients[0], 0.1 * 0.249_843_815e308 * 2.0, epsilon = 0.0, max_relative = 1e-8);
    assert_eq!(coefficients[0], -coefficients[1]);

    let betas = Betas { policy: 0.1, reward: 0.3 };
    let (log_ratios, rewards) = ([1.0, -3.0, 0.5], [0.2, 0.1, -0.4]);
    let exo = backend.one_group(&Objective::exo(betas).expect("in range"), &log_ratios, &rewards, None);
    let next = backend.one_group(&Objective::alpha(1e-310, betas).expect("in range"), &log_ratios, &rewards, None);
    assert_eq!(next, exo, "α = 1e-310 is EXO to every digit");
}

/// Far beyond what any model has, but f64: no result is infinite or NaN that could be a number.
///
/// Held to 100 u of the loss and of the group's largest coefficient: some K + 40 roundings, and logits near each other
/// of a size of ones, whose roundings p sees.
fn logits_to_the_ends_of_f64<B: TestBackend>(backend: &B) {
    let never = f64::NEG_INFINITY;
    let betas = |policy, reward| Betas { policy, reward };
    let case = |name: &str, betas, log_ratios: &[f64], rewards: &[f64], offsets: Option<&[f64]>| Case {
        name: name.to_owned(),
        betas,
        log_ratios: log_ratios.to_vec(),
        rewards: rewards.to_vec(),
        offsets: offsets.map(<[f64]>::to_vec),
    };
    let max = f64::MAX;
    let cases = [
        case("rewards ±1e308", betas(0.125, 1.0), &[0.25, -0.25], &[-1e308, 1e308], None),
        case("rewards ±max", betas(1.0, 1.0), &[0.25, -0.25, 1.0], &[max, -max, 0.0], None),
        case("one reward of max", betas(1.0, 1.0), &[0.25, -0.25, 1.0], &[max, 0.5, 0.0], None),
        case("rewards of max", betas(1.0, 1.0), &[0.25, -0.25, 1.0], &[max, max, max], None),
        case("two of them low", betas(1.0, 1.0), &[0.25, -0.25, 1.0], &[-max, 0.5, -1e307], None),
        case("rewards ±1e154 over 1e-154", betas(1.0, 0.5f64.powi(511)), &[0.5, -1.0], &[1e154, -1e154], None),
        case("log-ratios ±1e30", betas(1.0, 1.0), &[1e30, -1e30, 0.5], &[0.5, 1.0, 0.25], None),
        case("log-ratios ±1e308", betas(1.0, 1.0), &[1e308, -1e308], &[0.5, 1.0], None),
        case("both", betas(1.0, 1.0), &[1e308, -1e308, 0.0], &[-max, max, 0.5], None),
        case("both, the same", betas(1.0, 1.0), &[1e308, -1e308, 0.0], &[1e308, -1e308, 0.0], None),
        case("one low, the others near", betas(1.0, 1.0), &[-1e308, 0.5, 0.75], &[-1e308, 0.5, 0.5], None),
        case("β·S is no f64", betas(1e200, 1.0), &[1e200, -1e200], &[0.5, 1.0], None),
        case("β·S is no f64, twice", betas(1e200, 1.0), &[-1e200, -2e200, -4e200], &[0.5, 1.0, 0.25], None),
        case("β·S and r/β", betas(1e200, 1e-200), &[0.0, -1e108, -1e200], &[0.5, 1.0, 1e100], None),
        case("β_π of 1e200, log-ratios ±1e30", betas(1e200, 1.0), &[1e30, -1e30], &[0.5, 1.0], None),
        case("β_π of 1e-200, log-ratios ±1e30", betas(1e-200, 1.0), &[1e30, -1e30], &[0.5, 1.0], None),
        case("offsets ±1e308", betas(1.0, 1.0), &[0.25, -0.25], &[0.5, 1.0], Some(&[1e308, -1e308])),
        case("an offset of max", betas(1.0, 1.0), &[1e308, -0.25], &[1e308, 1.0], Some(&[max, 0.0])),
        case("an impossible sample", betas(1.0, 1.0), &[0.25, never, 1.0], &[max, -max, 0.0], None),
        case("an impossible sample, near", betas(1.0, 1.0), &[0.25, never, 1.0], &[0.25, 0.0, 1.5], None),
    ];
    for case in &cases {
        let impossible = case.log_ratios.contains(&never);
        let mut objectives = reward_objectives(case.betas);
        objectives.extend(ORDERS.map(|alpha| Objective::alpha(alpha, case.betas).expect("an order")));
        objectives.retain(|objective| {
            let is_forward = matches!(objective.divergence(), Divergence::ForwardKl | Divergence::Alpha(1.0));
            !(impossible && is_forward)
        });
        for (index, objective) in objectives.iter().enumerate() {
            if B::pick(false, index > 3 && index % 3 != 0) {
                continue;
            }
            let (_, exact) = group_of(objective, case);
            let (loss, coefficients) =
                backend.one_group(objective, &case.log_ratios, &case.rewards, case.offsets.as_deref());
            let at = format!("{}, {objective:?}", case.name);
            hold(loss, &exact.loss, exact.loss.to_f64().value().abs(), &format!("{at}: loss"));
            let beta = Real::try_from(case.betas.policy).expect("finite");
            let exact: Vec<Real> = exact.gradient.iter().map(|g| &beta * g).collect();
            let largest = exact.iter().fold(0.0f64, |largest, g| largest.max(g.to_f64().value().abs()));
            for (coefficient, exact) in coefficients.iter().zip(&exact) {
                hold(*coefficient, exact, largest, &format!("{at}: coefficients {coefficients:?}"));
            }
        }
    }
}

/// Within 100 u of a size; infinite where the exact value is no f64, which rounding may decide at the very end.
fn hold(computed: f64, exact: &Real, size: f64, at: &str) {
    let digits = 100.0 * f64::EPSILON / 2.0;
    let rounded = exact.to_f64().value();
    if rounded.is_infinite() || (computed.is_infinite() && rounded.abs() >= f64::MAX * (1.0 - digits)) {
        assert!(computed == rounded || computed.abs() >= f64::MAX * (1.0 - digits), "{at}: {computed:e}");
        return;
    }
    if size.is_infinite() {
        assert!(computed.is_finite(), "{at}: {computed:e}");
        return;
    }
    let limit = digits * size + f64::MIN_POSITIVE;
    let error = error(computed, exact);
    assert!(error <= limit, "{at}: {computed:e}, {rounded:e} expected, off by {error:e} of {limit:e}");
}

fn normalisers_to_both_ends(backend: &impl TestBackend) {
    let (log_ratios, rewards) = ([0.5, -1.0, 0.25], [0.5, 0.25, 2.0]);
    let batch = Batch::padded(3, 1, 3).expect("a group");
    // g·β/n with β and n at the same end, and at opposite ones.
    for (beta, normalizer) in [
        (1.0, 5.7e-309),
        (1.0, 4.4e307),
        (1e-200, 1e-200),
        (1e-200, 1e-300),
        (1e200, 1e307),
        (1e200, 1e-100),
        (1e-200, 1e100),
    ] {
        let betas = Betas { policy: beta, reward: 1.0 };
        let objective = Objective::exo(betas).expect("in range");
        let log_ratios = log_ratios.map(|s| s / beta);
        let reduction = Reduction::Normalizer(normalizer);
        let found = backend.host_objective(&objective, &log_ratios, &batch, Rewards::from(&rewards), reduction);
        let exact = Group::new(&objective, &log_ratios, &rewards, &[0.0; 3]).exact(&objective);
        let real = |value: f64| Real::try_from(value).expect("finite");
        let factor = real(beta).with_precision(200).value() / real(normalizer).with_precision(200).value();
        let exact: Vec<Real> = exact.gradient.iter().map(|g| g * &factor).collect();
        let largest = exact.iter().fold(0.0f64, |largest, g| largest.max(g.to_f64().value().abs()));
        for (coefficient, exact) in found.coefficients.iter().zip(&exact) {
            hold(*coefficient, exact, largest, &format!("β {beta:e}, normaliser {normalizer:e}"));
        }
    }
}

/// Those that have no normal inverse, everywhere that one can be given.
#[test]
fn normalisers_out_of_range_are_refused() {
    let exo = Objective::exo(Betas { policy: 1.0, reward: 1.0 }).expect("in range");
    let batch = Batch::padded(2, 1, 2).expect("a group");
    for bad in [0.0, -0.0, -1.0, 5e-324, 5.5e-309, 4.5e307, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        let refused = LossOptions::from(exo).with_reduction(Reduction::Normalizer(bad));
        assert!(matches!(refused, Err(Error::Parameter { name: "normalizer", .. })), "{bad:e}");
        let (mut losses, mut coefficients) = ([7.0], [7.0; 2]);
        let outputs = ObjectiveOutputs {
            group_losses: &mut losses,
            coefficients: &mut coefficients,
            statistics: &mut [GroupStatistics::default()],
            row_weights: None,
        };
        let (rewards, reduction) = (Rewards::from(&[0.0, 1.0]), Reduction::Normalizer(bad));
        let refused = Cpu::default().objective(&exo, &[0.0, 1.0].as_slice(), &batch, &rewards, reduction, outputs);
        assert!(matches!(refused, Err(Error::Parameter { name: "normalizer", .. })), "{bad:e}");
        assert_eq!((losses, coefficients), ([7.0], [7.0; 2]), "a refused call has written");
    }
    for good in [5.7e-309, f64::MIN_POSITIVE, 1e-300, 1e307, 4.4e307] {
        assert!(LossOptions::from(exo).with_reduction(Reduction::Normalizer(good)).is_ok(), "{good:e}");
    }
    for bad in [0.9e-30, 1.1e30, 5e-324, f64::MAX] {
        assert!(LogitOptions::default().with_temperature(bad).is_err(), "{bad:e}");
        assert!(LogitOptions::default().with_softcap(bad).is_err(), "{bad:e}");
    }
    assert!(ALPHAS.iter().chain(&ORDERS).all(|alpha| (0.0..=1.0).contains(alpha)));
}

const ENDS: [f64; 5] = [1e-30, 1e-15, 1.0, 1e15, 1e30];

fn options(temperature: f64, softcap: f64) -> LogitOptions {
    let options = LogitOptions::default().with_temperature(temperature);
    options.and_then(|options| options.with_softcap(softcap)).expect("in range")
}

/// Logits that make z of ordinary size, as far as the cap lets them, and some far beyond.
fn row_for(temperature: f64, softcap: f64) -> Vec<f32> {
    let scale = if softcap == 0.0 { temperature } else { temperature.min(softcap) };
    let mut numbers = Numbers(9);
    let mut row: Vec<f32> = numbers.take(40, 8.0).iter().map(|z| (z * scale) as f32).collect();
    row.extend([0.0, -0.0, f32::NEG_INFINITY, f32::MIN, f32::from_bits(1)]);
    row
}

fn temperatures_and_softcaps_to_both_ends(backend: &impl TestBackend) {
    for temperature in ENDS {
        for softcap in [0.0].into_iter().chain(ENDS) {
            for backend in backend.variants() {
                token_log_probs(&backend, &options(temperature, softcap), temperature, softcap);
            }
        }
    }
}

fn token_log_probs<B: TestBackend>(backend: &B, options: &LogitOptions, temperature: f64, softcap: f64) {
    let logits = row_for(temperature, softcap);
    for target in [0, 17, 40] {
        let row = Rows::one(&logits, target);
        let forward = backend.forward(&row, options, true);
        let g = 0.75f32;
        let gradient = backend.backward(&row, options, &forward, (&[g], None), false);
        let exact = token_log_prob::forward(&logits, target, options);
        let bound = bounds::row(B::ARITHMETIC, &exact, options);
        let at = format!("T {temperature:e}, softcap {softcap:e}, target {target}, {}", backend.name());
        let hold = |what: &str, computed: f64, exact: f64, bound: f64| {
            let share = (computed - exact).abs() / bound;
            assert!(computed == exact || share <= 1.0, "{what} {computed:e}, {exact:e} expected, {share}: {at}");
        };
        hold("log-prob", forward.log_probs[0].into(), exact.log_prob, bound.log_prob);
        hold("log-sum-exp", forward.states[0].log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp);
        hold("entropy", forward.entropies[0].into(), exact.entropy, bound.entropy);
        let expected = token_log_prob::backward(&logits, target, options, g.into(), 0.0);
        let scaled = token_log_prob::scaled_logits(&logits, options);
        for (column, value) in expected.into_iter().enumerate() {
            let log_p = scaled[column] - exact.log_sum_exp;
            let unrounded = bound.grad_logit(value, logits[column].into(), log_p, g.into(), 0.0);
            let rounding = bounds::rounding(value.abs() + unrounded, 0.5 * f64::from(f32::EPSILON), 1e-45);
            hold(&format!("gradient {column}"), gradient[column].into(), value, unrounded + rounding);
        }
    }
}

/// c·log2 e/T is no f32 there; bit for bit what there is without a cap.
fn a_softcap_far_above_the_temperature_is_none(backend: &impl TestBackend) {
    for (temperature, softcap) in [(1e-30, 1e30), (1e-9, 1e30), (1.0, 1e30), (1e-30, 1.0), (1e10, 1e29)] {
        let (capped, plain) = (options(temperature, softcap), options(temperature, 0.0));
        let row = Rows::one(&row_for(temperature, 0.0), 3);
        let bits = |options: &LogitOptions| {
            let forward = backend.forward(&row, options, true);
            let gradient = backend.backward(&row, options, &forward, (&[0.75], None), false);
            assert!(forward.log_probs[0].is_finite() && gradient.iter().all(|g| g.is_finite()), "{options:?}");
            (forward.log_probs[0].to_bits(), gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!(bits(&capped), bits(&plain), "{capped:?}");
    }
}
