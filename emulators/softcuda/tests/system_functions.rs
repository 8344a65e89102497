//! `printf`, `malloc` and `free` on the device.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, HEADER, Kernel, longs, words};
use softcuda::Settings;
use softcuda::machine::device::Device;
use softcuda::report::FaultKind;

/// As nvcc declares it, with a format and a text.
const MODULE: &str = r"
    .extern .func (.param .b32 func_retval0) vprintf (.param .b64 vprintf_param_0, .param .b64 vprintf_param_1);
    .extern .func (.param .b64 func_retval0) malloc (.param .b64 malloc_param_0);
    .extern .func free (.param .b64 free_param_0);
    .global .align 1 .b8 format[22] = {98, 108, 111, 99, 107, 32, 37, 100, 32, 37, 115, 32, 37, 46, 50, 102, 32, 37, 108, 100, 10};
    .global .align 1 .b8 name[5] = {108, 97, 110, 101};
    .global .align 1 .b8 done[6] = {100, 111, 110, 101, 10};
";

/// Prints "block %d %s %.2f %ld\n" with 4 arguments in 32 bytes, as nvcc puts them.
const PRINT: &str = "
    .local .align 8 .b8 depot[32];
    .reg .b64 %a<8>; .reg .b32 %v<4>; .reg .f64 %x;
    mov.u64 %a1, depot;
    cvta.local.u64 %a0, %a1;
    mov.u32 %v0, %ctaid.x;
    st.local.u32 [%a1], %v0;
    mov.u64 %a2, name;
    cvta.global.u64 %a3, %a2;
    st.local.u64 [%a1+8], %a3;
    mov.f64 %x, 0d3FF8000000000000;
    st.local.f64 [%a1+16], %x;
    mov.u32 %v1, %tid.x;
    cvt.u64.u32 %a5, %v1;
    neg.s64 %a5, %a5;
    st.local.u64 [%a1+24], %a5;
    mov.u64 %a6, format;
    cvta.global.u64 %a7, %a6;
    {
        .param .b64 param0; st.param.b64 [param0], %a7;
        .param .b64 param1; st.param.b64 [param1], %a0;
        .param .b32 retval0;
        call.uni (retval0), vprintf, (param0, param1);
        ld.param.b32 %v2, [retval0];
    }
";

#[test]
fn printf_prints_block_after_block() {
    let body = format!(
        "{PRINT} mov.u32 %r0, %ctaid.x; mad.lo.u32 %r0, %r0, 2, %v1; ld.param.u64 %rd0, [out];
        mad.wide.u32 %rd0, %r0, 4, %rd0; st.global.u32 [%rd0], %v2;"
    );
    let mut kernel = Kernel::with_body(MODULE, ".param .u64 out", &body, vec![Argument::Fresh(4 * 6)]);
    (kernel.grid, kernel.block) = ([3, 1, 1], [2, 1, 1]);
    let expected: String =
        (0..3).flat_map(|block| (0..2).map(move |lane: i64| format!("block {block} lane 1.50 {}\n", -lane))).collect();
    for host_threads in [1, 3] {
        let ended = kernel.run_with(&Settings { host_threads, ..Settings::default() });
        assert_eq!(ended.report.printed, expected);
        // It returns how many arguments it took.
        assert_eq!(words(&ended.buffers[0]), [4; 6]);
    }
}

#[test]
fn printf_of_part_of_a_warp_and_without_arguments() {
    let body = "mov.u32 %r0, %tid.x; setp.gt.u32 %p0, %r0, 1; @%p0 bra end;
        mov.u64 %rd1, done; cvta.global.u64 %rd1, %rd1; mov.u64 %rd2, 0;
        { .param .b64 a; st.param.b64 [a], %rd1; .param .b64 b; st.param.b64 [b], %rd2; .param .b32 r;
          call.uni (r), vprintf, (a, b); ld.param.b32 %r1, [r]; }
        end:";
    let ended = Kernel::with_body(MODULE, "", body, Vec::new()).run();
    assert_eq!(ended.report.printed, "done\ndone\n");
}

#[test]
fn a_module_that_only_declares_printf_loads_and_prints_nothing() {
    let ended = Kernel::with_body(MODULE, "", "mov.u32 %r0, 1;", Vec::new()).run();
    assert_eq!(ended.report.printed, "");
}

#[test]
fn printf_of_what_was_not_written_is_a_fault() {
    let body = PRINT.replace("st.local.f64 [%a1+16], %x;", "");
    let fault = Kernel::with_body(MODULE, "", &body, Vec::new()).launch(&Settings::default()).report.fault;
    assert_eq!(fault.map(|fault| fault.kind), Some(FaultKind::Uninitialized));
    // The format is not a text that ends.
    let body = PRINT
        .replace("mov.u64 %a6, format;", "mov.u64 %a6, 4096;")
        .replace("cvta.global.u64 %a7, %a6", "mov.u64 %a7, %a6");
    let fault = Kernel::with_body(MODULE, "", &body, Vec::new()).launch(&Settings::default()).report.fault;
    assert_eq!(fault.map(|fault| fault.kind), Some(FaultKind::OutOfBounds));
}

#[test]
fn what_was_printed_before_a_fault_is_there() {
    let body = format!("{PRINT} trap;");
    let mut kernel = Kernel::with_body(MODULE, "", &body, Vec::new());
    kernel.block = [1, 1, 1];
    let report = kernel.launch(&Settings::default()).report;
    assert_eq!(report.fault.map(|fault| fault.kind), Some(FaultKind::Trap));
    assert_eq!(report.printed, "block 0 lane 1.50 0\n");
}

/// Allocates `%rd0` bytes to `%rd1`.
const ALLOCATE: &str = "{ .param .b64 a; st.param.b64 [a], %rd0; .param .b64 r; call.uni (r), malloc, (a);
    ld.param.b64 %rd1, [r]; }";
/// Frees `%rd1`.
const FREE: &str = "{ .param .b64 a; st.param.b64 [a], %rd1; call.uni free, (a); }";

#[test]
fn malloc_gives_each_thread_memory_of_its_own() {
    let body = format!(
        "mov.u32 %r0, %tid.x; add.u32 %r1, %r0, 1; mul.wide.u32 %rd0, %r1, 4; {ALLOCATE}
         cvt.u64.u32 %rd2, %r0; mul.lo.u64 %rd3, %rd2, 4; add.u64 %rd3, %rd1, %rd3;
         st.u32 [%rd1], %r0; st.u32 [%rd3], %r0; ld.u32 %r2, [%rd3];
         ld.param.u64 %rd5, [out]; mul.wide.u32 %rd6, %r0, 8; add.u64 %rd5, %rd5, %rd6;
         st.global.u64 [%rd5], %rd1; {FREE}"
    );
    let ended = Kernel::with_body(MODULE, ".param .u64 out", &body, vec![Argument::Fresh(8 * 32)])
        .run_with(&Settings { host_threads: 1, ..Settings::default() });
    let mut addresses = longs(&ended.buffers[0]);
    addresses.sort_unstable();
    assert!(addresses[0] != 0 && addresses.iter().all(|address| address.is_multiple_of(16)));
    assert!(addresses.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn memory_of_malloc_is_not_initialised() {
    let body = format!(
        "mov.u64 %rd0, 64; {ALLOCATE} ld.u32 %r0, [%rd1]; mul.wide.u32 %rd3, %r0, 4; add.u64 %rd3, %rd1, %rd3; st.u32 [%rd3], %r0;"
    );
    let fault = Kernel::with_body(MODULE, "", &body, Vec::new()).launch(&Settings::default()).report.fault;
    assert_eq!(fault.map(|fault| fault.kind), Some(FaultKind::Uninitialized));
}

#[test]
fn malloc_without_room_gives_null_and_free_of_null_is_fine() {
    let body = format!(
        "mov.u64 %rd0, 0x7fffffffffffffff; {ALLOCATE} ld.param.u64 %rd5, [out]; mov.u32 %r0, %tid.x;
         mul.wide.u32 %rd6, %r0, 8; add.u64 %rd5, %rd5, %rd6; st.global.u64 [%rd5], %rd1; {FREE}"
    );
    let ended = Kernel::with_body(MODULE, ".param .u64 out", &body, vec![Argument::Fresh(8 * 32)]).run();
    assert_eq!(longs(&ended.buffers[0]), [0; 32]);
}

#[test]
fn free_of_anything_else_is_a_fault() {
    for (what, text) in [
        ("twice", format!("mov.u64 %rd0, 16; {ALLOCATE} {FREE} {FREE}")),
        ("the middle", format!("mov.u64 %rd0, 16; {ALLOCATE} add.u64 %rd1, %rd1, 8; {FREE}")),
    ] {
        let fault = Kernel::with_body(MODULE, "", &text, Vec::new()).launch(&Settings::default()).report.fault;
        let fault = fault.unwrap_or_else(|| panic!("{what}: no fault"));
        assert!(fault.message.contains("free of what malloc did not give"), "{what}: {fault}");
    }
}

#[test]
fn other_functions_without_a_body_are_refused_by_name() {
    for (declared, name) in [
        (".extern .func other (.param .b64 a);", "other"),
        // The name alone does not make it the system's.
        (".extern .func vprintf (.param .b64 a);", "vprintf"),
    ] {
        let text = format!(
            "{HEADER}{declared}\n.entry k() {{ .param .b64 a; .reg .b64 %r; st.param.b64 [a], 1; call {name}, (a); ret; }}"
        );
        let error = Device::new(&Settings::default()).load(&text).err().expect("it is refused");
        assert_eq!(error.message, format!("function {name} is called and has no body"));
        assert_eq!(error.line, 4);
    }
}

#[test]
fn the_heap_is_given_back_with_the_module() {
    let device = Device::new(&Settings::default());
    let before = device.memory.usage();
    let program = device.load(&format!("{HEADER}{MODULE}.entry k() {{ ret; }}")).expect("it loads");
    assert_ne!(device.memory.usage(), before);
    device.unload(&program);
    assert_eq!(device.memory.usage(), before);
}
