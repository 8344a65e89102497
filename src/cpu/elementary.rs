//! 2^t and tanh on lanes: branch-free, so that a loop over an array of them becomes vector code.

/// a·b + c, rounded once where the instruction set can (`FMA`), twice elsewhere.
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// a·b + c, rounded once on every instruction set: where the product may be large and c takes most of it away again.
///
/// Without a fused multiply-add by way of f64, in which the product of two f32 is exact.
#[inline(always)]
pub(super) fn fused_multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { (f64::from(a) * f64::from(b) + f64::from(c)) as f32 }
}

/// The exponent whose exponent field is 0: 2^t is 0 here. Below −126 it would be no normal f32, and terms that small
/// are nothing beside a softmax's largest, which is at least ½.
const ZERO_EXPONENT: f32 = -127.0;

/// max(t, −127), and NaN for NaN (which `f32::max` would drop). [`exp2`] of an excluded column's −inf is then exactly 0,
/// and so is t·2^t.
#[inline(always)]
pub(super) fn clamp_exponent(t: f32) -> f32 {
    if t < ZERO_EXPONENT { ZERO_EXPONENT } else { t }
}

/// 2^t for −126 ≤ t ≤ 126, to [`EXP2_ERROR`] unit roundoffs; 0 from −127 to −126.5; NaN for NaN.
#[inline(always)]
pub(super) fn exp2<const FMA: bool>(t: f32) -> f32 {
    let (p, power) = exp2_factors::<FMA>(t);
    p * power
}

/// The two factors of [`exp2`]: 2^f with |f| ≤ ½, and 2^n. Their product is exact unless it is subnormal, so that a sum
/// may take it in by one fused multiply-add.
///
/// t = n + f with n the nearest integer and |f| ≤ ½. Adding 1.5·2^23 + 127 rounds t to n and leaves n + 127, which is
/// 2^n's exponent field, in the lowest bits. 2^f is a minimax polynomial of degree 6 (relative error 2.0e-9; the
/// constant term is exactly 1, so 2^n is exact).
#[inline(always)]
pub(super) fn exp2_factors<const FMA: bool>(t: f32) -> (f32, f32) {
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let rounded = t + ROUND;
    let f = t - (rounded - ROUND);
    let mut p = 1.535_336_5e-4;
    p = multiply_add::<FMA>(p, f, 1.339_887_5e-3);
    p = multiply_add::<FMA>(p, f, 9.618_437e-3);
    p = multiply_add::<FMA>(p, f, 5.550_332_4e-2);
    p = multiply_add::<FMA>(p, f, 2.402_264_8e-1);
    p = multiply_add::<FMA>(p, f, 6.931_472e-1);
    p = multiply_add::<FMA>(p, f, 1.0);
    // A factor, not an addition to the exponent bits: that could turn a NaN with a payload into a number.
    (p, f32::from_bits(rounded.to_bits() << 23))
}

/// Largest relative error of [`exp2`] in unit roundoffs (2^-24), as the test below measures it.
pub(super) const EXP2_ERROR: f64 = 2.0;

/// tanh(y) and its slope 1 − tanh²(y) for |y| ≤ 1, both to a few unit roundoffs of themselves.
///
/// y + y³·p(y²), p minimax in the relative error of tanh: 0.94 unit roundoffs with the coefficients as they are rounded here.
/// The slope is at least 0.41, so that the difference keeps its digits.
#[inline(always)]
pub(super) fn tanh_near<const FMA: bool>(y: f32) -> (f32, f32) {
    let square = y * y;
    let mut p = NEAR[5];
    for coefficient in [NEAR[4], NEAR[3], NEAR[2], NEAR[1], NEAR[0]] {
        p = multiply_add::<FMA>(p, square, coefficient);
    }
    let tanh = multiply_add::<FMA>(p * square, y, y);
    (tanh, multiply_add::<FMA>(-tanh, tanh, 1.0))
}

/// Of y², y⁴, … in tanh(y)/y − 1.
const NEAR: [f32; 6] =
    [-3.333_298_6e-1, 1.332_639e-1, -5.349_772_8e-2, 2.035_756_6e-2, -6.257_136_35e-3, 1.057_449_15e-3];

/// The same for |y| ≥ 1, as (1 − e)/(1 + e) with e = exp(−2|y|), and as 4e/(1 + e)², since 1 − tanh² loses its digits where
/// tanh is near 1. NaN for NaN.
#[inline(always)]
pub(super) fn tanh_far<const FMA: bool>(y: f32) -> (f32, f32) {
    let e = exp2::<FMA>(clamp_exponent(y.abs() * (-2.0 * std::f32::consts::LOG2_E)));
    let sum = 1.0 + e;
    (((1.0 - e) / sum).copysign(y), 4.0 * e / (sum * sum))
}

/// Largest relative error of [`tanh_near`] and [`tanh_far`] in unit roundoffs (2^-24), as the tests below measure it.
pub(super) const TANH_ERROR: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

    /// Largest relative error over every `step`-th f32 from `low` to `high`, in unit roundoffs.
    fn largest_error(low: f32, high: f32, fast: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut largest: f64 = 0.0;
        let (low_bits, high_bits) = (low.to_bits(), high.to_bits());
        let mut bits = low_bits;
        while bits <= high_bits {
            let t = f32::from_bits(bits);
            for t in [t, -t] {
                let expected = exact(f64::from(t));
                largest = largest.max((f64::from(fast(t)) - expected).abs() / expected.abs());
            }
            bits += 97;
        }
        largest / UNIT_ROUNDOFF
    }

    #[test]
    fn exp2_is_within_its_error() {
        for (name, exp2) in [("fused", exp2::<true> as fn(f32) -> f32), ("unfused", exp2::<false>)] {
            let error = largest_error(1e-8, 125.9, exp2, f64::exp2);
            println!("exp2, {name}: {error:.3} unit roundoffs");
            assert!(error <= EXP2_ERROR, "{name}: {error}");
            assert_eq!(exp2(clamp_exponent(f32::NEG_INFINITY)), 0.0, "{name}: nothing is left of an excluded column");
            for n in -126..=126 {
                assert_eq!(exp2(n as f32), f32::from_bits(((n + 127) as u32) << 23), "{name}: 2^{n} is exact");
            }
            for bits in [0x7f80_0001u32, 0x7fc0_0000, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
                assert!(exp2(clamp_exponent(f32::from_bits(bits))).is_nan(), "{name}: NaN {bits:#x}");
            }
        }
    }

    /// What `tanh_near` says of its polynomial, in exact arithmetic: f64's roundings are 2⁻²⁹ of the error.
    #[test]
    fn the_polynomial_of_tanh_is_as_close_as_it_says() {
        let mut largest: f64 = 0.0;
        for i in 1..=100_000 {
            let y = f64::from(i) * 1e-5 * (1.0 + 1e-6);
            let of_square = NEAR.iter().rev().fold(0.0, |sum, &coefficient| (sum + f64::from(coefficient)) * (y * y));
            largest = largest.max(((1.0 + of_square) * y / y.tanh() - 1.0).abs());
        }
        let error = largest / UNIT_ROUNDOFF;
        println!("tanh's polynomial: {error:.4} unit roundoffs");
        assert!((0.90..=0.94).contains(&error), "{error}");
    }

    #[test]
    fn tanh_and_its_slope_are_within_their_error() {
        type Tanh = fn(f32) -> (f32, f32);
        // The quotient x/c of a logit at the cap may be rounded to either side of 1.
        let (below, above) = (1.0 - 4e-7, 1.0 + 4e-7);
        let parts: [(&str, Tanh, f32, f32); 4] = [
            ("near, fused", tanh_near::<true>, 1e-30, above),
            ("near, unfused", tanh_near::<false>, 1e-30, above),
            ("far, fused", tanh_far::<true>, below, 40.0),
            ("far, unfused", tanh_far::<false>, below, 40.0),
        ];
        for (name, tanh, low, high) in parts {
            let error = largest_error(low, high, |y| tanh(y).0, f64::tanh);
            // cosh overflows no f64 here; 1/cosh² is the slope without cancellation.
            let slope = largest_error(low, high, |y| tanh(y).1, |y| 1.0 / (y.cosh() * y.cosh()));
            println!("tanh, {name}: {error:.3}, slope {slope:.3} unit roundoffs");
            assert!(error <= TANH_ERROR, "{name}: {error}");
            // The exponent −2|y|·log2 e is rounded before the exponential: a relative error that grows with |y|.
            assert!(slope <= 4.0 * TANH_ERROR + 2.0 * f64::from(high) * 2.0, "{name}: {slope}");
            assert!(tanh(f32::NAN).0.is_nan(), "{name}");
        }
    }
}
