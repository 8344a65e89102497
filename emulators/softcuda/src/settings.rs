//! What kind of device softcuda is, and how strict.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a test can choose. `Default` is an H100-like device with every check on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Compute capability, major and minor. PTX for a later one is refused, as a driver does.
    pub compute_capability: (u32, u32),
    /// The version of CUDA that the driver is for, major and minor, as `cuDriverGetVersion` says it. A driver for less than 13.0
    /// refuses PTX of versions that came later than it, as a driver does.
    pub driver_version: (u32, u32),
    /// Devices that the driver enumerates.
    pub devices: u32,
    /// Device memory in bytes; allocations beyond it fail with out of memory.
    pub memory_bytes: u64,
    /// `Some(seed)`: the order of blocks and of warps is shuffled, the same way for the same seed. `None`: in ascending
    /// order.
    pub shuffle: Option<u64>,
    /// The most warp instructions of one launch; beyond it the kernel is stopped with a fault. The default takes
    /// minutes to spend.
    pub instruction_budget: u64,
    /// Host threads that run blocks; 0 for one per core.
    pub host_threads: usize,
    /// Each stream's work is delayed until something must order it, so that a missing synchronisation shows.
    pub delay_streams: bool,
    /// Which faults are looked for.
    pub checks: Checks,
    /// A file to which every launch appends its report, one JSON object a line.
    pub report_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            compute_capability: (9, 0),
            driver_version: (13, 0),
            devices: 1,
            memory_bytes: 80 << 30,
            shuffle: None,
            instruction_budget: 1 << 31,
            host_threads: 0,
            delay_streams: false,
            checks: Checks::default(),
            report_file: None,
        }
    }
}

/// The checks that can be switched off. Bounds, freed memory and alignment are always checked: a device would fault
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Checks {
    /// Values that nobody has written, where they are used: a branch, an address, a store to global or shared memory, an
    /// atomic.
    pub uninitialized: bool,
    /// Loads of bytes that nobody has written, whether or not the value is used; part of `uninitialized`.
    pub uninitialized_loads: bool,
    /// Accesses of two threads to the same bytes, one of them a write, that nothing orders.
    pub races: bool,
    /// Of these, two stores of the same bytes: replicated layouts, as Triton's, store every copy. Without it, `races`
    /// passes over them.
    pub equal_stores: bool,
    /// Of these, plain reads of what other threads write by compare-and-swap: the first read of the loop in the CUDA
    /// programming guide. Without it, `races` passes over them.
    pub compare_and_swap_reads: bool,
    /// Aligned barriers that part of a warp reaches, and barriers that threads leave without reaching.
    pub divergent_barriers: bool,
    /// `ld.global.nc` of bytes that the same kernel has written.
    pub read_only_loads: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            uninitialized: true,
            uninitialized_loads: false,
            races: true,
            equal_stores: true,
            compare_and_swap_reads: true,
            divergent_barriers: true,
            read_only_loads: true,
        }
    }
}
