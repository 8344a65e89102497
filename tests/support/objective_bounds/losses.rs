//! Errors of losses.

use super::{Analysis, FUNCTION, NOTHING, U, finite, softplus, times};

impl Analysis {
    pub(super) fn alpha_loss(&self, alpha: f64) -> f64 {
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
    pub(super) fn cross_entropy(&self) -> f64 {
        let term = |i: usize| self.q[i] * (self.log_p_error[i] + (self.q_error[i] + U) * finite(self.log_p[i]));
        (0..self.p.len()).map(term).sum()
    }

    pub(super) fn jensen_shannon_loss(&self) -> f64 {
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
