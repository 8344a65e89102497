//! Branches, calls, exits, and threads that wait for one another without a barrier; what of it is counted.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, per_thread, per_thread_in, words};
use softcuda::Settings;
use softcuda::count::Class;
use softcuda::report::FaultKind;

const WARP: u32 = 32;

fn lanes() -> Vec<u32> {
    (0..WARP).collect()
}

#[test]
fn branches_go_where_each_lane_says() {
    // Uniform, divergent, with a negated guard, backwards, and over a scope with a label of the same name.
    let body = "    mov.u32 %o0, 0;
    setp.lt.u32 %p1, %i0, 100;
    @%p1 bra.uni A;
    mov.u32 %o0, 1000;
A:
    setp.lt.u32 %p2, %i0, 7;
    @!%p2 bra B;
    add.u32 %o0, %o0, 1;
    {
        .reg .b32 %r1;
        mov.u32 %r1, 3;
    B:
        add.u32 %r1, %r1, -1;
        setp.ne.u32 %p3, %r1, 0;
        @%p3 bra B;
        add.u32 %o0, %o0, 10;
    }
B:
    and.b32 %r2, %i0, 1;
    setp.eq.u32 %p4, %r2, 0;
    @%p4 bra EVEN;
    add.u32 %o0, %o0, 200;
    bra DONE;
EVEN:
    add.u32 %o0, %o0, 100;
DONE:";
    let found = per_thread(body, &[lanes()], 1, WARP);
    for lane in 0..WARP {
        let expected = if lane < 7 { 11 } else { 0 } + if lane % 2 == 0 { 100 } else { 200 };
        assert_eq!(found[0][lane as usize], expected, "lane {lane}");
    }
}

#[test]
fn nested_loops_run_as_often_as_each_lane_says() {
    // sum over a < lane of sum over b <= a of (a ^ b), with an early way out of the inner loop.
    let body = "    mov.u32 %r1, 0;
    mov.u32 %o0, 0;
OUTER:
    setp.ge.u32 %p1, %r1, %i0;
    @%p1 bra DONE;
    mov.u32 %r2, 0;
INNER:
    setp.gt.u32 %p2, %r2, %r1;
    @%p2 bra NEXT;
    xor.b32 %r3, %r1, %r2;
    setp.gt.u32 %p3, %r3, 20;
    @%p3 bra NEXT;
    add.u32 %o0, %o0, %r3;
    add.u32 %r2, %r2, 1;
    bra INNER;
NEXT:
    add.u32 %r1, %r1, 1;
    bra OUTER;
DONE:
    add.u32 %o1, %r1, 0;";
    let found = per_thread(body, &[lanes()], 2, WARP);
    for lane in 0..WARP {
        let inner = |a: u32| (0..=a).map(|b| a ^ b).take_while(|mixed| *mixed <= 20).sum::<u32>();
        assert_eq!(found[0][lane as usize], (0..lane).map(inner).sum::<u32>(), "lane {lane}");
        assert_eq!(found[1][lane as usize], lane);
    }
}

#[test]
fn indexed_branches_take_each_lanes_entry() {
    let body = "TABLE: .branchtargets A, B, C, A;
    and.b32 %r1, %i0, 3;
    brx.idx %r1, TABLE;
C:
    add.u32 %o0, %o0, 1;
B:
    add.u32 %o0, %o0, 10;
A:
    add.u32 %o0, %o0, 100;
UNIFORM: .branchtargets D, E;
    mov.u32 %r2, 1;
    brx.idx.uni %r2, UNIFORM;
D:
    mov.u32 %o0, 7777;
E:";
    let found = per_thread(body, &[lanes()], 1, WARP);
    for lane in 0..WARP {
        assert_eq!(found[0][lane as usize], [100, 110, 111, 100][lane as usize % 4]);
    }
}

#[test]
fn an_index_beyond_the_table_is_a_fault() {
    let body = "TABLE: .branchtargets A, A;\n    mov.u32 %r1, %tid.x;\n    brx.idx %r1, TABLE;\nA:";
    let fault = Kernel::with_body("", "", body, vec![]).launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!((fault.kind, fault.thread), (FaultKind::InvalidOperation, [2, 0, 0]));
}

#[test]
fn calls_pass_arguments_and_results_of_every_size() {
    let module =
        ".func (.param .align 16 .b8 result[48]) gather(.param .b8 a, .param .b16 b, .param .b32 c, .param .b64 d,
    .param .f32 e, .param .f64 f, .param .align 8 .b8 g[24], .param .align 16 .b8 h[16])
{
    .reg .b16 %h<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    .reg .f32 %f<3>;
    .reg .f64 %fd<3>;
    ld.param.s8 %r1, [a];
    ld.param.u16 %h1, [b];
    ld.param.b32 %r2, [c];
    ld.param.b64 %rd1, [d];
    ld.param.f32 %f1, [e];
    ld.param.f64 %fd1, [f];
    ld.param.b32 %r3, [g+4];
    ld.param.b64 %rd2, [g+16];
    ld.param.v2.b64 {%rd3, %rd4}, [h];
    st.param.b32 [result], %r1;
    st.param.b16 [result+4], %h1;
    st.param.b16 [result+6], %h1;
    add.u32 %r2, %r2, %r3;
    st.param.b32 [result+8], %r2;
    st.param.f32 [result+12], %f1;
    add.u64 %rd1, %rd1, %rd2;
    st.param.b64 [result+16], %rd1;
    st.param.f64 [result+24], %fd1;
    st.param.v2.b64 [result+32], {%rd4, %rd3};
    ret;
}";
    let body = "    .param .b8 a;
    .param .b16 b;
    .param .b32 c;
    .param .b64 d;
    .param .f32 e;
    .param .f64 f;
    .param .align 8 .b8 g[24];
    .param .align 16 .b8 h[16];
    .param .align 16 .b8 back[48];
    neg.s32 %r1, %i0;
    st.param.b8 [a], %r1;
    cvt.u16.u32 %h1, %i0;
    st.param.b16 [b], %h1;
    st.param.b32 [c], %i0;
    mul.wide.u32 %rd1, %i0, 0x40000000;
    st.param.b64 [d], %rd1;
    cvt.rn.f32.u32 %f1, %i0;
    st.param.f32 [e], %f1;
    cvt.rn.f64.u32 %fd1, %i0;
    st.param.f64 [f], %fd1;
    st.param.b32 [g+4], 1000;
    st.param.b64 [g+16], 5;
    st.param.v2.b64 [h], {%rd1, %rd20};
    call (back), gather, (a, b, c, d, e, f, g, h);
    ld.param.v4.b32 {%o0, %o1, %o2, %o3}, [back];
    ld.param.b64 %rd2, [back+16];
    mov.b64 {%o4, %o5}, %rd2;
    ld.param.f64 %fd2, [back+24];
    cvt.rzi.u32.f64 %o6, %fd2;
    ld.param.b64 %rd3, [back+32];
    ld.param.b64 %rd4, [back+40];
    setp.eq.u64 %p1, %rd3, %rd20;
    setp.eq.and.u64 %p1, %rd4, %rd1, %p1;
    selp.u32 %o7, 1, 0, %p1;";
    let found = per_thread_in(module, body, &[lanes()], 8, WARP);
    for lane in 0..WARP {
        let long = u64::from(lane) * 0x4000_0000 + 5;
        let expected = [
            (lane as i32).wrapping_neg() as u32,
            lane << 16 | lane,
            lane + 1000,
            (lane as f32).to_bits(),
            long as u32,
            (long >> 32) as u32,
            lane,
            1,
        ];
        for (result, expected) in expected.into_iter().enumerate() {
            assert_eq!(found[result][lane as usize], expected, "result {result}, lane {lane}");
        }
    }
}

const RECURSIVE: &str = ".func (.param .b64 result) factorial(.param .b32 number)
{
    .reg .pred %p;
    .reg .b32 %r<3>;
    .reg .b64 %rd<4>;
    .param .b32 less;
    .param .b64 rest;
    ld.param.b32 %r1, [number];
    mov.u64 %rd1, 1;
    setp.lt.u32 %p, %r1, 2;
    @%p bra END;
    add.u32 %r2, %r1, -1;
    st.param.b32 [less], %r2;
    call (rest), factorial, (less);
    ld.param.b64 %rd2, [rest];
    cvt.u64.u32 %rd3, %r1;
    mul.lo.u64 %rd1, %rd2, %rd3;
END:
    st.param.b64 [result], %rd1;
    ret;
}
.func (.param .b32 result) fibonacci(.param .b32 number)
{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .param .b32 less;
    .param .b32 rest;
    ld.param.b32 %r1, [number];
    setp.ge.u32 %p, %r1, 2;
    @%p bra DEEP;
    st.param.b32 [result], %r1;
    ret;
DEEP:
    add.u32 %r2, %r1, -1;
    st.param.b32 [less], %r2;
    call (rest), fibonacci, (less);
    ld.param.b32 %r3, [rest];
    add.u32 %r2, %r1, -2;
    st.param.b32 [less], %r2;
    call (rest), fibonacci, (less);
    ld.param.b32 %r4, [rest];
    add.u32 %r3, %r3, %r4;
    st.param.b32 [result], %r3;
    ret;
}";

#[test]
fn recursion_goes_as_deep_as_each_lane_says() {
    let body = "    .param .b32 number;
    .param .b64 product;
    .param .b32 sum;
    rem.u32 %r1, %i0, 20;
    st.param.b32 [number], %r1;
    call (product), factorial, (number);
    ld.param.b64 %rd1, [product];
    mov.b64 {%o0, %o1}, %rd1;
    and.b32 %r2, %i0, 7;
    st.param.b32 [number], %r2;
    call (sum), fibonacci, (number);
    ld.param.b32 %o2, [sum];";
    let found = per_thread_in(RECURSIVE, body, &[lanes()], 3, WARP);
    for lane in 0..WARP as usize {
        let product: u64 = (1..=lane as u64 % 20).product();
        assert_eq!([found[0][lane], found[1][lane]], [product as u32, (product >> 32) as u32], "lane {lane}");
        assert_eq!(found[2][lane], [0, 1, 1, 2, 3, 5, 8, 13][lane % 8], "lane {lane}");
    }
}

#[test]
fn recursion_without_an_end_is_a_fault() {
    let module = ".func again()\n{\n    call again;\n    ret;\n}\n";
    let report = Kernel::with_body(module, "", "    call again;", vec![]).launch(&Settings::default()).report;
    assert_eq!(report.fault.expect("a fault").kind, FaultKind::InvalidOperation);
}

#[test]
fn indirect_calls_reach_each_lanes_function() {
    let function = |name: &str, operation: &str| {
        format!(
            ".func (.param .b32 result) {name}(.param .b32 number)\n{{\n    .reg .b32 %r<3>;\n    ld.param.b32 %r1, [number];\n    \
             {operation}\n    st.param.b32 [result], %r2;\n    ret;\n}}\n"
        )
    };
    let module = [
        function("twice", "shl.b32 %r2, %r1, 1;"),
        function("square", "mul.lo.u32 %r2, %r1, %r1;"),
        function("negative", "neg.s32 %r2, %r1;"),
        ".global .align 8 .u64 functions[3] = {twice, square, negative};\n".to_owned(),
    ]
    .concat();
    let body = "    .param .b32 number;
    .param .b32 back;
    rem.u32 %r1, %i0, 3;
    mov.u64 %rd1, functions;
    mad.wide.u32 %rd1, %r1, 8, %rd1;
    ld.global.u64 %rd2, [%rd1];
    st.param.b32 [number], %i0;
    call (back), %rd2, (number), KIND;
    ld.param.b32 %o0, [back];
    mov.u64 %rd3, square;
    call.uni (back), %rd3, (number), KIND;
    ld.param.b32 %o1, [back];
KIND: .callprototype (.param .b32 _) _ (.param .b32 _);";
    let found = per_thread_in(&module, body, &[lanes()], 2, WARP);
    for lane in 0..WARP {
        assert_eq!(found[0][lane as usize], [2 * lane, lane * lane, lane.wrapping_neg()][lane as usize % 3]);
        assert_eq!(found[1][lane as usize], lane * lane);
    }
    let body =
        body.replace("ld.global.u64 %rd2, [%rd1];", "mov.u64 %rd2, 16;").replace("%i0", "%r5").replace("%o", "%r");
    let kernel = Kernel::with_body(&module, "", &body, vec![]);
    assert_eq!(kernel.launch(&Settings::default()).report.fault.expect("a fault").kind, FaultKind::InvalidOperation);
}

#[test]
fn lanes_return_and_exit_under_guards() {
    // `ret` leaves the function for the lanes of the guard; `exit` ends the thread, also from within a function.
    let module = ".func (.param .b32 result) leave(.param .b32 number)
{
    .reg .pred %p<3>;
    .reg .b32 %r<2>;
    ld.param.b32 %r1, [number];
    st.param.b32 [result], 1;
    setp.lt.u32 %p1, %r1, 10;
    @%p1 ret;
    st.param.b32 [result], 2;
    setp.ge.u32 %p2, %r1, 20;
    @%p2 exit;
    ret;
}";
    let body = "    .param .b32 number;
    .param .b32 back;
    mov.u32 %o0, 5;
    st.global.u32 [%rd21], %o0;
    st.param.b32 [number], %i0;
    call (back), leave, (number);
    ld.param.b32 %o0, [back];
    setp.eq.u32 %p1, %i0, 4;
    st.global.u32 [%rd21], %o0;
    @%p1 ret;
    add.u32 %o0, %o0, 10;";
    let found = per_thread_in(module, body, &[lanes()], 1, WARP);
    for lane in 0..WARP {
        let expected = match lane {
            4 => 1,
            0..10 => 11,
            10..20 => 12,
            _ => 5,
        };
        assert_eq!(found[0][lane as usize], expected, "lane {lane}");
    }
}

/// A counter behind a lock: every thread adds one, with ordinary loads and stores.
fn locked(grid: u32, block: u32, wait: &str) {
    let body = format!(
        "    ld.param.u64 %rd1, [lock];
    add.s64 %rd2, %rd1, 4;
SPIN:
    atom.global.cas.b32 %r1, [%rd1], 0, 1;
    setp.ne.u32 %p1, %r1, 0;
    {wait}
    @%p1 bra SPIN;
    membar.gl;
    ld.global.u32 %r2, [%rd2];
    add.u32 %r2, %r2, 1;
    st.global.u32 [%rd2], %r2;
    membar.gl;
    atom.global.exch.b32 %r1, [%rd1], 0;"
    );
    let arguments = vec![Argument::Bytes(vec![0; 8])];
    let mut kernel = Kernel::with_body("", ".param .u64 lock", &body, arguments);
    (kernel.grid, kernel.block) = ([grid, 1, 1], [block, 1, 1]);
    assert_eq!(words(&kernel.run().buffers[0]), [0, grid * block]);
}

#[test]
fn lanes_of_one_warp_take_turns_at_a_lock() {
    locked(1, 32, "");
    locked(1, 32, "@%p1 nanosleep.u32 100;");
}

#[test]
fn warps_and_blocks_take_turns_at_a_lock() {
    locked(1, 128, "");
    locked(4, 64, "@%p1 nanosleep.u32 20;");
}

#[test]
fn a_thread_waits_for_what_a_later_thread_does() {
    // Lane 0 spins on what lane 31 writes; block 0 on what block 2 writes.
    let body = "    ld.param.u64 %rd1, [flags];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    setp.eq.u32 %p1, %r1, 31;
    @%p1 bra WRITE;
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra DONE;
READ:
    mad.wide.u32 %rd2, %r2, 4, %rd1;
    ld.acquire.gpu.global.u32 %r3, [%rd2];
    setp.eq.u32 %p3, %r3, 0;
    @%p3 bra READ;
    setp.ne.u32 %p4, %r2, 0;
    @%p4 bra DONE;
LAST:
    ld.acquire.gpu.global.u32 %r3, [%rd1+8];
    setp.eq.u32 %p3, %r3, 0;
    @%p3 bra LAST;
    st.global.u32 [%rd1+12], %r3;
    bra DONE;
WRITE:
    add.u32 %r4, %r2, 5;
    mad.wide.u32 %rd2, %r2, 4, %rd1;
    st.release.gpu.global.u32 [%rd2], %r4;
DONE:";
    let mut kernel = Kernel::with_body("", ".param .u64 flags", body, vec![Argument::Bytes(vec![0; 16])]);
    kernel.grid = [3, 1, 1];
    assert_eq!(words(&kernel.run().buffers[0]), [5, 6, 7, 7]);
}

#[test]
fn instructions_are_counted_by_hand() {
    // Thread t: 4 instructions, t + 1 turns of 2 with t branches back, 1 store for t < 16, a barrier, and the return.
    let body = "    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd1, %r1, 4, %rd1;
    mov.u32 %r2, 0;
AGAIN:
    add.u32 %r2, %r2, 1;
    setp.le.u32 %p1, %r2, %r1;
    @%p1 bra AGAIN;
    setp.lt.u32 %p2, %r1, 16;
    @%p2 st.global.u32 [%rd1], %r2;
    bar.sync 0;";
    let mut kernel = Kernel::with_body("", ".param .u64 out", body, vec![Argument::Fresh(64)]);
    (kernel.grid, kernel.block) = ([1, 1, 1], [80, 1, 1]);
    let of_thread = |t: u64| 4 + 2 * (t + 1) + t + 1 + u64::from(t < 16) + 1 + 1;
    for (shuffle, host_threads) in [(None, 1), (None, 2), (None, 3), (Some(1), 1), (Some(9), 2), (Some(4), 3)] {
        let ended = kernel.run_with(&Settings { shuffle, host_threads, ..Settings::default() });
        let counters = &ended.report.counters;
        assert_eq!(counters.threads, 80);
        assert_eq!(counters.instructions_per_thread, (of_thread(0), of_thread(79)));
        assert_eq!(counters.instructions.thread, (0..80).map(of_thread).sum::<u64>());
        let by_class = |class: Class| counters.by_class[&class].thread;
        assert_eq!(by_class(Class::LoadConstant), 80);
        assert_eq!(by_class(Class::StoreGlobal), 16);
        assert_eq!(by_class(Class::Barrier), 80);
        // Branches back, and the return of each thread.
        assert_eq!(by_class(Class::Control), (0..80).sum::<u64>() + 80);
        assert_eq!(counters.block_barriers, 1);
        assert_eq!(
            counters.by_class.values().map(|executed| executed.thread).sum::<u64>(),
            counters.instructions.thread
        );
    }
}

#[test]
fn warps_issue_once_what_their_lanes_do_together() {
    // Two full warps and one of 16 lanes; half of each takes another way for 2 instructions.
    let body = "    mov.u32 %r1, %laneid;
    and.b32 %r2, %r1, 1;
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra EVEN;
    add.u32 %r3, %r1, 1;
    bra JOIN;
EVEN:
    add.u32 %r3, %r1, 2;
    add.u32 %r3, %r3, 2;
JOIN:
    add.u32 %r4, %r3, 1;
    @!%p1 add.u32 %r4, %r3, 1;
    setp.gt.u32 %p2, %r1, 100;
    @%p2 add.u32 %r4, %r3, 1;";
    let mut kernel = Kernel::with_body("", "", body, vec![]);
    (kernel.grid, kernel.block) = ([2, 1, 1], [80, 1, 1]);
    let ended = kernel.run();
    let counters = &ended.report.counters;
    // Per warp: 4 in common, 2 odd, 2 even, then 4 with the return; the last guarded add is issued for nobody.
    assert_eq!(counters.instructions.warp, 6 * (4 + 2 + 2 + 4));
    assert_eq!(counters.predicated_off, 6);
    assert_eq!(counters.divergent_branches, 6);
    // Lanes: the branch is executed by the even ones, the guarded add by the odd ones.
    assert_eq!(counters.instructions.thread, 160 * (3 + 3) + 80 * (1 + 2) + 80 * (2 + 1));
}
