//! Work of a library of the host, for stand-ins such as that of NCCL: a host function of a stream that may read and write memory
//! of the device.

use super::entry::{In, entry_points};
use super::error::Code;
use super::state::state;
use super::work::{Work, node, submit};
use crate::host_work::{HostWork, Memory};
use crate::machine::device::Device;
use crate::machine::memory::Refusal;
use crate::report::Fault;
use std::ffi::c_void;
use std::sync::{Arc, PoisonError, RwLock};

/// The name that such work has in reports of faults.
const NAME: &str = "work of the host";

/// Released with the last stream or graph that holds it.
struct Owned(HostWork);

// SAFETY: whoever hands the work over lets it run on threads of the driver's choice.
unsafe impl Send for Owned {}
// SAFETY: as above, on several at once.
unsafe impl Sync for Owned {}

impl Owned {
    fn run(&self, machine: &Arc<RwLock<Device>>) -> Result<(), Code> {
        let memory = Memory { read, write, device: std::ptr::from_ref(machine).cast() };
        let mut outcome = 0;
        super::entry::host_function(|| outcome = (self.0.run)(self.0.argument, &raw const memory));
        if outcome == 0 { Ok(()) } else { Err(Code(outcome)) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        (self.0.release)(self.0.argument);
    }
}

/// The machine that [`Memory::device`] stands for.
///
/// # Safety
/// It is the one that [`Owned::run`] gave, and that has not returned.
unsafe fn machine<'a>(device: *const c_void) -> &'a RwLock<Device> {
    // SAFETY: the caller's promise.
    unsafe { &*device.cast::<Arc<RwLock<Device>>>() }
}

extern "C" fn read(device: *const c_void, address: u64, to: *mut u8, bytes: usize) -> i32 {
    // SAFETY: called by work that runs.
    let machine = unsafe { machine(device) }.read().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the work gives room for so many bytes.
    let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
    let checked = if machine.settings().checks.uninitialized {
        machine.memory.check_initialized(address, bytes as u64)
    } else {
        Ok(())
    };
    let done = checked.and_then(|()| machine.memory.read(address, to));
    drop(machine);
    done.map_or_else(|refusal| refused(refusal, address), |()| 0)
}

extern "C" fn write(device: *const c_void, address: u64, from: *const u8, bytes: usize) -> i32 {
    // SAFETY: called by work that runs.
    let machine = unsafe { machine(device) }.read().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the work gives so many bytes.
    let from = unsafe { std::slice::from_raw_parts(from, bytes) };
    let done = machine.memory.write(address, from);
    drop(machine);
    done.map_or_else(|refusal| refused(refusal, address), |()| 0)
}

/// Notes a fault; its code.
fn refused(refusal: Refusal, address: u64) -> i32 {
    let fault = Fault {
        kind: refusal.kind,
        kernel: NAME.to_owned(),
        line: 0,
        instruction: String::new(),
        block: [0; 3],
        thread: [0; 3],
        address: Some(address),
        message: refusal.message,
        other: None,
    };
    eprintln!("softcuda: {fault}");
    let code = Code::of(&fault);
    state().last_fault = Some(fault);
    code.0
}

entry_points! {
    fn softcuda_host_work(stream: u64, work: In<HostWork>) {
        // From here on it is released, whatever comes.
        let work = Owned(work.get()?);
        let (stream, machine) = {
            let mut state = state();
            (state.stream(stream)?, state.machine())
        };
        let run: Work = Arc::new(move || work.run(&machine));
        submit(stream, node::HOST, run).map(drop)
    }
}
