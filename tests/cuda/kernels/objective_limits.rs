//! `kernels/objective.cu`: groups of every size against the CPU and the f64 specification, limits, statistics, bad
//! input, and bits that depend on nothing but the group.

use super::objective::{Inputs, Outputs, run};
use exo_kernels::cuda::Status;
use exo_kernels::reference::{bounds, objective as reference};
use exo_kernels::{
    Backend, Batch, Betas, Cpu, Divergence, GroupStatistics, Objective, ObjectiveOutputs, Reduction, Rewards, Target,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::objective_cases::DIVERGENCES;

const SIZES: [usize; 14] = [1, 2, 3, 8, 31, 32, 33, 63, 64, 65, 96, 1000, 1024, 1500];

const TARGETS: [Target; 5] = [
    Target::Rewards { beta: 0.5 },
    Target::Preference { label_smoothing: 1e-3 },
    Target::Preference { label_smoothing: 0.25 },
    Target::OfficialPreference,
    Target::Distribution,
];

fn objectives() -> Vec<Objective> {
    let of =
        |target| DIVERGENCES.iter().map(move |&divergence| Objective::new(target, divergence, 0.25).expect("in range"));
    TARGETS.iter().flat_map(|&target| of(target)).collect()
}

fn is_forward(objective: &Objective) -> bool {
    matches!(objective.divergence(), Divergence::ForwardKl | Divergence::Alpha(1.0))
}

/// Multiples of 2^(-10), so that logits are exact and ties of the rewards occur.
fn dyadic(random: &mut StdRng, count: usize, limit: i32) -> Vec<f64> {
    (0..count).map(|_| f64::from(random.random_range(-limit * 1024..=limit * 1024)) / 1024.0).collect()
}

struct OnTheCpu {
    losses: Vec<f64>,
    coefficients: Vec<f64>,
    statistics: Vec<GroupStatistics>,
}

fn on_the_cpu(objective: &Objective, inputs: &Inputs) -> OnTheCpu {
    let rows: Vec<usize> = (0..=inputs.log_ratios.len()).collect();
    let batch = Batch::new(&rows, &inputs.groups).expect("offsets that fit");
    let rewards = Rewards::from(&inputs.rewards);
    let rewards = inputs.offsets.as_deref().map_or(rewards, |offsets| rewards.with_proposal(offsets));
    let mut result = OnTheCpu {
        losses: vec![0.0; batch.groups()],
        coefficients: vec![0.0; inputs.log_ratios.len()],
        statistics: vec![GroupStatistics::default(); batch.groups()],
    };
    Cpu::default()
        .objective(
            objective,
            &inputs.log_ratios.as_slice(),
            &batch,
            &rewards,
            Reduction::Normalizer(1.0 / inputs.weight),
            ObjectiveOutputs {
                group_losses: &mut result.losses,
                coefficients: &mut result.coefficients,
                statistics: &mut result.statistics,
                row_weights: None,
            },
        )
        .expect("inputs that the objective takes");
    result
}

fn same(one: f64, other: f64, bound: f64) -> bool {
    one == other || (one.is_nan() && other.is_nan()) || (one - other).abs() <= bound
}

/// Each group of the kernel's outputs beside the CPU's and the specification's: losses and coefficients within the
/// specification's bounds, twice where two roundings meet; statistics to rounding.
fn compare(objective: &Objective, inputs: &Inputs, outputs: &Outputs) {
    let cpu = on_the_cpu(objective, inputs);
    for (g, range) in inputs.groups.windows(2).enumerate() {
        let range = range[0] as usize..range[1] as usize;
        let k = range.len();
        let zeros = vec![0.0; k];
        let offsets = inputs.offsets.as_ref().map_or(&zeros[..], |offsets| &offsets[range.clone()]);
        let (log_ratios, rewards) = (&inputs.log_ratios[range.clone()], &inputs.rewards[range.clone()]);
        let plain = reference::group_loss(objective, log_ratios, rewards, offsets);
        let logits = reference::target_logits(objective.target(), rewards, offsets);
        let bound = bounds::group(objective, log_ratios, &logits, 0.0, &plain);
        let at = format!("{objective:?}, group {g} of {k}");
        assert!(same(outputs.losses[g], plain.loss, 2.0 * bound.loss), "{at}: {} {}", outputs.losses[g], plain.loss);
        assert!(
            same(outputs.losses[g], cpu.losses[g], 2.0 * bound.loss),
            "{at}: {} {}",
            outputs.losses[g],
            cpu.losses[g]
        );
        for (i, sequence) in range.clone().enumerate() {
            let (gpu, exact) =
                (outputs.coefficients[sequence], plain.gradient[i] * objective.beta_policy() * inputs.weight);
            let limit = 2.0 * bound.coefficient * inputs.weight;
            assert!(same(gpu, exact, limit), "{at}, sample {i}: {gpu} {exact}");
            assert!(
                same(gpu, cpu.coefficients[sequence], limit),
                "{at}, sample {i}: {gpu} {}",
                cpu.coefficients[sequence]
            );
            let share = inputs.scored_rows.as_ref().map_or(1.0, |rows| 1.0 / f64::from(rows[sequence].max(1)));
            let weight = outputs.weights[sequence];
            assert!(weight == gpu * share || weight.is_nan() && gpu.is_nan(), "{at}, sample {i}: {weight}");
        }
        // K additions; margins of f up to its largest.
        let (gpu, cpu) = (outputs.statistics[g], cpu.statistics[g]);
        let roundings = (k + 8) as f64 * f64::EPSILON;
        let size = log_ratios
            .iter()
            .map(|s| (objective.beta_policy() * s).abs())
            .filter(|s| s.is_finite())
            .fold(0.0, f64::max)
            + offsets.iter().fold(0.0f64, |largest, c| largest.max(c.abs()));
        let (ess, margin) = (cpu.effective_sample_size, cpu.margin);
        // p is off by 2 |f - f_m| u at most.
        assert!(same(gpu.effective_sample_size, ess, ess * roundings * (4.0 + 4.0 * size)), "{at}: {gpu:?} {cpu:?}");
        assert!(same(gpu.margin, margin, 2.0 * roundings * size), "{at}: {gpu:?} {cpu:?}");
        assert_eq!((gpu.agreement, gpu.tied()), (cpu.agreement, cpu.tied()), "{at}");
    }
}

/// One group of each size, ragged, rewards with ties in some; with proposal offsets or without.
fn sizes(objective: &Objective, seed: u64, with_offsets: bool) -> Inputs {
    let mut random = StdRng::seed_from_u64(seed);
    let mut inputs = Inputs::new();
    for k in SIZES {
        if objective.target() == Target::OfficialPreference && k > 2 {
            continue;
        }
        let (log_ratios, mut rewards) = (dyadic(&mut random, k, 8), dyadic(&mut random, k, 4));
        if k % 3 == 2 {
            rewards = rewards.iter().map(|reward| reward.round()).collect();
        }
        let offsets = with_offsets.then(|| dyadic(&mut random, k, 2));
        inputs.push(&log_ratios, &rewards, offsets.as_deref());
    }
    inputs
}

#[test]
fn groups_of_every_size() {
    for (seed, objective) in objectives().iter().enumerate() {
        let mut inputs = sizes(objective, seed as u64, seed % 2 == 1);
        inputs.weight = if seed % 3 == 0 { 1.0 / 64.0 } else { 1.0 };
        if seed % 4 == 2 {
            inputs.scored_rows = Some((0..inputs.log_ratios.len() as i32).map(|i| i % 7).collect());
        }
        compare(objective, &inputs, &run(objective, &inputs));
        // The rewards above are f32 too.
        let f64s = run(objective, &inputs).bits();
        inputs.rewards_in_f32 = true;
        assert_eq!(run(objective, &inputs).bits(), f64s, "{objective:?}");
    }
}

/// The bits of a group are those that it has alone, wherever it stands and in whichever order warps run.
#[test]
fn groups_are_independent_and_schedules_do_not_matter() {
    for (seed, objective) in objectives().iter().enumerate() {
        let inputs = sizes(objective, 100 + seed as u64, false);
        let all = run(objective, &inputs);
        for shuffle in 1..4 {
            let shuffled = run(objective, &Inputs { shuffle: Some(shuffle), ..inputs.clone() });
            assert_eq!(shuffled.bits(), all.bits(), "{objective:?}, shuffle {shuffle}");
        }
        for g in [0, 1, inputs.groups.len() / 2, inputs.groups.len() - 2] {
            if g + 1 >= inputs.groups.len() {
                continue;
            }
            let range = inputs.groups[g] as usize..inputs.groups[g + 1] as usize;
            let mut alone = Inputs::new();
            alone.push(&inputs.log_ratios[range.clone()], &inputs.rewards[range.clone()], None);
            let alone = run(objective, &alone);
            assert_eq!(alone.losses[0].to_bits(), all.losses[g].to_bits(), "{objective:?}, group {g}");
            assert_eq!(alone.coefficients, all.coefficients[range], "{objective:?}, group {g}");
            assert_eq!(alone.statistics[0], all.statistics[g], "{objective:?}, group {g}");
        }
    }
}

/// One, some or all of the samples impossible, each place of a group in turn.
#[test]
fn impossible_samples_are_limits() {
    let never = f64::NEG_INFINITY;
    let mut random = StdRng::seed_from_u64(7);
    for objective in objectives() {
        let mut inputs = Inputs::new();
        for k in [1, 2, 3, 33, 64] {
            if objective.target() == Target::OfficialPreference && k > 2 {
                continue;
            }
            let (log_ratios, rewards) = (dyadic(&mut random, k, 8), dyadic(&mut random, k, 4));
            for which in [0, k / 2, k - 1] {
                let mut some = log_ratios.clone();
                some[which] = never;
                inputs.push(&some, &rewards, None);
                // All but one.
                let mut one = vec![never; k];
                one[which] = log_ratios[which];
                inputs.push(&one, &rewards, None);
            }
            inputs.push(&vec![never; k], &rewards, None);
        }
        let outputs = run(&objective, &inputs);
        compare(&objective, &inputs, &outputs);
        for (g, range) in inputs.groups.windows(2).enumerate() {
            let range = range[0] as usize..range[1] as usize;
            let coefficients = &outputs.coefficients[range.clone()];
            assert!(coefficients.iter().all(|c| c.is_finite()), "{objective:?} {coefficients:?}");
            let log_ratios = &inputs.log_ratios[range];
            if log_ratios.len() == 1 {
                assert_eq!((outputs.losses[g], coefficients[0]), (0.0, 0.0));
            } else if log_ratios.iter().all(|&s| s == never) {
                assert_eq!(outputs.losses[g], f64::INFINITY);
                assert!(coefficients.iter().all(|&c| c == 0.0));
            } else if is_forward(&objective) {
                assert_eq!(outputs.losses[g], f64::INFINITY);
            } else {
                assert!(outputs.losses[g].is_finite());
                assert!((0..log_ratios.len()).all(|i| log_ratios[i] != never || coefficients[i] == 0.0));
            }
        }
    }
}

/// q = 0 and p = 0, together and apart, where the divergence allows it.
#[test]
fn zeros_of_target_and_policy_together() {
    let never = f64::NEG_INFINITY;
    for divergence in DIVERGENCES {
        if matches!(divergence, Divergence::ReverseKl | Divergence::Alpha(0.0)) {
            continue;
        }
        let objective = Objective::distribution(divergence, 1.0).expect("in range");
        let mut inputs = Inputs::new();
        inputs.push(&[never, 1.0, 0.5], &[never, 0.0, -1.0], None);
        inputs.push(&[2.0, never, never], &[never, 0.0, never], None);
        inputs.push(&[2.0, 1.0, never], &[never, 0.0, 0.5], None);
        // q underflows where p is 0.
        inputs.push(&[2.0, never, 0.25], &[0.0, -800.0, 0.5], None);
        let outputs = run(&objective, &inputs);
        assert!(outputs.losses.iter().all(|loss| !loss.is_nan()), "{objective:?} {:?}", outputs.losses);
        assert!(outputs.coefficients.iter().all(|c| c.is_finite()), "{objective:?} {:?}", outputs.coefficients);
        let groups = if divergence == Divergence::ForwardKl { 9 } else { 12 };
        let mut without_underflow = inputs.clone();
        without_underflow.groups.truncate(groups / 3 + 1);
        without_underflow.log_ratios.truncate(groups);
        without_underflow.rewards.truncate(groups);
        compare(&objective, &without_underflow, &run(&objective, &without_underflow));
    }
}

#[test]
fn nan_poisons_its_own_group_only() {
    let mut random = StdRng::seed_from_u64(11);
    for objective in objectives() {
        let mut inputs = Inputs::new();
        let mut poisoned = Vec::new();
        for k in [2, 1, 2, 33, 40, 64, 3] {
            if objective.target() == Target::OfficialPreference && k > 2 {
                continue;
            }
            let is_poisoned = inputs.groups.len().is_multiple_of(2);
            let (mut log_ratios, rewards) = (dyadic(&mut random, k, 8), dyadic(&mut random, k, 4));
            if is_poisoned {
                log_ratios[k - 1] = f64::NAN;
            }
            poisoned.push(is_poisoned);
            inputs.push(&log_ratios, &rewards, None);
        }
        // All NaN.
        inputs.push(&[f64::NAN; 2], &[0.0, 1.0], None);
        poisoned.push(true);
        let outputs = run(&objective, &inputs);
        let cpu = on_the_cpu(&objective, &inputs);
        for (g, is_poisoned) in poisoned.into_iter().enumerate() {
            let range = inputs.groups[g] as usize..inputs.groups[g + 1] as usize;
            assert_eq!(outputs.losses[g].is_nan(), is_poisoned);
            assert!(outputs.coefficients[range].iter().all(|c| c.is_nan() == is_poisoned));
            let (gpu, cpu) = (outputs.statistics[g], cpu.statistics[g]);
            assert_eq!(gpu.effective_sample_size.is_nan(), is_poisoned);
            assert_eq!((gpu.agreement, gpu.tied()), (cpu.agreement, cpu.tied()), "{objective:?} {g}");
            assert_eq!(gpu.margin.is_nan(), cpu.margin.is_nan());
        }
        assert_eq!(outputs.status, Status::CLEAR);
    }
}

/// Two groups of three: rewards, offsets, the first sequence that is refused.
type BadRewards<'a> = (&'a Objective, [f64; 6], Option<[f64; 6]>, Option<usize>);

/// Rewards that the host would have refused: NaN for their group, and the first of them in the status word.
#[test]
fn bad_rewards_are_found() {
    let exo = Objective::exo(Betas { policy: 0.5, reward: 1e-150 }).expect("in range");
    let preference = Objective::exo_pref(0.5, 1e-3).expect("in range");
    let forward = Objective::distribution(Divergence::ForwardKl, 0.5).expect("in range");
    let reverse = Objective::distribution(Divergence::ReverseKl, 0.5).expect("in range");
    let never = f64::NEG_INFINITY;
    let cases: [BadRewards<'_>; 12] = [
        (&exo, [1e-150; 6], None, None),
        (&exo, [0.0, 0.0, 0.0, 1e200, f64::NAN, 0.0], None, Some(3)),
        (&exo, [0.0, 0.0, 0.0, 0.0, f64::NAN, 0.0], None, Some(4)),
        (&exo, [0.0, 0.0, 0.0, f64::INFINITY, 0.0, f64::NAN], None, Some(3)),
        (&exo, [0.0; 6], Some([0.0, 0.0, 0.0, 0.0, 0.0, never]), Some(5)),
        (&preference, [0.0, 1.0, 2.0, 3.0, 1e300, 1.0], None, None),
        (&preference, [0.0, 1.0, 2.0, 3.0, never, 1.0], None, Some(4)),
        (&forward, [0.0, never, 0.0, never, 0.0, never], None, None),
        (&forward, [0.0, never, 0.0, never, never, never], None, Some(3)),
        (&forward, [0.0, never, 0.0, never, 0.0, f64::INFINITY], None, Some(5)),
        (&reverse, [0.0, 1.0, 0.0, 2.0, 0.0, 3.0], None, None),
        (&reverse, [0.0, 1.0, 0.0, 2.0, 0.0, never], None, Some(5)),
    ];
    for (objective, rewards, offsets, first) in cases {
        let mut inputs = Inputs::new();
        for g in 0..2 {
            let of = 3 * g..3 * g + 3;
            inputs.push(&[0.5, -0.25, 1.0], &rewards[of.clone()], offsets.as_ref().map(|offsets| &offsets[of.clone()]));
        }
        let outputs = run(objective, &inputs);
        assert_eq!(outputs.status.first_bad_reward_sequence(), first, "{objective:?} {rewards:?}");
        assert!(!outputs.losses[0].is_nan());
        assert_eq!(outputs.losses[1].is_nan(), first.is_some());
        assert!(outputs.coefficients[3..].iter().all(|c| c.is_nan() == first.is_some()));
    }
}

/// The margin of a pair is one subtraction of implicit rewards: with f as the CPU rounds it, the bits are the CPU's.
#[test]
fn implicit_rewards_have_the_bits_of_the_cpu() {
    let mut random = StdRng::seed_from_u64(23);
    // No f64: products with it round.
    let objective = Objective::exo(Betas { policy: 0.1, reward: 0.3 }).expect("in range");
    let mut inputs = Inputs::new();
    let mut numbers = || [random.random_range(-50.0..50.0), random.random_range(-50.0..50.0)];
    for _ in 0..200 {
        inputs.push(&numbers(), &numbers(), Some(&numbers()));
    }
    let (gpu, cpu) = (run(&objective, &inputs), on_the_cpu(&objective, &inputs));
    for (g, (gpu, cpu)) in gpu.statistics.iter().zip(&cpu.statistics).enumerate() {
        assert_eq!(gpu.margin.to_bits(), cpu.margin.to_bits(), "group {g}");
    }
}

#[test]
fn the_optimum_and_ties_are_exact() {
    let mut random = StdRng::seed_from_u64(13);
    for divergence in DIVERGENCES {
        if matches!(divergence, Divergence::ForwardKl) {
            continue;
        }
        // Neither beta is an f64: products round, and the same log-ratios must still tie.
        let objective = Objective::new(Target::Rewards { beta: 0.3 }, divergence, 0.1).expect("in range");
        let mut inputs = Inputs::new();
        for k in [2, 8, 33, 100] {
            inputs.push(&vec![0.7; k], &vec![-0.2; k], None);
        }
        let outputs = run(&objective, &inputs);
        assert!(outputs.losses.iter().chain(&outputs.coefficients).all(|&x| x == 0.0), "{objective:?}");
        assert!(outputs.statistics.iter().all(|s| s.tied() && s.agreement == 1.0));
        let objective = Objective::distribution(divergence, 1.0).expect("in range");
        let mut inputs = Inputs::new();
        for k in [2, 8, 33, 100] {
            let logits = dyadic(&mut random, k, 5);
            inputs.push(&logits, &logits, None);
        }
        let outputs = run(&objective, &inputs);
        assert!(outputs.losses.iter().chain(&outputs.coefficients).all(|&x| x == 0.0), "{objective:?}");
    }
}

/// One sample per lane: the work of a group of up to 32 is that of one pass per stage, whatever K is.
#[test]
fn a_group_of_up_to_32_is_one_sample_per_lane() {
    let mut random = StdRng::seed_from_u64(17);
    let betas = Betas { policy: 0.5, reward: 0.5 };
    for (objective, limit) in [
        (Objective::exo(betas).expect("in range"), 2500),
        (Objective::jensen_shannon(betas).expect("in range"), 2500),
        (Objective::alpha(0.3, betas).expect("in range"), 2500),
        (Objective::exo_pref(0.5, 1e-3).expect("in range"), 2500),
    ] {
        let mut per_group = |k: usize| {
            let mut inputs = Inputs::new();
            for _ in 0..4 {
                inputs.push(&dyadic(&mut random, k, 8), &dyadic(&mut random, k, 4), None);
            }
            run(&objective, &inputs).report.counters.by_class.values().map(|executed| executed.warp).sum::<u64>() / 4
        };
        let (four, all) = (per_group(4), per_group(32));
        println!(
            "{objective:?}: {four} warp instructions for K = 4, {all} for K = 32, {} for K = 1024",
            per_group(1024)
        );
        assert!(all <= limit && four <= all, "{objective:?}: {four} {all}");
    }
}
