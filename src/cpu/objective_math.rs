//! The scalar pieces of the K-sample objectives, in f64: terms that are never negative, and limits without NaN.
//!
//! Logits and their differences come in a [`Unit`], everything else in nats.

/// What a 1 of a group's logits, and of all differences of logits, stands for in nats: 1, but where the logits are so
/// large that a difference or a sum of them would be no f64. Losses and gradients, which are linear in differences, come
/// in the same unit, and are brought to nats at the very end. A power of two, so nothing is rounded by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) nats: f64,
    /// 1/nats.
    pub(super) inverse: f64,
}

impl Unit {
    pub(super) const NAT: Unit = Unit { nats: 1.0, inverse: 1.0 };

    /// For the largest size of a group's logits: +inf where β_π·S is no f64.
    pub(super) fn for_size(largest: f64) -> Self {
        let exponent = if largest < power_of_two(900) {
            0
        } else if largest < f64::INFINITY {
            64
        } else {
            // β_π is at most 1e200 < 2^665.
            700
        };
        Unit { nats: power_of_two(exponent), inverse: power_of_two(-exponent) }
    }
}

const fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// Where |α·x| is below this, (1 − e^(−α·x))/α is x.
const NOTHING: f64 = power_of_two(-54);

/// An order of divergence, 0 to ½.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) alpha: f64,
    pub(super) unit: Unit,
}

impl Order {
    /// α·x in nats, 0 for α = 0 even where x is infinite.
    pub(super) fn exponent(self, x: f64) -> f64 {
        product(self.alpha, x) * self.unit.nats
    }

    /// (1 − e^(−α·x))/α: x as α goes to 0. Dividing by an α that is no normal number gives infinity, and α·x has lost
    /// its digits there.
    pub(super) fn excess(self, x: f64) -> f64 {
        let exponent = self.exponent(x);
        if exponent.abs() < NOTHING { x } else { -(-exponent).exp_m1() * self.unit.inverse / self.alpha }
    }
}

/// a·b·c where no product on the way is too large or too small if the result is not: the largest takes the smallest
/// first.
pub(super) fn product_of_three(a: f64, b: f64, c: f64) -> f64 {
    let (large, small) = if a >= b { (a, b) } else { (b, a) };
    if c.abs() >= large {
        c * small * large
    } else if c.abs() <= small {
        large * c * small
    } else {
        large * small * c
    }
}

/// −log Σ p e^(−α·d), where every α·d is small, or its sample's part in the sum is: then what the sum has beside 1 is
/// what matters.
pub(super) fn small_shift(p: &[f64], log_p: &[f64], d: &[f64], order: Order) -> Option<f64> {
    let mut sum = 0.0;
    for i in 0..p.len() {
        if log_p[i] == f64::NEG_INFINITY && order.alpha < 1.0 {
            // p^(1−α) is 0.
            continue;
        }
        let x = -order.exponent(d[i]);
        // p·e^x − p; a large x goes with a small p.
        let term = if x < 1.0 { product(p[i], x.exp_m1()) } else { (log_p[i] * order.unit.nats + x).exp() - p[i] };
        // Also false for NaN.
        let harmless = x.abs() < 0.5 || term.abs() < 1e-3;
        if !harmless {
            return None;
        }
        sum += term;
    }
    Some(-sum.ln_1p())
}

/// The term of one sample in the divergence of order α ≤ ½ from p to q; never negative, and summing to the divergence
/// because Σ p = Σ q = 1: {(1−α)p + αq − p^(1−α) q^α}/(α(1−α)). In the unit of its arguments.
pub(super) fn alpha_term(order: Order, log_p: f64, log_q: f64, a: f64) -> f64 {
    let Order { alpha, unit } = order;
    let (p, q) = ((log_p * unit.nats).exp(), (log_q * unit.nats).exp());
    let nats = a * unit.nats;
    if nats.abs() < 0.1 {
        // Σ_{n≥2} (−a)^n/n!·(1 + α + … + α^(n−2)): the difference of the two exponentials has lost its leading digits
        // here.
        let (mut power, mut sum, mut geometric, mut factor) = (-nats, 0.0, 0.0, 1.0);
        for n in 2..=12 {
            power *= -nats / f64::from(n);
            geometric += factor;
            factor *= alpha;
            sum += power * geometric;
        }
        return p * sum * unit.inverse;
    }
    // p less p^(1−α) q^α, over α.
    let excess = if order.exponent(a).abs() < 1.0 {
        product(p, order.excess(a))
    } else {
        (p - (weighted_logs(alpha, log_p, log_q) * unit.nats).exp()) * unit.inverse / alpha
    };
    let difference = if nats > -1.0 { product(p, (-nats).exp_m1()) } else { q - p };
    (difference * unit.inverse + excess) / (1.0 - alpha)
}

/// The term of one sample in the Jensen–Shannon divergence; never negative.
pub(super) fn jensen_shannon_term(log_p: f64, log_q: f64, a: f64) -> f64 {
    if a.abs() < 2.0 {
        // √(pq)·(y sinh y − cosh y·log cosh y), y = a/2: near 0 a difference of y² and y²/2.
        let y = 0.5 * a;
        let half = (0.5 * y).sinh();
        let log_cosh = (2.0 * half * half).ln_1p();
        return (0.5 * (log_p + log_q)).exp() * (y * y.sinh() - y.cosh() * log_cosh);
    }
    let log_2 = std::f64::consts::LN_2;
    0.5 * (product(log_p.exp(), log_2 - softplus(-a)) + product(log_q.exp(), log_2 - softplus(a)))
}

/// (1 − α) log p + α log q, where 0·(−inf) is 0.
pub(super) fn weighted_logs(alpha: f64, log_p: f64, log_q: f64) -> f64 {
    product(1.0 - alpha, log_p) + product(alpha, log_q)
}

/// weight·value, 0 for a weight of 0 even where the value is infinite: the limit that the divergences have.
pub(super) fn product(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}

/// log(1 + e^x).
pub(super) fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

/// 1/(1 + e^(−x)).
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log Σ exp of values of which the one at `top` is 0 and the largest.
pub(super) fn log_sum_exp(values: impl Iterator<Item = f64>, top: usize) -> f64 {
    values.enumerate().map(|(i, value)| if i == top { 0.0 } else { value.exp() }).sum::<f64>().ln_1p()
}

/// log Σ exp of any values, −inf among them.
pub(super) fn log_sum_exp_any(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// The first of the largest values.
pub(super) fn index_of_largest(values: &[f64]) -> usize {
    let mut top = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[top] {
            top = i;
        }
    }
    top
}
