//! What a test can ask of the loaded library: how often collectives were run and with how many bytes, and how long a rank waits.
//!
//! The test and the library each have their own copy of this crate's statics, so they talk through functions that the library
//! exports.

use softload::library;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What ranks of this process have run of one kind of call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Calls that a stream has come to; each replay of a graph anew.
    pub calls: u64,
    /// Bytes that the ranks brought to them, each its own; of receives and of broadcasts on other ranks than the root, what came.
    pub bytes: u64,
}

/// The same of every kind, over all ranks of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// `ncclAllReduce`.
    pub all_reduce: Count,
    /// `ncclAllGather`.
    pub all_gather: Count,
    /// `ncclReduceScatter`.
    pub reduce_scatter: Count,
    /// `ncclReduce`.
    pub reduce: Count,
    /// `ncclBroadcast`, `ncclBcast`.
    pub broadcast: Count,
    /// `ncclSend`.
    pub send: Count,
    /// `ncclRecv`.
    pub receive: Count,
}

/// Controls the software NCCL of this process.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    take: extern "C" fn(*mut Counts),
    be_patient: extern "C" fn(u64),
}

const TAKE: &CStr = c"softnccl_take_counts";
const BE_PATIENT: &CStr = c"softnccl_be_patient";

/// The control of the software NCCL, if [`crate::install`] has loaded it into this process; `None` where a real one is used.
pub fn control() -> Option<Control> {
    let take = library::symbol(c"libnccl.so", TAKE)?;
    let be_patient = library::symbol(c"libnccl.so", BE_PATIENT)?;
    // SAFETY: the two functions below, with these signatures; the library is never unloaded.
    unsafe {
        Some(Control {
            take: std::mem::transmute::<*mut c_void, extern "C" fn(*mut Counts)>(take),
            be_patient: std::mem::transmute::<*mut c_void, extern "C" fn(u64)>(be_patient),
        })
    }
}

impl Control {
    /// What was run since the last call of this.
    pub fn take_counts(&self) -> Counts {
        let mut counts = Counts::default();
        (self.take)(&raw mut counts);
        counts
    }

    /// How long a rank waits for another that is alive and does not come, before the communicator fails: 60 s unless this is called.
    pub fn be_patient(&self, longest: Duration) {
        (self.be_patient)(longest.as_millis() as u64);
    }
}

const KINDS: usize = size_of::<Counts>() / size_of::<Count>();

/// Calls and bytes of each kind.
static COUNTED: [[AtomicU64; 2]; KINDS] = [const { [const { AtomicU64::new(0) }; 2] }; KINDS];
/// In milliseconds.
static PATIENCE: AtomicU64 = AtomicU64::new(60_000);

/// Counts a call.
pub(crate) fn count(kind: u32, bytes: u64) {
    if let Some([calls, of_kind]) = COUNTED.get(kind as usize) {
        calls.fetch_add(1, Ordering::Relaxed);
        of_kind.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How long a rank waits for another.
pub(crate) fn patience() -> Duration {
    Duration::from_millis(PATIENCE.load(Ordering::Relaxed))
}

/// By this function the library is told from any other of its name.
#[unsafe(no_mangle)]
extern "C" fn softnccl_is_here() -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn softnccl_take_counts(counts: *mut Counts) {
    if counts.is_null() {
        return;
    }
    let taken = COUNTED.each_ref().map(|[calls, bytes]| Count {
        calls: calls.swap(0, Ordering::Relaxed),
        bytes: bytes.swap(0, Ordering::Relaxed),
    });
    let [all_reduce, all_gather, reduce_scatter, reduce, broadcast, send, receive] = taken;
    let taken = Counts { all_reduce, all_gather, reduce_scatter, reduce, broadcast, send, receive };
    // SAFETY: `Control` gives a place for them.
    unsafe { counts.write(taken) };
}

#[unsafe(no_mangle)]
extern "C" fn softnccl_be_patient(milliseconds: u64) {
    PATIENCE.store(milliseconds, Ordering::Relaxed);
}
