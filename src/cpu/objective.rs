//! The K-sample objective on the CPU, in f64 and in centred form.
//!
//! Per group, with f the implicit rewards, s the target's logits (log q up to a constant) and m the index of the
//! largest f:
//!
//! - d_i = (f_i − f_m) − (s_i − s_m). It is log p_i − log q_i but for one constant, in which both softmax normalisers
//!   have cancelled;
//! - a_i = log p_i − log q_i = d_i − c, with c = −log1p(Σ p_i expm1(−d_i)) where all d, or what they weigh, are small;
//! - every loss is a sum of terms that are never negative, each computed from a_i without cancellation near a_i = 0;
//! - the gradient of the largest p is minus the sum of the others', so Σ g is 0 up to that sum's rounding.
//!
//! The textbook form, p·(log p − log q) summed and p_i·(log p_i − log q_i − L), gives negative losses next to the
//! optimum and, where one sample has all the weight, gradients that are nothing but rounding noise: even in f64
//! (`tests/objective_precision.rs` holds both forms to fifty-digit arithmetic).

use super::Cpu;
use crate::batch::Batch;
use crate::error::Result;
use crate::loss_options::Reduction;
use crate::objective::{Divergence, Objective, Target};
use crate::stages::{GroupStatistics, ObjectiveInputs, ObjectiveOutputs, Rewards, check_length, check_rewards};

/// e⁻¹⁰: what the official code's preference target gives the loser, not normalised.
const OFFICIAL_LOSER: f64 = 4.539_992_976_248_485e-5;

impl Cpu {
    /// Log-ratios `[S]` and rewards `[S]` → the loss of each group, d loss / d log-ratio of each sequence, statistics.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for buffers that do not fit the batch;
    /// [`Error::NotFinite`](crate::Error::NotFinite) for a reward or proposal offset that is not finite;
    /// [`Error::PairsOnly`](crate::Error::PairsOnly) and [`Error::ZeroTarget`](crate::Error::ZeroTarget) for a target
    /// that is not defined or not allowed.
    pub fn objective(
        &self,
        objective: &Objective,
        inputs: ObjectiveInputs<'_>,
        reduction: Reduction,
        outputs: ObjectiveOutputs<'_>,
    ) -> Result<()> {
        let ObjectiveInputs { log_ratios, batch, rewards } = inputs;
        let ObjectiveOutputs { group_losses, coefficients, statistics } = outputs;
        check_length("log-ratios", log_ratios.len(), batch.sequences())?;
        check_rewards(objective, rewards, batch)?;
        check_length("group losses", group_losses.len(), batch.groups())?;
        check_length("coefficients", coefficients.len(), batch.sequences())?;
        check_length("group statistics", statistics.len(), batch.groups())?;

        let beta = objective.beta_policy();
        let weight = reduction.weight(batch.groups());
        let mut work = Group::with_capacity(largest_group(batch));
        for (group, sequences) in batch.group_ranges().enumerate() {
            work.f.clear();
            work.f.extend(sequences.clone().map(|i| beta * log_ratios[i] + rewards.offset(i)));
            work.target_logits(objective.target(), rewards, sequences.start);
            group_losses[group] = work.loss_and_gradient(objective);
            statistics[group] = work.statistics();
            for (coefficient, gradient) in coefficients[sequences].iter_mut().zip(&work.gradient) {
                *coefficient = beta * weight * gradient;
            }
        }
        Ok(())
    }
}

fn largest_group(batch: &Batch) -> usize {
    batch.group_ranges().map(|group| group.len()).max().unwrap_or(0)
}

/// The numbers of one group, K of each; kept between groups.
struct Group {
    /// Implicit rewards, with the proposal's offset.
    f: Vec<f64>,
    /// The target's logits, with the proposal's offset; −inf where q = 0.
    s: Vec<f64>,
    p: Vec<f64>,
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    /// log p − log q up to a constant, 0 at the largest p.
    d: Vec<f64>,
    /// log p − log q.
    a: Vec<f64>,
    /// log p − log v, v the α-mixture of p and q.
    b: Vec<f64>,
    /// d loss / d f.
    gradient: Vec<f64>,
    /// Index of the largest p.
    top: usize,
}

impl Group {
    fn with_capacity(k: usize) -> Self {
        let new = || Vec::with_capacity(k);
        Group {
            f: new(),
            s: new(),
            p: new(),
            log_p: new(),
            log_q: new(),
            d: new(),
            a: new(),
            b: new(),
            gradient: new(),
            top: 0,
        }
    }

    fn target_logits(&mut self, target: Target, rewards: Rewards<'_>, first: usize) {
        let k = self.f.len();
        let reward = |i: usize| rewards.value(first + i);
        self.s.clear();
        match target {
            Target::Rewards { beta } => self.s.extend((0..k).map(|i| reward(i) / beta)),
            Target::Distribution => self.s.extend((0..k).map(reward)),
            Target::Preference { .. } | Target::OfficialPreference if k == 1 => self.s.push(0.0),
            Target::Preference { label_smoothing: epsilon } => {
                preference(&mut self.s, k, reward, 1.0 - epsilon, epsilon / (k - 1) as f64);
            }
            Target::OfficialPreference => preference(&mut self.s, k, reward, 1.0, OFFICIAL_LOSER),
        }
        for (i, s) in self.s.iter_mut().enumerate() {
            *s += rewards.offset(first + i);
        }
    }

    /// The group's loss; leaves d loss / d f in `gradient`.
    fn loss_and_gradient(&mut self, objective: &Objective) -> f64 {
        let k = self.f.len();
        self.gradient.clear();
        self.gradient.resize(k, 0.0);
        self.p.clear();
        if self.f.iter().any(|f| f.is_nan()) {
            self.p.resize(k, f64::NAN);
            self.gradient.fill(f64::NAN);
            return f64::NAN;
        }
        self.top = index_of_largest(&self.f);
        if self.f[self.top] == f64::NEG_INFINITY && k > 1 {
            // The policy can produce none of them: there is no p to pull.
            self.p.resize(k, 0.0);
            return f64::INFINITY;
        }
        self.distributions();
        if k == 1 {
            return 0.0;
        }
        let loss = match objective.divergence() {
            Divergence::ReverseKl => {
                self.alpha_gradient(0.0);
                self.alpha_loss(0.0)
            }
            Divergence::ForwardKl => {
                self.alpha_gradient(1.0);
                self.cross_entropy()
            }
            Divergence::Alpha(alpha) => {
                self.alpha_gradient(alpha);
                self.alpha_loss(alpha)
            }
            Divergence::JensenShannon => self.jensen_shannon(),
        };
        // What rounding leaves of the sum goes to the sample with the largest p, where it is smallest beside the true
        // value's terms.
        self.gradient[self.top] = 0.0;
        self.gradient[self.top] = -self.gradient.iter().sum::<f64>();
        match (objective.target(), objective.divergence()) {
            (Target::OfficialPreference, Divergence::ReverseKl) => loss - OFFICIAL_LOSER.ln_1p(),
            _ => loss,
        }
    }

    /// p, log p, log q, d and a.
    fn distributions(&mut self) {
        let (k, top) = (self.f.len(), self.top);
        let (f, s) = (&self.f, &self.s);
        // A single −inf has no difference to itself.
        let f_from_top = |i: usize| if i == top { 0.0 } else { f[i] - f[top] };
        let f_sum = log_sum_exp((0..k).map(f_from_top), top);
        self.log_p.clear();
        self.log_p.extend((0..k).map(|i| f_from_top(i) - f_sum));
        self.p.extend(self.log_p.iter().map(|log_p| log_p.exp()));

        let s_top = index_of_largest(s);
        let s_sum = log_sum_exp(s.iter().map(|&s_i| s_i - s[s_top]), s_top);
        self.log_q.clear();
        self.log_q.extend(s.iter().map(|&s_i| (s_i - s[s_top]) - s_sum));

        self.d.clear();
        self.a.clear();
        if s[top] == f64::NEG_INFINITY {
            // Nothing to centre on, and nothing near the optimum either.
            self.a.extend(self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| log_p - log_q));
            self.d.extend_from_slice(&self.a);
            return;
        }
        self.d.extend((0..k).map(|i| f_from_top(i) - if i == top { 0.0 } else { s[i] - s[top] }));
        let c = match small_shift(&self.p, &self.log_p, &self.d, 1.0) {
            Some(c) => c,
            // log q of the top is s[top] − s[s_top] − s_sum.
            None => f_sum + self.log_q[top],
        };
        self.a.extend(self.d.iter().map(|d| d - c));
    }

    /// Σ q·(−log p) from terms that are never negative.
    fn cross_entropy(&self) -> f64 {
        self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| product(log_q.exp(), -log_p)).sum()
    }

    /// (1 − Σ p^(1−α) q^α)/(α(1−α)); the limits KL(p‖q) at 0 and KL(q‖p) at 1.
    fn alpha_loss(&self, alpha: f64) -> f64 {
        self.log_p
            .iter()
            .zip(&self.log_q)
            .zip(&self.a)
            .map(|((&log_p, &log_q), &a)| {
                // The divergence of order α from p to q is that of order 1 − α from q to p.
                if alpha <= 0.5 {
                    alpha_term(alpha, log_p, log_q, a)
                } else {
                    alpha_term(1.0 - alpha, log_q, log_p, -a)
                }
            })
            .sum()
    }

    /// Its gradient in f: (W/α)·(p − v) with W = Σ p^(1−α) q^α, v = p^(1−α) q^α / W; in the limit α → 0, p·(d − Σ p d).
    fn alpha_gradient(&mut self, alpha: f64) {
        let k = self.f.len();
        if alpha == 0.0 {
            let mean: f64 = (0..k).map(|i| product(self.p[i], self.d[i])).sum();
            for i in 0..k {
                self.gradient[i] = product(self.p[i], self.d[i] - mean);
            }
            return;
        }
        let log_total = self.mixture(alpha);
        if log_total == f64::NEG_INFINITY {
            // p and q have no sample in common: W = 0, and stays so to first order.
            return;
        }
        for i in 0..k {
            let (p, log_p, b) = (self.p[i], self.log_p[i], self.b[i]);
            // p − v, through expm1 where they are close.
            let difference = if b.abs() < 1.0 {
                -p * (-b).exp_m1()
            } else {
                p - (weighted_logs(alpha, log_p, self.log_q[i]) - log_total).exp()
            };
            self.gradient[i] = log_total.exp() / alpha * difference;
        }
    }

    /// log W; leaves log p − log v in `b`.
    fn mixture(&mut self, alpha: f64) -> f64 {
        let k = self.f.len();
        let log_total = log_sum_exp_any((0..k).map(|i| weighted_logs(alpha, self.log_p[i], self.log_q[i])));
        // log p − log v = α·a + log W, and in centred form α·d − c'.
        let shift = small_shift(&self.p, &self.log_p, &self.d, alpha);
        self.b.clear();
        self.b.extend((0..k).map(|i| match shift {
            Some(shift) => alpha * self.d[i] - shift,
            None => alpha * self.a[i] + log_total,
        }));
        log_total
    }

    /// ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2, and its gradient p·(ψ − Σ p ψ), ψ = ½ log(p/m) up to a constant.
    fn jensen_shannon(&mut self) -> f64 {
        let (k, top) = (self.f.len(), self.top);
        let (a, d) = (&self.a, &self.d);
        // −½ (softplus(−a_i) − softplus(−a_top)), in one logarithm unless that would overflow.
        let psi = |i: usize| {
            let direct = a[top] == f64::INFINITY || d[i] < -30.0;
            if direct {
                0.5 * (softplus(-a[top]) - softplus(-a[i]))
            } else {
                -0.5 * (sigmoid(-a[top]) * (-d[i]).exp_m1()).ln_1p()
            }
        };
        let mean: f64 = (0..k).filter(|&i| self.p[i] > 0.0).map(|i| self.p[i] * psi(i)).sum();
        for i in 0..k {
            self.gradient[i] = if self.p[i] > 0.0 { self.p[i] * (psi(i) - mean) } else { 0.0 };
        }
        (0..k).map(|i| jensen_shannon_term(self.log_p[i], self.log_q[i], a[i])).sum()
    }

    fn statistics(&self) -> GroupStatistics {
        let favourite = index_of_largest(&self.s);
        let largest = self.s[favourite];
        let others = self.f.len() - 1;
        let rest: f64 = self.f.iter().enumerate().filter(|&(i, _)| i != favourite).map(|(_, f)| f).sum();
        let squares: f64 = self.p.iter().map(|p| p * p).sum();
        GroupStatistics {
            effective_sample_size: if squares == 0.0 { 0.0 } else { 1.0 / squares },
            margin: if others == 0 { 0.0 } else { self.f[favourite] - rest / others as f64 },
            agrees: !squares.is_nan() && self.s[self.top] == largest,
            tied: self.s.iter().filter(|&&s| s == largest).count() > 1,
        }
    }
}

/// Logits of a preference target: `winner` and `loser` are the probabilities of one winner and of each loser.
fn preference(s: &mut Vec<f64>, k: usize, reward: impl Fn(usize) -> f64, winner: f64, loser: f64) {
    let best = (0..k).map(&reward).fold(f64::NEG_INFINITY, f64::max);
    let tied = (0..k).filter(|&i| reward(i) == best).count() as f64;
    // Each of the tied is the winner in one of `tied` draws and a loser in the others.
    let shared = (winner + (tied - 1.0) * loser) / tied;
    s.extend((0..k).map(|i| if reward(i) == best { shared.ln() } else { loser.ln() }));
}

/// −log Σ p e^(−α·d), where every α·d is small, or its sample's part in the sum is: then what the sum has beside 1 is
/// what matters.
fn small_shift(p: &[f64], log_p: &[f64], d: &[f64], alpha: f64) -> Option<f64> {
    let mut sum = 0.0;
    for i in 0..p.len() {
        let x = -alpha * d[i];
        // p·e^x − p; a large x goes with a small p.
        let term = if x < 1.0 { product(p[i], x.exp_m1()) } else { (log_p[i] + x).exp() - p[i] };
        // Also false for NaN.
        let harmless = x.abs() < 0.5 || term.abs() < 1e-3;
        if !harmless {
            return None;
        }
        sum += term;
    }
    Some(-sum.ln_1p())
}

/// The term of one sample in the divergence of order α ≤ ½ from p to q; never negative, and summing to the divergence
/// because Σ p = Σ q = 1: {(1−α)p + αq − p^(1−α) q^α}/(α(1−α)).
fn alpha_term(alpha: f64, log_p: f64, log_q: f64, a: f64) -> f64 {
    let (p, q) = (log_p.exp(), log_q.exp());
    if a.abs() < 0.1 {
        // Σ_{n≥2} (−a)^n/n!·(1 + α + … + α^(n−2)): the difference of the two exponentials has lost its leading digits
        // here.
        let (mut power, mut sum, mut geometric, mut factor) = (-a, 0.0, 0.0, 1.0);
        for n in 2..=12 {
            power *= -a / f64::from(n);
            geometric += factor;
            factor *= alpha;
            sum += power * geometric;
        }
        return p * sum;
    }
    // p^(1−α) q^α less p, over α.
    let excess = if alpha == 0.0 {
        product(p, -a)
    } else if (alpha * a).abs() < 1.0 {
        p * (-alpha * a).exp_m1() / alpha
    } else {
        (weighted_logs(alpha, log_p, log_q).exp() - p) / alpha
    };
    let difference = if a > -1.0 { p * (-a).exp_m1() } else { q - p };
    (difference - excess) / (1.0 - alpha)
}

/// The term of one sample in the Jensen–Shannon divergence; never negative.
fn jensen_shannon_term(log_p: f64, log_q: f64, a: f64) -> f64 {
    if a.abs() < 2.0 {
        // √(pq)·(y sinh y − cosh y·log cosh y), y = a/2: near 0 a difference of y² and y²/2.
        let y = 0.5 * a;
        let half = (0.5 * y).sinh();
        let log_cosh = (2.0 * half * half).ln_1p();
        return (0.5 * (log_p + log_q)).exp() * (y * y.sinh() - y.cosh() * log_cosh);
    }
    let log_2 = std::f64::consts::LN_2;
    0.5 * (product(log_p.exp(), log_2 - softplus(-a)) + product(log_q.exp(), log_2 - softplus(a)))
}

/// (1 − α) log p + α log q, where 0·(−inf) is 0.
fn weighted_logs(alpha: f64, log_p: f64, log_q: f64) -> f64 {
    product(1.0 - alpha, log_p) + product(alpha, log_q)
}

/// weight·value, 0 for a weight of 0 even where the value is infinite: the limit that the divergences have.
fn product(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}

/// log(1 + e^x).
fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

/// 1/(1 + e^(−x)).
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log Σ exp of values of which the one at `top` is 0 and the largest.
fn log_sum_exp(values: impl Iterator<Item = f64>, top: usize) -> f64 {
    values.enumerate().map(|(i, value)| if i == top { 0.0 } else { value.exp() }).sum::<f64>().ln_1p()
}

/// log Σ exp of any values, −inf among them.
fn log_sum_exp_any(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// The first of the largest values.
fn index_of_largest(values: &[f64]) -> usize {
    let mut top = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[top] {
            top = i;
        }
    }
    top
}
