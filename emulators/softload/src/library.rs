//! Putting a software library where cudarc finds it: once a library with the DT_SONAME that it looks for is loaded, glibc answers a
//! `dlopen` of that name with it. Nothing outside of the process changes.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Which library this process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The driver is a real one: so is this library, if there is any.
    Real,
    /// The software one, loaded from here.
    Software(PathBuf),
}

/// Why a software library could not be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The library is in none of these places; it is built with every test of a package that depends on its crate.
    NotFound {
        /// What it stands in for.
        name: &'static str,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// The library was found but not loaded.
    NotLoaded {
        /// What it stands in for.
        name: &'static str,
        /// What the system says.
        why: String,
    },
    /// Another library of this name was loaded before: the software one must be put in place before the first use.
    TooLate {
        /// What it stands in for.
        name: &'static str,
    },
}

impl std::fmt::Display for InstallError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound { name, places } => {
                write!(formatter, "the software {name} was not found; looked for {places:?}")
            }
            Self::NotLoaded { name, why } => write!(formatter, "the software {name} was not loaded: {why}"),
            Self::TooLate { name } => write!(formatter, "another {name} is loaded already"),
        }
    }
}

impl std::error::Error for InstallError {}

pub use system::{load, symbol};

/// A software library on softcuda, in place of one that programs open by name.
#[derive(Debug)]
pub struct Library {
    /// What it stands in for, in words.
    pub name: &'static str,
    /// The file that cargo makes of its crate.
    pub file: &'static str,
    /// Its DT_SONAME.
    pub soname: &'static CStr,
    /// A function that only this library has.
    pub mark: &'static CStr,
    /// [`Library::new`] has none.
    installed: Mutex<Option<Installed>>,
}

impl Library {
    /// One that has not been put in place yet.
    pub const fn new(name: &'static str, file: &'static str, soname: &'static CStr, mark: &'static CStr) -> Self {
        Self { name, file, soname, mark, installed: Mutex::new(None) }
    }

    /// Puts it in place, where the driver is softcuda's; a second call does nothing.
    ///
    /// # Errors
    /// When the library cannot be loaded.
    pub fn install(&self) -> Result<Installed, InstallError> {
        let mut installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = &*installed {
            return Ok(before.clone());
        }
        let software = symbol(c"libcuda.so", crate::product::FUNCTION).is_some();
        let found = if software { Installed::Software(self.load()?) } else { Installed::Real };
        *installed = Some(found.clone());
        Ok(found)
    }

    fn load(&self) -> Result<PathBuf, InstallError> {
        let Self { name, .. } = *self;
        let not_loaded = |why| InstallError::NotLoaded { name, why };
        let places = candidates(self.file).map_err(not_loaded)?;
        let Some(file) = places.iter().find(|place| place.is_file()) else {
            return Err(InstallError::NotFound { name, places });
        };
        load(file, Visible::ByName).map_err(not_loaded)?;
        if symbol(self.soname, self.mark).is_some() { Ok(file.clone()) } else { Err(InstallError::TooLate { name }) }
    }
}

/// Where cargo puts a library, seen from a test (`deps`), a program, or an example.
///
/// # Errors
/// Where the system does not say which program this is.
pub fn candidates(file: &str) -> Result<Vec<PathBuf>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let folders = program.ancestors().skip(1).take(2);
    Ok(folders.flat_map(|folder| [folder.join(file), folder.join("deps").join(file)]).collect())
}

/// Who sees a library's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Whoever opens it by its name.
    ByName,
    /// Libraries that are loaded later, too.
    Everywhere,
}

/// Only Linux with glibc finds a loaded library by its DT_SONAME.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod system {
    use super::{CStr, Path, Visible};
    use libc::{RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOLOAD, RTLD_NOW, c_int, dlclose, dlerror, dlopen, dlsym};
    use std::ffi::{CString, c_void};
    use std::os::unix::ffi::OsStrExt;

    /// Loads a library for good: one of ours, which has no initialisers that could do harm.
    ///
    /// # Errors
    /// What the system says.
    pub fn load(file: &Path, visible: Visible) -> Result<(), String> {
        let path = CString::new(file.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let scope: c_int = match visible {
            Visible::ByName => RTLD_LOCAL,
            Visible::Everywhere => RTLD_GLOBAL,
        };
        // SAFETY: the library is one of this crate's users'.
        let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW | scope) };
        if !library.is_null() {
            return Ok(());
        }
        // SAFETY: `dlerror` gives null or a NUL-terminated text that lives until this thread's next call.
        unsafe {
            let text = dlerror();
            Err(if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() })
        }
    }

    /// A symbol of a library that is loaded already, and stays so.
    pub fn symbol(library: &CStr, name: &CStr) -> Option<*mut c_void> {
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

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod system {
    use super::{CStr, Path, Visible};
    use std::ffi::c_void;

    /// Loads no library.
    ///
    /// # Errors
    /// Always.
    pub fn load(_file: &Path, _visible: Visible) -> Result<(), String> {
        Err("the software libraries work on Linux with glibc only".to_owned())
    }

    /// None.
    pub fn symbol(_library: &CStr, _name: &CStr) -> Option<*mut c_void> {
        None
    }
}
