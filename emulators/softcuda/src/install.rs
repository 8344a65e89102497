//! Putting the software driver where cudarc finds it.
//!
//! The library's DT_SONAME is `libcuda.so`. Once it is loaded, glibc answers a `dlopen` of that name, which is the
//! first that cudarc tries, with it. Nothing outside of the process changes.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
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
    let program = std::env::current_exe().map_err(|error| InstallError::NotLoaded(error.to_string()))?;
    let places = candidates(&program);
    let Some(file) = places.iter().find(|place| place.is_file()) else { return Err(InstallError::NotFound(places)) };
    system::load(file)?;
    if symbol(c"softcuda_request").is_some() { Ok(file.clone()) } else { Err(InstallError::TooLate) }
}

/// Where cargo puts the library, seen from a test (`deps`), a program, or an example.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let folders = program.ancestors().skip(1).take(2);
    for folder in folders {
        places.extend([folder.join(FILE), folder.join("deps").join(FILE)]);
    }
    places
}

/// A function of the software driver, if that is what `libcuda.so` means in this process.
pub(crate) fn symbol(name: &CStr) -> Option<*mut libc::c_void> {
    system::symbol(c"libcuda.so", name)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod system {
    use super::{CStr, CString, InstallError, Path};
    use libc::{RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOLOAD, RTLD_NOW, dlclose, dlerror, dlopen, dlsym};
    use std::os::unix::ffi::OsStrExt;

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

    /// Loads the library for good.
    pub(super) fn load(file: &Path) -> Result<(), InstallError> {
        let path =
            CString::new(file.as_os_str().as_bytes()).map_err(|error| InstallError::NotLoaded(error.to_string()))?;
        // SAFETY: the library is this crate's own; it has no initialisers that could do harm.
        let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
        if !library.is_null() {
            return Ok(());
        }
        // SAFETY: `dlerror` gives null or a NUL-terminated text that lives until this thread's next call.
        let why = unsafe {
            let text = dlerror();
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        Err(InstallError::NotLoaded(why))
    }

    /// A symbol of a library that is loaded.
    pub(super) fn symbol(library: &CStr, name: &CStr) -> Option<*mut libc::c_void> {
        // SAFETY: both texts are NUL-terminated; the library stays loaded by the handle that `load` keeps.
        unsafe {
            let library = dlopen(library.as_ptr(), RTLD_NOW | RTLD_NOLOAD);
            if library.is_null() {
                return None;
            }
            let address = dlsym(library, name.as_ptr());
            dlclose(library);
            (!address.is_null()).then_some(address)
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod system {
    use super::{CStr, InstallError, Path};

    pub(super) fn has_real_device() -> bool {
        false
    }

    pub(super) fn load(_file: &Path) -> Result<(), InstallError> {
        Err(InstallError::UnsupportedSystem)
    }

    pub(super) fn symbol(_library: &CStr, _name: &CStr) -> Option<*mut libc::c_void> {
        None
    }
}
