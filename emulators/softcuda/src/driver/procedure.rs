//! `cuGetProcAddress`: the driver's functions by name and version.

use super::entry::{Out, Outcome, Text, entry_points};
use super::error::Code;
use std::ffi::{CString, c_void};

/// `CUdriverProcAddressQueryResult`.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// Names whose meaning changed: from which version on the name stands for which function. A name that is not here
/// stands for its `_v2` if there is one.
const VERSIONS: &[(&str, i32, &str)] = &[
    ("cuCtxCreate", 3020, "cuCtxCreate_v2"),
    ("cuCtxCreate", 11040, "cuCtxCreate_v3"),
    ("cuCtxCreate", 13000, "cuCtxCreate_v4"),
    ("cuEventElapsedTime", 2000, "cuEventElapsedTime"),
    ("cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"),
    ("cuMemAdvise", 8000, "cuMemAdvise"),
    ("cuMemAdvise", 12020, "cuMemAdvise_v2"),
    ("cuMemPrefetchAsync", 8000, "cuMemPrefetchAsync"),
    ("cuMemPrefetchAsync", 12020, "cuMemPrefetchAsync_v2"),
    ("cuDeviceGetUuid", 9020, "cuDeviceGetUuid"),
    ("cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2"),
    ("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuStreamGetCaptureInfo", 10010, "cuStreamGetCaptureInfo"),
    ("cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"),
    ("cuCtxGetDevice", 2000, "cuCtxGetDevice"),
    ("cuCtxSynchronize", 2000, "cuCtxSynchronize"),
    ("cuStreamGetCtx", 9020, "cuStreamGetCtx"),
    ("cuGetProcAddress", 11030, "cuGetProcAddress"),
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
];

/// The address of a function that this library exports.
#[cfg(unix)]
fn exported(name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    let own = cuGetProcAddress_v2 as *const c_void;
    // SAFETY: `information` is filled before it is read; the library stays loaded, since this function is part of it.
    unsafe {
        let mut information: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own, &raw mut information) == 0 {
            return None;
        }
        let library = libc::dlopen(information.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if library.is_null() {
            return None;
        }
        let address = libc::dlsym(library, name.as_ptr());
        libc::dlclose(library);
        (!address.is_null()).then_some(address)
    }
}

#[cfg(not(unix))]
fn exported(_name: &str) -> Option<*mut c_void> {
    None
}

/// The function that a name stands for in a version.
fn resolve(name: &str, version: i32) -> Option<*mut c_void> {
    let mut rows = VERSIONS.iter().filter(|row| row.0 == name).peekable();
    if rows.peek().is_some() {
        return rows.rfind(|row| row.1 <= version).and_then(|row| exported(row.2));
    }
    exported(&format!("{name}_v2")).or_else(|| exported(name))
}

fn procedure(name: Text, address: Out<*mut c_void>, version: i32, flags: u64) -> Outcome<u32> {
    address.put(std::ptr::null_mut())?;
    let name = name.get()?;
    // 2 asks for functions that use a stream of each thread's own; those are not here.
    let found = if flags & 2 == 0 && name.starts_with("cu") { resolve(&name, version) } else { None };
    match found {
        Some(found) => address.put(found).map(|()| FOUND),
        None => Ok(NOT_FOUND),
    }
}

entry_points! {
    fn cuGetProcAddress_v2(name: Text, address: Out<*mut c_void>, version: i32, flags: u64, status: Out<u32>) {
        let found = procedure(name, address, version, flags)?;
        status.put_if_wanted(found);
        if found == FOUND { Ok(()) } else { Err(Code::NOT_FOUND) }
    }
    fn cuGetProcAddress(name: Text, address: Out<*mut c_void>, version: i32, flags: u64) {
        let found = procedure(name, address, version, flags)?;
        if found == FOUND { Ok(()) } else { Err(Code::NOT_FOUND) }
    }
}
