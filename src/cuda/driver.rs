//! The driver: whether there is one, and its errors.

use crate::error::{Error, Result};
use cudarc::driver::DriverError;

#[cfg(unix)]
pub(super) fn opens(name: &std::ffi::CStr) -> bool {
    use std::ffi::{c_char, c_int, c_void};
    unsafe extern "C" {
        fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    }
    const RTLD_LAZY: c_int = 1;
    // SAFETY: the name ends with NUL. The library's initialisers run, as they would at cudarc's first call. It stays
    // open: closing a driver is not worth its risk.
    unsafe { !dlopen(name.as_ptr(), RTLD_LAZY).is_null() }
}

#[cfg(windows)]
pub(super) fn opens(name: &std::ffi::CStr) -> bool {
    use std::ffi::{c_char, c_void};
    unsafe extern "system" {
        fn LoadLibraryA(name: *const c_char) -> *mut c_void;
    }
    // SAFETY: as on unix.
    unsafe { !LoadLibraryA(name.as_ptr()).is_null() }
}

#[cfg(unix)]
const LIBRARIES: &[&std::ffi::CStr] = &[c"libcuda.so.1", c"libcuda.so"];

#[cfg(windows)]
const LIBRARIES: &[&std::ffi::CStr] = &[c"nvcuda.dll"];

/// Whether a CUDA driver can be loaded. Without one cudarc panics at its first call, even at printing an error; this
/// crate asks first.
///
/// cudarc has such a question too, but not where another crate has switched its feature `dynamic-linking` on.
pub fn driver_present() -> bool {
    LIBRARIES.iter().any(|name| opens(name))
}

/// That there is a driver.
pub(super) fn require() -> Result<()> {
    if driver_present() { Ok(()) } else { Err(Error::NoDriver) }
}

/// The result of a driver's call, as an error of this crate. There is a driver, so its text may be asked for.
pub(super) fn called<T>(call: &'static str, result: std::result::Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| Error::Cuda { call, code: error.0 as i32, message: error.to_string() })
}
