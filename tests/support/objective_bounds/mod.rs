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

mod gradients;
mod inputs;
mod losses;

use exo_kernels::{Divergence, Objective, Target};

use self::inputs::{SoftmaxErrors, addition_error, logarithms, policy_logits, target_logits};
use crate::fifty_digits::{Exact, Group};

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
pub struct Bounds {
    /// Of the loss.
    pub loss: f64,
    /// Of d loss / d log-ratio, not reduced: β_π is in it.
    pub coefficients: Vec<f64>,
}

/// Bounds of what the CPU makes of one group with these exact distributions and results.
pub fn group(
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
