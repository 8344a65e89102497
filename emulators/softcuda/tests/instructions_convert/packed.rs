//! Conversions to and from packed pairs.

use super::oracle::{Round, Table, clamp, store};
use super::{check, random};
use half::f16;
use softcuda::machine::registers::LANES;
use softcuda::machine::snippet::Snippet;

fn f32_of(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// Runs `operation d, a, b;` on f32 sources and checks both halves.
fn pairs(operation: &str, destination: &str, half_bits: u32, inputs: &[u64], expected: impl Fn(u64) -> u64) {
    let text = format!(".reg .{destination} d; .reg .f32 a, b; {operation} d, a, b;");
    let mut snippet = Snippet::new(&text).unwrap_or_else(|error| panic!("{operation}: {error}"));
    for (index, chunk) in inputs.chunks(LANES).enumerate() {
        let upper: [u64; LANES] = std::array::from_fn(|lane| chunk.get(lane).copied().unwrap_or(0));
        // Any other of the inputs below.
        let lower: [u64; LANES] = std::array::from_fn(|lane| inputs[(index * 7919 + lane * 31) % inputs.len()]);
        snippet.set("a", &upper);
        snippet.set("b", &lower);
        snippet.run();
        let found = snippet.get("d");
        for lane in 0..LANES {
            let wanted = expected(upper[lane]) << half_bits | expected(lower[lane]);
            assert_eq!(found[lane], wanted, "{operation} {:#x} {:#x}: {:#x}", upper[lane], lower[lane], found[lane]);
        }
    }
}

/// f32 on, between and beside the values of a format, of both signs, infinities and NaN.
fn around(table: &Table, step: usize) -> Vec<u64> {
    let mut found = vec![0x7f80_0000, 0x7fc0_0000, 0xffc0_0001, 0xff80_0000, 0x7f7f_ffff, 0xff7f_ffff, 1, 0x8000_0001];
    for pair in table.values().windows(2).step_by(step) {
        for center in [pair[0] as f32, f64::midpoint(pair[0], pair[1]) as f32, pair[1] as f32] {
            for number in [center.next_down(), center, center.next_up()] {
                found.extend([u64::from(number.to_bits()), u64::from((-number).to_bits())]);
            }
        }
    }
    found
}

#[test]
fn two_f32_become_a_pair_of_16_bits() {
    for (to, table) in [("f16x2", Table::f16()), ("bf16x2", Table::bf16())] {
        let inputs = around(&table, 5);
        for (name, round) in [("rn", Round::Nearest), ("rz", Round::Zero)] {
            pairs(&format!("cvt.{name}.{to}.f32"), "b32", 16, &inputs, |bits| table.round(f32_of(bits), round));
            pairs(&format!("cvt.{name}.relu.satfinite.{to}.f32"), "b32", 16, &inputs, |bits| {
                let number = f32_of(bits);
                if number.is_nan() {
                    table.nan
                } else if number.is_sign_negative() {
                    0
                } else {
                    table.round(number, round).min(table.largest())
                }
            });
        }
    }
}

/// A number in a format of 8 bits, limited to the finite ones.
fn byte(table: &Table, number: f64, relu: bool) -> u64 {
    if number.is_nan() {
        return table.nan;
    }
    if relu && number.is_sign_negative() {
        return 0;
    }
    let bits = table.round(number, Round::Nearest);
    bits & table.sign | (bits & !table.sign).min(table.largest())
}

#[test]
fn f32_and_f16_become_pairs_of_8_bits() {
    for (to, table) in [("e4m3x2", Table::e4m3()), ("e5m2x2", Table::e5m2())] {
        let inputs = around(&table, 1);
        for (words, relu) in [("satfinite", false), ("satfinite.relu", true)] {
            pairs(&format!("cvt.rn.{words}.{to}.f32"), "b16", 8, &inputs, |bits| byte(&table, f32_of(bits), relu));
            // Every f16 above another one.
            let all: Vec<u64> =
                (0..1_u64 << 16).map(|upper| upper << 16 | upper.wrapping_mul(40_503) & 0xffff).collect();
            check(&format!("cvt.rn.{words}.{to}.f16x2"), "b16", "b32", &all, |bits| {
                let half = |bits: u64| byte(&table, f16::from_bits(bits as u16).to_f64(), relu);
                half(bits >> 16) << 8 | half(bits)
            });
        }
    }
    // The largest numbers of the two formats.
    let table = Table::e4m3();
    assert_eq!((byte(&table, 448.0, false), byte(&table, 1e9, false), table.values()[0x7e]), (0x7e, 0x7e, 448.0));
    let table = Table::e5m2();
    assert_eq!((byte(&table, 1e9, false), table.values()[0x7b]), (0x7b, 57_344.0));
}

#[test]
fn pairs_of_8_bits_become_f16() {
    let all: Vec<u64> = (0..1 << 16).collect();
    for (from, table) in [("e4m3x2", Table::e4m3()), ("e5m2x2", Table::e5m2())] {
        for (words, relu) in [("rn", false), ("rn.relu", true)] {
            check(&format!("cvt.{words}.f16x2.{from}"), "b32", "b16", &all, |bits| {
                let half = |bits: u64| {
                    let magnitude = bits & 0x7f;
                    let infinite = from == "e5m2x2" && magnitude == 0x7c;
                    if magnitude > table.largest() && !infinite {
                        return 0x7fff;
                    }
                    let number = if infinite { f64::INFINITY } else { table.values()[magnitude as usize] };
                    let sign = bits & 0x80;
                    if relu && sign != 0 { 0 } else { sign << 8 | u64::from(f16::from_f64(number).to_bits()) }
                };
                half(bits >> 8 & 0xff) << 16 | half(bits & 0xff)
            });
        }
    }
}

#[test]
fn integers_are_packed() {
    let widths =
        [("u2", 2, false), ("s2", 2, true), ("u4", 4, false), ("s4", 4, true), ("u8", 8, false), ("s8", 8, true)];
    let wide = [("u16", 16, false), ("s16", 16, true)];
    let mut values: Vec<u64> = [1, 2, 4, 8, 16, 128, 256, 32_768, 65_536, 0x8000_0000, 0xffff_ffff, 0].to_vec();
    values.extend(values.clone().iter().map(|value| value.wrapping_sub(1) & 0xffff_ffff));
    values.extend(values.clone().iter().map(|value| value.wrapping_neg() & 0xffff_ffff));
    values.extend(random(200).map(|bits| bits >> 32 >> (bits % 32)));
    for (to, bits, signed) in widths.into_iter().chain(wide) {
        let (words, operands) = if bits < 16 { (".b32", "d, a, b, c") } else { ("", "d, a, b") };
        let text = format!(".reg .b32 d, a, b, c; cvt.pack.sat.{to}.s32{words} {operands};");
        let mut snippet = Snippet::new(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        for (index, chunk) in values.chunks(LANES).enumerate() {
            let a: [u64; LANES] = std::array::from_fn(|lane| chunk.get(lane).copied().unwrap_or(3));
            let b: [u64; LANES] = std::array::from_fn(|lane| values[(index * 31 + lane * 7) % values.len()]);
            let c: [u64; LANES] = std::array::from_fn(|lane| values[(index * 17 + lane * 5) % values.len()]);
            for (name, lanes) in [("a", &a), ("b", &b), ("c", &c)] {
                snippet.set(name, lanes);
            }
            snippet.run();
            let limit = |value: u64| store(clamp(i128::from(value as u32 as i32), bits, signed), bits);
            let found = snippet.get("d");
            for lane in 0..LANES {
                let above = if bits < 16 { c[lane] << (2 * bits) & 0xffff_ffff } else { 0 };
                assert_eq!(found[lane], above | limit(a[lane]) << bits | limit(b[lane]), "{text} lane {lane}");
            }
        }
    }
}
