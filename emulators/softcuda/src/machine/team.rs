//! The blocks of one cluster (mostly a single block), which run on one host thread, their warps in turn.

use super::block::{Block, BlockBarrier, ClusterBarrier};
use super::execute::asynchronous::AsyncState;
use super::execute::local::LocalMemory;
use super::memory::shared::SharedMemory;
use super::registers::{LANES, Registers};
use super::run::{Progress, run_warp};
use super::step::{Launched, Tally, lanes};
use super::warp::{Frame, Path, Specials, Wait, Warp};
use super::window;
use crate::check::clock::TeamClocks;
use crate::report::Fault;
use std::sync::atomic::Ordering;

/// Warp instructions that a warp executes before the next one has its turn.
const SLICE: u32 = 1 << 12;

/// Turns of all warps in which they only waited, after which another team goes on: more than the paths of a warp, of
/// which one may hold what the others wait for.
const PATIENCE: u32 = 64;

/// A small generator of pseudo-random numbers (splitmix64): the same seed, the same order.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, (self.draw() % (end as u64 + 1)) as usize);
        }
    }
}

/// The blocks that run together.
pub struct Team {
    /// In order of rank.
    pub blocks: Vec<Block>,
    /// All warps, block after block.
    pub warps: Vec<Warp>,
    /// What the threads know of one another.
    pub clocks: TeamClocks,
    /// The barrier of the cluster.
    pub cluster: ClusterBarrier,
    specials: Vec<Specials>,
    order: Vec<usize>,
    random: Option<Random>,
}

/// Whether a team is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All threads have exited.
    Finished,
    /// Its time is up; it goes on later.
    Paused,
}

impl Team {
    /// The team with this number, ready to run.
    pub fn new(launched: &Launched, number: u64) -> Self {
        let launch = launched.launch;
        let shape = launched.cluster;
        let threads: u32 = launch.block.iter().product();
        let warps_per_block = threads.div_ceil(LANES as u32);
        let clusters: [u32; 3] = std::array::from_fn(|i| launch.grid[i] / shape[i]);
        let first: [u32; 3] = coordinates(number, clusters);
        let size: u32 = shape.iter().product();
        let own_bytes = launched.kernel.static_shared_bytes + launch.dynamic_shared_bytes;
        // The module's cooperative groups meet in the system's part, which begins as zeros.
        let meeting = launched.program.uses_reserved_shared();
        let meeting = meeting.then(|| own_bytes.next_multiple_of(window::SHARED_UNIT));
        let shared_bytes = meeting.map_or(own_bytes, |start| start + window::MEETING_SHARED);
        let new_shared = || {
            let mut shared = SharedMemory::new(shared_bytes, &launched.checks);
            if let Some(start) = meeting {
                shared.zero(start, window::MEETING_SHARED);
            }
            shared
        };
        let mut blocks = Vec::new();
        let mut specials = Vec::new();
        let mut linears = Vec::new();
        for rank in 0..size {
            let within: [u32; 3] = coordinates(u64::from(rank), shape);
            let index: [u32; 3] = std::array::from_fn(|i| first[i] * shape[i] + within[i]);
            // Cut to 32 bits: it tells blocks apart in checks, and grids with more blocks than that take years.
            let [x, y, z] = index.map(u64::from);
            let linear = (x + u64::from(launch.grid[0]) * (y + u64::from(launch.grid[1]) * z)) as u32;
            linears.push(linear);
            blocks.push(Block {
                linear,
                index,
                shared: new_shared(),
                barriers: std::array::from_fn(|_| BlockBarrier::default()),
                live: threads,
                asynchronous: AsyncState::default(),
            });
            for warp in 0..warps_per_block {
                let thread =
                    std::array::from_fn(|lane| coordinates(u64::from(warp) * LANES as u64 + lane as u64, launch.block));
                specials.push(Specials {
                    thread,
                    threads: launch.block,
                    block: index,
                    blocks: launch.grid,
                    cluster_shape: shape,
                    clustered: launched.clustered,
                    warp,
                    shared: (launched.kernel.static_shared_bytes, launch.dynamic_shared_bytes),
                    multiprocessors: 132,
                    linear_block: linear,
                    workspace: launched.workspace,
                    grid: launched.number,
                });
            }
        }
        let clocks = TeamClocks::new(&linears, threads);
        let random = launched.shuffle.map(|seed| Random(seed ^ (number + 1).wrapping_mul(0xd134_2543_de82_ef95)));
        let mut team = Self {
            blocks,
            warps: Vec::new(),
            clocks,
            cluster: ClusterBarrier::default(),
            specials,
            order: Vec::new(),
            random,
        };
        for rank in 0..size as usize {
            for index in 0..warps_per_block {
                team.add_warp(launched, rank, index, threads);
            }
        }
        team.order = (0..team.warps.len()).collect();
        team
    }

    fn add_warp(&mut self, launched: &Launched, rank: usize, index: u32, threads: u32) {
        let first = index * LANES as u32;
        let number = (threads - first).min(LANES as u32);
        let mask = if number == LANES as u32 { u32::MAX } else { (1 << number) - 1 };
        let function = launched.kernel.function;
        let frame = Frame { function, rows: 0, predicates: 0, local: 0 };
        let code = &launched.program.functions[function as usize];
        let mut warp = Warp {
            registers: Registers::default(),
            paths: Vec::new(),
            live: mask,
            block: rank,
            first_thread: rank * threads as usize + first as usize,
            first_in_block: first,
            local: LocalMemory::default(),
            executed: [0; LANES],
            cluster_phase: [0; LANES],
            seen: [0; LANES],
        };
        for lane in lanes(mask) {
            warp.local.reserve(lane, code.frame.local_bytes);
        }
        let place = code.entry.unwrap_or(0);
        warp.paths.push(Path { mask, place, frame, calls: Vec::new(), wait: Wait::Ready, postponed: false });
        warp.enter(launched.program, frame, u32::MAX, &self.specials[self.warps.len()]);
        self.warps.push(warp);
    }

    /// Runs the team's warps in turn until all have exited or `quantum` warp instructions are spent.
    ///
    /// # Errors
    /// The first fault.
    pub fn run(&mut self, launched: &Launched, tally: &mut Tally, quantum: u64) -> Result<Outcome, Box<Fault>> {
        let mut left = quantum;
        let mut in_vain = 0;
        loop {
            if let Some(random) = &mut self.random {
                random.shuffle(&mut self.order);
            }
            let mut progress = false;
            let mut waiting = true;
            let mut place = 0;
            while place < self.order.len() {
                let index = self.order[place];
                let slice = self.random.as_mut().map_or(SLICE, |random| 16 + (random.draw() % 512) as u32);
                let (state, executed) = run_warp(self, index, launched, tally, slice)?;
                left = left.saturating_sub(u64::from(executed));
                progress |= executed > 0 || state == Progress::Finished;
                waiting &= matches!(state, Progress::Waiting | Progress::Blocked);
                let spent = i64::from(executed);
                if launched.budget.fetch_sub(spent, Ordering::Relaxed) < spent {
                    return Err(self.out_of_budget(launched, index));
                }
                if state == Progress::Finished {
                    self.end_warp(index, tally);
                    self.order.remove(place);
                } else {
                    place += 1;
                }
            }
            if self.order.is_empty() {
                self.flush(launched)?;
                return Ok(Outcome::Finished);
            }
            if !progress {
                return Err(self.stuck(launched));
            }
            in_vain = if waiting { in_vain + 1 } else { 0 };
            if left == 0 || in_vain == PATIENCE || launched.stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Paused);
            }
        }
    }

    fn end_warp(&mut self, index: usize, tally: &mut Tally) {
        let warp = &self.warps[index];
        let threads: u32 = self.specials[index].threads.iter().product();
        for lane in 0..LANES {
            if warp.first_in_block + (lane as u32) < threads {
                let executed = warp.executed[lane];
                let (fewest, most) = tally.per_thread.unwrap_or((executed, executed));
                tally.per_thread = Some((fewest.min(executed), most.max(executed)));
            }
        }
    }

    /// The special registers of a warp.
    pub fn specials(&self, index: usize) -> &Specials {
        &self.specials[index]
    }

    /// Splits the team into what one warp's step needs.
    pub fn parts(
        &mut self,
        index: usize,
    ) -> (&mut Warp, &mut [Block], &mut TeamClocks, &mut ClusterBarrier, &Specials) {
        (&mut self.warps[index], &mut self.blocks, &mut self.clocks, &mut self.cluster, &self.specials[index])
    }
}

/// The coordinates of a linear index in a box, x fastest.
pub fn coordinates(linear: u64, shape: [u32; 3]) -> [u32; 3] {
    let (x, y) = (u64::from(shape[0].max(1)), u64::from(shape[1].max(1)));
    [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
}
