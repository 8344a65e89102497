//! `min` and `max` with their modifiers, which f32 and the half formats share.

use crate::machine::registers::Reg;
use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Instruction};
use crate::ptx::types::Type;

/// `min` or `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a modifier of its own")]
pub struct Extremum {
    /// `min`.
    pub minimum: bool,
    /// `.NaN`: one NaN among the sources makes the result NaN. Otherwise NaN loses against any number.
    pub propagate: bool,
    /// `.abs`, alone or after `.xorsign`: magnitudes are compared and returned.
    pub absolute: bool,
    /// `.xorsign`: the result's sign is the exclusive or of the sources' signs.
    pub exclusive_sign: bool,
    /// `.ftz`: subnormal sources become zeros of their sign.
    pub flush: bool,
    /// The result.
    pub destination: Reg,
    /// The operands.
    pub sources: [Reg; 2],
    /// The third operand of the three-input form.
    pub third: Option<Reg>,
}

/// The types with `.ftz`.
const FLUSHED: &[Type] = &[Type::F32, Type::F16, Type::F16x2];

/// Decodes what stands after the type.
///
/// # Errors
/// An operand or modifier that the instruction does not take.
pub fn decode(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    ty: Type,
) -> Result<Extremum, Error> {
    let minimum = instruction.opcode.first().map(AsRef::as_ref) == Some("min");
    // Three inputs exist for f32 only, where they take .abs alone; two take .xorsign.abs.
    scope.expect_operands(instruction, 3..=if ty == Type::F32 { 4 } else { 3 })?;
    let three = instruction.operands.len() == 4;
    let flush = FLUSHED.contains(&ty) && modifiers.take("ftz");
    let propagate = modifiers.take("NaN");
    let exclusive_sign = !three && modifiers.take("xorsign");
    let absolute = (three || exclusive_sign) && modifiers.take("abs");
    if exclusive_sign && !absolute {
        return Err(modifiers.error(".xorsign needs .abs"));
    }
    Ok(Extremum {
        minimum,
        propagate,
        absolute,
        exclusive_sign,
        flush,
        destination: scope.destination(scope.operand(instruction, 0)?, ty)?,
        sources: [scope.source(scope.operand(instruction, 1)?, ty)?, scope.source(scope.operand(instruction, 2)?, ty)?],
        third: if three { Some(scope.source(scope.operand(instruction, 3)?, ty)?) } else { None },
    })
}
