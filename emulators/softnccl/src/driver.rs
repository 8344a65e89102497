//! The driver's functions that are called here, and memory of the device as work of a stream sees it.

use crate::call::{INTERNAL_ERROR, Status, UNHANDLED_CUDA_ERROR};
use softload::host_work::{FUNCTION, HostWork, Memory};
use softload::library;
use std::ffi::{CStr, c_int, c_void};

/// A `CUresult` that is none of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) c_int);

/// Memory of the device, by slices.
pub(crate) trait Bytes {
    fn load(&self, address: u64, to: &mut [u8]) -> Result<(), Fault>;
    fn store(&self, address: u64, from: &[u8]) -> Result<(), Fault>;
}

impl Bytes for Memory {
    fn load(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        if to.is_empty() {
            return Ok(());
        }
        match (self.read)(self.device, address, to.as_mut_ptr(), to.len()) {
            0 => Ok(()),
            code => Err(Fault(code)),
        }
    }

    fn store(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        if from.is_empty() {
            return Ok(());
        }
        match (self.write)(self.device, address, from.as_ptr(), from.len()) {
            0 => Ok(()),
            code => Err(Fault(code)),
        }
    }
}

/// A function of the driver that is in use.
fn symbol(name: &CStr) -> Result<*mut c_void, Status> {
    library::symbol(c"libcuda.so", name).ok_or(INTERNAL_ERROR)
}

fn called(result: c_int) -> Result<(), Status> {
    if result == 0 { Ok(()) } else { Err(UNHANDLED_CUDA_ERROR) }
}

/// The calling thread's current context, 0 if there is none.
pub(crate) fn current_context() -> Result<u64, Status> {
    // SAFETY: the driver's function of this name has this signature.
    let get =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut u64) -> c_int>(symbol(c"cuCtxGetCurrent")?) };
    let mut context = 0;
    called(get(&raw mut context)).map(|()| context)
}

/// Makes a context current for the calling thread.
pub(crate) fn set_current_context(context: u64) -> Result<(), Status> {
    // SAFETY: as above.
    let set = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> c_int>(symbol(c"cuCtxSetCurrent")?) };
    called(set(context))
}

/// The device of the current context; an error without one.
pub(crate) fn current_device() -> Result<i32, Status> {
    // SAFETY: as above.
    let get =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut i32) -> c_int>(symbol(c"cuCtxGetDevice")?) };
    let mut device = 0;
    called(get(&raw mut device)).map(|()| device)
}

/// Waits for a stream, unless it is being captured. One that is gone has nothing to wait for.
pub(crate) fn synchronise(stream: u64) {
    let functions = (symbol(c"cuStreamIsCapturing"), symbol(c"cuStreamSynchronize"));
    let (Ok(is_capturing), Ok(synchronise)) = functions else { return };
    // SAFETY: the driver's functions of these names have these signatures.
    let (is_capturing, synchronise) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn(u64, *mut u32) -> c_int>(is_capturing),
            std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> c_int>(synchronise),
        )
    };
    let mut capturing = 0;
    if is_capturing(stream, &raw mut capturing) == 0 && capturing == 0 {
        synchronise(stream);
    }
}

/// Hands work to a stream.
pub(crate) fn submit(stream: u64, work: HostWork) -> Result<(), Status> {
    let submit = match symbol(FUNCTION) {
        // SAFETY: softcuda's function of this name has this signature.
        Ok(function) => unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(u64, *const HostWork) -> c_int>(function)
        },
        Err(status) => {
            (work.release)(work.argument);
            return Err(status);
        }
    };
    called(submit(stream, &raw const work))
}
