//! The library's side of [`crate::control`]: requests as JSON text, since the test and the library share no statics.

use super::calls;
use super::state::{State, for_machine, state};
use crate::control::Request;
use crate::settings::Settings;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char};
use std::sync::PoisonError;

fn configure(settings: &Settings) {
    let machine = state().configure(settings);
    // Not under the lock of the tables: a kernel may be running.
    if let Some(machine) = machine {
        machine.write().unwrap_or_else(PoisonError::into_inner).configure(&for_machine(settings));
    }
}

impl State {
    fn take_launches(&mut self) -> Vec<crate::report::LaunchReport> {
        self.reports.get_or_insert_with(VecDeque::new).drain(..).collect()
    }
}

/// Answers a request.
fn answer(request: Request) -> serde_json::Result<String> {
    match request {
        Request::Configure(settings) => configure(&settings),
        Request::Settings => return serde_json::to_string(&state().settings),
        Request::TakeLaunches => return serde_json::to_string(&state().take_launches()),
        Request::TakeCalls => return serde_json::to_string(&calls::take()),
        Request::TakeFault => return serde_json::to_string(&state().last_fault.take()),
        Request::ClearFault => state().clear_faults(),
        Request::MemoryInUse => return serde_json::to_string(&state().all_used_bytes()),
        Request::PeakMemory => return serde_json::to_string(&state().peak_bytes),
        Request::Reset => {
            configure(&Settings::default());
            state().reset_reports();
            drop(calls::take());
        }
    }
    serde_json::to_string(&())
}

/// Answers a request, a JSON text; null when it is none. The answer is given back with [`softcuda_release`].
#[unsafe(no_mangle)]
extern "C" fn softcuda_request(request: *const c_char) -> *mut c_char {
    if request.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: `crate::control` gives a NUL-terminated text.
    let request = unsafe { CStr::from_ptr(request) };
    let answered = std::panic::catch_unwind(|| {
        let request = serde_json::from_slice(request.to_bytes()).ok()?;
        CString::new(answer(request).ok()?).ok()
    });
    answered.ok().flatten().map_or(std::ptr::null_mut(), CString::into_raw)
}

/// Gives an answer back.
#[unsafe(no_mangle)]
extern "C" fn softcuda_release(answer: *mut c_char) {
    if !answer.is_null() {
        // SAFETY: `crate::control` gives back what `softcuda_request` made, once.
        drop(unsafe { CString::from_raw(answer) });
    }
}
