//! Moves, vectors of elements, selections.

mod samples;

use samples::{all, check, number, refused, run, samples, taken, width};
use softcuda::machine::snippet::Snippet;

const TYPES: [&str; 11] = ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64"];

#[test]
fn moves_keep_the_bits() {
    for ty in TYPES {
        let rows = all(&[samples(width(ty), 60)]);
        check(&format!("mov.{ty}"), ty, &[ty], &rows, |row| row[0]);
    }
    // Bits go between registers of numbers of the same size.
    let rows = all(&[samples(32, 60)]);
    check("mov.b32", "f32", &["u32"], &rows, |row| row[0]);
    check("mov.f32", "b32", &["f32"], &rows, |row| row[0]);
}

#[test]
fn moves_of_immediates() {
    for (ty, literal, expected) in [
        ("u16", "65535", 0xffff),
        ("s16", "-2", 0xfffe),
        ("u32", "-1", 0xffff_ffff),
        ("b32", "0x80000000", 0x8000_0000),
        ("s32", "-2147483648", 0x8000_0000),
        ("u64", "-1", u64::MAX),
        ("s64", "-5", 5u64.wrapping_neg()),
        ("b32", "0f3F800000", 0x3f80_0000),
        ("f32", "0fFF800000", 0xff80_0000),
        ("f64", "0d7FF0000000000000", 0x7ff0_0000_0000_0000),
        ("f64", "0dBFF8000000000001", 0xbff8_0000_0000_0001),
    ] {
        let text = format!(".reg .{ty} %d; mov.{ty} %d, {literal};");
        assert_eq!(run(&text, &[], &[vec![]], &["%d"])[0], [expected], "{text}");
    }
}

/// Type, elements, bits of an element.
const VECTORS: [(&str, usize, u32); 7] =
    [("b16", 2, 8), ("b32", 2, 16), ("b32", 4, 8), ("b64", 2, 32), ("b64", 4, 16), ("b128", 2, 64), ("b128", 4, 32)];

fn names(letter: char, count: usize) -> Vec<String> {
    (0..count).map(|place| format!("%{letter}{place}")).collect()
}

#[test]
fn vectors_are_packed_and_unpacked_first_element_lowest() {
    for (ty, count, bits) in VECTORS {
        let [from, to, part] = ['a', 'd', 'e'].map(|letter| names(letter, count));
        let packed = format!(
            ".reg .b{bits} %a<{count}>; .reg .b{bits} %d<{count}>; .reg .b{bits} %e<{count}>; .reg .{ty} %p; .reg .{ty} %q; \
             mov.{ty} %p, {{{}}}; mov.{ty} %q, %p; mov.{ty} {{{}}}, %q;",
            from.join(", "),
            to.join(", ")
        );
        // Every other element only.
        let wanted: Vec<&str> =
            part.iter().enumerate().map(|(place, name)| if place % 2 == 0 { "_" } else { name.as_str() }).collect();
        let text = format!("{packed} mov.{ty} {{{}}}, %q;", wanted.join(", "));
        let mut snippet = Snippet::new(&text).unwrap();
        let values = samples(bits, 32);
        let element = |lane: usize, place: usize| values[(lane + 11 * place) % values.len()];
        for (place, name) in from.iter().enumerate() {
            snippet.set(name, &std::array::from_fn(|lane| element(lane, place)));
        }
        snippet.run();
        for lane in 0..32 {
            let whole: u128 = (0..count).map(|place| u128::from(element(lane, place)) << (bits * place as u32)).sum();
            let found = if ty == "b128" { snippet.get_wide("%p")[lane] } else { u128::from(snippet.get("%p")[lane]) };
            assert_eq!(found, whole, "{text}");
            for place in 0..count {
                assert_eq!(snippet.get(&to[place])[lane], element(lane, place), "{text}");
                let expected = if place % 2 == 0 { 0 } else { element(lane, place) };
                assert_eq!(snippet.get(&part[place])[lane], expected, "{text}");
            }
        }
    }
}

#[test]
fn vectors_of_immediates_and_of_floating_point_registers() {
    let rows = all(&[samples(32, 40)]);
    let text = ".reg .u32 %a; .reg .b64 %d; .reg .f64 %e; .reg .u32 %h; .reg .f32 %l; \
        mov.b64 %d, {%a, 7}; mov.b64 %e, {-1, %a}; mov.b64 {%l, %h}, %e;";
    for (row, found) in rows.iter().zip(run(text, &["%a"], &rows, &["%d", "%e", "%h", "%l"])) {
        let a = row[0];
        assert_eq!(found, [a | 7 << 32, 0xffff_ffff | a << 32, a, 0xffff_ffff]);
    }
}

#[test]
fn swapped_in_place() {
    let rows = all(&[samples(16, 20), samples(16, 3)]);
    let text = ".reg .b16 %a; .reg .b16 %b; .reg .b32 %w; mov.b32 %w, {%a, %b}; mov.b32 {%b, %a}, %w;";
    for (row, found) in rows.iter().zip(run(text, &["%a", "%b"], &rows, &["%a", "%b"])) {
        assert_eq!(found, [row[1], row[0]]);
    }
}

#[test]
fn predicates_from_integers() {
    let text = ".reg .pred p<5>; mov.pred p0, 0; mov.pred p1, 1; mov.pred p2, -1; mov.pred p3, !p1; mov.pred p4, p2;";
    assert_eq!(run(text, &[], &[vec![]], &["p0", "p1", "p2", "p3", "p4"])[0], [0, 1, 1, 0, 1]);
}

#[test]
fn selection_by_a_predicate() {
    for ty in TYPES {
        let bits = width(ty);
        let text = format!(
            ".reg .pred p; .reg .{ty} %a; .reg .{ty} %b; .reg .{ty} %d<3>; selp.{ty} %d0, %a, %b, p; \
             selp.{ty} %d1, %a, %b, !p; selp.{ty} %d2, %a, %b, 1;"
        );
        let rows = all(&[vec![0, 1], samples(bits, 3), samples(bits, 3)]);
        for (row, found) in rows.iter().zip(run(&text, &["p", "%a", "%b"], &rows, &["%d0", "%d1", "%d2"])) {
            let (yes, no) = (row[1], row[2]);
            assert_eq!(found, if row[0] == 1 { [yes, no, yes] } else { [no, yes, yes] }, "{text}");
        }
    }
    let text = ".reg .pred p; .reg .b32 %d; selp.b32 %d, 1, 0, p;";
    for (row, found) in all(&[vec![0, 1]]).iter().zip(run(text, &["p"], &all(&[vec![0, 1]]), &["%d"])) {
        assert_eq!(found, *row);
    }
}

#[test]
fn selection_by_a_sign() {
    for ty in TYPES {
        let bits = width(ty);
        let values = samples(bits, 2);
        let rows = all(&[values.clone(), values.clone(), samples(32, 20)]);
        check(&format!("slct.{ty}.s32"), ty, &[ty, ty, "s32"], &rows, |row| {
            if number(row[2], "s32") >= 0 { row[0] } else { row[1] }
        });
        // Zeros, the smallest and largest subnormal numbers, normal ones, infinities, NaN, each with both signs.
        let magnitudes = [0, 1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000];
        let selectors = magnitudes.iter().flat_map(|bits| [*bits, bits | 0x8000_0000]).collect();
        let rows = all(&[values.clone(), values, selectors]);
        for (flush, smallest) in [("", 0.0), (".ftz", f32::MIN_POSITIVE)] {
            check(&format!("slct{flush}.{ty}.f32"), ty, &[ty, ty, "f32"], &rows, |row| {
                let selector = f32::from_bits(row[2] as u32);
                if selector >= 0.0 || selector.abs() < smallest { row[0] } else { row[1] }
            });
        }
    }
}

#[test]
fn guarded_moves_keep_the_other_lanes() {
    let text = ".reg .pred p; .reg .b64 %d; .reg .b64 %a; .reg .b32 %l; .reg .b32 %h; \
        mov.b64 %d, 5; @p mov.b64 %d, %a; mov.b64 {%l, %h}, %d; @!p mov.b64 {%h, _}, %a;";
    let rows = all(&[vec![1, 0, 1], samples(64, 12)]);
    for (row, found) in rows.iter().zip(run(text, &["p", "%a"], &rows, &["%d", "%l", "%h"])) {
        let low = row[1] & 0xffff_ffff;
        let expected = if row[0] == 1 { [row[1], low, row[1] >> 32] } else { [5, 5, low] };
        assert_eq!(found, expected);
    }
}

#[test]
fn what_the_manual_does_not_have_is_refused() {
    for instruction in [
        "mov.f16 h0, h1;",
        "mov.b8 c0, c1;",
        "mov.u32 f0, r0;",
        "mov.s64 g0, d0;",
        "mov.f32 f0, u0;",
        "mov.u32 r0, 0f3f800000;",
        "mov.b32 r0, d1;",
        "mov.b32 r0, h1;",
        "mov.b64 d0, r1;",
        "mov.b32 r0;",
        "mov.b32 r0, r1, r2;",
        "mov.u32 r0, unknown;",
        "mov.u32 r0, %clock;",
        "mov.u64 d0, %globaltimer;",
        "mov.u64 d0, %tid.x;",
        "mov.b32 r0, p0;",
        "mov.pred p0, r0;",
        "mov.rn.f32 f0, f1;",
        "mov.b32 r0, {h0, h1, h2, h3};",
        "mov.b64 d0, {h0, h1};",
        "mov.b64 d0, {r0, r1, r2};",
        "mov.u64 d0, {r0, r1};",
        "mov.b64 {r0, r1, r2, r3}, d0;",
        "mov.b64 {r0, h1}, d0;",
        "mov.b32 {_, _}, r0;",
        "mov.b64 {c0, c1, c2, c3, c4, c0, c1, c2}, d0;",
        "selp.f16 h0, h1, h2, p0;",
        "selp.b128 q0, q1, q2, p0;",
        "selp.b32 r0, r1, d2, p0;",
        "selp.b32 r0, r1, r2, r3;",
        "selp.b32 r0, r1, r2;",
        "slct.ftz.u32.s32 r0, r1, r2, r3;",
        "slct.u32.u32 r0, r1, r2, r3;",
        "slct.u32.f64 r0, r1, r2, g3;",
        "slct.u32.f32 r0, r1, r2, d0;",
        "slct.u32 r0, r1, r2, r3;",
    ] {
        refused(instruction);
    }
    for instruction in [
        "mov.b128 q0, q1;",
        "mov.b128 {f0, f1, r1, r2}, q1;",
        "mov.b64 {h0, _, _, h3}, d0;",
        "mov.b32 {h0, h1}, 0x10002;",
        "mov.u32 r0, %laneid;",
        "mov.u16 h0, %tid.x;",
        "mov.u32 r0, WARP_SZ;",
        "mov.pred p0, %is_explicit_cluster;",
        "mov.u32 r0, %gridid;",
        "mov.u64 d0, %gridid;",
        "mov.b64 d0, {%tid.x, %tid.y};",
    ] {
        taken(instruction);
    }
}
