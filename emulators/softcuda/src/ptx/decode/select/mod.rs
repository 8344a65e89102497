//! Moves, comparisons, selections, and the logic of predicates.

mod compare;
mod moves;

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::Type;
use super::integer::{Number, destination, source};
use super::modifiers::Modifiers;
use super::scope::{Condition, Scope};
use crate::count::Class;
use crate::machine::registers::{Pred, Reg};

/// A predicate as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// A register, maybe negated.
    Register(Condition),
    /// The same in every lane.
    Constant(bool),
}

/// A connective of two predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connective {
    /// `.and`
    And,
    /// `.or`
    Or,
    /// `.xor`
    Xor,
}

impl Connective {
    /// The connective with this spelling.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            _ => return None,
        })
    }
}

/// A comparison. Without `OrNan` it is false if an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    EqualOrNan,
    NotEqualOrNan,
    LessOrNan,
    LessEqualOrNan,
    GreaterOrNan,
    GreaterEqualOrNan,
    /// Neither is NaN.
    Numbers,
    /// One is NaN.
    Nan,
}

/// What is compared, and whether subnormal numbers count as zero (`flush`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Format {
    Integer(Number),
    F32 { flush: bool },
    F64,
    F16 { flush: bool },
    Bf16,
    F16x2 { flush: bool },
    Bf16x2,
}

impl Format {
    /// Whether two numbers in the halves of a word are compared.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::F16x2 { .. } | Self::Bf16x2)
    }
}

/// Where the outcome of a comparison goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `setp`: the outcome, and its opposite (of packed numbers: that of the high half).
    Predicates(Pred, Option<Pred>),
    /// `set`: this word if it holds (packed numbers: half by half), else zero.
    Word(Reg, u32),
}

/// `set` and `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The comparison.
    pub comparison: Comparison,
    /// What is compared.
    pub format: Format,
    /// The left and the right side.
    pub sources: [Reg; 2],
    /// What the outcome is combined with.
    pub combined: Option<(Connective, Truth)>,
    /// Where it goes.
    pub outcome: Outcome,
}

/// A move, comparison or selection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Select {
    /// `mov` of a register as wide as the destination.
    Move {
        /// Where to.
        destination: Reg,
        /// Where from.
        source: Reg,
    },
    /// `mov` of a special register wider than the type.
    Truncate {
        /// Where to.
        destination: Reg,
        /// Where from.
        source: Reg,
        /// Bits kept, below 64.
        bits: u32,
    },
    /// `mov d, {a, ...}`, the first element lowest.
    Pack {
        /// Where to.
        destination: Reg,
        /// The elements.
        elements: [Reg; 4],
        /// How many.
        count: u32,
        /// Bits of each.
        bits: u32,
    },
    /// `mov {d, ...}, a`, the first element lowest.
    Unpack {
        /// The elements; `None` for `_` and for those beyond the count.
        elements: [Option<Reg>; 4],
        /// Where from.
        source: Reg,
        /// Bits of each.
        bits: u32,
    },
    /// `mov.pred`, `not.pred`.
    MovePredicate {
        /// Where to.
        destination: Pred,
        /// Where from.
        source: Truth,
        /// `not.pred`.
        negated: bool,
    },
    /// `mov.pred` of a special register: not zero.
    WordToPredicate {
        /// Where to.
        destination: Pred,
        /// Where from.
        source: Reg,
    },
    /// `and.pred`, `or.pred`, `xor.pred`.
    Logic {
        /// Which.
        connective: Connective,
        /// Where to.
        destination: Pred,
        /// Left and right.
        sources: [Truth; 2],
    },
    /// `set`, `setp`.
    Compare(Compare),
    /// `selp`: the first source where the predicate holds, else the second.
    Choose {
        /// Where to.
        destination: Reg,
        /// The sources.
        sources: [Reg; 2],
        /// The predicate.
        truth: Truth,
    },
    /// `slct`: the first source where the selector is zero or more, else the second.
    ChooseBySign {
        /// Where to.
        destination: Reg,
        /// The sources.
        sources: [Reg; 2],
        /// The selector, a word.
        selector: Reg,
        /// The selector is f32: `Some(true)` flushes subnormal numbers to zero. `None`: s32.
        float: Option<bool>,
    },
}

impl Select {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        match self {
            Self::Compare(compare) => match compare.format {
                Format::Integer(_) => Class::Move,
                Format::F32 { .. } => Class::Float32,
                Format::F64 => Class::Float64,
                Format::F16 { .. } | Format::Bf16 | Format::F16x2 { .. } | Format::Bf16x2 => Class::Half,
            },
            _ => Class::Move,
        }
    }
}

/// Types of `selp` and `slct`.
const SELECTED: &[Type] = &[
    Type::B16,
    Type::B32,
    Type::B64,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F32,
    Type::F64,
];

/// Decodes. Moves of addresses in the frame, of functions, and of special registers that change are not decoded here.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    match instruction.opcode.first().map_or("", AsRef::as_ref) {
        "mov" => moves::decode(instruction, modifiers, scope),
        "set" => compare::set(instruction, modifiers, scope),
        "setp" => compare::set_predicate(instruction, modifiers, scope),
        "selp" => choose(instruction, modifiers, scope),
        "slct" => choose_by_sign(instruction, modifiers, scope),
        name => logic(name, instruction, modifiers, scope),
    }
}

/// A predicate, `!p`, or an integer: true unless zero.
fn truth(scope: &mut Scope, operand: &Operand) -> Result<Truth, Error> {
    match operand {
        Operand::Integer(value) => Ok(Truth::Constant(*value != 0)),
        _ => scope.condition(operand).map(Truth::Register),
    }
}

/// Takes the type, which must be one of these.
fn type_among(modifiers: &mut Modifiers, types: &[Type]) -> Result<Type, Error> {
    let ty = modifiers.take_type()?;
    if types.contains(&ty) {
        return Ok(ty);
    }
    Err(modifiers.error(&format!("type .{} is not one of this instruction", ty.name())))
}

fn logic(name: &str, instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    type_among(modifiers, &[Type::Pred])?;
    let count = if name == "not" { 2 } else { 3 };
    scope.expect_operands(instruction, count..=count)?;
    let destination = scope.predicate_destination(&instruction.operands[0])?;
    let first = truth(scope, &instruction.operands[1])?;
    if name == "not" {
        return Ok(Select::MovePredicate { destination, source: first, negated: true });
    }
    let Some(connective) = Connective::parse(name) else { return Err(modifiers.error("is not supported")) };
    let second = truth(scope, &instruction.operands[2])?;
    Ok(Select::Logic { connective, destination, sources: [first, second] })
}

fn choose(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    let ty = type_among(modifiers, SELECTED)?;
    scope.expect_operands(instruction, 4..=4)?;
    let operands = &instruction.operands;
    let destination = destination(scope, &operands[0], ty)?;
    let sources = [source(scope, &operands[1], ty)?, source(scope, &operands[2], ty)?];
    Ok(Select::Choose { destination, sources, truth: truth(scope, &operands[3])? })
}

fn choose_by_sign(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Select, Error> {
    let flush = modifiers.take("ftz");
    let ty = type_among(modifiers, SELECTED)?;
    let of_selector = type_among(modifiers, &[Type::S32, Type::F32])?;
    let float = (of_selector == Type::F32).then_some(flush);
    if flush && float.is_none() {
        return Err(modifiers.error("modifier .ftz is for a selector of type .f32"));
    }
    scope.expect_operands(instruction, 4..=4)?;
    let operands = &instruction.operands;
    let destination = destination(scope, &operands[0], ty)?;
    let sources = [source(scope, &operands[1], ty)?, source(scope, &operands[2], ty)?];
    let selector = source(scope, &operands[3], of_selector)?;
    Ok(Select::ChooseBySign { destination, sources, selector, float })
}
