//! What a test can ask of the loaded library: settings, launch reports, faults, memory.
//!
//! The test and the library each have their own copy of this crate's statics, so they talk through two functions that
//! the library exports, in JSON.

use crate::report::{Fault, LaunchReport};
use crate::settings::Settings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

/// A request to the library.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Configure(Settings),
    Settings,
    TakeLaunches,
    TakeCalls,
    TakeFault,
    ClearFault,
    MemoryInUse,
    PeakMemory,
    Reset,
}

/// Controls the software device of this process.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    request: extern "C" fn(*const c_char) -> *mut c_char,
    release: extern "C" fn(*mut c_char),
}

/// The control of the software device, if [`crate::install`] has loaded it into this process; `None` where a real
/// driver is used. From the first call on, launch reports are kept for [`Control::take_launches`].
pub fn control() -> Option<Control> {
    static FIRST: std::sync::Once = std::sync::Once::new();
    let request = crate::install::symbol(c"softcuda_request")?;
    let release = crate::install::symbol(c"softcuda_release")?;
    // SAFETY: these are the two functions of `driver::control`, with these signatures; the library is never unloaded.
    let control = unsafe {
        Control {
            request: std::mem::transmute::<*mut libc::c_void, extern "C" fn(*const c_char) -> *mut c_char>(request),
            release: std::mem::transmute::<*mut libc::c_void, extern "C" fn(*mut c_char)>(release),
        }
    };
    // The first taking of reports starts their keeping; what is there belongs to whoever asked before.
    FIRST.call_once(|| drop(control.take_launches()));
    Some(control)
}

impl Control {
    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Option<T> {
        let request = CString::new(serde_json::to_string(request).ok()?).ok()?;
        let answer = (self.request)(request.as_ptr());
        if answer.is_null() {
            return None;
        }
        // SAFETY: the library's answers are NUL-terminated and live until they are released.
        let parsed = serde_json::from_slice(unsafe { CStr::from_ptr(answer) }.to_bytes()).ok();
        (self.release)(answer);
        parsed
    }

    /// Puts settings to use, for all that comes after. Objects and memory stay.
    pub fn configure(&self, settings: &Settings) {
        self.ask::<()>(&Request::Configure(settings.clone()));
    }

    /// The settings in use.
    pub fn settings(&self) -> Settings {
        self.ask(&Request::Settings).unwrap_or_default()
    }

    /// The reports of the launches since the last call, oldest first; at most the last 4096.
    pub fn take_launches(&self) -> Vec<LaunchReport> {
        self.ask(&Request::TakeLaunches).unwrap_or_default()
    }

    /// How often each of the driver's functions was called since the last call of this, by its name in the library
    /// (`cuMemFree_v2`, say); refused calls too.
    pub fn take_calls(&self) -> BTreeMap<String, u64> {
        self.ask(&Request::TakeCalls).unwrap_or_default()
    }

    /// The last fault of a kernel, if there was one since the last call. The context's sticky error stays.
    pub fn take_fault(&self) -> Option<Fault> {
        self.ask(&Request::TakeFault).flatten()
    }

    /// Forgets the last fault and takes the sticky error from every context, so that a test can go on. No real device
    /// can do that.
    pub fn clear_fault(&self) {
        self.ask::<()>(&Request::ClearFault);
    }

    /// Bytes of device memory that are allocated, on all devices.
    pub fn memory_in_use(&self) -> u64 {
        self.ask(&Request::MemoryInUse).unwrap_or_default()
    }

    /// The most bytes of device memory that were allocated at once since the start or the last [`Control::reset`].
    pub fn peak_memory(&self) -> u64 {
        self.ask(&Request::PeakMemory).unwrap_or_default()
    }

    /// Default settings, no faults, no reports, calls and the peak of memory counted anew. Objects and memory stay.
    pub fn reset(&self) {
        self.ask::<()>(&Request::Reset);
    }
}
