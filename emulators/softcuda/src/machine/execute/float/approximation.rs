//! The approximations: computed in f64 and rounded once, which is within every bound of the manual. A device's last
//! bits differ.

use super::lanes::{SIGN_DOUBLE, bits, bits_double, flush, map, zip};
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::approximation::{Approximation, Function};

#[inline(always)]
pub(super) fn execute(operation: &Approximation, registers: &mut Registers, active: u32) {
    if operation.function.is_double() {
        let source = registers.long(operation.sources[0]);
        let result = match operation.function {
            Function::ReciprocalOfUpperHalf => map(&source, |a| upper_half(a, |a| 1.0 / a)),
            Function::ReciprocalSquareRootOfUpperHalf => map(&source, |a| upper_half(a, |a| 1.0 / a.sqrt())),
            _ => map(&source, |a| bits_double(1.0 / f64::from_bits(a).sqrt())),
        };
        registers.set_long(operation.destination, active, &result);
        return;
    }
    let source = |place: usize| {
        let lanes = registers.word(operation.sources[place]);
        map(&if operation.flush { map(&lanes, flush) } else { lanes }, f32::from_bits)
    };
    let result = match operation.function {
        Function::Quotient => zip(&source(0), &source(1), quotient),
        Function::FullQuotient => zip(&source(0), &source(1), |a, b| a / b),
        Function::Reciprocal => map(&source(0), |a| 1.0 / a),
        Function::SquareRoot => map(&source(0), f32::sqrt),
        Function::ReciprocalSquareRoot => wide(&source(0), |a| 1.0 / a.sqrt()),
        Function::Sine => wide(&source(0), f64::sin),
        Function::Cosine => wide(&source(0), f64::cos),
        Function::Logarithm => wide(&source(0), f64::log2),
        Function::Exponential => wide(&source(0), exponential),
        Function::HyperbolicTangent => wide(&source(0), f64::tanh),
        _ => source(0),
    };
    let result = map(&result, bits);
    let result = if operation.flush { map(&result, flush) } else { result };
    registers.set_word(operation.destination, active, &result);
}

#[inline(always)]
fn wide(source: &[f32; LANES], f: impl Fn(f64) -> f64) -> [f32; LANES] {
    map(source, |a| f(f64::from(a)) as f32)
}

/// `a * (1 / b)`, where the reciprocal of a divisor beyond 2^126 is a zero: it would be subnormal.
#[inline(always)]
fn quotient(a: f32, b: f32) -> f32 {
    const GREATEST: f32 = f32::from_bits((127 + 126) << 23);
    let zero = a * 0f32.copysign(b);
    if b.abs() > GREATEST && b.is_finite() { zero } else { a / b }
}

/// A function of the upper 32 bits, rounded to 32 bits: 1 of sign, 11 of exponent, 20 of fraction.
#[inline(always)]
fn upper_half(bits: u64, f: impl Fn(f64) -> f64) -> u64 {
    const UPPER: u64 = 0xffff_ffff << 32;
    let flush = |bits: u64| if bits & 0x7ff << 52 == 0 { bits & SIGN_DOUBLE } else { bits };
    // A NaN whose payload is in the lower half only is still a NaN.
    let operand = if f64::from_bits(bits).is_nan() { f64::NAN } else { f64::from_bits(flush(bits & UPPER)) };
    let result = bits_double(f(operand));
    flush(result.wrapping_add(1 << 31) & UPPER)
}

/// 2 to the power of `x`, with an error below 2^-45 of the value; beyond the range of f32 anything that f32 makes
/// zero or infinity.
#[inline(always)]
pub(in super::super) fn exponential(x: f64) -> f64 {
    /// Added, it leaves the nearest integer in the lowest bits.
    const SHIFT: f64 = 1.5 * (1u64 << 52) as f64;
    /// ln(2)^k / k!, from k = 0.
    const TERMS: [f64; 12] = {
        let mut terms = [1.0; 12];
        let mut k = 1;
        while k < 12 {
            terms[k] = terms[k - 1] * std::f64::consts::LN_2 / k as f64;
            k += 1;
        }
        terms
    };
    // NaN passes both comparisons and comes out of the polynomial.
    let x = if x < -300.0 { -300.0 } else { x };
    let x = if x > 300.0 { 300.0 } else { x };
    let shifted = x + SHIFT;
    let fraction = x - (shifted - SHIFT);
    let mut sum = TERMS[11];
    let mut k = 11;
    while k > 0 {
        k -= 1;
        sum = sum * fraction + TERMS[k];
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    sum * power
}
