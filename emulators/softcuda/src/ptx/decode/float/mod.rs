//! f32, f32x2 and f64 arithmetic, the approximations, and the properties that `testp` asks for.

pub mod approximation;
pub mod extremum;
pub mod operator;

use super::super::syntax::{Error, Instruction};
use super::super::types::{Rounding, Type};
use super::half::Format;
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::count::Class;
use crate::machine::registers::{Pred, Reg};
use approximation::Approximation;
use extremum::Extremum;
use operator::{Form, Operator, RoundingRule};

/// An operation of this class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Float {
    /// f32 and f32x2.
    Single(Single),
    /// f64.
    Double(Double),
    /// `min` and `max` of f32.
    Extremum(Extremum),
    /// An approximation by the special function unit, f32 or f64.
    Approximation(Approximation),
    /// `testp`.
    Test(Test),
}

/// f32 or f32x2 arithmetic, also with sources of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Single {
    /// What is computed.
    pub operator: Operator,
    /// f32x2: two numbers in a long register.
    pub packed: bool,
    /// The factors (of `fma`) or the first operand (of `add` and `sub`) are numbers of this format.
    pub narrow: Option<Format>,
    /// How the result is rounded.
    pub rounding: Rounding,
    /// `.ftz`: subnormal sources and results become zeros of their sign.
    pub flush: bool,
    /// `.sat`: the result is clamped to [0, 1], and NaN becomes 0.
    pub saturate: bool,
    /// The result.
    pub destination: Reg,
    /// The operands; those beyond the operator's number repeat the first.
    pub sources: [Reg; 3],
}

/// f64 arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Double {
    /// What is computed.
    pub operator: Operator,
    /// How the result is rounded.
    pub rounding: Rounding,
    /// The result.
    pub destination: Reg,
    /// The operands; those beyond the operator's number repeat the first.
    pub sources: [Reg; 3],
}

/// A property of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Neither infinite nor NaN.
    Finite,
    /// Plus or minus infinity.
    Infinite,
    /// Not NaN.
    Number,
    /// NaN.
    NotANumber,
    /// Neither NaN nor infinite nor subnormal; zeros are normal here.
    Normal,
    /// Subnormal; zeros are not.
    Subnormal,
}

/// Spellings of `testp`.
const PROPERTIES: &[(&str, Property)] = &[
    ("finite", Property::Finite),
    ("infinite", Property::Infinite),
    ("number", Property::Number),
    ("notanumber", Property::NotANumber),
    ("normal", Property::Normal),
    ("subnormal", Property::Subnormal),
];

/// `testp`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// What is asked.
    pub property: Property,
    /// Of an f64 rather than an f32.
    pub double: bool,
    /// The answer.
    pub destination: Pred,
    /// The number.
    pub source: Reg,
}

const BOTH: &[Type] = &[Type::F32, Type::F64];
const PAIR: &[Type] = &[Type::F32x2];

/// What exists: a name may have several rows, for different types.
const FORMS: &[Form] = &[
    Form::new("add", Operator::Add, &[Type::F32], RoundingRule::Any, &["ftz", "sat"]),
    Form::new("sub", Operator::Subtract, &[Type::F32], RoundingRule::Any, &["ftz", "sat"]),
    Form::new("mul", Operator::Multiply, &[Type::F32], RoundingRule::Any, &["ftz", "sat"]),
    Form::new("add", Operator::Add, PAIR, RoundingRule::Any, &["ftz"]),
    Form::new("sub", Operator::Subtract, PAIR, RoundingRule::Any, &["ftz"]),
    Form::new("mul", Operator::Multiply, PAIR, RoundingRule::Any, &["ftz"]),
    Form::new("fma", Operator::Fused, &[Type::F32], RoundingRule::Needed, &["ftz", "sat"]),
    Form::new("mad", Operator::Fused, &[Type::F32], RoundingRule::Needed, &["ftz", "sat"]),
    Form::new("fma", Operator::Fused, PAIR, RoundingRule::Needed, &["ftz"]),
    Form::new("div", Operator::Divide, &[Type::F32], RoundingRule::Needed, &["ftz"]),
    Form::new("rcp", Operator::Reciprocal, &[Type::F32], RoundingRule::Needed, &["ftz"]),
    Form::new("sqrt", Operator::SquareRoot, &[Type::F32], RoundingRule::Needed, &["ftz"]),
    Form::new("abs", Operator::Absolute, &[Type::F32], RoundingRule::Exact, &["ftz"]),
    Form::new("neg", Operator::Negate, &[Type::F32], RoundingRule::Exact, &["ftz"]),
    Form::new("add", Operator::Add, &[Type::F64], RoundingRule::Any, &[]),
    Form::new("sub", Operator::Subtract, &[Type::F64], RoundingRule::Any, &[]),
    Form::new("mul", Operator::Multiply, &[Type::F64], RoundingRule::Any, &[]),
    Form::new("fma", Operator::Fused, &[Type::F64], RoundingRule::Needed, &[]),
    Form::new("mad", Operator::Fused, &[Type::F64], RoundingRule::Needed, &[]),
    Form::new("div", Operator::Divide, &[Type::F64], RoundingRule::Needed, &[]),
    Form::new("rcp", Operator::Reciprocal, &[Type::F64], RoundingRule::Needed, &[]),
    Form::new("sqrt", Operator::SquareRoot, &[Type::F64], RoundingRule::Needed, &[]),
    Form::new("min", Operator::Minimum, &[Type::F64], RoundingRule::Exact, &[]),
    Form::new("max", Operator::Maximum, &[Type::F64], RoundingRule::Exact, &[]),
    Form::new("abs", Operator::Absolute, &[Type::F64], RoundingRule::Exact, &[]),
    Form::new("neg", Operator::Negate, &[Type::F64], RoundingRule::Exact, &[]),
    Form::new("copysign", Operator::CopySign, BOTH, RoundingRule::Exact, &[]),
];

/// f32 results of 16-bit operands (`fma.rn.f32.f16`): the type is that of the result.
const MIXED_FORMS: &[Form] = &[
    Form::new("add", Operator::Add, &[Type::F32], RoundingRule::Any, &["sat"]),
    Form::new("sub", Operator::Subtract, &[Type::F32], RoundingRule::Any, &["sat"]),
    Form::new("fma", Operator::Fused, &[Type::F32], RoundingRule::Needed, &["sat"]),
];

impl Float {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        match self {
            Self::Single(_) | Self::Extremum(_) | Self::Test(Test { double: false, .. }) => Class::Float32,
            Self::Double(_) | Self::Test(Test { double: true, .. }) => Class::Float64,
            Self::Approximation(_) => Class::SpecialFunction,
        }
    }

    /// Results of the special function unit per lane.
    pub fn special_function_results(&self) -> u32 {
        u32::from(matches!(self, Self::Approximation(_)))
    }
}

/// Decodes.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Float, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    let ty = modifiers.take_type()?;
    if name == "testp" {
        return test(instruction, modifiers, scope, ty);
    }
    if matches!(name, "min" | "max") && ty == Type::F32 {
        return Ok(Float::Extremum(extremum::decode(instruction, modifiers, scope, ty)?));
    }
    if let Some(approximation) = approximation::decode(instruction, modifiers, scope, ty)? {
        return Ok(Float::Approximation(approximation));
    }
    let narrow = match modifiers.take_with(Type::parse) {
        None => None,
        Some(narrow) => match Format::of(narrow) {
            Some((format, false)) => Some((format, narrow)),
            _ => return Err(modifiers.error(&format!("does not take .{} operands", narrow.name()))),
        },
    };
    let form = Form::find(if narrow.is_some() { MIXED_FORMS } else { FORMS }, name, ty, modifiers)?;
    let rounding = form.rounding(modifiers)?;
    let [flush, saturate] = ["ftz", "sat"].map(|word| form.takes(word, modifiers));
    let operator = form.operator;
    let number = operator.operands();
    scope.expect_operands(instruction, number + 1..=number + 1)?;
    let destination = scope.destination(scope.operand(instruction, 0)?, ty)?;
    let narrow_operands = match narrow {
        None => 0,
        Some(_) if operator == Operator::Fused => 2,
        Some(_) => 1,
    };
    let mut sources = [destination; 3];
    for (place, source) in sources.iter_mut().enumerate().take(number) {
        let ty = narrow.filter(|_| place < narrow_operands).map_or(ty, |narrow| narrow.1);
        *source = scope.source(scope.operand(instruction, place + 1)?, ty)?;
    }
    for place in number..3 {
        sources[place] = sources[0];
    }
    Ok(match ty {
        Type::F64 => Float::Double(Double { operator, rounding, destination, sources }),
        _ => Float::Single(Single {
            operator,
            packed: ty == Type::F32x2,
            narrow: narrow.map(|narrow| narrow.0),
            rounding,
            flush,
            saturate,
            destination,
            sources,
        }),
    })
}

fn test(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope, ty: Type) -> Result<Float, Error> {
    if !BOTH.contains(&ty) {
        return Err(modifiers.error("is for .f32 and .f64"));
    }
    let property = modifiers
        .take_with(|word| PROPERTIES.iter().find(|row| row.0 == word).map(|row| row.1))
        .ok_or_else(|| modifiers.error("needs a property, such as .finite"))?;
    scope.expect_operands(instruction, 2..=2)?;
    Ok(Float::Test(Test {
        property,
        double: ty == Type::F64,
        destination: scope.predicate_destination(scope.operand(instruction, 0)?)?,
        source: scope.source(scope.operand(instruction, 1)?, ty)?,
    }))
}
