//! Adversarial groups for the objectives, and what a backend's results on them are held to: arithmetic of a hundred
//! digits, within bounds derived from f64's rounding.

use exo_kernels::{Betas, Divergence, Objective, Target};

use super::fifty_digits::{Exact, Group, Real};
use super::objective_bounds;

/// One group's inputs.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub log_ratios: Vec<f64>,
    pub rewards: Vec<f64>,
    pub offsets: Option<Vec<f64>>,
    pub betas: Betas,
}

impl Case {
    pub fn new(name: impl Into<String>, betas: Betas, log_ratios: Vec<f64>, rewards: Vec<f64>) -> Self {
        Case { name: name.into(), log_ratios, rewards, offsets: None, betas }
    }

    /// From implicit rewards f and target logits s: S = f/β_π, r = s·β_r, as f64 rounds them.
    pub fn from_logits(name: impl Into<String>, betas: Betas, f: &[f64], s: &[f64]) -> Self {
        let log_ratios = f.iter().map(|f| f / betas.policy).collect();
        Case::new(name, betas, log_ratios, s.iter().map(|s| s * betas.reward).collect())
    }
}

pub const EXACT: Betas = Betas { policy: 1.0, reward: 1.0 };
/// Neither is an f64: every product and quotient rounds.
pub const ROUNDED: Betas = Betas { policy: 0.1, reward: 0.3 };
pub const TINY: Betas = Betas { policy: 1e-3, reward: 1e-3 };

/// Every divergence, and the α-divergence at its ends and between them.
pub const DIVERGENCES: [Divergence; 8] = [
    Divergence::ReverseKl,
    Divergence::ForwardKl,
    Divergence::JensenShannon,
    Divergence::Alpha(0.0),
    Divergence::Alpha(0.1),
    Divergence::Alpha(0.5),
    Divergence::Alpha(0.9),
    Divergence::Alpha(1.0),
];

/// Numbers that look random, the same in every run (splitmix64), uniform in [−1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn take(&mut self, k: usize, scale: f64) -> Vec<f64> {
        (0..k).map(|_| scale * self.draw()).collect()
    }

    /// On a grid of 2^(−10), so that sums and differences of a few of them are exact.
    pub fn take_dyadic(&mut self, k: usize, scale: f64) -> Vec<f64> {
        (0..k).map(|_| (scale * self.draw() * 1024.0).round() / 1024.0).collect()
    }
}

pub fn cases() -> Vec<Case> {
    let mut numbers = Numbers(1);
    let mut cases = Vec::new();
    for k in [1, 2, 3, 8, 64, 1024] {
        let (f, s) = (numbers.take(k, 3.0), numbers.take(k, 3.0));
        cases.push(Case::from_logits(format!("generic, K = {k}"), ROUNDED, &f, &s));
    }
    // f = s + d: a little off the optimum, in inputs that are exact and in inputs that are rounded.
    for exponent in [10, 13, 27] {
        let d = 0.5f64.powi(exponent);
        for k in [2, 8, 64] {
            let s = numbers.take_dyadic(k, 2.0);
            let f: Vec<f64> = s.iter().map(|s| s + d * (numbers.draw() * 16.0).round() / 16.0).collect();
            cases.push(Case::from_logits(format!("d = 2^-{exponent}, exact, K = {k}"), EXACT, &f, &s));
            cases.push(Case::from_logits(format!("d = 2^-{exponent}, rounded, K = {k}"), ROUNDED, &f, &s));
        }
    }
    // One sample has all the weight under the policy; the target agrees, disagrees, or does not care.
    for gap in [14.0, 30.0, 60.0, 700.0, 720.0, 800.0] {
        for k in [2, 3, 8] {
            if gap > 700.0 && k > 2 {
                // e^(−720) is subnormal and e^720 infinite; e^(−800) is 0. Pairs show what that does.
                continue;
            }
            let mut f = numbers.take(k, 1.0);
            f[k / 2] += gap;
            let indifferent = numbers.take(k, 2.0);
            let mut agreeing = indifferent.clone();
            agreeing[k / 2] += gap - 0.75;
            let mut opposed = indifferent.clone();
            opposed[0] += gap;
            for (name, s) in [("indifferent", indifferent), ("agreeing", agreeing), ("opposed", opposed)] {
                for betas in [EXACT, ROUNDED] {
                    cases.push(Case::from_logits(format!("gap {gap}, {name}, K = {k}, {betas:?}"), betas, &f, &s));
                }
            }
        }
    }
    for k in [3, 8, 64] {
        let (f, s) = (numbers.take(k, 30.0), numbers.take(k, 30.0));
        cases.push(Case::from_logits(format!("spread 60, K = {k}"), ROUNDED, &f, &s));
    }
    // Common offsets, of the log-ratios, of the rewards and of both by a proposal, cost the digits that f64 has not
    // there.
    for k in [2, 8] {
        let (log_ratios, rewards) = (numbers.take(k, 5.0), numbers.take(k, 2.0));
        let moved = |values: &[f64], by: f64| values.iter().map(|value| value + by).collect::<Vec<f64>>();
        let case =
            Case::new(format!("offsets of 1e4, K = {k}"), ROUNDED, moved(&log_ratios, 1e4), moved(&rewards, -1e4));
        cases.push(Case { offsets: Some(moved(&numbers.take(k, 3.0), 1e4)), ..case.clone() });
        cases.push(case);
        cases.push(Case::new(format!("tiny betas, K = {k}"), TINY, moved(&log_ratios, -50.0), moved(&rewards, 0.1)));
        cases.push(Case::new(format!("nothing but ties, K = {k}"), ROUNDED, vec![0.7; k], vec![-0.2; k]));
        let same = numbers.take_dyadic(k, 3.0);
        cases.push(Case::new(format!("the optimum, K = {k}"), EXACT, same.clone(), same));
    }
    // Two samples next to the optimum, and one of no weight that is far from it.
    let (f, s) = ([1.0, 0.5 + 0.5f64.powi(27), -59.0], [1.0, 0.5, -64.0]);
    cases.push(Case::from_logits("near the optimum but for one", EXACT, &f, &s));
    cases
}

/// α close to and at the limits 0 and 1, at the symmetric ½ and on both sides of it.
pub const ALPHAS: [f64; 8] = [0.0, 1e-12, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0];

pub fn reward_objectives(betas: Betas) -> Vec<Objective> {
    let mut objectives = vec![Objective::exo(betas), Objective::dpo_rw(betas), Objective::jensen_shannon(betas)];
    objectives.extend(ALPHAS.iter().map(|&alpha| Objective::alpha(alpha, betas)));
    objectives.into_iter().map(|objective| objective.expect("betas and alphas in range")).collect()
}

pub fn preference_objectives(betas: Betas, k: usize) -> Vec<Objective> {
    let beta = betas.policy;
    let mut objectives = vec![Objective::dpo_pref(beta, 0.0)];
    for epsilon in [1e-300, 1e-3, 0.3] {
        objectives.extend([Objective::exo_pref(beta, epsilon), Objective::dpo_pref(beta, epsilon)]);
        for divergence in [Divergence::Alpha(0.1), Divergence::Alpha(0.999), Divergence::JensenShannon] {
            objectives.push(Objective::new(Target::Preference { label_smoothing: epsilon }, divergence, beta));
        }
    }
    if k <= 2 {
        objectives.push(Objective::exo_pref_official(beta));
        objectives.push(Objective::new(Target::OfficialPreference, Divergence::ForwardKl, beta));
    }
    objectives.into_iter().map(|objective| objective.expect("parameters in range")).collect()
}

/// The largest share of a bound that was used.
#[derive(Default)]
pub struct Used {
    pub loss: f64,
    pub coefficient: f64,
    pub where_loss: String,
    pub where_coefficient: String,
}

impl Used {
    pub fn loss(&mut self, share: f64, at: &str) {
        if share > self.loss || share.is_nan() {
            (self.loss, self.where_loss) = (share, at.to_owned());
        }
    }

    pub fn coefficient(&mut self, share: f64, at: &str) {
        if share > self.coefficient || share.is_nan() {
            (self.coefficient, self.where_coefficient) = (share, at.to_owned());
        }
    }

    pub fn check(&self) {
        println!("loss: {:.3} of its bound at {}", self.loss, self.where_loss);
        println!("coefficients: {:.3} of their bounds at {}", self.coefficient, self.where_coefficient);
        assert!(self.loss <= 1.0, "loss {} times its bound: {}", self.loss, self.where_loss);
        assert!(
            self.coefficient <= 1.0,
            "coefficient {} times its bound: {}",
            self.coefficient,
            self.where_coefficient
        );
    }
}

/// |computed − exact|, without rounding the exact value first.
pub fn error(computed: f64, exact: &Real) -> f64 {
    if !computed.is_finite() {
        return f64::INFINITY;
    }
    (Real::try_from(computed).unwrap_or(Real::ZERO) - exact).to_f64().value().abs()
}

pub fn share(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}

/// A backend's result for one group, within the bounds and the properties that no rounding may break.
pub fn check_group(
    case: &Case,
    objective: &Objective,
    (loss, coefficients): (f64, &[f64]),
    group: &Group,
    exact: &Exact,
    used: &mut Used,
) {
    let at = format!("{}, {objective:?}", case.name);
    let k = case.log_ratios.len();
    let zeros = vec![0.0; k];
    let offsets = case.offsets.as_deref().unwrap_or(&zeros);
    let bounds = objective_bounds::group(objective, &case.log_ratios, &case.rewards, offsets, group, exact);
    used.loss(share(error(loss, &exact.loss), bounds.loss + group.error()), &at);
    let beta = Real::try_from(objective.beta_policy()).unwrap_or(Real::ZERO);
    for i in 0..k {
        let exact = &beta * &exact.gradient[i];
        used.coefficient(share(error(coefficients[i], &exact), bounds.coefficients[i] + group.error()), &at);
    }
    let is_official =
        objective.target() == Target::OfficialPreference && objective.divergence() == Divergence::ReverseKl;
    // log(1 + e^(−10)) rounded up.
    let least = if is_official { -4.539_889_921_686_466e-5 } else { 0.0 };
    assert!(loss >= least, "{at}: loss {loss}");
    // The top's is minus the sum of the others': what is left is the roundings of K additions and of the product with
    // β.
    let sizes: f64 = coefficients.iter().map(|c| c.abs()).sum();
    let sum: f64 = coefficients.iter().sum();
    assert!(sum.abs() <= (2 * k + 2) as f64 * f64::EPSILON * sizes + k as f64 * f64::MIN_POSITIVE, "{at}: sum {sum}");
}
