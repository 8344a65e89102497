//! What ranks must agree about: the kind of a call, its type, count, operation and root, as they stand in shared memory.

use std::ffi::c_int;
use std::fmt;

/// `ncclResult_t`.
pub(crate) type Status = c_int;
pub(crate) const SUCCESS: Status = 0;
pub(crate) const UNHANDLED_CUDA_ERROR: Status = 1;
pub(crate) const SYSTEM_ERROR: Status = 2;
pub(crate) const INTERNAL_ERROR: Status = 3;
pub(crate) const INVALID_ARGUMENT: Status = 4;
pub(crate) const INVALID_USAGE: Status = 5;
pub(crate) const REMOTE_ERROR: Status = 6;

/// Kinds of calls, by their place among the counters.
pub(crate) mod kind {
    pub(crate) const ALL_REDUCE: u32 = 0;
    pub(crate) const ALL_GATHER: u32 = 1;
    pub(crate) const REDUCE_SCATTER: u32 = 2;
    pub(crate) const REDUCE: u32 = 3;
    pub(crate) const BROADCAST: u32 = 4;
    pub(crate) const SEND: u32 = 5;
    pub(crate) const RECEIVE: u32 = 6;
}

const NAMES: [&str; 7] =
    ["ncclAllReduce", "ncclAllGather", "ncclReduceScatter", "ncclReduce", "ncclBroadcast", "ncclSend", "ncclRecv"];

/// `ncclDataType_t`: names and bytes.
const TYPES: [(&str, u64); 12] = [
    ("int8", 1),
    ("uint8", 1),
    ("int32", 4),
    ("uint32", 4),
    ("int64", 8),
    ("uint64", 8),
    ("float16", 2),
    ("float32", 4),
    ("float64", 8),
    ("bfloat16", 2),
    ("float8e4m3", 1),
    ("float8e5m2", 1),
];

/// `ncclRedOp_t`.
const OPERATIONS: [&str; 5] = ["sum", "product", "maximum", "minimum", "average"];

/// No operation, or no root.
pub(crate) const NONE: u32 = u32::MAX;

/// A call as all its ranks must make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Call {
    pub(crate) kind: u32,
    pub(crate) data_type: u32,
    pub(crate) operation: u32,
    /// Of a send or a receive the other rank.
    pub(crate) root: u32,
    /// Elements, as the call counts them.
    pub(crate) count: u64,
}

impl Call {
    /// What can be wrong with a call on one rank.
    pub(crate) fn check(&self, ranks: u32) -> Result<(), Status> {
        let is_type = (self.data_type as usize) < TYPES.len();
        let is_operation = self.operation == NONE || (self.operation as usize) < OPERATIONS.len();
        let is_root = self.root == NONE || self.root < ranks;
        let fits = self.count.checked_mul(8 * u64::from(ranks)).is_some_and(|bytes| bytes < 1 << 48);
        let reduces = self.operation != NONE;
        if !is_type || !is_operation || !is_root || !fits || (reduces && self.data_type > 9) {
            return Err(INVALID_ARGUMENT);
        }
        Ok(())
    }

    /// Bytes that a rank's call sends, or receives where it only does that.
    pub(crate) fn bytes(&self, ranks: u32) -> u64 {
        let of_count = self.count * TYPES[self.data_type as usize].1;
        if self.kind == kind::REDUCE_SCATTER { of_count * u64::from(ranks) } else { of_count }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |names: &[&'static str], index: u32| names.get(index as usize).copied().unwrap_or("?");
        let data_type = TYPES.get(self.data_type as usize).map_or("?", |row| row.0);
        write!(formatter, "{} of {} {data_type}", name(&NAMES, self.kind), self.count)?;
        if self.operation != NONE {
            write!(formatter, ", {}", name(&OPERATIONS, self.operation))?;
        }
        match (self.root, self.kind) {
            (NONE, _) => Ok(()),
            (rank, kind::SEND) => write!(formatter, ", to rank {rank}"),
            (rank, kind::RECEIVE) => write!(formatter, ", from rank {rank}"),
            (root, _) => write!(formatter, ", root {root}"),
        }
    }
}
