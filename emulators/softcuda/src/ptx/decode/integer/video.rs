//! Video instructions (`vadd`, `vabsdiff4`, ...): sums and the like of a word, or of its halves or bytes, with a second
//! operation on a third source.

use super::{Integer, Number, Operation, destination, source};
use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Instruction};
use crate::ptx::types::Type;

/// What is done with two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Primary {
    Add,
    Subtract,
    AbsoluteDifference,
    Minimum,
    Maximum,
    /// Rounded up; of unsigned numbers.
    Average,
}

/// What is done with the result and the third source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Secondary {
    Add,
    Minimum,
    Maximum,
}

/// A video instruction without its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Video {
    /// The first operation.
    pub primary: Primary,
    /// Numbers in a word: 1, 2 or 4.
    pub parts: u32,
    /// The result, `a` and `b` are signed.
    pub signed: [bool; 3],
    /// The first operation's results are limited to the range of the result's type in that many bits.
    pub saturate: bool,
    /// The second operation; the sum of the parts is added.
    pub secondary: Option<Secondary>,
}

const PRIMARY: &[(&str, Primary)] = &[
    ("vadd", Primary::Add),
    ("vsub", Primary::Subtract),
    ("vabsdiff", Primary::AbsoluteDifference),
    ("vmin", Primary::Minimum),
    ("vmax", Primary::Maximum),
    ("vavrg", Primary::Average),
];

/// The opcodes of this file.
pub const OPCODES: &[&str] = &[
    "vadd",
    "vsub",
    "vabsdiff",
    "vmin",
    "vmax",
    "vadd2",
    "vsub2",
    "vabsdiff2",
    "vmin2",
    "vmax2",
    "vavrg2",
    "vadd4",
    "vsub4",
    "vabsdiff4",
    "vmin4",
    "vmax4",
    "vavrg4",
];

/// Decodes. Operands are whole registers: selected bytes and halves (`a.b3`, `d.h1`) are not supported.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub(super) fn decode(
    instruction: &Instruction,
    name: &str,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
) -> Result<Integer, Error> {
    let stem = name.trim_end_matches(['2', '4']);
    let parts = name[stem.len()..].parse().unwrap_or(1);
    let Some(&(_, primary)) = PRIMARY.iter().find(|row| row.0 == stem) else {
        return Err(modifiers.error("is not supported"));
    };
    let types = [modifiers.take_type()?, modifiers.take_type()?, modifiers.take_type()?];
    if !types.iter().all(|ty| matches!(ty, Type::U32 | Type::S32)) {
        return Err(modifiers.error("takes .u32 and .s32"));
    }
    if primary == Primary::Average && types.contains(&Type::S32) {
        return Err(modifiers.error("averages of signed numbers are not supported"));
    }
    let saturate = modifiers.take("sat");
    let secondary = modifiers.take_with(|word| match word {
        "add" => Some(Secondary::Add),
        "min" if parts == 1 => Some(Secondary::Minimum),
        "max" if parts == 1 => Some(Secondary::Maximum),
        _ => None,
    });
    // Of several parts the third source is there always: parts that are not selected would come from it.
    let number = if parts > 1 || secondary.is_some() { 3 } else { 2 };
    scope.expect_operands(instruction, number + 1..=number + 1)?;
    let operands = &instruction.operands;
    let destination = destination(scope, &operands[0], types[0])?;
    let mut sources = [destination; 4];
    for (place, ty) in [types[1], types[2], types[0]].into_iter().enumerate().take(number) {
        sources[place] = source(scope, &operands[place + 1], ty)?;
    }
    let signed = types.map(|ty| ty == Type::S32);
    let video = Video { primary, parts, signed, saturate, secondary };
    Ok(Integer { operation: Operation::Video(video), number: Number::U32, destination, sources })
}
