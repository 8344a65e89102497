//! Planted faults of copies that are not waited for, and of the mbarriers that they are waited for at.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;

fn words(number: u32) -> Argument {
    Argument::Bytes((0..number).flat_map(u32::to_le_bytes).collect())
}

/// Each thread copies its 16 bytes asynchronously and reads them.
fn asynchronous(wait: &str, mark: &str) -> String {
    format!(
        r".visible .entry in_flight(.param .u64 in, .param .u64 out)
{{
    .shared .align 16 .b8 stage[512];
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 16;
    add.s64 %rd1, %rd1, %rd3;
    add.s64 %rd2, %rd2, %rd3;
    mov.u32 %r2, stage;
    shl.b32 %r3, %r1, 4;
    add.u32 %r2, %r2, %r3;
    cp.async.cg.shared.global [%r2], [%rd1], 16;
    cp.async.commit_group;
    {wait}
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r2]; {mark}
    st.global.v4.u32 [%rd2], {{%r4, %r5, %r6, %r7}};
    ret;
}}
"
    )
}

#[test]
fn reading_a_copy_in_flight_is_found() {
    for wait in ["", "cp.async.wait_group 1;"] {
        Planted::new(&asynchronous(wait, "// FAULT"), vec![words(128), Argument::Fresh(512)]).has(FaultKind::InFlight);
    }
    for wait in ["cp.async.wait_group 0;", "cp.async.wait_all;"] {
        let text = asynchronous(wait, "");
        let planted = Planted::new(&text, vec![words(128), Argument::Fresh(512)]);
        planted.is_clean();
        let (_, addresses, device) = planted.run(&softcuda::Settings::default());
        let mut bytes = vec![0; 512];
        device.memory.read(addresses[1], &mut bytes).expect("read");
        let expected: Vec<u8> = (0..128_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(bytes, expected);
    }
}

#[test]
fn waiting_for_ones_own_copies_does_not_order_the_others() {
    // Thread t reads what thread t ^ 1 copied: after wait_group it still takes a barrier.
    let other = |barrier: &str| {
        asynchronous("cp.async.wait_group 0;", "// FAULT")
            .replace("ld.shared.v4", &format!("{barrier}\n    xor.b32 %r2, %r2, 16;\n    ld.shared.v4"))
            .replace(
                "cp.async.cg.shared.global [%r2], [%rd1], 16;",
                "cp.async.cg.shared.global [%r2], [%rd1], 16; // OTHER",
            )
    };
    let (report, _, _) = Planted { block: 32, ..Planted::new(&other(""), vec![words(128), Argument::Fresh(512)]) }
        .run(&softcuda::Settings::default());
    let fault = report.fault.expect("a fault");
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::InFlight), "{fault}");
    Planted::new(&other("bar.warp.sync -1;"), vec![words(128), Argument::Fresh(512)]).is_clean();
}

/// A bulk copy that an `mbarrier` counts.
fn bulk(wait: &str, mark: &str) -> String {
    format!(
        r".visible .entry bulk(.param .u64 in, .param .u64 out)
{{
    .shared .align 16 .b8 stage[512];
    .shared .align 8 .b8 barrier[8];
    .reg .b32 %r<8>;
    .reg .b64 %rd<6>;
    .reg .pred %p<3>;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    mov.u32 %r2, stage;
    mov.u32 %r3, barrier;
    @!%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
    bar.sync 0;
    @%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd5, [%r3], 512;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 512, [%r3];
WAIT:
    {wait}
    mul.wide.u32 %rd3, %r1, 16;
    add.s64 %rd2, %rd2, %rd3;
    shl.b32 %r4, %r1, 4;
    add.u32 %r2, %r2, %r4;
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r2]; {mark}
    st.global.v4.u32 [%rd2], {{%r4, %r5, %r6, %r7}};
    ret;
}}
"
    )
}

#[test]
fn bulk_copies_must_be_waited_for_at_their_barrier() {
    let text = bulk("bar.warp.sync -1;", "// FAULT");
    Planted::new(&text, vec![words(128), Argument::Fresh(512)]).has(FaultKind::InFlight);
    let text = bulk("mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;\n    @!%p2 bra WAIT;", "");
    let planted = Planted::new(&text, vec![words(128), Argument::Fresh(512)]);
    planted.is_clean();
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 512];
    device.memory.read(addresses[1], &mut bytes).expect("read");
    let expected: Vec<u8> = (0..128_u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn an_mbarrier_must_be_initialised() {
    let text = bulk("bar.warp.sync -1;", "")
        .replace("@!%p1 mbarrier.init.shared::cta.b64 [%r3], 1;", "")
        .replace("%rd5, [%r3], 512;", "%rd5, [%r3], 512; // FAULT");
    Planted::new(&text, vec![words(128), Argument::Fresh(512)]).has(FaultKind::InvalidOperation);
}

#[test]
fn an_mbarrier_takes_no_more_arrivals_than_it_expects_and_none_after_its_end() {
    let kernel = |operations: &str| {
        format!(
            r".visible .entry arrivals()
{{
    .shared .align 8 .b8 barrier[8];
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p, %r1, 0;
    @%p bra DONE;
    mov.u32 %r2, barrier;
    mbarrier.init.shared::cta.b64 [%r2], 3;
    {operations}
DONE:
    ret;
}}
"
        )
    };
    let arrive = "mbarrier.arrive.shared::cta.b64 %rd1, [%r2]";
    let end = "mbarrier.inval.shared::cta.b64 [%r2];";
    let text = kernel(&format!("{arrive}, 2;\n    {arrive}, 2; // FAULT"));
    Planted::new(&text, vec![]).has(FaultKind::InvalidOperation);
    let text = kernel(&format!("{end}\n    {arrive}; // FAULT"));
    Planted::new(&text, vec![]).has(FaultKind::InvalidOperation);
    Planted::new(&kernel(&format!("{arrive}, 2;\n    {arrive}, 1;\n    {arrive}, 3;\n    {end}")), vec![]).is_clean();
}
