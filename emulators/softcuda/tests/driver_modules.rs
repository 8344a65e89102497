//! Modules, functions and launches.

mod driver_support;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult::*};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use driver_support::{KERNELS, alone, assert_error, kernel, kernels};
use softcuda::Settings;
use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;

fn blocks_of(threads: u32, count: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (count.div_ceil(threads), 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

#[test]
fn kernels_get_their_arguments_and_write_their_results() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let module = kernels(&context);
    let (fill, add) = (module.load_function("fill").unwrap(), module.load_function("add").unwrap());
    let count = 1000u32;
    let mut data = stream.alloc_zeros::<u32>(1024).unwrap();
    for (function, value) in [(&fill, 5u32), (&add, 7)] {
        // SAFETY: the arguments are those of the kernels: address, value, count.
        unsafe {
            stream
                .launch_builder(function)
                .arg(&mut data)
                .arg(&value)
                .arg(&count)
                .launch(blocks_of(128, count))
                .unwrap()
        };
    }
    let seen = stream.clone_dtoh(&data).unwrap();
    assert_eq!(seen[..1000], [12; 1000]);
    assert_eq!(seen[1000..], [0; 24]);
    let launches = alone.control.take_launches();
    let shapes: Vec<_> = launches.iter().map(|launch| (launch.kernel.as_str(), launch.grid, launch.block)).collect();
    assert_eq!(shapes, [("fill", [8, 1, 1], [128, 1, 1]), ("add", [8, 1, 1], [128, 1, 1])]);
    assert_eq!(launches[1].counters.threads, 1024);
    assert_eq!(launches[1].counters.global.bytes_stored, 4000);
    assert_eq!(launches[1].counters.global.bytes_loaded, 4000);
    assert!(alone.control.take_launches().is_empty());
}

#[test]
fn threads_launch_side_by_side() {
    let alone = alone(&Settings::default());
    let threads: Vec<_> = (0..6u32)
        .map(|thread| {
            std::thread::spawn(move || {
                let context = CudaContext::new(0).unwrap();
                let stream = context.new_stream().unwrap();
                let add = kernel(&context, "add");
                let (value, count) = (thread + 1, 300u32);
                let mut data = stream.alloc_zeros::<u32>(300).unwrap();
                for _ in 0..10 {
                    // SAFETY: the arguments are those of the kernel.
                    unsafe {
                        stream
                            .launch_builder(&add)
                            .arg(&mut data)
                            .arg(&value)
                            .arg(&count)
                            .launch(blocks_of(64, count))
                            .unwrap()
                    };
                }
                assert_eq!(stream.clone_dtoh(&data).unwrap(), vec![10 * (thread + 1); 300]);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(alone.control.take_launches().len(), 60);
    assert_eq!(alone.control.memory_in_use(), 0);
}

#[test]
fn arguments_can_come_as_one_buffer() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let fill = kernel(&context, "fill");
    let data = stream.alloc_zeros::<u32>(64).unwrap();
    let address = cudarc::driver::DevicePtr::device_ptr(&data, &stream).0;
    let mut buffer = [0u8; 16];
    buffer[..8].copy_from_slice(&address.to_le_bytes());
    buffer[8..12].copy_from_slice(&9u32.to_le_bytes());
    buffer[12..].copy_from_slice(&64u32.to_le_bytes());
    for (given, expected) in [(16usize, CUDA_SUCCESS), (15, CUDA_ERROR_INVALID_VALUE)] {
        let mut bytes = given;
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            buffer.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            null_mut(),
        ];
        // SAFETY: the buffer has the kernel's parameters at their offsets.
        let launched = unsafe {
            sys::cuLaunchKernel(fill.cu_function(), 1, 1, 1, 64, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr())
        };
        assert_eq!(launched, expected);
    }
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [9; 64]);
}

#[test]
fn delayed_kernels_run_when_they_are_waited_for() {
    let alone = alone(&Settings { delay_streams: true, ..Settings::default() });
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let fill = kernel(&context, "fill");
    let (value, count) = (3u32, 100u32);
    let mut data = stream.alloc_zeros::<u32>(100).unwrap();
    // SAFETY: the arguments are those of the kernel.
    unsafe {
        stream.launch_builder(&fill).arg(&mut data).arg(&value).arg(&count).launch(blocks_of(32, count)).unwrap()
    };
    assert!(alone.control.take_launches().is_empty());
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [3; 100]);
    assert_eq!(alone.control.take_launches().len(), 1);
}

#[test]
fn graphs_launch_kernels_again() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    // SAFETY: all is in one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let add = kernel(&context, "add");
    let (value, count) = (2u32, 64u32);
    let mut data = stream.alloc_zeros::<u32>(64).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    // SAFETY: the arguments are those of the kernel.
    unsafe { stream.launch_builder(&add).arg(&mut data).arg(&value).arg(&count).launch(blocks_of(64, count)).unwrap() };
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [6; 64]);
    assert_eq!(alone.control.take_launches().len(), 3);
}

#[test]
fn variables_are_found_read_and_written() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let module = kernels(&context);
    let table = module.get_global("table", &stream).unwrap();
    assert_eq!(stream.clone_dtoh(&table).unwrap(), (1..=16).collect::<Vec<u8>>());
    let mut counter = module.get_global("counter", &stream).unwrap();
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), [7, 0, 0, 0]);
    stream.memcpy_htod(&[1u8, 2, 3, 4], &mut counter).unwrap();
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), [1, 2, 3, 4]);
    assert_error(module.get_global("absent", &stream), CUDA_ERROR_NOT_FOUND);
}

#[test]
fn functions_tell_of_themselves() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let module = kernels(&context);
    let wide = module.load_function("wide").unwrap();
    assert_eq!(wide.shared_size_bytes().unwrap(), 1024);
    assert_eq!(wide.ptx_version().unwrap(), 80);
    assert_eq!(wide.binary_version().unwrap(), 90);
    assert_eq!(wide.max_threads_per_block().unwrap(), 1024);
    assert_eq!(module.load_function("narrow").unwrap().max_threads_per_block().unwrap(), 128);
    let fill = module.load_function("fill").unwrap();
    let mut parameters = Vec::new();
    let (mut offset, mut size) = (0, 0);
    // SAFETY: places for the results.
    unsafe {
        while sys::cuFuncGetParamInfo(fill.cu_function(), parameters.len(), &raw mut offset, &raw mut size)
            == CUDA_SUCCESS
        {
            parameters.push((offset, size));
        }
        let mut name = std::ptr::null();
        sys::cuFuncGetName(&raw mut name, fill.cu_function()).result().unwrap();
        assert_eq!(CStr::from_ptr(name), c"fill");
    }
    assert_eq!(parameters, [(0, 8), (8, 4), (12, 4)]);
}

#[test]
fn shared_memory_beyond_48_kib_must_be_asked_for() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let wide = kernel(&context, "wide");
    let launch = |bytes: u32| {
        let configuration = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: bytes };
        // SAFETY: the kernel does not use its parameter.
        unsafe { stream.launch_builder(&wide).arg(&0u64).launch(configuration) }
    };
    let limit = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // 1 KiB is static.
    assert_eq!(wide.get_attribute(limit).unwrap(), 47 << 10);
    launch(47 << 10).unwrap();
    assert_error(launch((47 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    assert_error(wide.set_attribute(limit, (226 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    wide.set_attribute(limit, 226 << 10).unwrap();
    launch(226 << 10).unwrap();
    assert_error(launch((226 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
}

extern "C" fn no_shared(_threads: i32) -> usize {
    0
}

#[test]
fn occupancy_follows_the_limits() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let still = kernel(&context, "still");
    let blocks = |threads, shared| still.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None).unwrap();
    assert_eq!(blocks(1024, 0), 2);
    assert_eq!(blocks(256, 0), 8);
    assert_eq!(blocks(32, 0), 32);
    // Three warps: 2048 / 96.
    assert_eq!(blocks(65, 0), 21);
    assert_eq!(blocks(256, 100 << 10), 2);
    assert_eq!(blocks(256, 227 << 10), 1);
    assert_eq!(blocks(256, 228 << 10), 0);
    let (grid, block) = still.occupancy_max_potential_block_size(no_shared, 0, 0, None).unwrap();
    assert_eq!((grid, block), (132 * 2, 1024));
    // One block may have half of a multiprocessor, less what is kept back.
    assert_eq!(still.occupancy_available_dynamic_smem_per_block(2, 1024).unwrap(), (114 << 10) - 1024);
    // And less its own 1 KiB of static shared memory.
    let wide = kernel(&context, "wide");
    assert_eq!(wide.occupancy_available_dynamic_smem_per_block(2, 1024).unwrap(), (114 << 10) - 2048);
}

#[test]
fn an_error_in_the_ptx_is_in_the_log() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let text =
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry bad()\n{\n    frobnicate.u32;\n    ret;\n}\n";
    let text = CString::new(text).unwrap();
    let mut log = [1u8; 200];
    let mut module = null_mut();
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        sys::CUjit_option::CU_JIT_OPTIMIZATION_LEVEL,
    ];
    let mut values: [*mut c_void; 3] =
        [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(200), std::ptr::without_provenance_mut(4)];
    // SAFETY: three options with their values, a NUL-terminated text, a place for the result.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 3, options.as_mut_ptr(), values.as_mut_ptr())
    };
    assert_eq!(loaded, CUDA_ERROR_INVALID_PTX);
    let log = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
    assert!(log.contains("line 6") && log.contains("frobnicate"), "{log}");
    assert_eq!(values[1] as usize, log.len());
}

#[test]
fn ptx_for_a_later_device_is_refused() {
    for (compute_capability, target, fits) in [
        ((9, 0), "sm_90", true),
        ((9, 0), "sm_90a", true),
        ((9, 0), "sm_100", false),
        ((8, 0), "sm_90", false),
        ((10, 0), "sm_90", true),
        ((10, 0), "sm_90a", false),
        ((8, 9), "sm_80", true),
    ] {
        let _alone = alone(&Settings { compute_capability, ..Settings::default() });
        let context = CudaContext::new(0).unwrap();
        let text =
            format!(".version 8.7\n.target {target}\n.address_size 64\n.visible .entry still()\n{{\n    ret;\n}}\n");
        let loaded = context.load_module(Ptx::from_src(text));
        if fits {
            loaded.unwrap();
        } else {
            assert_error(loaded, CUDA_ERROR_INVALID_PTX);
        }
    }
}

#[test]
fn libraries_give_kernels_and_modules() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let text = CString::new(KERNELS).unwrap();
    let (mut library, mut kernel, mut function, mut module) = (null_mut(), null_mut(), null_mut(), null_mut());
    // SAFETY: places for the results; a NUL-terminated text; no options.
    unsafe {
        let image = text.as_ptr().cast();
        sys::cuLibraryLoadData(&raw mut library, image, null_mut(), null_mut(), 0, null_mut(), null_mut(), 0)
            .result()
            .unwrap();
        sys::cuLibraryGetKernel(&raw mut kernel, library, c"still".as_ptr()).result().unwrap();
        sys::cuKernelGetFunction(&raw mut function, kernel).result().unwrap();
        sys::cuLibraryGetModule(&raw mut module, library).result().unwrap();
        sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, null_mut(), null_mut(), null_mut()).result().unwrap();
        sys::cuCtxSynchronize().result().unwrap();
        assert_eq!(sys::cuLibraryGetKernel(&raw mut kernel, library, c"absent".as_ptr()), CUDA_ERROR_NOT_FOUND);
        sys::cuLibraryUnload(library).result().unwrap();
        assert_eq!(sys::cuLibraryUnload(library), CUDA_ERROR_INVALID_HANDLE);
    }
}

#[test]
fn a_report_file_gets_a_line_for_each_launch() {
    let file = std::env::temp_dir().join(format!("softcuda-report-{}.json", std::process::id()));
    {
        let _alone = alone(&Settings { report_file: Some(file.clone()), ..Settings::default() });
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let still = kernel(&context, "still");
        for _ in 0..2 {
            // SAFETY: the kernel has no parameters.
            unsafe { stream.launch_builder(&still).launch(blocks_of(32, 64)).unwrap() };
        }
        stream.synchronize().unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let reports: Vec<softcuda::report::LaunchReport> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2);
    assert_eq!((reports[0].kernel.as_str(), reports[0].grid), ("still", [2, 1, 1]));
}

/// A kernel with parameters of all sizes, which wants clusters of two blocks.
const PAIRS: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry pairs(.param .u32 a, .param .u64 b, .param .u8 c, .param .u16 d) .reqnctapercluster 2, 1, 1
{
    ret;
}
";

#[test]
fn parameters_lie_at_multiples_of_their_size_and_clusters_are_the_required_ones() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let text = CString::new(PAIRS).unwrap();
    let (mut module, mut function) = (null_mut(), null_mut());
    // SAFETY: NUL-terminated texts and places for the results.
    unsafe {
        context.bind_to_thread().unwrap();
        sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&raw mut function, module, c"pairs".as_ptr()).result().unwrap();
    }
    for (index, expected) in [(0, 4), (8, 8), (16, 1), (18, 2)].into_iter().enumerate() {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a live function and places for the results.
        unsafe { sys::cuFuncGetParamInfo(function, index, &raw mut offset, &raw mut size).result().unwrap() };
        assert_eq!((offset, size), expected);
    }
    let launch = |cluster: Option<u32>, grid: u32| {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster.unwrap_or(1), y: 1, z: 1 },
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
            numAttrs: u32::from(cluster.is_some()),
        };
        let mut value = 0u64;
        let mut arguments = [(&raw mut value).cast::<c_void>(); 4];
        // SAFETY: four arguments of at most 8 bytes; the configuration lives through the call.
        unsafe { sys::cuLaunchKernelEx(&raw const configuration, function, arguments.as_mut_ptr(), null_mut()) }
    };
    assert_eq!(launch(None, 4), CUDA_SUCCESS);
    assert_eq!(launch(Some(2), 4), CUDA_SUCCESS);
    assert_eq!(launch(Some(4), 4), CUDA_ERROR_INVALID_CLUSTER_SIZE);
    assert_eq!(launch(None, 3), CUDA_ERROR_INVALID_CLUSTER_SIZE);
    context.synchronize().unwrap();
}
