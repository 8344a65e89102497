//! How a stand-in for a library of the host (NCCL, say) has its own code run as work of a stream: plain data, handed from one
//! library to the other.

use std::ffi::{CStr, c_int, c_void};

/// The name of the driver's function that takes a stream and a [`HostWork`].
pub const FUNCTION: &CStr = c"softcuda_host_work";

/// Work of the host that reads and writes memory of the device. It is a host function of the stream: in its order, without any
/// lock, while other streams' work goes on, so that it may wait for another thread; captured in graphs and replayed; and no call of
/// the driver may be made from it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HostWork {
    /// Runs it, any number of times and on several threads at once: a graph may be launched again. What it gives is 0, or what
    /// [`Memory`]'s functions gave: then the stream's context has failed.
    pub run: extern "C" fn(*const c_void, *const Memory) -> c_int,
    /// Called once, when it will not be run any more.
    pub release: extern "C" fn(*mut c_void),
    /// Given to both.
    pub argument: *mut c_void,
}

/// The memory of the device, while a [`HostWork`] runs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Memory {
    /// Copies bytes from an address of the device; what nobody has written is a fault, where that is looked for. Gives 0 or the
    /// `CUresult` of the fault.
    pub read: extern "C" fn(*const c_void, address: u64, to: *mut u8, bytes: usize) -> c_int,
    /// Copies bytes to an address of the device. Gives 0 or the `CUresult` of the fault.
    pub write: extern "C" fn(*const c_void, address: u64, from: *const u8, bytes: usize) -> c_int,
    /// The first argument of both.
    pub device: *const c_void,
}
