//! How far a result may be from the exact one: derived from rounding, not fitted to what passes.
//!
//! Two kinds of [`Arithmetic`] are held to these bounds: a backend's f32 token stage with f64 stages behind it, and
//! this reference's own f64. With u the unit roundoff of the token stage, every term below is one of these steps:
//!
//! 1. t_j = fma(x_j, k, −r), k = log2 e/T rounded once: the rounding of k acts like a temperature that is off by u, the
//!    fma adds u·|t_j|. Under a softcap t_j = k·tanh(x_j/c) − r, with `tanh` u on the tanh and 1.5 u on its argument.
//! 2. 2^t_j, to `exp2` u.
//! 3. s = Σ 2^t_j, no term going through more than `additions` roundings.
//! 4. log-prob = (t − log2 s)·ln 2, rounded once; s itself is rounded once for the backward pass.
//! 5. Log-ratios, losses and coefficients are f64: beside f64's rounding, their error is that of the log-probs, carried
//!    on by the derivatives.
//! 6. The coefficient is rounded once, the gradient of a logit takes three more products and one rounding to the
//!    logits' type.
//!
//! Errors are added by absolute value, as if all had the same sign, to first order in u; `HIGHER_ORDER` makes room for
//! the rest.

pub mod linear_log_prob;
pub mod row_loss;

use crate::objective::{Divergence, Objective};
use crate::options::LogitOptions;
use crate::reference::objective::GroupLoss;
use crate::reference::token_log_prob::TokenLogProb;

/// The roundings of a token stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// u: the largest relative error of one rounding.
    pub unit_roundoff: f64,
    /// The largest relative error of 2^t, in u.
    pub exp2: f64,
    /// The largest relative error of tanh, in u.
    pub tanh: f64,
    /// The most additions that a term of Σ 2^t goes through.
    pub additions: f64,
    /// What forming log p + log |g| in one exponent adds to the relative error of a gradient, in u.
    pub folded: f64,
    /// 2^t below this is 0.
    pub smallest: f64,
}

impl Arithmetic {
    /// What every backend promises, whatever the type of the logits.
    pub const BACKEND: Arithmetic = Arithmetic {
        unit_roundoff: 1.0 / (1u64 << 24) as f64,
        exp2: 2.0,
        tanh: 5.0,
        additions: 21.0,
        folded: 0.0,
        smallest: f32::MIN_POSITIVE as f64,
    };

    /// The CUDA backend.
    ///
    /// - `exp2`: ex2.approx is good to 2 units in the last place of its result (PTX ISA), which is up to 4 u of it. The
    ///   polynomial that stands in for some of them on 10.x (`kernels/include/packed_terms.cuh`) is off by 2.6 u.
    /// - `tanh`: |x| ≤ c: a polynomial that is off by 2 u, its roundings of 2.9 u and one of the product with x/c
    ///   (`kernels/include/logits.cuh`). Beyond, (1 − e)/(1 + e) with e = 2^(−2|y| log2 e): e is off by 4 u and by 2.5 |y| u
    ///   from its exponent and the constant in it, of which the quotient sees 2e/(1 − e²) ≤ 0.28 of each, at most 1.9 u, and
    ///   three roundings of 2.3 u together. Two more u: 1/c and log2 e·c/T are each rounded more than once.
    /// - `additions`: `kernels/token_log_prob.cu` counts 20.
    /// - `folded`: gradients of 16-bit logits, whose own rounding is 2^15 u: the exponent's constant is at most 64 in size,
    ///   so its rounding is ½ · 64 · ln 2 u.
    pub const CUDA: Arithmetic =
        Arithmetic { exp2: 4.0, tanh: 8.0, additions: 20.0, folded: 22.2, ..Arithmetic::BACKEND };

    /// This reference: f64, one sum over all of the vocabulary.
    pub fn reference(vocab: usize) -> Self {
        Arithmetic {
            unit_roundoff: f64::EPSILON / 2.0,
            exp2: 2.0,
            tanh: 2.0,
            additions: vocab as f64,
            folded: 0.0,
            smallest: f64::MIN_POSITIVE,
        }
    }
}

const HIGHER_ORDER: f64 = 1.001;

/// Bounds of one row's outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowBounds {
    /// Of the log-prob, in nats.
    pub log_prob: f64,
    /// Of log Σ exp z, in nats, as the state (r, s) gives it.
    pub log_sum_exp: f64,
    /// Of the entropy, in nats.
    pub entropy: f64,
    arithmetic: Arithmetic,
    options: LogitOptions,
    exact_entropy: f64,
}

/// Bounds of a row's outputs, from the exact ones.
pub fn row(arithmetic: Arithmetic, exact: &TokenLogProb, options: &LogitOptions) -> RowBounds {
    let u = arithmetic.unit_roundoff * HIGHER_ORDER;
    let TokenLogProb { log_prob, entropy, mean, variance, .. } = *exact;
    let softcap = softcap_error(arithmetic, options);
    // k's rounding: d log p_t / d log k = z_t − mean = log p_t + H.
    let of_log_prob = log_prob.abs() + (log_prob + entropy).abs() + sum_error(arithmetic, entropy) + 2.0 * softcap;
    // k's rounding: d log Σ exp z / d log k = mean. One more for the rounding of s.
    let of_log_sum_exp = mean.abs() + sum_error(arithmetic, entropy) + 1.0 + softcap;
    // H = ln s − ln 2·Σ t 2^t / s. An error δ_j in z_j moves it by Σ p_j |log p_j + H| δ_j: for the fma's δ_j = u·(|log
    // p_j| + H + ln 2), and with Var(log p) = σ² and E (log p)² = σ² + H², by Cauchy–Schwarz at most u·σ·(√(σ² + H²) +
    // H + ln 2). k: dH / d log k = −σ². Powers and sums err on their own in s and in Σ t 2^t / s, whose size is at most
    // H + ln 2.
    let (sigma, largest_mean) = (variance.max(0.0).sqrt(), entropy + std::f64::consts::LN_2);
    let powers = arithmetic.exp2 + arithmetic.additions;
    let of_entropy = sigma * (sigma.hypot(entropy) + largest_mean)
        + powers
        + 2.0 * largest_mean * (powers + 1.0)
        + variance
        + entropy
        + 2.0 * softcap * sigma;
    RowBounds {
        // A log-prob of −inf is one exactly.
        log_prob: if log_prob == f64::NEG_INFINITY { 0.0 } else { u * of_log_prob },
        log_sum_exp: u * of_log_sum_exp,
        entropy: u * of_entropy,
        arithmetic,
        options: *options,
        exact_entropy: entropy,
    }
}

/// Relative error of s, in u. The fma's |t_j|·ln 2 on each term weighs in with p_j, and Σ p_j |t_j| ln 2 = r ln 2 −
/// mean: r ln 2 is at most ln 2 above the largest z, which is at most log Σ exp z, so this is at most H + ln 2.
fn sum_error(arithmetic: Arithmetic, entropy: f64) -> f64 {
    entropy + std::f64::consts::LN_2 + arithmetic.exp2 + arithmetic.additions
}

/// Error of a scaled logit under a softcap, in u: relative to |z| ≤ c/T.
fn softcap_error(arithmetic: Arithmetic, options: &LogitOptions) -> f64 {
    (arithmetic.tanh + 1.5) * options.softcap() / options.temperature()
}

impl RowBounds {
    /// Of d loss / d logit j before its rounding to the logits' type: for the exact gradient, the logit x_j, the exact
    /// log p_j, and the upstream gradient g = d loss / d log-prob with its own bound.
    pub fn grad_logit(&self, exact: f64, logit: f64, log_p: f64, g: f64, g_bound: f64) -> f64 {
        let (arithmetic, entropy) = (self.arithmetic, self.exact_entropy);
        let u = arithmetic.unit_roundoff;
        let softcap = self.options.softcap();
        let y = if softcap == 0.0 { 0.0 } else { (logit / softcap).abs() };
        let slope = y.cosh().powi(-2) / self.options.temperature();
        // Relative, in u: the exponent's fma (|t_j|·ln 2 ≤ |log p_j| + H + ln 2) and its k, 2^t, s and its rounding,
        // three products.
        let of_p = log_p.abs()
            + entropy
            + std::f64::consts::LN_2
            + (log_p + entropy).abs()
            + arithmetic.exp2
            + arithmetic.folded
            + sum_error(arithmetic, entropy)
            + 1.0
            + 2.0 * softcap_error(arithmetic, &self.options)
            + 3.0;
        let p = log_p.exp();
        let of_p = if p == 0.0 { 0.0 } else { p * of_p };
        // 1 − tanh² = 4e/(1 + e)², e = exp(−2y): the exponent's rounding counts y times.
        let of_slope = if softcap == 0.0 { 0.0 } else { 5.0 * y + 4.0 * arithmetic.tanh };
        // The coefficient is rounded once too. Every column has g times [j = target] − p_j in it, which is at most 1.
        let of_g = (g_bound + u * g.abs()) * slope;
        let factor = if exact == 0.0 { p } else { (exact / (g * slope)).abs().min(1.0) };
        // 2^t below the smallest is 0; exp(−2y) below it stays there, and the slope with it.
        let of_softcap = if softcap == 0.0 { 0.0 } else { 4.0 / self.options.temperature() };
        let underflow = g.abs() * (slope + of_softcap) * arithmetic.smallest;
        (u * (g.abs() * slope * of_p + exact.abs() * (of_slope + 1.0)) + of_g * factor + underflow) * HIGHER_ORDER
            + arithmetic.smallest
    }
}

/// Of rounding a number to a type with this unit roundoff and smallest positive number.
pub fn rounding(value: f64, unit_roundoff: f64, smallest: f64) -> f64 {
    value.abs() * unit_roundoff + 0.5 * smallest
}

/// Of a sequence's log-ratio: its rows' bounds and the rounding of the f64 sum. `rows` are (bound, |log-prob −
/// reference|).
pub fn log_ratio(rows: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut bound, mut size, mut count) = (0.0, 0.0, 1.0);
    for (row_bound, difference) in rows {
        bound += row_bound;
        size += difference;
        count += 1.0;
    }
    bound + count * size * f64::EPSILON
}

/// Bounds of one group's results.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupBounds {
    /// Of the loss, before the reduction.
    pub loss: f64,
    /// Of β_π · d loss / d f_i, for every i, before the reduction's weight.
    pub coefficient: f64,
}

/// Bounds of a group's results: for its exact log-ratios and target logits, what `log_ratio_bound` its log-ratios are
/// off by at most (0: fed with exact ones), and its exact results.
pub fn group(
    objective: &Objective,
    log_ratios: &[f64],
    target_logits: &[f64],
    log_ratio_bound: f64,
    exact: &GroupLoss,
) -> GroupBounds {
    let beta = objective.beta_policy();
    if log_ratios.len() == 1 {
        return GroupBounds { loss: 0.0, coefficient: 0.0 };
    }
    // Of f_i, s_i and their differences, each rounded in f64, and of exp and log of them.
    let size = 1.0 + beta * largest(log_ratios) + largest(target_logits);
    let rounding = 4.0 * f64::EPSILON * size;
    let shift = beta * log_ratio_bound + rounding;
    // To first order the loss moves by Σ |g_i| per unit of f, to second order by the gradient's slope.
    let sensitivity: f64 = exact.gradient.iter().map(|g| g.abs()).sum();
    let slope = gradient_slope(objective.divergence(), exact);
    // The stage's own K additions: of terms that vanish with p − q where the loss is written so, of terms of the size
    // of log-probs in a cross-entropy and in the textbook forms that the reference has of KL(q‖p) and Jensen–Shannon.
    let additions = (log_ratios.len() as f64 + 8.0) * f64::EPSILON;
    let terms = match objective.divergence() {
        Divergence::ForwardKl | Divergence::JensenShannon | Divergence::Alpha(1.0) => 1.0,
        _ => sensitivity + exact.policy.iter().zip(&exact.target).map(|(p, q)| (p - q).abs()).sum::<f64>(),
    };
    // The loss (1 − W)/(α(1 − α)) as it stands in the reference divides the rounding of W.
    let division = match objective.divergence() {
        Divergence::Alpha(alpha) if alpha > 0.0 && alpha < 1.0 => additions / (alpha * (1.0 - alpha)) * size,
        _ => 0.0,
    };
    GroupBounds {
        loss: sensitivity * shift + slope * shift * shift + additions * (exact.loss.abs() + terms * size) + division,
        coefficient: beta * (slope * (shift + additions * size) + division),
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).filter(|size| size.is_finite()).fold(0.0, f64::max)
}

/// How much any g_i changes when every f_j moves by at most 1: a bound of Σ_j |∂g_i/∂f_j|. Moving f by δ moves log p_i
/// by δ_i − Σ p δ, at most 2.
fn gradient_slope(divergence: Divergence, exact: &GroupLoss) -> f64 {
    let total: f64 = exact.gradient.iter().map(|g| g.abs()).sum();
    let largest_g = largest(&exact.gradient);
    let largest_p = largest(&exact.policy);
    match divergence {
        // g_i = p_i − q_i: Σ_j |p_i (δ_ij − p_j)| = 2 p_i (1 − p_i).
        Divergence::ForwardKl => 0.5,
        // g_i = p_i (d_i − d̄): 2 |g_i| from p_i, and from d_i − d̄ at most p_i (2 + 2 Σ_j p_j |d_j − d̄|), where p_j
        // |d_j − d̄| = |g_j|.
        Divergence::ReverseKl => 2.0 * largest_g + largest_p * (2.0 + 2.0 * total),
        // g_i = p_i (Σ p e − e_i), e = (exp(−αa) − 1)/α: 2 |g_i| from p_i; from e, whose derivative exp(−αa) makes w =
        // p^(1−α) q^α of p, at most 2 (w_i + p_i W) ≤ 4; and from the mean of e at most 2 p_i Σ p |e|, where p e = (w −
        // p)/α, at most 1/α and near α = 0 about p |a|.
        Divergence::Alpha(alpha) => {
            let of_mean: f64 = exact
                .policy
                .iter()
                .zip(&exact.target)
                .filter(|&(&p, &q)| p > 0.0 && q > 0.0)
                .map(|(&p, &q)| p * (p / q).ln().abs() * (q / p).powf(alpha).max(1.0))
                .sum();
            let of_mean = if alpha > 0.0 { of_mean.min(1.0 / alpha) } else { of_mean };
            2.0 * largest_g + 4.0 + 2.0 * of_mean
        }
        // g_i = p_i (φ'_i − Σ p φ'), |∂φ'/∂a| ≤ ½ and p |φ'| ≤ ½: 2 |g_i| ≤ 2 from p_i, and at most p_i (1 + 1 + 1)
        // from φ' and its mean.
        Divergence::JensenShannon => 5.0,
    }
}
