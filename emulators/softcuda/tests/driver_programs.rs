//! Programs from several texts (`cuLink*`), of later versions, and that print; kernels as nodes of a graph.

mod driver_support;

use cudarc::driver::sys::{self, CUresult::*};
use cudarc::driver::{CudaContext, LaunchConfig};
use cudarc::nvrtc::Ptx;
use driver_support::{alone, assert_error, kernels};
use softcuda::Settings;
use std::ffi::{CString, c_void};
use std::process::Command;
use std::ptr::{null, null_mut};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

const CALLER: &str = "
    .extern .func (.param .b32 r) twice (.param .b32 x);
    .extern .global .u32 offset;
    .visible .entry run(.param .u64 out)
    {
        .reg .b32 %r<4>; .reg .b64 %rd;
        .param .b32 x; .param .b32 r;
        st.param.b32 [x], 21;
        call (r), twice, (x);
        ld.param.b32 %r1, [r];
        ld.global.u32 %r2, [offset];
        add.u32 %r3, %r1, %r2;
        ld.param.u64 %rd, [out];
        st.global.u32 [%rd], %r3;
        ret;
    }
";
const CALLEE: &str = "
    .visible .global .u32 offset = 100;
    .visible .func (.param .b32 r) twice (.param .b32 x)
    {
        .reg .b32 %r<2>;
        ld.param.b32 %r0, [x];
        add.u32 %r1, %r0, %r0;
        st.param.b32 [r], %r1;
        ret;
    }
";

/// Links texts; the image, and the linking that owns it.
fn link(texts: &[&str]) -> Result<(sys::CUlinkState, *mut c_void), sys::CUresult> {
    // SAFETY: options and names are none; each text is given with its length, and the results have places.
    unsafe {
        let mut linking = null_mut();
        sys::cuLinkCreate_v2(0, null_mut(), null_mut(), &raw mut linking).result().map_err(|error| error.0)?;
        for text in texts {
            let text = CString::new(*text).unwrap();
            let bytes = text.as_bytes_with_nul();
            let data = bytes.as_ptr().cast_mut().cast();
            let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
            let name = c"text".as_ptr();
            sys::cuLinkAddData_v2(linking, kind, data, bytes.len(), name, 0, null_mut(), null_mut())
                .result()
                .map_err(|error| error.0)?;
        }
        let (mut image, mut bytes) = (null_mut(), 0);
        let completed = sys::cuLinkComplete(linking, &raw mut image, &raw mut bytes);
        if completed != CUDA_SUCCESS {
            assert_eq!(sys::cuLinkDestroy(linking), CUDA_SUCCESS);
            return Err(completed);
        }
        assert!(bytes > 0);
        Ok((linking, image))
    }
}

#[test]
fn texts_are_linked() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    for texts in [[CALLER, CALLEE], [CALLEE, CALLER]] {
        let texts = texts.map(|text| format!("{HEAD}{text}"));
        let (linking, image) = link(&[&texts[0], &texts[1]]).unwrap();
        let mut module = null_mut();
        let mut function = null_mut();
        let mut out = stream.alloc_zeros::<u32>(1).unwrap();
        // SAFETY: the image lives until the linking is destroyed; the kernel takes one address.
        unsafe {
            assert_eq!(sys::cuModuleLoadData(&raw mut module, image), CUDA_SUCCESS);
            assert_eq!(sys::cuLinkDestroy(linking), CUDA_SUCCESS);
            assert_eq!(sys::cuModuleGetFunction(&raw mut function, module, c"run".as_ptr()), CUDA_SUCCESS);
            let mut address = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut out, &stream).0;
            let mut arguments = [(&raw mut address).cast::<c_void>()];
            let (pointers, stream) = (arguments.as_mut_ptr(), stream.cu_stream());
            assert_eq!(sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, pointers, null_mut()), CUDA_SUCCESS);
        }
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [142]);
        // SAFETY: loaded above.
        assert_eq!(unsafe { sys::cuModuleUnload(module) }, CUDA_SUCCESS);
    }
}

#[test]
fn what_does_not_link_is_an_error() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let (caller, callee) = (format!("{HEAD}{CALLER}"), format!("{HEAD}{CALLEE}"));
    // Defined twice; heads that differ.
    assert_eq!(link(&[&callee, &callee]).err(), Some(CUDA_ERROR_INVALID_PTX));
    assert_eq!(link(&[&caller, &callee.replace("sm_80", "sm_90")]).err(), Some(CUDA_ERROR_INVALID_PTX));
    // A name that nothing defines is noticed when the result is loaded.
    let (linking, image) = link(&[&caller]).unwrap();
    // SAFETY: as above; a linking that is no longer there is an error.
    unsafe {
        assert_eq!(sys::cuModuleLoadData(&mut null_mut(), image), CUDA_ERROR_INVALID_PTX);
        assert_eq!(sys::cuLinkDestroy(linking), CUDA_SUCCESS);
        assert_eq!(sys::cuLinkDestroy(linking), CUDA_ERROR_INVALID_HANDLE);
        let kind = sys::CUjitInputType::CU_JIT_INPUT_LIBRARY;
        let mut linking = null_mut();
        assert_eq!(sys::cuLinkCreate_v2(0, null_mut(), null_mut(), &raw mut linking), CUDA_SUCCESS);
        let added =
            sys::cuLinkAddData_v2(linking, kind, c"x".as_ptr().cast_mut().cast(), 2, null(), 0, null_mut(), null_mut());
        assert_eq!(added, CUDA_ERROR_NOT_SUPPORTED);
        assert_eq!(sys::cuLinkDestroy(linking), CUDA_SUCCESS);
    }
}

/// What Triton 3.9 and NVRTC 13.4 write at the head, with what stands in their modules.
#[test]
fn later_versions_load_through_the_driver() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let text = |version: &str, more: &str| {
        format!(
            ".version {version}\n.target sm_90a\n.address_size 64\n
            .visible .entry k(.param .u64 .ptr .global .align 1 k_param_0)\n.reqntid 32\n{{\n
            .reg .b32 %r<4>;\n.reg .b64 %rd<2>;\n.loc 1 1 0\n$L__func_begin0:\n
            ld.param.b64 %rd1, [k_param_0];\nmov.u32 %r1, %tid.x;\n{more}\n$L__tmp0:\nret;\n}}\n"
        )
    };
    for version in ["9.1", "9.4", "9.5", "10.2"] {
        assert!(context.load_module(Ptx::from_src(text(version, ""))).is_ok(), "{version}");
        let refused = context.load_module(Ptx::from_src(text(version, "frobnicate.u32 %r1;")));
        assert_error(refused, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    }
}

/// The log that the caller gets names the instruction and its line, and a target that has it.
#[test]
fn the_log_names_the_instruction() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let log_of = |version: &str, statement: &str| {
        let text = format!(
            ".version {version}\n.target sm_80\n.address_size 64\n.entry k()\n{{\n.reg .b64 %rd<4>;\n{statement}\nret;\n}}"
        );
        let text = CString::new(text).unwrap();
        let mut log = vec![0_u8; 1024];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        // SAFETY: the log has the size that the option says; text and options live to the end of the call.
        let code = unsafe {
            sys::cuModuleLoadDataEx(&mut null_mut(), text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        let end = log.iter().position(|byte| *byte == 0).unwrap();
        (code, String::from_utf8(log[..end].to_vec()).unwrap())
    };
    let (code, log) = log_of("9.0", "add.f32x2 %rd0, %rd1, %rd2;");
    assert_eq!(code, CUDA_ERROR_INVALID_PTX);
    assert_eq!(log, "PTX line 7: add.f32x2 needs .target sm_100 or higher, and the module's is sm_80");
    let (code, log) = log_of("9.4", "frobnicate.u32 %rd0;");
    assert_eq!(code, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert!(log.starts_with("PTX line 7: instruction frobnicate (frobnicate.u32) is not supported"), "{log}");
}

/// A module that prints "done" and the thread's number.
const PRINTS: &str = r"
    .extern .func (.param .b32 func_retval0) vprintf (.param .b64 a, .param .b64 b);
    .global .align 1 .b8 form[9] = {100, 111, 110, 101, 32, 37, 117, 10};
    .visible .entry k()
    {
        .local .align 8 .b8 depot[8]; .reg .b32 %r<3>; .reg .b64 %rd<4>;
        mov.u64 %rd0, depot; cvta.local.u64 %rd1, %rd0;
        mov.u32 %r0, %tid.x; st.local.u32 [%rd0], %r0;
        mov.u64 %rd2, form; cvta.global.u64 %rd3, %rd2;
        .param .b64 p0; st.param.b64 [p0], %rd3; .param .b64 p1; st.param.b64 [p1], %rd1; .param .b32 r;
        call.uni (r), vprintf, (p0, p1);
        ret;
    }
";

/// This test runs itself again as a program of its own, whose standard output is caught.
#[test]
fn printf_goes_to_standard_output() {
    const MARK: &str = "SOFTCUDA_TEST_PRINTS";
    if std::env::var_os(MARK).is_some() {
        softcuda::install_always().unwrap();
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let module = context.load_module(Ptx::from_src(format!("{HEAD}{PRINTS}"))).unwrap();
        let kernel = module.load_function("k").unwrap();
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (3, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel has no parameters.
        unsafe { stream.launch_builder(&kernel).launch(shape) }.unwrap();
        stream.synchronize().unwrap();
        return;
    }
    let own = std::env::current_exe().unwrap();
    let child = Command::new(own)
        .args(["--exact", "printf_goes_to_standard_output", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert!(output.contains("done 0\ndone 1\ndone 2\n"), "{output}");
}

#[test]
fn kernels_are_nodes_of_a_graph() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let module = kernels(&context);
    let functions = ["fill", "add"].map(|name| module.load_function(name).unwrap());
    let mut data = stream.alloc_zeros::<u32>(64).unwrap();
    stream.synchronize().unwrap();
    let mut address = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut data, &stream).0;
    let mut count = 64_u32;
    let mut parameters = |function: usize, value: &mut u32, arguments: &mut [*mut c_void; 3]| {
        *arguments = [(&raw mut address).cast(), std::ptr::from_mut(value).cast(), (&raw mut count).cast()];
        sys::CUDA_KERNEL_NODE_PARAMS {
            func: functions[function].cu_function(),
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 64,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: arguments.as_mut_ptr(),
            extra: null_mut(),
            kern: null_mut(),
            ctx: null_mut(),
        }
    };
    let (mut five, mut seven, mut arguments) = (5_u32, 7_u32, [null_mut(); 3]);
    // SAFETY: the kernels take an address, a value and a count; parameters are copied when a node is made.
    unsafe {
        let (mut graph, mut first, mut empty, mut second) = (null_mut(), null_mut(), null_mut(), null_mut());
        assert_eq!(sys::cuGraphCreate(&raw mut graph, 0), CUDA_SUCCESS);
        let fill = parameters(0, &mut five, &mut arguments);
        assert_eq!(sys::cuGraphAddKernelNode_v2(&raw mut first, graph, null(), 0, &raw const fill), CUDA_SUCCESS);
        assert_eq!(sys::cuGraphAddEmptyNode(&raw mut empty, graph, &raw const first, 1), CUDA_SUCCESS);
        let add = parameters(1, &mut seven, &mut arguments);
        assert_eq!(
            sys::cuGraphAddKernelNode_v2(&raw mut second, graph, &raw const empty, 1, &raw const add),
            CUDA_SUCCESS
        );
        // A dependency that is no node of the graph; a kernel that does not fit the device; no kernel.
        let stranger = graph.cast();
        let refused = sys::cuGraphAddKernelNode_v2(&mut null_mut(), graph, &raw const stranger, 1, &raw const add);
        assert_eq!(refused, CUDA_ERROR_INVALID_VALUE);
        let wide = sys::CUDA_KERNEL_NODE_PARAMS { blockDimX: 2048, ..add };
        let refused = sys::cuGraphAddKernelNode_v2(&mut null_mut(), graph, null(), 0, &raw const wide);
        assert_eq!(refused, CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuGraphKernelNodeSetParams_v2(empty, &raw const add), CUDA_ERROR_INVALID_VALUE);
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        assert_eq!(sys::cuGraphNodeGetType(second, &raw mut kind), CUDA_SUCCESS);
        assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);

        let mut executable = null_mut();
        assert_eq!(sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0), CUDA_SUCCESS);
        // The values that a node was made with are the node's.
        (five, seven) = (50, 70);
        assert_eq!(sys::cuGraphLaunch(executable, stream.cu_stream()), CUDA_SUCCESS);
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [12; 64]);
        let other = parameters(1, &mut seven, &mut arguments);
        assert_eq!(sys::cuGraphExecKernelNodeSetParams_v2(executable, second, &raw const other), CUDA_SUCCESS);
        assert_eq!(sys::cuGraphLaunch(executable, stream.cu_stream()), CUDA_SUCCESS);
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [75; 64]);
        let other = parameters(0, &mut five, &mut arguments);
        assert_eq!(sys::cuGraphKernelNodeSetParams_v2(first, &raw const other), CUDA_SUCCESS);
        let mut again = null_mut();
        assert_eq!(sys::cuGraphInstantiateWithFlags(&raw mut again, graph, 0), CUDA_SUCCESS);
        assert_eq!(sys::cuGraphLaunch(again, stream.cu_stream()), CUDA_SUCCESS);
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [57; 64]);
        for graph in [executable, again] {
            assert_eq!(sys::cuGraphExecDestroy(graph), CUDA_SUCCESS);
        }
        assert_eq!(sys::cuGraphDestroy(graph), CUDA_SUCCESS);
    }
    assert_eq!(alone.control.take_launches().len(), 6);
}
