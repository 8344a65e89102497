//! Ranks that are processes of an MPI program.

use crate::calls::{Duplicate, Request};
use crate::intent::{self, Call, Intent};
use crate::turns::Turns;
use exo_kernels::backend::{Backend, Host};
use exo_kernels::ranks::Communicator;
use exo_kernels::{Error, Result};
use mpi::ffi::MPI_Comm;
use mpi::traits::AsRaw;
use std::fmt;
use std::mem::{ManuallyDrop, take};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Words of one message at most, unless the user says otherwise: a gibibyte. Counts of MPI end at `i32::MAX` elements, but several
/// libraries are known to fail from two gibibytes on.
const LARGEST: usize = 1 << 28;

/// One rank of several that are processes of an MPI program, over the memory of the host.
///
/// Made of any communicator of the user's, such as the world or a row of it
/// ([`split_by_color`](mpi::topology::Communicator::split_by_color)), which it duplicates: the user's messages never meet its own. All
/// ranks make it, and drop it, at the same place in their order of collective calls.
///
/// **Which bits**: what is gathered and exchanged is copied. A sum has the bits that MPI's sum of f32 gives, the same on every rank, as MPI
/// requires of `MPI_Allreduce`; its P − 1 additions round to f32, in an order that the library chooses, by the number of elements for one.
///
/// **What goes wrong on one rank**: before each call ranks tell each other what they are about to do, 24 bytes each. So a rank that is
/// dropped, also by a panic or an early return, or that [aborts](Communicator::abort), is [`Error::Rank`] on the others in their next call,
/// and from then on; ranks that make different calls, or give different numbers of words, all get [`Error::RanksDisagree`], and are
/// together still. The rank that leaves waits for that next call, as `MPI_Finalize` would. A process that dies without it (killed,
/// or by `std::process::exit`) is what `mpirun` sees: it ends the others.
///
/// **Threads**: any thread may call, within what MPI was initialised for. `MPI_THREAD_FUNNELED` is the least: then calls come from the
/// thread that initialised it. With `MPI_THREAD_SERIALIZED` threads may take turns, and with `MPI_THREAD_MULTIPLE` call at once on
/// different communicators. A call out of turn is [`Error::Engine`]; nobody waits for a turn. The user's own calls are theirs to order.
pub struct Mpi {
    duplicate: ManuallyDrop<Duplicate>,
    rank: usize,
    ranks: usize,
    largest: usize,
    turns: Turns,
    scratch: Mutex<Scratch>,
    /// Why no call can be made any more: a rank is gone, or MPI has failed.
    ended: OnceLock<Error>,
}

/// Kept between calls; lent to the one that has its turn.
#[derive(Default)]
struct Scratch {
    intents: Vec<u64>,
    own: Vec<u32>,
    requests: Vec<Request>,
}

impl Mpi {
    /// A rank of the same ranks as a communicator of the user's. All of its ranks make this call.
    ///
    /// # Errors
    /// [`Error::Engine`] where MPI is not initialised, or with `MPI_THREAD_SINGLE`; for a communicator between two groups; where the
    /// duplicate cannot be made and the user's communicator returns errors.
    pub fn new(communicator: &(impl AsRaw<Raw = MPI_Comm> + ?Sized)) -> Result<Self> {
        let turns = Turns::new()?;
        let duplicate = {
            let _turn = turns.take()?;
            // SAFETY: a communicator of rsmpi's is live as long as MPI is running, which `Turns` has looked at.
            unsafe { Duplicate::of(communicator.as_raw()) }?
        };
        let (rank, ranks) = (duplicate.rank()?, duplicate.ranks()?);
        let (duplicate, scratch, ended) = (ManuallyDrop::new(duplicate), Mutex::default(), OnceLock::new());
        Ok(Self { duplicate, rank, ranks, largest: LARGEST, turns, scratch, ended })
    }

    /// Words of one message of MPI at most, for libraries or networks that want less than 2²⁸, a gibibyte: what is longer goes in
    /// pieces. The same on all ranks.
    ///
    /// # Errors
    /// [`Error::Parameter`] for none, or more than `i32::MAX`.
    pub fn with_largest_message(mut self, words: usize) -> Result<Self> {
        if words == 0 || i32::try_from(words).is_err() {
            return Err(Error::Parameter {
                name: "largest message",
                given: words as f64,
                expected: "1 to i32::MAX words",
            });
        }
        self.largest = words;
        Ok(self)
    }

    /// This rank, from 0 on: of the communicator that this one was made of.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// A call that all ranks make, once all have said that they make this one.
    fn together<R>(&self, call: Call, count: usize, run: impl FnOnce(&mut Scratch) -> Result<R>) -> Result<R> {
        let _turn = self.turns.take()?;
        if let Some(error) = self.ended.get() {
            return Err(error.clone());
        }
        let mut scratch = take(&mut *self.scratch.lock().unwrap_or_else(PoisonError::into_inner));
        let result = self.tell(call, count, &mut scratch).and_then(|()| run(&mut scratch));
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = scratch;
        // After a failure of MPI nobody knows what the ranks have of each other's messages.
        if let Err(error @ (Error::Rank { .. } | Error::Engine { .. })) = &result {
            let _ = self.ended.set(error.clone());
        }
        result
    }

    /// Tells the others what this rank is about to do, and looks at what they are.
    fn tell(&self, call: Call, count: usize, scratch: &mut Scratch) -> Result<()> {
        let own = Intent { call, count, largest: self.largest }.words();
        scratch.intents.resize(self.ranks * Intent::WORDS, 0);
        self.duplicate.all_gather(&own, &mut scratch.intents)?;
        intent::check(&scratch.intents)
    }

    /// `[P, n]`, of n on each rank that are in their place.
    fn gather(&self, words: &mut [u32], own: &mut Vec<u32>) -> Result<()> {
        let of_rank = words.len() / self.ranks;
        if of_rank == 0 {
            return Ok(());
        }
        if words.len() <= self.largest {
            own.clear();
            own.extend_from_slice(&words[self.rank * of_rank..][..of_rank]);
            return self.duplicate.all_gather(own, words);
        }
        for (root, words) in words.chunks_exact_mut(of_rank).enumerate() {
            for piece in words.chunks_mut(self.largest) {
                self.duplicate.broadcast(piece, root)?;
            }
        }
        Ok(())
    }

    /// This rank makes no other call: the others learn it in their next.
    fn leave(&self) -> Result<()> {
        let gone = Error::Rank { rank: self.rank, reason: "it is gone".to_owned() };
        let result = self.together(Call::Leave, 0, |_| Ok(()));
        let _ = self.ended.set(gone);
        result
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, ranks, largest, ended, .. } = self;
        f.debug_struct("Mpi")
            .field("rank", rank)
            .field("ranks", ranks)
            .field("largest", largest)
            .field("ended", &ended.get())
            .finish_non_exhaustive()
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let left = self.leave();
        // SAFETY: not used after this.
        let duplicate = unsafe { ManuallyDrop::take(&mut self.duplicate) };
        // Ranks that have heard of each other's end are together, so all of them free it. Where MPI has failed, or is finalised, or this
        // thread may not call it, the handle is left to the process.
        if let (Err(Error::Rank { .. }), Ok(_turn)) = (left, self.turns.take()) {
            let _ = duplicate.free();
        }
    }
}

impl<B: Backend<Memory = Host>> Communicator<B> for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, _: &B, words: &mut [u32]) -> Result<()> {
        if !words.len().is_multiple_of(self.ranks) {
            let (given, expected) = (words.len(), words.len() / self.ranks * self.ranks);
            return Err(Error::Length { what: "words of an exchange", given, expected });
        }
        self.together(Call::AllGather, words.len(), |scratch| self.gather(words, &mut scratch.own))
    }

    /// The ranks wait for each other before it is begun; behind `meanwhile` is hidden as much of it as the library does
    /// without being called (Open MPI by itself: the first messages, and what the network does).
    fn sum(&self, _: &B, numbers: &mut [f32], meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut done = None;
        let result = self.together(Call::Sum, numbers.len(), |scratch| {
            let (mut own, requests) = (take(&mut scratch.own), take(&mut scratch.requests));
            own.clear();
            own.extend_from_slice(bytemuck::cast_slice(numbers));
            let sum = self.duplicate.start_sum(own, numbers, requests, self.largest)?;
            done = Some(meanwhile());
            (scratch.own, scratch.requests) = sum.wait()?;
            Ok(())
        });
        // Exactly once, also where the sum was not begun.
        let done = done.unwrap_or_else(meanwhile);
        result.and(done)
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        self.together(Call::Exchange, words.len(), |scratch| {
            let mut all = vec![0; self.ranks * words.len()];
            all[self.rank * words.len()..][..words.len()].copy_from_slice(words);
            self.gather(&mut all, &mut scratch.own)?;
            Ok(Some(all))
        })
    }

    /// The others get [`Error::Rank`] in their next call, for which this one waits. Nobody's process is ended, as `MPI_Abort` would.
    fn abort(&self) {
        let _ = self.leave();
    }
}
