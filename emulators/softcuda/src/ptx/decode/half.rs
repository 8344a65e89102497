//! f16, bf16 and their packed pairs.

use super::super::syntax::{Error, Instruction};
use super::super::types::Type;
use super::float::extremum::{self, Extremum};
use super::float::operator::{Form, Operator, RoundingRule};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::count::Class;
use crate::machine::registers::Reg;

/// A format of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE binary16: 5 bits of exponent, 10 of fraction.
    F16,
    /// The upper half of binary32: 8 bits of exponent, 7 of fraction.
    Bf16,
}

impl Format {
    /// The format of a type, and whether the type is a pair.
    pub fn of(ty: Type) -> Option<(Self, bool)> {
        Some(match ty {
            Type::F16 => (Self::F16, false),
            Type::F16x2 => (Self::F16, true),
            Type::Bf16 => (Self::Bf16, false),
            Type::Bf16x2 => (Self::Bf16, true),
            _ => return None,
        })
    }
}

/// An operation of this class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Half {
    /// The format of operands and result.
    pub format: Format,
    /// Two numbers in a register.
    pub packed: bool,
    /// What is computed.
    pub operation: Operation,
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// Arithmetic, rounded to nearest even.
    Compute(Compute),
    /// `min` and `max`.
    Extremum(Extremum),
    /// `ex2` and `tanh`.
    Approximation {
        /// Which of the two.
        function: Function,
        /// `.ftz`: subnormal sources and results become zeros of their sign.
        flush: bool,
        /// The result.
        destination: Reg,
        /// The operand.
        source: Reg,
    },
}

/// What is approximated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// 2 to the power of the operand.
    Exponential,
    /// The hyperbolic tangent.
    HyperbolicTangent,
}

/// What happens to a result in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clamp {
    /// Nothing.
    None,
    /// `.sat`: to [0, 1], and NaN becomes 0.
    Saturate,
    /// `.relu`: negative results become 0.
    Relu,
}

/// Arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compute {
    /// What is computed.
    pub operator: Operator,
    /// `.ftz`: subnormal sources and results become zeros of their sign.
    pub flush: bool,
    /// What happens to the result.
    pub clamp: Clamp,
    /// The result.
    pub destination: Reg,
    /// The operands; those beyond the operator's number repeat the first.
    pub sources: [Reg; 3],
}

const F16: &[Type] = &[Type::F16, Type::F16x2];
const BF16: &[Type] = &[Type::Bf16, Type::Bf16x2];

/// What exists.
const FORMS: &[Form] = &[
    Form::new("add", Operator::Add, F16, RoundingRule::AnyNearest, &["ftz", "sat"]),
    Form::new("sub", Operator::Subtract, F16, RoundingRule::AnyNearest, &["ftz", "sat"]),
    Form::new("mul", Operator::Multiply, F16, RoundingRule::AnyNearest, &["ftz", "sat"]),
    Form::new("fma", Operator::Fused, F16, RoundingRule::NeededNearest, &["ftz", "sat", "relu"]),
    Form::new("abs", Operator::Absolute, F16, RoundingRule::Exact, &["ftz"]),
    Form::new("neg", Operator::Negate, F16, RoundingRule::Exact, &["ftz"]),
    Form::new("add", Operator::Add, BF16, RoundingRule::AnyNearest, &[]),
    Form::new("sub", Operator::Subtract, BF16, RoundingRule::AnyNearest, &[]),
    Form::new("mul", Operator::Multiply, BF16, RoundingRule::AnyNearest, &[]),
    Form::new("fma", Operator::Fused, BF16, RoundingRule::NeededNearest, &["relu"]),
    Form::new("abs", Operator::Absolute, BF16, RoundingRule::Exact, &[]),
    Form::new("neg", Operator::Negate, BF16, RoundingRule::Exact, &[]),
];

impl Half {
    /// Results of the special function unit per lane.
    pub fn special_function_results(&self) -> u32 {
        match self.operation {
            Operation::Approximation { .. } => 1 + u32::from(self.packed),
            _ => 0,
        }
    }

    /// The class it is counted in.
    pub fn class(&self) -> Class {
        match self.operation {
            Operation::Approximation { .. } => Class::SpecialFunction,
            _ => Class::Half,
        }
    }
}

/// Decodes.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Half, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    let ty = modifiers.take_type()?;
    let Some((format, packed)) = Format::of(ty) else {
        return Err(modifiers.error(&format!("is not supported for .{}", ty.name())));
    };
    let operation = match name {
        "min" | "max" => Operation::Extremum(extremum::decode(instruction, modifiers, scope, ty)?),
        "ex2" => approximation(instruction, modifiers, scope, ty, Function::Exponential)?,
        "tanh" => approximation(instruction, modifiers, scope, ty, Function::HyperbolicTangent)?,
        _ => Operation::Compute(compute(instruction, modifiers, scope, ty)?),
    };
    Ok(Half { format, packed, operation })
}

fn compute(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    ty: Type,
) -> Result<Compute, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    let form = Form::find(FORMS, name, ty, modifiers)?;
    form.rounding(modifiers)?;
    let [flush, saturate, relu] = ["ftz", "sat", "relu"].map(|word| form.takes(word, modifiers));
    let clamp = match (saturate, relu) {
        (false, false) => Clamp::None,
        (true, false) => Clamp::Saturate,
        (false, true) => Clamp::Relu,
        (true, true) => return Err(modifiers.error(".sat and .relu exclude each other")),
    };
    let number = form.operator.operands();
    scope.expect_operands(instruction, number + 1..=number + 1)?;
    let destination = scope.destination(scope.operand(instruction, 0)?, ty)?;
    let mut sources = [destination; 3];
    for place in 0..3 {
        sources[place] =
            if place < number { scope.source(scope.operand(instruction, place + 1)?, ty)? } else { sources[0] };
    }
    Ok(Compute { operator: form.operator, flush, clamp, destination, sources })
}

/// `.ftz` stands with `ex2` of bf16, always, and nowhere else.
fn approximation(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    ty: Type,
    function: Function,
) -> Result<Operation, Error> {
    if !modifiers.take("approx") {
        return Err(modifiers.error("needs .approx"));
    }
    let flush = function == Function::Exponential && BF16.contains(&ty);
    if flush && !modifiers.take("ftz") {
        return Err(modifiers.error("needs .ftz"));
    }
    scope.expect_operands(instruction, 2..=2)?;
    Ok(Operation::Approximation {
        function,
        flush,
        destination: scope.destination(scope.operand(instruction, 0)?, ty)?,
        source: scope.source(scope.operand(instruction, 1)?, ty)?,
    })
}
