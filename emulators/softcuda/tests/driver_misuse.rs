//! Misuse by the host gets the error that a driver gives. Where the machine has a real driver, the same table is held
//! against that.

// The tables' calls are all unsafe for the one reason that stands above each table.
#![allow(clippy::undocumented_unsafe_blocks)]

mod driver_support;

use cudarc::driver::sys::{self, CUresult, CUresult::*};
use driver_support::KERNELS;
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut, without_provenance_mut};

/// What the calls below are made with.
#[derive(Clone, Copy)]
struct Objects {
    context: sys::CUcontext,
    stream: sys::CUstream,
    event: sys::CUevent,
    module: sys::CUmodule,
    fill: sys::CUfunction,
    square: sys::CUfunction,
    narrow: sys::CUfunction,
    still: sys::CUfunction,
    wide: sys::CUfunction,
    /// 1024 bytes.
    memory: u64,
    /// Freed.
    freed: u64,
}

/// Makes the objects in the primary context of device 0.
///
/// # Safety
/// The driver is there.
unsafe fn objects() -> Objects {
    // SAFETY: places for the results throughout; each object is live when it is used.
    unsafe {
        sys::cuInit(0).result().unwrap();
        let (mut context, mut stream, mut event, mut module) = (null_mut(), null_mut(), null_mut(), null_mut());
        sys::cuDevicePrimaryCtxRetain(&raw mut context, 0).result().unwrap();
        sys::cuCtxSetCurrent(context).result().unwrap();
        sys::cuStreamCreate(&raw mut stream, 1).result().unwrap();
        sys::cuEventCreate(&raw mut event, 0).result().unwrap();
        let text = CString::new(KERNELS).unwrap();
        sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()).result().unwrap();
        let function = |name: &str| {
            let (name, mut function) = (CString::new(name).unwrap(), null_mut());
            sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()).result().unwrap();
            function
        };
        let (mut memory, mut freed) = (0, 0);
        sys::cuMemAlloc_v2(&raw mut memory, 1024).result().unwrap();
        sys::cuMemAlloc_v2(&raw mut freed, 1024).result().unwrap();
        sys::cuMemFree_v2(freed).result().unwrap();
        let (fill, square, narrow) = (function("fill"), function("square"), function("narrow"));
        let (still, wide) = (function("still"), function("wide"));
        Objects { context, stream, event, module, fill, square, narrow, still, wide, memory, freed }
    }
}

type Call = (&'static str, CUresult, fn(&Objects) -> CUresult);

/// A launch of a kernel without parameters.
fn launch(function: sys::CUfunction, grid: [u32; 3], block: [u32; 3], shared: u32, stream: sys::CUstream) -> CUresult {
    // SAFETY: the kernel has no parameters; handles may be anything.
    unsafe {
        sys::cuLaunchKernel(
            function,
            grid[0],
            grid[1],
            grid[2],
            block[0],
            block[1],
            block[2],
            shared,
            stream,
            null_mut(),
            null_mut(),
        )
    }
}

/// A launch with a cluster.
fn launch_cluster(function: sys::CUfunction, grid: u32, cluster: u32) -> CUresult {
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 },
        },
    };
    let configuration = sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: null_mut(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the kernel has no parameters; the configuration lives through the call.
    unsafe { sys::cuLaunchKernelEx(&raw const configuration, function, null_mut(), null_mut()) }
}

fn copy_in(address: u64, bytes: usize) -> CUresult {
    let host = [0u8; 4096];
    // SAFETY: the host's side has the bytes; the device's may be anything.
    unsafe { sys::cuMemcpyHtoD_v2(address, host.as_ptr().cast(), bytes) }
}

fn copy_out(address: u64, bytes: usize) -> CUresult {
    let mut host = [0u8; 4096];
    // SAFETY: the host's side has room for the bytes; the device's may be anything.
    unsafe { sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), address, bytes) }
}

fn load(text: &str) -> CUresult {
    let (text, mut module) = (CString::new(text).unwrap(), null_mut());
    // SAFETY: a NUL-terminated text and a place for the result.
    unsafe { sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()) }
}

/// What a driver refuses without looking at a handle that does not exist: safe to try on a real one.
const CALLS: &[Call] = &[
    // SAFETY, for all of the table: pointers are null or to places of the right type; numbers may be anything.
    ("initialisation with flags", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuInit(1) }),
    ("a device that is not there", CUDA_ERROR_INVALID_DEVICE, |_| unsafe { sys::cuDeviceGet(&mut 0, 99) }),
    ("a negative device", CUDA_ERROR_INVALID_DEVICE, |_| unsafe { sys::cuDeviceGet(&mut 0, -1) }),
    ("no place for a device", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuDeviceGet(null_mut(), 0) }),
    ("no place for an address", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuMemAlloc_v2(null_mut(), 16) }),
    ("nothing to allocate", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuMemAlloc_v2(&mut 0, 0) }),
    ("more than the device has", CUDA_ERROR_OUT_OF_MEMORY, |_| unsafe { sys::cuMemAlloc_v2(&mut 0, 1 << 45) }),
    ("free of memory that was freed", CUDA_ERROR_INVALID_VALUE, |it| unsafe { sys::cuMemFree_v2(it.freed) }),
    ("free of the inside of an allocation", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        sys::cuMemFree_v2(it.memory + 16)
    }),
    ("free of null", CUDA_SUCCESS, |_| unsafe { sys::cuMemFree_v2(0) }),
    ("free of nonsense", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuMemFree_v2(0x1234_5678_9abc) }),
    ("free of host memory that is none", CUDA_ERROR_INVALID_VALUE, |_| unsafe {
        sys::cuMemFreeHost(without_provenance_mut(0x1234_5678_9ab0))
    }),
    ("copy to null", CUDA_ERROR_INVALID_VALUE, |_| copy_in(0, 16)),
    ("copy of nothing", CUDA_SUCCESS, |it| copy_in(it.memory, 0)),
    ("copy to freed memory", CUDA_ERROR_INVALID_VALUE, |it| copy_in(it.freed, 16)),
    ("copy from freed memory", CUDA_ERROR_INVALID_VALUE, |it| copy_out(it.freed, 16)),
    ("copy to nonsense", CUDA_ERROR_INVALID_VALUE, |_| copy_in(0x1234_5678_9abc, 16)),
    ("copy from the host's null", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        sys::cuMemcpyHtoD_v2(it.memory, null(), 16)
    }),
    ("memset of freed memory", CUDA_ERROR_INVALID_VALUE, |it| unsafe { sys::cuMemsetD8_v2(it.freed, 0, 16) }),
    ("memset of 4 bytes at an odd address", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        sys::cuMemsetD32_v2(it.memory + 2, 0, 1)
    }),
    ("stream with unknown flags", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuStreamCreate(&mut null_mut(), 0x80) }),
    ("event with unknown flags", CUDA_ERROR_INVALID_VALUE, |_| unsafe { sys::cuEventCreate(&mut null_mut(), 0x80) }),
    ("time from an event that was never recorded", CUDA_ERROR_INVALID_HANDLE, |it| unsafe {
        sys::cuEventElapsedTime_v2(&mut 0.0, it.event, it.event)
    }),
    ("text that is no PTX", CUDA_ERROR_INVALID_PTX, |_| load("this is not PTX")),
    ("PTX with an unknown instruction", CUDA_ERROR_INVALID_PTX, |_| {
        load(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry bad()\n{\n    frobnicate.u32;\n    ret;\n}",
        )
    }),
    ("PTX of a version to come with an instruction to come", CUDA_ERROR_UNSUPPORTED_PTX_VERSION, |_| {
        load(
            ".version 99.0\n.target sm_80\n.address_size 64\n.visible .entry bad()\n{\n    frobnicate.u32;\n    ret;\n}",
        )
    }),
    ("a file that is not there", CUDA_ERROR_FILE_NOT_FOUND, |_| unsafe {
        sys::cuModuleLoad(&mut null_mut(), c"/there/is/no/such/file".as_ptr())
    }),
    ("a kernel that is not in the module", CUDA_ERROR_NOT_FOUND, |it| unsafe {
        sys::cuModuleGetFunction(&mut null_mut(), it.module, c"absent".as_ptr())
    }),
    ("a variable that is not in the module", CUDA_ERROR_NOT_FOUND, |it| unsafe {
        sys::cuModuleGetGlobal_v2(&mut 0, null_mut(), it.module, c"absent".as_ptr())
    }),
    ("launch without a kernel", CUDA_ERROR_INVALID_HANDLE, |_| launch(null_mut(), [1; 3], [1; 3], 0, null_mut())),
    ("launch of no blocks", CUDA_ERROR_INVALID_VALUE, |it| launch(it.still, [0, 1, 1], [1; 3], 0, null_mut())),
    ("launch of no threads", CUDA_ERROR_INVALID_VALUE, |it| launch(it.still, [1; 3], [1, 0, 1], 0, null_mut())),
    ("1025 threads", CUDA_ERROR_INVALID_VALUE, |it| launch(it.still, [1; 3], [1025, 1, 1], 0, null_mut())),
    ("65 threads along z", CUDA_ERROR_INVALID_VALUE, |it| launch(it.still, [1; 3], [1, 1, 65], 0, null_mut())),
    ("a grid too high", CUDA_ERROR_INVALID_VALUE, |it| launch(it.still, [1, 0x1_0000, 1], [1; 3], 0, null_mut())),
    ("more threads than the kernel's bound", CUDA_ERROR_INVALID_VALUE, |it| {
        launch(it.narrow, [1; 3], [129, 1, 1], 0, null_mut())
    }),
    ("a block that is not the required one", CUDA_ERROR_INVALID_VALUE, |it| {
        launch(it.square, [1; 3], [64, 1, 1], 0, null_mut())
    }),
    ("the required block", CUDA_SUCCESS, |it| launch(it.square, [1; 3], [8, 8, 1], 0, null_mut())),
    ("48 KiB of shared memory", CUDA_SUCCESS, |it| launch(it.still, [1; 3], [32, 1, 1], 48 << 10, null_mut())),
    ("shared memory beyond 48 KiB", CUDA_ERROR_INVALID_VALUE, |it| {
        launch(it.still, [1; 3], [32, 1, 1], (48 << 10) + 1, null_mut())
    }),
    ("a limit of shared memory beyond the device's", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        sys::cuFuncSetAttribute(
            it.wide,
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            1 << 20,
        )
    }),
    ("an argument that is null", CUDA_ERROR_INVALID_VALUE, |it| launch(it.fill, [1; 3], [32, 1, 1], 0, null_mut())),
    ("a cluster that does not divide the grid", CUDA_ERROR_INVALID_CLUSTER_SIZE, |it| launch_cluster(it.still, 3, 2)),
    ("a cluster of 16", CUDA_ERROR_INVALID_CLUSTER_SIZE, |it| launch_cluster(it.still, 16, 16)),
    ("a cluster of 8", CUDA_SUCCESS, |it| launch_cluster(it.still, 16, 8)),
    ("too many blocks to cooperate", CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, |it| unsafe {
        sys::cuLaunchCooperativeKernel(it.still, 1_000_000, 1, 1, 1024, 1, 1, 0, null_mut(), null_mut())
    }),
    ("an unknown device attribute", CUDA_ERROR_INVALID_VALUE, |_| unsafe {
        sys::cuDeviceGetAttribute(null_mut(), sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0)
    }),
    ("the end of a capture that was not begun", CUDA_ERROR_ILLEGAL_STATE, |it| unsafe {
        sys::cuStreamEndCapture(it.stream, &mut null_mut())
    }),
];

/// Stale and invented handles: a real driver may follow them into a crash, softcuda never does.
const HANDLES: &[Call] = &[
    // SAFETY, for all of the table: softcuda looks handles up and follows none.
    ("copy across an allocation's end", CUDA_ERROR_INVALID_VALUE, |it| copy_in(it.memory + 1020, 8)),
    ("copy from across an allocation's end", CUDA_ERROR_INVALID_VALUE, |it| copy_out(it.memory + 1, 1024)),
    ("copy from memory of the host that is not there", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        sys::cuMemcpyHtoD_v2(it.memory, without_provenance_mut::<c_void>(4096), 16)
    }),
    ("an invented context", CUDA_ERROR_INVALID_CONTEXT, |_| unsafe {
        sys::cuCtxSetCurrent(without_provenance_mut(0x1000))
    }),
    ("an invented stream", CUDA_ERROR_INVALID_HANDLE, |_| unsafe {
        sys::cuStreamSynchronize(without_provenance_mut(0x1000))
    }),
    ("an invented event", CUDA_ERROR_INVALID_HANDLE, |_| unsafe { sys::cuEventQuery(without_provenance_mut(0x1000)) }),
    ("an invented module", CUDA_ERROR_INVALID_HANDLE, |_| unsafe {
        sys::cuModuleUnload(without_provenance_mut(0x1000))
    }),
    ("an invented function", CUDA_ERROR_INVALID_HANDLE, |_| {
        launch(without_provenance_mut(0x1000), [1; 3], [1; 3], 0, null_mut())
    }),
    ("a context as a stream", CUDA_ERROR_INVALID_HANDLE, |it| unsafe { sys::cuStreamSynchronize(it.context.cast()) }),
    ("an event as a stream", CUDA_ERROR_INVALID_HANDLE, |it| launch(it.still, [1; 3], [1; 3], 0, it.event.cast())),
    ("a stream twice destroyed", CUDA_ERROR_INVALID_HANDLE, |_| unsafe {
        let mut stream = null_mut();
        sys::cuStreamCreate(&raw mut stream, 0).result().unwrap();
        sys::cuStreamDestroy_v2(stream).result().unwrap();
        sys::cuStreamDestroy_v2(stream)
    }),
    ("an event twice destroyed", CUDA_ERROR_INVALID_HANDLE, |_| unsafe {
        let mut event = null_mut();
        sys::cuEventCreate(&raw mut event, 0).result().unwrap();
        sys::cuEventDestroy_v2(event).result().unwrap();
        sys::cuEventDestroy_v2(event)
    }),
    ("a function of an unloaded module", CUDA_ERROR_INVALID_HANDLE, |_| unsafe {
        let (text, mut module, mut function) = (CString::new(KERNELS).unwrap(), null_mut(), null_mut());
        sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&raw mut function, module, c"still".as_ptr()).result().unwrap();
        sys::cuModuleUnload(module).result().unwrap();
        launch(function, [1; 3], [1; 3], 0, null_mut())
    }),
    ("a graph that was destroyed", CUDA_ERROR_INVALID_VALUE, |it| unsafe {
        let mut graph = null_mut();
        sys::cuStreamBeginCapture_v2(it.stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .result()
            .unwrap();
        sys::cuStreamEndCapture(it.stream, &raw mut graph).result().unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();
        sys::cuGraphInstantiateWithFlags(&mut null_mut(), graph, 0)
    }),
    ("a fat binary that ends early", CUDA_ERROR_INVALID_IMAGE, |_| unsafe {
        let mut image = [0u8; 64];
        image[..4].copy_from_slice(&0xba55_ed50u32.to_le_bytes());
        image[4..8].copy_from_slice(&[1, 0, 16, 0]);
        image[8..16].copy_from_slice(&48u64.to_le_bytes());
        image[16..].fill(0xff);
        sys::cuModuleLoadData(&mut null_mut(), image.as_ptr().cast())
    }),
    ("a wrapper of itself", CUDA_ERROR_INVALID_IMAGE, |_| unsafe {
        let mut image = [0x4662_43b1u64 | 1 << 32, 0, 0];
        image[1] = image.as_ptr() as u64;
        sys::cuModuleLoadData(&mut null_mut(), image.as_ptr().cast())
    }),
    ("machine code", CUDA_ERROR_NO_BINARY_FOR_GPU, |_| unsafe {
        sys::cuModuleLoadData(&mut null_mut(), c"\x7fELF\x02\x01\x01".as_ptr().cast())
    }),
    ("a stream of another context", CUDA_ERROR_INVALID_HANDLE, |it| unsafe {
        let (mut other, mut stream) = (null_mut(), null_mut());
        sys::cuCtxCreate_v4(&raw mut other, null_mut(), 0, 0).result().unwrap();
        sys::cuStreamCreate(&raw mut stream, 0).result().unwrap();
        let launched = launch(it.still, [1; 3], [1; 3], 0, stream);
        sys::cuCtxDestroy_v2(other).result().unwrap();
        launched
    }),
];

fn check(calls: &[Call]) {
    // SAFETY: `softcuda::install` was called.
    let objects = unsafe { objects() };
    let mut wrong = Vec::new();
    for (name, expected, call) in calls {
        let found = call(&objects);
        if found != *expected {
            wrong.push(format!("{name}: {found:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn misuse_gets_a_drivers_error() {
    softcuda::install().unwrap();
    check(CALLS);
}

#[test]
fn handles_are_looked_up_and_never_followed() {
    if softcuda::install().unwrap() != softcuda::Installed::RealDriver {
        check(HANDLES);
    }
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    softcuda::install().unwrap();
    // SAFETY: a place for the result.
    std::thread::spawn(|| unsafe {
        sys::cuInit(0).result().unwrap();
        assert_eq!(sys::cuMemAlloc_v2(&mut 0, 16), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(sys::cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .unwrap();
}
