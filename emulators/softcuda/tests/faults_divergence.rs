//! Planted faults of lanes and threads that do not come where others wait for them.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;

#[test]
fn a_barrier_that_half_a_warp_reaches_is_found() {
    let kernel = |condition: &str, mark: &str| {
        format!(
            r".visible .entry half_barrier()
{{
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p1, %r1, {condition};
    @%p1 bra AFTER;
    bar.sync 0; {mark}
AFTER:
    mov.u32 %r2, 0;
    bar.sync 1;
    ret;
}}
"
        )
    };
    let text = kernel("16", "// FAULT");
    let fault = Planted::new(&text, vec![]).has(FaultKind::DivergentBarrier);
    assert_eq!(fault.thread, [0; 3], "{fault}");
    let text = kernel("32", "");
    assert_eq!(Planted::new(&text, vec![]).is_clean().counters.block_barriers, 2);
}

#[test]
fn a_barrier_of_all_threads_does_not_wait_for_those_that_have_exited() {
    // PTX ISA, `exit`: "If the exiting threads are holding up the barrier, the barrier is released."
    let kernel = |condition: &str, barrier: &str, mark: &str| {
        format!(
            r".visible .entry some_warps()
{{
    .reg .b32 %r<2>;
    .reg .pred %p<2>;
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p1, %r1, {condition};
    @%p1 ret;
    {barrier} {mark}
    ret;
}}
"
        )
    };
    for threads in ["32", "16", "128"] {
        let text = kernel(threads, "bar.sync 0;", "");
        let report = Planted { block: 128, ..Planted::new(&text, vec![]) }.is_clean();
        assert_eq!(report.counters.block_barriers, 1);
    }
    // A barrier with a count waits for as many.
    let text = kernel("32", "bar.sync 0, 128;", "// FAULT");
    let fault = Planted { block: 128, ..Planted::new(&text, vec![]) }.has(FaultKind::DivergentBarrier);
    assert_eq!(fault.thread, [0; 3], "{fault}");
}

#[test]
fn barriers_with_counts_and_numbers_work() {
    // Two warps produce, two consume; the consumers wait at barrier 1 for 128 threads, at which the producers only
    // arrive.
    let text = r".visible .entry producers(.param .u64 out)
{
    .shared .align 4 .b8 words[256];
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, words;
    and.b32 %r3, %r1, 63;
    shl.b32 %r4, %r3, 2;
    add.u32 %r2, %r2, %r4;
    setp.ge.u32 %p1, %r1, 64;
    @%p1 bra CONSUMER;
    st.shared.u32 [%r2], %r1;
    bar.arrive 1, 128;
    ret;
CONSUMER:
    bar.sync 1, 128;
    ld.shared.u32 %r5, [%r2];
    mul.wide.u32 %rd2, %r3, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r5;
    ret;
}
";
    let planted = Planted { block: 128, ..Planted::new(text, vec![Argument::Fresh(256)]) };
    planted.is_clean();
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 256];
    device.memory.read(addresses[0], &mut bytes).expect("read");
    let expected: Vec<u8> = (0..64_u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn reducing_barriers_count_and_vote() {
    let text = r".visible .entry ballot(.param .u64 out)
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p<5>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, 37;
    bar.red.popc.u32 %r2, 0, %p1;
    bar.red.and.pred %p2, 0, %p1;
    bar.red.or.pred %p3, 0, %p1;
    bar.red.popc.u32 %r5, 0, !%p1;
    selp.u32 %r3, 1, 0, %p2;
    selp.u32 %r4, 1, 0, %p3;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r2;
    st.global.u32 [%rd1+4], %r3;
    st.global.u32 [%rd1+8], %r4;
    st.global.u32 [%rd1+12], %r5;
    ret;
}
";
    let planted = Planted { block: 96, ..Planted::new(text, vec![Argument::Fresh(96 * 16)]) };
    planted.is_clean();
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 96 * 16];
    device.memory.read(addresses[0], &mut bytes).expect("read");
    for thread in bytes.chunks(16) {
        let words: Vec<u32> =
            thread.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect();
        assert_eq!(words, [37, 0, 1, 96 - 37]);
    }
}

/// A shuffle by the lanes below `lanes` with this member mask.
fn shuffle(lanes: u32, mask: &str, mark: &str) -> String {
    format!(
        r".visible .entry shuffle(.param .u64 out)
{{
    .reg .b32 %r<5>;
    .reg .b64 %rd<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p1, %r1, {lanes};
    @%p1 bra DONE;
    shfl.sync.bfly.b32 %r2, %r1, 1, 31, {mask}; {mark}
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r2;
DONE:
    bar.warp.sync -1;
    ret;
}}
"
    )
}

#[test]
fn shuffles_with_lanes_missing_from_or_beyond_the_mask_are_found() {
    let buffer = || vec![Argument::Fresh(128)];
    // The mask names lanes that never come.
    Planted::new(&shuffle(16, "-1", "// FAULT"), buffer()).has(FaultKind::MissingLanes);
    // The mask leaves out lanes that execute it.
    let fault = Planted::new(&shuffle(32, "0x0000ffff", "// FAULT"), buffer()).has(FaultKind::MissingLanes);
    assert_eq!(fault.thread, [16, 0, 0], "{fault}");
    // A lane reads from one that is not in the mask.
    Planted::new(&shuffle(1, "1", "// FAULT"), buffer()).has(FaultKind::MissingLanes);
    Planted::new(&shuffle(16, "0x0000ffff", ""), buffer()).is_clean();
    Planted::new(&shuffle(32, "-1", ""), buffer()).is_clean();
}

#[test]
fn votes_with_lanes_missing_are_found() {
    let kernel = |mask: &str, mark: &str| {
        format!(
            r".visible .entry vote()
{{
    .reg .b32 %r<3>;
    .reg .pred %p<3>;
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p1, %r1, 8;
    @%p1 bra DONE;
    vote.sync.ballot.b32 %r2, %p1, {mask}; {mark}
DONE:
    bar.warp.sync -1;
    ret;
}}
"
        )
    };
    Planted::new(&kernel("0x1ff", "// FAULT"), vec![]).has(FaultKind::MissingLanes);
    Planted::new(&kernel("0xff", ""), vec![]).is_clean();
}

#[test]
fn diverged_lanes_meet_at_a_shuffle() {
    // Both sides of the branch come to the same shuffle later: independent thread scheduling lets them meet there.
    let text = r".visible .entry meet(.param .u64 out)
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 1;
    setp.eq.u32 %p1, %r2, 0;
    mov.u32 %r3, 0;
    @%p1 bra EVEN;
ODD:
    add.u32 %r3, %r3, 1;
    setp.lt.u32 %p2, %r3, %r1;
    @%p2 bra ODD;
    bra JOIN;
EVEN:
    mov.u32 %r3, 100;
JOIN:
    shfl.sync.idx.b32 %r4, %r3, 0, 31, -1;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r4;
    ret;
}
";
    let planted = Planted::new(text, vec![Argument::Fresh(128)]);
    let report = planted.is_clean();
    assert!(report.counters.divergent_branches > 0);
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 128];
    device.memory.read(addresses[0], &mut bytes).expect("read");
    assert_eq!(bytes, 100_u32.to_le_bytes().repeat(32));
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    let kernel = |condition: u32, mark: &str| {
        format!(
            r".visible .entry part()
{{
    .reg .b32 %r<3>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p, %r1, {condition};
    @%p bra DONE;
    movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1; {mark}
DONE:
    ret;
}}
"
        )
    };
    Planted::new(&kernel(8, "// FAULT"), vec![]).has(FaultKind::MissingLanes);
    Planted::new(&kernel(32, ""), vec![]).is_clean();
}

/// The two halves of a warp take two barrier instructions with the same number.
fn two_barriers(barrier: &str) -> String {
    format!(
        r".visible .entry two_barriers()
{{
    .reg .b32 %r<2>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p, %r1, 16;
    @%p bra UPPER;
    {barrier} 0; // FAULT
    ret;
UPPER:
    {barrier} 0; // OTHER
    ret;
}}
"
    )
}

#[test]
fn aligned_barriers_of_two_halves_of_a_warp_are_no_barrier() {
    // `bar` and `.aligned`: all threads of the warp execute the same instruction. `barrier.sync` counts threads.
    for barrier in ["bar.sync", "barrier.sync.aligned"] {
        for shuffle in [None, Some(1), Some(2)] {
            let settings = softcuda::Settings { shuffle, ..softcuda::Settings::default() };
            let text = two_barriers(barrier);
            let fault = Planted::new(&text, vec![]).run(&settings).0.fault.expect("a fault");
            assert_eq!(fault.kind, FaultKind::DivergentBarrier, "{fault}");
            let lines = ["// FAULT", "// OTHER"].map(|mark| planted::line_of(&text, mark));
            assert!(lines.contains(&Some(fault.line)), "{fault}");
        }
    }
    let report = Planted { block: 64, ..Planted::new(&two_barriers("barrier.sync"), vec![]) }.is_clean();
    assert_eq!(report.counters.block_barriers, 1);
}

/// Warp w waits at barrier 1 with the count of its place in `counts`; with 0 it does not.
fn counted(counts: &[u32], barrier: &str) -> String {
    let waits = (0..counts.len()).filter(|&warp| counts[warp] > 0);
    let case = |warp: usize| format!("    setp.eq.u32 %p, %r1, {warp};\n    @%p mov.u32 %r2, {};\n", counts[warp]);
    let cases = waits.map(case).collect::<Vec<_>>().concat();
    format!(
        r".visible .entry counted()
{{
    .reg .b32 %r<3>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    shr.u32 %r1, %r1, 5;
    mov.u32 %r2, 0;
{cases}    setp.eq.u32 %p, %r2, 0;
    @%p bra DONE;
    {barrier}
DONE:
    ret;
}}
"
    )
}

#[test]
fn the_threads_of_a_barrier_agree_on_their_number() {
    let run = |counts: &[u32]| {
        let text = counted(counts, "bar.sync 1, %r2; // FAULT");
        Planted { block: 32 * counts.len() as u32, ..Planted::new(&text, vec![]) }.has(FaultKind::DivergentBarrier)
    };
    run(&[64, 96, 96]);
    run(&[64]);
    let text = counted(&[64, 0, 64], "bar.sync 1, %r2;");
    let report = Planted { block: 96, ..Planted::new(&text, vec![]) }.is_clean();
    assert_eq!(report.counters.block_barriers, 1);
}

#[test]
fn more_threads_than_announced_are_found() {
    let kernel = |first: u32, mark: &str| {
        format!(
            r".visible .entry crowd()
{{
    .reg .b32 %r<2>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p, %r1, {first};
    @%p bra DONE;
    barrier.sync 1, 64; {mark}
DONE:
    ret;
}}
"
        )
    };
    // 80 threads: if the 16 come first there are too many, if they come last they are left there.
    let text = kernel(16, "// FAULT");
    Planted { block: 96, ..Planted::new(&text, vec![]) }.has(FaultKind::DivergentBarrier);
    let text = kernel(32, "");
    assert_eq!(Planted { block: 96, ..Planted::new(&text, vec![]) }.is_clean().counters.block_barriers, 1);
}

#[test]
fn barriers_that_do_not_exist_are_refused() {
    for barrier in ["bar.sync 16;", "bar.sync 1, 48;", "bar.sync 1, 0;"] {
        let text = counted(&[32], &format!("{barrier} // FAULT"));
        Planted::new(&text, vec![]).has(FaultKind::InvalidOperation);
    }
    Planted::new(&counted(&[32], "bar.sync 15;"), vec![]).is_clean();
}

#[test]
fn threads_that_have_exited_are_not_waited_for_if_that_is_allowed() {
    // Warp 0 waits, and then the others exit.
    let text = counted(&[1], "bar.sync 0;");
    let planted = Planted { block: 96, ..Planted::new(&text, vec![]) };
    let checks = softcuda::Checks { divergent_barriers: false, ..softcuda::Checks::default() };
    for shuffle in [None, Some(1), Some(2), Some(3)] {
        let settings = softcuda::Settings { shuffle, checks, ..softcuda::Settings::default() };
        let report = planted.run(&settings).0;
        assert_eq!(report.fault, None);
    }
}

#[test]
fn blocks_that_have_exited_are_not_waited_for_at_a_cluster_barrier() {
    // PTX: barrier.cluster.wait waits for all non-exited threads of the cluster.
    let text = r".visible .entry early()
{
    .reg .b32 %r<2>;
    .reg .pred %p;
    mov.u32 %r1, %cluster_ctarank;
    setp.ne.u32 %p, %r1, 0;
    @%p bra DONE;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
DONE:
    ret;
}
";
    let report = Planted { grid: 2, cluster: 2, ..Planted::new(text, vec![]) }.is_clean();
    assert_eq!(report.counters.cluster_barriers, 1);
}

#[test]
fn lanes_that_exit_later_are_not_waited_for() {
    let text = r".visible .entry leave(.param .u64 out)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    .reg .pred %p;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p, %r1, 16;
    @%p bra LEAVE;
    bar.warp.sync -1;
    vote.sync.ballot.b32 %r2, !%p, -1;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r2;
    ret;
LEAVE:
    ret;
}
";
    let planted = Planted::new(text, vec![Argument::Fresh(64)]);
    planted.is_clean();
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut bytes = vec![0; 64];
    device.memory.read(addresses[0], &mut bytes).expect("read");
    assert_eq!(bytes, 0xffff_u32.to_le_bytes().repeat(16));
}

#[test]
fn lanes_that_name_each_other_have_one_mask() {
    let kernel = |lower: &str, mark: &str| {
        format!(
            r".visible .entry masks()
{{
    .reg .b32 %r<4>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p, %r1, 16;
    selp.b32 %r2, {lower}, 0xffff0000, %p;
    shfl.sync.bfly.b32 %r3, %r1, 1, 31, %r2; {mark}
    ret;
}}
"
        )
    };
    // The lower half names the upper one, which names itself only.
    Planted::new(&kernel("-1", "// FAULT"), vec![]).has(FaultKind::MissingLanes);
    Planted::new(&kernel("0x0000ffff", ""), vec![]).is_clean();
}

#[test]
fn mapa_to_a_block_that_is_not_there_is_refused() {
    let kernel = |rank: u32, mark: &str| {
        format!(
            r".visible .entry beyond()
{{
    .shared .align 4 .b8 word[4];
    .reg .b32 %r<3>;
    mov.u32 %r1, word;
    mapa.shared::cluster.u32 %r2, %r1, {rank}; {mark}
    ret;
}}
"
        )
    };
    Planted { grid: 2, cluster: 2, ..Planted::new(&kernel(2, "// FAULT"), vec![]) }.has(FaultKind::InvalidOperation);
    Planted { grid: 2, cluster: 2, ..Planted::new(&kernel(1, ""), vec![]) }.is_clean();
}
