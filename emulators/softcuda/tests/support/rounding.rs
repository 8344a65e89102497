//! Rounding of f64 to narrower binary formats, and f64 arithmetic whose result is fit to be rounded again.

/// A binary floating-point format narrower than f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Bits of the fraction, without the leading one.
    pub(crate) fraction_bits: i32,
    /// Exponent of the smallest normal number.
    pub(crate) least_exponent: i32,
    /// Exponent of the greatest finite number.
    pub(crate) greatest_exponent: i32,
}

/// IEEE binary16.
pub(crate) const F16: Format = Format { fraction_bits: 10, least_exponent: -14, greatest_exponent: 15 };
/// The upper half of binary32.
pub(crate) const BF16: Format = Format { fraction_bits: 7, least_exponent: -126, greatest_exponent: 127 };
/// IEEE binary32.
pub(crate) const F32: Format = Format { fraction_bits: 23, least_exponent: -126, greatest_exponent: 127 };

/// The way to a neighbour when a value lies between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the nearest; of two as near, the one with an even fraction.
    NearestEven,
    /// To the nearest; of two as near, the one farther from zero.
    NearestAway,
    /// Towards zero.
    Zero,
    /// Towards plus infinity.
    Up,
    /// Towards minus infinity.
    Down,
}

/// The exponent of the leading bit of a finite number that is not zero.
fn exponent(value: f64) -> i32 {
    let field = (value.to_bits() >> 52 & 0x7ff) as i32;
    // Subnormal f64 are far below every narrower format: any small exponent does.
    if field == 0 { -1074 } else { field - 1023 }
}

/// `value` rounded to a number of `format`, as f64; the sign of zero and infinities stay, overflow is the direction's.
pub(crate) fn round(value: f64, format: Format, direction: Direction) -> f64 {
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    let quantum = 2f64.powi(exponent(value).max(format.least_exponent) - format.fraction_bits);
    // Both scalings are by powers of two and exact.
    let scaled = value / quantum;
    let integer = match direction {
        Direction::NearestEven => scaled.round_ties_even(),
        Direction::NearestAway => scaled.round(),
        Direction::Zero => scaled.trunc(),
        Direction::Up => scaled.ceil(),
        Direction::Down => scaled.floor(),
    };
    let rounded = (integer * quantum).copysign(value);
    let greatest = (2.0 - 2f64.powi(-format.fraction_bits)) * 2f64.powi(format.greatest_exponent);
    if rounded.abs() <= greatest {
        return rounded;
    }
    let away = match direction {
        Direction::NearestEven | Direction::NearestAway => true,
        Direction::Zero => false,
        Direction::Up => value > 0.0,
        Direction::Down => value < 0.0,
    };
    if away { f64::INFINITY.copysign(value) } else { greatest.copysign(value) }
}

/// `a * b + c` for `a * b` that f64 holds exactly, rounded to f64 so that a second rounding to a format at least two
/// bits narrower gives what one rounding of the exact sum would ("rounding to odd").
pub(crate) fn fused(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    let sum = product + c;
    if !sum.is_finite() {
        return sum;
    }
    // The exact error of the addition (Knuth).
    let from_product = sum - c;
    let error = (product - from_product) + (c - (sum - from_product));
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum;
    }
    // An even neighbour was chosen, and the exact sum lies strictly between it and the odd one on the error's side.
    if (error > 0.0) == (sum > 0.0) { f64::from_bits(bits + 1) } else { f64::from_bits(bits - 1) }
}

/// Steps from f32 to f32 between a result and the correctly rounded value, which is how the programming guide counts
/// errors; zero for two NaN and for zeros of either sign.
pub(crate) fn ulps_f32(got: f32, exact: f64) -> u64 {
    let rounded = round(exact, F32, Direction::NearestEven) as f32;
    if got.is_nan() || rounded.is_nan() {
        return if got.is_nan() == rounded.is_nan() { 0 } else { u64::MAX };
    }
    // Consecutive numbers have consecutive ranks, across zero too.
    let rank = |value: f32| {
        let magnitude = i64::from(value.to_bits() & 0x7fff_ffff);
        if value.is_sign_negative() { -magnitude } else { magnitude }
    };
    rank(got).abs_diff(rank(rounded))
}
