//! `.sat`, `.satfinite`, `.relu`, `.ftz`.

use super::oracle::{DIRECTED, Round, Table, to_f32};
use super::{check, random, singles};
use half::f16;

fn inputs() -> Vec<u64> {
    let mut numbers =
        vec![0.0, 1e-45, 1e-40, 0.25, 0.999_999_9, 1.0, 1.000_000_1, 2.0, 65_504.0, 65_519.0, 65_520.0, 65_536.0];
    numbers.extend([1e10, 3.38e38, 3.395e38, f32::MAX, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE]);
    numbers.extend(random(500).map(|bits| f32::from_bits(bits as u32 >> 1)));
    numbers.extend(random(500).map(|bits| bits as f32 / 2.0_f32.powi(63)));
    let negative: Vec<f32> = numbers.iter().map(|number| -number).collect();
    singles(&numbers).into_iter().chain(singles(&negative)).collect()
}

fn f32_of(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// The number limited to \[0, 1\]; NaN is 0, and so is -0.
fn unit(number: f64) -> f64 {
    if number > 0.0 { number.min(1.0) } else { 0.0 }
}

#[test]
fn sat_limits_to_zero_and_one() {
    let table = Table::f16();
    let words = inputs();
    check("cvt.sat.f32.f32", "f32", "f32", &words, |bits| u64::from((unit(f32_of(bits)) as f32).to_bits()));
    check("cvt.ftz.sat.f32.f32", "f32", "f32", &words, |bits| {
        let number = if bits & 0x7f80_0000 == 0 { 0.0 } else { unit(f32_of(bits)) };
        u64::from((number as f32).to_bits())
    });
    check("cvt.sat.f64.f32", "f64", "f32", &words, |bits| unit(f32_of(bits)).to_bits());
    check("cvt.rni.sat.f32.f32", "f32", "f32", &words, |bits| {
        u64::from((unit(f32_of(bits)).round_ties_even() as f32).to_bits())
    });
    let longs: Vec<u64> = words.iter().map(|bits| f32_of(*bits).to_bits()).collect();
    check("cvt.sat.f64.f64", "f64", "f64", &longs, |bits| unit(f64::from_bits(bits)).to_bits());
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.sat.f16.f32"), "b16", "f32", &words, |bits| table.round(unit(f32_of(bits)), round));
        check(&format!("cvt.{name}.sat.f32.f64"), "f32", "f64", &longs, |bits| {
            to_f32(unit(f64::from_bits(bits)), round)
        });
        check(&format!("cvt.{name}.sat.f16.f64"), "b16", "f64", &longs, |bits| {
            table.round(unit(f64::from_bits(bits)), round)
        });
        for (to, one) in [("f16", 0x3c00), ("f32", 0x3f80_0000), ("f64", 0x3ff0 << 48)] {
            let register = if to == "f16" { "b16" } else { to };
            let operation = format!("cvt.{name}.sat.{to}.s32");
            let values = [0, 1, 2, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
            check(&operation, register, "s32", &values, |bits| if (bits as u32 as i32) > 0 { one } else { 0 });
        }
    }
    let all: Vec<u64> = (0..1 << 16).collect();
    check("cvt.sat.f32.f16", "f32", "b16", &all, |bits| {
        u64::from((unit(f16::from_bits(bits as u16).to_f64()) as f32).to_bits())
    });
}

/// A result limited to the finite numbers and, if asked for, to the positive ones.
fn limited(table: &Table, number: f64, round: Round, finite: bool, relu: bool) -> u64 {
    let result = table.round(number, round);
    if number.is_nan() {
        return result;
    }
    if relu && number.is_sign_negative() {
        return 0;
    }
    if finite && result & !table.sign == table.infinity() { result & table.sign | table.largest() } else { result }
}

#[test]
fn satfinite_and_relu() {
    let words = inputs();
    let tables = [("f16", Table::f16(), "b16"), ("bf16", Table::bf16(), "b16"), ("tf32", Table::tf32(), "b32")];
    for (name, round) in [("rn", Round::Nearest), ("rz", Round::Zero)] {
        for (to, table, register) in &tables {
            for (words_of, finite, relu) in
                [("relu", false, true), ("satfinite", true, false), ("relu.satfinite", true, true)]
            {
                check(&format!("cvt.{name}.{words_of}.{to}.f32"), register, "f32", &words, |bits| {
                    limited(table, f32_of(bits), round, finite, relu)
                });
            }
        }
    }
    let table = &tables[2].1;
    check("cvt.rna.satfinite.tf32.f32", "b32", "f32", &words, |bits| {
        limited(table, f32_of(bits), Round::Away, true, false)
    });
}

#[test]
fn ftz_flushes_f32_inputs_and_results() {
    let flushed = |bits: u64| if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits };
    let words = inputs();
    let (short, brain) = (Table::f16(), Table::bf16());
    check("cvt.ftz.f32.f32", "f32", "f32", &words, flushed);
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.ftz.f16.f32"), "b16", "f32", &words, |bits| {
            short.round(f32_of(flushed(bits)), round)
        });
        check(&format!("cvt.{name}.ftz.bf16.f32"), "b16", "f32", &words, |bits| {
            brain.round(f32_of(flushed(bits)), round)
        });
        let longs: Vec<u64> = words.iter().map(|bits| (f32_of(*bits) / 3.0).to_bits()).collect();
        check(&format!("cvt.{name}.ftz.f32.f64"), "f32", "f64", &longs, |bits| {
            flushed(to_f32(f64::from_bits(bits), round))
        });
    }
}
