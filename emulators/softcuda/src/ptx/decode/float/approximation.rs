//! The approximations of f32 and f64 by the special function unit.

use crate::machine::registers::Reg;
use crate::ptx::decode::modifiers::Modifiers;
use crate::ptx::decode::scope::Scope;
use crate::ptx::syntax::{Error, Instruction};
use crate::ptx::types::Type;

/// What is approximated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `div.approx.f32`: the quotient; for divisors beyond 2^126 the product with a zero.
    Quotient,
    /// `div.full.f32`: the quotient over the full range.
    FullQuotient,
    /// `rcp.approx.f32`.
    Reciprocal,
    /// `sqrt.approx.f32`.
    SquareRoot,
    /// `rsqrt.approx.f32`.
    ReciprocalSquareRoot,
    /// `sin.approx.f32`, of radians.
    Sine,
    /// `cos.approx.f32`, of radians.
    Cosine,
    /// `lg2.approx.f32`: the logarithm to the base 2.
    Logarithm,
    /// `ex2.approx.f32`: 2 to the power of the operand.
    Exponential,
    /// `tanh.approx.f32`.
    HyperbolicTangent,
    /// `rcp.approx.ftz.f64`: the upper 32 bits of the reciprocal of the upper 32 bits.
    ReciprocalOfUpperHalf,
    /// `rsqrt.approx.f64`.
    ReciprocalSquareRootDouble,
    /// `rsqrt.approx.ftz.f64`: the same of and for the upper 32 bits.
    ReciprocalSquareRootOfUpperHalf,
}

impl Function {
    /// Whether operand and result are f64.
    pub fn is_double(self) -> bool {
        matches!(
            self,
            Self::ReciprocalOfUpperHalf | Self::ReciprocalSquareRootDouble | Self::ReciprocalSquareRootOfUpperHalf
        )
    }
}

/// An approximation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Approximation {
    /// What is approximated.
    pub function: Function,
    /// `.ftz`: subnormal sources and results become zeros of their sign.
    pub flush: bool,
    /// The result.
    pub destination: Reg,
    /// The operands; the second is that of a quotient, and repeats the first elsewhere.
    pub sources: [Reg; 2],
}

/// Whether `.ftz` may, must or must not stand.
#[derive(Clone, Copy, PartialEq)]
enum Flush {
    May,
    Must,
    Never,
}

/// Opcode, the word after it, type, `.ftz`.
const FUNCTIONS: &[(&str, &str, Type, Flush, Function)] = &[
    ("div", "approx", Type::F32, Flush::May, Function::Quotient),
    ("div", "full", Type::F32, Flush::May, Function::FullQuotient),
    ("rcp", "approx", Type::F32, Flush::May, Function::Reciprocal),
    ("sqrt", "approx", Type::F32, Flush::May, Function::SquareRoot),
    ("rsqrt", "approx", Type::F32, Flush::May, Function::ReciprocalSquareRoot),
    ("sin", "approx", Type::F32, Flush::May, Function::Sine),
    ("cos", "approx", Type::F32, Flush::May, Function::Cosine),
    ("lg2", "approx", Type::F32, Flush::May, Function::Logarithm),
    ("ex2", "approx", Type::F32, Flush::May, Function::Exponential),
    ("tanh", "approx", Type::F32, Flush::Never, Function::HyperbolicTangent),
    ("rcp", "approx", Type::F64, Flush::Must, Function::ReciprocalOfUpperHalf),
    ("rsqrt", "approx", Type::F64, Flush::Must, Function::ReciprocalSquareRootOfUpperHalf),
    ("rsqrt", "approx", Type::F64, Flush::Never, Function::ReciprocalSquareRootDouble),
];

/// Decodes what stands after the type; `None` if the instruction is not an approximation.
///
/// # Errors
/// An operand or modifier that the instruction does not take.
pub fn decode(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    ty: Type,
) -> Result<Option<Approximation>, Error> {
    let name = instruction.opcode.first().map_or("", AsRef::as_ref);
    let Some(word) = ["approx", "full"].into_iter().find(|word| modifiers.take(word)) else {
        return Ok(None);
    };
    let flush = modifiers.take("ftz");
    let row = FUNCTIONS.iter().find(|row| {
        (row.0, row.1, row.2) == (name, word, ty) && row.3 != if flush { Flush::Never } else { Flush::Must }
    });
    let Some((.., function)) = row else {
        let with = if flush { "with" } else { "without" };
        return Err(modifiers.error(&format!("there is no {name}.{word}.{} {with} .ftz", ty.name())));
    };
    let quotient = matches!(function, Function::Quotient | Function::FullQuotient);
    let number = 2 + usize::from(quotient);
    scope.expect_operands(instruction, number..=number)?;
    let destination = scope.destination(scope.operand(instruction, 0)?, ty)?;
    let first = scope.source(scope.operand(instruction, 1)?, ty)?;
    let second = if quotient { scope.source(scope.operand(instruction, 2)?, ty)? } else { first };
    Ok(Some(Approximation { function: *function, flush, destination, sources: [first, second] }))
}
