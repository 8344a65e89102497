//! Before `cuInit`, every call says so. A process of its own, since initialisation is for good.

use cudarc::driver::sys::{self, CUresult::*};
use std::ptr::null_mut;

#[test]
fn nothing_works_before_initialisation() {
    softcuda::install_always().unwrap();
    // SAFETY: places for the results; null handles.
    unsafe {
        assert_eq!(sys::cuDeviceGetCount(&mut 0), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuDeviceGet(&mut 0, 0), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuDevicePrimaryCtxRetain(&mut null_mut(), 0), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuMemAlloc_v2(&mut 0, 16), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuCtxGetCurrent(&mut null_mut()), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuStreamSynchronize(null_mut()), CUDA_ERROR_NOT_INITIALIZED);
        assert_eq!(sys::cuMemFree_v2(0), CUDA_ERROR_NOT_INITIALIZED);
        sys::cuInit(0).result().unwrap();
        sys::cuDeviceGetCount(&mut 0).result().unwrap();
    }
}
