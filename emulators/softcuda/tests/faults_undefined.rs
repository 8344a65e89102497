//! Values that nobody wrote are no fault until they are used.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted, line_of};
use softcuda::report::{Fault, FaultKind};
use softcuda::{Checks, Settings};

/// `%r2`, `%r3` and `%rd4` hold what nobody wrote; `%r1` is the thread, `%rd1` a buffer of 128 words that are written,
/// `%rd2` that of the thread's word. Then comes the body.
fn kernel(body: &str) -> String {
    format!(
        r".visible .entry undefined(.param .u64 out, .param .u64 nothing)
{{
    .shared .align 16 .b8 tile[1024];
    .local .align 16 .b8 frame[32];
    .reg .b32 %r<12>;
    .reg .b64 %rd<8>;
    .reg .pred %p<6>;
    .reg .b32 %l<2>;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd3, [nothing];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd3, %rd2;
    add.s64 %rd2, %rd1, %rd2;
    ld.global.u32 %r2, [%rd3]; // OTHER
    ld.shared.u32 %r3, [tile];
    ld.local.u64 %rd4, [frame];
    setp.lt.u32 %p1, %r1, 64;
    {body}
    ret;
}}
"
    )
}

fn arguments() -> Vec<Argument> {
    vec![Argument::Bytes(vec![0; 512]), Argument::Fresh(512)]
}

#[test]
fn what_is_loaded_and_never_used_is_no_fault() {
    for body in [
        "",
        "add.u32 %r4, %r2, %r3;\n    mul.wide.u32 %rd5, %r4, 4;",
        // The other one is chosen.
        "selp.b32 %r4, %r1, %r2, %p1;\n    st.global.u32 [%rd2], %r4;",
        // The other condition decides.
        "setp.eq.u32 %p2, %r2, 7;\n    or.pred %p2, %p2, %p1;\n    @%p2 st.global.u32 [%rd2], %r1;",
        "setp.eq.or.u32 %p2, %r2, 7, %p1;\n    @%p2 st.global.u32 [%rd2], %r1;",
        "setp.ne.u32 %p3, %r1, %r1;\n    setp.eq.and.u32 %p2, %r2, 7, %p3;\n    @%p2 st.global.u32 [%rd2], %r1;",
        // Overwritten before it is used.
        "mov.u32 %r2, 5;\n    st.global.u32 [%rd2], %r2;",
        // It stays what it is in local memory.
        "st.local.u32 [frame+8], %r2;\n    ld.local.u32 %r4, [frame+8];",
        // Lanes that read from lanes with a value.
        "mov.b32 %r4, %r2;\n    setp.eq.u32 %p2, %r1, 0;\n    @%p2 mov.b32 %r4, 9;\n    \
         shfl.sync.idx.b32 %r5, %r4, 0, 31, -1;\n    st.global.u32 [%rd2], %r5;",
        // One word of a vector.
        "st.shared.u32 [tile+32], 1;\n    bar.warp.sync -1;\n    ld.shared.v2.u32 {%r4, %r5}, [tile+32];\n    \
         st.global.u32 [%rd2], %r4;",
    ] {
        let text = kernel(body);
        let planted = Planted { block: 32, ..Planted::new(&text, arguments()) };
        planted.is_clean();
        // The strict setting refuses the load.
        let checks = Checks { uninitialized_loads: true, ..Checks::default() };
        let fault = planted.run(&Settings { checks, ..Settings::default() }).0.fault.expect("a load of nothing");
        assert_eq!((fault.kind, Some(fault.line)), (FaultKind::Uninitialized, line_of(&text, "// OTHER")), "{fault}");
    }
}

fn used(body: &str) -> Fault {
    let text = kernel(body);
    Planted { block: 32, ..Planted::new(&text, arguments()) }.has(FaultKind::Uninitialized)
}

#[test]
fn a_value_that_nobody_wrote_is_found_where_it_is_used() {
    for body in [
        "st.global.u32 [%rd2], %r2; // FAULT",
        "st.shared.u32 [tile+64], %r2; // FAULT",
        "add.u32 %r4, %r1, %r2;\n    xor.b32 %r5, %r4, 1;\n    st.global.u32 [%rd2], %r5; // FAULT",
        "cvt.u64.u32 %rd5, %r2;\n    add.s64 %rd5, %rd2, %rd5;\n    ld.global.u32 %r4, [%rd5]; // FAULT",
        "setp.eq.u32 %p2, %r2, 7;\n    @%p2 bra END; // FAULT\nEND:",
        "setp.eq.u32 %p2, %r2, 7;\n    @%p2 st.global.u32 [%rd2], %r1; // FAULT",
        "setp.eq.u32 %p2, %r2, 7;\n    and.pred %p2, %p2, %p1;\n    @%p2 ret; // FAULT",
        "setp.eq.u32 %p2, %r2, 7;\n    mov.u32 %r4, 1;\n    @%p2 mov.u32 %r4, 2;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "setp.eq.u32 %p2, %r2, 7;\n    selp.b32 %r4, 1, 2, %p2;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "selp.b32 %r4, %r2, %r1, %p1;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "red.global.add.u32 [%rd1], %r2; // FAULT",
        "shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "setp.eq.u32 %p2, %r2, 7;\n    vote.sync.ballot.b32 %r4, %p2, -1;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "redux.sync.add.s32 %r4, %r2, -1;\n    st.global.u32 [%rd2], %r4; // FAULT",
        "bar.sync %r2; // FAULT",
        "st.local.u32 [frame+8], %r2;\n    ld.local.u32 %r4, [frame+8];\n    st.global.u32 [%rd2], %r4; // FAULT",
        "st.shared.u32 [tile+32], 1;\n    bar.warp.sync -1;\n    ld.shared.v2.u32 {%r4, %r5}, [tile+32];\n    \
         st.global.u32 [%rd2], %r5; // FAULT",
        "mov.b64 {%r4, %r5}, %rd4;\n    st.global.u32 [%rd2], %r5; // FAULT",
    ] {
        used(body);
    }
    let fault = used("st.global.u32 [%rd2], %r2; // FAULT");
    let text = kernel("st.global.u32 [%rd2], %r2; // FAULT");
    let load = fault.other.as_ref().expect("the load");
    assert_eq!((load.wrote, Some(load.line)), (false, line_of(&text, "// OTHER")), "{fault}");
    assert_eq!((load.block, load.thread), (fault.block, fault.thread), "{fault}");
}

#[test]
fn calls_pass_on_what_nobody_wrote() {
    let kernel = |value: &str, mark: &str| {
        format!(
            r".visible .func (.param .b32 result) twice(.param .b32 value)
{{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [value];
    add.u32 %r2, %r1, %r1;
    st.param.u32 [result], %r2;
    ret;
}}
.visible .entry calls(.param .u64 out, .param .u64 nothing)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    .reg .pred %p;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [nothing];
    ld.global.u32 %r1, [%rd2];
    mov.u32 %r2, 4;
    {{
    .param .b32 given;
    .param .b32 got;
    st.param.b32 [given], {value};
    call.uni (got), twice, (given);
    ld.param.b32 %r3, [got];
    }}
    st.global.u32 [%rd1], %r3; {mark}
    ret;
}}
"
        )
    };
    let run = |text: &str| Planted { block: 1, ..Planted::new(text, arguments()) }.has(FaultKind::Uninitialized);
    run(&kernel("%r1", "// FAULT"));
    Planted { block: 1, ..Planted::new(&kernel("%r2", ""), arguments()) }.is_clean();
}
