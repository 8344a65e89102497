//! Blocks of a cluster: multicasts, and what they store, copy and signal in each other's shared memory.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, noise, words};

/// What every block of the cluster tests begins with: `%r1` thread, `%r2` rank, `%r3` blocks of the cluster, `%p1` for
/// thread 0, an initialised `gate` of one arrival, and a `stage`. At the end each thread of 32 stores `%r4` and the
/// blocks meet.
fn clustered(blocks: u32, middle: &str, arguments: Vec<Argument>) -> Kernel {
    let body = format!(
        "    .shared .align 16 .b8 stage[512];
    .shared .align 8 .b64 gate;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %cluster_ctarank;
    mov.u32 %r3, %cluster_nctarank;
    mad.lo.u32 %r4, %r2, 32, %r1;
    mad.wide.u32 %rd2, %r4, 4, %rd2;
    setp.eq.u32 %p1, %r1, 0;
    mov.u32 %r5, gate;
    mov.u32 %r6, stage;
    @%p1 mbarrier.init.shared.b64 [gate], 1;
    @%p1 fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
{middle}
    mad.lo.u32 %r7, %r1, 4, %r6;
    ld.shared.u32 %r4, [%r7];
    st.global.u32 [%rd2], %r4;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;"
    );
    let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", &body, arguments);
    (kernel.grid, kernel.cluster) = ([blocks, 1, 1], Some([blocks, 1, 1]));
    kernel
}

#[test]
fn a_multicast_reaches_the_blocks_of_its_mask() {
    // Block 1 sends 128 bytes to blocks 0, 2 and 3, each of which expects them; block 1 writes its own.
    let middle = "    mov.u32 %r8, 0xd;
    cvt.u16.u32 %h1, %r8;
    setp.eq.u32 %p2, %r2, 1;
    @%p2 bra SENDER;
    @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [gate], 128;
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p3, [gate], 0;
    @!%p3 bra WAIT;
    bra READ;
SENDER:
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r6], [%rd1], 128, [gate], %h1;
    mad.lo.u32 %r7, %r1, 4, %r6;
    st.shared.u32 [%r7], %r1;
READ:";
    let input: Vec<u32> = noise(8).take(32).collect();
    let kernel = clustered(4, middle, vec![Argument::Bytes(bytes(input.iter().copied())), Argument::Fresh(512)]);
    let found = words(&kernel.run().buffers[1]);
    for (rank, row) in found.chunks(32).enumerate() {
        let expected: Vec<u32> = if rank == 1 { (0..32).collect() } else { input.clone() };
        assert_eq!(row, expected, "block {rank}");
    }
}

#[test]
fn blocks_store_and_copy_into_each_others_memory_and_say_so() {
    // Each block fills the stage of the next one: its own part by st.async of 4, 8 and 16 bytes, the rest by a bulk
    // copy.
    let middle = "    add.u32 %r8, %r2, 1;
    rem.u32 %r8, %r8, %r3;
    mapa.shared::cluster.u32 %r9, %r5, %r8;
    mapa.shared::cluster.u32 %r10, %r6, %r8;
    @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [gate], 128;
    mad.lo.u32 %r11, %r2, 100, %r1;
    mad.lo.u32 %r12, %r1, 4, %r6;
    add.u32 %r12, %r12, 256;
    st.shared.u32 [%r12], %r11;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mul.lo.u32 %r13, %r2, 100;
    add.u32 %r14, %r13, 1;
    add.u32 %r15, %r13, 2;
    add.u32 %r16, %r13, 3;
    mov.b64 %rd5, {%r13, %r14};
    @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r10], %r13, [%r9];
    @%p1 st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r10+4], %r14, [%r9];
    @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%r10+8], %rd5, [%r9];
    @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r10+16], {%r13, %r14, %r15, %r16}, [%r9];
    @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r10+32], {%r15, %r16}, [%r9];
    @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%r10+40], {%r13, %r16}, [%r9];
    @%p1 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r10+48], [%r6+304], 80, [%r9];
WAIT:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [gate], 0;
    @!%p3 bra WAIT;";
    let kernel = clustered(3, middle, vec![Argument::Bytes(vec![0]), Argument::Fresh(3 * 128)]);
    let found = words(&kernel.run().buffers[1]);
    for (rank, row) in found.chunks(32).enumerate() {
        let first = (rank as u32 + 2) % 3 * 100;
        let mut expected: Vec<u32> = [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 0, 3].iter().map(|value| first + value).collect();
        expected.extend((12..32).map(|index| first + index));
        assert_eq!(row, expected, "block {rank}");
    }
}

#[test]
fn blocks_arrive_at_each_others_mbarriers() {
    // Block 0 waits until every other block has arrived at its gate, which each does after it has written its word of
    // block 0's stage.
    let middle = "    mapa.shared::cluster.u32 %r9, %r5, 0;
    mapa.shared::cluster.u32 %r10, %r6, 0;
    setp.eq.u32 %p2, %r2, 0;
    @%p2 bra WAIT;
    mad.lo.u32 %r10, %r2, 4, %r10;
    add.u32 %r11, %r2, 50;
    @%p1 st.shared::cluster.u32 [%r10], %r11;
    @%p1 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r9];
    mad.lo.u32 %r7, %r1, 4, %r6;
    st.shared.u32 [%r7], 1;
    bra READ;
WAIT:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [gate], 0;
    @!%p3 bra WAIT;
    mad.lo.u32 %r7, %r1, 4, %r6;
    setp.eq.u32 %p4, %r1, 0;
    setp.gt.or.u32 %p4, %r1, 3, %p4;
    @%p4 st.shared.u32 [%r7], 9;
READ:";
    let mut kernel = clustered(4, middle, vec![Argument::Bytes(vec![0]), Argument::Fresh(512)]);
    kernel.text = kernel.text.replace("[gate], 1;", "[gate], 3;");
    let found = words(&kernel.run().buffers[1]);
    let mut expected = vec![9; 32];
    expected[1..4].copy_from_slice(&[51, 52, 53]);
    assert_eq!(found[..32], expected);
    assert_eq!(found[32..], [1; 96]);
}
