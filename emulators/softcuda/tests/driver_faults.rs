//! Faults in kernels: the error that sticks to the context, and how it goes away.

mod driver_support;

use cudarc::driver::sys::{self, CUresult, CUresult::*};
use cudarc::driver::{CudaContext, DevicePtrMut, LaunchConfig, PushKernelArg};
use driver_support::{alone, assert_error, kernels};
use softcuda::Settings;
use softcuda::report::FaultKind;
use std::ptr::null_mut;

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

/// Kernel, fault, error.
const FAULTS: &[(&str, FaultKind, CUresult)] = &[
    ("outside", FaultKind::OutOfBounds, CUDA_ERROR_ILLEGAL_ADDRESS),
    ("odd", FaultKind::Misaligned, CUDA_ERROR_MISALIGNED_ADDRESS),
    ("stop", FaultKind::Trap, CUDA_ERROR_ILLEGAL_INSTRUCTION),
    ("spin", FaultKind::InstructionBudget, CUDA_ERROR_LAUNCH_TIMEOUT),
];

#[test]
fn a_fault_sticks_to_the_context_until_it_is_cleared() {
    for delay_streams in [false, true] {
        let alone = alone(&Settings { instruction_budget: 100_000, delay_streams, ..Settings::default() });
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = kernels(&context);
        let data = stream.alloc_zeros::<u32>(4).unwrap();
        for &(name, kind, error) in FAULTS {
            let function = module.load_function(name).unwrap();
            let mut builder = stream.launch_builder(&function);
            if name == "odd" {
                builder.arg(&data);
            }
            // SAFETY: the arguments are those of the kernel; its fault is wanted.
            unsafe { builder.launch(ONE).unwrap() };
            assert_error(stream.synchronize(), error);
            // It is there for every later call.
            assert_error(stream.synchronize(), error);
            let mut address = 0;
            // SAFETY: a place for the result.
            assert_eq!(unsafe { sys::cuMemAlloc_v2(&raw mut address, 16) }, error, "{name}");
            // SAFETY: as above.
            assert_eq!(unsafe { sys::cuCtxSynchronize() }, error, "{name}");
            let fault = alone.control.take_fault().unwrap();
            assert_eq!((fault.kernel.as_str(), fault.kind), (name, kind));
            assert_eq!(alone.control.take_fault(), None);
            alone.control.clear_fault();
            stream.synchronize().unwrap();
        }
        // cudarc remembers errors of drops only; the context works again.
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [0; 4]);
    }
}

#[test]
fn a_faulty_context_does_not_spoil_another() {
    let _alone = alone(&Settings::default());
    let good = CudaContext::new(0).unwrap();
    // SAFETY: places for the results; objects are live where they are used.
    unsafe {
        let (mut bad, mut module, mut function) = (null_mut(), null_mut(), null_mut());
        sys::cuCtxCreate_v4(&raw mut bad, null_mut(), 0, 0).result().unwrap();
        let text = std::ffi::CString::new(driver_support::KERNELS).unwrap();
        sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&raw mut function, module, c"stop".as_ptr()).result().unwrap();
        sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut()).result().unwrap();
        assert_eq!(sys::cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_INSTRUCTION);
        assert_eq!(good.default_stream().clone_htod(&[1u32]).map(drop).map_err(|error| error.0), Ok(()));
        sys::cuCtxDestroy_v2(bad).result().unwrap();
    }
    good.synchronize().unwrap();
}

#[test]
fn a_new_primary_context_is_clean() {
    let _alone = alone(&Settings::default());
    {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let stop = kernels(&context).load_function("stop").unwrap();
        // SAFETY: the kernel has no parameters; its fault is wanted.
        unsafe { stream.launch_builder(&stop).launch(ONE).unwrap() };
        assert_error(stream.synchronize(), CUDA_ERROR_ILLEGAL_INSTRUCTION);
    }
    let context = CudaContext::new(0).unwrap();
    context.synchronize().unwrap();
    assert_eq!(context.default_stream().clone_htod(&[1u32]).map(drop).map_err(|error| error.0), Ok(()));
}

#[test]
fn a_reset_primary_context_is_clean_and_empty() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let stop = kernels(&context).load_function("stop").unwrap();
    // SAFETY: the kernel has no parameters; its fault is wanted.
    unsafe { stream.launch_builder(&stop).launch(ONE).unwrap() };
    assert_error(stream.synchronize(), CUDA_ERROR_ILLEGAL_INSTRUCTION);
    let mut address = 0;
    // SAFETY: the device is there; a place for the result.
    unsafe {
        sys::cuDevicePrimaryCtxReset_v2(0).result().unwrap();
        sys::cuMemAlloc_v2(&raw mut address, 100).result().unwrap();
        assert_eq!(alone.control.memory_in_use(), 100);
        sys::cuDevicePrimaryCtxReset_v2(0).result().unwrap();
    }
    assert_eq!(alone.control.memory_in_use(), 0);
}

#[test]
fn nothing_runs_after_a_fault() {
    for delay_streams in [false, true] {
        let alone = alone(&Settings { delay_streams, ..Settings::default() });
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let stop = kernels(&context).load_function("stop").unwrap();
        let mut data = stream.alloc_zeros::<u32>(4).unwrap();
        let address = data.device_ptr_mut(&stream).0;
        stream.synchronize().unwrap();
        // SAFETY: the kernel has no parameters; its fault is wanted. 16 bytes.
        unsafe {
            stream.launch_builder(&stop).launch(ONE).unwrap();
            let _refused_at_once_or_later = sys::cuMemsetD32Async(address, 7, 4, stream.cu_stream());
        }
        assert_error(stream.synchronize(), CUDA_ERROR_ILLEGAL_INSTRUCTION);
        alone.control.clear_fault();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [0; 4]);
    }
}
