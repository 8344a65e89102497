//! Rows whose columns lie on several ranks: a rank's part, the whole from all parts, and the gradient of a rank's columns.

use crate::options::LogitOptions;
use crate::reference::token_log_prob::{TokenLogProb, capped};
use crate::stage::token_log_prob::{LARGEST_EXPONENT, SoftmaxState};

/// What is known of some columns of a row.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PartialRow {
    /// The largest logit, under the softcap; −inf for no column.
    pub top: f64,
    /// Σ exp((x − top)/T) over the others; NaN where a logit is.
    pub tail: f64,
    /// Σ exp((x − top)/T)·(x − top)/T.
    pub weighted: f64,
    /// The target's logit, under the softcap, where it is one of these columns; else 0.
    pub target: f64,
}

impl PartialRow {
    /// No column at all.
    pub const EMPTY: Self = Self { top: f64::NEG_INFINITY, tail: 0.0, weighted: 0.0, target: 0.0 };
}

/// The part of some columns. `target`: where it is among them.
pub fn partial(logits: &[f64], target: Option<usize>, options: &LogitOptions) -> PartialRow {
    let x = capped(logits, options);
    let target = target.map_or(0.0, |target| x[target] + 0.0);
    if x.iter().any(|x| x.is_nan()) {
        return PartialRow { tail: f64::NAN, target, ..PartialRow::EMPTY };
    }
    let mut part = PartialRow { target, ..PartialRow::EMPTY };
    let mut top = 0;
    for j in 0..x.len() {
        if x[j] > x[top] {
            top = j;
        }
    }
    part.top = x[top];
    for j in 0..x.len() {
        let from_top = (x[j] - part.top) / options.temperature();
        // Excluded columns, and all of them where there is nothing else.
        if j != top && x[j] != f64::NEG_INFINITY {
            part.tail += from_top.exp();
            part.weighted += from_top.exp() * from_top;
        }
    }
    part
}

/// A scored row's log-prob, log Σ exp z and entropy, and Σ exp z = s·2^r, from the parts of all of its columns.
pub fn merge(parts: &[PartialRow], options: &LogitOptions) -> (TokenLogProb, SoftmaxState) {
    let temperature = options.temperature();
    let mut winner = 0;
    for i in 0..parts.len() {
        if parts[i].top > parts[winner].top {
            winner = i;
        }
    }
    let top = parts[winner].top;
    let (mut tail, mut weighted, mut target, mut nan) = (0.0, 0.0, 0.0, 0.0);
    for (i, part) in parts.iter().enumerate() {
        target += part.target;
        // 0, or NaN.
        nan += 0.0 * part.tail;
        if part.top == f64::NEG_INFINITY {
            continue;
        }
        let from_top = (part.top - top) / temperature;
        // The largest column itself is no part of the tail, so that log-probs near 0 keep their digits.
        tail += if i == winner { part.tail } else { from_top.exp() * (1.0 + part.tail) };
        weighted += from_top.exp() * (part.weighted + from_top * (1.0 + part.tail));
    }
    let log_sum = f64::ln_1p(tail);
    let z_top = top / temperature;
    if (z_top * std::f64::consts::LOG2_E).abs() >= f64::from(LARGEST_EXPONENT) {
        nan = f64::NAN;
    }
    let row = TokenLogProb {
        log_prob: (target - top) / temperature - log_sum + nan,
        log_sum_exp: z_top + log_sum + nan,
        entropy: log_sum - weighted / (1.0 + tail) + nan,
        ..TokenLogProb::default()
    };
    // What the rounding of z has taken away, as in one call over all columns.
    let rest = (-z_top).mul_add(temperature, top) / temperature;
    (row, SoftmaxState::of(z_top, rest + log_sum))
}

/// d loss / d x of a rank's columns, for the upstream gradients g and e of the row's log-prob and entropy. `target`: where it is
/// among them.
///
/// p_j = exp(z_j)/(s·2^r), with the state that all ranks have made together, in f32: p has its digits.
pub fn backward(
    logits: &[f64],
    target: Option<usize>,
    options: &LogitOptions,
    (state, entropy): (SoftmaxState, f64),
    (g, e): (f64, f64),
) -> Vec<f64> {
    let (temperature, softcap) = (options.temperature(), options.softcap());
    let mut gradient = Vec::with_capacity(logits.len());
    for (j, (x, logit)) in capped(logits, options).into_iter().zip(logits).enumerate() {
        let log_p = (x / temperature - f64::from(state.r) * std::f64::consts::LN_2) - f64::from(state.s).ln();
        let p = log_p.exp();
        let not_p = if Some(j) == target { -log_p.exp_m1() } else { -p };
        let entropy_part = if p > 0.0 { -p * (log_p + entropy) } else { 0.0 };
        let slope = if softcap == 0.0 { 1.0 } else { (logit / softcap).cosh().powi(-2) };
        gradient.push((g * not_p + e * entropy_part) * slope / temperature);
    }
    gradient
}
