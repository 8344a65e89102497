//! Which thread may call MPI when: as many at once as MPI was initialised for, and one at a time on one communicator.

use crate::calls::{Threading, engine, is_main_thread, is_running, threading};
use exo_kernels::Result;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The thread of this process that is in a call, where only one may be; 0 for none.
static CALLING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Its address tells threads apart.
    static PLACE: u8 = const { 0 };
}

/// Whose turn it is on one communicator. Nobody waits for a turn: a call out of turn is a mistake, and refused.
#[derive(Debug)]
pub(crate) struct Turns {
    level: Threading,
    taken: AtomicBool,
}

/// A turn: ended when it is dropped.
pub(crate) struct Turn<'t> {
    taken: &'t AtomicBool,
    of_process: bool,
}

impl Turns {
    /// As MPI was initialised.
    pub(crate) fn new() -> Result<Self> {
        if !is_running()? {
            return Err(engine("MPI_Initialized", "MPI is not initialised, or finalised"));
        }
        let level = threading()?;
        if level == Threading::Single {
            // The processes have more threads than one: those that compute.
            return Err(engine(
                "MPI_Query_thread",
                "MPI was initialised with MPI_THREAD_SINGLE, at least MPI_THREAD_FUNNELED is needed \
                 (mpi::initialize_with_threading)",
            ));
        }
        Ok(Self { level, taken: AtomicBool::new(false) })
    }

    /// This thread's turn.
    pub(crate) fn take(&self) -> Result<Turn<'_>> {
        if !is_running()? {
            return Err(engine("MPI_Finalized", "MPI is finalised"));
        }
        if self.level == Threading::Funneled && !is_main_thread()? {
            return Err(engine(
                "MPI_Is_thread_main",
                "called by another thread than the one that initialised MPI, with MPI_THREAD_FUNNELED; \
                 MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE is needed",
            ));
        }
        if self.taken.swap(true, Ordering::Acquire) {
            return Err(engine(
                "a call",
                "begun during another one of the same communicator; ranks need one order of calls",
            ));
        }
        let mut turn = Turn { taken: &self.taken, of_process: false };
        if self.level == Threading::Serialized {
            let place = PLACE.with(|place| std::ptr::from_ref(place) as usize);
            match CALLING.compare_exchange(0, place, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => turn.of_process = true,
                // A call of another communicator within `meanwhile`.
                Err(calling) if calling == place => {}
                Err(_) => {
                    return Err(engine(
                        "MPI_Query_thread",
                        "two threads called at once, with MPI_THREAD_SERIALIZED; MPI_THREAD_MULTIPLE is needed",
                    ));
                }
            }
        }
        Ok(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.of_process {
            CALLING.store(0, Ordering::Release);
        }
        self.taken.store(false, Ordering::Release);
    }
}
