//! Operands whose declared type must fit the instruction's: the same size, and no floating-point register where an
//! integer is meant.

use crate::machine::registers::Reg;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Operand};
use crate::ptx::types::{Kind, Type};

/// A source of exactly this size and a kind that goes with the type's.
pub(in crate::ptx::decode) fn source(scope: &mut Scope, operand: &Operand, ty: Type) -> Result<Reg, Error> {
    let reg = scope.source(operand, ty)?;
    check(scope, operand, ty).map(|()| reg)
}

/// A destination of exactly this size and a kind that goes with the type's; `_` gives one that nothing reads.
pub(in crate::ptx::decode) fn destination(scope: &mut Scope, operand: &Operand, ty: Type) -> Result<Reg, Error> {
    let reg = scope.destination(operand, ty)?;
    check(scope, operand, ty).map(|()| reg)
}

fn is_integer(ty: Type) -> bool {
    matches!(ty.kind(), Kind::Signed | Kind::Unsigned)
}

/// Registers of 8, 16 and 32 bits have the same storage, so that only the declared type tells them apart.
fn check(scope: &Scope, operand: &Operand, ty: Type) -> Result<(), Error> {
    let fits = match (operand, scope.register_type(operand)) {
        (_, Some(declared)) => {
            let mixed =
                is_integer(declared) && matches!(ty, Type::F32 | Type::F64) || is_integer(ty) && declared.is_float();
            declared.bits() == ty.bits() && !mixed
        }
        // Special registers and addresses are 32 bits at least, and never floating-point numbers.
        (Operand::Name(_) | Operand::Offset(..), None) => ty.bits() >= 32 && !ty.is_float(),
        (Operand::Single(_) | Operand::Double(_), None) => !is_integer(ty),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(scope.error(format!("operand {operand:?} does not fit type .{}", ty.name())))
}
