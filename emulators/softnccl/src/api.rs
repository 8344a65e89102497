//! The entry points.

use crate::call::{Call, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, NONE, REMOTE_ERROR, SUCCESS, Status, kind};
use crate::collective::Collective;
use crate::communicator::{Communicator, unique_id};
use crate::driver::current_device;
use crate::group::{self, Wanted};
use crate::point_to_point::Transfer;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct UniqueId([u8; 128]);

/// NCCL's version that this stands in for: 2.27.0.
const VERSION: c_int = 22_700;

#[derive(Default)]
struct Handles {
    communicators: HashMap<usize, Arc<Communicator>>,
    last: usize,
}

fn handles() -> MutexGuard<'static, Handles> {
    static HANDLES: LazyLock<Mutex<Handles>> = LazyLock::new(Mutex::default);
    HANDLES.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// What `ncclGetLastError` gives; kept as long as the thread reads it.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Says what went wrong, and gives its status.
fn noted((status, text): (Status, String)) -> Status {
    eprintln!("softnccl: {text}");
    kept((status, text))
}

/// Keeps a text for `ncclGetLastError`.
fn kept((status, text): (Status, String)) -> Status {
    LAST.set(CString::new(text).unwrap_or_default());
    status
}

/// Runs the body of an entry point: no unwinding into C.
fn run(body: impl FnOnce() -> Result<(), Status>) -> Status {
    catch_unwind(AssertUnwindSafe(|| group::status(body()))).unwrap_or(INTERNAL_ERROR)
}

fn communicator(handle: usize) -> Result<Arc<Communicator>, Status> {
    let found = handles().communicators.get(&handle).map(Arc::clone);
    found.ok_or_else(|| noted((INVALID_ARGUMENT, "no such communicator".to_owned())))
}

/// Why a communicator has failed, which has been said.
pub(crate) fn status_of(communicator: &Communicator) -> Status {
    communicator.segment.failure().map_or(SUCCESS, kept)
}

/// Writes a result to a place of the caller's.
fn put<T>(place: *mut T, value: T) -> Result<(), Status> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: the interface asks for a place for one; only null can be told from it.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// A new handle; the communicator is met by the others now, or at the end of the group.
fn enter(communicator: Communicator, place: *mut usize) -> Result<Arc<Communicator>, Status> {
    let communicator = Arc::new(communicator);
    let mut handles = handles();
    handles.last += 16;
    let handle = handles.last;
    handles.communicators.insert(handle, Arc::clone(&communicator));
    drop(handles);
    put(place, handle).map(|()| communicator)
}

fn join(place: *mut usize, ranks: c_int, id: &UniqueId, rank: c_int) -> Result<(), Status> {
    put(place, 0)?;
    let count = |count: c_int| u32::try_from(count).map_err(|_| INVALID_ARGUMENT);
    let made = Communicator::join(&id.0, count(ranks)?, count(rank)?, current_device()?).map_err(noted)?;
    let communicator = enter(made, place)?;
    if group::joins_later(&communicator) {
        return Ok(());
    }
    communicator.meet().map_err(|_| status_of(&communicator))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetVersion(version: *mut c_int) -> Status {
    run(|| put(version, VERSION))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Status {
    run(|| put(id, UniqueId(unique_id())))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRank(place: *mut usize, ranks: c_int, id: UniqueId, rank: c_int) -> Status {
    run(|| join(place, ranks, &id, rank))
}

/// The settings are NCCL's way to be fast; a call that may return early returns when it is done.
#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRankConfig(
    place: *mut usize,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    _settings: *const c_void,
) -> Status {
    run(|| join(place, ranks, &id, rank))
}

/// # Safety
/// As NCCL asks for: places for so many communicators, and null or as many devices.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitAll(places: *mut usize, ranks: c_int, devices: *const c_int) -> Status {
    run(|| {
        if places.is_null() || ranks <= 0 {
            return Err(INVALID_ARGUMENT);
        }
        let (id, count) = (unique_id(), ranks as u32);
        let mut made = Vec::new();
        for rank in 0..count {
            // SAFETY: the caller's promise.
            let device = if devices.is_null() { rank as c_int } else { unsafe { *devices.add(rank as usize) } };
            let joined = Communicator::join(&id, count, rank, device).map_err(noted)?;
            // SAFETY: the caller's promise.
            made.push(enter(joined, unsafe { places.add(rank as usize) })?);
        }
        made.iter().try_for_each(|communicator| communicator.meet().map_err(|_| status_of(communicator)))
    })
}

/// Takes a communicator out of the table; work that is in streams or graphs keeps it.
fn leave(handle: usize) -> Result<Arc<Communicator>, Status> {
    let gone = handles().communicators.remove(&handle);
    let gone = gone.ok_or_else(|| noted((INVALID_ARGUMENT, "no such communicator".to_owned())))?;
    gone.leave();
    Ok(gone)
}

/// As NCCL's, it waits for what is under way.
#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: usize) -> Status {
    run(|| {
        communicator(handle)?.finish()?;
        leave(handle).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: usize) -> Status {
    run(|| communicator(handle)?.finish())
}

/// The others' calls, and this rank's that are in streams, fail.
#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: usize) -> Status {
    run(|| {
        let gone = leave(handle)?;
        gone.segment.fail(REMOTE_ERROR, &format!("rank {} has aborted", gone.rank));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCount(handle: usize, count: *mut c_int) -> Status {
    run(|| put(count, communicator(handle)?.ranks() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommUserRank(handle: usize, rank: *mut c_int) -> Status {
    run(|| put(rank, communicator(handle)?.rank as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCuDevice(handle: usize, device: *mut c_int) -> Status {
    run(|| put(device, communicator(handle)?.device))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommGetAsyncError(handle: usize, status: *mut Status) -> Status {
    run(|| put(status, status_of(&*communicator(handle)?)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(status: Status) -> *const c_char {
    let text = match status {
        0 => c"no error",
        1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// Why the communicator has failed; of a null one, or of one that has not, the calling thread's last error.
#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(handle: usize) -> *const c_char {
    let text = catch_unwind(|| {
        let found = handles().communicators.get(&handle).map(Arc::clone);
        if let Some((_, text)) = found.and_then(|communicator| communicator.segment.failure()) {
            LAST.set(CString::new(text).unwrap_or_default());
        }
        LAST.with_borrow(|text| text.as_ptr())
    });
    text.unwrap_or(c"".as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> Status {
    run(|| {
        group::start();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> Status {
    run(group::end)
}

/// Puts a collective or a transfer into a stream.
fn call(handle: usize, stream: u64, call: Call, (send, receive): (u64, u64)) -> Status {
    run(|| {
        let communicator = communicator(handle)?;
        call.check(communicator.ranks()).map_err(|status| noted((status, format!("invalid arguments in {call}"))))?;
        if communicator.segment.failure().is_some() {
            return Err(status_of(&communicator));
        }
        let wanted = if group::is_transfer(call.kind) {
            Wanted::Transfer(Transfer { call, address: if call.kind == kind::SEND { send } else { receive } })
        } else {
            Wanted::Collective(Collective { call, send, receive })
        };
        group::call(&communicator, stream, wanted)
    })
}

/// A root or another rank, as NCCL takes it.
fn rank(number: c_int) -> u32 {
    // Refused by `Call::check`, as no rank is so great.
    u32::try_from(number).unwrap_or(NONE - 1)
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    data_type: u32,
    operation: u32,
    handle: usize,
    stream: u64,
) -> Status {
    let of = Call { kind: kind::ALL_REDUCE, data_type, operation, root: NONE, count: count as u64 };
    call(handle, stream, of, (send, receive))
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    data_type: u32,
    handle: usize,
    stream: u64,
) -> Status {
    let of = Call { kind: kind::ALL_GATHER, data_type, operation: NONE, root: NONE, count: count as u64 };
    call(handle, stream, of, (send, receive))
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduceScatter(
    send: u64,
    receive: u64,
    count: usize,
    data_type: u32,
    operation: u32,
    handle: usize,
    stream: u64,
) -> Status {
    let of = Call { kind: kind::REDUCE_SCATTER, data_type, operation, root: NONE, count: count as u64 };
    call(handle, stream, of, (send, receive))
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduce(
    send: u64,
    receive: u64,
    count: usize,
    data_type: u32,
    operation: u32,
    root: c_int,
    handle: usize,
    stream: u64,
) -> Status {
    let of = Call { kind: kind::REDUCE, data_type, operation, root: rank(root), count: count as u64 };
    call(handle, stream, of, (send, receive))
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    send: u64,
    receive: u64,
    count: usize,
    data_type: u32,
    root: c_int,
    handle: usize,
    stream: u64,
) -> Status {
    let of = Call { kind: kind::BROADCAST, data_type, operation: NONE, root: rank(root), count: count as u64 };
    call(handle, stream, of, (send, receive))
}

#[unsafe(no_mangle)]
extern "C" fn ncclBcast(buffer: u64, count: usize, data_type: u32, root: c_int, handle: usize, stream: u64) -> Status {
    ncclBroadcast(buffer, buffer, count, data_type, root, handle, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(buffer: u64, count: usize, data_type: u32, peer: c_int, handle: usize, stream: u64) -> Status {
    let of = Call { kind: kind::SEND, data_type, operation: NONE, root: rank(peer), count: count as u64 };
    call(handle, stream, of, (buffer, 0))
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(buffer: u64, count: usize, data_type: u32, peer: c_int, handle: usize, stream: u64) -> Status {
    let of = Call { kind: kind::RECEIVE, data_type, operation: NONE, root: rank(peer), count: count as u64 };
    call(handle, stream, of, (0, buffer))
}

/// Says what is not supported.
pub(crate) fn unsupported(name: &CStr) -> Status {
    noted((INVALID_USAGE, format!("{} is not supported", name.to_string_lossy())))
}
