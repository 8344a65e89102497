//! Asynchronous copies: what arrives, and when it counts as arrived.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, noise, words};
use softcuda::Settings;
use softcuda::report::FaultKind;

/// 16 bytes for each of 32 threads.
fn input() -> Vec<u8> {
    bytes(noise(31).take(128))
}

/// `copy` moves the thread's 16 bytes at `%rd1` to `%r2` in shared memory (both multiples of 16), where each byte is
/// 0xee before; then they go to the output. `%r1` is the thread's number.
fn copied(copy: &str) -> Kernel {
    let body = format!(
        "    .shared .align 16 .b8 stage[512];
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd1, %r1, 16, %rd1;
    mad.wide.u32 %rd2, %r1, 16, %rd2;
    mov.u32 %r2, stage;
    mad.lo.u32 %r2, %r1, 16, %r2;
    mov.u32 %r4, 0xeeeeeeee;
    st.shared.v4.u32 [%r2], {{%r4, %r4, %r4, %r4}};
    {copy}
    cp.async.wait_all;
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r2];
    st.global.v4.u32 [%rd2], {{%r4, %r5, %r6, %r7}};"
    );
    Kernel::with_body(
        "",
        ".param .u64 in, .param .u64 out",
        &body,
        vec![Argument::Bytes(input()), Argument::Fresh(512)],
    )
}

#[test]
fn copies_of_every_size_with_zeros_behind_what_is_read() {
    let input = input();
    let check = |copy: &str, expected: &dyn Fn(usize, &[u8]) -> Vec<u8>| {
        let found = copied(copy).run().buffers.pop().expect("the output");
        for (thread, (found, source)) in found.chunks(16).zip(input.chunks(16)).enumerate() {
            let mut expected = expected(thread, source);
            expected.resize(16, 0xee);
            assert_eq!(found, expected, "{copy}, thread {thread}");
        }
    };
    for (size, caches) in [(4, &["ca"][..]), (8, &["ca"]), (16, &["ca", "cg"])] {
        for cache in caches {
            for space in ["shared", "shared::cta"] {
                let copy = format!("cp.async.{cache}.{space}.global");
                check(&format!("{copy} [%r2], [%rd1], {size};"), &|_, source| source[..size].to_vec());
                check(&format!("{copy}.L2::128B [%r2], [%rd1], {size};"), &|_, source| source[..size].to_vec());
                let hinted = format!("mov.u64 %rd3, 0;\n    {copy}.L2::cache_hint [%r2], [%rd1], {size}, %rd3;");
                check(&hinted, &|_, source| source[..size].to_vec());
                // src-size: what is not read is zero. The manual: it is less than or equal to cp-size.
                let filled = format!("min.u32 %r3, %r1, {size};\n    {copy} [%r2], [%rd1], {size}, %r3;");
                check(&filled, &|thread, source| {
                    let mut bytes = source[..thread.min(size)].to_vec();
                    bytes.resize(size, 0);
                    bytes
                });
                check(&format!("{copy} [%r2], [%rd1], {size}, 0;"), &|_, _| vec![0; size]);
                let ignored = format!("setp.ge.u32 %p1, %r1, 20;\n    {copy} [%r2], [%rd1], {size}, %p1;");
                check(&ignored, &|thread, source| if thread >= 20 { vec![0; size] } else { source[..size].to_vec() });
                let kept = format!("setp.ge.u32 %p1, %r1, 20;\n    {copy} [%r2], [%rd1], {size}, !%p1;");
                check(&kept, &|thread, source| if thread < 20 { vec![0; size] } else { source[..size].to_vec() });
            }
        }
    }
}

#[test]
fn what_is_not_read_may_lie_outside_of_memory() {
    // Thread 31 names an address beyond the buffer and reads nothing of it.
    let copy = |size: u32| {
        format!(
            "setp.eq.u32 %p1, %r1, 31;\n    @%p1 add.s64 %rd1, %rd1, 16;\n    selp.u32 %r3, {size}, 16, %p1;
    cp.async.cg.shared.global [%r2], [%rd1], 16, %r3;"
        )
    };
    assert_eq!(copied(&copy(0)).run().buffers[1][31 * 16..], [0; 16]);
    let fault = copied(&copy(4)).launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!((fault.kind, fault.thread), (FaultKind::OutOfBounds, [31, 0, 0]));
    // Sizes and addresses must fit each other.
    let misaligned = "add.s64 %rd1, %rd1, 8;\n    cp.async.cg.shared.global [%r2], [%rd1], 16;";
    let fault = copied(misaligned).launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!(fault.kind, FaultKind::Misaligned);
}

#[test]
fn groups_arrive_in_order() {
    // Four groups: of one copy, of two, of none, of one; and a copy that belongs to no group. `wait_group n` leaves the
    // last n in flight.
    let kernel = |wait: &str, read: u32| {
        let body = format!(
            "    .shared .align 16 .b8 stage[80];
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r2, stage;
    cp.async.ca.shared.global [%r2], [%rd1], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2+16], [%rd1+16], 16;
    cp.async.ca.shared.global [%r2+32], [%rd1+32], 16;
    cp.async.commit_group;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2+48], [%rd1+48], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2+64], [%rd1+64], 16;
    {wait}
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r2+{}];
    st.global.v4.u32 [%rd2], {{%r4, %r5, %r6, %r7}};",
            16 * read
        );
        let arguments = vec![Argument::Bytes(input()), Argument::Fresh(16)];
        let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", &body, arguments);
        kernel.block = [1, 1, 1];
        kernel
    };
    // How many of the five copies have arrived.
    for (wait, arrived) in [
        ("", 0),
        ("cp.async.wait_group 5;", 0),
        ("cp.async.wait_group 4;", 0),
        ("cp.async.wait_group 3;", 1),
        ("cp.async.wait_group 2;", 3),
        ("cp.async.wait_group 1;", 3),
        ("cp.async.wait_group 0;", 4),
        ("cp.async.wait_all;", 5),
        ("cp.async.wait_group 3;\n    cp.async.wait_group 1;", 3),
    ] {
        for read in 0..5 {
            let ended = kernel(wait, read).launch(&Settings::default());
            if read < arrived {
                assert_eq!(ended.report.fault.map(|fault| fault.to_string()), None, "{wait} copy {read}");
                assert_eq!(ended.buffers[1], input()[16 * read as usize..][..16], "{wait} copy {read}");
            } else {
                assert_eq!(ended.report.fault.expect("a fault").kind, FaultKind::InFlight, "{wait} copy {read}");
            }
        }
    }
}

/// Each of 64 threads copies 16 bytes, all meet at an `mbarrier`, and each reads what another one copied.
fn meeting(count: u32, arrive: &str) -> Kernel {
    let body = format!(
        "    .shared .align 16 .b8 stage[1024];
    .shared .align 8 .b64 gate;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    setp.eq.u32 %p2, %r1, 0;
    @%p2 mbarrier.init.shared.b64 [gate], {count};
    bar.sync 0;
    mad.wide.u32 %rd1, %r1, 16, %rd1;
    mad.wide.u32 %rd2, %r1, 16, %rd2;
    mov.u32 %r2, stage;
    mad.lo.u32 %r3, %r1, 16, %r2;
    cp.async.cg.shared.global [%r3], [%rd1], 16;
    {arrive}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p1, [gate], 0;
    @!%p1 bra WAIT;
    xor.b32 %r4, %r1, 63;
    mad.lo.u32 %r3, %r4, 16, %r2;
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3];
    st.global.v4.u32 [%rd2], {{%r4, %r5, %r6, %r7}};"
    );
    let arguments = vec![Argument::Bytes(bytes(noise(5).take(256))), Argument::Fresh(1024)];
    let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", &body, arguments);
    kernel.block = [64, 1, 1];
    kernel
}

#[test]
fn copies_arrive_at_an_mbarrier() {
    let input = bytes(noise(5).take(256));
    for (count, arrive) in [
        // Counted at initialisation.
        (64, "cp.async.mbarrier.arrive.noinc.shared.b64 [gate];"),
        // Counted in addition: the thread's own arrival comes too.
        (64, "cp.async.mbarrier.arrive.shared.b64 [gate];\n    mbarrier.arrive.shared.b64 _, [gate];"),
        (128, "cp.async.mbarrier.arrive.noinc.shared.b64 [gate];\n    mbarrier.arrive.shared.b64 _, [gate];"),
    ] {
        let found = meeting(count, arrive).run().buffers.pop().expect("the output");
        for (thread, row) in found.chunks(16).enumerate() {
            assert_eq!(row, &input[16 * (63 - thread)..][..16], "{arrive} thread {thread}");
        }
    }
    // One arrival too few: nobody goes on.
    let settings = Settings { instruction_budget: 1 << 16, ..Settings::default() };
    let fault = meeting(65, "cp.async.mbarrier.arrive.noinc.shared.b64 [gate];").launch(&settings).report.fault;
    assert!(matches!(fault.expect("a fault").kind, FaultKind::InstructionBudget | FaultKind::Deadlock));
    // The thread's own arrival does not wait for its copy.
    let fault = meeting(64, "mbarrier.arrive.shared.b64 _, [gate];").launch(&Settings::default()).report.fault;
    assert!(matches!(fault.expect("a fault").kind, FaultKind::InFlight | FaultKind::Race));
}

#[test]
fn bulk_copies_go_both_ways() {
    // In by the mbarrier, doubled by all, out in two bulk groups.
    let body = "    .shared .align 16 .b8 stage[1024];
    .shared .align 8 .b64 gate;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, stage;
    setp.eq.u32 %p1, %r1, 0;
    @%p1 mbarrier.init.shared.b64 [gate], 1;
    @%p1 fence.proxy.async.shared::cta;
    bar.sync 0;
    @!%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared.b64 _, [gate], 1024;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 512, [gate];
    cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r2+512], [%rd1+512], 512, [gate];
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p2, [gate], 0;
    @!%p2 bra WAIT;
    mad.lo.u32 %r3, %r1, 4, %r2;
    ld.shared.u32 %r4, [%r3];
    add.u32 %r4, %r4, %r4;
    st.shared.u32 [%r3], %r4;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    @!%p1 bra DONE;
    cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r2], 256;
    cp.async.bulk.commit_group;
    cp.async.bulk.global.shared::cta.bulk_group [%rd2+256], [%r2+256], 768;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 1;
    ld.global.u32 %r5, [%rd2+252];
    cp.async.bulk.wait_group.read 0;
    cp.async.bulk.wait_group 0;
    ld.global.u32 %r6, [%rd2+1020];
    st.global.v2.u32 [%rd2+1024], {%r5, %r6};
DONE:";
    let input: Vec<u32> = noise(41).take(256).collect();
    let arguments = vec![Argument::Bytes(bytes(input.iter().copied())), Argument::Fresh(1032)];
    let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", body, arguments);
    kernel.block = [256, 1, 1];
    let found = words(&kernel.run().buffers[1]);
    let mut expected: Vec<u32> = input.iter().map(|value| value.wrapping_mul(2)).collect();
    expected.extend([expected[63], expected[255]]);
    assert_eq!(found, expected);
    // Copies that nobody waits for arrive when the block ends.
    let unwaited =
        body.replace("cp.async.bulk.wait_group 1;\n    ld.global.u32 %r5, [%rd2+252];", "mov.u32 %r5, 1;").replace(
            "cp.async.bulk.wait_group.read 0;\n    cp.async.bulk.wait_group 0;\n    ld.global.u32 %r6, [%rd2+1020];",
            "mov.u32 %r6, 2;",
        );
    kernel.text = kernel.text.replace(body, &unwaited);
    expected.splice(256.., [1, 2]);
    assert_eq!(words(&kernel.run().buffers[1]), expected);
}

#[test]
fn bulk_copies_of_odd_sizes_or_places_are_faults() {
    for copy in [
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 24, [gate];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1+8], 16, [gate];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+4], [%rd1], 16, [gate];",
    ] {
        let body = format!(
            "    .shared .align 16 .b8 stage[64];\n    .shared .align 8 .b64 gate;\n    ld.param.u64 %rd1, [in];\n    mov.u32 %r2, stage;
    mbarrier.init.shared.b64 [gate], 1;\n    {copy}"
        );
        let mut kernel = Kernel::with_body("", ".param .u64 in", &body, vec![Argument::Bytes(vec![1; 64])]);
        kernel.block = [1, 1, 1];
        assert_eq!(
            kernel.launch(&Settings::default()).report.fault.expect("a fault").kind,
            FaultKind::Misaligned,
            "{copy}"
        );
    }
}

/// A producer warp brings tiles of 128 bytes through two stages; a consumer warp adds them up. `full` and `empty` are
/// pairs of `mbarrier`s.
const PIPELINE: &str = "    .shared .align 16 .b8 stage[256];
    .shared .align 8 .b64 full[2];
    .shared .align 8 .b64 empty[2];
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    ld.param.u32 %r10, [tiles];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, stage;
    mov.u32 %r3, full;
    mov.u32 %r4, empty;
    setp.eq.u32 %p1, %r1, 0;
    @!%p1 bra READY;
    mbarrier.init.shared.b64 [full], 1;
    mbarrier.init.shared.b64 [full+8], 1;
    mbarrier.init.shared.b64 [empty], 32;
    mbarrier.init.shared.b64 [empty+8], 32;
READY:
    bar.sync 0;
    mov.u32 %r5, 0;
    setp.ge.u32 %p2, %r1, 32;
    @%p2 bra CONSUME;
    @!%p1 bra DONE;
PRODUCE:
    and.b32 %r6, %r5, 1;
    shr.u32 %r7, %r5, 1;
    and.b32 %r7, %r7, 1;
    xor.b32 %r8, %r7, 1;
    mad.lo.u32 %r9, %r6, 8, %r4;
FREE:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r9], %r8;
    @!%p3 bra FREE;
    mad.lo.u32 %r9, %r6, 8, %r3;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 128;
    mad.lo.u32 %r11, %r6, 128, %r2;
    mad.wide.u32 %rd3, %r5, 128, %rd1;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd3], 128, [%r9];
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p4, %r5, %r10;
    @%p4 bra PRODUCE;
    bra DONE;
CONSUME:
    add.u32 %r12, %r1, -32;
    mov.u32 %r13, 0;
NEXT:
    and.b32 %r6, %r5, 1;
    shr.u32 %r7, %r5, 1;
    and.b32 %r7, %r7, 1;
    mad.lo.u32 %r9, %r6, 8, %r3;
FILLED:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r9], %r7;
    @!%p3 bra FILLED;
    mad.lo.u32 %r11, %r6, 128, %r2;
    mad.lo.u32 %r11, %r12, 4, %r11;
    ld.shared.u32 %r14, [%r11];
    mad.lo.u32 %r13, %r13, 3, %r14;
    mad.lo.u32 %r9, %r6, 8, %r4;
    mbarrier.arrive.shared.b64 _, [%r9];
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p4, %r5, %r10;
    @%p4 bra NEXT;
    mad.wide.u32 %rd4, %r12, 4, %rd2;
    st.global.u32 [%rd4], %r13;
DONE:";

#[test]
fn a_producer_and_a_consumer_share_two_stages() {
    for tiles in [1_u32, 2, 3, 9] {
        let input: Vec<u32> = noise(tiles).take(32 * tiles as usize).collect();
        let arguments = vec![
            Argument::Bytes(bytes(input.iter().copied())),
            Argument::Fresh(128),
            Argument::Value(tiles.to_le_bytes().to_vec()),
        ];
        let mut kernel =
            Kernel::with_body("", ".param .u64 in, .param .u64 out, .param .u32 tiles", PIPELINE, arguments);
        kernel.block = [64, 1, 1];
        let found = words(&kernel.run().buffers[1]);
        for (lane, found) in found.iter().enumerate() {
            let column = input.iter().skip(lane).step_by(32);
            let expected = column.fold(0_u32, |sum, value| sum.wrapping_mul(3).wrapping_add(*value));
            assert_eq!(*found, expected, "{tiles} tiles, lane {lane}");
        }
        if tiles > 2 {
            // A producer that does not wait for the stage to be free is found.
            kernel.text = kernel.text.replace("    @!%p3 bra FREE;\n", "");
            let fault = kernel.launch(&Settings::default()).report.fault.expect("a fault");
            assert!(
                matches!(fault.kind, FaultKind::InFlight | FaultKind::Race | FaultKind::InvalidOperation),
                "{fault}"
            );
        }
    }
}
