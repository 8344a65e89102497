//! Bounds where the logits are products made in f32: a logit is then off by up to δ, which goes through the softmax,
//! and the gradients are products too.
//!
//! A sum of n terms that each go through at most d roundings is off by d·u·Σ|terms|, to first order in u. Operands of 16
//! bits are exact in f32, and so is the product of two bf16: where they are multiplied as pairs, the sum has the same
//! roundings, and only what is below 2^-126 is lost ([`flushed`]).

use crate::reference::bounds::{HIGHER_ORDER, RowBounds};
use crate::reference::token_log_prob::TokenLogProb;

/// u of f32, in which all products are.
const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// Of a sum of products in f32: for Σ|terms| and the most roundings that a term goes through.
pub fn product(magnitude: f64, roundings: f64) -> f64 {
    magnitude * roundings * UNIT_ROUNDOFF * HIGHER_ORDER + f64::from(f32::MIN_POSITIVE)
}

/// What a sum of `terms` products of bf16 pairs (`VDPBF16PS`) may lose besides: each is two fused multiply-adds, rounded to
/// nearest even like others, which take an operand below 2^-126 for 0, and so their result. `largest` is that of all
/// operands; a term whose operand is lost is at most 2^-126 times the other one.
pub fn flushed(terms: usize, largest: f64) -> f64 {
    terms as f64 * f64::from(f32::MIN_POSITIVE) * (1.0 + largest) * HIGHER_ORDER
}

/// δ: of a logit, from [`magnitudes`](crate::reference::linear_log_prob::magnitudes). H fused multiply-adds, the bias,
/// and an addition where the sum was divided, which is at most once in 256 terms.
pub fn logit(magnitude: f64, hidden_size: usize) -> f64 {
    product(magnitude, (hidden_size + hidden_size / 256 + 2) as f64)
}

impl RowBounds {
    /// The same bounds where every logit of the row is off by up to δ = `logit_error` besides. The derivative of z by x
    /// is at most 1/T; that of log p_t by z has the absolute sum 2 (1 − p_t) ≤ 2, that of log Σ exp z 1, and that of the
    /// entropy Σ p_j |log p_j + H|, at most the deviation of log p.
    #[must_use]
    pub fn with_logit_error(self, exact: &TokenLogProb, logit_error: f64) -> Self {
        let scaled = logit_error / self.options.temperature() * HIGHER_ORDER;
        let deviation = exact.variance.max(0.0).sqrt();
        Self {
            log_prob: if exact.log_prob == f64::NEG_INFINITY { 0.0 } else { self.log_prob + 2.0 * scaled },
            log_sum_exp: self.log_sum_exp + scaled,
            entropy: self.entropy + (deviation + scaled) * scaled,
            ..self
        }
    }

    /// What δ adds to [`grad_logit`](Self::grad_logit) for the upstream gradient g: a relative error of 2δ/T of p_j, and
    /// under a softcap c a slope that moves by up to 4/(3√3·c) a unit, less than 0.77/c.
    pub fn grad_logit_of_logit_error(&self, log_p: f64, g: f64, logit_error: f64) -> f64 {
        let temperature = self.options.temperature();
        let of_p = g.abs() * log_p.exp() * 2.0 * logit_error / temperature;
        let of_slope = match self.options.softcap() {
            0.0 => 0.0,
            softcap => g.abs() * 0.77 * logit_error / softcap,
        };
        (of_p + of_slope) / temperature * HIGHER_ORDER
    }

    /// Of the gradient of logit j ≠ target where it is formed as −g·(e_j·σ_j)/s, before e_j·σ_j is rounded to the type of the
    /// head: as [`grad_logit`](Self::grad_logit), with the products and quotients by g, T, s and the softcap's slope σ apart.
    pub fn unit_column(&self, exact: f64, logit: f64, log_p: f64, g: f64, logit_error: f64) -> f64 {
        self.grad_logit(exact, logit, log_p, g, 0.0)
            + self.grad_logit_of_logit_error(log_p, g, logit_error)
            + 6.0 * self.arithmetic.unit_roundoff * exact.abs()
    }

    /// Of the gradient of the target's logit where 1 − p is formed as Σ' e_j/s, over the columns that are not the target:
    /// the errors of those p_j, none of which is larger than what is left of 1; `others` are their log p. The terms of the sum
    /// go through `additions` roundings.
    pub fn unit_target(
        &self,
        exact: f64,
        logit: f64,
        others: impl Iterator<Item = f64>,
        g: f64,
        logit_error: f64,
        additions: f64,
    ) -> f64 {
        let (temperature, softcap) = (self.options.temperature(), self.options.softcap());
        let y = if softcap == 0.0 { 0.0 } else { (logit / softcap).abs() };
        let slope = y.cosh().powi(-2);
        // A logit of 0 has the slope 1: that of the target is common to all of them.
        let of_others: f64 = others
            .map(|log_p| {
                let value = g * log_p.exp() / temperature;
                let of_logit = value.abs() * 2.0 * logit_error / temperature;
                self.grad_logit(value, 0.0, log_p, g, 0.0) + of_logit
            })
            .sum();
        let of_slope = if softcap == 0.0 {
            0.0
        } else {
            let of_logit = 0.77 * logit_error / softcap * (exact / slope).abs();
            (5.0 * y + 4.0 * self.arithmetic.tanh) * self.arithmetic.unit_roundoff * exact.abs() + of_logit
        };
        (slope * of_others + of_slope + (additions + 8.0) * self.arithmetic.unit_roundoff * exact.abs()) * HIGHER_ORDER
    }
}
