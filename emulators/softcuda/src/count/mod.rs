//! Counters of one launch: exact, and the same on every run.

pub mod traffic;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The class of an instruction, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Class {
    /// Integer and logic arithmetic.
    Integer,
    /// f32 and packed f32 arithmetic, comparisons included.
    Float32,
    /// f64 arithmetic.
    Float64,
    /// f16, bf16 and their packed forms.
    Half,
    /// `ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh` approximations: one per result, two for a packed
    /// pair.
    SpecialFunction,
    /// `cvt`.
    Convert,
    /// `mov`, `selp`, `setp` of integers, predicates.
    Move,
    /// Loads of kernel parameters and constants.
    LoadConstant,
    /// Loads from global (or generic, resolved to global) memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Loads from shared memory, the cluster's included.
    LoadShared,
    /// Stores to shared memory.
    StoreShared,
    /// Loads and stores of local memory and of device-function parameters.
    Local,
    /// `atom` and `red`.
    Atomic,
    /// `shfl`, `vote`, `match`, `redux`, `activemask`.
    Warp,
    /// Barriers of block and cluster, `bar.warp.sync`, `mbarrier`.
    Barrier,
    /// `membar` and `fence`.
    Fence,
    /// `cp.async` and bulk copies.
    AsyncCopy,
    /// `mma`, `ldmatrix`, `stmatrix`.
    Matrix,
    /// Branches, calls, returns.
    Control,
}

/// Warp-level and thread-level executions of a class of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Issues by a warp (or by the converged part of one), if at least one lane's guard held.
    pub warp: u64,
    /// Lanes that executed it.
    pub thread: u64,
}

/// What one launch did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Executions by class. PTX instructions: ptxas may fuse, split or drop some.
    pub by_class: BTreeMap<Class, Executed>,
    /// All executions.
    pub instructions: Executed,
    /// Issues in which no lane's guard held.
    pub predicated_off: u64,
    /// Threads launched.
    pub threads: u64,
    /// Fewest and most instructions that one thread executed.
    pub instructions_per_thread: (u64, u64),
    /// Results of special functions (a packed instruction gives two).
    pub special_function_results: u64,
    /// Global memory.
    pub global: GlobalTraffic,
    /// Shared memory.
    pub shared: SharedTraffic,
    /// Block barriers completed.
    pub block_barriers: u64,
    /// Cluster barriers completed.
    pub cluster_barriers: u64,
    /// Atomic operations of single lanes.
    pub atomics: u64,
    /// Branches at which lanes of one warp went different ways.
    pub divergent_branches: u64,
}

/// Traffic between the kernel and global memory, before any cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalTraffic {
    /// Bytes that loads asked for, all lanes: a word that all lanes of a warp read counts 32 times. What the instructions
    /// ask for, not what memory delivers.
    pub bytes_loaded: u64,
    /// Bytes that stores gave, all lanes.
    pub bytes_stored: u64,
    /// Different bytes of each warp access that loads, added up: lanes that read the same bytes share them. The figure to
    /// quote as bytes that a kernel reads.
    pub warp_bytes_loaded: u64,
    /// Different bytes of each warp access that stores, added up.
    pub warp_bytes_stored: u64,
    /// 32-byte sectors that loads touched, counted per warp access.
    pub sectors_loaded: u64,
    /// 32-byte sectors that stores touched, counted per warp access.
    pub sectors_stored: u64,
    /// Different bytes that were read at least once.
    pub distinct_bytes_read: u64,
    /// Different bytes that were written at least once.
    pub distinct_bytes_written: u64,
    /// Bytes loaded by atomics and stored by atomics are in neither sum above: their count.
    pub bytes_atomic: u64,
}

/// Shared memory accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedTraffic {
    /// Bytes loaded, all lanes.
    pub bytes_loaded: u64,
    /// Bytes stored, all lanes.
    pub bytes_stored: u64,
    /// Passes over the 32 banks of 4 bytes that the accesses needed.
    pub wavefronts: u64,
    /// Passes beyond the fewest that accesses of that width need.
    pub bank_conflicts: u64,
}
