//! One warp: its registers, and the paths that its lanes are on.
//!
//! Lanes that are at the same place with the same calls behind them form a *path* and execute together. A branch that
//! lanes take differently splits a path; two paths that meet at an instruction become one again. Of several paths the
//! one with the most calls behind it goes first, and of those the one that is least far in the text: compilers put the
//! place where branches meet after the branches, so lanes meet there. A path that waits in a loop for another path is
//! put back after a while, so every lane makes progress (independent thread scheduling).

use super::execute::local::LocalMemory;
use super::program::Program;
use super::registers::{LANES, Reg, Registers};
use super::window;
use crate::ptx::decode::special::{ReservedShared, Special};

/// Where a function's registers and variables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place among the program's functions.
    pub function: u32,
    /// First row of its registers.
    pub rows: usize,
    /// Its first predicate.
    pub predicates: usize,
    /// First byte of its variables in local memory.
    pub local: u64,
}

/// A call that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The call site.
    pub site: u32,
    /// The instruction after the call.
    pub resume: u32,
    /// The caller's frame.
    pub frame: Frame,
}

/// What a path waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Ready,
    /// The other lanes of a warp instruction's mask; the path stands before it.
    Collective {
        /// The lanes that must come.
        members: u32,
        /// `bar.warp.sync`: lanes may come to another instruction of that kind.
        synchronize: bool,
    },
    /// The other lanes of the warp, before an aligned barrier.
    Aligned,
    /// A block barrier, until its generation passes this one; the path stands after it.
    Block {
        /// The barrier.
        id: u32,
        /// How often it had been completed when the path arrived.
        generation: u64,
        /// The instruction, whose destination gets the result of a reduction.
        instruction: u32,
    },
    /// The cluster barrier, until its phase passes this one.
    Cluster {
        /// How often it had been completed when the lanes arrived.
        phase: u64,
    },
}

/// Lanes that execute together.
#[derive(Clone, Debug)]
pub struct Path {
    /// Which lanes.
    pub mask: u32,
    /// The next instruction.
    pub place: u32,
    /// The running function's frame.
    pub frame: Frame,
    /// The calls behind it, outermost first.
    pub calls: Vec<Pending>,
    /// What it waits for.
    pub wait: Wait,
    /// Others go first.
    pub postponed: bool,
}

/// A warp.
pub struct Warp {
    /// Its registers.
    pub registers: Registers,
    /// The paths of its lanes; no two have a lane in common.
    pub paths: Vec<Path>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Its block in the team.
    pub block: usize,
    /// Thread of the team that lane 0 is.
    pub first_thread: usize,
    /// Linear thread of the block that lane 0 is.
    pub first_in_block: u32,
    /// Local memory of its lanes.
    pub local: LocalMemory,
    /// Instructions executed by each lane.
    pub executed: [u64; LANES],
    /// Cluster phase at which each lane arrived last.
    pub cluster_phase: [u64; LANES],
    /// What each lane has read last by an atomic or a strong load, mixed with the instruction's place.
    pub seen: [u64; LANES],
}

/// The values of special registers of one warp.
pub struct Specials {
    /// `%tid` of each lane.
    pub thread: [[u32; 3]; LANES],
    /// `%ntid`.
    pub threads: [u32; 3],
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%nctaid`.
    pub blocks: [u32; 3],
    /// Blocks of a cluster along x, y, z.
    pub cluster_shape: [u32; 3],
    /// Whether the launch or the kernel asks for clusters.
    pub clustered: bool,
    /// `%warpid`.
    pub warp: u32,
    /// Static and dynamic shared memory in bytes.
    pub shared: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Linear index of the block.
    pub linear_block: u32,
    /// Workspace of a cooperative grid, or 0.
    pub workspace: u64,
    /// Number of the launch.
    pub grid: u64,
}

impl Specials {
    fn value(&self, special: Special, lane: usize) -> u64 {
        let axis = |values: &[u32; 3], axis: u8| values[axis as usize];
        let shape = self.cluster_shape;
        let within: [u32; 3] = std::array::from_fn(|i| self.block[i] % shape[i]);
        let word = match special {
            Special::Thread(i) => axis(&self.thread[lane], i),
            Special::Threads(i) => axis(&self.threads, i),
            Special::Block(i) => axis(&self.block, i),
            Special::Blocks(i) => axis(&self.blocks, i),
            Special::Cluster(i) => self.block[i as usize] / shape[i as usize],
            Special::Clusters(i) => self.blocks[i as usize].div_ceil(shape[i as usize]),
            Special::ClusterBlock(i) => within[i as usize],
            Special::ClusterBlocks(i) => shape[i as usize],
            Special::ClusterRank => within[0] + shape[0] * (within[1] + shape[1] * within[2]),
            Special::ClusterSize => shape.iter().product(),
            Special::ExplicitCluster => u32::from(self.clustered),
            Special::Lane => lane as u32,
            Special::Warp => self.warp,
            Special::Warps => self.threads.iter().product::<u32>().div_ceil(LANES as u32),
            Special::Multiprocessor => self.linear_block % self.multiprocessors,
            Special::Multiprocessors => self.multiprocessors,
            Special::Grid => return self.grid,
            Special::LaneMask(which) => {
                let own = 1_u32 << lane;
                [own, own | (own - 1), own - 1, !(own - 1), !(own | (own - 1))][which as usize]
            }
            Special::DynamicShared => self.shared.1,
            Special::TotalShared => (self.shared.0 + self.shared.1).next_multiple_of(window::SHARED_UNIT),
            Special::AggregateShared => {
                (self.shared.0 + self.shared.1).next_multiple_of(window::SHARED_UNIT) + window::RESERVED_SHARED
            }
            Special::ReservedShared(asked) => {
                let begin = window::RESERVED_SHARED + self.shared.0 + self.shared.1;
                let begin = begin.next_multiple_of(window::SHARED_UNIT);
                match asked {
                    ReservedShared::Begin => begin,
                    ReservedShared::End => begin + window::MEETING_SHARED,
                    ReservedShared::Bytes => window::MEETING_SHARED,
                    ReservedShared::Place(place) => begin + u32::from(place) * window::MEETING_SHARED / 2,
                }
            }
            Special::Environment(1) => (self.workspace >> 32) as u32,
            Special::Environment(2) => self.workspace as u32,
            Special::Environment(_) | Special::GraphExecution => 0,
        };
        u64::from(word)
    }
}

impl Warp {
    /// Makes a frame current and fills the registers of constants and special registers for `lanes`.
    pub fn enter(&mut self, program: &Program, frame: Frame, lanes: u32, specials: &Specials) {
        let layout = &program.functions[frame.function as usize].frame;
        self.select(program, frame);
        if self.registers.has_undefined() {
            self.registers.forget_undefined(layout.rows, layout.predicates, lanes);
        }
        for (reg, bits) in &layout.constants {
            self.registers.set_extended(*reg, lanes, &[*bits; LANES]);
        }
        for (reg, special) in &layout.specials {
            let values = std::array::from_fn(|lane| specials.value(*special, lane));
            self.registers.set_extended(*reg, lanes, &values);
        }
    }

    /// Makes a frame current.
    pub fn select(&mut self, program: &Program, frame: Frame) {
        let layout = &program.functions[frame.function as usize].frame;
        self.registers.enter((frame.rows, frame.predicates), layout.rows as usize, layout.predicates as usize);
    }

    /// Whether the first of the active lanes reads from an instruction what it has read from it before, with nothing of
    /// that kind in between: the mark of a loop that waits for somebody else.
    pub fn reads_again(&mut self, place: u32, active: u32, destination: Reg) -> bool {
        let lane = active.trailing_zeros() as usize % LANES;
        let value = self.registers.extended(destination)[lane];
        let mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(place) + 1);
        std::mem::replace(&mut self.seen[lane], mixed) == mixed
    }

    /// Lets paths that wait for other lanes of the warp look again.
    pub fn reconsider(&mut self) {
        for path in &mut self.paths {
            if matches!(path.wait, Wait::Collective { .. } | Wait::Aligned) {
                path.wait = Wait::Ready;
            }
        }
    }

    /// Joins paths at the same place with the same calls behind them, if they are ready or wait for one another.
    pub fn merge(&mut self) {
        let mut index = 0;
        while index < self.paths.len() {
            let mut other = index + 1;
            while other < self.paths.len() {
                let (a, b) = (&self.paths[index], &self.paths[other]);
                let meets = |path: &Path| matches!(path.wait, Wait::Ready | Wait::Collective { .. } | Wait::Aligned);
                if a.place == b.place && a.frame == b.frame && meets(a) && meets(b) && a.calls == b.calls {
                    let joined = self.paths.swap_remove(other);
                    let path = &mut self.paths[index];
                    path.mask |= joined.mask;
                    path.wait = Wait::Ready;
                    path.postponed &= joined.postponed;
                } else {
                    other += 1;
                }
            }
            index += 1;
        }
    }

    /// The path that goes next among those for which `ready` holds.
    pub fn next(&mut self, ready: impl Fn(&Path) -> bool) -> Option<usize> {
        let best = |paths: &[Path]| {
            let candidates = paths.iter().enumerate().filter(|(_, path)| !path.postponed && ready(path));
            candidates.min_by_key(|(_, path)| (usize::MAX - path.calls.len(), path.place)).map(|(index, _)| index)
        };
        if let Some(index) = best(&self.paths) {
            return Some(index);
        }
        self.paths.iter_mut().for_each(|path| path.postponed = false);
        best(&self.paths)
    }
}
