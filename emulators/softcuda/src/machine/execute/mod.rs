//! Execution, by class of instruction: the files of `ptx::decode` say what an operation is, those here do it for the
//! lanes of a warp.

pub mod asynchronous;
pub mod atomic;
pub mod convert;
pub mod float;
pub mod fragment;
pub mod half;
pub mod integer;
pub mod local;
pub mod matrix;
pub mod memory;
pub mod select;
pub mod warp;
pub mod wmma;

use super::registers::Registers;
use crate::ptx::decode::Arithmetic;

/// Executes an arithmetic operation for the lanes of `active`.
#[inline]
pub fn arithmetic(operation: &Arithmetic, registers: &mut Registers, active: u32) {
    match operation {
        Arithmetic::Integer(operation) => integer::execute(operation, registers, active),
        Arithmetic::Float(operation) => float::execute(operation, registers, active),
        Arithmetic::Half(operation) => half::execute(operation, registers, active),
        Arithmetic::Convert(operation) => convert::execute(operation, registers, active),
        Arithmetic::Select(operation) => select::execute(operation, registers, active),
    }
}
