//! `kernels/objective.cu` on adversarial groups, against arithmetic of a hundred digits, within bounds derived from
//! f64's rounding.

#![cfg(feature = "cuda")]

mod support {
    pub(crate) mod fifty_digits;
    pub(crate) mod kernel_device;
    pub(crate) mod objective_bounds;
    pub(crate) mod objective_cases;
    pub(crate) mod objective_kernel;
}

use exo_kernels::{Divergence, Objective, Target};
use support::fifty_digits::Group;
use support::objective_cases::{
    ALPHAS, Case, EXACT, Numbers, ROUNDED, Used, cases, check_group, error, preference_objectives, reward_objectives,
};
use support::objective_kernel::{Inputs, run};

/// All cases with one objective are the groups of one launch.
fn check(cases: &[Case], objectives: impl Fn(&Case) -> Vec<Objective>) {
    let mut launches: Vec<(Objective, Vec<usize>)> = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        for objective in objectives(case) {
            match launches.iter_mut().find(|(other, _)| *other == objective) {
                Some((_, members)) => members.push(index),
                None => launches.push((objective, vec![index])),
            }
        }
    }
    let mut used = Used::default();
    // Objectives with one target have the distributions in common.
    let mut groups: Vec<Vec<(Target, Group)>> = cases.iter().map(|_| Vec::new()).collect();
    for (objective, members) in &launches {
        let mut inputs = Inputs::new();
        for &index in members {
            let case = &cases[index];
            inputs.push(&case.log_ratios, &case.rewards, case.offsets.as_deref());
        }
        let outputs = run(objective, &inputs);
        for (place, &index) in members.iter().enumerate() {
            let case = &cases[index];
            let zeros = vec![0.0; case.log_ratios.len()];
            let offsets = case.offsets.as_deref().unwrap_or(&zeros);
            let made = &mut groups[index];
            if !made.iter().any(|(target, _)| *target == objective.target()) {
                let group = Group::new(objective, &case.log_ratios, &case.rewards, offsets);
                made.push((objective.target(), group));
            }
            let Some((_, group)) = made.iter().find(|(target, _)| *target == objective.target()) else { continue };
            let sequences = inputs.groups[place] as usize..inputs.groups[place + 1] as usize;
            let result = (outputs.losses[place], &outputs.coefficients[sequences]);
            check_group(case, objective, result, group, &group.exact(objective), &mut used);
        }
    }
    used.check();
}

#[test]
fn objectives_with_rewards_are_within_their_bounds() {
    check(&cases(), |case| reward_objectives(case.betas));
}

#[test]
fn objectives_with_preferences_are_within_their_bounds() {
    let preferences: Vec<Case> = cases().into_iter().filter(|case| case.log_ratios.len() <= 64).collect();
    check(&preferences, |case| preference_objectives(case.betas, case.log_ratios.len()));
}

/// q = 0 for some, where the divergence is finite there, and p = 0 for some, where that is.
#[test]
fn distributions_with_zeros_are_within_their_bounds() {
    let never = f64::NEG_INFINITY;
    let mut numbers = Numbers(2);
    let mut zero_targets = Vec::new();
    for k in [2, 3, 8] {
        for gap in [0.0, 14.0, 60.0] {
            // The sample with the largest p has q = 0, then one of the others has.
            for excluded in [k / 2, 0] {
                let (mut f, mut s) = (numbers.take(k, 2.0), numbers.take(k, 2.0));
                f[k / 2] += gap;
                s[excluded] = never;
                zero_targets.push(Case::from_logits(format!("q_{excluded} = 0, gap {gap}, K = {k}"), ROUNDED, &f, &s));
            }
        }
    }
    for case in &mut zero_targets {
        // They are log q as they stand.
        case.betas.reward = 1.0;
    }
    let distribution = |divergences: Vec<Divergence>, case: &Case| {
        let objective =
            |divergence| Objective::distribution(divergence, case.betas.policy).expect("parameters in range");
        divergences.into_iter().map(objective).collect::<Vec<_>>()
    };
    let alphas = |from: usize, to: usize| ALPHAS[from..to].iter().map(|&alpha| Divergence::Alpha(alpha));
    check(&zero_targets, |case| {
        let others = [Divergence::ForwardKl, Divergence::JensenShannon];
        distribution(others.into_iter().chain(alphas(1, ALPHAS.len())).collect(), case)
    });

    let mut zero_policies = Vec::new();
    for k in [2, 3, 8] {
        let (mut f, s) = (numbers.take(k, 2.0), numbers.take(k, 2.0));
        f[k / 2] = never;
        zero_policies.push(Case::new(format!("p = 0, K = {k}"), ROUNDED, f, s));
    }
    check(&zero_policies, |case| {
        let others = [Divergence::ReverseKl, Divergence::JensenShannon];
        distribution(others.into_iter().chain(alphas(0, ALPHAS.len() - 1)).collect(), case)
    });
}

/// The bounds above are no better than the inputs let them be. With inputs that are exact, losses of 1e-9 to 1e-18 have
/// all their digits: K additions and some forty other roundings, u each.
#[test]
fn losses_and_gradients_next_to_the_optimum_keep_their_digits() {
    const DIGITS: f64 = 100.0 * f64::EPSILON / 2.0;
    let is_near = |name: &str| name.contains("exact, K") || name == "near the optimum but for one";
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| is_near(&case.name) && case.log_ratios.len() <= 8).collect();
    for objective in reward_objectives(EXACT) {
        let mut inputs = Inputs::new();
        for case in &cases {
            inputs.push(&case.log_ratios, &case.rewards, None);
        }
        let outputs = run(&objective, &inputs);
        for (place, case) in cases.iter().enumerate() {
            let zeros = vec![0.0; case.log_ratios.len()];
            let exact = Group::new(&objective, &case.log_ratios, &case.rewards, &zeros).exact(&objective);
            let sequences = inputs.groups[place] as usize..inputs.groups[place + 1] as usize;
            let coefficients = &outputs.coefficients[sequences];
            let relative = error(outputs.losses[place], &exact.loss) / exact.loss.to_f64().value();
            assert!(relative <= DIGITS, "{}, {objective:?}: loss off by {relative} of it", case.name);
            let largest = coefficients.iter().fold(0.0f64, |largest, c| largest.max(c.abs()));
            for (coefficient, exact) in coefficients.iter().zip(&exact.gradient) {
                let relative = error(*coefficient, exact) / largest;
                assert!(relative <= DIGITS, "{}, {objective:?}: gradient off by {relative}", case.name);
            }
        }
    }
}
