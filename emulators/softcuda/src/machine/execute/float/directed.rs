//! f32 arithmetic rounded towards zero, down and up.
//!
//! An f64 holds the product of two f32 exactly, and a sum up to an error that is known exactly. Quotients and square
//! roots that are not f32 themselves differ from every f32 by more than 2^-50 of their size (the remainder of 24 bits
//! by 24 bits is at least one unit of their 48 bits), so that their rounding to f64 stays on the same side of it.
//! Each says on which side of an f32 the exact result lies.

use super::lanes::{addition_error, map, zip, zip3};
use crate::machine::registers::LANES;
use crate::ptx::decode::float::operator::Operator;
use crate::ptx::types::Rounding;

/// `high` plus something of the sign of `low` that is less than the distance from `high` to the next f64.
#[derive(Clone, Copy)]
struct Exact {
    high: f64,
    low: f64,
}

/// A result that f64 holds well enough.
#[inline(always)]
fn near(high: f64) -> Exact {
    Exact { high, low: 0.0 }
}

#[inline(always)]
pub(super) fn compute(operator: Operator, rounding: Rounding, source: impl Fn(usize) -> [f32; LANES]) -> [f32; LANES] {
    let wide = |place| map(&source(place), f64::from);
    match operator {
        Operator::Add => zip(&wide(0), &wide(1), |a, b| round_sum(a, b, rounding)),
        Operator::Subtract => zip(&wide(0), &wide(1), |a, b| round_sum(a, -b, rounding)),
        Operator::Multiply => zip(&wide(0), &wide(1), |a, b| round(near(a * b), rounding)),
        // The product is exact: 48 bits, far from the ends of the range.
        Operator::Fused => zip3(&wide(0), &wide(1), &wide(2), |a, b, c| round_sum(a * b, c, rounding)),
        Operator::Divide => zip(&wide(0), &wide(1), |a, b| round(near(a / b), rounding)),
        Operator::Reciprocal => map(&wide(0), |a| round(near(1.0 / a), rounding)),
        Operator::SquareRoot => map(&wide(0), |a| round(near(a.sqrt()), rounding)),
        _ => [f32::NAN; LANES],
    }
}

#[inline(always)]
fn round_sum(a: f64, b: f64, rounding: Rounding) -> f32 {
    let sum = a + b;
    if sum == 0.0 && rounding == Rounding::Down {
        // Rounding down, a zero is only positive if both terms are.
        return if a.is_sign_negative() || b.is_sign_negative() { -0.0 } else { 0.0 };
    }
    round(Exact { high: sum, low: addition_error(a, b, sum) }, rounding)
}

/// Infinite and NaN results have a `low` of NaN or zero, and stay what they are.
#[inline(always)]
fn round(exact: Exact, rounding: Rounding) -> f32 {
    let Exact { high, low } = exact;
    let near = high as f32;
    let wide = f64::from(near);
    let above = wide > high || wide == high && low < 0.0;
    let below = wide < high || wide == high && low > 0.0;
    let down = match rounding {
        Rounding::Down => above,
        Rounding::Zero => above && near > 0.0,
        _ => false,
    };
    let up = match rounding {
        Rounding::Up => below,
        Rounding::Zero => below && near < 0.0,
        _ => false,
    };
    if down {
        near.next_down()
    } else if up {
        near.next_up()
    } else {
        near
    }
}
