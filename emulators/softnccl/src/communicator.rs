//! A rank of a communicator: joining, waiting for the others, leaving.

use crate::call::{INVALID_ARGUMENT, REMOTE_ERROR, Status};
use crate::control::patience;
use crate::driver::{current_context, set_current_context, synchronise};
use crate::segment::{FREE, LEFT, Segment};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often one who waits looks whether the others are alive.
const LOOK: Duration = Duration::from_millis(20);

/// The communicator has failed: what that was stands in the segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

/// One rank of a communicator.
pub(crate) struct Communicator {
    pub(crate) segment: Segment,
    pub(crate) rank: u32,
    /// The device that was current when it was made.
    pub(crate) device: i32,
    /// One call at a time; held while the others are waited for, as NCCL's kernels of one communicator wait for each other.
    turn: Mutex<Progress>,
    /// Streams that calls were put into, with their contexts.
    streams: Mutex<Vec<(u64, u64)>>,
}

/// What this rank has done.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) calls: u64,
    pub(crate) rounds: u64,
}

/// Where unique ids' files are.
fn folder() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}

/// A name that no other communicator has: 128 bytes that end with zeros.
pub(crate) fn unique_id() -> [u8; 128] {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("softnccl-{}-{}-{made}", std::process::id(), now.as_nanos());
    let mut id = [0; 128];
    id[..name.len()].copy_from_slice(name.as_bytes());
    id
}

/// The file of a unique id; `None` if it was not made here.
fn path_of(id: &[u8; 128]) -> Option<PathBuf> {
    let name = std::str::from_utf8(id).ok()?.trim_end_matches('\0');
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (plain && name.starts_with("softnccl-")).then(|| folder().join(name))
}

impl Communicator {
    /// Takes a rank's place; the others may not be there yet.
    pub(crate) fn join(id: &[u8; 128], ranks: u32, rank: u32, device: i32) -> Result<Self, (Status, String)> {
        let Some(path) = path_of(id) else {
            return Err((INVALID_ARGUMENT, "the unique id is none of ncclGetUniqueId's".to_owned()));
        };
        // Before there is a file, which nobody would take away.
        if rank >= ranks {
            return Err((INVALID_ARGUMENT, format!("rank {rank} given, below {ranks} expected")));
        }
        let segment = Segment::open(&path, ranks)?;
        segment.take_place(rank)?;
        Ok(Self { segment, rank, device, turn: Mutex::default(), streams: Mutex::default() })
    }

    /// Waits until all ranks are there.
    pub(crate) fn meet(&self) -> Result<(), Failed> {
        let met = self.wait_for(&|rank| self.segment.slot(rank).state.load(Ordering::SeqCst) == FREE, &|| {
            "making the communicator".to_owned()
        });
        // Nobody else will look for the file.
        self.segment.unlink();
        met
    }

    /// Notes a stream that a call is put into, and its context.
    pub(crate) fn uses(&self, context: u64, stream: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if !streams.contains(&(context, stream)) {
            streams.push((context, stream));
        }
    }

    /// Waits for what is in those streams, but for a capture.
    pub(crate) fn finish(&self) -> Result<(), Status> {
        let streams = std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner));
        if streams.is_empty() {
            return Ok(());
        }
        let before = current_context()?;
        for (context, stream) in streams {
            set_current_context(context)?;
            synchronise(stream);
        }
        set_current_context(before)
    }

    /// The right to make a call on this communicator.
    pub(crate) fn turn(&self) -> MutexGuard<'_, Progress> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ranks(&self) -> u32 {
        self.segment.ranks()
    }

    /// Waits until no rank is behind. One that is, and that has left or died, will never come: then the communicator fails.
    pub(crate) fn wait_for(&self, is_behind: &dyn Fn(u32) -> bool, what: &dyn Fn() -> String) -> Result<(), Failed> {
        let behind = || (0..self.ranks()).find(|rank| is_behind(*rank));
        self.wait_until(&mut || behind().is_none(), &behind, what)
    }

    /// Waits until `ready`; meanwhile `behind` names a rank that is waited for.
    pub(crate) fn wait_until(
        &self,
        ready: &mut dyn FnMut() -> bool,
        behind: &dyn Fn() -> Option<u32>,
        what: &dyn Fn() -> String,
    ) -> Result<(), Failed> {
        let (began, mut looked) = (Instant::now(), Instant::now());
        loop {
            let bell = self.segment.bell();
            if ready() {
                return Ok(());
            }
            if self.segment.failure().is_some() {
                return Err(Failed);
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(why) = behind().and_then(|rank| self.why_not(rank, began.elapsed())) {
                    // What it has done before it went still counts.
                    if ready() {
                        return Ok(());
                    }
                    return Err(
                        self.fail(REMOTE_ERROR, &format!("{why}; rank {} waits for it in {}", self.rank, what()))
                    );
                }
            }
            self.segment.wait(bell, LOOK);
        }
    }

    /// Whether a rank has left or died.
    pub(crate) fn is_gone(&self, rank: u32) -> bool {
        let state = self.segment.slot(rank).state.load(Ordering::SeqCst);
        state == LEFT || (state != FREE && !self.segment.is_alive(rank))
    }

    /// Why a rank will not come.
    fn why_not(&self, rank: u32, waited: Duration) -> Option<String> {
        let state = self.segment.slot(rank).state.load(Ordering::SeqCst);
        if state == LEFT {
            return Some(format!("rank {rank} has left the communicator"));
        }
        if state != FREE && !self.segment.is_alive(rank) {
            return Some(format!("rank {rank} is gone: its process has ended"));
        }
        (waited >= patience()).then(|| format!("rank {rank} has not come within {:?}", patience()))
    }

    /// Fails the communicator for all ranks.
    pub(crate) fn fail(&self, code: Status, text: &str) -> Failed {
        if self.segment.fail(code, text) {
            eprintln!("softnccl: {text}");
        }
        Failed
    }

    /// This rank makes no more calls: the others need not wait for it.
    pub(crate) fn leave(&self) {
        self.segment.slot(self.rank).state.store(LEFT, Ordering::SeqCst);
        self.segment.ring();
    }
}
