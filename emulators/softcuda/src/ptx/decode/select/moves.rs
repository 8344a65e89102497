//! `mov`: whole registers, vectors of elements into a register and back, predicates.

use super::{SELECTED, Select, destination, source, truth};
use crate::machine::registers::{Reg, Width};
use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Instruction, Operand};
use crate::ptx::types::Type;

/// The widths of vectors and of their elements, in bits.
const VECTORS: &[(Type, usize, Type)] = &[
    (Type::B16, 2, Type::B8),
    (Type::B32, 2, Type::B16),
    (Type::B32, 4, Type::B8),
    (Type::B64, 2, Type::B32),
    (Type::B64, 4, Type::B16),
    (Type::B128, 2, Type::B64),
    (Type::B128, 4, Type::B32),
];

pub(super) fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    let ty = modifiers.take_type()?;
    scope.expect_operands(instruction, 2..=2)?;
    let (to, from) = (&instruction.operands[0], &instruction.operands[1]);
    if let Operand::Vector(elements) = from {
        let element = element(modifiers, ty, elements.len())?;
        let destination = destination(scope, to, ty)?;
        let mut registers = [destination; 4];
        for (register, operand) in registers.iter_mut().zip(elements) {
            *register = source(scope, operand, element)?;
        }
        let (count, bits) = (elements.len() as u32, element.bits());
        return Ok(Select::Pack { destination, elements: registers, count, bits });
    }
    if let Operand::Vector(elements) = to {
        let element = element(modifiers, ty, elements.len())?;
        if elements.iter().all(|operand| matches!(operand, Operand::Sink)) {
            return Err(modifiers.error("one element at least must be wanted"));
        }
        let source = source(scope, from, ty)?;
        let mut registers = [None; 4];
        for (register, operand) in registers.iter_mut().zip(elements) {
            if !matches!(operand, Operand::Sink) {
                *register = Some(destination(scope, operand, element)?);
            }
        }
        return Ok(Select::Unpack { elements: registers, source, bits: element.bits() });
    }
    if ty == Type::Pred {
        return predicate(to, from, scope);
    }
    if ty != Type::B128 && !SELECTED.contains(&ty) {
        return Err(modifiers.error(&format!("type .{} is not one of this instruction", ty.name())));
    }
    let destination = destination(scope, to, ty)?;
    if let Some(special) = special(scope, from, ty)? {
        let whole = special.width == destination.width && ty.bits() >= 32;
        if whole {
            return Ok(Select::Move { destination, source: special });
        }
        // Older code reads `%tid.x` into 16 bits and `%gridid` into 32; none reads a narrower register into a wider.
        if destination.width == Width::Word {
            return Ok(Select::Truncate { destination, source: special, bits: ty.bits() });
        }
    }
    Ok(Select::Move { destination, source: source(scope, from, ty)? })
}

/// The register behind a name that is not bound: a special register.
fn special(scope: &mut Scope, operand: &Operand, ty: Type) -> Result<Option<Reg>, Error> {
    match operand {
        Operand::Name(name) if scope.find(name).is_none() && !ty.is_float() => scope.any_source(operand, ty).map(Some),
        _ => Ok(None),
    }
}

fn element(modifiers: &Modifiers, ty: Type, count: usize) -> Result<Type, Error> {
    VECTORS
        .iter()
        .find(|row| row.0 == ty && row.1 == count)
        .map(|row| row.2)
        .ok_or_else(|| modifiers.error(&format!(".{} is not a vector of {count} elements", ty.name())))
}

fn predicate(to: &Operand, from: &Operand, scope: &mut Scope) -> Result<Select, Error> {
    let destination = scope.predicate_destination(to)?;
    if let Some(source) = special(scope, from, Type::B32)? {
        return Ok(Select::WordToPredicate { destination, source });
    }
    let source = truth(scope, from)?;
    Ok(Select::MovePredicate { destination, source, negated: false })
}
