//! `min` and `max` of f32 and of the half formats: on sign and magnitude as integers, where only the places of
//! infinity and NaN differ.

use super::lanes::{NAN, SIGN, flush, map, zip};
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::extremum::Extremum;

/// Numbers with the sign in bit 31.
#[derive(Clone, Copy)]
pub(in super::super) struct Encoding {
    /// The bits of plus infinity: any greater magnitude is NaN.
    pub(in super::super) infinity: u32,
    /// The NaN that operations give.
    pub(in super::super) nan: u32,
}

const SINGLE: Encoding = Encoding { infinity: 0x7f80_0000, nan: NAN };

#[inline(always)]
pub(super) fn execute(operation: &Extremum, registers: &mut Registers, active: u32) {
    let source = |reg| {
        let lanes = registers.word(reg);
        if operation.flush { map(&lanes, flush) } else { lanes }
    };
    let [a, b] = operation.sources.map(source);
    let mut result = compute(operation, SINGLE, &a, &b);
    if let Some(third) = operation.third {
        result = compute(operation, SINGLE, &result, &source(third));
    }
    registers.set_word(operation.destination, active, &result);
}

/// The extremum of two rows, with all modifiers but `.ftz`.
#[inline(always)]
pub(in super::super) fn compute(
    operation: &Extremum,
    encoding: Encoding,
    a: &[u32; LANES],
    b: &[u32; LANES],
) -> [u32; LANES] {
    let Extremum { minimum, propagate, absolute, exclusive_sign, .. } = *operation;
    match (minimum, propagate || absolute) {
        // The common forms have loops without a branch of their own.
        (true, false) => zip(a, b, |a, b| select(a, b, encoding, true, false)),
        (false, false) => zip(a, b, |a, b| select(a, b, encoding, false, false)),
        _ => zip(a, b, |a, b| {
            let mask = if absolute { !SIGN } else { u32::MAX };
            let result = select(a & mask, b & mask, encoding, minimum, propagate);
            // A NaN result has no sign.
            let sign = if exclusive_sign && result != encoding.nan { (a ^ b) & SIGN } else { 0 };
            result | sign
        }),
    }
}

#[inline(always)]
fn select(a: u32, b: u32, encoding: Encoding, minimum: bool, propagate: bool) -> u32 {
    // Flipping the magnitudes of negative numbers makes the order of integers that of numbers, with -0 before +0.
    let order = |bits: u32| (bits ^ ((bits as i32 >> 31) as u32 >> 1)) as i32;
    let a_nan = a & !SIGN > encoding.infinity;
    let b_nan = b & !SIGN > encoding.infinity;
    let least = if (order(a) < order(b)) == minimum { a } else { b };
    let number = if a_nan { b } else { least };
    let number = if b_nan { a } else { number };
    let nan = if propagate { a_nan | b_nan } else { a_nan & b_nan };
    if nan { encoding.nan } else { number }
}
