//! The softmax of a row, folded in base 2 from partial sums.

use crate::cpu::dispatch::{Available, Kernel};
use crate::cpu::elementary::{clamp_exponent, exp2, fused_multiply_add, tanh_far, tanh_near};
use crate::cpu::token_log_prob::{LANES, START};
use crate::options::LogitOptions;

/// From logit x to exponent: t = factor·x − r, or factor·tanh(x/c) − r under a softcap c.
///
/// Logits with (x/c)² ≤ 1 are near: their tanh is a polynomial, that of others has an exponential and a division. Which of the
/// two a logit takes depends on it alone, and so do its bits; a group of lanes that are all near is spared the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// log2 e/T, or c·log2 e/T under a softcap.
    factor: f32,
    /// 1/c; 0 without a softcap.
    inverse_cap: f32,
    /// The same two in f64, for the one column per row that is the target.
    exact_factor: f64,
    exact_inverse_cap: f64,
}

impl Scale {
    pub(super) fn new(options: &LogitOptions) -> Self {
        let factor = std::f64::consts::LOG2_E / options.temperature();
        if options.softcap() == 0.0 {
            // Rounded to f32 here too: the target must be scaled by exactly what the sum was.
            let factor = factor as f32;
            let exact_factor = f64::from(factor);
            return Scale { factor, inverse_cap: 0.0, exact_factor, exact_inverse_cap: 0.0 };
        }
        let (factor, inverse_cap) = (factor * options.softcap(), 1.0 / options.softcap());
        Scale {
            factor: factor as f32,
            inverse_cap: inverse_cap as f32,
            exact_factor: factor,
            exact_inverse_cap: inverse_cap,
        }
    }

    pub(super) fn has_softcap(&self) -> bool {
        self.inverse_cap != 0.0
    }

    /// The exponents t of a group of logits, and d capped logit / d logit of each.
    #[inline(always)]
    pub(super) fn exponents<const FMA: bool, const SOFTCAP: bool>(
        &self,
        group: &[f32; LANES],
        r: f32,
    ) -> ([f32; LANES], [f32; LANES]) {
        let (mut exponents, mut slopes) = ([0.0; LANES], [1.0; LANES]);
        if SOFTCAP {
            // As if all were near, and again if one is not: to look first would take longer.
            let mut all_near = true;
            for lane in 0..LANES {
                let y = group[lane] * self.inverse_cap;
                all_near &= y * y <= 1.0;
                let (capped, slope) = tanh_near::<FMA>(y);
                slopes[lane] = slope;
                exponents[lane] = fused_multiply_add::<FMA>(capped, self.factor, -r);
            }
            if all_near {
                return (exponents, slopes);
            }
        }
        for lane in 0..LANES {
            (exponents[lane], slopes[lane]) = self.exponent::<FMA, SOFTCAP>(group[lane], r);
        }
        (exponents, slopes)
    }

    /// The same of one logit: with the bits that it has in a group.
    #[inline(always)]
    pub(super) fn exponent<const FMA: bool, const SOFTCAP: bool>(&self, x: f32, r: f32) -> (f32, f32) {
        if !SOFTCAP {
            return (fused_multiply_add::<FMA>(x, self.factor, -r), 1.0);
        }
        let y = x * self.inverse_cap;
        let (near, far) = (tanh_near::<FMA>(y), tanh_far::<FMA>(y));
        let (capped, slope) = if y * y <= 1.0 { near } else { far };
        let t = fused_multiply_add::<FMA>(capped, self.factor, -r);
        // Infinities stay what they are: a capped −inf would have the probability of a logit of −c.
        if x.abs() < f32::INFINITY { (t, slope) } else { (x, 0.0) }
    }

    /// The exponent of the target's logit, in f64.
    pub(super) fn exact_exponent(&self, x: f32, r: f32) -> f64 {
        let x = f64::from(x);
        let scaled = if self.has_softcap() && x.is_finite() {
            (x * self.exact_inverse_cap).tanh() * self.exact_factor
        } else {
            x * self.exact_factor
        };
        scaled - f64::from(r)
    }

    /// d capped logit / d logit of the target, in f64: 1, or 1/cosh²(x/c) under a softcap.
    pub(super) fn exact_slope(&self, x: f32) -> f64 {
        if self.has_softcap() { (f64::from(x) * self.exact_inverse_cap).cosh().powi(-2) } else { 1.0 }
    }
}

/// The sums of a part of a row: Σ 2^t and Σ t·2^t, both relative to 2^r.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialSums {
    pub(crate) r: f32,
    pub(crate) sum: f64,
    pub(crate) weighted: f64,
}

impl PartialSums {
    pub(super) const EMPTY: PartialSums = PartialSums { r: START, sum: 0.0, weighted: 0.0 };

    /// The same sums relative to 2^r for an r that is not smaller. Exact but for the two terms of `weighted`.
    #[inline(always)]
    pub(crate) fn at(self, r: f32) -> Self {
        let distance = f64::from(r) - f64::from(self.r);
        if distance == 0.0 {
            return self;
        }
        let factor = if distance < 1000.0 { f64::from_bits((1023 - distance as u64) << 52) } else { 0.0 };
        PartialSums { r, sum: self.sum * factor, weighted: (self.weighted - distance * self.sum) * factor }
    }

    pub(super) fn merge(self, other: Self) -> Self {
        let r = if other.r > self.r { other.r } else { self.r };
        let (left, right) = (self.at(r), other.at(r));
        PartialSums { r, sum: left.sum + right.sum, weighted: left.weighted + right.weighted }
    }
}

/// 2^t of the target, with the very roundings it had in the sum, and its exact t.
pub(super) fn target_power(instructions: Available, scale: &Scale, x: f32, r: f32) -> (f32, f64) {
    struct Power<'a> {
        scale: &'a Scale,
        x: f32,
        r: f32,
    }

    impl Kernel for Power<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<const FMA: bool>(self) -> f32 {
            let (t, _) = if self.scale.has_softcap() {
                self.scale.exponent::<FMA, true>(self.x, self.r)
            } else {
                self.scale.exponent::<FMA, false>(self.x, self.r)
            };
            exp2::<FMA>(clamp_exponent(t))
        }
    }

    (instructions.run(Power { scale, x, r }), scale.exact_exponent(x, r))
}
