//! What a launch leaves behind for tests: its shape, its counters, and the fault that stopped it.

use crate::count::Counters;
use serde::{Deserialize, Serialize};

/// One kernel launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// The kernel's name in the PTX (mangled, for C++).
    pub kernel: String,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y, z.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared_bytes: u32,
    /// What the kernel did; up to the fault, if there was one.
    pub counters: Counters,
    /// What stopped it.
    pub fault: Option<Fault>,
    /// What it printed: block after block, each block's threads in the order in which they printed. The driver has
    /// written it to standard output.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub printed: String,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// An access outside every allocation, or across the end of one.
    OutOfBounds,
    /// An access to memory that was freed.
    UseAfterFree,
    /// The use of a value that nobody has written.
    Uninitialized,
    /// An address that is not a multiple of the access's width.
    Misaligned,
    /// Two accesses to the same bytes that nothing orders, one of them a write.
    Race,
    /// A barrier that part of its threads do not reach.
    DivergentBarrier,
    /// A warp instruction (`shfl`, `vote`, ...) whose mask names lanes that do not execute it, or leaves out the lane
    /// that does.
    MissingLanes,
    /// An access to the destination of an asynchronous copy that has not been waited for.
    InFlight,
    /// A write to constant memory or to a kernel parameter.
    ReadOnlyWrite,
    /// `ld.global.nc` of bytes that this kernel has written.
    StaleReadOnlyLoad,
    /// The instruction budget is spent.
    InstructionBudget,
    /// Every thread that is left waits for something that cannot happen.
    Deadlock,
    /// `trap`, or a failed `assert`.
    Trap,
    /// An instruction was given operands that it does not take (an `mbarrier` that was not initialised, a bad call
    /// target).
    InvalidOperation,
}

/// A fault: where, who, and with whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which check.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// The line of the PTX text, from 1.
    pub line: u32,
    /// That line.
    pub instruction: String,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid`.
    pub thread: [u32; 3],
    /// The address, as the instruction gave it, in its state space.
    pub address: Option<u64>,
    /// What happened, in words.
    pub message: String,
    /// The other access of a race; the load of a value that nobody wrote.
    pub other: Option<OtherAccess>,
}

/// The earlier of two accesses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherAccess {
    /// Whether it wrote.
    pub wrote: bool,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid` of the thread, or of the first of several.
    pub thread: [u32; 3],
    /// The line of the PTX text.
    pub line: u32,
    /// That line.
    pub instruction: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:?} in kernel {}, block {:?}, thread {:?}",
            self.kind, self.kernel, self.block, self.thread
        )?;
        if let Some(address) = self.address {
            write!(formatter, ", address {address:#x}")?;
        }
        write!(formatter, ": {}\n  PTX line {}: {}", self.message, self.line, self.instruction)?;
        if let Some(other) = &self.other {
            let verb = if other.wrote { "written" } else { "read" };
            write!(formatter, "\n  {verb} before by block {:?}, thread {:?}", other.block, other.thread)?;
            write!(formatter, "\n  PTX line {}: {}", other.line, other.instruction)?;
        }
        Ok(())
    }
}
