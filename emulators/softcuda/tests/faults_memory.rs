//! Planted faults of memory: each must be found at its line, and its repaired twin must be clean.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;

/// Every thread reads word `tid + %SHIFT%` of a buffer of `32` words and writes it to another.
fn copy(offset_in: u32, offset_out: u32, mark_load: &str, mark_store: &str) -> String {
    format!(
        r".visible .entry copy(.param .u64 in, .param .u64 out)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u32 %r2, [%rd4+{offset_in}]; {mark_load}
    st.global.u32 [%rd5+{offset_out}], %r2; {mark_store}
    ret;
}}
"
    )
}

fn words(number: u32) -> Argument {
    Argument::Bytes((0..number).flat_map(u32::to_le_bytes).collect())
}

#[test]
fn reads_and_writes_out_of_bounds_are_found() {
    let text = copy(4, 0, "// FAULT", "");
    let planted = Planted::new(&text, vec![words(32), Argument::Fresh(128)]);
    let fault = planted.has(FaultKind::OutOfBounds);
    assert_eq!((fault.block, fault.thread), ([0; 3], [31, 0, 0]), "{fault}");
    assert_eq!(fault.kernel, "copy");

    let text = copy(0, 8, "", "// FAULT");
    let planted = Planted::new(&text, vec![words(32), Argument::Fresh(128)]);
    let fault = planted.has(FaultKind::OutOfBounds);
    assert_eq!(fault.thread, [30, 0, 0], "{fault}");

    let text = copy(0, 0, "", "");
    let report = Planted::new(&text, vec![words(32), Argument::Fresh(128)]).is_clean();
    assert_eq!(report.counters.global.bytes_loaded, 128);
    assert_eq!(report.counters.global.sectors_stored, 4);
}

#[test]
fn an_access_that_begins_inside_and_ends_outside_is_out_of_bounds() {
    let text = copy(0, 0, "// FAULT", "");
    let bytes = Argument::Bytes(vec![1; 126]);
    let fault = Planted::new(&text, vec![bytes, Argument::Fresh(128)]).has(FaultKind::OutOfBounds);
    assert_eq!(fault.thread, [31, 0, 0], "{fault}");
}

#[test]
fn the_address_is_the_one_that_the_instruction_gave() {
    let text = copy(4, 0, "// FAULT", "");
    let planted = Planted::new(&text, vec![words(32), Argument::Fresh(128)]);
    let (report, addresses, _) = planted.run(&softcuda::Settings::default());
    assert_eq!(report.fault.expect("a fault").address, Some(addresses[0] + 128));
}

#[test]
fn null_and_wild_pointers_are_out_of_bounds() {
    for wild in [0, 0x10, 0xdead_0000] {
        let text = copy(0, 0, "// FAULT", "");
        // The parameter is 64 bits wide; a word leaves its upper half zero.
        Planted::new(&text, vec![Argument::Word(wild), Argument::Fresh(128)]).has(FaultKind::OutOfBounds);
    }
}

#[test]
fn freed_memory_is_found() {
    let text = copy(0, 0, "// FAULT", "");
    Planted::new(&text, vec![Argument::Freed(128), Argument::Fresh(128)]).has(FaultKind::UseAfterFree);
    let text = copy(0, 0, "", "// FAULT");
    Planted::new(&text, vec![words(32), Argument::Freed(128)]).has(FaultKind::UseAfterFree);
}

#[test]
fn uninitialised_global_bytes_are_found_to_the_byte() {
    // Where the value is used; the load is the other access.
    let text = copy(0, 0, "// OTHER", "// FAULT");
    let fault = Planted::new(&text, vec![Argument::Fresh(128), Argument::Fresh(128)]).has(FaultKind::Uninitialized);
    assert_eq!(fault.other.map(|other| other.line), planted::line_of(&text, "// OTHER"));

    // The kernel writes bytes 0, 1 and 3 of a word and reads the whole word.
    let partial = |byte: u32, mark: &str| {
        format!(
            r".visible .entry partial(.param .u64 out)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p, %r1, 0;
    @%p bra DONE;
    st.global.u8 [%rd1], %r1;
    st.global.u8 [%rd1+1], %r1;
    st.global.u8 [%rd1+{byte}], %r1;
    st.global.u8 [%rd1+3], %r1;
    ld.global.u32 %r2, [%rd1];
    st.global.u32 [%rd1+4], %r2; {mark}
DONE:
    ret;
}}
"
        )
    };
    let text = partial(1, "// FAULT");
    let fault = Planted::new(&text, vec![Argument::Fresh(8)]).has(FaultKind::Uninitialized);
    assert_eq!(fault.thread, [0; 3]);
    Planted::new(&partial(2, ""), vec![Argument::Fresh(8)]).is_clean();
}

#[test]
fn uninitialised_shared_and_local_bytes_are_found() {
    for (space, declaration) in
        [("shared", ".shared .align 4 .b8 place[128];"), ("local", ".local .align 4 .b8 place[128];")]
    {
        let kernel = |store: &str, mark: &str| {
            format!(
                r".visible .entry reads(.param .u64 out)
{{
    {declaration}
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    mov.u64 %rd3, place;
    add.s64 %rd3, %rd3, %rd2;
    {store}
    ld.{space}.u32 %r2, [%rd3];
    st.global.u32 [%rd1], %r2; {mark}
    ret;
}}
"
            )
        };
        let store = format!("st.{space}.u32 [%rd3], %r1;");
        let text = kernel("", "// FAULT");
        Planted::new(&text, vec![Argument::Fresh(128)]).has(FaultKind::Uninitialized);
        Planted::new(&kernel(&store, ""), vec![Argument::Fresh(128)]).is_clean();
    }
}

#[test]
fn misaligned_accesses_are_found() {
    let text = copy(2, 0, "// FAULT", "");
    let bytes = Argument::Bytes(vec![1; 256]);
    let fault = Planted::new(&text, vec![bytes, Argument::Fresh(128)]).has(FaultKind::Misaligned);
    assert_eq!(fault.thread, [0; 3], "the first lane is named: {fault}");
    // A vector must be aligned to its whole width.
    let vector = |offset: u32, mark: &str| {
        format!(
            r".visible .entry vector(.param .u64 in)
{{
    .reg .b32 %r<5>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [in];
    ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd1+{offset}]; {mark}
    ret;
}}
"
        )
    };
    Planted::new(&vector(8, "// FAULT"), vec![words(32)]).has(FaultKind::Misaligned);
    Planted::new(&vector(16, ""), vec![words(32)]).is_clean();
}

#[test]
fn shared_memory_has_an_end_and_a_beginning() {
    let kernel = |address: &str, mark: &str| {
        format!(
            r".extern .shared .align 16 .b8 dynamic[];
.visible .entry shared_end()
{{
    .reg .b32 %r<4>;
    mov.u32 %r1, dynamic;
    mov.u32 %r2, %tid.x;
    shl.b32 %r3, %r2, 2;
    add.u32 %r1, %r1, %r3;
    st.shared.u32 [{address}], %r2; {mark}
    ret;
}}
"
        )
    };
    let run = |text: &str| Planted { shared: 128, ..Planted::new(text, vec![]) }.has(FaultKind::OutOfBounds);
    assert_eq!(run(&kernel("%r1+4", "// FAULT")).thread, [31, 0, 0]);
    assert_eq!(run(&kernel("%r3", "// FAULT")).thread, [0; 3]);
    let text = kernel("%r1", "");
    Planted { shared: 128, ..Planted::new(&text, vec![]) }.is_clean();
}

#[test]
fn constant_memory_and_parameters_cannot_be_written() {
    let constant = |verb: &str, mark: &str| {
        format!(
            r".const .align 4 .u32 table[4] = {{1, 2, 3, 4}};
.visible .entry constant()
{{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    mov.u64 %rd1, table;
    cvta.const.u64 %rd2, %rd1;
    mov.u32 %r1, 7;
    {verb} {mark}
    ret;
}}
"
        )
    };
    Planted::new(&constant("st.u32 [%rd2], %r1;", "// FAULT"), vec![]).has(FaultKind::ReadOnlyWrite);
    Planted::new(&constant("ld.const.u32 %r1, [table+4];", ""), vec![]).is_clean();
    let parameter = |verb: &str, mark: &str| {
        format!(
            r".visible .entry parameter(.param .u32 number)
{{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    mov.b64 %rd1, number;
    cvta.param.u64 %rd2, %rd1;
    mov.u32 %r1, 7;
    {verb} {mark}
    ret;
}}
"
        )
    };
    Planted::new(&parameter("st.u32 [%rd2], %r1;", "// FAULT"), vec![Argument::Word(3)]).has(FaultKind::ReadOnlyWrite);
    Planted::new(&parameter("ld.u32 %r1, [%rd2];", ""), vec![Argument::Word(3)]).is_clean();
}

#[test]
fn the_read_only_path_does_not_see_this_kernels_writes() {
    let kernel = |load: &str, mark: &str| {
        format!(
            r".visible .entry stale(.param .u64 buffer)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [buffer];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r1;
    {load} %r2, [%rd1]; {mark}
    ret;
}}
"
        )
    };
    Planted::new(&kernel("ld.global.nc.u32", "// FAULT"), vec![words(32)]).has(FaultKind::StaleReadOnlyLoad);
    Planted::new(&kernel("ld.global.u32", ""), vec![words(32)]).is_clean();
}

#[test]
fn a_kernel_that_does_not_end_is_stopped() {
    let text = r".visible .entry endless()
{
AGAIN:
    bra AGAIN;
}
";
    let settings = softcuda::Settings { instruction_budget: 1 << 20, ..softcuda::Settings::default() };
    let (report, _, _) = Planted::new(text, vec![]).run(&settings);
    let fault = report.fault.expect("a fault");
    assert_eq!(fault.kind, FaultKind::InstructionBudget, "{fault}");
    assert_eq!(fault.instruction, "bra AGAIN;");
}

#[test]
fn a_trap_and_a_failed_assertion_are_named() {
    let trap = |guard: &str, mark: &str| {
        format!(
            r".visible .entry trapped()
{{
    .reg .pred %p;
    .reg .b32 %r;
    mov.u32 %r, %tid.x;
    setp.eq.u32 %p, %r, {guard};
    @%p trap; {mark}
    ret;
}}
"
        )
    };
    let text = trap("5", "// FAULT");
    assert_eq!(Planted::new(&text, vec![]).has(FaultKind::Trap).thread, [5, 0, 0]);
    Planted::new(&trap("77", ""), vec![]).is_clean();
}

#[test]
fn local_memory_is_aligned_and_new_in_every_call() {
    let kernel = |offset: u32, second: u32, mark: &str, mark_of_call: &str| {
        format!(
            r".func keep(.param .b32 write)
{{
    .local .align 8 .b8 place[16];
    .reg .b32 %r<3>;
    .reg .pred %p;
    ld.param.u32 %r1, [write];
    setp.eq.u32 %p, %r1, 0;
    @%p bra READ;
    st.local.u32 [place], %r1;
    st.local.u32 [place+4], %r1;
READ:
    ld.local.u32 %r2, [place+{offset}]; {mark}
    setp.eq.u32 %p, %r2, 7;
    @%p ret; {mark_of_call}
    ret;
}}
.visible .entry calls()
{{
    .reg .b32 %r<2>;
    mov.u32 %r1, 1;
    {{
    .param .b32 argument;
    st.param.b32 [argument], %r1;
    call.uni keep, (argument);
    }}
    mov.u32 %r1, {second};
    {{
    .param .b32 argument;
    st.param.b32 [argument], %r1;
    call.uni keep, (argument);
    }}
    ret;
}}
"
        )
    };
    Planted::new(&kernel(4, 1, "", ""), vec![]).is_clean();
    Planted::new(&kernel(2, 1, "// FAULT", ""), vec![]).has(FaultKind::Misaligned);
    // The first call writes and reads; the second one finds its variable as new.
    Planted::new(&kernel(4, 0, "", "// FAULT"), vec![]).has(FaultKind::Uninitialized);
}

#[test]
fn shared_memory_and_predicates_of_a_function_and_of_its_kernel_lie_apart() {
    let text = r".func keep(.param .b32 value)
{
    .shared .align 4 .b8 inner[128];
    .reg .b32 %r<4>;
    .reg .pred %p;
    ld.param.u32 %r1, [value];
    setp.ne.u32 %p, %r1, 0;
    mov.u32 %r2, %tid.x;
    shl.b32 %r2, %r2, 2;
    mov.u32 %r3, inner;
    add.u32 %r2, %r2, %r3;
    @%p st.shared.u32 [%r2], %r1;
    ret;
}
.visible .entry apart(.param .u64 out)
{
    .shared .align 4 .b8 outer[128];
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, outer;
    add.u32 %r3, %r3, %r2;
    st.shared.u32 [%r3], %r1;
    mov.u32 %r4, 77;
    setp.lt.u32 %p, %r1, 16;
    {
    .param .b32 argument;
    st.param.b32 [argument], %r4;
    call.uni keep, (argument);
    }
    ld.shared.u32 %r5, [%r3];
    @!%p add.u32 %r5, %r5, 1000;
    cvt.u64.u32 %rd2, %r2;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r5;
    ret;
}
";
    let planted = Planted::new(text, vec![Argument::Fresh(128)]);
    planted.is_clean();
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 128];
    device.memory.read(addresses[0], &mut bytes).expect("read");
    let words = (0..32_u32).map(|thread| if thread < 16 { thread } else { thread + 1000 });
    let expected: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    assert_eq!(bytes, expected);
}
