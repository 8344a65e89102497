//! The objectives on adversarial groups, against arithmetic of a hundred digits, within bounds derived from f64's
//! rounding.

use exo_kernels::reference::{bounds, objective as reference};
use exo_kernels::{Batch, Divergence, Objective, Reduction, Rewards, Target};
use support::backend::{TestBackend, on_every_training_backend};
use support::fifty_digits::{Exact, Group, Real};
use support::objective_cases::{
    ALPHAS, Case, EXACT, Numbers, ROUNDED, Used, cases, check_group, error, preference_objectives, reward_objectives,
    share,
};

on_every_training_backend!(
    objectives_with_rewards_are_within_their_bounds,
    objectives_with_preferences_are_within_their_bounds,
    distributions_with_zeros_are_within_their_bounds,
    losses_and_gradients_next_to_the_optimum_keep_their_digits,
);

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

/// Loss and coefficients of each case, as the groups of one call.
fn run(backend: &impl TestBackend, objective: &Objective, cases: &[&Case]) -> Vec<(f64, Vec<f64>)> {
    let mut groups = vec![0];
    let (mut log_ratios, mut rewards, mut offsets) = (Vec::new(), Vec::<f64>::new(), Vec::new());
    for case in cases {
        log_ratios.extend(&case.log_ratios);
        rewards.extend(&case.rewards);
        offsets.extend(case.offsets.clone().unwrap_or_else(|| vec![0.0; case.log_ratios.len()]));
        groups.push(log_ratios.len());
    }
    let sequences: Vec<usize> = (0..=log_ratios.len()).collect();
    let batch = Batch::new(&sequences, &groups).expect("groups of at least one");
    let rewards = Rewards::from(&rewards);
    let with_offsets = cases.iter().any(|case| case.offsets.is_some());
    let rewards = if with_offsets { rewards.with_proposal(&offsets) } else { rewards };
    let results = backend.host_objective(objective, &log_ratios, &batch, rewards, Reduction::Sum);
    let of_case =
        |place: usize| (results.losses[place], results.coefficients[groups[place]..groups[place + 1]].to_vec());
    (0..cases.len()).map(of_case).collect()
}

fn check<B: TestBackend>(backend: &B, cases: &[Case], objectives: impl Fn(&Case) -> Vec<Objective>) {
    // All cases with one objective are the groups of one call.
    let mut calls: Vec<(Objective, Vec<usize>)> = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        for objective in objectives(case) {
            match calls.iter_mut().find(|(other, _)| *other == objective) {
                Some((_, members)) => members.push(index),
                None => calls.push((objective, vec![index])),
            }
        }
    }
    let (mut used, mut by_reference) = (Used::default(), Used::default());
    // Objectives with one target have the distributions in common.
    let mut groups: Vec<Vec<(Target, Group)>> = cases.iter().map(|_| Vec::new()).collect();
    for (objective, members) in &calls {
        let results = run(backend, objective, &members.iter().map(|&index| &cases[index]).collect::<Vec<_>>());
        for (&index, (loss, coefficients)) in members.iter().zip(&results) {
            let (case, made) = (&cases[index], &mut groups[index]);
            let zeros = vec![0.0; case.log_ratios.len()];
            let offsets = case.offsets.as_deref().unwrap_or(&zeros);
            let place = made.iter().position(|(target, _)| *target == objective.target()).unwrap_or_else(|| {
                made.push((objective.target(), Group::new(objective, &case.log_ratios, &case.rewards, offsets)));
                made.len() - 1
            });
            let group = &made[place].1;
            let exact = group.exact(objective);
            check_group(case, objective, (*loss, coefficients), group, &exact, &mut used);
            // Once is enough.
            if B::pick(true, false) {
                check_reference(case, objective, group, &exact, &mut by_reference);
            }
        }
    }
    println!("{}", backend.name());
    used.check();
    println!("reference");
    by_reference.check();
}

fn objectives_with_rewards_are_within_their_bounds(backend: &impl TestBackend) {
    check(backend, &cases(), |case| reward_objectives(case.betas));
}

fn objectives_with_preferences_are_within_their_bounds(backend: &impl TestBackend) {
    let preferences: Vec<Case> = cases().into_iter().filter(|case| case.log_ratios.len() <= 64).collect();
    check(backend, &preferences, |case| preference_objectives(case.betas, case.log_ratios.len()));
}

/// q = 0 for some, where the divergence is finite there, and p = 0 for some, where that is.
fn distributions_with_zeros_are_within_their_bounds(backend: &impl TestBackend) {
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
    check(backend, &zero_targets, |case| {
        let others = [Divergence::ForwardKl, Divergence::JensenShannon];
        distribution(others.into_iter().chain(alphas(1, ALPHAS.len())).collect(), case)
    });

    let mut zero_policies = Vec::new();
    for k in [2, 3, 8] {
        let (mut f, s) = (numbers.take(k, 2.0), numbers.take(k, 2.0));
        f[k / 2] = never;
        zero_policies.push(Case::new(format!("p = 0, K = {k}"), ROUNDED, f, s));
    }
    check(backend, &zero_policies, |case| {
        let others = [Divergence::ReverseKl, Divergence::JensenShannon];
        distribution(others.into_iter().chain(alphas(0, ALPHAS.len() - 1)).collect(), case)
    });
}

/// The bounds above are no better than the inputs let them be. With inputs that are exact, losses of 1e-9 to 1e-18 have
/// all their digits: K additions and some forty other roundings, u each.
fn losses_and_gradients_next_to_the_optimum_keep_their_digits(backend: &impl TestBackend) {
    const DIGITS: f64 = 100.0 * f64::EPSILON / 2.0;
    let is_near = |name: &str| name.contains("exact, K") || name == "near the optimum but for one";
    let mut cases = cases();
    cases.retain(|case| is_near(&case.name) && case.log_ratios.len() <= 8);
    for objective in reward_objectives(EXACT) {
        let results = run(backend, &objective, &cases.iter().collect::<Vec<_>>());
        for (case, (loss, coefficients)) in cases.iter().zip(&results) {
            let zeros = vec![0.0; case.log_ratios.len()];
            let exact = Group::new(&objective, &case.log_ratios, &case.rewards, &zeros).exact(&objective);
            let relative = error(*loss, &exact.loss) / exact.loss.to_f64().value();
            assert!(relative <= DIGITS, "{}, {objective:?}: loss off by {relative} of it", case.name);
            let largest = coefficients.iter().fold(0.0f64, |largest, c| largest.max(c.abs()));
            for (coefficient, exact) in coefficients.iter().zip(&exact.gradient) {
                let relative = error(*coefficient, exact) / largest;
                assert!(relative <= DIGITS, "{}, {objective:?}: gradient off by {relative}", case.name);
            }
        }
    }
}
