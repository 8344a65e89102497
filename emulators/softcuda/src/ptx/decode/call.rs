//! Calls: whom, and what is passed.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::code::{CallSite, Code, Control, MOST_LOCAL_BYTES, Operation, Target};
use super::memory::{Access, Memory};
use super::scope::{Binding, Scope};
use crate::machine::registers::Reg;

/// Makes room for a register in the thread's frame: how it is accessed there, and where it is.
///
/// # Errors
/// As [`place_in_frame`](super::code::place_in_frame).
pub fn spill(reg: Reg, ty: Type, scope: &mut Scope) -> Result<(Access, (u64, u64)), Error> {
    let size = u64::from(ty.bytes());
    let offset = scope.frame.local_bytes.next_multiple_of(size);
    if offset + size > MOST_LOCAL_BYTES {
        return Err(scope.error(format!("more than the {MOST_LOCAL_BYTES} bytes of local memory of a thread")));
    }
    scope.frame.local_bytes = offset + size;
    Ok((Access::in_frame(reg, ty, offset), (offset, size)))
}

impl Code {
    /// `call (results), target, (arguments), prototype`: the lists may be missing.
    pub(super) fn call(&mut self, instruction: &Instruction, scope: &mut Scope) -> Result<Control, Error> {
        let mut frame = |operand: &Operand, result: bool| -> Result<(u64, u64), Error> {
            let Operand::Name(name) = operand else {
                return Err(scope.error(format!("{operand:?}: only variables in .param and .reg are passed")));
            };
            match scope.find(name) {
                Some(Binding::Variable { space: Space::Param, address, of_kernel: false, size }) => Ok((address, size)),
                Some(Binding::Register(reg, ty)) => {
                    let (access, place) = spill(reg, ty, scope)?;
                    let (before, after) = &mut self.around_call;
                    if result {
                        after.push(Operation::Memory(Memory::Load(access)));
                    } else {
                        before.push(Operation::Memory(Memory::Store(access)));
                    }
                    Ok(place)
                }
                _ => Err(scope.error(format!("{name}: only variables in .param and .reg are passed"))),
            }
        };
        let mut list = |operand: &Operand, result: bool| match operand {
            Operand::List(list) => list.iter().map(|operand| frame(operand, result)).collect::<Result<Vec<_>, _>>(),
            _ => Ok(Vec::new()),
        };
        let place = instruction.operands.iter().position(|operand| !matches!(operand, Operand::List(_)));
        let Some(Operand::Name(target)) = place.and_then(|place| instruction.operands.get(place)) else {
            return Err(scope.error("call without a target"));
        };
        let place = place.unwrap_or(0);
        let results = if place == 0 { Vec::new() } else { list(&instruction.operands[0], true)? };
        let arguments = instruction.operands.get(place + 1).map_or(Ok(Vec::new()), |operand| list(operand, false))?;
        let target = match scope.find(target) {
            Some(Binding::Function(index)) => Target::Function(index),
            Some(Binding::Register(reg, _)) => Target::Register(reg),
            _ => return Err(scope.error(format!("{target} is not a function"))),
        };
        self.calls.push(CallSite { target, arguments, results });
        Ok(Control::Call(self.calls.len() as u32 - 1))
    }
}
