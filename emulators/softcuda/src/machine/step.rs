//! What an instruction that reaches beyond the registers can see: its warp, its block, the launch, and the counters.

use super::block::{Block, ClusterBarrier};
use super::memory::Refusal;
use super::memory::launch::LaunchMemory;
use super::program::{KernelInfo, Program};
use super::registers::LANES;
use super::system::Printed;
use super::warp::Warp;
use super::window;
use crate::check::clock::TeamClocks;
use crate::count::{GlobalTraffic, SharedTraffic};
use crate::machine::device::Launch;
use crate::ptx::decode::address::{Address, Base};
use crate::ptx::types::Space;
use crate::report::FaultKind;
use crate::settings::Checks;
use std::sync::atomic::{AtomicBool, AtomicI64};

/// What all blocks of a launch share.
pub struct Launched<'a> {
    /// The code.
    pub program: &'a Program,
    /// The kernel.
    pub kernel: &'a KernelInfo,
    /// The shape and the arguments.
    pub launch: &'a Launch,
    /// Blocks of a cluster along x, y, z.
    pub cluster: [u32; 3],
    /// Whether there are clusters.
    pub clustered: bool,
    /// Global memory.
    pub memory: LaunchMemory,
    /// Which faults are looked for.
    pub checks: Checks,
    /// Seed of the order of blocks and warps.
    pub shuffle: Option<u64>,
    /// Warp instructions left.
    pub budget: AtomicI64,
    /// A block has met a fault: the others stop.
    pub stop: AtomicBool,
    /// Workspace of a cooperative grid, or 0.
    pub workspace: u64,
    /// Number of the launch.
    pub number: u64,
    /// What `printf` has printed.
    pub printed: Printed,
}

/// Executions of one instruction.
#[derive(Clone, Copy, Default)]
pub struct Count {
    /// By warps.
    pub warp: u64,
    /// By lanes.
    pub thread: u64,
}

/// Counters of the blocks that one host thread runs.
#[derive(Default)]
pub struct Tally {
    /// By instruction of the program.
    pub instructions: Vec<Count>,
    /// Issues without an active lane.
    pub predicated_off: u64,
    /// Global memory; the distinct bytes are counted by the memory.
    pub global: GlobalTraffic,
    /// Shared memory.
    pub shared: SharedTraffic,
    /// Block barriers completed.
    pub block_barriers: u64,
    /// Cluster barriers completed.
    pub cluster_barriers: u64,
    /// Atomic operations of lanes.
    pub atomics: u64,
    /// Branches that split a path.
    pub divergent_branches: u64,
    /// Fewest and most instructions of a thread; `None` before the first thread has ended.
    pub per_thread: Option<(u64, u64)>,
}

/// A fault of one lane, before it is known where the lane is.
#[derive(Clone, Debug)]
pub struct LaneFault {
    /// The instruction and the thread of the team that the fault is about, if not the ones that met it.
    pub elsewhere: Option<(u32, usize)>,
    /// The lane.
    pub lane: usize,
    /// The address that the instruction gave.
    pub address: Option<u64>,
    /// What was refused, and why.
    pub refusal: Box<Refusal>,
}

impl LaneFault {
    /// A fault without an address.
    pub fn new(lane: usize, kind: FaultKind, message: impl Into<String>) -> Self {
        Self { elsewhere: None, lane, address: None, refusal: Box::new(Refusal::new(kind, message)) }
    }

    /// A fault at an address.
    pub fn at(lane: usize, address: u64, refusal: Refusal) -> Self {
        Self { elsewhere: None, lane, address: Some(address), refusal: Box::new(refusal) }
    }
}

/// The surroundings of one instruction of one warp.
pub struct Step<'a, 'b> {
    /// The launch.
    pub launched: &'a Launched<'b>,
    /// The warp.
    pub warp: &'a mut Warp,
    /// The blocks of the team.
    pub blocks: &'a mut [Block],
    /// What the threads of the team know of one another.
    pub clocks: &'a mut TeamClocks,
    /// The cluster's barrier.
    pub cluster: &'a mut ClusterBarrier,
    /// Counters.
    pub tally: &'a mut Tally,
    /// The index of the instruction.
    pub place: u32,
    /// First byte of the running function's variables in local memory.
    pub local_frame: u64,
}

/// The lanes of a mask, ascending.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

impl Step<'_, '_> {
    /// The address of each lane, in the address's own space.
    pub fn addresses(&self, address: &Address) -> [u64; LANES] {
        match address.base {
            Base::Zero => [address.offset as u64; LANES],
            Base::Frame => [self.local_frame.wrapping_add(address.offset as u64); LANES],
            Base::Register(reg) => {
                self.warp.registers.extended(reg).map(|base| base.wrapping_add(address.offset as u64))
            }
        }
    }

    /// The lanes of `active` by the space that their address lies in, with the addresses within it. Only generic
    /// addresses can differ.
    pub fn by_space(&self, address: &Address, active: u32) -> Vec<(Space, u32, [u64; LANES])> {
        let addresses = self.addresses(address);
        match address.space {
            Space::Generic => {}
            // PTX addresses of these spaces are 32 bits wide, whatever register holds them.
            Space::Shared | Space::SharedCluster => {
                return vec![(Space::SharedCluster, active, addresses.map(|a| a & 0xffff_ffff))];
            }
            Space::Const => return vec![(Space::Global, active, addresses)],
            space => return vec![(space, active, addresses)],
        }
        let mut groups: Vec<(Space, u32, [u64; LANES])> = Vec::with_capacity(1);
        for lane in lanes(active) {
            let (space, within) = window::resolve(addresses[lane]);
            if let Some(group) = groups.iter_mut().find(|group| group.0 == space) {
                group.1 |= 1 << lane;
                group.2[lane] = within;
            } else {
                let mut places = [0; LANES];
                places[lane] = within;
                groups.push((space, 1 << lane, places));
            }
        }
        groups
    }

    /// The block of the team and the offset in its shared memory that a shared address means.
    ///
    /// # Errors
    /// No block of that rank in the cluster, or an address below the block's memory.
    pub fn shared_place(&self, lane: usize, address: u64) -> Result<(usize, u32), LaneFault> {
        let (rank, offset) = window::shared_place(address as u32);
        let block = rank.map_or(self.warp.block, |rank| rank as usize);
        let refuse = |message: String| LaneFault::at(lane, address, Refusal::new(FaultKind::OutOfBounds, message));
        if block >= self.blocks.len() {
            return Err(refuse(format!("there is no block of rank {block} in a cluster of {}", self.blocks.len())));
        }
        match offset.checked_sub(window::RESERVED_SHARED) {
            Some(offset) => Ok((block, offset)),
            None => Err(refuse(format!(
                "shared memory starts at {}: nothing of the kernel's lies below",
                window::RESERVED_SHARED
            ))),
        }
    }

    /// The thread of the team that a lane is.
    pub fn thread(&self, lane: usize) -> usize {
        self.warp.first_thread + lane
    }
}
