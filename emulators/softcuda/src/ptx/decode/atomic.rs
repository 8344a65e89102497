//! `atom` and `red`.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::address::{self, Address};
use super::memory::{MOST_ELEMENTS, Order, take_cache_hints, take_order};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::check::scope::MemoryScope;
use crate::machine::registers::{Reg, Width};

/// What an atomic does to the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Combine {
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Add,
    Increment,
    Decrement,
    Min,
    Max,
}

/// Spelling and meaning.
const COMBINES: &[(&str, Combine)] = &[
    ("and", Combine::And),
    ("or", Combine::Or),
    ("xor", Combine::Xor),
    ("exch", Combine::Exchange),
    ("cas", Combine::CompareAndSwap),
    ("add", Combine::Add),
    ("inc", Combine::Increment),
    ("dec", Combine::Decrement),
    ("min", Combine::Min),
    ("max", Combine::Max),
];

/// An atomic operation of one to eight elements per lane, each atomic by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Atomic {
    /// Where.
    pub address: Address,
    /// The operation.
    pub combine: Combine,
    /// The type of an element.
    pub ty: Type,
    /// Elements.
    pub count: u32,
    /// Where the old values go; `None` for `red`.
    pub destinations: Option<[Reg; MOST_ELEMENTS]>,
    /// The operands; for `cas` what is compared with.
    pub operands: [Reg; MOST_ELEMENTS],
    /// The new value of `cas`.
    pub swap: Option<Reg>,
    /// Its memory order.
    pub order: Order,
    /// Its scope; `None` says the device.
    pub scope: Option<MemoryScope>,
}

/// Opcodes of this file.
pub const OPCODES: &[&str] = &["atom", "red"];

/// Decodes `atom` or `red`.
///
/// # Errors
/// An operand, type or modifier that it does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Atomic, Error> {
    let returns = &*instruction.opcode[0] == "atom";
    let (order, memory_scope) = take_order(modifiers, Order::Relaxed);
    let space = modifiers.take_space();
    let policy = take_cache_hints(modifiers);
    let Some(combine) = modifiers.take_with(|word| COMBINES.iter().find(|row| row.0 == word).map(|row| row.1)) else {
        return Err(modifiers.error("names no operation"));
    };
    let keeps_subnormals = modifiers.take("noftz");
    let count =
        modifiers.take_with(|word| ["v2", "v4", "v8"].iter().position(|v| *v == word)).map_or(1, |power| 2 << power);
    let ty = modifiers.take_type()?;
    if keeps_subnormals != matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) {
        let needs = if keeps_subnormals { "takes no .noftz with" } else { "needs .noftz with" };
        return Err(modifiers.error(&format!("{needs} .{}", ty.name())));
    }
    if count > 1 && !matches!(space, Space::Generic | Space::Global) {
        return Err(modifiers.error("vectors are for global memory"));
    }
    let takes = match combine {
        Combine::And | Combine::Or | Combine::Xor => matches!(ty, Type::B32 | Type::B64),
        Combine::Exchange => matches!(ty, Type::B32 | Type::B64 | Type::B128),
        Combine::CompareAndSwap => matches!(ty, Type::B16 | Type::B32 | Type::B64 | Type::B128),
        Combine::Increment | Combine::Decrement => ty == Type::U32,
        Combine::Add => ty.bits() >= 16 && !matches!(ty, Type::B16 | Type::B32 | Type::B64 | Type::U16 | Type::S16),
        Combine::Min | Combine::Max => {
            ty.bits() >= 16 && !matches!(ty, Type::B16 | Type::B32 | Type::B64 | Type::F32 | Type::F64)
        }
    };
    if !takes {
        return Err(modifiers.error("the operation does not take this type"));
    }
    let first = usize::from(returns);
    let operand_count = first + 2 + usize::from(combine == Combine::CompareAndSwap);
    scope.expect_operands(instruction, operand_count..=operand_count + usize::from(policy))?;
    let address = address::decode(scope.operand(instruction, first)?, space, scope)?;
    let none = Reg { row: 0, width: Width::Word };
    let mut destinations = [none; MOST_ELEMENTS];
    if returns {
        for (register, element) in
            destinations.iter_mut().zip(elements(scope.operand(instruction, 0)?, count, modifiers)?)
        {
            *register = scope.destination(element, ty)?;
        }
    }
    let mut operands = [none; MOST_ELEMENTS];
    for (register, element) in
        operands.iter_mut().zip(elements(scope.operand(instruction, first + 1)?, count, modifiers)?)
    {
        *register = scope.source(element, ty)?;
    }
    let swap = match combine {
        Combine::CompareAndSwap => Some(scope.source(scope.operand(instruction, first + 2)?, ty)?),
        _ => None,
    };
    let destinations = returns.then_some(destinations);
    Ok(Atomic { address, combine, ty, count, destinations, operands, swap, order, scope: memory_scope })
}

fn elements<'a>(operand: &'a Operand, count: u32, modifiers: &Modifiers) -> Result<&'a [Operand], Error> {
    let found = match operand {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if found.len() == count as usize {
        return Ok(found);
    }
    Err(modifiers.error(&format!("{} registers for {count} elements", found.len())))
}
