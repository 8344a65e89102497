//! Errors of logits as they are rounded, and of their softmax.

use super::{FUNCTION, U, finite};
use crate::fifty_digits::{Group, Real};
use exo_kernels::Target;

/// Errors of x − x_top and of log softmax(x), for x with absolute errors of its own.
pub(super) struct SoftmaxErrors {
    pub(super) top: usize,
    pub(super) log: Vec<f64>,
    /// Of log Σ exp(x − x_top).
    pub(super) log_sum: f64,
}

impl SoftmaxErrors {
    pub(super) fn new(x: &[f64], own: &[f64], exact: &[f64]) -> Self {
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

/// f as the CPU rounds it, and the exact errors of that.
pub(super) fn policy_logits(beta: f64, log_ratios: &[f64], offsets: &[f64]) -> (Vec<f64>, Vec<f64>) {
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
pub(super) fn target_logits(target: Target, rewards: &[f64], offsets: &[f64], group: &Group) -> (Vec<f64>, Vec<f64>) {
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

pub(super) fn logarithms(logs: &[Option<Real>]) -> Vec<f64> {
    logs.iter().map(|log| log.as_ref().map_or(f64::NEG_INFINITY, |log| log.to_f64().value())).collect()
}

/// |x + y − fl(x + y)|, exactly (Knuth's two-sum); 0 for infinities, which are exact.
pub(super) fn addition_error(x: f64, y: f64) -> f64 {
    let sum = x + y;
    if !sum.is_finite() {
        return 0.0;
    }
    let of_y = sum - x;
    ((x - (sum - of_y)) + (y - of_y)).abs()
}
