//! Integer and logic instructions: the operations, and how they are read from the text.

mod forms;
mod operands;
pub mod video;

pub(in crate::ptx::decode) use operands::{destination, source};

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::Type;
use super::modifiers::Modifiers;
use super::scope::{Condition, Scope};
use crate::count::Class;
use crate::machine::registers::{Pred, Reg};
use forms::{FORMS, Size};

/// How an operation reads the bits of its operands; `.b16` and its kin read as unsigned, packed types by their halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Number {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

impl Number {
    /// The number format of an integer or bit type; `None` for the others.
    pub fn of(ty: Type) -> Option<Self> {
        Some(match ty {
            Type::B16 | Type::U16 | Type::U16x2 => Self::U16,
            Type::S16 | Type::S16x2 => Self::S16,
            Type::B32 | Type::U32 => Self::U32,
            Type::S32 => Self::S32,
            Type::B64 | Type::U64 => Self::U64,
            Type::S64 => Self::S64,
            _ => return None,
        })
    }
}

/// Sums, products, quotients. In the comments `a`, `b`, `c` are the sources in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`, wrapping.
    Add,
    /// `a - b`, wrapping.
    Subtract,
    /// `a + b`, clamped to the range of s32.
    AddSaturating,
    /// `a - b`, clamped to the range of s32.
    SubtractSaturating,
    /// The low half of `a * b`.
    MultiplyLow,
    /// The high half of `a * b`.
    MultiplyHigh,
    /// `a * b` in twice the width.
    MultiplyWide,
    /// The low half of `a * b`, plus `c`.
    MultiplyAddLow,
    /// The high half of `a * b`, plus `c`.
    MultiplyAddHigh,
    /// The high half of `a * b`, plus `c`, clamped to the range of s32.
    MultiplyAddHighSaturating,
    /// `a * b + c` in twice the width.
    MultiplyAddWide,
    /// Bits 0 to 31 of the product of the low 24 bits.
    Multiply24Low,
    /// Bits 16 to 47 of the product of the low 24 bits.
    Multiply24High,
    /// `Multiply24Low` plus `c`.
    MultiplyAdd24Low,
    /// `Multiply24High` plus `c`.
    MultiplyAdd24High,
    /// `Multiply24High` plus `c`, clamped to the range of s32.
    MultiplyAdd24HighSaturating,
    /// `|a - b| + c`.
    SumOfAbsoluteDifference,
    /// `a / b` towards zero.
    Divide,
    /// What `a / b` leaves.
    Remainder,
    /// `|a|`, wrapping.
    Absolute,
    /// `-a`, wrapping.
    Negate,
    /// The lesser.
    Minimum,
    /// The greater.
    Maximum,
    /// The lesser, or zero if that is negative.
    MinimumRelu,
    /// The greater, or zero if that is negative.
    MaximumRelu,
    /// `Add` of both 16-bit halves.
    PackedAdd,
    /// `Minimum` of both 16-bit halves.
    PackedMinimum,
    /// `Maximum` of both 16-bit halves.
    PackedMaximum,
    /// `MinimumRelu` of both 16-bit halves.
    PackedMinimumRelu,
    /// `MaximumRelu` of both 16-bit halves.
    PackedMaximumRelu,
}

/// What an instruction of extended precision adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// `a + b + carry`.
    Add,
    /// `a - (b + borrow)`.
    Subtract,
    /// The low half of `a * b`, plus `c + carry`.
    ProductLow,
    /// The high half of `a * b`, plus `c + carry`.
    ProductHigh,
}

/// A sum that reads or writes the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// What is added.
    pub sum: Sum,
    /// The flag is added: `addc`, `subc`, `madc`.
    pub reads: bool,
    /// The flag is set: `.cc`.
    pub writes: bool,
}

/// What happens to positions and widths beyond 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `.clamp`
    Clamp,
    /// `.wrap`
    Wrap,
}

/// Logic, shifts, bit fields, searches for bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// `a & b`
    And,
    /// `a | b`
    Or,
    /// `a ^ b`
    Xor,
    /// `~a`
    Not,
    /// `a == 0`
    LogicalNot,
    /// `a << b`, zero from the width on.
    ShiftLeft,
    /// `a >> b`, zero or the sign from the width on.
    ShiftRight,
    /// Ones.
    Population,
    /// Zeros above the first one.
    LeadingZeros,
    /// Place of the first bit that is not the sign; all ones if there is none.
    FindLeading,
    /// The left shift that brings that bit to the top; all ones if there is none.
    FindLeadingShift,
    /// Place of the n-th one of `a` from bit `b`, n = `c`.
    FindNth,
    /// Bits in reverse order.
    Reverse,
    /// The field of `a` at bit `b`, `c` bits long.
    Extract,
    /// `b` with `a` in the field at bit `c`, `d` bits long.
    Insert,
    /// `a` extended from its low `b` bits.
    Extend(Range),
    /// `b` ones from bit `a`.
    Mask(Range),
    /// The upper word of `b:a << c`.
    FunnelLeft(Range),
    /// The lower word of `b:a >> c`.
    FunnelRight(Range),
}

/// How `prmt` reads its control operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permute {
    /// Four selectors of four bits; bit 3 replicates the sign of the byte.
    Selectors,
    /// Bits 0 and 1 pick one of four fixed lists of selectors.
    Lists([u16; 4]),
}

/// A scalar product of the small integers in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dot {
    /// `None`: `dp4a`, four bytes with four bytes. Else `dp2a`, two 16-bit numbers with the two bytes of `b` from this
    /// one on: 0 or 2.
    pub first_byte: Option<u8>,
    /// The numbers of `a` are signed.
    pub a_signed: bool,
    /// The numbers of `b` are signed.
    pub b_signed: bool,
}

/// `lop3` with a predicate destination: `(d != 0) op q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonZero {
    /// The destination.
    pub predicate: Pred,
    /// `.and`, not `.or`.
    pub and: bool,
    /// The other side.
    pub condition: Condition,
}

/// An integer operation without its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sums, products, quotients.
    Arithmetic(Arithmetic),
    /// With the carry flag.
    Carry(Carry),
    /// Logic, shifts, bit fields.
    Bits(Bits),
    /// `prmt`.
    Permute(Permute),
    /// `lop3`: bit `a << 2 | b << 1 | c` of the table is the result.
    Lookup(u8, Option<NonZero>),
    /// `dp4a`, `dp2a`.
    Dot(Dot),
    /// `vadd`, `vabsdiff4`, ...
    Video(video::Video),
}

/// An integer instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Integer {
    /// What is done.
    pub operation: Operation,
    /// How the operands are read.
    pub number: Number,
    /// Where the result goes.
    pub destination: Reg,
    /// The sources in order; the places that the operation does not use repeat the destination.
    pub sources: [Reg; 4],
}

impl Integer {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        Class::Integer
    }
}

/// Decodes.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Integer, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    match name {
        "lop3" => return lookup(instruction, modifiers, scope),
        name if video::OPCODES.contains(&name) => return video::decode(instruction, name, modifiers, scope),
        "dp4a" | "dp2a" => return dot(instruction, name, modifiers, scope),
        _ => {}
    }
    let has = |words: &[&str]| words.iter().all(|word| modifiers.rest().any(|other| other == *word));
    // Forms with more words stand before those with fewer.
    let Some(form) = FORMS.iter().find(|form| form.name == name && has(form.words)) else {
        return Err(modifiers.error("a mode is missing"));
    };
    for word in form.words {
        modifiers.take(word);
    }
    let ty = modifiers.take_type()?;
    // Packed types are another operation under the same name and words.
    let form = FORMS.iter().find(|other| other.name == name && other.words == form.words && other.types.contains(&ty));
    let Some((form, number)) = form.zip(Number::of(ty)) else {
        return Err(modifiers.error(&format!("type .{} is not one of this instruction", ty.name())));
    };
    scope.expect_operands(instruction, form.sources.len() + 1..=form.sources.len() + 1)?;
    let size = |size: Size| match size {
        Size::Same => ty,
        Size::Word => Type::B32,
        Size::Twice => twice(ty),
    };
    let destination = destination(scope, &instruction.operands[0], size(form.destination))?;
    let mut sources = [destination; 4];
    for (place, (operand, of)) in instruction.operands[1..].iter().zip(form.sources).enumerate() {
        sources[place] = source(scope, operand, size(*of))?;
    }
    Ok(Integer { operation: form.operation, number, destination, sources })
}

/// The type of a product without loss.
fn twice(ty: Type) -> Type {
    match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        _ => Type::S64,
    }
}

fn lookup(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Integer, Error> {
    let and = modifiers.take_with(|word| match word {
        "and" => Some(true),
        "or" => Some(false),
        _ => None,
    });
    let ty = modifiers.take_type()?;
    if ty != Type::B32 {
        return Err(modifiers.error("takes .b32"));
    }
    let count = if and.is_some() { 6 } else { 5 };
    scope.expect_operands(instruction, count..=count)?;
    let operands = &instruction.operands;
    let table = match &operands[4] {
        Operand::Integer(table) if (0..256).contains(table) => *table as u8,
        _ => return Err(modifiers.error("the table is an integer from 0 to 255")),
    };
    let (result, non_zero) = match (and, &operands[0]) {
        (None, result) => (result, None),
        (Some(and), Operand::Pair(result, predicate)) => {
            let predicate = scope.predicate_destination(predicate)?;
            let condition = scope.condition(&operands[5])?;
            (&**result, Some(NonZero { predicate, and, condition }))
        }
        _ => return Err(modifiers.error("the destination is d|p")),
    };
    let destination = destination(scope, result, ty)?;
    let mut sources = [destination; 4];
    for place in 0..3 {
        sources[place] = source(scope, &operands[place + 1], ty)?;
    }
    Ok(Integer { operation: Operation::Lookup(table, non_zero), number: Number::U32, destination, sources })
}

fn dot(instruction: &Instruction, name: &str, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Integer, Error> {
    let half = modifiers.take_with(|word| match word {
        "lo" if name == "dp2a" => Some(0),
        "hi" if name == "dp2a" => Some(2),
        _ => None,
    });
    if name == "dp2a" && half.is_none() {
        return Err(modifiers.error("a mode is missing"));
    }
    let (a, b) = (modifiers.take_type()?, modifiers.take_type()?);
    if ![a, b].iter().all(|ty| matches!(ty, Type::U32 | Type::S32)) {
        return Err(modifiers.error("takes .u32 and .s32"));
    }
    let sum = if a == Type::U32 && b == Type::U32 { Type::U32 } else { Type::S32 };
    scope.expect_operands(instruction, 4..=4)?;
    let operands = &instruction.operands;
    let destination = destination(scope, &operands[0], sum)?;
    let mut sources = [destination; 4];
    for (place, ty) in [a, b, sum].into_iter().enumerate() {
        sources[place] = source(scope, &operands[place + 1], ty)?;
    }
    let dot = Dot { first_byte: half, a_signed: a == Type::S32, b_signed: b == Type::S32 };
    Ok(Integer { operation: Operation::Dot(dot), number: Number::U32, destination, sources })
}
