//! What the lanes of a warp do together: shuffles, votes, matches and reductions against the manual's definitions, with
//! all lanes, with some, and with lanes that come from different ways.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{noise, per_thread};

const WARP: u32 = 32;

fn numbered(value: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..WARP).map(value).collect()
}

/// PTX ISA, shfl.sync, "Semantics", for one lane: the lane that it reads, and the predicate.
fn source_lane(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let bval = b & 0x1f;
    let cval = c & 0x1f;
    let segmask = c >> 8 & 0x1f;
    let max_lane = (lane & segmask) | (cval & !segmask);
    let min_lane = lane & segmask;
    let (j, pval) = match mode {
        "up" => {
            let j = i64::from(lane) - i64::from(bval);
            (j, j >= i64::from(max_lane))
        }
        "down" => {
            let j = i64::from(lane + bval);
            (j, j <= i64::from(max_lane))
        }
        "bfly" => {
            let j = i64::from(lane ^ bval);
            (j, j <= i64::from(max_lane))
        }
        _ => {
            let j = i64::from(min_lane | (bval & !segmask));
            (j, j <= i64::from(max_lane))
        }
    };
    if pval { (j as u32, true) } else { (lane, false) }
}

#[test]
fn shuffles_read_the_lanes_that_the_manual_says() {
    let values = numbered(|lane| 0x1000_0000 + lane * 0x0101);
    for mode in ["up", "down", "bfly", "idx"] {
        // Widths 1 to 32 as CUDA's __shfl_* gives them, and clamps that cut a segment.
        for segment in [0x1f_u32, 0x1e, 0x1c, 0x18, 0x10, 0x00] {
            for clamp in [0_u32, 3, 15, 31] {
                let c = segment << 8 | clamp;
                for b in [0_u32, 1, 2, 5, 16, 31, 33] {
                    let body = format!(
                        "    shfl.sync.{mode}.b32 %o0|%p1, %i0, {b}, {c}, -1;\n    selp.u32 %o1, 1, 0, %p1;\n    \
                         shfl.sync.{mode}.b32 %o2, %i0, {b}, {c}, 0xffffffff;"
                    );
                    // Some combinations are out of what any compiler writes; all are defined.
                    let found = per_thread(&body, std::slice::from_ref(&values), 3, WARP);
                    for lane in 0..WARP {
                        let (from, valid) = source_lane(mode, lane, b, c);
                        let expected = values[from as usize % 32];
                        let context = format!("{mode} b {b} c {c:#x} lane {lane}");
                        assert_eq!(found[0][lane as usize], expected, "{context}");
                        assert_eq!(found[1][lane as usize], u32::from(valid), "{context}");
                        assert_eq!(found[2][lane as usize], expected, "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn shuffles_take_distances_and_segments_that_differ_between_lanes() {
    for (seed, mode) in ["up", "down", "bfly", "idx"].into_iter().enumerate() {
        let values: Vec<u32> = noise(seed as u32 + 7).take(32).collect();
        let distances: Vec<u32> = noise(seed as u32 + 70).take(32).collect();
        let segments: Vec<u32> = noise(seed as u32 + 700).take(32).map(|c| c & 0x1f1f).collect();
        let body = format!("    shfl.sync.{mode}.b32 %o0|%p1, %i0, %i1, %i2, -1;\n    selp.u32 %o1, 1, 0, %p1;");
        let found = per_thread(&body, &[values.clone(), distances.clone(), segments.clone()], 2, WARP);
        for lane in 0..32 {
            let (from, valid) = source_lane(mode, lane as u32, distances[lane], segments[lane]);
            assert_eq!(found[0][lane], values[from as usize % 32], "{mode} lane {lane}");
            assert_eq!(found[1][lane], u32::from(valid), "{mode} lane {lane}");
        }
    }
}

#[test]
fn shuffles_may_write_the_register_that_they_read() {
    let values: Vec<u32> = noise(3).take(32).collect();
    let body = "    shfl.sync.idx.b32 %i0, %i0, %i1, 31, -1;\n    mov.u32 %o0, %i0;";
    let found = per_thread(body, &[values.clone(), numbered(|lane| 31 - lane)], 1, WARP);
    assert!((0..32).all(|lane| found[0][lane] == values[31 - lane]));
}

#[test]
fn votes_answer_for_the_lanes_of_the_mask() {
    let body = "    setp.ne.u32 %p1, %i0, 0;
    vote.sync.all.pred %p2, %p1, -1;
    vote.sync.any.pred %p3, %p1, -1;
    vote.sync.uni.pred %p4, %p1, -1;
    vote.sync.all.pred %p5, !%p1, -1;
    vote.sync.any.pred %p6, !%p1, -1;
    vote.sync.uni.pred %p7, !%p1, -1;
    vote.sync.ballot.b32 %o6, %p1, -1;
    vote.sync.ballot.b32 %o7, !%p1, -1;
    selp.u32 %o0, 1, 0, %p2;
    selp.u32 %o1, 1, 0, %p3;
    selp.u32 %o2, 1, 0, %p4;
    selp.u32 %o3, 1, 0, %p5;
    selp.u32 %o4, 1, 0, %p6;
    selp.u32 %o5, 1, 0, %p7;";
    for pattern in [0_u32, u32::MAX, 1, 1 << 31, 0xffff_fffe, 0x0f0f_1234] {
        let found = per_thread(body, &[numbered(|lane| pattern >> lane & 1)], 8, WARP);
        let (all, none) = (pattern == u32::MAX, pattern == 0);
        let answers = [all, !none, all || none, none, !all, all || none].map(u32::from);
        for lane in 0..32 {
            for (answer, expected) in answers.iter().enumerate() {
                assert_eq!(found[answer][lane], *expected, "pattern {pattern:#x}, answer {answer}, lane {lane}");
            }
            assert_eq!(found[6][lane], pattern);
            assert_eq!(found[7][lane], !pattern);
        }
    }
}

#[test]
fn votes_of_a_part_ignore_the_others() {
    // Lanes 8 to 23 vote; the rest skip it, and their registers are untouched.
    let body = "    mov.u32 %o0, 77;
    setp.ne.u32 %p1, %i0, 0;
    add.u32 %r1, %r20, -8;
    setp.lt.u32 %p2, %r1, 16;
    @%p2 vote.sync.ballot.b32 %o0, %p1, 0x00ffff00;
    @%p2 vote.sync.all.pred %p3, %p1, 0x00ffff00;
    selp.u32 %o1, 1, 0, %p3;";
    let found = per_thread(body, &[numbered(|lane| u32::from((8..24).contains(&lane)))], 2, WARP);
    for lane in 0..32 {
        let inside = (8..24).contains(&lane);
        assert_eq!(found[0][lane], if inside { 0x00ff_ff00 } else { 77 });
        assert_eq!(found[1][lane], u32::from(inside));
    }
}

#[test]
fn matches_find_equal_values() {
    let body = "    mov.b64 %rd1, {%i1, %i0};
    match.any.sync.b32 %o0, %i0, -1;
    match.any.sync.b64 %o1, %rd1, -1;
    match.all.sync.b32 %o2|%p1, %i0, -1;
    match.all.sync.b64 %o3|%p2, %rd1, -1;
    selp.u32 %o4, 1, 0, %p1;
    selp.u32 %o5, 1, 0, %p2;
    match.all.sync.b32 %o6, %i1, -1;";
    for (high, low) in [
        (numbered(|lane| lane % 5), numbered(|lane| lane / 16)),
        (numbered(|_| 9), numbered(|lane| lane / 16)),
        (numbered(|_| 9), numbered(|_| u32::MAX)),
        (numbered(|lane| lane), numbered(|_| 0)),
    ] {
        let found = per_thread(body, &[high.clone(), low.clone()], 7, WARP);
        let whole: Vec<u64> =
            high.iter().zip(&low).map(|(high, low)| u64::from(*high) << 32 | u64::from(*low)).collect();
        let alike = |equal: &dyn Fn(usize) -> bool| {
            (0..32).filter(|other| equal(*other)).fold(0_u32, |m, other| m | 1 << other)
        };
        for lane in 0..32 {
            let (narrow, wide) =
                (alike(&|other| high[other] == high[lane]), alike(&|other| whole[other] == whole[lane]));
            let lows = alike(&|other| low[other] == low[lane]);
            let all = |mask: u32| if mask == u32::MAX { mask } else { 0 };
            let expected = [narrow, wide, all(narrow), all(wide), all(narrow) & 1, all(wide) & 1, all(lows)];
            for (result, expected) in expected.iter().enumerate() {
                assert_eq!(found[result][lane], *expected, "result {result}, lane {lane}");
            }
        }
    }
}

#[test]
fn reductions_of_integers() {
    let body = "    redux.sync.add.u32 %o0, %i0, -1;
    redux.sync.add.s32 %o1, %i0, -1;
    redux.sync.min.u32 %o2, %i0, -1;
    redux.sync.min.s32 %o3, %i0, -1;
    redux.sync.max.u32 %o4, %i0, -1;
    redux.sync.max.s32 %o5, %i0, -1;
    redux.sync.and.b32 %o6, %i0, -1;
    redux.sync.or.b32 %o7, %i0, -1;
    redux.sync.xor.b32 %o8, %i0, -1;";
    let some: Vec<u32> = noise(11).take(32).collect();
    for values in [some, numbered(|_| 0x8000_0000), numbered(|lane| 0x7fff_fff0 + lane), numbered(|lane| !lane)] {
        let found = per_thread(body, std::slice::from_ref(&values), 9, WARP);
        let wide = values.iter().map(|value| u64::from(*value));
        let signed = values.iter().map(|value| *value as i32);
        let sum = (wide.clone().sum::<u64>() % (1 << 32)) as u32;
        let expected = [
            sum,
            sum,
            *values.iter().min().expect("values"),
            signed.clone().min().expect("values") as u32,
            *values.iter().max().expect("values"),
            signed.max().expect("values") as u32,
            values.iter().fold(u32::MAX, |a, b| a & b),
            values.iter().fold(0, |a, b| a | b),
            values.iter().fold(0, |a, b| a ^ b),
        ];
        for (result, expected) in expected.iter().enumerate() {
            assert!(found[result].iter().all(|value| value == expected), "result {result}");
        }
    }
}

#[test]
fn reductions_of_floats() {
    let body = "    mov.b32 %f1, %i0;
    redux.sync.min.f32 %f2, %f1, -1;
    redux.sync.max.f32 %f3, %f1, -1;
    redux.sync.min.abs.f32 %f4, %f1, -1;
    redux.sync.max.abs.NaN.f32 %f5, %f1, -1;
    mov.b32 %o0, %f2;
    mov.b32 %o1, %f3;
    mov.b32 %o2, %f4;
    mov.b32 %o3, %f5;";
    let run = |value: &dyn Fn(u32) -> f32| {
        let found = per_thread(body, &[numbered(|lane| value(lane).to_bits())], 4, WARP);
        let first: Vec<u32> = found.iter().map(|result| result[0]).collect();
        assert!(found.iter().zip(&first).all(|(result, first)| result.iter().all(|value| value == first)));
        first
    };
    let bits = f32::to_bits;
    assert_eq!(run(&|lane| lane as f32 - 10.0), [bits(-10.0), bits(21.0), bits(0.0), bits(21.0)]);
    // A NaN is left out, unless .NaN is given: then the result is the canonical one.
    let with_nan = |lane| if lane == 4 { f32::NAN } else { lane as f32 + 1.0 };
    assert_eq!(run(&with_nan), [bits(1.0), bits(32.0), bits(1.0), 0x7fff_ffff]);
    assert_eq!(run(&|_| f32::NAN), [0x7fff_ffff; 4]);
    // -0 is less than +0.
    assert_eq!(run(&|lane| if lane == 9 { -0.0 } else { 0.0 }), [bits(-0.0), bits(0.0), bits(0.0), bits(0.0)]);
}

#[test]
fn one_lane_is_elected() {
    let body = "    mov.u32 %o0, 99;
    setp.ne.u32 %p1, %i0, 0;
    @%p1 elect.sync %o0|%p2, %i1;
    selp.u32 %o1, 1, 0, %p2;
    activemask.b32 %o2;
    @%p1 activemask.b32 %o3;";
    for mask in [u32::MAX, 0x0000_ff00, 0x8000_0000, 0xf0f0_f0f0] {
        let found = per_thread(body, &[numbered(|lane| mask >> lane & 1), numbered(|_| mask)], 4, WARP);
        // The manual leaves open which lane of the mask it is; all must agree, and it alone has the predicate.
        let member = mask.trailing_zeros() as usize;
        let leader = found[0][member];
        assert!(mask >> leader & 1 == 1);
        for lane in 0..32_u32 {
            let (place, inside) = (lane as usize, mask >> lane & 1 == 1);
            assert_eq!(found[0][place], if inside { leader } else { 99 });
            assert_eq!(found[1][place], u32::from(inside && lane == leader));
            assert_eq!(found[2][place], u32::MAX);
            assert_eq!(found[3][place], if inside { mask } else { 0 });
        }
    }
}

#[test]
fn halves_of_a_warp_use_one_instruction_with_masks_of_their_own() {
    let body = "    setp.lt.u32 %p1, %r20, 16;
    selp.b32 %r1, 0x0000ffff, 0xffff0000, %p1;
    shfl.sync.bfly.b32 %o0, %i0, 3, 31, %r1;
    redux.sync.add.u32 %o1, %i0, %r1;
    setp.gt.u32 %p2, %i0, 12;
    vote.sync.ballot.b32 %o2, %p2, %r1;
    match.any.sync.b32 %o3, %i1, %r1;
    elect.sync %o4|%p3, %r1;
    bar.warp.sync %r1;";
    let found = per_thread(body, &[numbered(|lane| lane), numbered(|lane| lane % 2)], 5, WARP);
    for lane in 0..32_u32 {
        let place = lane as usize;
        let half: u32 = if lane < 16 { 0xffff } else { 0xffff_0000 };
        assert_eq!(found[0][place], lane ^ 3);
        assert_eq!(found[1][place], if lane < 16 { 120 } else { 376 });
        assert_eq!(found[2][place], half & 0xffff_e000);
        assert_eq!(found[3][place], half & if lane % 2 == 0 { 0x5555_5555 } else { 0xaaaa_aaaa });
        assert_eq!(found[4][place], if lane < 16 { 0 } else { 16 });
    }
}

#[test]
fn quarters_with_masks_in_registers_work_while_other_quarters_are_elsewhere() {
    // Quarter 0 and 1 come together to one shuffle with masks of their own; quarter 1's needs quarter 2, which first
    // waits for quarter 0.
    let body = "    shr.u32 %r1, %r20, 3;
    setp.eq.u32 %p1, %r1, 3;
    @%p1 bra DONE;
    setp.eq.u32 %p1, %r1, 2;
    @%p1 bra THIRD;
    setp.eq.u32 %p1, %r1, 0;
    selp.b32 %r2, 0x000000ff, 0x00ffff00, %p1;
TOGETHER:
    shfl.sync.bfly.b32 %o0, %i0, 1, 31, %r2;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    bar.warp.sync 0x00ff00ff;
    bra DONE;
THIRD:
    bar.warp.sync 0x00ff00ff;
    mov.u32 %r2, 0x00ffff00;
    bra.uni TOGETHER;
DONE:";
    let found = per_thread(body, &[numbered(|lane| lane)], 1, WARP);
    for lane in 0..32_u32 {
        assert_eq!(found[0][lane as usize], if lane < 24 { lane ^ 1 } else { 0 });
    }
}

#[test]
fn lanes_that_went_different_ways_meet_at_a_collective() {
    // Lanes take 1 to 4 turns of a loop, in two different branches, and then reduce together.
    let body = "    mov.u32 %r1, 0;
    and.b32 %r2, %r20, 3;
    setp.ge.u32 %p1, %r20, 20;
    @%p1 bra HIGH;
LOW:
    add.u32 %r1, %r1, 1;
    setp.le.u32 %p2, %r1, %r2;
    @%p2 bra LOW;
    bra JOIN;
HIGH:
    add.u32 %r1, %r1, 10;
    add.u32 %r3, %r3, 1;
    setp.le.u32 %p2, %r3, %r2;
    @%p2 bra HIGH;
JOIN:
    redux.sync.add.u32 %o0, %r1, -1;
    shfl.sync.down.b32 %o1, %r1, 1, 31, -1;
    vote.sync.ballot.b32 %o2, %p1, -1;";
    let found = per_thread(body, &[], 3, WARP);
    let turns = |lane: u32| if lane < 20 { lane % 4 + 1 } else { 10 * (lane % 4 + 1) };
    let sum: u32 = (0..32).map(turns).sum();
    for lane in 0..32_u32 {
        assert_eq!(found[0][lane as usize], sum);
        assert_eq!(found[1][lane as usize], turns((lane + 1).min(31)));
        assert_eq!(found[2][lane as usize], 0xfff0_0000);
    }
}

#[test]
fn lanes_in_a_loop_meet_those_that_left_it() {
    // Each lane leaves the loop after its own number of turns and waits at the barrier behind it; those inside use a
    // mask of those inside.
    let body = "    mov.u32 %r1, 0;
AGAIN:
    activemask.b32 %r2;
    setp.ge.u32 %p1, %r1, %r20;
    vote.sync.ballot.b32 %r3, %p1, %r4;
    add.u32 %o0, %o0, 1;
    not.b32 %r5, %r3;
    and.b32 %r4, %r4, %r5;
    add.u32 %r1, %r1, 1;
    @!%p1 bra AGAIN;
    bar.warp.sync -1;
    redux.sync.add.u32 %o1, %o0, -1;"
        .replacen("mov.u32 %r1, 0;", "mov.u32 %r1, 0;\n    mov.u32 %r4, -1;", 1);
    let found = per_thread(&body, &[], 2, WARP);
    for lane in 0..32_u32 {
        assert_eq!(found[0][lane as usize], lane + 1);
        assert_eq!(found[1][lane as usize], 33 * 16);
    }
}

#[test]
fn a_warp_that_is_not_full_works_with_a_full_mask() {
    // PTX: threads that do not exist are not waited for. What lies beyond is not read here.
    let body = "    shfl.sync.down.b32 %o0, %i0, 1, 31, 0x1ff;
    redux.sync.add.u32 %o1, %i0, -1;
    vote.sync.ballot.b32 %o2, %p1, -1;
    activemask.b32 %o3;";
    let body = body.replace("shfl.sync.down.b32 %o0, %i0, 1, 31, 0x1ff;", "shfl.sync.bfly.b32 %o0, %i0, 1, 31, -1;");
    let found = per_thread(&body, &[(0..10).collect()], 4, 10);
    for lane in 0..10_u32 {
        assert_eq!(found[0][lane as usize], lane ^ 1);
        assert_eq!(found[1][lane as usize], 45);
        assert_eq!(found[2][lane as usize], 0);
        assert_eq!(found[3][lane as usize], 0x3ff);
    }
}

#[test]
fn lanes_that_have_exited_are_not_waited_for() {
    let body = "    mov.u32 %o0, 1;
    setp.ge.u32 %p1, %r20, 24;
    st.global.u32 [%rd21], %o0;
    @%p1 exit;
    redux.sync.add.u32 %o0, %i0, -1;";
    let found = per_thread(body, &[numbered(|lane| lane)], 1, WARP);
    for lane in 0..32_u32 {
        assert_eq!(found[0][lane as usize], if lane < 24 { 276 } else { 1 });
    }
}
