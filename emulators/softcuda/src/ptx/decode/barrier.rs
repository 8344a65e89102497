//! Barriers of a block and of a cluster, and fences.

use super::super::syntax::{Error, Instruction};
use super::super::types::Type;
use super::modifiers::Modifiers;
use super::scope::{Condition, Scope};
use super::warp::{Collective, Warp};
use crate::check::scope::{Fence, MemoryScope};
use crate::machine::registers::{Pred, Reg};

/// What a block barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockBarrier {
    /// `bar.sync`.
    Wait,
    /// `bar.arrive`: without waiting.
    Arrive,
    /// `bar.red.and`, `.or`.
    Vote {
        /// The answer.
        destination: Pred,
        /// Each thread's word.
        source: Condition,
        /// `.and`, not `.or`.
        all: bool,
    },
    /// `bar.red.popc`.
    Count {
        /// The number of threads whose word is true.
        destination: Reg,
        /// Each thread's word.
        source: Condition,
    },
}

/// A barrier or a fence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Barrier {
    /// `bar`, `barrier`, `barrier.cta`.
    Block {
        /// What it does.
        kind: BlockBarrier,
        /// All threads of the warp must execute it together.
        aligned: bool,
        /// 0 to 15.
        id: Reg,
        /// The threads that take part; `None`: the block's.
        threads: Option<Reg>,
    },
    /// `barrier.cluster.arrive`.
    ClusterArrive {
        /// Not `.relaxed`: what was written before is seen by those that wait.
        release: bool,
        /// All threads of the warp must execute it together.
        aligned: bool,
    },
    /// `barrier.cluster.wait`.
    ClusterWait {
        /// All threads of the warp must execute it together.
        aligned: bool,
    },
    /// `membar`, `fence`; `None` for those that do not order the memory of threads (proxy fences and the fence of
    /// `mbarrier.init`).
    Fence(Option<Fence>),
    /// `bar.warp.sync`.
    Warp(Collective),
}

/// Opcodes of this file.
pub const OPCODES: &[&str] = &["bar", "barrier", "membar", "fence"];

/// Decodes a barrier or a fence.
///
/// # Errors
/// An operand or modifier that it does not take.
pub fn decode(instruction: &Instruction, modifiers: &mut Modifiers, scope: &mut Scope) -> Result<Barrier, Error> {
    let name = instruction.opcode[0].as_ref();
    if matches!(name, "membar" | "fence") {
        let has = |wanted: &str| modifiers.rest().any(|word| word == wanted);
        let orders = !has("mbarrier_init") && !modifiers.rest().any(|word| word.starts_with("proxy"));
        let scope = modifiers.rest().find_map(MemoryScope::parse).unwrap_or(MemoryScope::System);
        // Without .acquire or .release it is .acq_rel or .sc.
        let fence = Fence { acquires: !has("release"), releases: !has("acquire"), scope };
        while modifiers
            .take_with(|word| {
                (word.starts_with("proxy")
                    || matches!(
                        word,
                        "cta"
                            | "gl"
                            | "sys"
                            | "gpu"
                            | "cluster"
                            | "sc"
                            | "acq_rel"
                            | "acquire"
                            | "release"
                            | "mbarrier_init"
                            | "alias"
                            | "async"
                            | "async::generic"
                            | "sync_restrict::shared::cta"
                            | "sync_restrict::shared::cluster"
                    )
                    || matches!(
                        word,
                        "global"
                            | "shared::cta"
                            | "shared::cluster"
                            | "async::global"
                            | "async::shared::cta"
                            | "async::shared::cluster"
                    ))
                .then_some(())
            })
            .is_some()
        {}
        return Ok(Barrier::Fence(orders.then_some(fence)));
    }
    if modifiers.take("warp") {
        modifiers.take("sync");
        scope.expect_operands(instruction, 1..=1)?;
        let members = scope.source(scope.operand(instruction, 0)?, Type::B32)?;
        return Ok(Barrier::Warp(Collective { operation: Warp::Synchronize, members }));
    }
    if modifiers.take("cluster") {
        let aligned = modifiers.take("aligned");
        if modifiers.take("arrive") {
            let release = !modifiers.take("relaxed");
            modifiers.take("release");
            return Ok(Barrier::ClusterArrive { release, aligned });
        }
        if modifiers.take("wait") {
            modifiers.take("acquire");
            return Ok(Barrier::ClusterWait { aligned });
        }
        return Err(modifiers.error("is neither .arrive nor .wait"));
    }
    modifiers.take("cta");
    // `bar` is the old spelling of `barrier ... .aligned`.
    let aligned = modifiers.take("aligned") || name == "bar";
    let operand = |scope: &mut Scope, place: usize| scope.source(scope.operand(instruction, place)?, Type::U32);
    if modifiers.take("sync") || modifiers.take("arrive") {
        let arrive = instruction.opcode.iter().any(|word| &**word == "arrive");
        scope.expect_operands(instruction, 1 + usize::from(arrive)..=2)?;
        let id = operand(scope, 0)?;
        let threads = if instruction.operands.len() > 1 { Some(operand(scope, 1)?) } else { None };
        let kind = if arrive { BlockBarrier::Arrive } else { BlockBarrier::Wait };
        return Ok(Barrier::Block { kind, aligned, id, threads });
    }
    if !modifiers.take("red") {
        return Err(modifiers.error("is not a barrier that is known"));
    }
    scope.expect_operands(instruction, 3..=4)?;
    let id = operand(scope, 1)?;
    let threads = if instruction.operands.len() > 3 { Some(operand(scope, 2)?) } else { None };
    let source = scope.condition(scope.operand(instruction, instruction.operands.len() - 1)?)?;
    let destination = scope.operand(instruction, 0)?;
    let kind = if modifiers.take("popc") {
        modifiers.take("u32");
        BlockBarrier::Count { destination: scope.destination(destination, Type::U32)?, source }
    } else {
        let all = modifiers.take("and");
        if !all && !modifiers.take("or") {
            return Err(modifiers.error("names no reduction"));
        }
        modifiers.take("pred");
        BlockBarrier::Vote { destination: scope.predicate_destination(destination)?, source, all }
    };
    Ok(Barrier::Block { kind, aligned, id, threads })
}
