//! Integer and logic instructions.

mod arithmetic;
mod bits;
mod carry;
mod dot;
mod fields;
pub(super) mod lanes;
mod permute;
mod video;

use crate::machine::registers::Registers;
use crate::ptx::decode::integer::{Integer, Operation};

/// Executes for the lanes of `active`.
pub fn execute(operation: &Integer, registers: &mut Registers, active: u32) {
    let integer = operation;
    match integer.operation {
        Operation::Arithmetic(arithmetic) => arithmetic::execute(arithmetic, integer, registers, active),
        Operation::Carry(carry) => carry::execute(carry, integer, registers, active),
        Operation::Bits(bits) => bits::execute(bits, integer, registers, active),
        Operation::Permute(permute) => permute::execute(permute, integer, registers, active),
        Operation::Lookup(table, non_zero) => permute::lookup(table, non_zero, integer, registers, active),
        Operation::Video(video) => video::execute(video, integer, registers, active),
        Operation::Dot(dot) => dot::execute(dot, integer, registers, active),
    }
}
