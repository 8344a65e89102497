//! `set` and `setp`: every comparison on every type, against the host's comparisons.

mod samples;

use half::{bf16, f16};
use samples::{all, number, refused, run, samples, taken, width};
use std::cmp::Ordering;

const INTEGERS: [&str; 9] = ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"];
const ORDERED: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
const UNSIGNED: [&str; 4] = ["lo", "ls", "hi", "hs"];
const WITH_NAN: [&str; 8] = ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

/// Whether the comparison holds for two values in this order; `None`: one of them is NaN.
fn holds(comparison: &str, order: Option<Ordering>) -> bool {
    let Some(order) = order else { return comparison == "nan" || comparison.ends_with('u') };
    match comparison.trim_end_matches('u') {
        "eq" => order.is_eq(),
        "ne" => order.is_ne(),
        "lt" | "lo" => order.is_lt(),
        // `ls` is lower or same, `hs` higher or same.
        "le" | "ls" => order.is_le(),
        "gt" | "hi" => order.is_gt(),
        "ge" | "hs" => order.is_ge(),
        "num" => true,
        _ => false,
    }
}

/// Comparisons that go with an integer type.
fn comparisons_of(ty: &str) -> Vec<&'static str> {
    match &ty[..1] {
        "b" => ORDERED[..2].to_vec(),
        "s" => ORDERED.to_vec(),
        _ => [&ORDERED[..], &UNSIGNED[..]].concat(),
    }
}

fn pairs_of(ty: &str) -> Vec<Vec<u64>> {
    let values = samples(width(ty), 6);
    all(&[values.clone(), values])
}

#[test]
fn integers_in_all_types() {
    for ty in INTEGERS {
        let rows = pairs_of(ty);
        for comparison in comparisons_of(ty) {
            let text = format!(
                ".reg .{ty} %a; .reg .{ty} %b; .reg .pred p<3>; .reg .u32 %d; \
                 setp.{comparison}.{ty} p0|p1, %a, %b; setp.{comparison}.{ty} p2, %a, %b; set.{comparison}.u32.{ty} %d, %a, %b;"
            );
            for (row, found) in rows.iter().zip(run(&text, &["%a", "%b"], &rows, &["p0", "p1", "p2", "%d"])) {
                let is = u64::from(holds(comparison, Some(number(row[0], ty).cmp(&number(row[1], ty)))));
                assert_eq!(found, [is, 1 - is, is, 0xffff_ffff * is], "{text} of {row:x?}");
            }
        }
    }
}

/// A floating-point type: its bits as a number, and with subnormal numbers flushed.
struct Float {
    name: &'static str,
    /// Bits of the fraction.
    fraction: u32,
    flushes: bool,
    value: fn(u64) -> f64,
}

const FLOATS: [Float; 4] = [
    Float { name: "f32", fraction: 23, flushes: true, value: |bits| f64::from(f32::from_bits(bits as u32)) },
    Float { name: "f64", fraction: 52, flushes: false, value: f64::from_bits },
    Float { name: "f16", fraction: 10, flushes: true, value: |bits| f16::from_bits(bits as u16).to_f64() },
    Float { name: "bf16", fraction: 7, flushes: false, value: |bits| bf16::from_bits(bits as u16).to_f64() },
];

impl Float {
    fn bits(&self) -> u32 {
        width(self.name)
    }

    /// Both zeros, infinities, NaNs, the ends of the subnormal and normal numbers, one, and some others.
    fn values(&self) -> Vec<u64> {
        let sign = 1u64 << (self.bits() - 1);
        let infinity = sign - (1 << self.fraction);
        let smallest = 1 << self.fraction;
        let one = (infinity >> 1) & !(smallest - 1);
        let magnitudes = [
            0,
            1,
            2,
            smallest / 2,
            smallest - 1,
            smallest,
            smallest + 1,
            one,
            one + 1,
            one - 1,
            infinity - 1,
            infinity,
            infinity + 1,
            infinity + smallest / 2,
        ];
        let mut values: Vec<u64> = magnitudes.iter().flat_map(|bits| [*bits, bits | sign]).collect();
        values.extend(samples(self.bits(), 6));
        values
    }

    fn order(&self, a: u64, b: u64, flush: bool) -> Option<Ordering> {
        let value = |bits: u64| {
            let exponent = bits >> self.fraction & ((1 << (self.bits() - 1 - self.fraction)) - 1);
            if flush && exponent == 0 { 0.0 } else { (self.value)(bits) }
        };
        value(a).partial_cmp(&value(b))
    }

    fn flushings(&self) -> Vec<&'static str> {
        if self.flushes { vec!["", ".ftz"] } else { vec![""] }
    }
}

#[test]
fn floating_point_numbers_with_nan_zeros_and_infinities() {
    for float in &FLOATS {
        let (ty, bits) = (float.name, float.bits());
        let rows = all(&[float.values(), float.values()]);
        for flush in float.flushings() {
            for comparison in ORDERED.iter().chain(&WITH_NAN) {
                let text = format!(
                    ".reg .b{bits} %a; .reg .b{bits} %b; .reg .pred p<3>; .reg .u32 %d; \
                     setp.{comparison}{flush}.{ty} p0|p1, %a, %b; setp.{comparison}{flush}.{ty} p2, %a, %b; \
                     set.{comparison}{flush}.u32.{ty} %d, %a, %b;"
                );
                for (row, found) in rows.iter().zip(run(&text, &["%a", "%b"], &rows, &["p0", "p1", "p2", "%d"])) {
                    let is = u64::from(holds(comparison, float.order(row[0], row[1], !flush.is_empty())));
                    assert_eq!(found, [is, 1 - is, is, 0xffff_ffff * is], "{text} of {row:x?}");
                }
            }
        }
    }
}

#[test]
fn packed_halves_have_an_outcome_each() {
    for float in &FLOATS[2..] {
        let ty = format!("{}x2", float.name);
        let one = if float.name == "f16" { 0x3c00 } else { 0x3f80 };
        let values = float.values();
        let count = values.len();
        // The low halves run through all pairs, the high halves through the same in another order.
        let rows: Vec<Vec<u64>> = (0..count * count)
            .map(|index| {
                let other = (index * 7 + 5) % (count * count);
                [index / count, index % count, other / count, other % count].map(|place| values[place]).to_vec()
            })
            .map(|row| vec![row[0] | row[2] << 16, row[1] | row[3] << 16])
            .collect();
        for flush in float.flushings() {
            for comparison in ORDERED.iter().chain(&WITH_NAN) {
                let text = format!(
                    ".reg .b32 %a; .reg .b32 %b; .reg .pred p; .reg .pred q; .reg .b32 %d; .reg .u32 %u; .reg .s32 %s; \
                     setp.{comparison}{flush}.{ty} p|q, %a, %b; set.{comparison}{flush}.{ty}.{ty} %d, %a, %b; \
                     set.{comparison}{flush}.u32.{ty} %u, %a, %b; set.{comparison}{flush}.s32.{ty} %s, %a, %b;"
                );
                // Results in bf16 have no form that flushes, and bf16 itself none at all.
                for (row, found) in rows.iter().zip(run(&text, &["%a", "%b"], &rows, &["p", "q", "%d", "%u", "%s"])) {
                    let is = |shift: u32| {
                        let order = float.order(row[0] >> shift & 0xffff, row[1] >> shift & 0xffff, !flush.is_empty());
                        u64::from(holds(comparison, order))
                    };
                    let (low, high) = (is(0), is(16));
                    let word = |value: u64| (low * value) | ((high * value) << 16);
                    assert_eq!(found, [low, high, word(one), word(0xffff), word(0xffff)], "{text} of {row:x?}");
                }
            }
        }
    }
}

#[test]
fn results_of_set_in_every_type() {
    for (result, sources, when_true) in [
        ("u32", &["b16", "u64", "s32", "f32", "f64", "f16", "bf16"][..], 0xffff_ffff),
        ("s32", &["b32", "s16", "f64", "f16", "bf16"][..], 0xffff_ffff),
        ("f32", &["b64", "u16", "s64", "f32", "f64"][..], 0x3f80_0000),
        ("f16", &["b16", "u32", "s64", "f16", "f32", "f64"][..], 0x3c00),
        ("bf16", &["b32", "u16", "s32", "bf16", "f32", "f64"][..], 0x3f80),
        ("u16", &["f16", "bf16"][..], 0xffff),
        ("s16", &["f16", "bf16"][..], 0xffff),
    ] {
        for ty in sources {
            let (bits, of_result) = (width(ty), width(result));
            let text =
                format!(".reg .b{bits} %a; .reg .b{bits} %b; .reg .b{of_result} %d; set.eq.{result}.{ty} %d, %a, %b;");
            // Every floating-point type reads 1 and 2 as numbers that are not equal.
            let rows = all(&[vec![0, 1, 2], vec![0, 1, 2]]);
            for (row, found) in rows.iter().zip(run(&text, &["%a", "%b"], &rows, &["%d"])) {
                let expected = if row[0] == row[1] { when_true } else { 0 };
                assert_eq!(found[0], expected, "{text} of {row:?}");
            }
        }
    }
}

fn connected(connective: &str, a: bool, b: bool) -> bool {
    match connective {
        "and" => a && b,
        "or" => a || b,
        _ => a != b,
    }
}

#[test]
fn outcomes_are_combined_with_a_predicate() {
    let rows = all(&[vec![0, 1], vec![0, 1], vec![0, 1]]);
    for connective in ["and", "or", "xor"] {
        for not in ["", "!"] {
            // The destination is the combined predicate too.
            let text = format!(
                ".reg .u32 %a; .reg .u32 %b; .reg .pred c; .reg .pred p<5>; .reg .f32 %f; .reg .b32 %h; \
                 setp.lt.{connective}.u32 p0|p1, %a, %b, {not}c; set.lt.{connective}.f32.u32 %f, %a, %b, {not}c; \
                 setp.lt.{connective}.f16x2 p2|p3, %a, %b, {not}c; set.lt.{connective}.f16x2.f16x2 %h, %a, %b, {not}c; \
                 setp.lt.{connective}.u32 _|p4, %a, %b, {not}c; setp.lt.{connective}.u32 c, %a, %b, {not}c;"
            );
            let names = ["p0", "p1", "%f", "p2", "p3", "%h", "p4", "c"];
            for (row, found) in rows.iter().zip(run(&text, &["%a", "%b", "c"], &rows, &names)) {
                let other = (row[2] == 1) == not.is_empty();
                let is = row[0] < row[1];
                let [yes, no] = [is, !is].map(|outcome| u64::from(connected(connective, outcome, other)));
                // The high halves are zero and zero, of which neither is less.
                let high = u64::from(connected(connective, false, other));
                let halves = (yes * 0x3c00) | (high * 0x3c00_0000);
                assert_eq!(found, [yes, no, yes * 0x3f80_0000, yes, high, halves, no, yes], "{text} of {row:?}");
            }
        }
    }
}

#[test]
fn immediates_on_either_side() {
    let rows = all(&[samples(32, 40)]);
    let text = ".reg .s32 %a; .reg .f32 %f; .reg .pred p<3>; setp.lt.s32 p0, %a, -5; setp.ge.s32 p1, 7, %a; \
        mov.b32 %f, %a; setp.gtu.f32 p2, %f, 0f3F800000;";
    for (row, found) in rows.iter().zip(run(text, &["%a"], &rows, &["p0", "p1", "p2"])) {
        let a = row[0] as u32 as i32;
        let f = f32::from_bits(row[0] as u32);
        let expected = [a < -5, 7 >= a, f > 1.0 || f.is_nan()].map(u64::from);
        assert_eq!(found, expected, "{a:x}");
    }
}

#[test]
fn guarded_comparisons_keep_the_other_lanes() {
    let rows = all(&[vec![0, 1], vec![0, 1], vec![3, 4], vec![3, 4]]);
    let text = ".reg .pred g; .reg .pred p; .reg .u32 %a; .reg .u32 %b; @g setp.eq.u32 p, %a, %b;";
    for (row, found) in rows.iter().zip(run(text, &["g", "p", "%a", "%b"], &rows, &["p"])) {
        assert_eq!(found[0], if row[0] == 1 { u64::from(row[2] == row[3]) } else { row[1] });
    }
}

#[test]
fn what_the_manual_does_not_have_is_refused() {
    for instruction in [
        "setp.lo.s32 p0, r1, r2;",
        "setp.lt.b32 p0, r1, r2;",
        "setp.lo.b32 p0, r1, r2;",
        "setp.equ.s32 p0, r1, r2;",
        "setp.nan.u32 p0, r1, r2;",
        "setp.lo.f32 p0, f1, f2;",
        "setp.eq.ftz.f64 p0, g1, g2;",
        "setp.eq.ftz.bf16 p0, h1, h2;",
        "setp.eq.ftz.s32 p0, r1, r2;",
        "setp.eq.u8 p0, c1, c2;",
        "setp.eq.pred p0, p1, p2;",
        "setp.s32 p0, r1, r2;",
        "setp.eq p0, r1, r2;",
        "setp.eq.ne.s32 p0, r1, r2;",
        "setp.eq.s32 p0, r1, d2;",
        "setp.eq.s32 p0, r1, f2;",
        "setp.eq.s64 p0, r1, r2;",
        "setp.eq.f16x2 p0, r1, r2;",
        "setp.eq.s32 r0, r1, r2;",
        "setp.eq.s32 p0, r1, r2, p1;",
        "setp.eq.and.s32 p0, r1, r2;",
        "setp.eq.nor.s32 p0, r1, r2, p1;",
        "set.eq.u16.u32 h0, r1, r2;",
        "set.eq.f16.bf16 h0, h1, h2;",
        "set.eq.f32.f16 f0, h1, h2;",
        "set.eq.bf16x2.f16x2 r0, r1, r2;",
        "set.eq.f32.f16x2 f0, r1, r2;",
        "set.eq.ftz.bf16x2.bf16x2 r0, r1, r2;",
        "set.eq.ftz.bf16.f32 h0, f1, f2;",
        "set.eq.f64.f32 g0, f1, f2;",
        "set.eq.u64.f32 d0, f1, f2;",
        "set.eq.u32 r0, r1, r2;",
        "set.equ.u32.s32 r0, r1, r2;",
        "set.eq.u32.u32 p0, r1, r2;",
        "set.eq.u32.u32 h0, r1, r2;",
    ] {
        refused(instruction);
    }
    for instruction in [
        "setp.ftz.eq.f32 p0, f1, f2;",
        "setp.eq.f16x2 p0|_, r1, r2;",
        "setp.eq.u32 _, r1, r2;",
        "setp.eq.and.u32 p0, r1, r2, 1;",
        "set.eq.and.ftz.f16x2.f16x2 r0, r1, r2, p0;",
        "set.eq.ftz.f16.f32 h0, f1, f2;",
    ] {
        taken(instruction);
    }
}
