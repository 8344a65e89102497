//! Bounds of the row losses: each is formed in f64, or as one f32 product, and rounded to f32 once.

use crate::reference::bounds::HIGHER_ORDER;

/// u of f32.
const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// Half of the smallest denormal f32.
const UNDERFLOW: f64 = f32::MIN_POSITIVE as f64 * UNIT_ROUNDOFF;

/// Of a loss, or of its gradient: for the exact one, and the bound of the log-prob that it is made from.
///
/// d l / d log π is −w of the weighted log-prob (`slope` = |w|), and l itself, or 0, of the clipped ratio (`slope` = |l|),
/// to all orders: ρ moves by a factor of at most e^`log_prob_bound`. In f64 the difference of two log-probs is exact or off by
/// u₆₄ of at most twice the limit that matters (176), exp by one unit in the last place, and there are three products; then
/// one rounding to f32.
pub fn loss(exact: f64, slope: f64, log_prob_bound: f64) -> f64 {
    let of_log_prob = slope * log_prob_bound.exp_m1();
    let of_f64 = exact.abs() * 200.0 * f64::EPSILON;
    (of_log_prob + of_f64 + (exact.abs() + of_log_prob) * UNIT_ROUNDOFF) * HIGHER_ORDER + UNDERFLOW
}
