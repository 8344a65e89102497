//! The theorem: as K grows, the gradient of the K-sample EXO loss turns to that of the RLHF objective, whatever the
//! policy is.
//!
//! A policy over twelve outcomes, not the optimum and not of its form. For K up to 8 the expectation over all samples
//! y_1…y_K ~ π_ref is exact: every multiset of outcomes, weighted with how often it is drawn. For larger K it is a mean
//! over random groups. The losses and gradients go through the CPU's objective stage; what they are held to is written
//! out here from the distributions.

use approx::assert_abs_diff_eq;
use exo_kernels::{Backend, Batch, Betas, Cpu, GroupStatistics, Objective, ObjectiveOutputs, Reduction, Rewards};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OUTCOMES: usize = 12;
const BETAS: Betas = Betas { policy: 0.6, reward: 0.8 };

type Numbers = [f64; OUTCOMES];

fn exo() -> Objective {
    Objective::exo(BETAS).expect("betas in range")
}

/// KL(q‖p): the gradient is that of `dpo_rw`, and the loss has no entropy to subtract.
fn forward_kl() -> Objective {
    Objective::alpha(1.0, BETAS).expect("betas in range")
}

fn normalised(logits: Numbers) -> Numbers {
    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.map(|logit| logit.exp() / total)
}

fn from(entry: impl Fn(usize) -> f64) -> Numbers {
    std::array::from_fn(entry)
}

fn dot(x: &Numbers, y: &Numbers) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The tabular problem.
struct Problem {
    reference: Numbers,
    rewards: Numbers,
    /// log π − log π_ref.
    log_ratios: Numbers,
    /// π^β ∝ π^β_π·π_ref^(1−β_π), the policy that EXO regularises.
    tempered: Numbers,
    /// π* ∝ π_ref·exp(r/β_r).
    optimum: Numbers,
}

impl Problem {
    fn new(policy: Numbers) -> Self {
        let reference = normalised(from(|a| 0.5 * (1.3 * a as f64 + 0.4).sin()));
        let rewards = from(|a| 0.5 * (0.9 * a as f64).cos() + 0.03 * a as f64);
        let log_ratios = from(|a| (policy[a] / reference[a]).ln());
        let tempered = normalised(from(|a| BETAS.policy * log_ratios[a] + reference[a].ln()));
        let optimum = normalised(from(|a| rewards[a] / BETAS.reward + reference[a].ln()));
        Problem { reference, rewards, log_ratios, tempered, optimum }
    }

    fn misspecified() -> Self {
        Problem::new(normalised(from(|a| 0.9 * (2.1 * a as f64 + 1.0).sin())))
    }

    /// log w/v = log π^β − log π*.
    fn log_weights(&self) -> Numbers {
        from(|a| (self.tempered[a] / self.optimum[a]).ln())
    }

    /// KL(π^β‖π*).
    fn kl(&self) -> f64 {
        dot(&self.tempered, &self.log_weights())
    }

    /// −(1/β_r) times the gradient of J = E r − β_r KL(π^β‖π_ref), the RLHF objective, in the logits of π.
    fn rlhf_gradient(&self) -> Numbers {
        let regularised = from(|a| self.rewards[a] - BETAS.reward * (self.tempered[a] / self.reference[a]).ln());
        let mean = dot(&self.tempered, &regularised);
        from(|a| -BETAS.policy * self.tempered[a] * (regularised[a] - mean) / BETAS.reward)
    }

    /// Of KL(π*‖π^β), in the logits of π.
    fn forward_gradient(&self) -> Numbers {
        from(|a| BETAS.policy * (self.tempered[a] - self.optimum[a]))
    }

    /// E[L_K] = κ + bias/K + O(K⁻²), bias = −E_ref[w²(log(w/v) − κ)] + χ²(w)/2 − χ²(v)/2.
    fn bias(&self) -> f64 {
        let (kappa, log_weights) = (self.kl(), self.log_weights());
        let w = from(|a| self.tempered[a] / self.reference[a]);
        let v = from(|a| self.optimum[a] / self.reference[a]);
        let chi_square = |x: &Numbers| dot(&self.reference, &x.map(|x| x * x)) - 1.0;
        let covariance: f64 = (0..OUTCOMES).map(|a| self.reference[a] * w[a] * w[a] * (log_weights[a] - kappa)).sum();
        -covariance + 0.5 * chi_square(&w) - 0.5 * chi_square(&v)
    }

    /// Mean loss and mean gradient in the logits of π, over groups of outcomes with weights.
    fn expectation(&self, objective: &Objective, k: usize, groups: &[(Vec<usize>, f64)]) -> (f64, Numbers) {
        let outcomes: Vec<usize> = groups.iter().flat_map(|(outcomes, _)| outcomes.iter().copied()).collect();
        let pick = |values: &Numbers| outcomes.iter().map(|&a| values[a]).collect::<Vec<f64>>();
        let batch = Batch::padded(outcomes.len(), 1, k).expect("groups of k");
        let (mut losses, mut coefficients) = (vec![0.0; groups.len()], vec![0.0; outcomes.len()]);
        let mut statistics = vec![GroupStatistics::default(); groups.len()];
        Cpu::default()
            .objective(
                objective,
                &pick(&self.log_ratios).as_slice(),
                &batch,
                &Rewards::from(&pick(&self.rewards)),
                Reduction::Sum,
                ObjectiveOutputs {
                    group_losses: &mut losses,
                    coefficients: &mut coefficients,
                    statistics: &mut statistics,
                    row_weights: None,
                },
            )
            .expect("inputs that the objective takes");
        let loss = losses.iter().zip(groups).map(|(loss, (_, weight))| loss * weight).sum();
        let mut gradient = [0.0; OUTCOMES];
        for (i, (&a, coefficient)) in outcomes.iter().zip(&coefficients).enumerate() {
            // d log π(a) / d logit b is [a = b] − π(b), and the coefficients of a group sum to 0.
            gradient[a] += coefficient * groups[i / k].1;
        }
        (loss, gradient)
    }

    /// Every multiset of k outcomes and its probability.
    fn all_groups(&self, k: usize) -> Vec<(Vec<usize>, f64)> {
        let mut groups = vec![(Vec::new(), 1.0)];
        for drawn in 1..=k {
            let mut longer = Vec::new();
            for (outcomes, probability) in groups {
                for a in outcomes.last().copied().unwrap_or(0)..OUTCOMES {
                    let mut outcomes: Vec<usize> = outcomes.clone();
                    outcomes.push(a);
                    // The orders of a multiset are drawn!/∏ counts!.
                    let count = outcomes.iter().filter(|&&other| other == a).count();
                    let orders = drawn as f64 / count as f64;
                    longer.push((outcomes, probability * self.reference[a] * orders));
                }
            }
            groups = longer;
        }
        groups
    }

    /// That many groups of k, drawn from the reference.
    fn random_groups(&self, k: usize, count: usize, seed: u64) -> Vec<(Vec<usize>, f64)> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut draw = || {
            let mut left = random.random::<f64>();
            let chosen = self.reference.iter().position(|probability| {
                left -= probability;
                left < 0.0
            });
            chosen.unwrap_or(OUTCOMES - 1)
        };
        (0..count).map(|_| ((0..k).map(|_| draw()).collect(), 1.0 / count as f64)).collect()
    }
}

/// |x|/|y| and the cosine between them.
fn compare(x: &Numbers, y: &Numbers) -> (f64, f64) {
    let (of_x, of_y) = (dot(x, x).sqrt(), dot(y, y).sqrt());
    (of_x / of_y, dot(x, y) / (of_x * of_y))
}

/// The probabilities of the exact expectation sum to 1 up to some 10⁵ roundings.
#[test]
fn the_multisets_are_all_there() {
    let problem = Problem::misspecified();
    for (k, count) in [(2, 78), (4, 1365), (8, 75582)] {
        let groups = problem.all_groups(k);
        assert_eq!(groups.len(), count);
        let total: f64 = groups.iter().map(|(_, probability)| probability).sum();
        assert_abs_diff_eq!(total, 1.0, epsilon = 1e-10);
    }
}

/// The leading term of what E[L_K] misses, −0.2220/K here: what is left then falls as K⁻², to a quarter for every
/// doubling of K. A leading term that were wrong would leave something that halves; √8 and √32 are where a quarter is
/// no longer nearer than a half and an eighth.
#[test]
fn the_expected_loss_approaches_the_kl_as_predicted() {
    let problem = Problem::misspecified();
    let (kappa, bias) = (problem.kl(), problem.bias());
    let mut before: Option<f64> = None;
    for k in [2, 4, 8] {
        let (loss, _) = problem.expectation(&exo(), k, &problem.all_groups(k));
        let rest = loss - kappa - bias / k as f64;
        println!("K = {k}: E L = {loss:.5}, predicted {:.5} (kappa {kappa:.5})", kappa + bias / k as f64);
        assert!(loss < kappa, "K = {k}: {loss} of {kappa}");
        if let Some(before) = before {
            let ratio = before / rest;
            assert!((8f64.sqrt()..=32f64.sqrt()).contains(&ratio), "K = {k}: {before} became {rest}");
        }
        before = Some(rest);
    }
}

/// Length and direction of the mean gradient beside those of the limit, for K = 2, 4, 8 exactly, and for 32 and 1024
/// from 640000 samples, which leave each component off by about 1/√640000 of the gradient's size.
fn approach(problem: &Problem, objective: &Objective, limit: &Numbers) -> Vec<(f64, f64)> {
    [2, 4, 8, 32, 1024]
        .into_iter()
        .map(|k| {
            let groups = if k <= 8 { problem.all_groups(k) } else { problem.random_groups(k, 640_000 / k, k as u64) };
            let (ratio, cosine) = compare(&problem.expectation(objective, k, &groups).1, limit);
            println!("K = {k}: ratio {ratio:.4}, cosine {cosine:.5}");
            (ratio, cosine)
        })
        .collect()
}

fn assert_approach(approach: &[(f64, f64)]) {
    for pair in approach.windows(2) {
        assert!(pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1, "{pair:?}");
    }
    let (first, last) = (approach[0], approach[approach.len() - 1]);
    assert!(first.0 < 0.7 && first.1 < 0.99, "{first:?}: nothing to approach");
    // Bias of the order 1/K and four standard errors of the sampling; a cosine is off by the square of that.
    let error = 2.0 / 1024.0 + 4.0 / 800.0;
    assert!((last.0 - 1.0).abs() <= error && 1.0 - last.1 <= 12.0 * error * error, "{last:?}");
}

#[test]
fn the_exo_gradient_turns_to_that_of_rlhf() {
    let problem = Problem::misspecified();
    assert_approach(&approach(&problem, &exo(), &problem.rlhf_gradient()));
}

#[test]
fn the_dpo_gradient_turns_to_that_of_the_forward_kl() {
    let problem = Problem::misspecified();
    assert_approach(&approach(&problem, &forward_kl(), &problem.forward_gradient()));
}

/// The two limits are different directions, or the tests above could not tell them apart.
#[test]
fn the_two_limits_differ() {
    let problem = Problem::misspecified();
    let (_, cosine) = compare(&problem.rlhf_gradient(), &problem.forward_gradient());
    println!("kappa {:.4}, bias {:.4}, cosine of the limits {cosine:.4}", problem.kl(), problem.bias());
    assert!(cosine < 0.98, "{cosine}");
}

/// Where π ∝ π_ref·exp(r/(β_r·β_π)), p = q in every group of any size: each loss and each coefficient is 0 up to the
/// rounding of f and s, a few units each, which the loss squares.
#[test]
fn at_the_optimum_nothing_is_left_for_any_group_size() {
    let start = Problem::misspecified();
    let policy = normalised(from(|a| start.reference[a].ln() + start.rewards[a] / (BETAS.reward * BETAS.policy)));
    let problem = Problem::new(policy);
    assert_abs_diff_eq!(problem.kl(), 0.0, epsilon = 1e-15);
    for k in [1, 2, 3, 8, 32] {
        let groups = if k <= 3 { problem.all_groups(k) } else { problem.random_groups(k, 1000, 7) };
        for objective in [exo(), forward_kl()] {
            let (loss, gradient) = problem.expectation(&objective, k, &groups);
            let rounding = 32.0 * f64::EPSILON;
            assert!((0.0..=rounding * rounding).contains(&loss), "{objective:?} K = {k}: {loss}");
            assert!(gradient.iter().all(|g| g.abs() <= rounding), "{objective:?} K = {k}: {gradient:?}");
        }
    }
}
