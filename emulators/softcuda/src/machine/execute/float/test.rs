//! `testp`.

use super::lanes::map;
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::float::{Property, Test};

#[inline(always)]
pub(super) fn execute(operation: &Test, registers: &mut Registers, active: u32) {
    let property = operation.property;
    let answers = if operation.double {
        map(&registers.long(operation.source), |bits| holds(property, bits & !(1 << 63), 0x7ff << 52, 1 << 52))
    } else {
        map(&registers.word(operation.source), |bits| {
            holds(property, u64::from(bits & !(1 << 31)), 0xff << 23, 1 << 23)
        })
    };
    let bits = (0..LANES).fold(0, |bits, lane| bits | u32::from(answers[lane]) << lane);
    registers.set_predicate(operation.destination, active, bits);
}

/// Of a magnitude, given the bits of infinity and of the least normal number.
#[inline(always)]
fn holds(property: Property, magnitude: u64, infinity: u64, least_normal: u64) -> bool {
    let subnormal = magnitude > 0 && magnitude < least_normal;
    match property {
        Property::Finite => magnitude < infinity,
        Property::Infinite => magnitude == infinity,
        Property::Number => magnitude <= infinity,
        Property::NotANumber => magnitude > infinity,
        Property::Normal => magnitude < infinity && !subnormal,
        Property::Subnormal => subnormal,
    }
}
