//! Devices, contexts, and what the driver tells of itself.

mod driver_support;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult, CUresult::*};
use cudarc::driver::{CudaContext, result};
use driver_support::{alone, assert_error};
use softcuda::Settings;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

#[test]
fn the_default_is_like_an_h100() {
    let _alone = alone(&Settings::default());
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    assert_eq!(context.total_mem().unwrap(), 80 << 30);
    let expected = [
        (Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 << 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 228 << 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536),
        (Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED, 0),
    ];
    for (attribute, value) in expected {
        assert_eq!(context.attribute(attribute).unwrap(), value, "{attribute:?}");
    }
}

/// One thread releases the primary context, as the last that has it, while another retains it.
#[test]
fn a_primary_context_that_is_retained_again_stays() {
    let _alone = alone(&Settings::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..100_000 {
                    let context = CudaContext::new(0).expect("the context is there");
                    drop(context.new_stream().expect("and of use"));
                }
            });
        }
    });
}

#[test]
fn other_compute_capabilities_bring_their_limits() {
    // CUDA C++ Programming Guide, technical specifications by compute capability.
    let rows =
        [((8, 0), 2048, 163, 32, 0), ((8, 6), 1536, 99, 16, 0), ((8, 9), 1536, 99, 24, 0), ((10, 0), 2048, 227, 32, 1)];
    for (compute_capability, threads, shared, blocks, clusters) in rows {
        let _alone = alone(&Settings { compute_capability, ..Settings::default() });
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.compute_capability().unwrap(), (compute_capability.0 as i32, compute_capability.1 as i32));
        let attribute = |attribute| context.attribute(attribute).unwrap();
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR), threads);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), shared << 10);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR), blocks);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH), clusters);
    }
}

#[test]
fn several_devices_have_memory_of_their_own() {
    let alone = alone(&Settings { devices: 2, memory_bytes: 1 << 20, ..Settings::default() });
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    assert_ne!(first.uuid().unwrap().bytes, second.uuid().unwrap().bytes);
    let held = first.default_stream().alloc_zeros::<u8>(1 << 19).unwrap();
    assert_eq!(first.mem_get_info().unwrap(), (1 << 19, 1 << 20));
    assert_eq!(second.mem_get_info().unwrap(), (1 << 20, 1 << 20));
    let other = second.default_stream().clone_dtod(&held).unwrap();
    assert_eq!(second.default_stream().clone_dtoh(&other).unwrap(), vec![0; 1 << 19]);
    assert_eq!(alone.control.memory_in_use(), 1 << 20);
    drop((held, other));
    assert_eq!(alone.control.memory_in_use(), 0);
    assert_eq!(alone.control.peak_memory(), 1 << 20);
    assert_error(CudaContext::new(2), CUDA_ERROR_INVALID_DEVICE);
}

#[test]
fn every_error_has_a_name_and_a_meaning() {
    let _alone = alone(&Settings::default());
    for error in [
        CUDA_SUCCESS,
        CUDA_ERROR_INVALID_VALUE,
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_UNKNOWN,
        CUDA_ERROR_NOT_SUPPORTED,
    ] {
        let error = result::DriverError(error);
        assert_eq!(error.error_name().unwrap().to_str().unwrap(), format!("{:?}", error.0));
        assert!(!error.error_string().unwrap().is_empty());
    }
    let mut text = std::ptr::null::<std::ffi::c_char>();
    // SAFETY: a number that no error has, by way of its representation, which the driver takes as an integer.
    let name =
        unsafe { cudarc_raw::<unsafe extern "C" fn(i32, *mut *const std::ffi::c_char) -> CUresult>("cuGetErrorName") };
    // SAFETY: `text` is a place for the result.
    assert_eq!(unsafe { name(12345, &raw mut text) }, CUDA_ERROR_INVALID_VALUE);
    assert!(text.is_null());
}

/// A function of the driver by way of `cuGetProcAddress`.
///
/// # Safety
/// `F` is its signature.
unsafe fn cudarc_raw<F: Copy>(name: &str) -> F {
    let name = std::ffi::CString::new(name).unwrap();
    let mut address: *mut c_void = null_mut();
    let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    // SAFETY: places for the results.
    unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &raw mut address, 13000, 0, &raw mut status).result().unwrap() };
    assert_eq!(status, sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
    // SAFETY: the caller's word for the signature.
    unsafe { std::mem::transmute_copy(&address) }
}

#[test]
fn functions_are_found_by_name_and_version() {
    let _alone = alone(&Settings::default());
    result::init().unwrap();
    // SAFETY: the signatures are those of CUDA 13.
    unsafe {
        let version = cudarc_raw::<unsafe extern "C" fn(*mut i32) -> CUresult>("cuDriverGetVersion");
        let mut number = 0;
        assert_eq!(version(&raw mut number), CUDA_SUCCESS);
        assert_eq!(number, 13000);
        let mut address: *mut c_void = null_mut();
        let found = sys::cuGetProcAddress_v2(c"cuNoSuchCall".as_ptr(), &raw mut address, 13000, 0, null_mut());
        assert_eq!(found, CUDA_ERROR_NOT_FOUND);
        assert!(address.is_null());
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let _alone = alone(&Settings::default());
    result::init().unwrap();
    let mut array = null_mut();
    // SAFETY: the call never looks at its arguments.
    assert_eq!(unsafe { sys::cuArrayCreate_v2(&raw mut array, null_mut()) }, CUDA_ERROR_NOT_SUPPORTED);
}

#[test]
fn contexts_are_a_stack_of_each_thread() {
    let _alone = alone(&Settings::default());
    let primary = CudaContext::new(0).unwrap();
    let current = || result::ctx::get_current().unwrap();
    assert_eq!(current(), Some(primary.cu_ctx()));
    // SAFETY: places for the results; the contexts are live where they are used.
    unsafe {
        let mut own = null_mut();
        sys::cuCtxCreate_v4(&raw mut own, null_mut(), 0, 0).result().unwrap();
        assert_eq!(current(), Some(own));
        std::thread::spawn(|| assert_eq!(result::ctx::get_current().unwrap(), None)).join().unwrap();
        let mut popped = null_mut();
        sys::cuCtxPopCurrent_v2(&raw mut popped).result().unwrap();
        assert_eq!((popped, current()), (own, Some(primary.cu_ctx())));
        sys::cuCtxPushCurrent_v2(own).result().unwrap();
        sys::cuCtxDestroy_v2(own).result().unwrap();
        assert_eq!(current(), Some(primary.cu_ctx()));
        assert_eq!(sys::cuCtxPushCurrent_v2(own), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(sys::cuCtxDestroy_v2(own), CUDA_ERROR_INVALID_CONTEXT);
    }
}

#[test]
fn the_last_release_of_a_primary_context_frees_what_is_in_it() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let mut address = 0;
    // SAFETY: a place for the result.
    unsafe { sys::cuMemAlloc_v2(&raw mut address, 1000).result().unwrap() };
    let second = CudaContext::new(0).unwrap();
    drop(context);
    assert_eq!(alone.control.memory_in_use(), 1000);
    drop(second);
    assert_eq!(alone.control.memory_in_use(), 0);
    // SAFETY: a place for the result.
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&raw mut address, 1000) }, CUDA_ERROR_CONTEXT_IS_DESTROYED);
}

#[test]
fn names_are_cut_to_their_buffer() {
    let _alone = alone(&Settings::default());
    result::init().unwrap();
    let mut name = [1u8; 8];
    // SAFETY: the buffer has the size that is told.
    unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 5, 0).result().unwrap() };
    assert_eq!(CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap(), "soft");
    assert_eq!(name[5..], [1, 1, 1]);
}
