//! Token log-probs: log softmax(z)\[target\], z = c·tanh(x/c)/T, and their gradient.

use crate::element::Element;
use crate::options::LogitOptions;
use crate::stage::token_log_prob::LARGEST_EXPONENT;

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
    let temperature = options.temperature();
    capped(logits, options).into_iter().map(|x| x / temperature).collect()
}

/// c·tanh(x/c): what is left to be divided by T.
pub(crate) fn capped(logits: &[f64], options: &LogitOptions) -> Vec<f64> {
    let softcap = options.softcap();
    let cap = |x: f64| if softcap == 0.0 || x.is_infinite() { x } else { softcap * (x / softcap).tanh() };
    logits.iter().map(|&x| cap(x)).collect()
}

/// The scaled logits of a row, less the largest of them, and log Σ exp of that.
///
/// The difference is taken before the division by T: under a common offset it is small, while each x/T is rounded to
/// the digits that the offset leaves.
struct Centred {
    /// z of the largest, and what its rounding has taken away.
    top: f64,
    top_rest: f64,
    /// z_j less that.
    from_top: Vec<f64>,
    log_sum: f64,
}

impl Centred {
    fn new(logits: &[f64], options: &LogitOptions) -> Self {
        let x = capped(logits, options);
        let mut top = 0;
        for j in 0..x.len() {
            if x[j] > x[top] || x[top].is_nan() {
                top = j;
            }
        }
        let from_top: Vec<f64> = x.iter().map(|x_j| (x_j - x[top]) / options.temperature()).collect();
        // 1 + the tail behind the largest term, so that log-probs near 0 keep their digits.
        let mut tail = 0.0;
        for j in 0..x.len() {
            if j != top {
                tail += from_top[j].exp();
            }
        }
        let temperature = options.temperature();
        let z_top = x[top] / temperature;
        let top_rest = (-z_top).mul_add(temperature, x[top]) / temperature;
        Centred { top: z_top, top_rest, from_top, log_sum: tail.ln_1p() }
    }

    fn log_p(&self, j: usize) -> f64 {
        self.from_top[j] - self.log_sum
    }
}

/// One row, forward. NaN in every field for a row with a NaN or +inf logit, with only −inf, or whose largest logit is
/// 2³⁰ or more in size when scaled and written in base 2: the range that every backend promises.
pub fn forward<T: Element>(logits: &[T], target: usize, options: &LogitOptions) -> TokenLogProb {
    forward_f64(&widened(logits), target, options)
}

/// The largest scaled logit z of a row, and log Σ exp(z − largest).
pub(crate) fn largest_and_log_sum(logits: &[f64], options: &LogitOptions) -> (f64, f64) {
    let row = Centred::new(logits, options);
    (row.top, row.top_rest + row.log_sum)
}

/// [`forward`] for logits that are in f64.
pub fn forward_f64(logits: &[f64], target: usize, options: &LogitOptions) -> TokenLogProb {
    let row = Centred::new(logits, options);
    let possible = |j: &usize| row.from_top[*j] != f64::NEG_INFINITY;
    let mut mean_from_top = 0.0;
    for j in (0..logits.len()).filter(possible) {
        mean_from_top += row.log_p(j).exp() * row.from_top[j];
    }
    let mut variance = 0.0;
    for j in (0..logits.len()).filter(possible) {
        variance += row.log_p(j).exp() * (row.from_top[j] - mean_from_top).powi(2);
    }
    let in_range = (row.top * std::f64::consts::LOG2_E).abs() < f64::from(LARGEST_EXPONENT);
    let nan = if in_range && !row.from_top.iter().any(|z| z.is_nan()) { 0.0 } else { f64::NAN };
    TokenLogProb {
        log_prob: row.log_p(target) + nan,
        log_sum_exp: row.top + (row.top_rest + row.log_sum) + nan,
        entropy: row.log_sum - mean_from_top + nan,
        mean: row.top + (row.top_rest + mean_from_top) + nan,
        variance: variance + nan,
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
    let row = forward_f64(logits, target, options);
    let centred = Centred::new(logits, options);
    let (temperature, softcap) = (options.temperature(), options.softcap());
    let mut gradient = Vec::with_capacity(logits.len());
    for j in 0..logits.len() {
        let log_p = centred.log_p(j);
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
