//! Memory of the host: pinned, managed and registered; and how the driver reads and writes the caller's memory.

use super::entry::{Out, Outcome, entry_points, same_as};
use super::error::Code;
use super::state::{Kind, State, state};
use super::work::synchronise_context;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::PoisonError;

/// Host memory of the driver begins at multiples of this, in bytes.
const PAGE: usize = 4096;

/// `CU_MEMHOSTALLOC_*`: for all contexts, mapped, write-combined.
const ALLOCATION_FLAGS: u32 = 0b111;
/// `CU_MEMHOSTREGISTER_*`: for all contexts, mapped, of a device, read-only.
const REGISTRATION_FLAGS: u32 = 0b1111;

fn layout(bytes: u64) -> Option<Layout> {
    Layout::from_size_align(usize::try_from(bytes).ok()?, PAGE).ok()
}

/// Gives host memory of the driver back to the host.
pub(super) fn give_back(base: u64, bytes: u64) {
    if let Some(layout) = layout(bytes) {
        // SAFETY: `State::allocate_host` allocated this range with this layout, and it has just left the table of
        // allocations.
        unsafe { dealloc(base as *mut u8, layout) };
    }
}

/// Copies memory of the caller, which may not be there at all, by the system: a bad address is an error and not a
/// crash.
fn through_system(host: u64, own: *mut u8, bytes: usize, write: bool) -> Outcome {
    let mut done = 0;
    while done < bytes {
        let local = libc::iovec { iov_base: own.wrapping_add(done).cast(), iov_len: bytes - done };
        let remote = libc::iovec { iov_base: (host as usize + done) as *mut libc::c_void, iov_len: bytes - done };
        // SAFETY: `local` lies in the slice that the caller borrowed; the system checks `remote`.
        let copied = unsafe {
            let process = libc::getpid();
            if write {
                libc::process_vm_writev(process, &raw const local, 1, &raw const remote, 1, 0)
            } else {
                libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0)
            }
        };
        if copied > 0 {
            done += copied as usize;
            continue;
        }
        if std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) || copied == 0 {
            return Err(Code::INVALID_VALUE);
        }
        // The system does not allow the call here: trust the caller, as a driver does.
        let (host, own, rest) = (host as usize + done, own.wrapping_add(done), bytes - done);
        // SAFETY: the C interface asks the caller for memory of this size; `own` lies in the borrowed slice.
        unsafe {
            if write {
                std::ptr::copy(own.cast_const(), host as *mut u8, rest);
            } else {
                std::ptr::copy(host as *const u8, own, rest);
            }
        }
        return Ok(());
    }
    Ok(())
}

/// Reads memory of the caller.
pub(super) fn read_host(address: u64, bytes: usize) -> Outcome<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    through_system(address, buffer.as_mut_ptr(), bytes, false)?;
    Ok(buffer)
}

/// Writes memory of the caller.
pub(super) fn write_host(address: u64, bytes: &[u8]) -> Outcome {
    through_system(address, bytes.as_ptr().cast_mut(), bytes.len(), true)
}

impl State {
    /// Allocates memory of the host that kernels reach under its own address. The bytes are zero.
    fn allocate_host(&mut self, bytes: usize, kind: Kind) -> Outcome<u64> {
        let context = self.current()?;
        self.check_capture_allows()?;
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let layout = layout(bytes as u64).ok_or(Code::OUT_OF_MEMORY)?;
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        self.map(pointer, bytes);
        self.enter(pointer as u64, bytes as u64, context, kind, None)?;
        Ok(pointer as u64)
    }

    fn map(&mut self, pointer: *mut u8, bytes: usize) {
        let machine = self.machine();
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the memory is the driver's own, or the caller of `cuMemHostRegister` keeps it until it is
        // unregistered; either leaves the machine's memory before it goes.
        unsafe { machine.memory.map_host(pointer, bytes as u64) };
    }

    fn register(&mut self, address: u64, bytes: usize, flags: u32) -> Outcome {
        let context = self.current()?;
        self.check_capture_allows()?;
        if address == 0 || bytes == 0 || flags & !REGISTRATION_FLAGS != 0 || address.checked_add(bytes as u64).is_none()
        {
            return Err(Code::INVALID_VALUE);
        }
        let last = address + (bytes as u64 - 1);
        let before = self.allocations.range(..=last).next_back();
        if before.is_some_and(|(&base, allocation)| base + allocation.bytes > address) {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        // Whether the caller's memory is there: its pages are looked at, one byte each.
        for offset in (0..bytes).step_by(PAGE).chain([bytes - 1]) {
            read_host(address + offset as u64, 1)?;
        }
        self.map(address as *mut u8, bytes);
        self.enter(address, bytes as u64, context, Kind::Registered(flags), None)
    }

    /// Host memory of the driver, or registered memory, that begins at an address.
    fn host(&self, address: u64, registered: bool, error: Code) -> Outcome<u64> {
        let allocation = self.allocations.get(&address).ok_or(error)?;
        let fits = match allocation.kind {
            Kind::Host(_) => !registered,
            Kind::Registered(_) => registered,
            Kind::Device | Kind::Managed => false,
        };
        if fits { Ok(allocation.context) } else { Err(error) }
    }
}

/// Gives host memory back after all work of its context.
fn release(address: u64, registered: bool, error: Code) -> Outcome {
    let context = {
        let mut state = state();
        state.current_with_fault()?;
        state.check_capture_allows()?;
        state.host(address, registered, error)?
    };
    let outcome = synchronise_context(context);
    state().release(address);
    outcome
}

entry_points! {
    fn cuMemHostAlloc(pointer: Out<u64>, bytes: usize, flags: u32) {
        pointer.check()?;
        if flags & !ALLOCATION_FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let base = state().allocate_host(bytes, Kind::Host(flags))?;
        pointer.put(base)
    }
    fn cuMemAllocHost_v2(pointer: Out<u64>, bytes: usize) {
        pointer.check()?;
        let base = state().allocate_host(bytes, Kind::Host(0))?;
        pointer.put(base)
    }
    fn cuMemAllocManaged(pointer: Out<u64>, bytes: usize, flags: u32) {
        pointer.check()?;
        // Attached to all streams, or to the host.
        if !matches!(flags, 1 | 2) {
            return Err(Code::INVALID_VALUE);
        }
        let base = state().allocate_host(bytes, Kind::Managed)?;
        pointer.put(base)
    }
    fn cuMemFreeHost(pointer: u64) {
        release(pointer, false, Code::INVALID_VALUE)
    }
    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, pointer: u64, flags: u32) {
        address.check()?;
        let state = state();
        state.current()?;
        let (_, allocation) = state.allocation(pointer).ok_or(Code::INVALID_VALUE)?;
        let host = matches!(allocation.kind, Kind::Host(_) | Kind::Registered(_));
        if !host || flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        address.put(pointer)
    }
    fn cuMemHostGetFlags(flags: Out<u32>, pointer: u64) {
        flags.check()?;
        let state = state();
        state.current()?;
        match state.allocation(pointer) {
            // With unified addresses, all host memory is portable and mapped.
            Some((_, allocation)) => match allocation.kind {
                Kind::Host(given) | Kind::Registered(given) => flags.put(given | 3),
                Kind::Device | Kind::Managed => Err(Code::INVALID_VALUE),
            },
            None => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemHostRegister_v2(pointer: u64, bytes: usize, flags: u32) {
        state().register(pointer, bytes, flags)
    }
    fn cuMemHostUnregister(pointer: u64) {
        release(pointer, true, Code::HOST_MEMORY_NOT_REGISTERED)
    }
}

same_as! {
    cuMemHostRegister = cuMemHostRegister_v2(pointer: u64, bytes: usize, flags: u32);
    cuMemAllocHost = cuMemAllocHost_v2(pointer: Out<u64>, bytes: usize);
}
