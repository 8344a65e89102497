//! Putting the software driver where cudarc finds it.
//!
//! The library's DT_SONAME is `libcuda.so`. Once it is loaded, glibc answers a `dlopen` of that name, which is the
//! first that cudarc tries, with it. Nothing outside of the process changes.

use softload::library::{self, Visible};
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Which driver this process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The machine's own, with a real device.
    RealDriver,
    /// This crate's, loaded from here.
    Software(PathBuf),
}

/// Why the software driver could not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// Only Linux with glibc finds a loaded library by its DT_SONAME.
    UnsupportedSystem,
    /// The library is in none of these places; it is built with every test of a package that depends on this crate.
    NotFound(Vec<PathBuf>),
    /// The library was found but not loaded.
    NotLoaded(String),
    /// Another `libcuda.so` was loaded before: call this before the first use of CUDA.
    TooLate,
}

impl std::fmt::Display for InstallError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnsupportedSystem => formatter.write_str("softcuda works on Linux with glibc only"),
            Self::NotFound(places) => write!(formatter, "the software driver was not found; looked for {places:?}"),
            Self::NotLoaded(why) => write!(formatter, "the software driver was not loaded: {why}"),
            Self::TooLate => formatter
                .write_str("another libcuda.so is loaded already: install softcuda before the first use of CUDA"),
        }
    }
}

impl std::error::Error for InstallError {}

/// The file that cargo makes of this crate.
const FILE: &str = "libsoftcuda.so";

/// Makes CUDA work in this process: with the machine's driver if it has one with a device, else with the software
/// driver. Call it in a test's set-up, before the first use of CUDA; calling it again does nothing.
///
/// # Errors
/// When there is no real device and the software driver cannot be loaded.
pub fn install() -> Result<Installed, InstallError> {
    once(false)
}

/// As [`install`], but the software driver is used even where there is a real device.
///
/// # Errors
/// When the software driver cannot be loaded, or a real one is in use already.
pub fn install_always() -> Result<Installed, InstallError> {
    once(true)
}

fn once(always: bool) -> Result<Installed, InstallError> {
    static INSTALLED: Mutex<Option<Installed>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*installed {
        Some(Installed::RealDriver) if always => {}
        Some(before) => return Ok(before.clone()),
        None => {}
    }
    let found = if !always && system::has_real_device() { Installed::RealDriver } else { Installed::Software(load()?) };
    *installed = Some(found.clone());
    Ok(found)
}

/// Loads the library and makes sure that its name now finds it.
fn load() -> Result<PathBuf, InstallError> {
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return Err(InstallError::UnsupportedSystem);
    }
    let places = library::candidates(FILE).map_err(InstallError::NotLoaded)?;
    let Some(file) = places.iter().find(|place| place.is_file()) else { return Err(InstallError::NotFound(places)) };
    library::load(file, Visible::Everywhere).map_err(InstallError::NotLoaded)?;
    if symbol(c"softcuda_request").is_some() { Ok(file.clone()) } else { Err(InstallError::TooLate) }
}

/// A function of the software driver, if that is what `libcuda.so` means in this process.
pub(crate) fn symbol(name: &CStr) -> Option<*mut libc::c_void> {
    library::symbol(c"libcuda.so", name)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod system {
    use libc::{RTLD_LAZY, RTLD_LOCAL, dlopen, dlsym};

    /// Whether a real driver is here and has a device.
    pub(super) fn has_real_device() -> bool {
        // SAFETY: a driver library may be loaded at any time, and stays loaded; the two functions have these signatures
        // in every version.
        unsafe {
            let library = dlopen(c"libcuda.so.1".as_ptr(), RTLD_LAZY | RTLD_LOCAL);
            if library.is_null() {
                return false;
            }
            let (initialise, count) =
                (dlsym(library, c"cuInit".as_ptr()), dlsym(library, c"cuDeviceGetCount".as_ptr()));
            if initialise.is_null() || count.is_null() {
                return false;
            }
            let initialise = std::mem::transmute::<*mut libc::c_void, extern "C" fn(u32) -> i32>(initialise);
            let count = std::mem::transmute::<*mut libc::c_void, extern "C" fn(*mut i32) -> i32>(count);
            let mut devices = 0;
            initialise(0) == 0 && count(&raw mut devices) == 0 && devices > 0
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod system {
    pub(super) fn has_real_device() -> bool {
        false
    }
}
