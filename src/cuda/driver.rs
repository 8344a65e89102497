//! The driver: whether there is one, and its errors.

use crate::cuda::tuning::Capability;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaStream, DriverError, result, sys};

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

/// Majors of nvcc, and the oldest branch of NVIDIA's driver that takes their machine code and PTX ("CUDA Toolkit, Driver, and
/// Architecture Matrix", minor version compatibility).
const OLDEST_DRIVERS: [(&str, &str); 3] = [("11", "R450"), ("12", "R525"), ("13", "R580")];

/// The oldest branch of the driver for what an nvcc of this release makes.
fn oldest_driver(nvcc: &str) -> Option<&'static str> {
    let major = nvcc.split('.').next()?;
    OLDEST_DRIVERS.iter().find(|row| row.0 == major).map(|row| row.1)
}

/// What `cuModuleLoadData` says of an image that is newer than the driver, or for other devices.
const REFUSALS: [CUresult; 4] = [
    CUresult::CUDA_ERROR_INVALID_IMAGE,
    CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
    CUresult::CUDA_ERROR_INVALID_PTX,
    CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
];

/// The result of loading a module of this crate's: an image that the driver refuses is an error that says what would help.
pub(super) fn loaded<T>(
    result: std::result::Result<T, DriverError>,
    nvcc: Option<&'static str>,
    capability: Capability,
) -> Result<T> {
    match result {
        Err(error) if REFUSALS.contains(&error.0) => {
            let mut driver = 0;
            // SAFETY: there is a driver; a place for the answer.
            called("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result())?;
            let (code, message) = (error.0 as i32, error.to_string());
            let oldest_driver = nvcc.and_then(oldest_driver);
            Err(Error::KernelsRefused { code, message, nvcc, oldest_driver, driver, capability })
        }
        result => called("cuModuleLoadData", result),
    }
}

/// That there is a driver.
pub(super) fn require() -> Result<()> {
    if driver_present() { Ok(()) } else { Err(Error::NoDriver) }
}

/// Whether a stream is being captured in a graph.
pub(super) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    // SAFETY: a stream that is alive.
    let status = called("cuStreamIsCapturing", unsafe { result::stream::is_capturing(stream.cu_stream()) })?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// The result of a driver's call, as an error of this crate. There is a driver, so its text may be asked for.
pub(super) fn called<T>(call: &'static str, result: std::result::Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| Error::Cuda { call, code: error.0 as i32, message: error.to_string() })
}

#[cfg(test)]
mod test {
    use super::*;

    /// Every error that an image which is too new, or for other devices, is refused with.
    #[test]
    fn a_refused_image_names_the_driver_that_would_take_it() {
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let releases = [
            (Some("13.0"), Some("R580")),
            (Some("12.9"), Some("R525")),
            (Some("11.8"), Some("R450")),
            (Some("99.0"), None),
            (None, None),
        ];
        for result in REFUSALS {
            for (nvcc, expected) in releases {
                let Err(error) = loaded::<()>(Err(DriverError(result)), nvcc, (8, 6)) else { panic!("{result:?}") };
                let Error::KernelsRefused { code, oldest_driver, driver, capability, .. } = error else {
                    panic!("{error}")
                };
                assert_eq!(
                    (code, oldest_driver, driver, capability),
                    (result as i32, expected, driver.max(11_000), (8, 6))
                );
                let said = error.to_string();
                assert!(said.contains(expected.unwrap_or("its own version")) && said.contains("8.6"), "{said}");
            }
        }
        // Others are what they are.
        let other = loaded::<()>(Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)), Some("13.0"), (9, 0));
        assert!(matches!(other, Err(Error::Cuda { call: "cuModuleLoadData", code: 2, .. })), "{other:?}");
        assert_eq!(loaded(Ok(5), None, (9, 0)), Ok(5));
    }
}
