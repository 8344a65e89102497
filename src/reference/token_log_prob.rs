//! Token log-probs: log softmax(z)\[target\], z = c·tanh(x/c)/T, and their gradient.

use crate::element::Element;
use crate::logits::LogitOptions;
use crate::stages::LARGEST_EXPONENT;

/// What is known of one row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenLogProb {
    /// log p_t = z_t − log Σ exp z, in nats.
    pub log_prob: f64,
    /// log Σ exp z.
    pub log_sum_exp: f64,
    /// H = −Σ p log p, in nats.
    pub entropy: f64,
    /// Σ p z.
    pub mean: f64,
    /// Σ p (z − mean)²: how fast the entropy changes with 1/T.
    pub variance: f64,
}

/// The scaled logits z of a row: c·tanh(x/c)/T. A logit of −inf means "excluded" and stays −inf under a softcap, +inf
/// stays +inf.
pub fn scaled_logits<T: Element>(logits: &[T], options: &LogitOptions) -> Vec<f64> {
    scaled(&widened(logits), options)
}

fn widened<T: Element>(logits: &[T]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(logit.to_f32())).collect()
}

fn scaled(logits: &[f64], options: &LogitOptions) -> Vec<f64> {
    let (temperature, softcap) = (options.temperature(), options.softcap());
    logits
        .iter()
        .map(|&x| {
            let capped = if softcap == 0.0 || x.is_infinite() { x } else { softcap * (x / softcap).tanh() };
            capped / temperature
        })
        .collect()
}

/// One row, forward. NaN in every field for a row with a NaN or +inf logit, with only −inf, or whose largest logit is
/// 2³⁰ or more in size when scaled and written in base 2: the range that every backend promises.
///
/// The sum is written as 1 + the tail behind the largest term, so that log-probs near 0 keep their digits.
pub fn forward<T: Element>(logits: &[T], target: usize, options: &LogitOptions) -> TokenLogProb {
    forward_f64(&widened(logits), target, options)
}

/// [`forward`] for logits that are in f64.
pub fn forward_f64(logits: &[f64], target: usize, options: &LogitOptions) -> TokenLogProb {
    let z = scaled(logits, options);
    let mut top = 0;
    for j in 0..z.len() {
        if z[j] > z[top] || z[top].is_nan() {
            top = j;
        }
    }
    let mut tail = 0.0;
    for j in 0..z.len() {
        if j != top {
            tail += (z[j] - z[top]).exp();
        }
    }
    let log_sum = tail.ln_1p();
    let p = |j: usize| (z[j] - z[top] - log_sum).exp();
    let (mut mean_from_top, mut square) = (0.0, 0.0);
    for j in 0..z.len() {
        if z[j] != f64::NEG_INFINITY {
            mean_from_top += p(j) * (z[j] - z[top]);
            square += p(j) * (z[j] - z[top]).powi(2);
        }
    }
    let in_range = (z[top] * std::f64::consts::LOG2_E).abs() < f64::from(LARGEST_EXPONENT);
    let nan = if in_range && !z.iter().any(|z| z.is_nan()) { 0.0 } else { f64::NAN };
    TokenLogProb {
        log_prob: z[target] - z[top] - log_sum + nan,
        log_sum_exp: z[top] + log_sum + nan,
        entropy: log_sum - mean_from_top + nan,
        mean: z[top] + mean_from_top + nan,
        variance: square - mean_from_top.powi(2) + nan,
    }
}

/// One row, backward: d loss / d x_j for the upstream gradients g = d loss / d log p_t and e = d loss / d H.
///
/// d log p_t / d z_j = \[j = t\] − p_j;  d H / d z_j = −p_j (log p_j + H);  d z_j / d x_j = (1 − tanh²(x_j/c))/T.
pub fn backward<T: Element>(
    logits: &[T],
    target: usize,
    options: &LogitOptions,
    log_prob_gradient: f64,
    entropy_gradient: f64,
) -> Vec<f64> {
    backward_f64(&widened(logits), target, options, log_prob_gradient, entropy_gradient)
}

/// [`backward`] for logits that are in f64.
pub fn backward_f64(
    logits: &[f64],
    target: usize,
    options: &LogitOptions,
    log_prob_gradient: f64,
    entropy_gradient: f64,
) -> Vec<f64> {
    let z = scaled(logits, options);
    let row = forward_f64(logits, target, options);
    let (temperature, softcap) = (options.temperature(), options.softcap());
    let mut gradient = Vec::with_capacity(z.len());
    for j in 0..z.len() {
        // z_j − log Σ exp z, without the digits that a large log Σ exp z costs.
        let log_p = (z[j] - z[target]) + row.log_prob;
        let log_p = if z[target] == f64::NEG_INFINITY { z[j] - row.log_sum_exp } else { log_p };
        let p = log_p.exp();
        let not_p = if j == target { -log_p.exp_m1() } else { -p };
        let entropy_part = if p > 0.0 { -p * (log_p + row.entropy) } else { 0.0 };
        let x = logits[j];
        // 1 − tanh² = 1/cosh², which does not cancel.
        let slope = if softcap == 0.0 { 1.0 } else { (x / softcap).cosh().powi(-2) };
        let dz = log_prob_gradient * not_p + entropy_gradient * entropy_part;
        gradient.push(if row.log_prob.is_nan() { f64::NAN } else { dz * slope / temperature });
    }
    gradient
}
