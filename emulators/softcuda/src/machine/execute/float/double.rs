//! f64 arithmetic. To nearest even it is the host's own; the other roundings are done by integers, slowly.

use super::lanes::{NAN_DOUBLE, SIGN_DOUBLE, bits_double, map, zip, zip3};
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::Double;
use crate::ptx::decode::float::operator::Operator;
use crate::ptx::types::Rounding;
use rustc_apfloat::{Float as _, Round, ieee};

#[inline(always)]
pub(super) fn execute(operation: &Double, registers: &mut Registers, active: u32) {
    let source = |place: usize| registers.long(operation.sources[place]);
    let value = |place: usize| map(&source(place), f64::from_bits);
    let nearest = operation.rounding == Rounding::NearestEven;
    let result = match operation.operator {
        Operator::Absolute => map(&source(0), |a| a & !SIGN_DOUBLE),
        Operator::Negate => map(&source(0), |a| a ^ SIGN_DOUBLE),
        Operator::CopySign => zip(&source(0), &source(1), |a, b| a & SIGN_DOUBLE | b & !SIGN_DOUBLE),
        Operator::Minimum => zip(&source(0), &source(1), |a, b| extremum(a, b, true)),
        Operator::Maximum => zip(&source(0), &source(1), |a, b| extremum(a, b, false)),
        Operator::Add if nearest => zip(&value(0), &value(1), |a, b| bits_double(a + b)),
        Operator::Subtract if nearest => zip(&value(0), &value(1), |a, b| bits_double(a - b)),
        Operator::Multiply if nearest => zip(&value(0), &value(1), |a, b| bits_double(a * b)),
        Operator::Fused if nearest => zip3(&value(0), &value(1), &value(2), |a, b, c| bits_double(a.mul_add(b, c))),
        Operator::Divide if nearest => zip(&value(0), &value(1), |a, b| bits_double(a / b)),
        Operator::Reciprocal if nearest => map(&value(0), |a| bits_double(1.0 / a)),
        Operator::SquareRoot if nearest => map(&value(0), |a| bits_double(a.sqrt())),
        Operator::SquareRoot => map(&value(0), |a| bits_double(square_root(a, operation.rounding))),
        _ => directed(operation, &[source(0), source(1), source(2)]),
    };
    registers.set_long(operation.destination, active, &result);
}

#[inline(always)]
fn extremum(a: u64, b: u64, minimum: bool) -> u64 {
    // As integers the magnitudes of negative numbers are flipped: then the order is that of numbers, with -0 before +0.
    let order = |bits: u64| (bits ^ ((bits as i64 >> 63) as u64 >> 1)) as i64;
    let [a_nan, b_nan] = [a, b].map(|bits| bits & !SIGN_DOUBLE > f64::INFINITY.to_bits());
    let least = if (order(a) < order(b)) == minimum { a } else { b };
    let number = if a_nan { b } else { least };
    let number = if b_nan { a } else { number };
    if a_nan && b_nan { NAN_DOUBLE } else { number }
}

#[cold]
#[inline(never)]
fn directed(operation: &Double, sources: &[[u64; LANES]; 3]) -> [u64; LANES] {
    let round = match operation.rounding {
        Rounding::Zero => Round::TowardZero,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::NearestEven => Round::NearestTiesToEven,
        Rounding::NearestAway => Round::NearestTiesToAway,
    };
    std::array::from_fn(|lane| {
        let [a, b, c] = [0, 1, 2].map(|place: usize| ieee::Double::from_bits(u128::from(sources[place][lane])));
        let one = ieee::Double::from_bits(u128::from(1f64.to_bits()));
        let result = match operation.operator {
            Operator::Add => a.add_r(b, round),
            Operator::Subtract => a.sub_r(b, round),
            Operator::Multiply => a.mul_r(b, round),
            Operator::Fused => a.mul_add_r(b, c, round),
            Operator::Divide => a.div_r(b, round),
            Operator::Reciprocal => one.div_r(a, round),
            // The others are exact, and done above.
            _ => return NAN_DOUBLE,
        };
        bits_double(f64::from_bits(result.value.to_bits() as u64))
    })
}

/// The square root in another rounding than to nearest.
#[cold]
#[inline(never)]
fn square_root(a: f64, rounding: Rounding) -> f64 {
    // Scaled by an even power of two, so that the remainder is an f64 for subnormal operands too. Zero, infinity and
    // NaN have none.
    let small = a < 2f64.powi(-800);
    let scaled = if small { a * 2f64.powi(200) } else { a };
    let near = scaled.sqrt();
    let remainder = (-near).mul_add(near, scaled);
    let root = match rounding {
        Rounding::Zero | Rounding::Down if remainder < 0.0 => near.next_down(),
        Rounding::Up if remainder > 0.0 => near.next_up(),
        _ => near,
    };
    if small { root * 2f64.powi(-100) } else { root }
}
