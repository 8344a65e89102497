//! How far the objective's results in f64 may be from the exact ones, derived from the roundings on the way.
//!
//! u = 2^(−53) is the largest relative error of one operation; exp, expm1, log, log1p, sinh and cosh are right to one
//! unit in the last place, 2u. Errors are added as if all had the same sign, to first order; `HIGHER_ORDER` makes room
//! for the products of two.
//!
//! **Inputs.** f = β·S + c and s = r/β_r + c are rounded, and so are the differences f_i − f_m, s_i − s_m (m the
//! largest f) and d_i, which is the difference of those two. No algorithm that starts with these can do better than
//! what these errors make of the result. They are not estimated: the error of a sum, a product and a quotient in f64 is
//! itself a number that f64 operations give exactly. So where the inputs happen to be exact, the bound next to the
//! optimum is a few u of the loss, and not u/d.
//!
//! **Evaluation.** From there every step of the centred form is followed: log p and log q (a sum of K exponentials and
//! one logarithm), the shift c between d and a = log p − log q, the terms of the loss, each never negative, and the
//! gradient's weighted mean.
//!
//! Below the normal range of f64 relative accuracy ends; the smallest normal number, added to every bound, is 2^52
//! times that rounding.

use exo_kernels::{Divergence, Objective, Target};

use crate::support::fifty_digits::{Exact, Group, Real};

const U: f64 = f64::EPSILON / 2.0;
/// Of exp, log and their like.
const FUNCTION: f64 = 2.0 * U;
const HIGHER_ORDER: f64 = 1.001;
/// Orders below this have a gradient of their own, in which nothing is divided by α.
const SMALLEST_ORDER: f64 = 4.0 * f64::EPSILON;
/// Where |α·a| is below this, (1 − e^(−α·a))/α is a to U.
const NOTHING: f64 = U / 2.0;

/// Bounds of one group's results.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// Of the loss.
    pub(crate) loss: f64,
    /// Of d loss / d log-ratio, not reduced: β_π is in it.
    pub(crate) coefficients: Vec<f64>,
}

/// Bounds of what the CPU makes of one group with these exact distributions and results.
pub(crate) fn group(
    objective: &Objective,
    log_ratios: &[f64],
    rewards: &[f64],
    offsets: &[f64],
    group: &Group,
    exact: &Exact,
) -> Bounds {
    let beta = objective.beta_policy();
    let k = log_ratios.len();
    if k == 1 {
        return Bounds { loss: 0.0, coefficients: vec![0.0] };
    }
    let analysis = Analysis::new(objective, log_ratios, rewards, offsets, group, exact);
    let loss = exact.loss.to_f64().value();
    let mut of_loss = match objective.divergence() {
        Divergence::ReverseKl => analysis.alpha_loss(0.0),
        Divergence::ForwardKl => analysis.cross_entropy(),
        Divergence::Alpha(alpha) => analysis.alpha_loss(alpha),
        Divergence::JensenShannon => analysis.jensen_shannon_loss(),
        _ => panic!("a divergence without bounds"),
    };
    // K terms that are never negative, added one after the other.
    of_loss += k as f64 * U * loss.abs();
    if objective.target() == Target::OfficialPreference {
        // log(1 + e^(−10)) = 4.54e-5 is subtracted; the sum of the terms is larger than the loss by it.
        of_loss += (k as f64 * U + U + FUNCTION) * 4.6e-5 + U * loss.abs();
    }
    let mut of_gradient = match objective.divergence() {
        Divergence::ForwardKl => analysis.alpha_gradient(1.0, loss),
        Divergence::Alpha(alpha) if alpha < SMALLEST_ORDER => analysis.small_order_gradient(alpha),
        Divergence::Alpha(alpha) => analysis.alpha_gradient(alpha, loss),
        Divergence::JensenShannon => analysis.jensen_shannon_gradient(),
        _ => analysis.reverse_kl_gradient(),
    };
    // The largest p takes what makes the sum zero: the others' errors, and those of their sum.
    let others = |i: &usize| *i != analysis.top;
    of_gradient[analysis.top] =
        (0..k).filter(others).map(|i| of_gradient[i] + k as f64 * U * analysis.gradient[i].abs()).sum();
    Bounds {
        loss: of_loss * HIGHER_ORDER + f64::MIN_POSITIVE,
        // β times the reduction's weight times the gradient.
        coefficients: (0..k)
            .map(|i| {
                let of_gradient = of_gradient[i] + 2.0 * U * analysis.gradient[i].abs();
                // A gradient below the normal range, and a β that brings it back.
                beta * of_gradient * HIGHER_ORDER + beta.max(1.0) * f64::MIN_POSITIVE
            })
            .collect(),
    }
}

/// The exact numbers of a group, in f64, and the absolute errors of what is computed of them.
struct Analysis {
    /// The first of the largest f.
    top: usize,
    p: Vec<f64>,
    q: Vec<f64>,
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    /// f − s less that of the top.
    d: Vec<f64>,
    /// log p − log q.
    a: Vec<f64>,
    gradient: Vec<f64>,
    d_error: Vec<f64>,
    a_error: Vec<f64>,
    log_p_error: Vec<f64>,
    log_q_error: Vec<f64>,
    /// Relative errors: those of the logarithms and one exponential.
    p_error: Vec<f64>,
    q_error: Vec<f64>,
    /// K u: of a sum over the group, relative to the sum of the sizes.
    additions: f64,
}

impl Analysis {
    fn new(
        objective: &Objective,
        log_ratios: &[f64],
        rewards: &[f64],
        offsets: &[f64],
        group: &Group,
        exact: &Exact,
    ) -> Self {
        let k = log_ratios.len();
        let (f, f_error) = policy_logits(objective.beta_policy(), log_ratios, offsets);
        let (s, s_error) = target_logits(objective.target(), rewards, offsets, group);
        let (log_p, log_q) = (logarithms(&group.log_p), logarithms(&group.log_q));
        let a: Vec<f64> = (0..k)
            .map(|i| match (&group.log_p[i], &group.log_q[i]) {
                (Some(log_p), Some(log_q)) => (log_p - log_q).to_f64().value(),
                _ => log_p[i] - log_q[i],
            })
            .collect();
        let of_policy = SoftmaxErrors::new(&f, &f_error, &log_p);
        let of_target = SoftmaxErrors::new(&s, &s_error, &log_q);
        let top = of_policy.top;
        let mut analysis = Analysis {
            top,
            p: log_p.iter().map(|log| log.exp()).collect(),
            q: log_q.iter().map(|log| log.exp()).collect(),
            log_p,
            log_q,
            d: vec![0.0; k],
            a,
            gradient: exact.gradient.iter().map(|g| g.to_f64().value()).collect(),
            d_error: vec![0.0; k],
            a_error: vec![0.0; k],
            p_error: of_policy.log.iter().map(|error| error + FUNCTION).collect(),
            q_error: of_target.log.iter().map(|error| error + FUNCTION).collect(),
            log_p_error: of_policy.log,
            log_q_error: of_target.log,
            additions: k as f64 * U,
        };
        if s[top] == f64::NEG_INFINITY {
            // Nothing to centre on: d and a are both log p − log q.
            for i in 0..k {
                analysis.d[i] = analysis.a[i];
                let error = analysis.log_p_error[i] + analysis.log_q_error[i] + U * finite(analysis.a[i]);
                (analysis.d_error[i], analysis.a_error[i]) = (error, error);
            }
            return analysis;
        }
        for i in (0..k).filter(|&i| i != top) {
            let (f_from_top, s_from_top) = (f[i] - f[top], s[i] - s[top]);
            analysis.d[i] = f_from_top - s_from_top;
            // A preference's logarithms are not known to the last bit, so neither are the errors of their differences.
            let differences = match objective.target() {
                Target::Rewards { .. } | Target::Distribution => {
                    addition_error(s[i], -s[top]) + addition_error(f_from_top, -s_from_top)
                }
                _ => U * (s_from_top.abs() + analysis.d[i].abs()),
            };
            analysis.d_error[i] =
                f_error[i] + f_error[top] + s_error[i] + s_error[top] + addition_error(f[i], -f[top]) + differences;
        }
        let c = -analysis.a[top];
        let c_error = if analysis.is_close(1.0) {
            analysis.close_shift_error(1.0, &analysis.q, c)
        } else {
            // c = log Σ exp(f − f_m) + log q_m.
            of_policy.log_sum + analysis.log_q_error[top] + U * c.abs()
        };
        for i in 0..k {
            analysis.a_error[i] = analysis.d_error[i] + c_error + U * finite(analysis.a[i]);
        }
        analysis
    }

    /// Whether every |α·d| is so small that the shift is taken from −log1p(Σ p expm1(−α·d)).
    fn is_close(&self, alpha: f64) -> bool {
        self.d.iter().all(|d| (alpha * d).abs() < 0.5)
    }

    /// Of the shift c = −log1p(Σ p expm1(−α·d)) from α·d to log p − log v, with v = p·exp(c − α·d): an error of d_j
    /// weighs in with v_j, and the relative ones of p_j expm1(−α·d_j) with e^c times that, which is v_j − p_j e^c.
    fn close_shift_error(&self, alpha: f64, v: &[f64], c: f64) -> f64 {
        let terms: f64 = (0..self.p.len())
            .map(|j| {
                let of_d = alpha * (self.d_error[j] + if alpha == 1.0 { 0.0 } else { U * self.d[j].abs() });
                let term = self.p[j] * c.exp() * (-alpha * self.d[j]).exp_m1().abs();
                v[j] * of_d + term * (self.p_error[j] + FUNCTION + U + self.additions)
            })
            .sum();
        terms + FUNCTION * c.abs()
    }

    /// Relative error of exp((1 − α) log p + α log q): two products, 1 − α, the sum, the exponential.
    fn mixture_error(&self, alpha: f64, i: usize) -> f64 {
        let (of_p, of_q) = ((1.0 - alpha) * finite(self.log_p[i]), alpha * finite(self.log_q[i]));
        (1.0 - alpha) * self.log_p_error[i]
            + alpha * self.log_q_error[i]
            + U * (2.0 * of_p + of_q + (of_p + of_q))
            + FUNCTION
    }

    fn alpha_loss(&self, alpha: f64) -> f64 {
        (0..self.p.len())
            .map(|i| {
                let of_p = Weight { value: self.p[i], error: self.p_error[i] };
                let of_q = Weight { value: self.q[i], error: self.q_error[i] };
                let log = times(1.0 - alpha, self.log_p[i]) + times(alpha, self.log_q[i]);
                let mixture = Weight { value: log.exp(), error: self.mixture_error(alpha, i) };
                // The order 1 − α with p and q exchanged, as the terms are written for orders up to a half.
                if alpha <= 0.5 {
                    alpha_term(alpha, of_p, of_q, mixture, self.a[i], self.a_error[i])
                } else {
                    alpha_term(1.0 - alpha, of_q, of_p, mixture, -self.a[i], self.a_error[i])
                }
            })
            .sum()
    }

    /// Σ q·(−log p).
    fn cross_entropy(&self) -> f64 {
        let term = |i: usize| self.q[i] * (self.log_p_error[i] + (self.q_error[i] + U) * finite(self.log_p[i]));
        (0..self.p.len()).map(term).sum()
    }

    fn jensen_shannon_loss(&self) -> f64 {
        let term = |i: usize| {
            let (p, q, a, a_error) = (self.p[i], self.q[i], self.a[i], self.a_error[i]);
            if a.abs() < 2.0 {
                // √(pq)·G(y), G = y sinh y − cosh y·log cosh y, y = a/2; G' = y cosh y − sinh y·log cosh y. log cosh y
                // comes from sinh²(y/2).
                let y = 0.5 * a.abs();
                let logs = self.log_p[i].abs() + self.log_q[i].abs();
                let of_root = 0.5 * (self.log_p_error[i] + self.log_q_error[i] + U * logs) + FUNCTION + U;
                let log_cosh = (2.0 * (0.5 * y).sinh().powi(2)).ln_1p();
                let (first, second) = (y * y.sinh(), y.cosh() * log_cosh);
                let slope = y * y.cosh() - y.sinh() * log_cosh;
                let rounding =
                    (FUNCTION + U) * first + (4.0 * FUNCTION + 3.0 * U) * second + U * (first - second).abs();
                return (p * q).sqrt()
                    * ((first - second).abs() * of_root + 0.5 * slope * a_error + rounding + a_error * a_error);
            }
            // ½ p (log 2 − softplus(−a)) + ½ q (log 2 − softplus(a)).
            let side = |weight: f64, error: f64, a: f64| {
                if weight == 0.0 {
                    return 0.0;
                }
                let factor = std::f64::consts::LN_2 - softplus(-a);
                weight
                    * ((error + 3.0 * U) * factor.abs()
                        + a_error / (1.0 + a.exp())
                        + 5.0 * U * softplus(-a)
                        + U * std::f64::consts::LN_2)
            };
            0.5 * (side(p, self.p_error[i], a) + side(q, self.q_error[i], -a))
        };
        (0..self.p.len()).map(term).sum()
    }

    /// p_i (x_i − Σ p x), for x with absolute errors.
    fn centred_gradient(&self, x: &[f64], x_error: &[f64]) -> Vec<f64> {
        let k = self.p.len();
        let possible = |i: &usize| self.p[*i] > 0.0;
        let mean_error: f64 = (0..k)
            .filter(possible)
            .map(|j| self.p[j] * (x_error[j] + x[j].abs() * (self.p_error[j] + U + self.additions)))
            .sum();
        let mut errors = vec![0.0; k];
        for i in (0..k).filter(possible) {
            errors[i] = (self.p_error[i] + 3.0 * U) * self.gradient[i].abs() + self.p[i] * (x_error[i] + mean_error);
        }
        errors
    }

    /// x = (1 − e^(−α·d))/α, whose slope in d is e^(−α·d); where α·d is nothing, x is d to U. The factor e^(α·c) is another
    /// exponential. Where an α·d is not small p − v has its digits, and the gradient is that of any order.
    fn small_order_gradient(&self, alpha: f64) -> Vec<f64> {
        let k = self.p.len();
        let exponents: Vec<f64> = self.d.iter().map(|d| times(alpha, *d)).collect();
        assert!(exponents.iter().all(|exponent| exponent.abs() < 0.5), "an order next to 0 with logits to match it");
        let excess =
            |i: usize| if exponents[i].abs() < NOTHING { self.d[i] } else { -(-exponents[i]).exp_m1() / alpha };
        let x: Vec<f64> = (0..k).map(excess).collect();
        let rounding = |i: usize| if exponents[i].abs() < NOTHING { NOTHING } else { FUNCTION + 2.0 * U };
        let errors: Vec<f64> =
            (0..k).map(|i| self.d_error[i] * (-exponents[i]).exp() + rounding(i) * x[i].abs()).collect();
        let mut gradient = self.centred_gradient(&x, &errors);
        if alpha > 0.0 {
            for (error, g) in gradient.iter_mut().zip(&self.gradient) {
                *error += (FUNCTION + 2.0 * U) * g.abs();
            }
        }
        gradient
    }

    fn reverse_kl_gradient(&self) -> Vec<f64> {
        self.centred_gradient(&self.d, &self.d_error)
    }

    /// ψ_i = −½ log(1 + x), x = σ(−a_m)·expm1(−d_i), which is ½ log(p_i/(p_i + q_i)) less that of the top.
    fn jensen_shannon_gradient(&self) -> Vec<f64> {
        let (a, top) = (&self.a, self.top);
        let (mut psi, mut errors) = (vec![0.0; a.len()], vec![0.0; a.len()]);
        for i in (0..a.len()).filter(|&i| self.p[i] > 0.0) {
            let sigmoid = |a: f64| 1.0 / (1.0 + a.exp());
            psi[i] = 0.5 * (softplus(-a[top]) - softplus(-a[i]));
            let inputs =
                0.5 * (sigmoid(a[i]) * self.d_error[i] + (sigmoid(a[i]) - sigmoid(a[top])).abs() * self.a_error[top]);
            let rounding = if a[top] == f64::INFINITY || self.d[i] < -30.0 {
                0.5 * (5.0 * U * (softplus(-a[top]) + softplus(-a[i])) + sigmoid(a[i]) * self.a_error[i])
                    + U * psi[i].abs()
            } else {
                // The sigmoid is three operations and an exponential of a_m, expm1 and the product follow.
                let x = sigmoid(a[top]) * (-self.d[i]).exp_m1();
                0.5 * (2.0 * FUNCTION + 3.0 * U) * (x / (1.0 + x)).abs() + FUNCTION * psi[i].abs()
            };
            errors[i] = inputs + rounding;
        }
        self.centred_gradient(&psi, &errors)
    }

    /// (W/α)·(p − v), v = p^(1−α) q^α / W.
    fn alpha_gradient(&self, alpha: f64, loss: f64) -> Vec<f64> {
        let k = self.p.len();
        let logs: Vec<f64> = (0..k).map(|i| times(1.0 - alpha, self.log_p[i]) + times(alpha, self.log_q[i])).collect();
        // W = 1 − α(1 − α) L, which keeps the digits of log W next to the optimum.
        let missing = if alpha == 1.0 { 0.0 } else { alpha * (1.0 - alpha) * loss };
        let log_total =
            if missing < 0.5 { (-missing).ln_1p() } else { logs.iter().map(|log| log.exp()).sum::<f64>().ln() };
        let v: Vec<f64> = logs.iter().map(|log| (log - log_total).exp()).collect();
        // log Σ exp of the logs: their errors, those of the differences to the largest, of the exponentials, the sum
        // and the logarithm.
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total_error: f64 = (0..k)
            .filter(|&i| v[i] > 0.0)
            .map(|i| v[i] * (self.mixture_error(alpha, i) + U * (logs[i] - largest).abs()))
            .sum::<f64>()
            + self.additions
            + FUNCTION * (k as f64).ln()
            + U * (log_total.abs() + largest.abs());
        let close = self.is_close(alpha);
        let shift_error =
            if close { self.close_shift_error(alpha, &v, -alpha * self.a[self.top] - log_total) } else { 0.0 };
        (0..k)
            .map(|i| {
                if self.p[i] == 0.0 && v[i] == 0.0 {
                    return 0.0;
                }
                let b = alpha * self.a[i] + log_total;
                let difference = if b.abs() < 1.0 {
                    let b_error = if close {
                        alpha * self.d_error[i] + U * alpha * self.d[i].abs() + shift_error + U * b.abs()
                    } else {
                        alpha * self.a_error[i] + U * alpha * self.a[i].abs() + total_error + U * b.abs()
                    };
                    let p_less_v = self.p[i] * (-b).exp_m1().abs();
                    (self.p_error[i] + FUNCTION + U) * p_less_v + v[i] * (b_error + b_error * b_error)
                } else {
                    self.p_error[i] * self.p[i]
                        + v[i] * (self.mixture_error(alpha, i) + total_error + U * finite(logs[i] - log_total))
                        + U * (self.p[i] - v[i]).abs()
                };
                log_total.exp() / alpha * difference + self.gradient[i].abs() * (total_error + FUNCTION + 3.0 * U)
            })
            .collect()
    }
}

/// Errors of x − x_top and of log softmax(x), for x with absolute errors of its own.
struct SoftmaxErrors {
    top: usize,
    log: Vec<f64>,
    /// Of log Σ exp(x − x_top).
    log_sum: f64,
}

impl SoftmaxErrors {
    fn new(x: &[f64], own: &[f64], exact: &[f64]) -> Self {
        let top = (0..x.len()).fold(0, |top, i| if x[i] > x[top] { i } else { top });
        let from_top: Vec<f64> = (0..x.len())
            .map(|i| {
                if i == top || x[i] == f64::NEG_INFINITY {
                    0.0
                } else {
                    own[i] + own[top] + addition_error(x[i], -x[top])
                }
            })
            .collect();
        let additions = x.len() as f64 * U;
        let sum: f64 =
            (0..x.len()).filter(|&i| i != top).map(|i| exact[i].exp() * (from_top[i] + FUNCTION + additions)).sum();
        let log_sum = sum + FUNCTION * exact[top].abs();
        let log =
            (0..x.len()).map(|i| from_top[i] + log_sum + if i == top { 0.0 } else { U * finite(exact[i]) }).collect();
        SoftmaxErrors { top, log, log_sum }
    }
}

/// p, q or p^(1−α) q^α with its relative error.
#[derive(Clone, Copy)]
struct Weight {
    value: f64,
    error: f64,
}

/// Of {(1−α)p + αq − p^(1−α) q^α}/(α(1−α)), α ≤ ½: with the weights fixed, an error of a moves it by (p^(1−α) q^α −
/// q)/(1−α) times as much.
fn alpha_term(alpha: f64, p: Weight, q: Weight, mixture: Weight, a: f64, a_error: f64) -> f64 {
    let others = 1.0 - alpha;
    if a.is_infinite() {
        let of_p = if alpha == 0.0 { 0.0 } else { p.value * (p.error + 8.0 * U) / alpha };
        return of_p + q.value * (q.error + 8.0 * U) / others;
    }
    if a.abs() < 0.1 {
        let slope = q.value * (others * a).exp_m1().abs() / others;
        // The series: its first term is p·a²/2, the others are at most a twentieth of the one before. Ten operations.
        let of_weight = 0.55 * p.value * a * a * (p.error + 10.0 * U);
        return of_weight + slope * a_error + 2.0 * p.value.max(q.value) * a_error * a_error;
    }
    let v = mixture.value;
    let slope = (v - q.value).abs() / others;
    let direct = (alpha * a).abs() >= 1.0;
    let difference = if a > -1.0 { p.value * (-a).exp_m1() } else { q.value - p.value };
    let excess = match alpha {
        _ if (alpha * a).abs() < NOTHING => -p.value * a,
        _ if direct => (v - p.value) / alpha,
        _ => p.value * (-alpha * a).exp_m1() / alpha,
    };
    let of_excess = if direct { (mixture.error * v + p.error * p.value) / alpha } else { 0.0 };
    let inputs = match (a > -1.0, direct) {
        // Both parts are p times a function of a.
        (true, false) => p.error * (difference - excess).abs() / others + slope * a_error,
        (true, true) => (p.error * difference.abs() + q.value * a_error + of_excess) / others,
        (false, false) => (q.error * q.value + p.error * (p.value + excess.abs()) + v * a_error) / others,
        (false, true) => (q.error * q.value + p.error * p.value + of_excess) / others,
    };
    inputs + (7.0 * U * (difference.abs() + excess.abs()) + U * a.abs() * v) / others
}

/// f as the CPU rounds it, and the exact errors of that.
fn policy_logits(beta: f64, log_ratios: &[f64], offsets: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let logit = |(&log_ratio, &offset): (&f64, &f64)| {
        let product = beta * log_ratio;
        if product == f64::NEG_INFINITY {
            return (product, 0.0);
        }
        (product + offset, beta.mul_add(log_ratio, -product).abs() + addition_error(product, offset))
    };
    log_ratios.iter().zip(offsets).map(logit).unzip()
}

/// s and its errors: of a quotient exactly; of a preference's logarithm from the up to four roundings of its argument
/// and its own.
fn target_logits(target: Target, rewards: &[f64], offsets: &[f64], group: &Group) -> (Vec<f64>, Vec<f64>) {
    let logit = |i: usize| {
        let (logit, error) = match target {
            Target::Rewards { beta } => {
                let quotient = rewards[i] / beta;
                (quotient, (-quotient).mul_add(beta, rewards[i]).abs() / beta)
            }
            Target::Distribution => (rewards[i], 0.0),
            _ => {
                let log_q =
                    group.log_q[i].as_ref().map_or(f64::NEG_INFINITY, |log_q| log_q.to_f64().value() - offsets[i]);
                (log_q, 4.0 * U + (FUNCTION + U) * finite(log_q))
            }
        };
        (logit + offsets[i], error + addition_error(logit, offsets[i]))
    };
    (0..rewards.len()).map(logit).unzip()
}

fn logarithms(logs: &[Option<Real>]) -> Vec<f64> {
    logs.iter().map(|log| log.as_ref().map_or(f64::NEG_INFINITY, |log| log.to_f64().value())).collect()
}

/// |x + y − fl(x + y)|, exactly (Knuth's two-sum); 0 for infinities, which are exact.
fn addition_error(x: f64, y: f64) -> f64 {
    let sum = x + y;
    if !sum.is_finite() {
        return 0.0;
    }
    let of_y = sum - x;
    ((x - (sum - of_y)) + (y - of_y)).abs()
}

/// |x|, and 0 for infinities.
fn finite(x: f64) -> f64 {
    if x.is_finite() { x.abs() } else { 0.0 }
}

fn times(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}

/// log(1 + e^x).
fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}
