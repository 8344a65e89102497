//! Flags, tickets and scopes, planted: what orders two blocks, and what only seems to.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;

fn words(number: u32) -> Argument {
    Argument::Bytes((0..number).flat_map(u32::to_le_bytes).collect())
}

/// Each block writes its word; the last to count itself reads all.
fn last_block(fence: &str) -> String {
    last_block_with([fence, "membar.gl;"], "")
}

/// The fences before and after the ticket, and what the last block does to the counter (`%rd2`) at its end.
fn last_block_with([before, after]: [&str; 2], reset: &str) -> String {
    format!(
        r".visible .entry last_block(.param .u64 partial, .param .u64 counter, .param .u64 out)
{{
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    .reg .pred %p<4>;
    ld.param.u64 %rd1, [partial];
    ld.param.u64 %rd2, [counter];
    ld.param.u64 %rd3, [out];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %nctaid.x;
    mul.wide.u32 %rd4, %r2, 4;
    add.s64 %rd5, %rd1, %rd4;
    st.global.u32 [%rd5], %r2; // OTHER
    {before}
    atom.global.add.u32 %r4, [%rd2], 1;
    sub.u32 %r5, %r3, 1;
    setp.ne.u32 %p2, %r4, %r5;
    @%p2 bra DONE;
    {after}
    mov.u32 %r6, 0;
    mov.u32 %r7, 0;
SUM:
    mul.wide.u32 %rd4, %r6, 4;
    add.s64 %rd5, %rd1, %rd4;
    ld.global.u32 %r4, [%rd5]; // FAULT
    add.u32 %r7, %r7, %r4;
    add.u32 %r6, %r6, 1;
    setp.lt.u32 %p3, %r6, %r3;
    @%p3 bra SUM;
    st.global.u32 [%rd3], %r7;
    {reset}
DONE:
    ret;
}}
"
    )
}

#[test]
fn a_missing_fence_after_the_ticket_is_found() {
    let run = |before, after| {
        let text = last_block_with([before, after], "");
        let arguments = vec![words(8), Argument::Bytes(vec![0; 4]), Argument::Fresh(4)];
        Planted { grid: 8, ..Planted::new(&text, arguments) }.has(FaultKind::Race);
    };
    // Whatever is left of the two fences, one of them must reach the device on either side.
    for narrow in ["", "membar.cta;", "fence.acq_rel.cta;", "fence.sc.cluster;"] {
        run("membar.gl;", narrow);
        run(narrow, "membar.gl;");
        run(narrow, narrow);
    }
    run("membar.gl;", "fence.release.gpu;");
    run("fence.acquire.gpu;", "membar.gl;");
    let text = last_block_with(["fence.release.gpu;", "fence.acquire.gpu;"], "");
    let arguments = vec![words(8), Argument::Bytes(vec![0; 4]), Argument::Fresh(4)];
    Planted { grid: 8, ..Planted::new(&text, arguments) }.is_clean();
}

#[test]
fn the_last_block_may_reset_the_ticket_counter() {
    // PTX ISA, "Causality Order": its ticket has observed those of all other blocks.
    let text = last_block_with(["membar.gl;", "membar.gl;"], "st.global.u32 [%rd2], 0;");
    let arguments = vec![words(8), Argument::Bytes(vec![0; 4]), Argument::Fresh(4)];
    Planted { grid: 8, ..Planted::new(&text, arguments) }.is_clean();
    // And without any fence, as long as nothing else passes from block to block.
    let reset = |wanted: u32, marks: [&str; 2]| {
        format!(
            r".visible .entry reset(.param .u64 counter)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [counter];
    atom.global.inc.u32 %r1, [%rd1], 100; {}
    setp.ne.u32 %p, %r1, {wanted};
    @%p bra DONE;
    st.global.u32 [%rd1], 0; {}
DONE:
    ret;
}}
",
            marks[1], marks[0]
        )
    };
    let counter = || vec![Argument::Bytes(vec![0; 4])];
    Planted { grid: 2, block: 1, ..Planted::new(&reset(1, ["", ""]), counter()) }.is_clean();
    // Not the last: the other one's atomic races with the reset.
    let text = reset(0, ["// FAULT", "// OTHER"]);
    Planted { grid: 2, block: 1, ..Planted::new(&text, counter()) }.has(FaultKind::Race);
}

#[test]
fn a_missing_fence_before_the_ticket_is_found() {
    let arguments = || vec![words(8), Argument::Bytes(vec![0; 4]), Argument::Fresh(4)];
    let text = last_block("");
    Planted { grid: 8, ..Planted::new(&text, arguments()) }.has(FaultKind::Race);
    for fence in ["membar.gl;", "fence.acq_rel.gpu;", "fence.sc.gpu;"] {
        let text = last_block(fence);
        let planted = Planted { grid: 8, ..Planted::new(&text, arguments()) };
        planted.is_clean();
        let (_, addresses, device) = planted.run(&softcuda::Settings::default());
        let mut sum = [0; 4];
        device.memory.read(addresses[2], &mut sum).expect("read");
        assert_eq!(u32::from_le_bytes(sum), 28);
    }
}

#[test]
fn a_flag_passed_with_release_and_acquire_orders_two_blocks() {
    let kernel = |set: &str, get: &str| {
        format!(
            r".visible .entry flag(.param .u64 data, .param .u64 flag)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    .reg .pred %p<4>;
    ld.param.u64 %rd1, [data];
    ld.param.u64 %rd2, [flag];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    mov.u32 %r2, %ctaid.x;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra READER;
    st.global.u32 [%rd1], 42; // OTHER
    {set} [%rd2], 1;
    bra DONE;
READER:
    {get} %r3, [%rd2];
    setp.eq.u32 %p3, %r3, 0;
    @%p3 bra READER;
    ld.global.u32 %r3, [%rd1]; // FAULT
DONE:
    ret;
}}
"
        )
    };
    let run = |text: &str| {
        Planted { grid: 2, ..Planted::new(text, vec![words(1), Argument::Bytes(vec![0; 4])]) }.has(FaultKind::Race)
    };
    run(&kernel("st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"));
    run(&kernel("st.volatile.global.u32", "ld.volatile.global.u32"));
    // A fence or a release that reaches the block only; a reader that does not acquire.
    run(&kernel("membar.cta;\n    st.volatile.global.u32", "ld.acquire.gpu.global.u32"));
    run(&kernel("fence.acq_rel.cta;\n    st.volatile.global.u32", "ld.acquire.gpu.global.u32"));
    run(&kernel("membar.gl;\n    st.volatile.global.u32", "ld.volatile.global.u32"));
    run(&kernel("st.release.gpu.global.u32", "ld.relaxed.gpu.global.u32"));
    run(&kernel("st.release.gpu.global.u32", "atom.global.add.u32").replace("%r3, [%rd2];", "%r3, [%rd2], 0;"));
    // A fence between the proxies of one thread is none between threads.
    run(&kernel("fence.proxy.async;\n    st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"));
    run(&kernel("red.relaxed.gpu.global.add.u32", "ld.acquire.gpu.global.u32"));
    for (set, get) in [
        ("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"),
        ("membar.gl;\n    st.volatile.global.u32", "ld.acquire.gpu.global.u32"),
        ("membar.sys;\n    st.volatile.global.u32", "ld.acquire.sys.global.u32"),
        ("fence.acq_rel.gpu;\n    st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"),
        ("red.release.gpu.global.add.u32", "ld.acquire.gpu.global.u32"),
        ("atom.acq_rel.gpu.global.exch.b32 %r3,", "ld.acquire.gpu.global.u32"),
    ] {
        let text = kernel(set, get);
        Planted { grid: 2, ..Planted::new(&text, vec![words(1), Argument::Bytes(vec![0; 4])]) }.is_clean();
    }
    // A strong read with a fence behind it, in the loop or after it.
    let text = kernel("membar.gl;\n    st.volatile.global.u32", "ld.volatile.global.u32");
    for (place, fence) in [
        ("    ld.global.u32", "membar.gl;"),
        ("    ld.global.u32", "fence.acquire.gpu;"),
        ("    setp.eq.u32 %p3", "fence.acq_rel.gpu;"),
    ] {
        let text = text.replace(place, &format!("    {fence}\n{place}"));
        Planted { grid: 2, ..Planted::new(&text, vec![words(1), Argument::Bytes(vec![0; 4])]) }.is_clean();
    }
    for fence in ["membar.cta;", "fence.release.gpu;"] {
        run(&text.replace("    ld.global.u32", &format!("    {fence}\n    ld.global.u32")));
    }
}

#[test]
fn flags_of_a_block_race_between_blocks() {
    let kernel = |set: &str, get: &str| {
        format!(
            r".visible .entry narrow(.param .u64 flag)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [flag];
    mov.u32 %r1, %ctaid.x;
    setp.ne.u32 %p, %r1, 0;
    @%p bra READER;
    {set} // OTHER
    ret;
READER:
    {get} // FAULT
    ret;
}}
"
        )
    };
    let strong_set = "st.relaxed.gpu.global.u32 [%rd1], 1;";
    let strong_get = "ld.acquire.gpu.global.u32 %r3, [%rd1];";
    let planted = |set: &str, get: &str, cluster: u32| {
        let text = kernel(set, get);
        let planted = Planted { grid: 2, block: 1, cluster, ..Planted::new(&text, vec![Argument::Bytes(vec![0; 4])]) };
        if cluster == 1 { drop(planted.has(FaultKind::Race)) } else { drop(planted.is_clean()) }
    };
    for narrow in [
        "st.release.cta.global.u32 [%rd1], 1;",
        "st.relaxed.cluster.global.u32 [%rd1], 1;",
        "atom.cta.global.exch.b32 %r3, [%rd1], 1;",
        "red.relaxed.cta.global.add.u32 [%rd1], 1;",
    ] {
        planted(narrow, strong_get, 1);
    }
    for narrow in ["ld.acquire.cta.global.u32 %r3, [%rd1];", "atom.acquire.cluster.global.add.u32 %r3, [%rd1], 0;"] {
        planted(strong_set, narrow, 1);
    }
    planted("st.release.cluster.global.u32 [%rd1], 1;", "ld.acquire.cluster.global.u32 %r3, [%rd1];", 2);
}

/// Lane 0 of the second block waits for the first and passes the word on to its warp.
fn passed_on(wait: &str, pass: &str) -> String {
    format!(
        r".visible .entry passed_on(.param .u64 data, .param .u64 flag)
{{
    .reg .b32 %r<5>;
    .reg .b64 %rd<4>;
    .reg .pred %p<4>;
    ld.param.u64 %rd1, [data];
    ld.param.u64 %rd2, [flag];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd3, %rd1, %rd3;
    setp.ne.u32 %p1, %r1, 0;
    mov.u32 %r2, %ctaid.x;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra READER;
    st.global.u32 [%rd3], 42; // OTHER
    bar.warp.sync -1;
    @!%p1 st.release.gpu.global.u32 [%rd2], 1;
    bra DONE;
READER:
    mov.u32 %r3, 1;
    @%p1 bra PASS;
WAIT:
    {wait} %r3, [%rd2];
    setp.eq.u32 %p3, %r3, 0;
    @%p3 bra WAIT;
PASS:
    {pass}
    ld.global.u32 %r4, [%rd3]; // FAULT
DONE:
    ret;
}}
"
    )
}

#[test]
fn what_one_lane_has_acquired_a_shuffle_passes_on() {
    let arguments = || vec![words(32), Argument::Bytes(vec![0; 4])];
    let acquire = "ld.acquire.gpu.global.u32";
    let shuffle = "shfl.sync.idx.b32 %r3, %r3, 0, 31, -1;";
    for (wait, pass) in [
        (acquire, shuffle.to_owned()),
        (acquire, "vote.sync.any.pred %p3, %p1, -1;".to_owned()),
        // The fence of the acquire pattern may come behind it.
        ("ld.relaxed.gpu.global.u32", format!("{shuffle}\n    membar.gl;")),
    ] {
        let text = passed_on(wait, &pass);
        Planted { grid: 2, ..Planted::new(&text, arguments()) }.is_clean();
    }
    let text = passed_on("ld.relaxed.gpu.global.u32", shuffle);
    Planted { grid: 2, ..Planted::new(&text, arguments()) }.has(FaultKind::Race);
}

#[test]
fn a_flag_in_shared_memory_orders_two_warps() {
    let kernel = |set: &str, get: &str| {
        format!(
            r".visible .entry shared_flag()
{{
    .shared .align 4 .b8 data[4];
    .shared .align 4 .b8 flag[4];
    .reg .b32 %r<3>;
    .reg .pred %p<4>;
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    @!%p1 st.shared.u32 [data], 0;
    @!%p1 st.shared.u32 [flag], 0;
    bar.sync 0;
    setp.eq.u32 %p2, %r1, 32;
    @%p2 bra READER;
    @%p1 bra DONE;
    st.shared.u32 [data], 42; // OTHER
    {set} [flag], 1;
    bra DONE;
READER:
    {get} %r2, [flag];
    setp.eq.u32 %p3, %r2, 0;
    @%p3 bra READER;
    ld.shared.u32 %r2, [data]; // FAULT
DONE:
    ret;
}}
"
        )
    };
    let text = kernel("st.volatile.shared.u32", "ld.volatile.shared.u32");
    Planted { block: 64, ..Planted::new(&text, vec![]) }.has(FaultKind::Race);
    let text = kernel("membar.cta;\n    st.volatile.shared.u32", "ld.volatile.shared.u32");
    Planted { block: 64, ..Planted::new(&text, vec![]) }.has(FaultKind::Race);
    let text = text.replace("    ld.shared.u32", "    membar.cta;\n    ld.shared.u32");
    Planted { block: 64, ..Planted::new(&text, vec![]) }.is_clean();
    for (set, get) in [
        ("membar.cta;\n    st.volatile.shared.u32", "ld.acquire.cta.shared.u32"),
        ("st.release.cta.shared.u32", "ld.acquire.cta.shared.u32"),
    ] {
        let text = kernel(set, get);
        Planted { block: 64, ..Planted::new(&text, vec![]) }.is_clean();
    }
}
