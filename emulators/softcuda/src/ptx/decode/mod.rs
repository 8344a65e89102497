//! Syntax to the decoded form: one file per class of instructions, each with the class's operations and the words that
//! make them.

pub mod address;
pub mod asynchronous;
pub mod atomic;
pub mod barrier;
pub mod call;
pub mod code;
pub mod convert;
pub mod float;
pub mod fragment;
pub mod half;
pub mod integer;
pub mod matrix;
pub mod memory;
pub mod modifiers;
pub mod operands;
pub mod scope;
pub mod select;
pub mod special;
pub mod warp;
pub mod wmma;

use super::syntax::{Error, Instruction};
use super::types::Type;
use crate::count::Class;
use modifiers::Modifiers;
use scope::Scope;

/// Arithmetic: what reads and writes registers and nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic {
    /// Integers and logic.
    Integer(integer::Integer),
    /// f32, f32x2, f64, and the approximations.
    Float(float::Float),
    /// f16, bf16 and their packed forms.
    Half(half::Half),
    /// `cvt`.
    Convert(convert::Convert),
    /// Moves, comparisons, selections, predicates.
    Select(select::Select),
}

impl Arithmetic {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        match self {
            Self::Integer(_) => Class::Integer,
            Self::Float(operation) => operation.class(),
            Self::Half(operation) => operation.class(),
            Self::Convert(_) => Class::Convert,
            Self::Select(operation) => operation.class(),
        }
    }
}

/// Opcodes that exist for integers and for floating-point types: the type decides.
const BY_TYPE: &[&str] = &["add", "sub", "mul", "mad", "fma", "div", "abs", "neg", "min", "max"];
const INTEGER: &[&str] = &[
    "addc", "subc", "madc", "mul24", "mad24", "sad", "rem", "popc", "clz", "bfind", "fns", "brev", "bfe", "bfi",
    "szext", "bmsk", "dp4a", "dp2a", "cnot", "shl", "shr", "shf", "lop3", "prmt",
];
/// `and`, `or`, `xor`, `not` exist for predicates too.
const LOGIC: &[&str] = &["and", "or", "xor", "not"];
const FLOAT: &[&str] = &["rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh", "copysign", "testp"];
const SELECT: &[&str] = &["mov", "set", "setp", "selp", "slct"];

/// Decodes an arithmetic instruction; `None` if the opcode is not arithmetic.
///
/// # Errors
/// An operand, type or modifier that the instruction does not take.
pub fn arithmetic(instruction: &Instruction, scope: &mut Scope) -> Result<Option<Arithmetic>, Error> {
    let Some(name) = instruction.opcode.first().map(AsRef::as_ref) else { return Ok(None) };
    let mut modifiers = Modifiers::new(instruction);
    let last = modifiers.last_type();
    let half = matches!(last, Some(Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2));
    let float = last.is_some_and(Type::is_float);
    let words = &mut modifiers;
    let decoded = if SELECT.contains(&name) || LOGIC.contains(&name) && last == Some(Type::Pred) {
        Arithmetic::Select(select::decode(instruction, words, scope)?)
    } else if name == "cvt" {
        Arithmetic::Convert(convert::decode(instruction, words, scope)?)
    } else if FLOAT.contains(&name) || BY_TYPE.contains(&name) {
        // Mixed-precision fma and add (fma.rn.f32.f16) have an f32 result: the first type decides there.
        if half && !modifiers.rest().any(|word| word == "f32") {
            Arithmetic::Half(half::decode(instruction, &mut modifiers, scope)?)
        } else if float {
            Arithmetic::Float(float::decode(instruction, &mut modifiers, scope)?)
        } else {
            Arithmetic::Integer(integer::decode(instruction, &mut modifiers, scope)?)
        }
    } else if INTEGER.contains(&name) || LOGIC.contains(&name) || integer::video::OPCODES.contains(&name) {
        Arithmetic::Integer(integer::decode(instruction, words, scope)?)
    } else {
        return Ok(None);
    };
    modifiers.finish()?;
    Ok(Some(decoded))
}
