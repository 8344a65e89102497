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
//! (`tests/contract/objective_precision.rs` holds both forms to fifty-digit arithmetic).

use crate::cpu::Cpu;
use crate::cpu::objective_math::{
    Order, Unit, alpha_term, index_of_largest, jensen_shannon_term, log_sum_exp, log_sum_exp_any, product,
    product_of_three, sigmoid, small_shift, softplus, weighted_logs,
};
use crate::data::batch::Batch;
use crate::error::{Result, check_length};
use crate::host::{ObjectiveOutputs, Rewards, RowWeights};
use crate::objective::{Divergence, Objective, Target};
use crate::options::{LogRatio, Reduction};
use crate::stage::objective::{GroupStatistics, check_rewards};
use std::cell::Cell;

/// e⁻¹⁰: what the official code's preference target gives the loser, not normalised.
const OFFICIAL_LOSER: f64 = 4.539_992_976_248_485e-5;

/// An order below this is α = 0 in all but samples whose α·d is not small. From here on an error of 2^(−1074), where
/// f64 ends, in α·d is divided by α without coming into the normal range.
const SMALLEST_ORDER: f64 = f64::EPSILON * 4.0;

/// [`Backend::objective`](crate::Backend::objective).
pub(super) fn objective(
    cpu: Cpu,
    objective: &Objective,
    log_ratios: &[f64],
    batch: &Batch,
    rewards: &Rewards<'_>,
    reduction: Reduction,
    outputs: ObjectiveOutputs<'_>,
) -> Result<()> {
    check_length("log-ratios", log_ratios.len(), batch.sequences())?;
    check_rewards(objective, rewards, batch)?;
    outputs.check(&cpu, batch)?;
    reduction.check()?;

    let ObjectiveOutputs { group_losses, coefficients, statistics, row_weights } = outputs;
    let beta = objective.beta_policy();
    let weight = reduction.weight(batch.groups());
    let mut work = GROUP.take().unwrap_or_else(|| Group::with_capacity(largest_group(batch)));
    for (group, sequences) in batch.group_ranges().enumerate() {
        work.logits(objective, &log_ratios[sequences.clone()], rewards, sequences.start);
        group_losses[group] = work.loss_and_gradient(objective) * work.unit.nats;
        statistics[group] = work.statistics();
        let unit = work.unit.nats;
        for (coefficient, &gradient) in coefficients[sequences].iter_mut().zip(&work.gradient) {
            let in_nats = gradient * unit;
            *coefficient = if in_nats.is_finite() {
                product_of_three(beta, weight, in_nats)
            } else {
                product_of_three(beta, weight, gradient) * unit
            };
        }
    }
    if let Some(RowWeights { log_ratio, scored_rows, weights }) = row_weights {
        for ((weight, coefficient), scored) in weights.iter_mut().zip(&*coefficients).zip(scored_rows) {
            let share = match log_ratio {
                LogRatio::Sum => 1.0,
                LogRatio::Mean => 1.0 / f64::from((*scored).max(1)),
            };
            *weight = coefficient * share;
        }
    }
    GROUP.set(Some(work));
    Ok(())
}

thread_local! {
    /// Of the thread's last call: so that after the first call of a shape nothing is allocated.
    static GROUP: Cell<Option<Group>> = const { Cell::new(None) };
}

fn largest_group(batch: &Batch) -> usize {
    batch.group_ranges().map(|group| group.len()).max().unwrap_or(0)
}

/// The numbers of one group, K of each; kept between groups. All but p are in the group's unit.
struct Group {
    unit: Unit,
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
    /// log p − log v, v the α-mixture of p and q; in nats.
    b: Vec<f64>,
    /// d loss / d f.
    gradient: Vec<f64>,
    /// Index of the largest p.
    top: usize,
    /// d − a.
    shift: f64,
}

impl Group {
    fn with_capacity(k: usize) -> Self {
        let new = || Vec::with_capacity(k);
        Group {
            unit: Unit::NAT,
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
            shift: 0.0,
        }
    }

    /// The unit, f and s, of the sequences that begin at `first`.
    fn logits(&mut self, objective: &Objective, log_ratios: &[f64], rewards: &Rewards<'_>, first: usize) {
        let (beta, k) = (objective.beta_policy(), log_ratios.len());
        self.target_logits(objective.target(), rewards, first, k);
        let of_policy = log_ratios.iter().filter(|log_ratio| log_ratio.is_finite()).map(|log_ratio| beta * log_ratio);
        let of_target = self.s.iter().copied().filter(|s| s.is_finite());
        let offsets = (first..first + k).map(|i| rewards.offset(i));
        let largest = of_policy.chain(of_target).chain(offsets).fold(0.0, |largest: f64, x| largest.max(x.abs()));
        self.unit = Unit::for_size(largest);

        let per_nat = self.unit.inverse;
        let offset = |i: usize| rewards.offset(first + i) * per_nat;
        self.f.clear();
        self.f.extend((0..k).map(|i| beta * per_nat * log_ratios[i] + offset(i)));
        for (i, s) in self.s.iter_mut().enumerate() {
            *s = *s * per_nat + offset(i);
        }
    }

    /// s in nats, without the proposal's offsets.
    fn target_logits(&mut self, target: Target, rewards: &Rewards<'_>, first: usize, k: usize) {
        let reward = |i: usize| rewards.value(first + i);
        self.s.clear();
        match target {
            Target::Rewards { beta } => self.s.extend((0..k).map(|i| reward(i) / beta)),
            Target::Distribution => self.s.extend((0..k).map(reward)),
            Target::Preference { .. } | Target::OfficialPreference if k == 1 => self.s.push(0.0),
            Target::Preference { label_smoothing: epsilon } => {
                let others = (k - 1) as f64;
                // ε/(K − 1) may be below every f64.
                let log_loser = epsilon.ln() - others.ln();
                preference(&mut self.s, k, reward, 1.0 - epsilon, epsilon / others, log_loser);
            }
            Target::OfficialPreference => {
                preference(&mut self.s, k, reward, 1.0, OFFICIAL_LOSER, OFFICIAL_LOSER.ln());
            }
        }
    }

    /// The group's loss; leaves d loss / d f in `gradient`. Both in the group's unit.
    fn loss_and_gradient(&mut self, objective: &Objective) -> f64 {
        let k = self.f.len();
        self.gradient.clear();
        self.gradient.resize(k, 0.0);
        self.p.clear();
        if self.f.iter().any(|&f| f.is_nan() || f == f64::INFINITY) {
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
            (Target::OfficialPreference, Divergence::ReverseKl) => loss - OFFICIAL_LOSER.ln_1p() * self.unit.inverse,
            _ => loss,
        }
    }

    /// p, log p, log q, d and a.
    fn distributions(&mut self) {
        let (k, top, unit) = (self.f.len(), self.top, self.unit);
        let (f, s) = (&self.f, &self.s);
        // A single −inf has no difference to itself.
        let f_from_top = |i: usize| if i == top { 0.0 } else { f[i] - f[top] };
        let f_sum = log_sum_exp((0..k).map(|i| f_from_top(i) * unit.nats), top) * unit.inverse;
        self.log_p.clear();
        self.log_p.extend((0..k).map(|i| f_from_top(i) - f_sum));
        self.p.extend(self.log_p.iter().map(|log_p| (log_p * unit.nats).exp()));

        let s_top = index_of_largest(s);
        let s_sum = log_sum_exp(s.iter().map(|&s_i| (s_i - s[s_top]) * unit.nats), s_top) * unit.inverse;
        self.log_q.clear();
        self.log_q.extend(s.iter().map(|&s_i| (s_i - s[s_top]) - s_sum));

        self.d.clear();
        self.a.clear();
        if s[top] == f64::NEG_INFINITY {
            // Nothing to centre on, and nothing near the optimum either.
            self.a.extend(self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| log_p - log_q));
            self.d.extend_from_slice(&self.a);
            self.shift = 0.0;
            return;
        }
        self.d.extend((0..k).map(|i| f_from_top(i) - if i == top { 0.0 } else { s[i] - s[top] }));
        let small = small_shift(&self.p, &self.log_p, &self.d, Order { alpha: 1.0, unit }).map(|c| c * unit.inverse);
        // log q of the top is s[top] − s[s_top] − s_sum.
        let c = small.unwrap_or(f_sum + self.log_q[top]);
        let logs = self.log_p.iter().zip(&self.log_q);
        self.a.extend(self.d.iter().zip(logs).map(|(d, (log_p, log_q))| {
            // Of a sample that is far from the top, but not far down in p and q, d − c has the top's digits only.
            let is_far = small.is_none() && d.abs() > 4.0 * (log_p.abs() + log_q.abs());
            if is_far { log_p - log_q } else { d - c }
        }));
        self.shift = c;
    }

    /// Σ q·(−log p) from terms that are never negative.
    fn cross_entropy(&self) -> f64 {
        let q = |log_q: f64| (log_q * self.unit.nats).exp();
        self.log_p.iter().zip(&self.log_q).map(|(log_p, &log_q)| product(q(log_q), -log_p)).sum()
    }

    /// (1 − Σ p^(1−α) q^α)/(α(1−α)); the limits KL(p‖q) at 0 and KL(q‖p) at 1.
    fn alpha_loss(&self, alpha: f64) -> f64 {
        let order = |alpha| Order { alpha, unit: self.unit };
        self.log_p
            .iter()
            .zip(&self.log_q)
            .zip(&self.a)
            .map(|((&log_p, &log_q), &a)| {
                // The divergence of order α from p to q is that of order 1 − α from q to p.
                if alpha <= 0.5 {
                    alpha_term(order(alpha), log_p, log_q, a)
                } else {
                    alpha_term(order(1.0 - alpha), log_q, log_p, -a)
                }
            })
            .sum()
    }

    /// Its gradient in f: (W/α)·(p − v) with W = Σ p^(1−α) q^α, v = p^(1−α) q^α / W.
    fn alpha_gradient(&mut self, alpha: f64) {
        let (k, order) = (self.f.len(), Order { alpha, unit: self.unit });
        if alpha < SMALLEST_ORDER && small_shift(&self.p, &self.log_p, &self.d, order).is_some() {
            self.small_order_gradient(order);
            return;
        }
        let log_total = self.mixture(order);
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
                p - (weighted_logs(alpha, log_p, self.log_q[i]) * order.unit.nats - log_total).exp()
            };
            self.gradient[i] = log_total.exp() * difference * order.unit.inverse / alpha;
        }
    }

    /// The same for an α next to 0, where p − v has no digits: e^(α·c)·p·(x − Σ p x), x = (1 − e^(−α·d))/α. In the limit
    /// p·(d − Σ p d).
    fn small_order_gradient(&mut self, order: Order) {
        let Order { alpha, unit } = order;
        let (p, d) = (&self.p, &self.d);
        // p·x; a large −α·d goes with a small p.
        let weighted = |i: usize| {
            let exponent = order.exponent(d[i]);
            if self.log_p[i] == f64::NEG_INFINITY {
                // p^(1−α) is 0, whatever −α·d.
                0.0
            } else if exponent > -1.0 {
                product(p[i], order.excess(d[i]))
            } else {
                (p[i] - (self.log_p[i] * unit.nats - exponent).exp()) * unit.inverse / alpha
            }
        };
        let mean: f64 = (0..p.len()).map(weighted).sum();
        let total = order.exponent(self.shift).exp();
        for i in 0..p.len() {
            self.gradient[i] = total
                * if order.exponent(d[i]) > -1.0 {
                    product(p[i], order.excess(d[i]) - mean)
                } else {
                    weighted(i) - p[i] * mean
                };
        }
    }

    /// log W in nats; leaves log p − log v in `b`.
    fn mixture(&mut self, order: Order) -> f64 {
        let (k, alpha) = (self.f.len(), order.alpha);
        let weighted = |i: usize| weighted_logs(alpha, self.log_p[i], self.log_q[i]) * order.unit.nats;
        let log_total = log_sum_exp_any((0..k).map(weighted));
        // log p − log v = α·a + log W, and in centred form α·d − c'.
        let shift = small_shift(&self.p, &self.log_p, &self.d, order);
        self.b.clear();
        self.b.extend((0..k).map(|i| match shift {
            Some(shift) => order.exponent(self.d[i]) - shift,
            None => order.exponent(self.a[i]) + log_total,
        }));
        log_total
    }

    /// ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2, and its gradient p·(ψ − Σ p ψ), ψ = ½ log(p/m) up to a constant.
    fn jensen_shannon(&mut self) -> f64 {
        let (k, top, unit) = (self.f.len(), self.top, self.unit);
        // Bounded by log 2 and computed in nats, in which a difference that is no f64 is as good as infinite.
        let a = |i: usize| self.a[i] * unit.nats;
        let d = |i: usize| self.d[i] * unit.nats;
        // −½ (softplus(−a_i) − softplus(−a_top)), in one logarithm unless that would overflow.
        let psi = |i: usize| {
            let direct = a(top) == f64::INFINITY || d(i) < -30.0;
            if direct {
                0.5 * (softplus(-a(top)) - softplus(-a(i)))
            } else {
                -0.5 * (sigmoid(-a(top)) * (-d(i)).exp_m1()).ln_1p()
            }
        };
        let mean: f64 = (0..k).filter(|&i| self.p[i] > 0.0).map(|i| self.p[i] * psi(i)).sum();
        for i in 0..k {
            self.gradient[i] = if self.p[i] > 0.0 { self.p[i] * (psi(i) - mean) * unit.inverse } else { 0.0 };
        }
        let term = |i: usize| jensen_shannon_term(self.log_p[i] * unit.nats, self.log_q[i] * unit.nats, a(i));
        (0..k).map(term).sum::<f64>() * unit.inverse
    }

    fn statistics(&self) -> GroupStatistics {
        let (k, s_largest, f_largest) = (self.f.len(), largest(&self.s), largest(&self.f));
        let (mut favourites, mut leaders, mut both) = (0, 0, 0);
        let (mut of_favourites, mut rest) = (0.0, 0.0);
        for (&f, &s) in self.f.iter().zip(&self.s) {
            let (is_favourite, is_leader) = (s == s_largest, f == f_largest);
            favourites += usize::from(is_favourite);
            leaders += usize::from(is_leader);
            both += usize::from(is_favourite && is_leader);
            *if is_favourite { &mut of_favourites } else { &mut rest } += f;
        }
        let squares: f64 = self.p.iter().map(|p| p * p).sum();
        // Each favourite less the mean of all but it, averaged: with W favourites, f̄ their mean and R the sum of the
        // rest, ((K − W) f̄ − R)/(K − 1).
        let others = (k - favourites) as f64;
        let margin = if others == 0.0 {
            0.0
        } else {
            let all_but_one = (k - 1) as f64;
            of_favourites / favourites as f64 * (others / all_but_one) - rest / all_but_one
        };
        let effective_sample_size = if squares == 0.0 { 0.0 } else { 1.0 / squares };
        let margin = if squares.is_nan() && k > 1 { f64::NAN } else { margin * self.unit.nats };
        let agreement = if squares.is_nan() { 0.0 } else { both as f64 / leaders as f64 };
        GroupStatistics::new(effective_sample_size, margin, agreement, favourites > 1)
    }
}

/// Logits of a preference target: `winner` and `loser` are the probabilities of one winner and of each loser.
fn preference(s: &mut Vec<f64>, k: usize, reward: impl Fn(usize) -> f64, winner: f64, loser: f64, log_loser: f64) {
    let best = (0..k).map(&reward).fold(f64::NEG_INFINITY, f64::max);
    let tied = (0..k).filter(|&i| reward(i) == best).count() as f64;
    // Each of the tied is the winner in one of `tied` draws and a loser in the others.
    let shared = (winner + (tied - 1.0) * loser) / tied;
    s.extend((0..k).map(|i| if reward(i) == best { shared.ln() } else { log_loser }));
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
