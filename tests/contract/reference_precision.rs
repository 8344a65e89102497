//! The f64 reference of the token stage within its own bounds, against arithmetic of a hundred digits: under offsets that
//! leave x/T few digits, next to p = 1, spread wide.

use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Divergence, LogitOptions};
use support::fifty_digits::{Digits, Real};

/// log p_j of all columns, log Σ exp z and the entropy.
struct Exact {
    log_p: Vec<Real>,
    log_sum_exp: Real,
    entropy: Real,
}

fn exact(digits: Digits, logits: &[f64], options: &LogitOptions) -> Exact {
    let number = |value: f64| digits.number(value);
    let (temperature, softcap) = (number(options.temperature()), options.softcap());
    let scaled = |x: f64| {
        if softcap == 0.0 {
            return number(x) / &temperature;
        }
        // tanh y = (e^(2y) − 1)/(e^(2y) + 1).
        let e = digits.exp(&(number(2.0) * number(x) / number(softcap)));
        number(softcap) * ((&e - number(1.0)) / (&e + number(1.0))) / &temperature
    };
    let z: Vec<Real> = logits.iter().map(|&x| scaled(x)).collect();
    let sum = z.iter().fold(number(0.0), |sum, z_j| sum + digits.exp(&(z_j - &z[0])));
    let log_sum_exp = &z[0] + digits.ln(&sum);
    let log_p: Vec<Real> = z.iter().map(|z| z - &log_sum_exp).collect();
    let entropy = log_p.iter().fold(number(0.0), |sum, log_p| sum - digits.exp(log_p) * log_p);
    Exact { log_p, log_sum_exp, entropy }
}

/// Logits that look random, in f32 as those of a model, around an offset.
fn row(offset: f64, spread: f64) -> Vec<f64> {
    let number = |j: u64| ((j * 7919 + 31) % 1009) as f64 / 1009.0 - 0.5;
    (0..24).map(|j| f64::from((offset + spread * number(j)) as f32)).collect()
}

#[test]
fn the_reference_is_within_its_own_bounds() {
    let mut largest = [0.0f64; 4];
    for offset in [0.0, 3000.0, -3000.0, 12_345.678, 1e6] {
        for spread in [1e-3, 2.0, 20.0, 300.0] {
            for (temperature, softcap) in [(1.0, 0.0), (0.8, 0.0), (0.3, 0.0), (37.5, 0.0), (1.0, 30.0), (0.7, 5.0)] {
                let options = LogitOptions::default().with_temperature(temperature).expect("valid");
                let options = options.with_softcap(softcap).expect("valid");
                let logits = row(offset, spread);
                let digits = Digits::for_spread(spread / temperature, Divergence::ReverseKl);
                let exact = exact(digits, &logits, &options);
                let f64s: Vec<f64> = exact.log_p.iter().map(|log_p| log_p.to_f64().value()).collect();
                for target in [0, 7, 23] {
                    let found = token_log_prob::forward_f64(&logits, target, &options);
                    let bound = bounds::row(Arithmetic::reference(logits.len()), &found, &options);
                    let at = format!("offset {offset}, spread {spread}, {options:?}, target {target}");
                    let mut hold = |which: usize, computed: f64, exact: &Real, bound: f64| {
                        let error = (Real::try_from(computed).expect("finite") - exact).to_f64().value().abs();
                        let share = if error == 0.0 { 0.0 } else { error / bound };
                        assert!(share <= 1.0, "{which}: off by {error:e}, {share} of its bound: {at}");
                        largest[which] = largest[which].max(share);
                    };
                    hold(0, found.log_prob, &exact.log_p[target], bound.log_prob);
                    hold(1, found.log_sum_exp, &exact.log_sum_exp, bound.log_sum_exp);
                    hold(2, found.entropy, &exact.entropy, bound.entropy);
                    if softcap != 0.0 {
                        continue;
                    }
                    let gradient = token_log_prob::backward_f64(&logits, target, &options, 0.75, 0.0);
                    for (column, &computed) in gradient.iter().enumerate() {
                        let one = Real::try_from(if column == target { 1.0 } else { 0.0 }).expect("finite");
                        let g = (one - exact.log_p[column].exp()) * Real::try_from(0.75).expect("finite")
                            / Real::try_from(temperature).expect("finite").with_precision(200).value();
                        let bound = bound.grad_logit(computed, logits[column], f64s[column], 0.75, 0.0);
                        hold(3, computed, &g, bound);
                    }
                }
            }
        }
    }
    println!("log-prob, log-sum-exp, entropy, gradient: {largest:.3?} of their bounds");
}
