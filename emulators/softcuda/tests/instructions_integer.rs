//! Integer arithmetic against the host's, in wider numbers.

mod samples;

use samples::{all, check, cut, number, refused, run, samples, taken, width};

const TYPES: [&str; 6] = ["u16", "s16", "u32", "s32", "u64", "s64"];

/// Checks a binary operation on all pairs of samples, as numbers of the type.
fn binary(name: &str, types: &[&str], reference: impl Fn(i128, i128, u32) -> i128) {
    for ty in types {
        let bits = width(ty);
        let rows = all(&[samples(bits, 12), samples(bits, 12)]);
        check(&format!("{name}.{ty}"), ty, &[ty, ty], &rows, |row| {
            cut(reference(number(row[0], ty), number(row[1], ty), bits), bits)
        });
    }
}

/// As [`binary`] with three sources.
fn ternary(name: &str, types: &[&str], reference: impl Fn(i128, i128, i128, u32) -> i128) {
    for ty in types {
        let bits = width(ty);
        let rows = all(&[samples(bits, 6), samples(bits, 6), samples(bits, 4)]);
        check(&format!("{name}.{ty}"), ty, &[ty, ty, ty], &rows, |row| {
            let [a, b, c] = [0, 1, 2].map(|place| number(row[place], ty));
            cut(reference(a, b, c, bits), bits)
        });
    }
}

fn unary(name: &str, types: &[&str], reference: impl Fn(i128) -> i128) {
    for ty in types {
        let rows = all(&[samples(width(ty), 100)]);
        check(&format!("{name}.{ty}"), ty, &[ty], &rows, |row| cut(reference(number(row[0], ty)), width(ty)));
    }
}

/// The product's bits from the width on; numbers below zero never exceed i128.
fn high(a: i128, b: i128, bits: u32) -> i128 {
    if a >= 0 && b >= 0 { ((a as u128 * b as u128) >> bits) as i128 } else { (a * b) >> bits }
}

fn saturate(value: i128) -> i128 {
    value.clamp(i128::from(i32::MIN), i128::from(i32::MAX))
}

#[test]
fn sums_and_differences_wrap() {
    binary("add", &TYPES, |a, b, _| a + b);
    binary("sub", &TYPES, |a, b, _| a - b);
}

#[test]
fn saturating_sums_stop_at_the_ends() {
    binary("add.sat", &["s32"], |a, b, _| saturate(a + b));
    binary("sub.sat", &["s32"], |a, b, _| saturate(a - b));
}

#[test]
fn products_by_halves() {
    binary("mul.lo", &TYPES, |a, b, _| a.wrapping_mul(b));
    binary("mul.hi", &TYPES, high);
}

#[test]
fn product_sums_by_halves() {
    ternary("mad.lo", &TYPES, |a, b, c, _| a.wrapping_mul(b).wrapping_add(c));
    ternary("mad.hi", &TYPES, |a, b, c, bits| high(a, b, bits) + c);
    ternary("mad.hi.sat", &["s32"], |a, b, c, bits| saturate(high(a, b, bits) + c));
}

#[test]
fn wide_products_lose_nothing() {
    for (ty, wide) in [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")] {
        let bits = width(ty);
        let rows = all(&[samples(bits, 8), samples(bits, 8)]);
        check(&format!("mul.wide.{ty}"), wide, &[ty, ty], &rows, |row| {
            cut(number(row[0], ty) * number(row[1], ty), 2 * bits)
        });
        let rows = all(&[samples(bits, 6), samples(bits, 6), samples(2 * bits, 6)]);
        check(&format!("mad.wide.{ty}"), wide, &[ty, ty, wide], &rows, |row| {
            cut(number(row[0], ty) * number(row[1], ty) + number(row[2], wide), 2 * bits)
        });
    }
}

/// The low 24 bits as a number.
fn low24(value: i128, signed: bool) -> i128 {
    let low = value & 0xff_ffff;
    if signed && low >= 1 << 23 { low - (1 << 24) } else { low }
}

#[test]
fn products_of_24_bits() {
    for (ty, signed) in [("u32", false), ("s32", true)] {
        let product = move |a, b| low24(a, signed) * low24(b, signed);
        binary("mul24.lo", &[ty], |a, b, _| product(a, b));
        binary("mul24.hi", &[ty], |a, b, _| product(a, b) >> 16);
        ternary("mad24.lo", &[ty], |a, b, c, _| product(a, b) + c);
        ternary("mad24.hi", &[ty], |a, b, c, _| (product(a, b) >> 16) + c);
    }
    ternary("mad24.hi.sat", &["s32"], |a, b, c, _| {
        let high = i128::from(((low24(a, true) * low24(b, true)) >> 16) as i32);
        saturate(high + c)
    });
}

#[test]
fn sums_of_absolute_differences() {
    ternary("sad", &TYPES, |a, b, c, _| (a - b).abs() + c);
}

/// The manual leaves division by zero open; the code that NVIDIA's compiler makes for sm_90 gives all ones for both.
#[test]
fn quotients_round_towards_zero_and_division_by_zero_gives_ones() {
    binary("div", &TYPES, |a, b, _| if b == 0 { -1 } else { a / b });
    binary("rem", &TYPES, |a, b, _| if b == 0 { -1 } else { a % b });
}

#[test]
fn signs() {
    let signed = ["s16", "s32", "s64"];
    unary("abs", &signed, i128::abs);
    unary("neg", &signed, |a| -a);
}

#[test]
fn extremes() {
    binary("min", &TYPES, |a, b, _| a.min(b));
    binary("max", &TYPES, |a, b, _| a.max(b));
    binary("min.relu", &["s32"], |a, b, _| a.min(b).max(0));
    binary("max.relu", &["s32"], |a, b, _| a.max(b).max(0));
}

#[test]
fn packed_numbers_do_not_touch_each_other() {
    let halves = samples(16, 4);
    let mut words: Vec<u64> = all(&[halves.clone(), halves]).iter().map(|row| row[0] << 16 | row[1]).collect();
    words.truncate(160);
    let rows = all(&[words.clone(), words]);
    let both = |name: &str, ty: &str, reference: &dyn Fn(i128, i128) -> i128| {
        let one = ty.trim_end_matches("x2");
        check(&format!("{name}.{ty}"), "b32", &["b32", "b32"], &rows, |row| {
            let half = |shift: u32| {
                cut(reference(number(row[0] >> shift & 0xffff, one), number(row[1] >> shift & 0xffff, one)), 16)
            };
            half(16) << 16 | half(0)
        });
    };
    for ty in ["u16x2", "s16x2"] {
        both("add", ty, &|a, b| a + b);
        both("min", ty, &|a, b| a.min(b));
        both("max", ty, &|a, b| a.max(b));
    }
    both("min.relu", "s16x2", &|a, b| a.min(b).max(0));
    both("max.relu", "s16x2", &|a, b| a.max(b).max(0));
}

/// `first` sets the flag or not, then `opcode` runs; both read the registers of this type.
fn with_flag(
    opcode: &str,
    ty: &str,
    sources: usize,
    subtract: bool,
    reference: impl Fn(&[i128], i128) -> (i128, bool),
) {
    let bits = width(ty);
    let names = ["%a", "%b", "%c"];
    let flag = if subtract { "sub.cc.u32 %x, 0, %f;" } else { "add.cc.u32 %x, %f, 0xffffffff;" };
    let read = if subtract { "subc.u32 %y, 0, 0;" } else { "addc.u32 %y, 0, 0;" };
    let text = format!(
        ".reg .u32 %f; .reg .u32 %x; .reg .u32 %y; .reg .{ty} %d; .reg .{ty} %a; .reg .{ty} %b; .reg .{ty} %c; \
         {flag} {opcode}.{ty} %d, {}; {read}",
        names[..sources].join(", ")
    );
    let values = samples(bits, 4);
    let mut columns = vec![values; sources];
    columns.resize(3, vec![0]);
    columns.push(vec![0, 1]);
    let rows = all(&columns);
    for (row, found) in rows.iter().zip(run(&text, &["%a", "%b", "%c", "%f"], &rows, &["%d", "%y"])) {
        let arguments: Vec<i128> = row[..3].iter().map(|value| number(*value, ty)).collect();
        let flag_in = i128::from(row[3]);
        let (value, flag_out) = reference(&arguments, flag_in);
        let flag_out = if opcode.contains(".cc") { flag_out } else { flag_in == 1 };
        let expected = if subtract { cut(-i128::from(flag_out), 32) } else { u64::from(flag_out) };
        assert_eq!(found, [cut(value, bits), expected], "{opcode}.{ty} of {row:x?}");
    }
}

#[test]
fn the_carry_flag_is_set_by_cc_and_read_by_the_c_forms() {
    for ty in ["u32", "s32", "u64", "s64"] {
        let bits = width(ty);
        let modulus = 1i128 << bits;
        let unsigned = move |value: i128| value.rem_euclid(modulus);
        let carried = move |first: i128, second: i128, carry: i128| {
            let sum = unsigned(first) + unsigned(second) + carry;
            (sum, sum >= modulus)
        };
        for (opcode, reads) in [("add.cc", 0), ("addc", 1), ("addc.cc", 1)] {
            with_flag(opcode, ty, 2, false, |v, flag| carried(v[0], v[1], flag * reads));
        }
        for (opcode, reads) in [("sub.cc", 0), ("subc", 1), ("subc.cc", 1)] {
            with_flag(opcode, ty, 2, true, |v, flag| {
                let difference = unsigned(v[0]) - unsigned(v[1]) - flag * reads;
                (difference, difference < 0)
            });
        }
        for (opcode, reads) in [("mad.lo.cc", 0), ("madc.lo", 1), ("madc.lo.cc", 1)] {
            with_flag(opcode, ty, 3, false, |v, flag| carried(v[0].wrapping_mul(v[1]), v[2], flag * reads));
        }
        for (opcode, reads) in [("mad.hi.cc", 0), ("madc.hi", 1), ("madc.hi.cc", 1)] {
            with_flag(opcode, ty, 3, false, |v, flag| carried(high(v[0], v[1], bits), v[2], flag * reads));
        }
    }
}

#[test]
fn a_product_of_128_bits_from_words() {
    // As compilers write it: four partial products and two chains of carries.
    let text = ".reg .b32 %a<2>; .reg .b32 %b<2>; .reg .b32 %d<4>; \
        mul.lo.u32 %d0, %a0, %b0; mul.hi.u32 %d1, %a0, %b0; \
        mad.lo.cc.u32 %d1, %a0, %b1, %d1; madc.hi.u32 %d2, %a0, %b1, 0; \
        mad.lo.cc.u32 %d1, %a1, %b0, %d1; madc.hi.cc.u32 %d2, %a1, %b0, %d2; addc.u32 %d3, 0, 0; \
        mad.lo.cc.u32 %d2, %a1, %b1, %d2; madc.hi.u32 %d3, %a1, %b1, %d3;";
    let rows: Vec<Vec<u64>> = all(&[samples(64, 20), samples(64, 20)]);
    let words: Vec<Vec<u64>> =
        rows.iter().map(|row| vec![row[0] & 0xffff_ffff, row[0] >> 32, row[1] & 0xffff_ffff, row[1] >> 32]).collect();
    let found = run(text, &["%a0", "%a1", "%b0", "%b1"], &words, &["%d0", "%d1", "%d2", "%d3"]);
    for (row, found) in rows.iter().zip(found) {
        let product = u128::from(row[0]) * u128::from(row[1]);
        let words: Vec<u64> = (0..4).map(|word| (product >> (32 * word)) as u64 & 0xffff_ffff).collect();
        assert_eq!(found, words, "{row:x?}");
    }
}

#[test]
fn lanes_that_a_guard_leaves_out_keep_registers_and_flag() {
    let text = ".reg .pred p; .reg .u32 %a; .reg .u32 %d; .reg .u32 %c; .reg .u64 %l; .reg .u64 %m; \
        add.cc.u32 %c, %a, 0; @p add.cc.u32 %d, %a, %a; @!p add.u64 %l, %m, 1; addc.u32 %c, 0, 0;";
    let rows: Vec<Vec<u64>> = (0..32).map(|lane| vec![lane % 3 % 2, 0x8000_0000 + lane, 7, 1000 + lane]).collect();
    let found = run(text, &["p", "%a", "%d", "%m"], &rows, &["%d", "%l", "%c"]);
    for (row, found) in rows.iter().zip(found) {
        let expected = match row[0] {
            1 => [(2 * row[1]) & 0xffff_ffff, 0, 1],
            _ => [7, row[3] + 1, 0],
        };
        assert_eq!(found, expected, "{row:x?}");
    }
}

#[test]
fn scalar_products_of_small_numbers() {
    let words: Vec<u64> = samples(32, 16).into_iter().chain([0x7f80_ff01, 0x8080_8080, 0x7fff_8000]).collect();
    let rows = all(&[words.clone(), words, samples(32, 2)]);
    let part = |word: u64, bits: u32, place: u32, signed: bool| {
        let value = (word >> (bits * place) & ((1 << bits) - 1)) as i128;
        if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
    };
    for a_type in ["u32", "s32"] {
        for b_type in ["u32", "s32"] {
            let [a_signed, b_signed] = [a_type, b_type].map(|ty| ty == "s32");
            check(&format!("dp4a.{a_type}.{b_type}"), "b32", &["b32"; 3], &rows, |row| {
                let products = (0..4).map(|place| part(row[0], 8, place, a_signed) * part(row[1], 8, place, b_signed));
                cut(products.sum::<i128>() + i128::from(row[2]), 32)
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{mode}.{a_type}.{b_type}"), "b32", &["b32"; 3], &rows, |row| {
                    let products = (0..2)
                        .map(|place| part(row[0], 16, place, a_signed) * part(row[1], 8, first + place, b_signed));
                    cut(products.sum::<i128>() + i128::from(row[2]), 32)
                });
            }
        }
    }
}

#[test]
fn immediates_are_cut_to_the_type() {
    let rows = all(&[samples(16, 20)]);
    let found = run(".reg .s16 %a; .reg .s16 %d; add.s16 %d, %a, -3;", &["%a"], &rows, &["%d"]);
    for (row, found) in rows.iter().zip(found) {
        assert_eq!(found[0], cut(i128::from(row[0]) - 3, 16));
    }
    let found = run(".reg .s64 %a; .reg .s64 %d; mad.lo.s64 %d, %a, -2, 5;", &["%a"], &rows, &["%d"]);
    for (row, found) in rows.iter().zip(found) {
        assert_eq!(found[0], cut(5 - 2 * i128::from(row[0]), 64));
    }
}

/// What the assembler of CUDA 13.0 refuses too.
#[test]
fn what_the_manual_does_not_have_is_refused() {
    for instruction in [
        "add.sat.u32 r0, r1, r2;",
        "add.cc.u16 h0, h1, h2;",
        "add.sat.cc.s32 r0, r1, r2;",
        "add.sat.s16 h0, h1, h2;",
        "add.sat.s16x2 r0, r1, r2;",
        "add.b32 r0, r1, r2;",
        "add.u8 c0, c1, c2;",
        "add.wide.u32 r0, r1, r2;",
        "sub.u16x2 r0, r1, r2;",
        "mul.u32 r0, r1, r2;",
        "mul.wide.u64 q0, d1, d2;",
        "mul.lo.hi.u32 r0, r1, r2;",
        "mad.lo.sat.s32 r0, r1, r2, r3;",
        "mad.hi.sat.u32 r0, r1, r2, r3;",
        "mad.wide.cc.u32 d0, r1, r2, d3;",
        "mad.wide.u16 r0, h1, h2, h3;",
        "mad24.lo.sat.s32 r0, r1, r2, r3;",
        "mul24.u32 r0, r1, r2;",
        "abs.u32 r0, r1;",
        "neg.u32 r0, r1;",
        "abs.s16x2 r0, r1;",
        "min.relu.s16 h0, h1, h2;",
        "min.relu.u32 r0, r1, r2;",
        "min.relu.s64 d0, d1, d2;",
        "div.sat.s32 r0, r1, r2;",
        "rem.b32 r0, r1, r2;",
        "dp4a.u32.u64 r0, r1, r2, r3;",
        "dp4a.u32 r0, r1, r2, r3;",
        "dp4a.lo.u32.u32 r0, r1, r2, r3;",
        "dp2a.s32.u32 r0, r1, r2, r3;",
        "add.u32 r0, r1, d2;",
        "add.u32 r0, r1, h2;",
        "add.u32 h0, r1, r2;",
        "add.u16 h0, h1, r2;",
        "add.u64 d0, d1, r2;",
        "add.s32 r0, f1, r2;",
        "add.s32 f0, r1, r2;",
        "add.s32 r0, r1, 0f3f800000;",
        "add.s32 r0, r1, p0;",
        "add.s32 p0, r1, r2;",
        "add.s32 r0, r1;",
        "add.s32 r0, r1, r2, r3;",
        "add.s32 r0, r1, nothing;",
        "add r0, r1, r2;",
    ] {
        refused(instruction);
    }
    for instruction in
        ["max.s16x2.relu r0, r1, r2;", "add.s32 u0, u1, r2;", "mad.lo.cc.u64 d0, d1, d2, d3;", "add.s32 _, r1, r2;"]
    {
        taken(instruction);
    }
}
