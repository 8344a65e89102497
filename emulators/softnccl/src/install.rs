//! Putting the software library where cudarc finds it, as softcuda does with the driver: once a library with the
//! DT_SONAME `libnccl.so` is loaded, glibc answers a `dlopen` of that name with it.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Which library this process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The driver is a real one: so is NCCL, if there is any.
    Real,
    /// This crate's, loaded from here.
    Software(PathBuf),
}

/// Why the software library could not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The library is in none of these places; it is built with every test of a package that depends on this crate.
    NotFound(Vec<PathBuf>),
    /// The library was found but not loaded.
    NotLoaded(String),
    /// Another `libnccl.so` was loaded before: call this before the first use of NCCL.
    TooLate,
}

impl std::fmt::Display for InstallError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(places) => write!(formatter, "the software NCCL was not found; looked for {places:?}"),
            Self::NotLoaded(why) => write!(formatter, "the software NCCL was not loaded: {why}"),
            Self::TooLate => formatter.write_str("another libnccl.so is loaded already"),
        }
    }
}

impl std::error::Error for InstallError {}

/// The file that cargo makes of this crate.
const FILE: &str = "libsoftnccl.so";
/// A function that only this crate's library has.
const MARK: &CStr = c"softnccl_is_here";

/// Makes NCCL work on softcuda. Call it after `softcuda::install()`, before the first use of NCCL; calling it again
/// does nothing. With a real driver it does nothing at all.
///
/// # Errors
/// When the library cannot be loaded.
pub fn install() -> Result<Installed, InstallError> {
    static INSTALLED: Mutex<Option<Installed>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = &*installed {
        return Ok(before.clone());
    }
    let software = system::symbol(c"libcuda.so", crate::host_work::FUNCTION).is_some();
    let found = if software { Installed::Software(load()?) } else { Installed::Real };
    *installed = Some(found.clone());
    Ok(found)
}

fn load() -> Result<PathBuf, InstallError> {
    let program = std::env::current_exe().map_err(|error| InstallError::NotLoaded(error.to_string()))?;
    let places = candidates(&program);
    let Some(file) = places.iter().find(|place| place.is_file()) else { return Err(InstallError::NotFound(places)) };
    system::load(file)?;
    if system::symbol(c"libnccl.so", MARK).is_some() { Ok(file.clone()) } else { Err(InstallError::TooLate) }
}

/// Where cargo puts the library, seen from a test (`deps`), a program, or an example.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let folders = program.ancestors().skip(1).take(2);
    folders.flat_map(|folder| [folder.join(FILE), folder.join("deps").join(FILE)]).collect()
}

pub(crate) mod system {
    use super::{CStr, InstallError, Path};
    use libc::{RTLD_LOCAL, RTLD_NOLOAD, RTLD_NOW, dlclose, dlerror, dlopen, dlsym};
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    /// Loads the library for good.
    pub(super) fn load(file: &Path) -> Result<(), InstallError> {
        let path =
            CString::new(file.as_os_str().as_bytes()).map_err(|error| InstallError::NotLoaded(error.to_string()))?;
        // SAFETY: the library is this crate's own; it has no initialisers that could do harm.
        let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW | RTLD_LOCAL) };
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

    /// A symbol of a library that is loaded already, and stays so.
    pub(crate) fn symbol(library: &CStr, name: &CStr) -> Option<*mut libc::c_void> {
        // SAFETY: both texts are NUL-terminated; whoever loaded the library keeps it.
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
