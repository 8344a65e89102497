//! Groups of calls, and how calls become work of streams.

use crate::call::{SUCCESS, Status, kind};
use crate::collective::{Collective, Trouble};
use crate::communicator::Communicator;
use crate::driver::{current_context, set_current_context, submit};
use crate::point_to_point::{self, Transfer};
use softload::host_work::{HostWork, Memory};
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A call before it is in its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    Collective(Collective),
    Transfer(Transfer),
}

/// What is put into a stream as one piece.
enum Piece {
    Collective(Collective),
    Transfers(Vec<Transfer>),
}

/// The argument of the work: alive as long as a stream or a graph has it.
struct Work {
    communicator: Arc<Communicator>,
    piece: Piece,
}

/// A call in a group: its stream, and the context that was current, to which a null stream belongs.
struct Entry {
    communicator: Arc<Communicator>,
    stream: u64,
    context: u64,
    wanted: Wanted,
}

/// A thread's group.
#[derive(Default)]
struct Group {
    depth: usize,
    entries: Vec<Entry>,
    joined: Vec<Arc<Communicator>>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

extern "C" fn run(argument: *const c_void, memory: *const Memory) -> c_int {
    // SAFETY: `put` gives a `Work`, which lives until `release`; the driver gives its memory.
    let (work, memory) = unsafe { (&*argument.cast::<Work>(), &*memory) };
    let done = catch_unwind(AssertUnwindSafe(|| match &work.piece {
        Piece::Collective(collective) => collective.run(&work.communicator, memory),
        Piece::Transfers(transfers) => point_to_point::run(transfers, &work.communicator, memory),
    }));
    match done {
        Ok(Ok(()) | Err(Trouble::Failed)) => 0,
        Ok(Err(Trouble::Fault(fault))) => fault.0,
        // A fault of softnccl. `CUDA_ERROR_UNKNOWN`.
        Err(_) => 999,
    }
}

extern "C" fn release(argument: *mut c_void) {
    // SAFETY: `put` made it so, and the driver releases it once.
    let work = unsafe { Box::from_raw(argument.cast::<Work>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(work)));
}

/// Puts a piece into a stream.
fn put(communicator: &Arc<Communicator>, stream: u64, piece: Piece) -> Result<(), Status> {
    let argument = Box::into_raw(Box::new(Work { communicator: Arc::clone(communicator), piece })).cast();
    submit(stream, HostWork { run, release, argument })
}

/// The calls of one rank, in their order; transfers that follow one another in one stream go on side by side.
fn put_all(entries: &[&Entry]) -> Result<(), Status> {
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let piece = |entry: &&Entry| match entry.wanted {
            Wanted::Transfer(transfer) if entry.stream == first.stream => Some(transfer),
            _ => None,
        };
        let transfers: Vec<_> = rest.iter().map_while(piece).collect();
        set_current_context(first.context)?;
        first.communicator.uses(first.context, first.stream);
        let taken = transfers.len().max(1);
        match first.wanted {
            Wanted::Collective(collective) => put(&first.communicator, first.stream, Piece::Collective(collective))?,
            Wanted::Transfer(_) => put(&first.communicator, first.stream, Piece::Transfers(transfers))?,
        }
        rest = &rest[taken..];
    }
    Ok(())
}

/// Makes a call, or puts it into the group that is open.
pub(crate) fn call(communicator: &Arc<Communicator>, stream: u64, wanted: Wanted) -> Result<(), Status> {
    let entry = Entry { communicator: Arc::clone(communicator), stream, context: current_context()?, wanted };
    let alone = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return Some(entry);
        }
        group.entries.push(entry);
        None
    });
    alone.map_or(Ok(()), |entry| put_all(&[&entry]))
}

/// Whether a group is open: then the communicator is waited for at its end.
pub(crate) fn joins_later(communicator: &Arc<Communicator>) -> bool {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joined.push(Arc::clone(communicator));
        }
        group.depth > 0
    })
}

pub(crate) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Ends a group; at the end of the outermost all that was called in it is put into its streams.
pub(crate) fn end() -> Result<(), Status> {
    let ended = GROUP.with_borrow_mut(|group| {
        let depth = group.depth.checked_sub(1).ok_or(crate::call::INVALID_USAGE)?;
        group.depth = depth;
        Ok::<_, Status>(if depth == 0 { std::mem::take(group) } else { Group::default() })
    });
    let Group { entries, joined, .. } = ended?;
    for communicator in joined {
        communicator.meet().map_err(|_| crate::api::status_of(&communicator))?;
    }
    let mut of_ranks: Vec<Vec<&Entry>> = Vec::new();
    for entry in &entries {
        match of_ranks.iter_mut().find(|rank| Arc::ptr_eq(&rank[0].communicator, &entry.communicator)) {
            Some(rank) => rank.push(entry),
            None => of_ranks.push(vec![entry]),
        }
    }
    let context = current_context()?;
    let done = match of_ranks.as_slice() {
        [] => Ok(()),
        [rank] => put_all(rank),
        // Work may run where it is put into a stream, and waits for the other ranks': each from a thread of its own.
        ranks => std::thread::scope(|scope| {
            let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(|| put_all(rank))).collect();
            let statuses = threads.into_iter().map(|thread| thread.join().unwrap_or(Err(crate::call::INTERNAL_ERROR)));
            statuses.fold(Ok(()), Result::and)
        }),
    };
    if !entries.is_empty() {
        set_current_context(context)?;
    }
    done
}

/// A collective's or a transfer's kind, for what a rank may not ask of itself.
pub(crate) fn is_transfer(kind: u32) -> bool {
    matches!(kind, kind::SEND | kind::RECEIVE)
}

/// The status of a result.
pub(crate) fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(SUCCESS)
}
