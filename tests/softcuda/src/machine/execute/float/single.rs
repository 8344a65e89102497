//! f32 and f32x2 arithmetic. To nearest even it is the host's own.

use super::directed;
use super::lanes::{NAN, SIGN, bits, flush, map, saturate, zip, zip3};
use crate::machine::execute::half::format;
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::Single;
use crate::ptx::decode::float::operator::Operator;
use crate::ptx::types::Rounding;

#[inline(always)]
pub(super) fn execute(operation: &Single, registers: &mut Registers, active: u32) {
    if operation.packed {
        let sources = operation.sources.map(|source| registers.long(source));
        let low = compute(operation, |place| map(&sources[place], |pair| pair as u32));
        let high = compute(operation, |place| map(&sources[place], |pair| (pair >> 32) as u32));
        let result = zip(&low, &high, |low, high| u64::from(low) | u64::from(high) << 32);
        registers.set_long(operation.destination, active, &result);
        return;
    }
    let result = match operation.narrow {
        None => compute(operation, |place| registers.word(operation.sources[place])),
        Some(format) => {
            let narrow = if operation.operator == Operator::Fused { 2 } else { 1 };
            compute(operation, |place| {
                let lanes = registers.word(operation.sources[place]);
                if place < narrow { map(&lanes, |half| format::decode(format, half).to_bits()) } else { lanes }
            })
        }
    };
    registers.set_word(operation.destination, active, &result);
}

/// The result for operands that `source` reads.
#[inline(always)]
fn compute(operation: &Single, source: impl Fn(usize) -> [u32; LANES]) -> [u32; LANES] {
    let source = |place| {
        let lanes = source(place);
        if operation.flush { map(&lanes, flush) } else { lanes }
    };
    // What only touches the sign has no rounding, and leaves the payload of a NaN alone.
    match operation.operator {
        Operator::Absolute => return map(&source(0), |a| a & !SIGN),
        Operator::Negate => return map(&source(0), |a| a ^ SIGN),
        Operator::CopySign => return zip(&source(0), &source(1), |a, b| a & SIGN | b & !SIGN),
        _ => {}
    }
    let source = |place| map(&source(place), f32::from_bits);
    let result = if operation.rounding == Rounding::NearestEven {
        nearest(operation.operator, source)
    } else {
        directed::compute(operation.operator, operation.rounding, source)
    };
    let result = if operation.saturate { map(&result, saturate) } else { result };
    let result = map(&result, bits);
    if operation.flush { map(&result, flush) } else { result }
}

#[inline(always)]
fn nearest(operator: Operator, source: impl Fn(usize) -> [f32; LANES]) -> [f32; LANES] {
    match operator {
        Operator::Add => zip(&source(0), &source(1), |a, b| a + b),
        Operator::Subtract => zip(&source(0), &source(1), |a, b| a - b),
        Operator::Multiply => zip(&source(0), &source(1), |a, b| a * b),
        Operator::Fused => zip3(&source(0), &source(1), &source(2), f32::mul_add),
        Operator::Divide => zip(&source(0), &source(1), |a, b| a / b),
        Operator::Reciprocal => map(&source(0), |a| 1.0 / a),
        Operator::SquareRoot => map(&source(0), f32::sqrt),
        // The others are not decoded for f32, or were done above.
        _ => [f32::from_bits(NAN); LANES],
    }
}
