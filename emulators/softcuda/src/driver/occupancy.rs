//! Occupancy: how many blocks of a kernel are resident on a multiprocessor, by its limits.

use super::entry::{In, Out, Outcome, entry_points};
use super::error::Code;
use super::function::registers;
use super::launch::{Configuration, Shape};
use super::limits::{BLOCK_THREADS, CLUSTER_BLOCKS, Limits, REGISTERS, SHARED_RESERVED, WARP};
use super::state::{Function, Handle, state};
use crate::machine::device::KernelInfo;

/// Registers are given to warps in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given to blocks in units of this many bytes.
const SHARED_UNIT: u64 = 128;

/// Blocks of `threads` threads that are resident on a multiprocessor together; 0 when one block does not fit.
pub(super) fn resident_blocks(limits: &Limits, info: &KernelInfo, threads: u32, dynamic_shared: u64) -> u32 {
    if threads == 0 || threads > info.max_threads.min(BLOCK_THREADS) {
        return 0;
    }
    let warps = threads.div_ceil(WARP);
    let by_threads = limits.threads / (warps * WARP);
    let warp_registers = (registers(info) * WARP).next_multiple_of(REGISTER_UNIT);
    let by_registers = REGISTERS / warp_registers / warps;
    let wanted = dynamic_shared.saturating_add(u64::from(info.static_shared_bytes));
    if wanted > u64::from(limits.shared_opt_in) {
        return 0;
    }
    let shared = (wanted + u64::from(SHARED_RESERVED)).next_multiple_of(SHARED_UNIT);
    let by_shared = u64::from(limits.shared) / shared;
    limits.blocks.min(by_threads).min(by_registers).min(by_shared as u32)
}

fn active_blocks(blocks: Out<i32>, function: Handle, threads: i32, dynamic_shared: usize) -> Outcome {
    blocks.check()?;
    let state = state();
    let entry = state.function(function)?;
    let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(Code::INVALID_VALUE)?;
    blocks.put(resident_blocks(&state.limits(), entry.info(), threads, dynamic_shared as u64) as i32)
}

/// A function of the caller: dynamic shared memory in bytes of a block of so many threads.
type SharedOfBlock = Option<extern "C" fn(i32) -> usize>;

fn potential_block(
    grid: Out<i32>,
    block: Out<i32>,
    function: Handle,
    shared_of_block: SharedOfBlock,
    dynamic_shared: usize,
    limit: i32,
) -> Outcome {
    grid.check()?;
    block.check()?;
    let (limits, info) = {
        let state = state();
        (state.limits(), state.function(function)?.info().clone())
    };
    let most = info.max_threads.min(BLOCK_THREADS);
    let most = u32::try_from(limit).ok().filter(|&limit| limit > 0).map_or(most, |limit| most.min(limit));
    let mut best = (0, 0, 0);
    // From the largest block down, whole warps but for the first: the first of the fullest wins.
    let whole = (1..=most / WARP).rev().map(|warps| warps * WARP);
    for threads in (most % WARP != 0).then_some(most).into_iter().chain(whole) {
        let shared = shared_of_block.map_or(dynamic_shared, |shared| shared(threads as i32));
        let blocks = resident_blocks(&limits, &info, threads, shared as u64);
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    grid.put((best.2 * limits.multiprocessors) as i32)?;
    block.put(best.1 as i32)
}

/// The most blocks that a cluster of a kernel may have.
pub(super) fn cluster_limit(function: &Function) -> u32 {
    if function.non_portable_cluster { CLUSTER_BLOCKS.1 } else { CLUSTER_BLOCKS.0 }
}

entry_points! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>, function: Handle, threads: i32, dynamic_shared: usize,
    ) {
        active_blocks(blocks, function, threads, dynamic_shared)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: Handle, threads: i32, dynamic_shared: usize, flags: u32,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        active_blocks(blocks, function, threads, dynamic_shared)
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: Handle,
        shared_of_block: SharedOfBlock, dynamic_shared: usize, limit: i32,
    ) {
        potential_block(grid, block, function, shared_of_block, dynamic_shared, limit)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: Handle,
        shared_of_block: SharedOfBlock, dynamic_shared: usize, limit: i32, flags: u32,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        potential_block(grid, block, function, shared_of_block, dynamic_shared, limit)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: Handle, blocks: i32, threads: i32) {
        bytes.check()?;
        let state = state();
        let entry = state.function(function)?;
        let limits = state.limits();
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks > 0).ok_or(Code::INVALID_VALUE)?;
        let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(Code::INVALID_VALUE)?;
        if resident_blocks(&limits, entry.info(), threads, 0) < blocks {
            return Err(Code::INVALID_VALUE);
        }
        let share = u64::from(limits.shared / blocks) / SHARED_UNIT * SHARED_UNIT;
        let share = share.saturating_sub(u64::from(SHARED_RESERVED)).min(u64::from(limits.shared_opt_in));
        bytes.put(share.saturating_sub(u64::from(entry.info().static_shared_bytes)) as usize)
    }
    fn cuOccupancyMaxPotentialClusterSize(size: Out<i32>, function: Handle, configuration: In<Configuration>) {
        size.check()?;
        configuration.get()?;
        let state = state();
        let entry = state.function(function)?;
        size.put(if state.limits().has_clusters() { cluster_limit(entry) as i32 } else { 1 })
    }
    fn cuOccupancyMaxActiveClusters(clusters: Out<i32>, function: Handle, configuration: In<Configuration>) {
        clusters.check()?;
        let shape = Shape::read(configuration.get()?)?;
        let state = state();
        let entry = state.function(function)?;
        let limits = state.limits();
        let cluster = shape.cluster.or(entry.info().required_cluster).unwrap_or([1; 3]);
        let size = cluster.iter().try_fold(1u32, |size, &extent| size.checked_mul(extent)).filter(|&size| size > 0);
        let size = size.filter(|&size| size <= cluster_limit(entry)).ok_or(Code::INVALID_CLUSTER_SIZE)?;
        let threads = shape.block.iter().try_fold(1u32, |threads, &extent| threads.checked_mul(extent));
        let threads = threads.ok_or(Code::INVALID_VALUE)?;
        let blocks = resident_blocks(&limits, entry.info(), threads, u64::from(shape.dynamic_shared));
        clusters.put((blocks * limits.multiprocessors / size) as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::resident_blocks;
    use crate::driver::limits::Limits;
    use crate::machine::device::KernelInfo;

    fn kernel(registers: u32, shared: u32) -> KernelInfo {
        KernelInfo { registers, static_shared_bytes: shared, max_threads: 1024, ..KernelInfo::default() }
    }

    #[test]
    fn each_limit_binds_in_its_turn() {
        let h100 = Limits::of((9, 0));
        // 32 registers: threads bind, 2048 / 256.
        assert_eq!(resident_blocks(&h100, &kernel(32, 0), 256, 0), 8);
        // Blocks bind.
        assert_eq!(resident_blocks(&h100, &kernel(16, 0), 32, 0), 32);
        // 64 registers x 32 lanes x 8 warps = 16384 of 65536.
        assert_eq!(resident_blocks(&h100, &kernel(64, 0), 256, 0), 4);
        // 100 KiB and what is kept back: two in 228 KiB.
        assert_eq!(resident_blocks(&h100, &kernel(32, 0), 256, 100 << 10), 2);
        // All a block can have, and one byte more.
        assert_eq!(resident_blocks(&h100, &kernel(32, 1024), 256, 226 << 10), 1);
        assert_eq!(resident_blocks(&h100, &kernel(32, 1024), 256, (226 << 10) + 1), 0);
        assert_eq!(resident_blocks(&h100, &kernel(32, 0), 1025, 0), 0);
    }
}
