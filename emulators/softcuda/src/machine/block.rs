//! One block while it runs: its shared memory, its barriers, how many of its threads are left.

use super::memory::shared::SharedMemory;
use crate::check::clock::{Knowledge, TeamClocks};
use crate::machine::execute::asynchronous::AsyncState;

/// Named barriers of a block.
pub const BARRIERS: usize = 16;

/// What the threads of a reducing barrier said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ballot {
    /// Threads whose word was true.
    pub yes: u32,
    /// Threads.
    pub all: u32,
}

/// One named barrier.
#[derive(Default)]
pub struct BlockBarrier {
    /// How often it was completed.
    pub generation: u64,
    /// Threads that have arrived since.
    pub arrived: u32,
    /// The count that those threads gave; `None`: the whole block.
    pub expected: Option<u32>,
    /// First thread and lanes of the warps that wait.
    pub participants: Vec<(usize, u32)>,
    /// What those that arrived without waiting knew then: they learn nothing from the barrier.
    pub gathered: Option<Knowledge>,
    /// What they said, if it reduces.
    pub ballot: Ballot,
    /// What was said by those that completed it last.
    pub result: Ballot,
    /// The instruction and the thread of the team that arrived first.
    pub first: (u32, usize),
}

/// More threads have come to a barrier than were announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany {
    /// Announced.
    pub expected: u32,
    /// Come.
    pub arrived: u32,
}

/// A running block.
pub struct Block {
    /// Linear index in the grid.
    pub linear: u32,
    /// `%ctaid`.
    pub index: [u32; 3],
    /// Its shared memory.
    pub shared: SharedMemory,
    /// Its named barriers.
    pub barriers: [BlockBarrier; BARRIERS],
    /// Threads that have not exited.
    pub live: u32,
    /// Asynchronous copies and `mbarrier` objects.
    pub asynchronous: AsyncState,
}

impl Block {
    /// Completes a barrier if all that it waits for have come; whether it did. A barrier of the whole block does not wait
    /// for threads that have exited (PTX ISA, `exit`).
    ///
    /// # Errors
    /// More have come than it is for.
    pub fn settle(&mut self, id: usize, clocks: &mut TeamClocks) -> Result<bool, TooMany> {
        let barrier = &mut self.barriers[id];
        if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(self.live) {
            return Ok(false);
        }
        if let Some(expected) = barrier.expected.filter(|expected| barrier.arrived > *expected) {
            return Err(TooMany { expected, arrived: barrier.arrived });
        }
        if let (Some(gathered), Some((first, mask))) = (barrier.gathered.take(), barrier.participants.first()) {
            clocks.acquire(first + mask.trailing_zeros() as usize, &gathered);
        }
        clocks.join(&barrier.participants);
        barrier.participants.clear();
        barrier.generation += 1;
        barrier.arrived = 0;
        barrier.expected = None;
        barrier.result = std::mem::take(&mut barrier.ballot);
        Ok(true)
    }
}

/// Adds to what is known.
pub fn gather(known: &mut Option<Knowledge>, more: Option<Knowledge>) {
    match (known.as_mut(), more) {
        (Some(known), Some(more)) => known.learn(&more),
        (None, more) => *known = more,
        (Some(_), None) => {}
    }
}

/// The barrier of a cluster.
#[derive(Default)]
pub struct ClusterBarrier {
    /// How often it was completed.
    pub phase: u64,
    /// Threads that have arrived since.
    pub arrived: u32,
    /// What they knew when they arrived.
    pub gathered: Option<Knowledge>,
    /// What those knew that completed it last.
    pub known: Option<Knowledge>,
}

impl ClusterBarrier {
    /// Completes the barrier if all `live` threads of the cluster have arrived; whether it did.
    pub fn settle(&mut self, live: u32) -> bool {
        if self.arrived == 0 || self.arrived < live {
            return false;
        }
        self.known = self.gathered.take();
        self.phase += 1;
        self.arrived = 0;
        true
    }
}
