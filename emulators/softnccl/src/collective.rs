//! Collectives: rounds in which every rank shows the others some bytes and reads what it needs of theirs.

use crate::call::{Call, INVALID_USAGE, UNHANDLED_CUDA_ERROR, kind};
use crate::communicator::{Communicator, Failed};
use crate::control::count;
use crate::driver::{Bytes, Fault};
use crate::reduction::reduce;
use crate::segment::{CHUNK, Shown};
use softload::host_work::Memory;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// A collective of one rank, as it waits in a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Collective {
    pub(crate) call: Call,
    /// Addresses on the device.
    pub(crate) send: u64,
    pub(crate) receive: u64,
}

/// Why a collective ends early.
pub(crate) enum Trouble {
    /// Written down in the segment.
    Failed,
    /// The device's, with its code.
    Fault(Fault),
}

impl From<Failed> for Trouble {
    fn from(_: Failed) -> Self {
        Self::Failed
    }
}

/// An access to the device's memory that was refused: the others must not wait for this rank.
fn told(communicator: &Communicator, call: &Call, fault: Fault) -> Trouble {
    let text = format!("rank {}: an access to device memory failed with {} in {call}", communicator.rank, fault.0);
    communicator.fail(UNHANDLED_CUDA_ERROR, &text);
    Trouble::Fault(fault)
}

/// That all ranks make the same call. All find the same.
fn check(communicator: &Communicator) -> Result<(), Failed> {
    // SAFETY: every rank has posted, and posts again when this one has read.
    let of = |rank| unsafe { communicator.segment.slot(rank).shown.get().read() };
    let first = of(0);
    let Some(rank) = (1..communicator.ranks()).find(|rank| of(*rank) != first) else { return Ok(()) };
    let other = of(rank);
    let text = format!(
        "the ranks' calls differ: call {} of rank 0 is {}, call {} of rank {rank} is {}",
        first.number, first.call, other.number, other.call
    );
    Err(communicator.fail(INVALID_USAGE, &text))
}

impl Collective {
    /// Runs it. If it fails, what was received before stays.
    pub(crate) fn run(&self, communicator: &Communicator, memory: &Memory) -> Result<(), Trouble> {
        let mut turn = communicator.turn();
        let number = turn.calls;
        turn.calls += 1;
        let bytes = self.call.bytes(communicator.ranks());
        let rounds = bytes.div_ceil(CHUNK as u64).max(1);
        for round in 0..rounds {
            let start = round * CHUNK as u64;
            let part = start..bytes.min(start + CHUNK as u64);
            turn.rounds += 1;
            self.round(communicator, memory, turn.rounds, Shown { call: self.call, number, round }, &part)?;
        }
        count(self.call.kind, bytes);
        Ok(())
    }

    /// One round; `part`: which bytes of what each rank sends.
    fn round(
        &self,
        communicator: &Communicator,
        memory: &Memory,
        round: u64,
        shown: Shown,
        part: &Range<u64>,
    ) -> Result<(), Trouble> {
        let (segment, rank) = (&communicator.segment, communicator.rank);
        if let Some(_failed) = segment.failure() {
            return Err(Trouble::Failed);
        }
        let what = || format!("call {} ({})", shown.number, shown.call);
        let own = segment.slot(rank);
        // Nobody reads this rank's part of the round before any more.
        communicator.wait_for(&|other| segment.slot(other).done.load(Ordering::SeqCst) + 1 < round, &what)?;
        let bytes = (part.end - part.start) as usize;
        // SAFETY: from here until `posted` the slot is this rank's alone, and it has one call at a time.
        let data = unsafe { &mut (&mut *own.data.get())[..bytes] };
        if self.call.kind != kind::BROADCAST || self.call.root == rank {
            memory.load(self.send + part.start, data).map_err(|fault| told(communicator, &self.call, fault))?;
        }
        // SAFETY: as above.
        unsafe { own.shown.get().write(shown) };
        own.posted.store(round, Ordering::SeqCst);
        segment.ring();
        communicator.wait_for(&|other| segment.slot(other).posted.load(Ordering::SeqCst) < round, &what)?;
        check(communicator)?;
        self.receive(communicator, memory, part).map_err(|fault| told(communicator, &self.call, fault))?;
        own.done.store(round, Ordering::SeqCst);
        segment.ring();
        Ok(())
    }

    /// Takes what this rank needs of the part that all have posted.
    fn receive(&self, communicator: &Communicator, memory: &Memory, part: &Range<u64>) -> Result<(), Fault> {
        let (rank, ranks) = (communicator.rank, communicator.ranks());
        let bytes = (part.end - part.start) as usize;
        // SAFETY: as in `check`.
        let data = |rank| unsafe { &(&*communicator.segment.slot(rank).data.get())[..bytes] };
        match self.call.kind {
            kind::ALL_GATHER => {
                let of_rank = self.call.bytes(ranks);
                (0..ranks).try_for_each(|other| {
                    memory.store(self.receive + u64::from(other) * of_rank + part.start, data(other))
                })
            }
            kind::BROADCAST => memory.store(self.receive + part.start, data(self.call.root)),
            kind::REDUCE if self.call.root != rank => Ok(()),
            kind::REDUCE_SCATTER => {
                let of_rank = self.call.bytes(ranks) / u64::from(ranks);
                let own = u64::from(rank) * of_rank..(u64::from(rank) + 1) * of_rank;
                let (start, end) = (part.start.max(own.start), part.end.min(own.end));
                if start >= end {
                    return Ok(());
                }
                let inside = (start - part.start) as usize..(end - part.start) as usize;
                memory
                    .store(self.receive + (start - own.start), &self.reduced(ranks, |rank| &data(rank)[inside.clone()]))
            }
            _ => memory.store(self.receive + part.start, &self.reduced(ranks, data)),
        }
    }

    fn reduced<'a>(&self, ranks: u32, data: impl Fn(u32) -> &'a [u8]) -> Vec<u8> {
        let of_ranks: Vec<_> = (0..ranks).map(data).collect();
        let mut result = vec![0; of_ranks.first().map_or(0, |bytes| bytes.len())];
        reduce(self.call.data_type, self.call.operation, &of_ranks, &mut result);
        result
    }
}
