//! `set` and `setp`: which comparisons and results go with which types.

use super::{Compare, Comparison, Connective, Format, Outcome, Select, Truth, destination, source, truth};
use crate::machine::registers::Reg;
use crate::ptx::decode::integer::Number;
use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Instruction, Operand};
use crate::ptx::types::Kind;
use crate::ptx::types::Type::{self, B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, F64, S16, S32, S64, U16, U32, U64};

const ANY: &[Kind] = &[Kind::Bits, Kind::Unsigned, Kind::Signed, Kind::Float];
const ORDERED: &[Kind] = &[Kind::Unsigned, Kind::Signed, Kind::Float];
const UNSIGNED: &[Kind] = &[Kind::Unsigned];
const FLOAT: &[Kind] = &[Kind::Float];

/// Spelling, comparison, kinds of operands.
const COMPARISONS: &[(&str, Comparison, &[Kind])] = &[
    ("eq", Comparison::Equal, ANY),
    ("ne", Comparison::NotEqual, ANY),
    ("lt", Comparison::Less, ORDERED),
    ("le", Comparison::LessEqual, ORDERED),
    ("gt", Comparison::Greater, ORDERED),
    ("ge", Comparison::GreaterEqual, ORDERED),
    ("lo", Comparison::Less, UNSIGNED),
    ("ls", Comparison::LessEqual, UNSIGNED),
    ("hi", Comparison::Greater, UNSIGNED),
    ("hs", Comparison::GreaterEqual, UNSIGNED),
    ("equ", Comparison::EqualOrNan, FLOAT),
    ("neu", Comparison::NotEqualOrNan, FLOAT),
    ("ltu", Comparison::LessOrNan, FLOAT),
    ("leu", Comparison::LessEqualOrNan, FLOAT),
    ("gtu", Comparison::GreaterOrNan, FLOAT),
    ("geu", Comparison::GreaterEqualOrNan, FLOAT),
    ("num", Comparison::Numbers, FLOAT),
    ("nan", Comparison::Nan, FLOAT),
];

const SCALARS: &[Type] = &[B16, B32, B64, U16, U32, U64, S16, S32, S64, F32, F64];

/// `set`: result types, the word for true, source types.
const RESULTS: &[(&[Type], u32, &[Type])] = &[
    (&[U32, S32], u32::MAX, SCALARS),
    (&[F32], 0x3f80_0000, SCALARS),
    (&[F16], 0x3c00, SCALARS),
    (&[Bf16], 0x3f80, SCALARS),
    (&[F16], 0x3c00, &[F16]),
    (&[Bf16], 0x3f80, &[Bf16]),
    (&[U16, S16], 0xffff, &[F16, Bf16]),
    (&[U32, S32], u32::MAX, &[F16, Bf16, F16x2, Bf16x2]),
    (&[F16x2], 0x3c00_3c00, &[F16x2]),
    (&[Bf16x2], 0x3f80_3f80, &[Bf16x2]),
];

/// What the words and the sources say, but for the destination.
struct Test {
    comparison: Comparison,
    format: Format,
    sources: [Reg; 2],
    combined: Option<(Connective, Truth)>,
}

pub(super) fn set(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    let result = modifiers.take_type()?;
    // Flushing comes with f16 results and with the others, but never with bf16.
    if matches!(result, Bf16 | Bf16x2) && modifiers.rest().any(|word| word == "ftz") {
        return Err(modifiers.error("modifier .ftz does not go with this type"));
    }
    let ty = modifiers.last_type().unwrap_or(result);
    let Some(row) = RESULTS.iter().find(|row| row.0.contains(&result) && row.2.contains(&ty)) else {
        return Err(modifiers.error(&format!("has no result .{} of .{}", result.name(), ty.name())));
    };
    let Test { comparison, format, sources, combined } = test(instruction, modifiers, scope)?;
    let outcome = Outcome::Word(destination(scope, &instruction.operands[0], result)?, row.1);
    Ok(Select::Compare(Compare { comparison, format, sources, combined, outcome }))
}

pub(super) fn set_predicate(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
) -> Result<Select, Error> {
    let Test { comparison, format, sources, combined } = test(instruction, modifiers, scope)?;
    let outcome = match &instruction.operands[0] {
        Operand::Pair(first, second) => {
            Outcome::Predicates(scope.predicate_destination(first)?, Some(scope.predicate_destination(second)?))
        }
        _ if format.is_packed() => return Err(modifiers.error("has two destinations, p|q")),
        only => Outcome::Predicates(scope.predicate_destination(only)?, None),
    };
    Ok(Select::Compare(Compare { comparison, format, sources, combined, outcome }))
}

fn test(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Test, Error> {
    let row = modifiers.take_with(|word| COMPARISONS.iter().find(|row| row.0 == word));
    let Some((_, comparison, kinds)) = row else { return Err(modifiers.error("a comparison is missing")) };
    let connective = modifiers.take_with(Connective::parse);
    let flush = modifiers.take("ftz");
    let ty = modifiers.take_type()?;
    let format = match ty {
        F32 => Format::F32 { flush },
        F64 => Format::F64,
        F16 => Format::F16 { flush },
        Bf16 => Format::Bf16,
        F16x2 => Format::F16x2 { flush },
        Bf16x2 => Format::Bf16x2,
        _ => match Number::of(ty).filter(|_| SCALARS.contains(&ty)) {
            Some(number) => Format::Integer(number),
            None => return Err(modifiers.error(&format!("type .{} is not one of this instruction", ty.name()))),
        },
    };
    if flush && !matches!(ty, F32 | F16 | F16x2) {
        return Err(modifiers.error("modifier .ftz does not go with this type"));
    }
    if !kinds.contains(&ty.kind()) {
        return Err(modifiers.error("this comparison does not go with the type"));
    }
    let count = if connective.is_some() { 4 } else { 3 };
    scope.expect_operands(instruction, count..=count)?;
    let operands = &instruction.operands;
    let sources = [source(scope, &operands[1], ty)?, source(scope, &operands[2], ty)?];
    let combined = match connective {
        Some(connective) => Some((connective, truth(scope, &operands[3])?)),
        None => None,
    };
    Ok(Test { comparison: *comparison, format, sources, combined })
}
