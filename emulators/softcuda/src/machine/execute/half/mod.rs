//! f16, bf16 and their pairs: computed in f64, rounded once.

pub(super) mod format;

use super::float::approximation::exponential;
use super::float::extremum::{self, Encoding};
use super::float::lanes::{addition_error, map, zip, zip3};
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::operator::Operator;
use crate::ptx::decode::half::{Clamp, Compute, Format, Function, Half, Operation};
use format::{NAN, SIGN, decode, encode, flush};

/// Executes for the lanes of `active`.
pub fn execute(operation: &Half, registers: &mut Registers, active: u32) {
    #[cfg(target_arch = "x86_64")]
    if super::float::lanes::has_vectors() {
        // SAFETY: the machine has the features that the function is compiled for.
        unsafe { execute_with_vectors(operation, registers, active) };
        return;
    }
    execute_inlined(operation, registers, active);
}

/// `execute_inlined` with wide vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn execute_with_vectors(operation: &Half, registers: &mut Registers, active: u32) {
    execute_inlined(operation, registers, active);
}

#[inline(always)]
fn execute_inlined(operation: &Half, registers: &mut Registers, active: u32) {
    // The loops know the format when they are compiled.
    match operation.format {
        Format::F16 => execute_format(operation, Format::F16, registers, active),
        Format::Bf16 => execute_format(operation, Format::Bf16, registers, active),
    }
}

#[inline(always)]
fn execute_format(half: &Half, format: Format, registers: &mut Registers, active: u32) {
    let destination = match &half.operation {
        Operation::Compute(operation) => operation.destination,
        Operation::Extremum(operation) => operation.destination,
        Operation::Approximation { destination, .. } => *destination,
    };
    let low = execute_part(half, format, registers, 0);
    let result = if half.packed {
        let high = execute_part(half, format, registers, 16);
        zip(&low, &high, |low, high| low | high << 16)
    } else {
        low
    };
    registers.set_word(destination, active, &result);
}

/// The results from the 16 bits that start at `shift`.
#[inline(always)]
fn execute_part(half: &Half, format: Format, registers: &Registers, shift: u32) -> [u32; LANES] {
    let part = |reg, flushed| {
        let lanes = map(&registers.word(reg), |word| word >> shift & 0xffff);
        if flushed { map(&lanes, |bits| flush(format, bits)) } else { lanes }
    };
    match &half.operation {
        Operation::Compute(operation) => {
            compute(operation, format, |place| part(operation.sources[place], operation.flush))
        }
        Operation::Extremum(operation) => {
            let [a, b] = operation.sources.map(|reg| map(&part(reg, operation.flush), |bits| bits << 16));
            let encoding = Encoding { infinity: format::infinity(format) << 16, nan: NAN << 16 };
            map(&extremum::compute(operation, encoding, &a, &b), |bits| bits >> 16)
        }
        Operation::Approximation { function, flush: flushed, source, .. } => {
            let value = map(&part(*source, *flushed), |bits| f64::from(decode(format, bits)));
            let result = match function {
                Function::Exponential => map(&value, |a| encode(format, exponential(a))),
                Function::HyperbolicTangent => map(&value, |a| encode(format, a.tanh())),
            };
            if *flushed { map(&result, |bits| flush(format, bits)) } else { result }
        }
    }
}

#[inline(always)]
fn compute(operation: &Compute, format: Format, source: impl Fn(usize) -> [u32; LANES]) -> [u32; LANES] {
    let value = |place| map(&source(place), |bits| f64::from(decode(format, bits)));
    let result = match operation.operator {
        Operator::Absolute => return map(&source(0), |a| a & !SIGN),
        Operator::Negate => return map(&source(0), |a| a ^ SIGN),
        Operator::Add => zip(&value(0), &value(1), |a, b| encode(format, sum_to_odd(a, b))),
        Operator::Subtract => zip(&value(0), &value(1), |a, b| encode(format, sum_to_odd(a, -b))),
        // 22 bits at most: exact.
        Operator::Multiply => zip(&value(0), &value(1), |a, b| encode(format, a * b)),
        Operator::Fused => zip3(&value(0), &value(1), &value(2), |a, b, c| encode(format, sum_to_odd(a * b, c))),
        // The others are not decoded for these formats.
        _ => [NAN; LANES],
    };
    let result = match operation.clamp {
        Clamp::None => result,
        Clamp::Saturate => {
            let one = format::one(format);
            // As an integer, what has a sign is greater than infinity: it goes to zero, as NaN does.
            map(&result, |bits| if bits > format::infinity(format) { 0 } else { bits.min(one) })
        }
        Clamp::Relu => map(&result, |bits| if bits & SIGN == 0 { bits } else { 0 }),
    };
    if operation.flush { map(&result, |bits| flush(format, bits)) } else { result }
}

/// `a + b` so that rounding it again, to a format at least two bits narrower, is as if the exact sum were rounded
/// once: if the sum is inexact, the neighbour with an odd fraction is taken ("rounding to odd").
#[inline(always)]
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let error = addition_error(a, b, sum);
    let bits = sum.to_bits();
    // Towards the exact sum: up in magnitude if the error has the sum's sign.
    let towards = if (error > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    // Infinite and NaN sums have an error of NaN or zero.
    let inexact = error.abs() > 0.0;
    f64::from_bits(if inexact && bits & 1 == 0 { towards } else { bits })
}
