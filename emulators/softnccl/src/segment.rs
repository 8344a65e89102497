//! The memory that the ranks of a communicator share, threads and processes alike: a file, mapped by each.
//!
//! A rank that is alive holds a lock on one byte of the file, which the system takes from it when its process ends, whatever way
//! that is. What is announced by an atomic (`posted`, `done`, `failed`) is written before it and read after it.

use crate::call::{Call, INVALID_ARGUMENT, INVALID_USAGE, SYSTEM_ERROR, Status};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that a rank shows the others at once: a multiple of every element's.
pub(crate) const CHUNK: usize = 128 << 10;
/// Bytes that lie between two ranks at once.
pub(crate) const PARCEL: usize = 16 << 10;
/// More ranks than this are not supported.
pub(crate) const MOST_RANKS: u32 = 64;
/// Longest text of a failure, in bytes.
const TEXT: usize = 1024;

/// The start of the file.
#[repr(C)]
pub(crate) struct Header {
    /// 0 until a rank has come.
    ranks: AtomicU32,
    /// Counts changes: what waits, waits for another number here.
    bell: AtomicU32,
    /// 0; 1 while the failure is written; 2 from then on.
    failed: AtomicU32,
    code: AtomicU32,
    text_bytes: AtomicU32,
    text: UnsafeCell<[u8; TEXT]>,
}

/// What a rank shows all others.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// [`FREE`], [`PRESENT`] or [`LEFT`].
    pub(crate) state: AtomicU32,
    /// Rounds that it has shown its part of, and rounds that it has read everybody's part of.
    pub(crate) posted: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) shown: UnsafeCell<Shown>,
    pub(crate) data: UnsafeCell<[u8; CHUNK]>,
}

/// A rank's call, and where in it the round is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Shown {
    pub(crate) call: Call,
    /// Calls of all ranks before this one.
    pub(crate) number: u64,
    pub(crate) round: u64,
}

/// What lies on its way from one rank to another.
#[repr(C, align(64))]
pub(crate) struct Mailbox {
    /// Parcels that were put in, and those that were taken out.
    pub(crate) put: AtomicU64,
    pub(crate) taken: AtomicU64,
    /// The sender's call.
    pub(crate) call: UnsafeCell<Call>,
    pub(crate) data: UnsafeCell<[u8; PARCEL]>,
}

pub(crate) const FREE: u32 = 0;
pub(crate) const PRESENT: u32 = 1;
pub(crate) const LEFT: u32 = 2;

/// A mapped file.
pub(crate) struct Segment {
    file: File,
    path: PathBuf,
    memory: *mut c_void,
    bytes: usize,
    ranks: u32,
}

// SAFETY: what the pointer is to is shared between processes anyhow, and everything in it is an atomic or announced by one.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// Where the slots and the mailboxes begin, and how long the file is.
fn layout(ranks: u32) -> (usize, usize, usize) {
    let slots = size_of::<Header>().next_multiple_of(4096);
    let mailboxes = slots + ranks as usize * size_of::<Slot>();
    (slots, mailboxes, mailboxes + (ranks as usize).pow(2) * size_of::<Mailbox>())
}

/// A lock on one byte. `F_OFD_SETLK` belongs to the open file and not to the process, so that two ranks of one process exclude each
/// other too.
fn lock(file: &File, command: libc::c_int, kind: libc::c_int, byte: i64) -> std::io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: an open file, and a lock that the call may change.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The byte that is locked while the file is made; ranks' bytes are their numbers.
const MAKING: i64 = 1 << 20;

impl Segment {
    /// Opens the file, which the first rank makes. The others must name as many ranks.
    pub(crate) fn open(path: &Path, ranks: u32) -> Result<Self, (Status, String)> {
        if ranks == 0 || ranks > MOST_RANKS {
            return Err((INVALID_ARGUMENT, format!("{ranks} ranks given, 1 to {MOST_RANKS} expected")));
        }
        let system = |what: &str, error: &std::io::Error| (SYSTEM_ERROR, format!("{what} {}: {error}", path.display()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| system("opening", &error))?;
        lock(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, MAKING).map_err(|error| system("locking", &error))?;
        let bytes = layout(ranks).2;
        let found = file.metadata().map_err(|error| system("looking at", &error))?.len();
        if found == 0 {
            file.set_len(bytes as u64).map_err(|error| system("making", &error))?;
        } else if found != bytes as u64 {
            let text = format!("{ranks} ranks given, but another rank of this communicator gave another number");
            return Err((INVALID_ARGUMENT, text));
        }
        // SAFETY: a new mapping of a file that is as long, at an address of the system's choice.
        let memory = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(system("mapping", &std::io::Error::last_os_error()));
        }
        let segment = Self { file, path: path.to_owned(), memory, bytes, ranks };
        segment.header().ranks.store(ranks, Ordering::SeqCst);
        lock(&segment.file, libc::F_OFD_SETLK, libc::F_UNLCK, MAKING).map_err(|error| system("unlocking", &error))?;
        Ok(segment)
    }

    /// Takes a rank's place, for as long as this value lives.
    pub(crate) fn take_place(&self, rank: u32) -> Result<(), (Status, String)> {
        let taken = || (INVALID_USAGE, format!("rank {rank} is there already"));
        lock(&self.file, libc::F_OFD_SETLK, libc::F_WRLCK, i64::from(rank)).map_err(|_| taken())?;
        let state = &self.slot(rank).state;
        state.compare_exchange(FREE, PRESENT, Ordering::SeqCst, Ordering::SeqCst).map_err(|_| taken())?;
        self.ring();
        Ok(())
    }

    /// Whether a rank's process is alive.
    pub(crate) fn is_alive(&self, rank: u32) -> bool {
        // Where the system does not say, it is taken to be.
        lock(&self.file, libc::F_OFD_GETLK, libc::F_WRLCK, i64::from(rank))
            .map_or(true, |found| libc::c_int::from(found.l_type) != libc::F_UNLCK)
    }

    /// Takes the file's name away: whoever has it open keeps it.
    pub(crate) fn unlink(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    pub(crate) fn ranks(&self) -> u32 {
        self.ranks
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with one, whose bytes are valid whatever they are.
        unsafe { &*self.memory.cast::<Header>() }
    }

    pub(crate) fn slot(&self, rank: u32) -> &Slot {
        assert!(rank < self.ranks, "a rank");
        // SAFETY: inside of the mapping, as `layout` has it; aligned to a page and a multiple of 64.
        unsafe { &*self.memory.byte_add(layout(self.ranks).0).cast::<Slot>().add(rank as usize) }
    }

    pub(crate) fn mailbox(&self, from: u32, to: u32) -> &Mailbox {
        assert!(from < self.ranks && to < self.ranks, "two ranks");
        let index = (from * self.ranks + to) as usize;
        // SAFETY: as of a slot.
        unsafe { &*self.memory.byte_add(layout(self.ranks).1).cast::<Mailbox>().add(index) }
    }

    /// Wakes all who wait.
    pub(crate) fn ring(&self) {
        let bell = &self.header().bell;
        bell.fetch_add(1, Ordering::SeqCst);
        // SAFETY: a word that is mapped; the call changes no memory.
        unsafe { libc::syscall(libc::SYS_futex, bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    pub(crate) fn bell(&self) -> u32 {
        self.header().bell.load(Ordering::SeqCst)
    }

    /// Waits until the bell has rung since it stood at `bell`, but not longer than this.
    pub(crate) fn wait(&self, bell: u32, longest: Duration) {
        let limit = libc::timespec { tv_sec: longest.as_secs() as _, tv_nsec: longest.subsec_nanos().into() };
        // SAFETY: a word that is mapped, and a time that the call reads.
        unsafe {
            libc::syscall(libc::SYS_futex, self.header().bell.as_ptr(), libc::FUTEX_WAIT, bell, &raw const limit)
        };
    }

    /// Fails the communicator for all ranks, and says whether this is the first failure, which stays.
    pub(crate) fn fail(&self, code: Status, text: &str) -> bool {
        let header = self.header();
        if header.failed.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        let bytes = &text.as_bytes()[..text.len().min(TEXT)];
        // SAFETY: between 1 and 2 the text is this rank's alone.
        unsafe { (&mut *header.text.get())[..bytes.len()].copy_from_slice(bytes) };
        header.text_bytes.store(bytes.len() as u32, Ordering::SeqCst);
        header.code.store(code as u32, Ordering::SeqCst);
        header.failed.store(2, Ordering::SeqCst);
        self.ring();
        self.unlink();
        true
    }

    /// Why the communicator has failed.
    pub(crate) fn failure(&self) -> Option<(Status, String)> {
        let header = self.header();
        if header.failed.load(Ordering::SeqCst) != 2 {
            return None;
        }
        let bytes = (header.text_bytes.load(Ordering::SeqCst) as usize).min(TEXT);
        // SAFETY: at 2 nobody writes it any more.
        let text = unsafe { &(&*header.text.get())[..bytes] };
        Some((header.code.load(Ordering::SeqCst) as Status, String::from_utf8_lossy(text).into_owned()))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, which nothing borrows any more.
        unsafe { libc::munmap(self.memory, self.bytes) };
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("softnccl-test-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_place_is_taken_once_and_freed_with_its_holder() {
        let path = path("place");
        let (first, second) = (Segment::open(&path, 2).expect("made"), Segment::open(&path, 2).expect("found"));
        first.take_place(1).expect("free");
        assert_eq!(second.take_place(1).map_err(|error| error.0), Err(INVALID_USAGE));
        assert!(second.is_alive(1) && !second.is_alive(0));
        drop(first);
        assert!(!second.is_alive(1), "it is gone with its file");
        second.unlink();
        assert!(!path.exists());
    }

    #[test]
    fn all_name_as_many_ranks() {
        let path = path("ranks");
        let first = Segment::open(&path, 2).expect("made");
        assert_eq!(Segment::open(&path, 3).err().map(|error| error.0), Some(INVALID_ARGUMENT));
        assert_eq!(Segment::open(&path, MOST_RANKS + 1).err().map(|error| error.0), Some(INVALID_ARGUMENT));
        first.unlink();
    }

    #[test]
    fn the_first_failure_stays_and_is_seen_by_all() {
        let path = path("failure");
        let (first, second) = (Segment::open(&path, 1).expect("made"), Segment::open(&path, 1).expect("found"));
        assert_eq!(first.failure(), None);
        first.fail(5, "this");
        second.fail(6, "that");
        assert_eq!(second.failure(), Some((5, "this".to_owned())));
        assert!(!path.exists(), "the file of a communicator that has failed has no name");
    }

    #[test]
    fn chunks_do_not_split_elements() {
        assert!(CHUNK.is_multiple_of(64) && PARCEL.is_multiple_of(64));
    }
}
