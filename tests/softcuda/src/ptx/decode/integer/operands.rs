//! Operands whose declared type must fit the instruction's: the same size, and no floating-point register where an integer is meant.

use crate::machine::registers::Reg;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Operand};
use crate::ptx::types::{Kind, Type};

/// A source of exactly this size and a kind that goes with the type's.
pub(in crate::ptx::decode) fn source(scope: &mut Scope, operand: &Operand, ty: Type) -> Result<Reg, Error> {
    check(scope, operand, ty)?;
    scope.source(operand, ty)
}

/// A destination of exactly this size and a kind that goes with the type's; `_` gives one that nothing reads.
pub(in crate::ptx::decode) fn destination(scope: &mut Scope, operand: &Operand, ty: Type) -> Result<Reg, Error> {
    check(scope, operand, ty)?;
    scope.destination(operand, ty)
}

/// Registers of 8, 16 and 32 bits have the same storage, so that only the declared type tells them apart.
fn check(scope: &Scope, operand: &Operand, ty: Type) -> Result<(), Error> {
    let integer = |kind: Kind| matches!(kind, Kind::Signed | Kind::Unsigned);
    let wrong = match operand {
        Operand::Single(_) | Operand::Double(_) => integer(ty.kind()),
        _ => scope.register_type(operand).is_some_and(|declared| {
            let mixed = integer(declared.kind()) && matches!(ty, Type::F32 | Type::F64)
                || integer(ty.kind()) && declared.is_float();
            declared.bits() != ty.bits() || mixed
        }),
    };
    if wrong {
        return Err(scope.error(format!("operand {operand:?} does not fit type .{}", ty.name())));
    }
    Ok(())
}
