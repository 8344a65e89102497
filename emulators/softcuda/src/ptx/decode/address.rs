//! Address operands: `[register + bytes]`, `[variable + bytes]`, `[number]`.

use super::super::syntax::{Error, Operand};
use super::super::types::Space;
use super::scope::{Binding, Scope};
use crate::machine::registers::Reg;

/// What the bytes of an address operand are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// A register, different in every lane.
    Register(Reg),
    /// Nothing: the offset is the address.
    Zero,
    /// The thread's frame of local memory.
    Frame,
}

/// A decoded address operand, within one state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The base.
    pub base: Base,
    /// Bytes to add.
    pub offset: i64,
    /// The space in which the address lies; `Generic` if the instruction does not say.
    pub space: Space,
}

/// Decodes an address operand of an instruction that names `space`.
///
/// # Errors
/// An unknown name, a variable of another space, or not an address.
pub fn decode(operand: &Operand, space: Space, scope: &Scope) -> Result<Address, Error> {
    let Operand::Address { base, offset } = operand else {
        return Err(scope.error(format!("{operand:?} is not an address")));
    };
    let offset = *offset;
    let Some(name) = base else { return Ok(Address { base: Base::Zero, offset, space }) };
    match scope.find(name) {
        Some(Binding::Register(reg, _)) => {
            scope.note_address(reg);
            Ok(Address { base: Base::Register(reg), offset, space })
        }
        Some(Binding::Variable { space: lives_in, address, of_kernel, .. }) => {
            let in_frame = lives_in == Space::Local || lives_in == Space::Param && !of_kernel;
            // A device function's parameters lie in its frame of local memory.
            let effective = if in_frame { Space::Local } else { lives_in };
            let agrees = space == lives_in
                || space == Space::SharedCluster && lives_in == Space::Shared
                || space == Space::Generic && matches!(lives_in, Space::Global | Space::Const);
            if !agrees {
                return Err(scope.error(format!("{name} lives in {lives_in:?}, and the instruction says {space:?}")));
            }
            let base = if in_frame { Base::Frame } else { Base::Zero };
            Ok(Address { base, offset: offset.wrapping_add(address as i64), space: effective })
        }
        _ => Err(scope.error(format!("{name} is not declared, or has no address"))),
    }
}
