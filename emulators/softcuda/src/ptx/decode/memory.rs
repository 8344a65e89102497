//! Loads, stores, and what turns addresses of one state space into another's.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::address::{self, Address, Base};
use super::modifiers::Modifiers;
use super::scope::Scope;
use crate::check::scope::MemoryScope;
use crate::count::Class;
use crate::machine::registers::{Pred, Reg};

/// The most elements of a vector access (`.v8.b32`).
pub const MOST_ELEMENTS: usize = 8;

/// The memory order of an access (PTX ISA, "Memory Consistency Model").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// An ordinary access: it races with others.
    Weak,
    /// `.volatile`, `.relaxed`, `.mmio.relaxed`, and atomics without a semantic: strong, but it orders nothing by
    /// itself.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcquireRelease,
}

impl Order {
    /// Whether a read with it acquires by itself.
    pub fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcquireRelease)
    }

    /// Whether a write with it releases by itself.
    pub fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }

    /// The order with this spelling (without the dot).
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "weak" => Self::Weak,
            "volatile" | "relaxed" => Self::Relaxed,
            "acquire" => Self::Acquire,
            "release" => Self::Release,
            "acq_rel" | "sc" => Self::AcquireRelease,
            _ => return None,
        })
    }
}

/// A load or a store of 1 to 8 elements per lane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// Where.
    pub address: Address,
    /// Bits of one element: 8 to 128.
    pub element_bits: u32,
    /// Elements.
    pub count: u32,
    /// The registers of the elements.
    pub registers: [Reg; MOST_ELEMENTS],
    /// Bits of each destination register that a loaded signed element is extended to; 0: zero-extended.
    pub extend_to: u32,
    /// Its memory order.
    pub order: Order,
    /// The scope of a strong access; `None`: a weak one.
    pub scope: Option<MemoryScope>,
    /// `ld.global.nc`, which may be served from a cache that does not see this kernel's writes.
    pub read_only: bool,
}

impl Access {
    /// The access of a register's place in the thread's frame.
    pub fn in_frame(reg: Reg, ty: Type, offset: u64) -> Self {
        Self {
            address: Address { base: Base::Frame, offset: offset as i64, space: Space::Local },
            element_bits: ty.bytes() * 8,
            count: 1,
            registers: [reg; MOST_ELEMENTS],
            extend_to: 0,
            order: Order::Weak,
            scope: None,
            read_only: false,
        }
    }

    /// The places of its elements: each of a strong vector is a flag of its own.
    pub fn places(&self, first: u64) -> impl Iterator<Item = u64> {
        let bytes = u64::from(self.element_bits / 8);
        (0..u64::from(self.count)).map(move |element| first.wrapping_add(element * bytes))
    }
}

/// An operation on memory or on addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Memory {
    /// `ld`, `ldu`.
    Load(Access),
    /// `st`.
    Store(Access),
    /// `cvta`: to generic, or from generic to the space.
    ConvertAddress {
        /// The result.
        destination: Reg,
        /// The address.
        source: Reg,
        /// The space that is not the generic one.
        space: Space,
        /// `cvta.to`.
        from_generic: bool,
    },
    /// `isspacep`.
    IsSpace {
        /// The result.
        destination: Pred,
        /// A generic address.
        source: Reg,
        /// The space asked for.
        space: Space,
    },
    /// `mapa`: the address of the same variable in another block of the cluster.
    MapAddress {
        /// The result.
        destination: Reg,
        /// An address of this block's shared memory.
        source: Reg,
        /// The rank of the block in its cluster.
        rank: Reg,
        /// The addresses are generic, not of `.shared::cluster`.
        generic: bool,
    },
    /// `getctarank`: the rank of the block that an address belongs to.
    Rank {
        /// The result.
        destination: Reg,
        /// The address.
        source: Reg,
        /// The address is generic.
        generic: bool,
    },
    /// `mov` of the address of a variable in the frame.
    FrameAddress {
        /// The result, an address of `.local`.
        destination: Reg,
        /// Bytes from the start of the frame.
        offset: u64,
    },
    /// `prefetch`, `applypriority`, `discard`, ...: no effect that a program can see.
    Nothing,
}

impl Memory {
    /// The class it is counted in, as far as the text says; generic accesses count as global ones.
    pub fn class(&self) -> Class {
        match self {
            Self::Load(access) => match access.address.space {
                Space::Generic | Space::Global => Class::LoadGlobal,
                Space::Shared | Space::SharedCluster => Class::LoadShared,
                Space::Local => Class::Local,
                Space::Const | Space::Param => Class::LoadConstant,
            },
            Self::Store(access) => match access.address.space {
                Space::Generic | Space::Global | Space::Const => Class::StoreGlobal,
                Space::Shared | Space::SharedCluster => Class::StoreShared,
                Space::Local | Space::Param => Class::Local,
            },
            _ => Class::Move,
        }
    }
}

/// Opcodes of this file.
pub const OPCODES: &[&str] = &[
    "ld",
    "ldu",
    "st",
    "cvta",
    "isspacep",
    "mapa",
    "getctarank",
    "prefetch",
    "prefetchu",
    "applypriority",
    "discard",
    "createpolicy",
];

/// Words that say how caches should treat an access: without effect on what it reads or writes.
pub fn is_cache_hint(word: &str) -> bool {
    matches!(word, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt")
        || word.starts_with("L1::")
        || word.starts_with("L2::")
        || word == "unified"
}

/// Takes all words about caches; whether one of them announces a cache-policy operand.
pub fn take_cache_hints(modifiers: &mut Modifiers) -> bool {
    let mut policy = false;
    while let Some(is_policy) = modifiers.take_with(|word| is_cache_hint(word).then_some(word == "L2::cache_hint")) {
        policy |= is_policy;
    }
    policy
}

/// Takes the words about memory order and scope. `volatile` and `relaxed` are strong accesses; without one, `default`.
/// The scope of a weak access is `None`.
pub fn take_order(modifiers: &mut Modifiers, default: Order) -> (Order, Option<MemoryScope>) {
    // `.mmio` stands beside `.relaxed`.
    modifiers.take("mmio");
    // As `.relaxed.sys`, whatever the manual calls it.
    let is_volatile = modifiers.rest().any(|word| word == "volatile");
    let order = modifiers.take_with(Order::parse).unwrap_or(default);
    let scope = modifiers.take_with(MemoryScope::parse).unwrap_or(MemoryScope::Device);
    let scope = if is_volatile { MemoryScope::System } else { scope };
    (order, (order != Order::Weak).then_some(scope))
}

/// Decodes a load, a store or an address operation.
///
/// # Errors
/// An operand or modifier that it does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Memory, Error> {
    match instruction.opcode[0].as_ref() {
        "ld" | "ldu" => access(instruction, modifiers, scope, true).map(Memory::Load),
        "st" => access(instruction, modifiers, scope, false).map(Memory::Store),
        "cvta" => convert_address(instruction, modifiers, scope),
        "isspacep" => {
            let space = modifiers.take_space();
            let destination = scope.predicate_destination(scope.operand(instruction, 0)?)?;
            let source = scope.any_source(scope.operand(instruction, 1)?, Type::U64)?;
            Ok(Memory::IsSpace { destination, source, space })
        }
        "mapa" => {
            let generic = modifiers.take_space() == Space::Generic;
            let ty = modifiers.take_type()?;
            let destination = scope.destination(scope.operand(instruction, 0)?, ty)?;
            let source = scope.source(scope.operand(instruction, 1)?, ty)?;
            let rank = scope.source(scope.operand(instruction, 2)?, Type::U32)?;
            Ok(Memory::MapAddress { destination, source, rank, generic })
        }
        "getctarank" => {
            let generic = modifiers.take_space() == Space::Generic;
            let ty = modifiers.take_type()?;
            let destination = scope.destination(scope.operand(instruction, 0)?, Type::U32)?;
            let source = scope.source(scope.operand(instruction, 1)?, ty)?;
            Ok(Memory::Rank { destination, source, generic })
        }
        "createpolicy" => {
            while modifiers.take_with(|word| (word != "b64").then_some(())).is_some() {}
            modifiers.take("b64");
            // The policy is opaque and nothing here depends on it: its register is only checked.
            scope.destination(scope.operand(instruction, 0)?, Type::B64)?;
            Ok(Memory::Nothing)
        }
        _ => {
            while modifiers.take_with(|_| Some(())).is_some() {}
            Ok(Memory::Nothing)
        }
    }
}

fn access(
    instruction: &Instruction,
    modifiers: &mut Modifiers,
    scope: &mut Scope,
    load: bool,
) -> Result<Access, Error> {
    let (order, memory_scope) = take_order(modifiers, Order::Weak);
    let space = modifiers.take_space();
    let read_only = modifiers.take("nc");
    let policy = take_cache_hints(modifiers);
    let count = modifiers
        .take_with(|word| ["v1", "v2", "v4", "v8"].iter().position(|v| *v == word))
        .map_or(1, |power| 1 << power);
    let ty = modifiers.take_type()?;
    if ty == Type::Pred {
        return Err(modifiers.error("predicates are not in memory"));
    }
    // 32 bytes a lane: eight words or four doubles, of global memory.
    let widest = if matches!(space, Space::Generic | Space::Global) && ty != Type::B128 { 32 } else { 16 };
    if ty.bits() / 8 * count > widest {
        return Err(modifiers.error(&format!("more than {widest} bytes a lane")));
    }
    scope.expect_operands(instruction, 2..=2 + usize::from(policy))?;
    let (address_place, value_place) = if load { (1, 0) } else { (0, 1) };
    let address = address::decode(scope.operand(instruction, address_place)?, space, scope)?;
    let value = scope.operand(instruction, value_place)?;
    let elements = match value {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if elements.len() != count as usize {
        return Err(modifiers.error(&format!("{} registers for {count} elements", elements.len())));
    }
    let mut registers = [Reg { row: 0, width: crate::machine::registers::Width::Word }; MOST_ELEMENTS];
    let mut extend_to = 0;
    for (register, element) in registers.iter_mut().zip(elements) {
        *register = if load { scope.any_destination(element, ty)? } else { scope.any_source(element, ty)? };
        let declared = scope.register_type(element).map_or(ty.bits(), Type::bits);
        if declared < ty.bits() {
            return Err(modifiers.error("the register is narrower than the element"));
        }
        if load && ty.is_signed() && declared > ty.bits() {
            extend_to = declared;
        }
    }
    let element_bits = ty.bits();
    Ok(Access { address, element_bits, count, registers, extend_to, order, scope: memory_scope, read_only })
}

fn convert_address(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Memory, Error> {
    let from_generic = modifiers.take("to");
    let space = modifiers.take_space();
    let ty = modifiers.take_type()?;
    let destination = scope.destination(scope.operand(instruction, 0)?, ty)?;
    let operand = scope.operand(instruction, 1)?;
    let source = scope.any_source(operand, ty)?;
    Ok(Memory::ConvertAddress { destination, source, space, from_generic })
}
