//! A communicator of NCCL's, which threads may use and end side by side.

use crate::cuda::context::changed;
use crate::cuda::nccl::library::{Handle, Library, UniqueId};
use crate::error::{Error, Result};
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A communicator, and how many calls use it at the moment.
pub(super) struct Owned {
    pub(super) library: &'static Library,
    state: Mutex<State>,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// Another framework's: never destroyed here.
    foreign: bool,
}

struct State {
    handle: Handle,
    uses: usize,
    /// `None` while it may be used.
    end: Option<End>,
}

/// How a communicator ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// When what is under way is done.
    Destroyed,
    /// At once: what is under way fails.
    Aborted,
}

// SAFETY: NCCL's communicators may be used by any thread. What they forbid is an end while a call uses them, which the counter
// excludes.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Owned {
    /// A communicator of `ranks` ranks, of which all must come. The device is that of the current context.
    pub(super) fn new(id: [u8; 128], rank: usize, ranks: usize) -> Result<Self> {
        let library = Library::get()?;
        let number = |what: usize| c_int::try_from(what).unwrap_or(c_int::MAX);
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the communicator.
        let made = unsafe { (library.ncclCommInitRank)(&raw mut handle, number(ranks), UniqueId(id), number(rank)) };
        changed();
        let owned = Self::of(library, handle, (rank, ranks), false);
        library.called("ncclCommInitRank", made).map(|()| owned)
    }

    /// One that another framework owns.
    ///
    /// # Safety
    /// It is one, and is there as long as this value.
    pub(super) unsafe fn of_other(handle: Handle) -> Result<Self> {
        let library = Library::get()?;
        let (mut rank, mut ranks) = (-1, -1);
        // SAFETY: a communicator, by the caller's promise, and places for the answers.
        let (of_rank, of_ranks) = unsafe {
            ((library.ncclCommUserRank)(handle, &raw mut rank), (library.ncclCommCount)(handle, &raw mut ranks))
        };
        library.called("ncclCommUserRank", of_rank)?;
        library.called("ncclCommCount", of_ranks)?;
        let number = |what: c_int| usize::try_from(what).unwrap_or_default();
        Ok(Self::of(library, handle, (number(rank), number(ranks)), true))
    }

    fn of(library: &'static Library, handle: Handle, (rank, ranks): (usize, usize), foreign: bool) -> Self {
        // A null one is one that was not made.
        let end = handle.is_null().then_some(End::Aborted);
        Self { library, state: Mutex::new(State { handle, uses: 0, end }), rank, ranks, foreign }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call of NCCL's. Nothing is locked meanwhile; an end that comes meanwhile comes into effect afterwards.
    fn with(&self, name: &'static str, call: impl FnOnce(&Library, Handle) -> c_int) -> Result<()> {
        let handle = {
            let mut state = self.state();
            if state.end.is_some() {
                return Err(Error::Rank { rank: self.rank, reason: "it has aborted".to_owned() });
            }
            state.uses += 1;
            state.handle
        };
        let code = call(self.library, handle);
        // NCCL works with the device's primary context, and leaves it current.
        changed();
        let ended = {
            let mut state = self.state();
            state.uses -= 1;
            state.end.filter(|_| state.uses == 0)
        };
        if let Some(end) = ended {
            self.end_now(handle, end);
        }
        self.library.called(name, code)
    }

    /// An error that came up while work was under way, on this rank or another.
    pub(super) fn check(&self) -> Result<()> {
        const CALL: &str = "ncclCommGetAsyncError";
        let mut error = 0;
        // SAFETY: a communicator that is in use, and a place for the answer.
        self.with(CALL, |library, handle| unsafe { (library.ncclCommGetAsyncError)(handle, &raw mut error) })?;
        self.library.called(CALL, error)
    }

    /// Puts work into a stream, unless an error has come up before.
    pub(super) fn enqueue(&self, name: &'static str, call: impl FnOnce(&Library, Handle) -> c_int) -> Result<()> {
        self.check()?;
        self.with(name, call)
    }

    /// Ends it, once.
    pub(super) fn end(&self, end: End) {
        let handle = {
            let mut state = self.state();
            if state.end.is_some() {
                return;
            }
            state.end = Some(end);
            (state.uses == 0).then_some(state.handle)
        };
        if let Some(handle) = handle {
            self.end_now(handle, end);
        }
    }

    /// The last use of the handle.
    fn end_now(&self, handle: Handle, end: End) {
        if self.foreign {
            return;
        }
        // An error here: it is gone, whatever was wrong with it.
        let _ = match end {
            // SAFETY: a communicator of this value's, which nothing uses after it.
            End::Destroyed => unsafe { (self.library.ncclCommDestroy)(handle) },
            // SAFETY: as above.
            End::Aborted => unsafe { (self.library.ncclCommAbort)(handle) },
        };
        changed();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.end(if std::thread::panicking() { End::Aborted } else { End::Destroyed });
    }
}
