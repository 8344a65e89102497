//! IEEE 754 arithmetic on bits: the rules for NaN, infinities and zeros as they are written in the standard,
//! everything else by [`round`].

use super::exact::{Dyadic, Format, Mode, round, sign_of_sum};
use std::cmp::Ordering;

/// An operator of up to three operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Fused,
    Divide,
    Reciprocal,
    SquareRoot,
}

/// The result for operands of `format`, in `format`.
pub(crate) fn compute(operator: Operator, format: Format, mode: Mode, operands: &[u64]) -> u64 {
    let at = |place: usize| operands[place];
    match operator {
        Operator::Add => sum(format, mode, format.value(at(0)), at(0), at(1)),
        Operator::Subtract => sum(format, mode, format.value(at(0)), at(0), at(1) ^ format.sign()),
        Operator::Multiply => multiply(format, mode, at(0), at(1)),
        Operator::Fused => fused(format, mode, at(0), at(1), at(2)),
        Operator::Divide => divide(format, mode, at(0), at(1)),
        Operator::Reciprocal => divide(format, mode, format.one(), at(0)),
        Operator::SquareRoot => square_root(format, mode, at(0)),
    }
}

/// `a + b`, where the exact `a` is given besides its class and sign in `a_bits`.
fn sum(format: Format, mode: Mode, a: Dyadic, a_bits: u64, b: u64) -> u64 {
    if format.is_nan(a_bits) || format.is_nan(b) {
        return format.nan;
    }
    match (format.is_infinite(a_bits), format.is_infinite(b)) {
        (true, true) if a_bits != b => return format.nan,
        (true, _) => return a_bits,
        (_, true) => return b,
        _ => {}
    }
    let b_value = format.value(b);
    if sign_of_sum(&[a, b_value]) == Ordering::Equal {
        // Like signs keep theirs (both are zeros); unlike ones give +0, and -0 when rounding down.
        let negative = match (format.is_negative(a_bits), format.is_negative(b)) {
            (true, true) => true,
            (false, false) => false,
            _ => mode == Mode::Rm,
        };
        return if negative { format.sign() } else { 0 };
    }
    round(format, mode, |number| sign_of_sum(&[a, b_value, number.negated()]))
}

fn product_sign(format: Format, a: u64, b: u64) -> u64 {
    (a ^ b) & format.sign()
}

fn multiply(format: Format, mode: Mode, a: u64, b: u64) -> u64 {
    let sign = product_sign(format, a, b);
    let either = |holds: fn(Format, u64) -> bool| holds(format, a) || holds(format, b);
    if either(Format::is_nan) || either(Format::is_infinite) && either(Format::is_zero) {
        return format.nan;
    }
    if either(Format::is_infinite) {
        return format.infinity() | sign;
    }
    if either(Format::is_zero) {
        return sign;
    }
    let product = format.value(a).times(format.value(b));
    round(format, mode, |number| sign_of_sum(&[product, number.negated()]))
}

fn fused(format: Format, mode: Mode, a: u64, b: u64, c: u64) -> u64 {
    let sign = product_sign(format, a, b);
    let either = |holds: fn(Format, u64) -> bool| holds(format, a) || holds(format, b);
    if either(Format::is_nan) || either(Format::is_infinite) && either(Format::is_zero) {
        return format.nan;
    }
    // Any finite number with the product's sign stands for its class; its value is given apart.
    let class = if either(Format::is_infinite) { format.infinity() } else { 0 };
    sum(format, mode, format.value(a).times(format.value(b)), class | sign, c)
}

fn divide(format: Format, mode: Mode, a: u64, b: u64) -> u64 {
    let sign = product_sign(format, a, b);
    let both = |holds: fn(Format, u64) -> bool| holds(format, a) && holds(format, b);
    if format.is_nan(a) || format.is_nan(b) || both(Format::is_infinite) || both(Format::is_zero) {
        return format.nan;
    }
    if format.is_infinite(a) || format.is_zero(b) {
        return format.infinity() | sign;
    }
    if format.is_infinite(b) || format.is_zero(a) {
        return sign;
    }
    let (dividend, divisor) = (format.value(a), format.value(b));
    round(format, mode, |number| {
        let order = sign_of_sum(&[dividend, number.times(divisor).negated()]);
        if divisor.integer < 0 { order.reverse() } else { order }
    })
}

fn square_root(format: Format, mode: Mode, a: u64) -> u64 {
    if format.is_zero(a) {
        return a;
    }
    if format.is_nan(a) || format.is_negative(a) {
        return format.nan;
    }
    if format.is_infinite(a) {
        return a;
    }
    let value = format.value(a);
    round(format, mode, |number| {
        if number.integer <= 0 { Ordering::Greater } else { sign_of_sum(&[value, number.times(number).negated()]) }
    })
}

/// `.sat`: to [0, 1]; NaN and -0 give +0.
pub(crate) fn saturate(format: Format, bits: u64) -> u64 {
    if format.is_nan(bits) || format.is_negative(bits) { 0 } else { bits.min(format.one()) }
}

/// `min` and `max` as the manual's description has it.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a modifier of its own")]
pub(crate) struct Extremum {
    pub(crate) maximum: bool,
    pub(crate) propagate: bool,
    pub(crate) absolute: bool,
    pub(crate) exclusive_sign: bool,
}

impl Extremum {
    /// The modifiers after the opcode.
    pub(crate) fn spelling(self) -> String {
        let mut text = String::from(if self.maximum { "max" } else { "min" });
        for (holds, word) in [(self.propagate, ".NaN"), (self.exclusive_sign, ".xorsign"), (self.absolute, ".abs")] {
            if holds {
                text += word;
            }
        }
        text
    }

    pub(crate) fn of(self, format: Format, a: u64, b: u64) -> u64 {
        let sign = (a ^ b) & format.sign();
        let magnitude = |bits| if self.absolute { bits & !format.sign() } else { bits };
        let (a, b) = (magnitude(a), magnitude(b));
        let number = match (format.is_nan(a), format.is_nan(b)) {
            (true, true) => return format.nan,
            (true, false) | (false, true) if self.propagate => return format.nan,
            (true, false) => b,
            (false, true) => a,
            _ => {
                let difference = sign_of_sum(&[format.value(a), format.value(b).negated()]);
                // Equal values differ at most in the sign of zero: -0 is the lesser.
                let order = difference.then(format.is_negative(b).cmp(&format.is_negative(a)));
                if (order == Ordering::Less) == self.maximum { b } else { a }
            }
        };
        if self.exclusive_sign { number | sign } else { number }
    }
}
