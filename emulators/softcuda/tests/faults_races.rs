//! Planted races: each must be found whichever thread comes first, and its repaired twin must be clean.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;

fn words(number: u32) -> Argument {
    Argument::Bytes((0..number).flat_map(u32::to_le_bytes).collect())
}

/// Every thread writes its word of shared memory and reads that of thread `63 - tid`.
fn reverse(barrier: &str) -> String {
    format!(
        r".visible .entry reverse(.param .u64 out)
{{
    .shared .align 4 .b8 words[256];
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, words;
    shl.b32 %r3, %r1, 2;
    add.u32 %r4, %r2, %r3;
    st.shared.u32 [%r4], %r1; // OTHER
    {barrier}
    sub.u32 %r4, %r2, %r3;
    ld.shared.u32 %r5, [%r4+252]; // FAULT
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r5;
    ret;
}}
"
    )
}

#[test]
fn a_missing_block_barrier_is_found() {
    // Without the barrier a thread also reads what nobody has written yet, if it comes first: initialise, then race.
    let text = reverse("").replace(
        "st.shared.u32 [%r4], %r1; // OTHER",
        "st.shared.u32 [%r4], 0;\n    bar.sync 0;\n    st.shared.u32 [%r4], %r1; // OTHER",
    );
    let planted = Planted { block: 64, ..Planted::new(&text, vec![Argument::Fresh(256)]) };
    let fault = planted.has(FaultKind::Race);
    assert!(fault.address.is_some());
    let text = reverse("bar.sync 0;");
    Planted { block: 64, ..Planted::new(&text, vec![Argument::Fresh(256)]) }.is_clean();
}

#[test]
fn lanes_of_one_warp_race_too() {
    // 32 threads: bar.warp.sync is enough, nothing is not.
    let within = |barrier: &str| reverse(barrier).replace("252", "124");
    let text = within("").replace(
        "st.shared.u32 [%r4], %r1; // OTHER",
        "st.shared.u32 [%r4], 0;\n    bar.warp.sync -1;\n    st.shared.u32 [%r4], %r1; // OTHER",
    );
    Planted::new(&text, vec![Argument::Fresh(256)]).has(FaultKind::Race);
    // Shuffles, reductions and matches order the lanes that take part in them, and no others.
    for meeting in [
        "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;",
        "match.any.sync.b32 %r5, %r1, -1;",
        "redux.sync.add.s32 %r5, %r1, -1;",
    ] {
        let met = text.replace("// OTHER", &format!("// OTHER\n    {meeting}"));
        Planted::new(&met, vec![Argument::Fresh(256)]).is_clean();
    }
    let halves = "and.b32 %r5, %r1, 16;\n    shl.b32 %r5, 0xffff, %r5;\n    shfl.sync.bfly.b32 %r0, %r1, 1, 31, %r5;";
    let met = text.replace("// OTHER", &format!("// OTHER\n    {halves}"));
    Planted::new(&met, vec![Argument::Fresh(256)]).has(FaultKind::Race);
    Planted::new(&within("bar.warp.sync -1;"), vec![Argument::Fresh(256)]).is_clean();
}

#[test]
fn a_barrier_of_the_warp_does_not_order_the_block() {
    let text = reverse("bar.warp.sync -1;").replace(
        "st.shared.u32 [%r4], %r1; // OTHER",
        "st.shared.u32 [%r4], 0;\n    bar.sync 0;\n    st.shared.u32 [%r4], %r1; // OTHER",
    );
    Planted { block: 64, ..Planted::new(&text, vec![Argument::Fresh(256)]) }.has(FaultKind::Race);
}

/// A loop of two rounds in which thread 0 publishes a word that all read: the second barrier keeps round 2's write
/// behind round 1's reads.
fn broadcast(second: &str) -> String {
    format!(
        r".visible .entry broadcast(.param .u64 out)
{{
    .shared .align 4 .b8 word[4];
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd1, %rd1, %rd2;
    setp.ne.u32 %p1, %r1, 0;
    mov.u32 %r2, 0;
ROUND:
    @%p1 bra READ;
    st.shared.u32 [word], %r2; // FAULT
READ:
    bar.sync 0;
    ld.shared.u32 %r3, [word]; // OTHER
    {second}
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 3;
    @%p2 bra ROUND;
    st.global.u32 [%rd1], %r3;
    ret;
}}
"
    )
}

#[test]
fn a_missing_second_barrier_in_a_loop_is_found() {
    let text = broadcast("");
    Planted { block: 128, ..Planted::new(&text, vec![Argument::Fresh(512)]) }.has(FaultKind::Race);
    let text = broadcast("bar.sync 0;");
    Planted { block: 128, ..Planted::new(&text, vec![Argument::Fresh(512)]) }.is_clean();
}

#[test]
fn blocks_that_write_one_word_race_and_atomics_do_not() {
    let kernel = |verb: &str| {
        format!(
            r".visible .entry total(.param .u64 out)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p, %r1, 0;
    @%p bra DONE;
    {verb}
DONE:
    ret;
}}
"
        )
    };
    let text = kernel("st.global.u32 [%rd1], %r1; // FAULT");
    let fault = Planted { grid: 4, ..Planted::new(&text, vec![words(1)]) }.has(FaultKind::Race);
    let other = fault.other.expect("the other access");
    assert!(other.wrote && other.block != fault.block, "{:?} and {:?}", other.block, fault.block);
    let text = kernel("red.global.add.u32 [%rd1], 1;");
    Planted { grid: 4, ..Planted::new(&text, vec![words(1)]) }.is_clean();
    // An atomic and a plain write race.
    let text = kernel("red.global.add.u32 [%rd1], 1; // FAULT\n    st.global.u32 [%rd1], %r1; // OTHER");
    Planted { grid: 4, ..Planted::new(&text, vec![words(1)]) }
        .run(&softcuda::Settings::default())
        .0
        .fault
        .expect("a race");
}

#[test]
fn neighbouring_bytes_do_not_race() {
    let text = r".visible .entry bytes(.param .u64 out)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %r1, %r1, 4, %r2;
    cvt.u64.u32 %rd2, %r1;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u8 [%rd3], %r2;
    ret;
}
";
    Planted { grid: 4, ..Planted::new(text, vec![Argument::Fresh(128)]) }.is_clean();
}

#[test]
fn blocks_of_a_cluster_are_ordered_by_its_barrier() {
    let kernel = |barrier: &str| {
        format!(
            r".visible .entry exchange(.param .u64 out)
{{
    .shared .align 4 .b8 word[4];
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    mov.u32 %r2, %cluster_ctarank;
    @!%p1 st.shared.u32 [word], 0;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @!%p1 st.shared.u32 [word], %r2; // OTHER
    {barrier}
    xor.b32 %r3, %r2, 1;
    mov.u32 %r4, word;
    mapa.shared::cluster.u32 %r4, %r4, %r3;
    @!%p1 ld.shared::cluster.u32 %r5, [%r4]; // FAULT
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd1, %rd1, %rd2;
    @!%p1 st.global.u32 [%rd1], %r5;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ret;
}}
"
        )
    };
    let text = kernel("");
    Planted { grid: 2, cluster: 2, ..Planted::new(&text, vec![Argument::Fresh(8)]) }.has(FaultKind::Race);
    // An arrival that is .relaxed promises nothing of memory.
    let text = kernel("barrier.cluster.arrive.relaxed.aligned;\n    barrier.cluster.wait.aligned;");
    Planted { grid: 2, cluster: 2, ..Planted::new(&text, vec![Argument::Fresh(8)]) }.has(FaultKind::Race);
    let text = kernel("barrier.cluster.arrive.aligned;\n    barrier.cluster.wait.aligned;");
    let planted = Planted { grid: 2, cluster: 2, ..Planted::new(&text, vec![Argument::Fresh(8)]) };
    let report = planted.is_clean();
    assert_eq!(report.counters.cluster_barriers, 3);
    let (_, addresses, device) = planted.run(&softcuda::Settings::default());
    let mut both = [0; 8];
    device.memory.read(addresses[0], &mut both).expect("read");
    assert_eq!(both, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn who_only_arrives_at_a_barrier_learns_nothing_from_it() {
    let kernel = |second: &str, marks: [&str; 2]| {
        format!(
            r".visible .entry arrives(.param .u64 data)
{{
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    .reg .pred %p;
    ld.param.u64 %rd1, [data];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 31;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd1, %rd1, %rd2;
    setp.ge.u32 %p, %r1, 32;
    @%p bra SECOND;
    st.global.u32 [%rd1], %r1; {}
    bar.sync 1, 64;
    ret;
SECOND:
    {second}
    ld.global.u32 %r2, [%rd1]; {}
    ret;
}}
",
            marks[0], marks[1]
        )
    };
    let text = kernel("bar.arrive 1, 64;", ["// OTHER", "// FAULT"]);
    Planted { block: 64, ..Planted::new(&text, vec![words(32)]) }.has(FaultKind::Race);
    let text = kernel("bar.sync 1, 64;", ["", ""]);
    Planted { block: 64, ..Planted::new(&text, vec![words(32)]) }.is_clean();
}

#[test]
fn rows_of_a_matrix_race_like_other_loads() {
    let kernel = |barrier: &str| {
        format!(
            r".visible .entry rows()
{{
    .shared .align 16 .b8 tile[512];
    .reg .b32 %r<6>;
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 31;
    shl.b32 %r2, %r2, 4;
    mov.u32 %r3, tile;
    add.u32 %r2, %r2, %r3;
    st.shared.u32 [%r2], 0;
    st.shared.u32 [%r2+4], 0;
    st.shared.u32 [%r2+8], 0;
    st.shared.u32 [%r2+12], 0;
    bar.sync 0;
    st.shared.u32 [%r2], %r1; // OTHER
    {barrier}
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r2]; // FAULT
    ret;
}}
"
        )
    };
    Planted::new(&kernel("bar.sync 0;"), vec![]).is_clean();
    // Lane l gives the row that lane l ^ 1 has written.
    let text = kernel("xor.b32 %r2, %r2, 16;");
    Planted::new(&text, vec![]).has(FaultKind::Race);
}

/// Each warp of each block takes the next ticket and writes its number at that place.
fn tickets(rounds: u32) -> String {
    format!(
        r".visible .entry tickets(.param .u64 next, .param .u64 order)
{{
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    .reg .pred %p<3>;
    ld.param.u64 %rd1, [next];
    ld.param.u64 %rd2, [order];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 31;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra DONE;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.u32 %r3, %r3, %r4, %r1;
    mov.u32 %r6, 0;
AGAIN:
    atom.global.add.u32 %r5, [%rd1], 1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd3, %rd2, %rd3;
    st.global.u32 [%rd3], %r3;
    add.u32 %r6, %r6, 1;
    setp.lt.u32 %p2, %r6, {rounds};
    @%p2 bra AGAIN;
DONE:
    ret;
}}
"
    )
}

#[test]
fn a_seed_changes_the_order_of_blocks_and_of_warps_and_their_turns() {
    let order = |grid: u32, block: u32, rounds: u32, shuffle: Option<u64>| {
        let text = tickets(rounds);
        let places = grid * block / 32 * rounds;
        let arguments = vec![Argument::Bytes(vec![0; 4]), Argument::Fresh(u64::from(4 * places))];
        let planted = Planted { grid, block, ..Planted::new(&text, arguments) };
        let settings = softcuda::Settings { shuffle, host_threads: 1, ..softcuda::Settings::default() };
        let (report, addresses, device) = planted.run(&settings);
        assert_eq!(report.fault, None);
        let mut bytes = vec![0; 4 * places as usize];
        device.memory.read(addresses[1], &mut bytes).expect("read");
        bytes
    };
    // Blocks; warps of one block; two warps that take many tickets in turn, in more than the two orders of whole warps.
    for (grid, block, rounds, fewest) in [(8, 32, 1, 2), (1, 256, 1, 2), (1, 64, 400, 3)] {
        let orders: std::collections::HashSet<_> = (1..=8).map(|seed| order(grid, block, rounds, Some(seed))).collect();
        assert!(orders.len() >= fewest, "{grid} blocks of {block}: {} different orders for 8 seeds", orders.len());
        assert_eq!(order(grid, block, rounds, Some(5)), order(grid, block, rounds, Some(5)));
        assert_eq!(order(grid, block, rounds, None), order(grid, block, rounds, None));
    }
}
