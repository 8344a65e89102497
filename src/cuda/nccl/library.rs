//! NCCL's library: looked for when it is first needed, and its functions.
//!
//! By this crate and not by cudarc, which panics where the library or a function of it is not there, and knows the name `libnccl.so`
//! only: what is installed to run programs is `libnccl.so.2`.

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclSuccess`, and `ncclInProgress`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclUint32`, `ncclFloat32`.
pub(super) const WORDS: c_uint = 3;
pub(super) const NUMBERS: c_uint = 7;
/// `ncclSum`.
pub(super) const SUM: c_uint = 0;

/// Declares the functions that are used, by NCCL's names.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library, which stays open.
        #[allow(non_snake_case, reason = "NCCL's names")]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Since 2.13.
            ncclGetLastError: Option<unsafe extern "C" fn(Handle) -> *const c_char>,
        }

        impl Library {
            /// `None` if one of the functions is not there.
            fn new(library: &system::Open) -> Option<Self> {
                Some(Self {
                    $($name: {
                        let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).ok()?;
                        // SAFETY: NCCL's function of this name has had this signature since 2.4; `system` gives no null.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(
                                library.function(name)?,
                            )
                        }
                    },)*
                    ncclGetLastError: library.function(c"ncclGetLastError").map(|function| {
                        // SAFETY: as above.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Handle) -> *const c_char>(function)
                        }
                    }),
                })
            }
        }
    };
}

functions! {
    ncclGetErrorString: fn(c_int) -> *const c_char;
    ncclGetUniqueId: fn(*mut UniqueId) -> c_int;
    ncclCommInitRank: fn(*mut Handle, c_int, UniqueId, c_int) -> c_int;
    ncclCommAbort: fn(Handle) -> c_int;
    ncclCommDestroy: fn(Handle) -> c_int;
    ncclCommCount: fn(Handle, *mut c_int) -> c_int;
    ncclCommUserRank: fn(Handle, *mut c_int) -> c_int;
    ncclCommGetAsyncError: fn(Handle, *mut c_int) -> c_int;
    ncclAllGather: fn(*const c_void, *mut c_void, usize, c_uint, Handle, *mut c_void) -> c_int;
    ncclAllReduce: fn(*const c_void, *mut c_void, usize, c_uint, c_uint, Handle, *mut c_void) -> c_int;
}

impl Library {
    /// The library of this process.
    pub(super) fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        if let Some(library) = LIBRARY.get() {
            return Ok(library);
        }
        // Not within the cell's lock: a library's initialisers run.
        let library = system::open().as_ref().and_then(Self::new).ok_or(Error::NoNccl)?;
        Ok(LIBRARY.get_or_init(|| library))
    }

    /// The result of a call.
    pub(super) fn called(&self, call: &'static str, code: c_int) -> Result<()> {
        // A communicator that another framework made may not block: then the call goes on.
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: any number may be asked about.
        let what = text(unsafe { (self.ncclGetErrorString)(code) });
        // SAFETY: it does not look at its argument, which says so.
        let more = self.ncclGetLastError.map(|last| text(unsafe { last(std::ptr::null_mut()) })).unwrap_or_default();
        let reason = if more.is_empty() { format!("{what} ({code})") } else { format!("{what} ({code}): {more}") };
        Err(Error::Engine { engine: "NCCL", call, reason })
    }
}

/// A text of the library's.
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: it ends with NUL, and stays until this thread's next call at least.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim_end().to_owned()
}

/// Whether NCCL can be loaded.
pub fn nccl_present() -> bool {
    Library::get().is_ok()
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{CStr, c_char, c_int, c_void};

    unsafe extern "C" {
        fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    const RTLD_LAZY: c_int = 1;
    /// Only a library that is in the process already.
    const RTLD_NOLOAD: c_int = 4;

    /// What is installed to run programs, and what is to build them.
    const NAMES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];

    /// A library that is never closed.
    pub(super) struct Open(*mut c_void);

    /// The one that is in the process already, whichever its name: a communicator of another framework's is that one's.
    pub(super) fn open() -> Option<Open> {
        let tries = [RTLD_LAZY | RTLD_NOLOAD, RTLD_LAZY].into_iter().flat_map(|flags| NAMES.map(|name| (name, flags)));
        // SAFETY: the names end with NUL. The library's initialisers run.
        let mut opened = tries.map(|(name, flags)| unsafe { dlopen(name.as_ptr(), flags) });
        opened.find(|library| !library.is_null()).map(Open)
    }

    impl Open {
        pub(super) fn function(&self, name: &CStr) -> Option<*mut c_void> {
            // SAFETY: a library that is open; the name ends with NUL.
            let function = unsafe { dlsym(self.0, name.as_ptr()) };
            (!function.is_null()).then_some(function)
        }
    }
}

/// There is no NCCL but for Linux.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::ffi::{CStr, c_void};

    pub(super) enum Open {}

    pub(super) fn open() -> Option<Open> {
        None
    }

    impl Open {
        pub(super) fn function(&self, _: &CStr) -> Option<*mut c_void> {
            match *self {}
        }
    }
}
