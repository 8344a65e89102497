//! cuRAND, as far as candle calls it to open a device: a generator can be made, and draws nothing.
//!
//! `scripts/candle-cuda` compiles this file alone, to `libcurand.so`.

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use std::ffi::{c_int, c_void};

/// `CURAND_STATUS_SUCCESS`.
const SUCCESS: c_int = 0;

/// # Safety
/// `generator` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(generator: *mut *mut c_void, _kind: c_int) -> c_int {
    // SAFETY: the caller's promise. Nobody looks behind it.
    unsafe { generator.write(std::ptr::NonNull::dangling().as_ptr()) };
    SUCCESS
}

/// Functions that have nothing to do, whatever their arguments: C lets a caller give more than a function takes.
macro_rules! nothing_to_do {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            SUCCESS
        }
    )*};
}

nothing_to_do! { curandDestroyGenerator curandSetPseudoRandomGeneratorSeed curandSetStream }
