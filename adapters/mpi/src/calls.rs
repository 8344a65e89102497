//! The calls of MPI that a communicator makes, over a duplicate of the user's: each code that comes back is looked at.

use crate::ENGINE;
use exo_kernels::{Error, Result};
use mpi::ffi;
use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;

/// A communicator of our own: messages of the user's never meet ours. Errors come back as codes.
pub(crate) struct Duplicate(ffi::MPI_Comm);

// SAFETY: a handle, which MPI lets every thread use; which thread may call when is what `Turns` finds out before each call.
unsafe impl Send for Duplicate {}
// SAFETY: as above.
unsafe impl Sync for Duplicate {}

/// What MPI has a type for, of the same size and bits.
pub(crate) trait Element: Copy {
    fn datatype() -> ffi::MPI_Datatype;
}

impl Element for u32 {
    fn datatype() -> ffi::MPI_Datatype {
        // SAFETY: a constant of the library.
        unsafe { ffi::RSMPI_UINT32_T }
    }
}

impl Element for u64 {
    fn datatype() -> ffi::MPI_Datatype {
        // SAFETY: a constant of the library.
        unsafe { ffi::RSMPI_UINT64_T }
    }
}

impl Duplicate {
    /// A duplicate of a communicator, which is a call that all of its ranks make.
    ///
    /// # Safety
    /// `communicator` is live, and MPI is initialised and not finalised.
    pub(crate) unsafe fn of(communicator: ffi::MPI_Comm) -> Result<Self> {
        let mut between_groups = 0;
        // SAFETY: the communicator is live, the caller promises; the result is written to a live number.
        check("MPI_Comm_test_inter", unsafe { ffi::MPI_Comm_test_inter(communicator, &raw mut between_groups) })?;
        if between_groups != 0 {
            return Err(engine(
                "MPI_Comm_test_inter",
                "a communicator between two groups was given, one of a group is expected",
            ));
        }
        // SAFETY: a constant of the library.
        let mut duplicate = unsafe { ffi::RSMPI_COMM_NULL };
        // SAFETY: as above; errors of this call are the handler's that the user's communicator has.
        check("MPI_Comm_dup", unsafe { ffi::MPI_Comm_dup(communicator, &raw mut duplicate) })?;
        // SAFETY: the duplicate is live and ours alone.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(duplicate, ffi::RSMPI_ERRORS_RETURN) };
        check("MPI_Comm_set_errhandler", code)?;
        Ok(Self(duplicate))
    }

    pub(crate) fn rank(&self) -> Result<usize> {
        let mut rank = 0;
        // SAFETY: the communicator is live until `free`, which takes it; the result is written to a live number.
        check("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(self.0, &raw mut rank) })?;
        Ok(rank as usize)
    }

    pub(crate) fn ranks(&self) -> Result<usize> {
        let mut ranks = 0;
        // SAFETY: as in `rank`.
        check("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(self.0, &raw mut ranks) })?;
        Ok(ranks as usize)
    }

    /// `all`, `[P, n]`, of the n that each rank has. The caller has seen to it that n is the same on all ranks.
    pub(crate) fn all_gather<T: Element>(&self, own: &[T], all: &mut [T]) -> Result<()> {
        let (count, datatype) = (in_c(own.len())?, T::datatype());
        debug_assert!(all.len().is_multiple_of(own.len()));
        // SAFETY: `own` is count elements and `all` as many of each rank; they do not overlap, and both outlive a call that blocks.
        let code = unsafe {
            ffi::MPI_Allgather(own.as_ptr().cast(), count, datatype, all.as_mut_ptr().cast(), count, datatype, self.0)
        };
        check("MPI_Allgather", code)
    }

    /// Words of the rank `root`, brought to all others in place; as many on each.
    pub(crate) fn broadcast(&self, words: &mut [u32], root: usize) -> Result<()> {
        let (count, root) = (in_c(words.len())?, in_c(root)?);
        // SAFETY: as many words as the count says, which outlive a call that blocks.
        let code = unsafe { ffi::MPI_Bcast(words.as_mut_ptr().cast(), count, u32::datatype(), root, self.0) };
        check("MPI_Bcast", code)
    }

    /// Starts to add up over ranks: `own`, the bits of f32, is this rank's, `sums` gets what all have. As many on each rank, in pieces of
    /// `largest` numbers at most. What it is given comes back from [`Sum::wait`].
    pub(crate) fn start_sum<'s>(
        &self,
        own: Vec<u32>,
        sums: &'s mut [f32],
        mut requests: Vec<Request>,
        largest: usize,
    ) -> Result<Sum<'s>> {
        requests.clear();
        let mut sum = Sum { own, requests, sums: PhantomData };
        for (own, sums) in sum.own.chunks(largest).zip(sums.chunks_mut(largest)) {
            let count = in_c(own.len())?;
            // SAFETY: constants of the library.
            let (mut request, float, add) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM) };
            let (own, sums) = (own.as_ptr().cast::<c_void>(), sums.as_mut_ptr().cast::<c_void>());
            // SAFETY: both are count numbers of 32 bits that do not overlap. They stay where they are, and nobody touches them, until the
            // request is complete: `sum` owns the one and borrows the other, and waits before it is dropped.
            let code = unsafe { ffi::MPI_Iallreduce(own, sums, count, float, add, self.0, &raw mut request) };
            check("MPI_Iallreduce", code)?;
            sum.requests.push(Request(request));
        }
        Ok(sum)
    }

    /// Gives the communicator back, which is a call that all ranks make.
    pub(crate) fn free(mut self) -> Result<()> {
        // SAFETY: live, and not used any more.
        check("MPI_Comm_free", unsafe { ffi::MPI_Comm_free(&raw mut self.0) })
    }
}

/// Something that MPI is doing meanwhile.
pub(crate) struct Request(ffi::MPI_Request);

// SAFETY: a handle, as `Duplicate`; between calls there is none in a buffer of them.
unsafe impl Send for Request {}

/// A sum over ranks that is under way.
pub(crate) struct Sum<'s> {
    own: Vec<u32>,
    requests: Vec<Request>,
    sums: PhantomData<&'s mut [f32]>,
}

impl Sum<'_> {
    /// Waits for it. Gives back what [`Duplicate::start_sum`] was given, to be used again.
    pub(crate) fn wait(mut self) -> Result<(Vec<u32>, Vec<Request>)> {
        self.complete()?;
        Ok((std::mem::take(&mut self.own), std::mem::take(&mut self.requests)))
    }

    /// All requests are complete then, also after an error of one of them.
    fn complete(&mut self) -> Result<()> {
        let mut found = Ok(());
        for mut request in self.requests.drain(..) {
            // SAFETY: a request of ours that nobody has waited for.
            let code = unsafe { ffi::MPI_Wait(&raw mut request.0, ffi::RSMPI_STATUS_IGNORE) };
            found = found.and(check("MPI_Wait", code));
        }
        found
    }
}

impl Drop for Sum<'_> {
    /// After an error or a panic: MPI still writes the sums, which are the caller's again then.
    fn drop(&mut self) {
        let _ = self.complete();
    }
}

/// Whether calls can be made at all: MPI is initialised, and not finalised.
pub(crate) fn is_running() -> Result<bool> {
    let (mut initialized, mut finalized) = (0, 0);
    // SAFETY: calls that can be made at any time, on any thread; the results are written to live numbers.
    let codes = unsafe { (ffi::MPI_Initialized(&raw mut initialized), ffi::MPI_Finalized(&raw mut finalized)) };
    check("MPI_Initialized", codes.0)?;
    check("MPI_Finalized", codes.1)?;
    Ok(initialized != 0 && finalized == 0)
}

/// Which threads may call, as the library says it.
pub(crate) fn threading() -> Result<Threading> {
    let mut level = 0;
    // SAFETY: MPI is running, which callers have looked at; the result is written to a live number.
    check("MPI_Query_thread", unsafe { ffi::MPI_Query_thread(&raw mut level) })?;
    // SAFETY: constants of the library, which ascend.
    let (funneled, serialized, multiple) =
        unsafe { (ffi::RSMPI_THREAD_FUNNELED, ffi::RSMPI_THREAD_SERIALIZED, ffi::RSMPI_THREAD_MULTIPLE) };
    Ok(match level {
        level if level >= multiple => Threading::Multiple,
        level if level >= serialized => Threading::Serialized,
        level if level >= funneled => Threading::Funneled,
        _ => Threading::Single,
    })
}

/// As [`mpi::Threading`], whose conversion panics on a level that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threading {
    Single,
    Funneled,
    Serialized,
    Multiple,
}

/// Whether this is the thread that initialised MPI.
pub(crate) fn is_main_thread() -> Result<bool> {
    let mut main = 0;
    // SAFETY: MPI is running, which callers have looked at; any thread may ask.
    check("MPI_Is_thread_main", unsafe { ffi::MPI_Is_thread_main(&raw mut main) })?;
    Ok(main != 0)
}

/// A count as C has it. Callers cut what is longer into pieces.
fn in_c(count: usize) -> Result<c_int> {
    c_int::try_from(count).map_err(|_| Error::Parameter {
        name: "count",
        given: count as f64,
        expected: "at most i32::MAX",
    })
}

pub(crate) fn engine(call: &'static str, reason: impl Into<String>) -> Error {
    Error::Engine { engine: ENGINE, call, reason: reason.into() }
}

/// The error that a code is, in the library's words.
fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the text is as long as the library's longest, and one byte more.
    let code_of_text = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    let text = text.get(..length as usize).filter(|_| code_of_text == ffi::MPI_SUCCESS as c_int);
    let reason = text.map_or_else(String::new, |text| String::from_utf8_lossy(text).into_owned());
    Err(engine(call, format!("code {code}: {reason}")))
}
