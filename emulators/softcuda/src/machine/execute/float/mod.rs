//! Floating-point execution: compiled twice, for any machine and for one with fused multiply-add and wide vectors.

pub(super) mod approximation;
mod directed;
mod double;
pub(super) mod extremum;
pub(super) mod lanes;
mod single;
mod test;

use crate::machine::registers::Registers;
use crate::ptx::decode::float::Float;

/// Executes for the lanes of `active`.
pub fn execute(operation: &Float, registers: &mut Registers, active: u32) {
    #[cfg(target_arch = "x86_64")]
    if lanes::has_vectors() {
        // SAFETY: the machine has the features that the function is compiled for.
        unsafe { execute_with_vectors(operation, registers, active) };
        return;
    }
    execute_inlined(operation, registers, active);
}

/// `execute_inlined` with fused multiply-add as an instruction, which elsewhere is a call.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn execute_with_vectors(operation: &Float, registers: &mut Registers, active: u32) {
    execute_inlined(operation, registers, active);
}

#[inline(always)]
fn execute_inlined(operation: &Float, registers: &mut Registers, active: u32) {
    match operation {
        Float::Single(operation) => single::execute(operation, registers, active),
        Float::Double(operation) => double::execute(operation, registers, active),
        Float::Extremum(operation) => extremum::execute(operation, registers, active),
        Float::Approximation(operation) => approximation::execute(operation, registers, active),
        Float::Test(operation) => test::execute(operation, registers, active),
    }
}
