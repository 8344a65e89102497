//! `atom` and `red` of many threads at once: none gets lost.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, words};
use softcuda::Settings;

/// The counts of several blocks' atomics on one word: (order of blocks and warps, host threads).
const SCHEDULES: &[(Option<u64>, usize)] = &[(None, 1), (None, 3), (Some(1), 1), (Some(2), 2), (Some(3), 3)];

/// Runs with 5 blocks of 96 threads under every schedule; `check` gets the buffers: the word, and what each thread got.
fn together(instruction: &str, initial: u32, check: impl Fn(u32, &[u32])) {
    let body = format!(
        "    ld.param.u64 %rd1, [word];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r1, %r2, %r3, %r1;
    mad.wide.u32 %rd2, %r1, 4, %rd2;
{instruction}
    st.global.u32 [%rd2], %r4;"
    );
    let arguments = vec![Argument::Bytes(bytes([initial])), Argument::Fresh(5 * 96 * 4)];
    let mut kernel = Kernel::with_body("", ".param .u64 word, .param .u64 out", &body, arguments);
    (kernel.grid, kernel.block) = ([5, 1, 1], [96, 1, 1]);
    for (shuffle, host_threads) in SCHEDULES {
        let ended =
            kernel.run_with(&Settings { shuffle: *shuffle, host_threads: *host_threads, ..Settings::default() });
        check(words(&ended.buffers[0])[0], &words(&ended.buffers[1]));
    }
}

#[test]
fn many_threads_lose_nothing() {
    const THREADS: u32 = 5 * 96;
    let sorted = |values: &[u32]| {
        let mut values = values.to_vec();
        values.sort_unstable();
        values
    };
    // A counter gives each thread a ticket of its own.
    together("    atom.global.add.u32 %r4, [%rd1], 1;", 0, |word, tickets| {
        assert_eq!(word, THREADS);
        assert!(sorted(tickets).into_iter().eq(0..THREADS));
    });
    together("    red.global.add.u32 [%rd1], %r1;", 5, |word, _| assert_eq!(word, 5 + THREADS * (THREADS - 1) / 2));
    together("    red.global.max.u32 [%rd1], %r1;", 3, |word, _| assert_eq!(word, THREADS - 1));
    together("    neg.s32 %r5, %r1;\n    red.global.min.s32 [%rd1], %r5;", 3, |word, _| {
        assert_eq!(word as i32, 1 - THREADS as i32);
    });
    // 96 is a multiple of 32: each bit is flipped 15 times.
    together(
        "    and.b32 %r5, %r1, 31;\n    mov.u32 %r6, 1;\n    shl.b32 %r5, %r6, %r5;\n    red.global.xor.b32 [%rd1], %r5;",
        0,
        |word, _| {
            assert_eq!(word, u32::MAX);
        },
    );
    // What is handed on is neither lost nor doubled.
    together("    atom.global.exch.b32 %r4, [%rd1], %r1;", u32::MAX, |word, got| {
        let mut all = got.to_vec();
        all.push(word);
        assert!(sorted(&all).into_iter().eq((0..THREADS).chain([u32::MAX])));
    });
    // Around every 7: 0 to 6.
    together("    atom.global.inc.u32 %r4, [%rd1], 6;", 0, |word, got| {
        assert_eq!(word, THREADS % 7);
        for value in 0..7 {
            let times = got.iter().filter(|got| **got == value).count() as u32;
            assert_eq!(times, THREADS / 7 + u32::from(value < THREADS % 7));
        }
    });
    together("    atom.global.dec.u32 %r4, [%rd1], 6;", 0, |word, _| assert_eq!(word, (7 - THREADS % 7) % 7));
    // Small integers are exact in f32 whatever the order.
    together("    cvt.rn.f32.u32 %f1, %r1;\n    red.global.add.f32 [%rd1], %f1;", 0, |word, _| {
        assert_eq!(f32::from_bits(word), (THREADS * (THREADS - 1) / 2) as f32);
    });
}

#[test]
fn a_compare_and_swap_loop_adds_and_only_one_thread_wins_a_first_swap() {
    const THREADS: u32 = 5 * 96;
    let body = "    ld.relaxed.gpu.global.u32 %r5, [%rd1];
AGAIN:
    add.u32 %r6, %r5, %r1;
    atom.global.cas.b32 %r4, [%rd1], %r5, %r6;
    setp.ne.u32 %p1, %r4, %r5;
    mov.u32 %r5, %r4;
    @%p1 bra AGAIN;";
    together(body, 0, |word, _| assert_eq!(word, THREADS * (THREADS - 1) / 2));
    together("    add.u32 %r5, %r1, 1;\n    atom.global.cas.b32 %r4, [%rd1], 0, %r5;", 0, |word, got| {
        assert!((1..=THREADS).contains(&word));
        assert_eq!(got.iter().filter(|got| **got == 0).count(), 1);
        assert!(got.iter().all(|got| *got == 0 || *got == word));
        assert_eq!(got[word as usize - 1], 0);
    });
}

#[test]
fn a_block_counts_in_shared_memory_and_a_cluster_in_one_blocks() {
    // Each block's histogram of tid mod 8, and the same over a cluster of two in the first one's memory.
    let body = "    .shared .align 4 .b32 own[8];
    .shared .align 4 .b32 both[8];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %cluster_ctarank;
    setp.lt.u32 %p1, %r1, 8;
    mov.u32 %r3, own;
    mov.u32 %r4, both;
    mad.lo.u32 %r5, %r1, 4, %r3;
    mad.lo.u32 %r6, %r1, 4, %r4;
    @%p1 st.shared.u32 [%r5], 0;
    @%p1 st.shared.u32 [%r6], 0;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    and.b32 %r7, %r1, 7;
    mad.lo.u32 %r8, %r7, 4, %r3;
    red.shared.add.u32 [%r8], 1;
    mad.lo.u32 %r8, %r7, 4, %r4;
    mapa.shared::cluster.u32 %r8, %r8, 0;
    atom.relaxed.cluster.shared::cluster.add.u32 %r9, [%r8], 1;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    mad.wide.u32 %rd2, %r2, 64, %rd1;
    mad.wide.u32 %rd2, %r1, 4, %rd2;
    @%p1 ld.shared.u32 %r10, [%r5];
    @%p1 ld.shared.u32 %r11, [%r6];
    @%p1 st.global.u32 [%rd2], %r10;
    @%p1 st.global.u32 [%rd2+32], %r11;";
    let mut kernel = Kernel::with_body("", ".param .u64 out", body, vec![Argument::Fresh(128)]);
    (kernel.grid, kernel.block, kernel.cluster) = ([2, 1, 1], [96, 1, 1], Some([2, 1, 1]));
    let ended = kernel.run();
    let found = words(&ended.buffers[0]);
    assert_eq!(found[..8], [12; 8]);
    assert_eq!(found[8..16], [24; 8]);
    assert_eq!(found[16..24], [12; 8]);
    assert_eq!(found[24..], [0; 8]);
    assert_eq!(ended.report.counters.atomics, 2 * 96 * 2);
}
