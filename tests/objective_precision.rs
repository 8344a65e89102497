//! The objectives on adversarial groups, against arithmetic of a hundred digits, within bounds derived from f64's
//! rounding.

mod support {
    pub(crate) mod fifty_digits;
    pub(crate) mod objective_bounds;
    pub(crate) mod objective_cases;
    pub(crate) mod one_group;
}

use exo_kernels::reference::{bounds, objective as reference};
use exo_kernels::{Divergence, Objective, Target};
use support::fifty_digits::{Exact, Group, Real};
use support::objective_cases::{
    ALPHAS, Case, Numbers, ROUNDED, Used, cases, check_group, error, preference_objectives, reward_objectives, share,
};
use support::one_group;

/// The plain f64 specification, within the absolute bounds that it states.
fn check_reference(case: &Case, objective: &Objective, group: &Group, exact: &Exact, used: &mut Used) {
    let at = format!("{}, {objective:?}", case.name);
    let zeros = vec![0.0; case.log_ratios.len()];
    let offsets = case.offsets.as_deref().unwrap_or(&zeros);
    let computed = reference::group_loss(objective, &case.log_ratios, &case.rewards, offsets);
    let probabilities = |logs: &[Option<Real>]| {
        logs.iter().map(|log| log.as_ref().map_or(0.0, |log| log.to_f64().value().exp())).collect()
    };
    let rounded = reference::GroupLoss {
        loss: exact.loss.to_f64().value(),
        gradient: exact.gradient.iter().map(|g| g.to_f64().value()).collect(),
        policy: probabilities(&group.log_p),
        target: probabilities(&group.log_q),
    };
    let logits = reference::target_logits(objective.target(), &case.rewards, offsets);
    let bounds = bounds::group(objective, &case.log_ratios, &logits, 0.0, &rounded);
    used.loss(share(error(computed.loss, &exact.loss), bounds.loss + group.error()), &at);
    let beta = objective.beta_policy();
    for (computed, exact) in computed.gradient.iter().zip(&exact.gradient) {
        used.coefficient(share(beta * error(*computed, exact), bounds.coefficient + group.error()), &at);
    }
}

fn check(cases: &[Case], objectives: impl Fn(&Case) -> Vec<Objective>) {
    let (mut cpu, mut reference) = (Used::default(), Used::default());
    for case in cases {
        let zeros = vec![0.0; case.log_ratios.len()];
        let offsets = case.offsets.as_deref().unwrap_or(&zeros);
        // Objectives with one target have the distributions in common.
        let mut group: Option<(Target, Group)> = None;
        for objective in objectives(case) {
            let target = objective.target();
            if group.as_ref().is_none_or(|(made_for, _)| *made_for != target) {
                group = Some((target, Group::new(&objective, &case.log_ratios, &case.rewards, offsets)));
            }
            let Some((_, group)) = &group else { continue };
            let exact = group.exact(&objective);
            let (loss, coefficients) =
                one_group::on_the_cpu(&objective, &case.log_ratios, &case.rewards, case.offsets.as_deref());
            check_group(case, &objective, (loss, &coefficients), group, &exact, &mut cpu);
            check_reference(case, &objective, group, &exact, &mut reference);
        }
    }
    println!("CPU");
    cpu.check();
    println!("reference");
    reference.check();
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
    for case in cases().iter().filter(|case| case.name.contains("exact, K") && case.log_ratios.len() <= 8) {
        let zeros = vec![0.0; case.log_ratios.len()];
        for objective in reward_objectives(case.betas) {
            let exact = Group::new(&objective, &case.log_ratios, &case.rewards, &zeros).exact(&objective);
            let (loss, coefficients) = one_group::on_the_cpu(&objective, &case.log_ratios, &case.rewards, None);
            let relative = error(loss, &exact.loss) / exact.loss.to_f64().value();
            assert!(relative <= DIGITS, "{}, {objective:?}: loss off by {relative} of it", case.name);
            let largest = coefficients.iter().fold(0.0f64, |largest, c| largest.max(c.abs()));
            for (coefficient, exact) in coefficients.iter().zip(&exact.gradient) {
                let relative = error(*coefficient, exact) / largest;
                assert!(relative <= DIGITS, "{}, {objective:?}: gradient off by {relative}", case.name);
            }
        }
    }
}
