//! Special registers: where a thread is, and clocks.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, longs, words};

/// The coordinates of a linear index, x fastest.
fn coordinates(linear: u32, shape: [u32; 3]) -> [u32; 3] {
    [linear % shape[0], linear / shape[0] % shape[1], linear / shape[0] / shape[1]]
}

#[test]
fn special_registers_say_where_a_thread_is() {
    const WORDS: u32 = 48;
    let registers = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%clusterid.x",
        "%clusterid.y",
        "%clusterid.z",
        "%nclusterid.x",
        "%nclusterid.y",
        "%nclusterid.z",
        "%cluster_ctaid.x",
        "%cluster_ctaid.y",
        "%cluster_ctaid.z",
        "%cluster_nctaid.x",
        "%cluster_nctaid.y",
        "%cluster_nctaid.z",
        "%cluster_ctarank",
        "%cluster_nctarank",
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%lanemask_eq",
        "%lanemask_lt",
        "%lanemask_le",
        "%lanemask_gt",
        "%lanemask_ge",
        "%dynamic_smem_size",
        "%total_smem_size",
        "WARP_SZ",
    ];
    let read = |(index, name): (usize, &&str)| {
        format!("    mov.u32 %r5, {name};\n    st.global.u32 [%rd1+{}], %r5;\n", 4 * index)
    };
    let moves: String = registers.iter().enumerate().map(read).collect();
    let body = format!(
        "    .shared .align 4 .b8 room[100];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %ctaid.z;
    mov.u32 %r2, %nctaid.y;
    mov.u32 %r3, %ctaid.y;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %nctaid.x;
    mov.u32 %r3, %ctaid.x;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %ntid.z;
    mov.u32 %r3, %tid.z;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %ntid.y;
    mov.u32 %r3, %tid.y;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r1, %r1, %r2, %r3;
    mad.wide.u32 %rd1, %r1, {}, %rd1;
{moves}
    mov.pred %p1, %is_explicit_cluster;
    selp.u32 %r5, 1, 0, %p1;
    st.global.u32 [%rd1+{}], %r5;
    cvt.u64.u32 %rd2, %tid.x;
    st.global.u32 [%rd1+{}], %rd2;
    mov.u32 %r5, %smid;
    mov.u32 %r6, %nsmid;
    setp.lt.u32 %p2, %r5, %r6;
    selp.u32 %r5, 1, 0, %p2;
    st.global.u32 [%rd1+{}], %r5;",
        4 * WORDS,
        4 * registers.len(),
        4 * registers.len() + 4,
        4 * registers.len() + 8,
    );
    for (grid, block, cluster) in [
        ([2, 3, 2], [4, 3, 2], None),
        ([4, 2, 2], [5, 4, 3], Some([2, 1, 2])),
        ([1, 4, 1], [33, 1, 1], Some([1, 4, 1])),
        ([3, 1, 1], [1, 1, 64], Some([1, 1, 1])),
    ] {
        let blocks: u32 = grid.iter().product();
        let threads: u32 = block.iter().product();
        let out = Argument::Fresh((blocks * threads * WORDS * 4) as usize);
        let mut kernel = Kernel::with_body("", ".param .u64 out", &body, vec![out]);
        (kernel.grid, kernel.block, kernel.cluster, kernel.shared) = (grid, block, cluster, 60);
        let found = words(&kernel.run().buffers[0]);
        let shape = cluster.unwrap_or([1; 3]);
        for linear in 0..blocks * threads {
            let (thread, own) = (coordinates(linear % threads, block), coordinates(linear / threads, grid));
            let within: [u32; 3] = std::array::from_fn(|axis| own[axis] % shape[axis]);
            let mut expected = Vec::new();
            expected.extend(thread);
            expected.extend(block);
            expected.extend(own);
            expected.extend(grid);
            expected.extend((0..3).map(|axis| own[axis] / shape[axis]));
            expected.extend((0..3).map(|axis| grid[axis] / shape[axis]));
            expected.extend(within);
            expected.extend(shape);
            expected.push(within[0] + shape[0] * (within[1] + shape[1] * within[2]));
            expected.push(shape.iter().product());
            let lane = linear % threads % 32;
            expected.extend([lane, linear % threads / 32, threads.div_ceil(32)]);
            let mask =
                |keep: &dyn Fn(u32) -> bool| (0..32).filter(|bit| keep(*bit)).fold(0, |mask, bit| mask | 1 << bit);
            expected.extend([
                mask(&|bit| bit == lane),
                mask(&|bit| bit < lane),
                mask(&|bit| bit <= lane),
                mask(&|bit| bit > lane),
                mask(&|bit| bit >= lane),
            ]);
            // 100 bytes, and 60 dynamic ones behind them at the next multiple of 16; allocated by 128 bytes.
            expected.extend([60, 256, 32, u32::from(cluster.is_some()), thread[0], 1]);
            let place = (linear * WORDS) as usize;
            assert_eq!(
                found[place..place + expected.len()],
                expected,
                "thread {linear} of {grid:?} {block:?} {cluster:?}"
            );
        }
    }
}

#[test]
fn clocks_go_forward() {
    let body = "    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd1, %r1, 64, %rd1;
    mov.u64 %rd2, %clock64;
    mov.u32 %r2, %clock;
    nanosleep.u32 1000;
    mov.u64 %rd3, %clock64;
    mov.u64 %rd4, %globaltimer;
    mov.u32 %r3, 0;
AGAIN:
    add.u32 %r3, %r3, 1;
    setp.le.u32 %p1, %r3, %r1;
    @%p1 bra AGAIN;
    mov.u64 %rd5, %clock64;
    mov.u64 %rd6, %globaltimer;
    mov.u32 %r4, %clock_hi;
    mov.u32 %r5, %globaltimer_lo;
    cvt.u64.u32 %rd7, %r2;
    cvt.u64.u32 %rd8, %r4;
    cvt.u64.u32 %rd9, %r5;
    st.global.v2.u64 [%rd1], {%rd2, %rd7};
    st.global.v2.u64 [%rd1+16], {%rd3, %rd4};
    st.global.v2.u64 [%rd1+32], {%rd5, %rd6};
    st.global.v2.u64 [%rd1+48], {%rd8, %rd9};";
    let kernel = Kernel::with_body("", ".param .u64 out", body, vec![Argument::Fresh(32 * 64)]);
    for (lane, times) in longs(&kernel.run().buffers[0]).chunks(8).enumerate() {
        assert!(times[0] < times[2] && times[2] < times[4], "lane {lane}: {times:?}");
        assert!(times[0] <= times[1] && times[1] < times[2], "lane {lane}: {times:?}");
        assert!(times[3] < times[5] && times[5] < times[7], "lane {lane}: {times:?}");
        assert_eq!(times[6], 0, "the upper half");
    }
}
