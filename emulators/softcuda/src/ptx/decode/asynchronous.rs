//! Asynchronous copies (`cp.async`, `cp.async.bulk`, `st.async`) and `mbarrier`.

use super::super::syntax::{Error, Instruction, Operand};
use super::super::types::{Space, Type};
use super::address::{self, Address};
use super::memory::take_cache_hints;
use super::modifiers::Modifiers;
use super::scope::{Condition, Scope};
use crate::count::Class;
use crate::machine::registers::{Pred, Reg, Width};

/// An asynchronous copy, or an operation on an `mbarrier` object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asynchronous {
    /// `cp.async`: 4, 8 or 16 bytes a lane from global to shared memory.
    Copy {
        /// In shared memory.
        destination: Address,
        /// In global memory.
        source: Address,
        /// Bytes written.
        bytes: u32,
        /// Bytes read, the rest being zero; `None`: all.
        source_bytes: Option<Reg>,
        /// Lanes for which it holds read nothing and write zeros.
        ignore_source: Option<Condition>,
    },
    /// `cp.async.commit_group`.
    CommitGroup,
    /// `cp.async.wait_group n`; `wait_all` is 0 with the copies of no group.
    WaitGroup {
        /// Groups that may still be in flight.
        pending: u32,
        /// Copies that were not committed are waited for too.
        all: bool,
    },
    /// `cp.async.mbarrier.arrive`.
    CopyArrive {
        /// The `mbarrier`.
        barrier: Address,
        /// `.noinc`: the arrival was counted at initialisation.
        counted: bool,
    },
    /// `cp.async.bulk` without a tensor map.
    Bulk {
        /// Where to.
        destination: Address,
        /// Where from.
        source: Address,
        /// Bytes: a multiple of 16.
        bytes: Reg,
        /// The `mbarrier` that counts the bytes; `None`: a bulk group does.
        barrier: Option<Address>,
        /// `.multicast::cluster`: the blocks that get it.
        multicast: Option<Reg>,
    },
    /// `cp.async.bulk.prefetch`: no effect.
    Prefetch,
    /// `cp.async.bulk.commit_group`.
    BulkCommit,
    /// `cp.async.bulk.wait_group`.
    BulkWait(u32),
    /// `st.async`.
    Store {
        /// In the shared memory of a block of the cluster.
        destination: Address,
        /// The values.
        values: [Reg; 4],
        /// How many.
        count: u32,
        /// Bytes of one.
        bytes: u32,
        /// The `mbarrier` that counts the bytes.
        barrier: Address,
    },
    /// `mbarrier.init`.
    Initialize(Address, Reg),
    /// `mbarrier.inval`.
    Invalidate(Address),
    /// `mbarrier.expect_tx`, `mbarrier.complete_tx`: bytes expected, or completed.
    Transaction {
        /// The `mbarrier`.
        barrier: Address,
        /// Bytes.
        bytes: Reg,
        /// `complete_tx`.
        complete: bool,
    },
    /// `mbarrier.arrive`, `mbarrier.arrive_drop`.
    Arrive {
        /// The `mbarrier`.
        barrier: Address,
        /// The phase, for `test_wait`.
        state: Option<Reg>,
        /// Arrivals; `None`: 1.
        count: Option<Reg>,
        /// `.expect_tx`: bytes expected before the arrival.
        expect: Option<Reg>,
        /// The later phases expect one arrival less.
        drop: bool,
    },
    /// `mbarrier.test_wait`, `mbarrier.try_wait`.
    Wait {
        /// Whether the phase is complete.
        done: Pred,
        /// The `mbarrier`.
        barrier: Address,
        /// The state that an arrival gave, or the parity of the phase.
        phase: Reg,
        /// It is the parity.
        parity: bool,
    },
    /// `mbarrier.pending_count`.
    PendingCount(Reg, Reg),
}

impl Asynchronous {
    /// The class it is counted in.
    pub fn class(&self) -> Class {
        match self {
            Self::Copy { .. }
            | Self::CommitGroup
            | Self::WaitGroup { .. }
            | Self::Bulk { .. }
            | Self::Prefetch
            | Self::BulkCommit
            | Self::BulkWait(_)
            | Self::Store { .. } => Class::AsyncCopy,
            _ => Class::Barrier,
        }
    }
}

/// Whether the instruction belongs to this file.
pub fn is_asynchronous(instruction: &Instruction) -> bool {
    let second = instruction.opcode.get(1).map(AsRef::as_ref);
    match instruction.opcode.first().map(AsRef::as_ref) {
        Some("cp" | "mbarrier") => true,
        Some("st" | "red" | "ld") => second == Some("async"),
        _ => false,
    }
}

/// Decodes an asynchronous copy or an `mbarrier` operation.
///
/// # Errors
/// An operand or modifier that it does not take; forms with tensor maps and reductions, which are not supported.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Asynchronous, Error> {
    match instruction.opcode[0].as_ref() {
        "mbarrier" => return barrier(instruction, modifiers, scope),
        "st" => return store(instruction, modifiers, scope),
        "cp" => {}
        _ => return Err(modifiers.error("is not supported")),
    }
    if modifiers.rest().any(|word| word == "reduce" || word == "tensor") || !modifiers.take("async") {
        return Err(modifiers.error("reductions and tensor maps are not supported"));
    }
    if modifiers.take("bulk") {
        return bulk(instruction, modifiers, scope);
    }
    if modifiers.take("commit_group") {
        return Ok(Asynchronous::CommitGroup);
    }
    if modifiers.take("wait_all") {
        return Ok(Asynchronous::WaitGroup { pending: 0, all: true });
    }
    if modifiers.take("wait_group") {
        return Ok(Asynchronous::WaitGroup { pending: number(instruction, 0, scope)?, all: false });
    }
    if modifiers.take("mbarrier") {
        modifiers.take("arrive");
        let counted = modifiers.take("noinc");
        let space = modifiers.take_space();
        modifiers.take("b64");
        let barrier = address::decode(scope.operand(instruction, 0)?, space, scope)?;
        return Ok(Asynchronous::CopyArrive { barrier, counted });
    }
    take_cache_hints(modifiers);
    let to = modifiers.take_space();
    let from = modifiers.take_space();
    if to != Space::Shared || from != Space::Global {
        return Err(modifiers.error("copies from .global to .shared"));
    }
    scope.expect_operands(instruction, 3..=5)?;
    let destination = address::decode(scope.operand(instruction, 0)?, to, scope)?;
    let source = address::decode(scope.operand(instruction, 1)?, from, scope)?;
    let bytes = number(instruction, 2, scope)?;
    if !matches!(bytes, 4 | 8 | 16) {
        return Err(modifiers.error("copies 4, 8 or 16 bytes"));
    }
    let (mut source_bytes, mut ignore_source) = (None, None);
    if let Some(operand) = instruction.operands.get(3) {
        match scope.register_type(operand) {
            Some(Type::Pred) => ignore_source = Some(scope.condition(operand)?),
            // A 64-bit register is a cache policy.
            Some(ty) if ty.bits() == 64 => {}
            _ if matches!(operand, Operand::Not(_)) => ignore_source = Some(scope.condition(operand)?),
            _ => source_bytes = Some(scope.source(operand, Type::U32)?),
        }
    }
    Ok(Asynchronous::Copy { destination, source, bytes, source_bytes, ignore_source })
}

fn number(instruction: &Instruction, place: usize, scope: &Scope) -> Result<u32, Error> {
    match scope.operand(instruction, place)? {
        Operand::Integer(value) if (0..=i64::from(u32::MAX)).contains(value) => Ok(*value as u32),
        other => Err(scope.error(format!("{other:?} is not a number"))),
    }
}

fn bulk(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Asynchronous, Error> {
    if modifiers.take("commit_group") {
        return Ok(Asynchronous::BulkCommit);
    }
    if modifiers.take("wait_group") {
        modifiers.take("read");
        return Ok(Asynchronous::BulkWait(number(instruction, 0, scope)?));
    }
    if modifiers.take("prefetch") {
        while modifiers.take_with(|_| Some(())).is_some() {}
        return Ok(Asynchronous::Prefetch);
    }
    let multicast = modifiers.take("multicast::cluster");
    take_cache_hints(modifiers);
    let to = modifiers.take_space();
    let from = modifiers.take_space();
    let counted = modifiers.take("mbarrier::complete_tx::bytes");
    let grouped = modifiers.take("bulk_group");
    if counted == grouped {
        return Err(modifiers.error("needs .mbarrier::complete_tx::bytes or .bulk_group"));
    }
    let destination = address::decode(scope.operand(instruction, 0)?, to, scope)?;
    let source = address::decode(scope.operand(instruction, 1)?, from, scope)?;
    let bytes = scope.source(scope.operand(instruction, 2)?, Type::U32)?;
    let barrier = if counted {
        Some(address::decode(scope.operand(instruction, 3)?, Space::SharedCluster, scope)?)
    } else {
        None
    };
    let multicast = if multicast { Some(scope.source(scope.operand(instruction, 4)?, Type::U16)?) } else { None };
    Ok(Asynchronous::Bulk { destination, source, bytes, barrier, multicast })
}

fn store(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Asynchronous, Error> {
    for word in ["async", "weak", "mbarrier::complete_tx::bytes"] {
        modifiers.take(word);
    }
    let space = modifiers.take_space();
    let count = modifiers.take_with(|word| ["v2", "v4"].iter().position(|v| *v == word)).map_or(1, |power| 2 << power);
    let ty = modifiers.take_type()?;
    scope.expect_operands(instruction, 3..=3)?;
    let destination = address::decode(scope.operand(instruction, 0)?, space, scope)?;
    let elements = match scope.operand(instruction, 1)? {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if elements.len() != count || count * ty.bytes() as usize > 16 {
        return Err(modifiers.error("takes up to 16 bytes in 1, 2 or 4 registers"));
    }
    let mut values = [Reg { row: 0, width: Width::Word }; 4];
    for (value, element) in values.iter_mut().zip(elements) {
        *value = scope.source(element, ty)?;
    }
    let barrier = address::decode(scope.operand(instruction, 2)?, space, scope)?;
    Ok(Asynchronous::Store { destination, values, count: count as u32, bytes: ty.bytes(), barrier })
}

fn barrier(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Asynchronous, Error> {
    if modifiers.take("pending_count") {
        modifiers.take("b64");
        let count = scope.destination(scope.operand(instruction, 0)?, Type::U32)?;
        return Ok(Asynchronous::PendingCount(count, scope.source(scope.operand(instruction, 1)?, Type::B64)?));
    }
    let mut verb = None;
    for word in ["init", "inval", "arrive_drop", "arrive", "test_wait", "try_wait"] {
        if verb.is_none() && modifiers.take(word) {
            verb = Some(word);
        }
    }
    let expect = modifiers.take("expect_tx");
    let complete = modifiers.take("complete_tx");
    // Orders and scopes: every arrival releases and every wait acquires, which is the default; .relaxed is rare and
    // treated as stronger.
    for word in ["release", "acquire", "relaxed", "cta", "cluster", "noComplete"] {
        modifiers.take(word);
    }
    let parity = modifiers.take("parity");
    let space = modifiers.take_space();
    modifiers.take("b64");
    let at = |scope: &Scope, place: usize| address::decode(scope.operand(instruction, place)?, space, scope);
    let word = |scope: &mut Scope, place: usize| scope.source(scope.operand(instruction, place)?, Type::U32);
    match verb {
        Some("init") => Ok(Asynchronous::Initialize(at(scope, 0)?, word(scope, 1)?)),
        Some("inval") => Ok(Asynchronous::Invalidate(at(scope, 0)?)),
        Some(verb @ ("arrive" | "arrive_drop")) => {
            let has_state = !matches!(scope.operand(instruction, 0)?, Operand::Address { .. });
            let first = usize::from(has_state);
            let state = match &instruction.operands[0] {
                Operand::Address { .. } | Operand::Sink => None,
                operand => Some(scope.destination(operand, Type::B64)?),
            };
            let barrier = at(scope, first)?;
            let argument = if instruction.operands.len() > first + 1 { Some(word(scope, first + 1)?) } else { None };
            let (count, expected) = if expect { (None, argument) } else { (argument, None) };
            if expect && expected.is_none() {
                return Err(modifiers.error("needs the number of bytes"));
            }
            Ok(Asynchronous::Arrive { barrier, state, count, expect: expected, drop: verb == "arrive_drop" })
        }
        Some("test_wait" | "try_wait") => {
            let done = scope.predicate_destination(scope.operand(instruction, 0)?)?;
            let barrier = at(scope, 1)?;
            let ty = if parity { Type::U32 } else { Type::B64 };
            let phase = scope.source(scope.operand(instruction, 2)?, ty)?;
            Ok(Asynchronous::Wait { done, barrier, phase, parity })
        }
        _ if expect || complete => {
            Ok(Asynchronous::Transaction { barrier: at(scope, 0)?, bytes: word(scope, 1)?, complete })
        }
        _ => Err(modifiers.error("is not an operation of mbarrier that is known")),
    }
}
