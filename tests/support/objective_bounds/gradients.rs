//! Errors of gradients.

use super::{Analysis, FUNCTION, NOTHING, U, finite, softplus, times};

impl Analysis {
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
    pub(super) fn small_order_gradient(&self, alpha: f64) -> Vec<f64> {
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

    pub(super) fn reverse_kl_gradient(&self) -> Vec<f64> {
        self.centred_gradient(&self.d, &self.d_error)
    }

    /// ψ_i = −½ log(1 + x), x = σ(−a_m)·expm1(−d_i), which is ½ log(p_i/(p_i + q_i)) less that of the top.
    pub(super) fn jensen_shannon_gradient(&self) -> Vec<f64> {
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
    pub(super) fn alpha_gradient(&self, alpha: f64, loss: f64) -> Vec<f64> {
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
