//! Ranks by NCCL: a [`Communicator`] whose gathers and sums are work of streams.

mod library;
mod notes;
mod owned;
mod side;

use crate::cuda::context::{CurrentContext, Kept};
use crate::cuda::driver::{called, is_capturing};
use crate::cuda::lent::Lender;
use crate::cuda::nccl::library::{Library, NUMBERS, SUM, UniqueId, WORDS};
use crate::cuda::nccl::notes::Notes;
use crate::cuda::nccl::owned::{End, Owned};
use crate::cuda::nccl::side::{Side, event};
use crate::cuda::{Cuda, ViewMut};
use crate::data::memory::Place;
use crate::error::{Error, Result, check_length};
use crate::ranks::Communicator;
use crate::ranks::gather::check_rank;
use cudarc::driver::{CudaEvent, CudaStream, result};
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use crate::cuda::nccl::library::nccl_present;

/// How long an exchange between hosts waits for the other ranks, unless [`Nccl::with_time_limit`] says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// One rank of several, each with a device of its own, that exchange by NCCL (2.4 or later, looked for when it is first needed).
///
/// - [`all_gather`](Communicator::all_gather) is one `ncclAllGather` on the backend's stream. [`sum`](Communicator::sum) is one
///   `ncclAllReduce` on a stream of its own, which the backend's stream waits for when `meanwhile` has been enqueued there. Neither waits
///   for the device, and both can be captured in a CUDA graph, by all ranks alike.
/// - [`exchange`](Communicator::exchange) has a communicator, a stream and memory of its own, and waits for these alone. While the
///   backend's stream is being captured it gives `None`: ranks must then be sure of one another. `docs/ranks.md` says what that means.
/// - Every rank makes the same calls in the same order, from as many threads as it likes, if they keep that order.
/// - NCCL's own errors are [`Error::Engine`], with NCCL's call, text and `ncclResult_t`. What comes up while work is under way, here or on
///   another rank, is the next call's error, or that of [`Nccl::status`]: what was gathered or added up since is of no use. After an error
///   this rank has left: what it has under way is broken off, and every later call gives the same error. Whether the other ranks hear of
///   it is NCCL's matter; an exchange gives up after a time ([`with_time_limit`](Self::with_time_limit)).
/// - What is dropped waits for what is under way on all ranks; by a panic, or after an error, it is broken off.
pub struct Nccl {
    words: Owned,
    notes: Option<(Owned, Notes)>,
    sums: Lender<Option<Ends>>,
    side: Side,
    stream: Kept<Arc<CudaStream>>,
    time_limit: Duration,
    /// Why this rank has left.
    failed: OnceLock<Error>,
}

/// Where a sum on another stream begins and ends.
struct Ends {
    ready: Kept<CudaEvent>,
    done: Kept<CudaEvent>,
}

impl Nccl {
    /// A name for a communicator that is to be made, 128 bytes: asked for on one rank, and brought to all the others by the caller's own
    /// means.
    ///
    /// # Errors
    /// [`Error::NoNccl`], or what NCCL says.
    pub fn unique_id() -> Result<[u8; 128]> {
        let library = Library::get()?;
        let mut id = UniqueId([0; 128]);
        // SAFETY: a place for it.
        let made = unsafe { (library.ncclGetUniqueId)(&raw mut id) };
        library.called("ncclGetUniqueId", made).map(|()| id.0)
    }

    /// Rank `rank` of `ranks`, on the backend's device, which no other rank may have; its context must be the device's primary one.
    /// Waits until all ranks have come.
    ///
    /// # Errors
    /// [`Error::NoNccl`], [`Error::Parameter`] for a rank that is not below the number of ranks, or what the driver or NCCL says.
    pub fn new(cuda: &Cuda, id: &[u8; 128], rank: usize, ranks: usize) -> Result<Self> {
        check_rank(rank, ranks)?;
        if i32::try_from(ranks).is_err() {
            return Err(Error::Parameter { name: "ranks", given: ranks as f64, expected: "at most 2^31 - 1" });
        }
        // A library that is not there is the first thing to say.
        Library::get()?;
        let _current = CurrentContext::enter(cuda.stream().context())?;
        Self::over(cuda, Owned::new(*id, rank, ranks)?)
    }

    /// A communicator that the caller owns: PyTorch's, or that of a trainer in C++. It is not destroyed with this value, and not aborted
    /// when an error comes up; the one for exchanges between hosts, which is made here by all ranks, is.
    ///
    /// # Errors
    /// As [`Nccl::new`].
    ///
    /// # Safety
    /// `communicator` is an `ncclComm_t` of the NCCL that is loaded in this process, on the backend's device. It is there as long as this
    /// value and the graphs that hold calls of it, and nobody calls it out of the order that all ranks keep.
    pub unsafe fn from_raw(cuda: &Cuda, communicator: *mut c_void) -> Result<Self> {
        let _current = CurrentContext::enter(cuda.stream().context())?;
        // SAFETY: the caller's promise.
        Self::over(cuda, unsafe { Owned::of_other(communicator)? })
    }

    fn over(cuda: &Cuda, words: Owned) -> Result<Self> {
        let context = cuda.stream().context();
        let mut nccl = Self {
            words,
            notes: None,
            sums: Lender::default(),
            side: Side::new(context)?,
            stream: Kept::new(cuda.stream().clone()),
            time_limit: TIME_LIMIT,
            failed: OnceLock::new(),
        };
        let made = nccl.notes();
        nccl.notes = Some(nccl.kept(made)?);
        Ok(nccl)
    }

    /// The second communicator: rank 0's id for it comes by the first.
    fn notes(&self) -> Result<(Owned, Notes)> {
        let notes = Notes::new(self.stream.context())?;
        let (rank, ranks) = (self.words.rank, self.words.ranks);
        let mut id = [0_u32; 32];
        if rank == 0 {
            bytemuck::cast_slice_mut(&mut id).copy_from_slice(&Self::unique_id()?);
        }
        let ids = notes.gather(&self.words, &id, self.time_limit)?;
        let mut id = [0; 128];
        id.copy_from_slice(bytemuck::cast_slice(&ids[..32]));
        Ok((Owned::new(id, rank, ranks)?, notes))
    }

    /// Without exchanges between hosts: [`exchange`](Communicator::exchange) gives `None` always, and no rank learns what another refuses,
    /// nor whether they agree. All ranks alike.
    #[must_use]
    pub fn without_notes(mut self) -> Self {
        let current = CurrentContext::enter(self.stream.context());
        self.notes = None;
        drop(current);
        self
    }

    /// How long an exchange between hosts waits for the other ranks; 10 minutes otherwise.
    #[must_use]
    pub fn with_time_limit(mut self, longest: Duration) -> Self {
        self.time_limit = longest;
        self
    }

    /// Whether all is well as far as it has come: to be asked where the stream has been waited for, before what was gathered or added up is
    /// used.
    ///
    /// # Errors
    /// [`Error::Engine`] for what has come up since the last call, on this rank or another; that of an earlier call.
    pub fn status(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))?;
        let _current = CurrentContext::enter(self.stream.context())?;
        self.kept(self.words.check())
    }

    /// Checks what a call is made with, and that this rank has not left.
    fn check(&self, backend: &Cuda) -> Result<()> {
        backend.check_context("communicator", Some(self.stream.context()))?;
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// After an error of NCCL's or the driver's this rank leaves: nothing of it is to be waited for.
    fn kept<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.leave(error.clone());
        }
        result
    }

    fn leave(&self, why: Error) {
        let _ = self.failed.set(why);
        if let Ok(_current) = CurrentContext::enter(self.stream.context()) {
            self.end(End::Aborted);
        }
    }

    fn end(&self, end: End) {
        self.words.end(end);
        if let Some((communicator, _)) = &self.notes {
            communicator.end(end);
        }
    }

    /// The sum on the side stream, and `meanwhile` on the backend's.
    fn sum_aside(
        &self,
        ends: &Ends,
        stream: &Arc<CudaStream>,
        (address, count): (u64, usize),
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (own, side) = (stream.cu_stream(), self.side.stream().cu_stream());
        let flags = cudarc::driver::sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        let begun = || {
            // SAFETY: events and streams that are alive, of one context.
            called("cuEventRecord", unsafe { result::event::record(ends.ready.cu_event(), own) })?;
            // SAFETY: as above.
            called("cuStreamWaitEvent", unsafe { result::stream::wait_event(side, ends.ready.cu_event(), flags) })
        };
        let put = || {
            self.words.enqueue("ncclAllReduce", |library, handle| {
                let numbers = address as *mut c_void;
                // SAFETY: a communicator; so many numbers, which nothing else touches until the backend's stream has waited for this one.
                unsafe { (library.ncclAllReduce)(numbers, numbers, count, NUMBERS, SUM, handle, side.cast()) }
            })
        };
        self.kept(begun())?;
        let put = put();
        // Whatever comes: a stream that takes part in a capture must be joined again, and what comes next must wait.
        // SAFETY: as above.
        let recorded = called("cuEventRecord", unsafe { result::event::record(ends.done.cu_event(), side) });
        let done = meanwhile();
        let joined = recorded.and_then(|()| {
            // SAFETY: as above.
            called("cuStreamWaitEvent", unsafe { result::stream::wait_event(own, ends.done.cu_event(), flags) })
        });
        self.kept(put.and(joined))?;
        done
    }
}

impl Communicator<Cuda> for Nccl {
    fn rank(&self) -> usize {
        self.words.rank
    }

    fn ranks(&self) -> usize {
        self.words.ranks
    }

    /// # Errors
    /// [`Error::Length`] for a number of words that is no multiple of P, [`Error::Device`] for a backend or words of another context,
    /// [`Error::Engine`] for what NCCL says.
    fn all_gather(&self, backend: &Cuda, mut words: ViewMut<'_, u32>) -> Result<()> {
        let count = words.len() / self.words.ranks.max(1);
        check_length("words of an exchange", words.len(), count * self.words.ranks)?;
        backend.check_place_mut("words of an exchange", &words)?;
        self.check(backend)?;
        let _current = CurrentContext::enter(backend.stream().context())?;
        let stream = backend.stream();
        let (address, _write) = words.address(stream);
        let own = address + (self.words.rank * count * size_of::<u32>()) as u64;
        self.kept(self.words.enqueue("ncclAllGather", |library, handle| {
            let (send, receive) = (own as *const c_void, address as *mut c_void);
            // SAFETY: a communicator; P times as many words, of which this rank's are in their place, borrowed until this is in the
            // order of the stream.
            unsafe { (library.ncclAllGather)(send, receive, count, WORDS, handle, stream.cu_stream().cast()) }
        }))
    }

    /// # Errors
    /// As [`all_gather`](Self::all_gather); what `meanwhile` gives.
    fn sum(
        &self,
        backend: &Cuda,
        mut numbers: ViewMut<'_, f32>,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        backend.check_place_mut("numbers of a sum", &numbers)?;
        self.check(backend)?;
        let _current = CurrentContext::enter(backend.stream().context())?;
        let count = numbers.len();
        // Recorded for other streams when this is dropped: behind the sum.
        let (address, _write) = numbers.address(backend.stream());
        self.sums.with(Option::default, |ends| {
            let context = self.stream.context();
            let ends = match ends {
                Some(ends) => ends,
                None => {
                    ends.insert(self.kept(event(context).and_then(|ready| Ok(Ends { ready, done: event(context)? })))?)
                }
            };
            self.sum_aside(ends, backend.stream(), (address, count), meanwhile)
        })
    }

    /// `None` while the backend's stream is being captured, and [`without_notes`](Nccl::without_notes). All ranks bring as many words.
    ///
    /// # Errors
    /// [`Error::Engine`] and [`Error::Cuda`] for what NCCL and the driver say; [`Error::Rank`] with this rank's number where the others have not come in time.
    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        if let Some(error) = self.failed.get() {
            return Err(error.clone());
        }
        let Some((communicator, notes)) = &self.notes else { return Ok(None) };
        let _current = CurrentContext::enter(self.stream.context())?;
        if is_capturing(&self.stream)? {
            return Ok(None);
        }
        let well = self.words.check();
        self.kept(well.and_then(|()| notes.gather(communicator, words, self.time_limit))).map(Some)
    }

    /// What this rank has under way is broken off, and every later call is an error. Of a communicator that is the caller's
    /// ([`Nccl::from_raw`]) nothing is: but the others' exchanges fail.
    fn abort(&self) {
        self.leave(Error::Rank { rank: self.words.rank, reason: "it has aborted".to_owned() });
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let end = if std::thread::panicking() { End::Aborted } else { End::Destroyed };
        if let Ok(_current) = CurrentContext::enter(self.stream.context()) {
            self.end(end);
        }
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Nccl")
            .field("rank", &self.words.rank)
            .field("ranks", &self.words.ranks)
            .finish_non_exhaustive()
    }
}
