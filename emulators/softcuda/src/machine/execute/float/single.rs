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
    // The common operations are one loop that reads, computes and writes; the compiler knows whether it flushes.
    let result = match (operation.rounding, operation.flush) {
        (Rounding::NearestEven, false) => nearest(operation.operator, source, f32::from_bits, bits),
        (Rounding::NearestEven, true) => {
            let read = |lane| f32::from_bits(flush(lane));
            nearest(operation.operator, source, read, |value| flush(bits(value)))
        }
        (rounding, flushed) => {
            let read = |lane| f32::from_bits(if flushed { flush(lane) } else { lane });
            let result = directed::compute(operation.operator, rounding, |place| map(&source(place), read));
            map(&result, |value| if flushed { flush(bits(value)) } else { bits(value) })
        }
    };
    if operation.saturate { map(&result, |lane| saturate(f32::from_bits(lane)).to_bits()) } else { result }
}

#[inline(always)]
fn nearest(
    operator: Operator,
    source: impl Fn(usize) -> [u32; LANES],
    read: impl Fn(u32) -> f32,
    write: impl Fn(f32) -> u32,
) -> [u32; LANES] {
    match operator {
        Operator::Add => zip(&source(0), &source(1), |a, b| write(read(a) + read(b))),
        Operator::Subtract => zip(&source(0), &source(1), |a, b| write(read(a) - read(b))),
        Operator::Multiply => zip(&source(0), &source(1), |a, b| write(read(a) * read(b))),
        Operator::Fused => zip3(&source(0), &source(1), &source(2), |a, b, c| write(read(a).mul_add(read(b), read(c)))),
        Operator::Divide => zip(&source(0), &source(1), |a, b| write(read(a) / read(b))),
        Operator::Reciprocal => map(&source(0), |a| write(1.0 / read(a))),
        Operator::SquareRoot => map(&source(0), |a| write(read(a).sqrt())),
        // What only touches the sign leaves the payload of a NaN alone.
        Operator::Absolute => map(&source(0), |a| read(a).to_bits() & !SIGN),
        Operator::Negate => map(&source(0), |a| read(a).to_bits() ^ SIGN),
        Operator::CopySign => zip(&source(0), &source(1), |a, b| a & SIGN | b & !SIGN),
        // Not decoded for f32.
        Operator::Minimum | Operator::Maximum => [NAN; LANES],
    }
}
