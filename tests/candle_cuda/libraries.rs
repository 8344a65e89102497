//! What candle calls of cuBLAS and cuRAND, on a machine that has neither: a handle can be made and destroyed, and
//! everything that would compute says that it is not supported. No case here multiplies matrices or draws numbers on
//! the device; one that did would fail with that status.

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// `CUBLAS_STATUS_SUCCESS` and `CURAND_STATUS_SUCCESS`.
const SUCCESS: c_int = 0;

/// A handle that is not null and that nobody looks behind.
const HANDLE: *mut c_void = NonNull::<c_void>::dangling().as_ptr();

/// `CUBLAS_STATUS_NOT_SUPPORTED`.
const NOT_SUPPORTED: c_int = 15;

/// Functions that give a status, whatever their arguments: C lets a caller give more than a function takes.
macro_rules! give {
    ($($status:ident: $($name:ident)*;)*) => {$($(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            $status
        }
    )*)*};
}

give! {
    SUCCESS:
        cublasDestroy_v2 cublasSetStream_v2
        curandDestroyGenerator curandSetStream curandSetPseudoRandomGeneratorSeed;
    NOT_SUPPORTED: cublasGemmStridedBatchedEx cublasDgemmStridedBatched;
}

/// # Safety
/// `handle` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { handle.write(HANDLE) };
    SUCCESS
}

/// # Safety
/// `generator` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(generator: *mut *mut c_void, _kind: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { generator.write(HANDLE) };
    SUCCESS
}
