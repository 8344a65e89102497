//! Integers to integers, and to and from floating-point numbers.

use super::oracle::{DIRECTED, INTEGERS, INTEGRAL, Round, Table, clamp, read, store, to_integer};
use super::{check, random};
use half::{bf16, f16};

/// The declared widths of registers that take a type of so many bits. There are 8-bit registers, but none is a
/// destination of real kernels.
fn registers(bits: u32) -> impl Iterator<Item = (&'static str, u32)> {
    [("b8", 8), ("b16", 16), ("b32", 32), ("b64", 64)].into_iter().filter(move |register| register.1 >= bits)
}

/// Bits around the ends of all integer types, and any.
fn edges() -> Vec<u64> {
    let mut found: Vec<u64> = vec![0, 1, u64::MAX, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
    for bits in [7, 8, 15, 16, 31, 32, 63] {
        let end = 1_u64 << bits;
        found.extend([end - 1, end, end + 1, end.wrapping_neg(), end.wrapping_neg() - 1, end.wrapping_neg() + 1]);
    }
    found.extend(random(200));
    found
}

#[test]
fn integers_are_extended_and_cut() {
    for (to, to_bits, to_signed) in INTEGERS {
        for (from, from_bits, from_signed) in INTEGERS {
            for (destination, register) in registers(to_bits) {
                for (source, given) in registers(from_bits) {
                    let inputs: Vec<u64> = edges().iter().map(|bits| store(i128::from(*bits), given)).collect();
                    check(&format!("cvt.{to}.{from}"), destination, source, &inputs, |bits| {
                        let value = read(bits, from_bits, from_signed);
                        store(read(store(value, to_bits), to_bits, to_signed), register)
                    });
                }
            }
        }
    }
}

#[test]
fn integers_are_limited() {
    for (to, to_bits, to_signed) in INTEGERS {
        for (from, from_bits, from_signed) in INTEGERS {
            let ends = [
                read(1 << (from_bits - 1), from_bits, from_signed),
                read((1 << (from_bits - 1)) - 1, from_bits, from_signed),
            ];
            let all = [ends[0], ends[1], if from_signed { ends[0] } else { (1_i128 << from_bits) - 1 }];
            if all.iter().all(|value| clamp(*value, to_bits, to_signed) == *value) && (to_signed || !from_signed) {
                continue; // The manual has no `.sat` where nothing can be too large.
            }
            for (destination, register) in registers(to_bits) {
                let source = format!("b{from_bits}");
                let inputs: Vec<u64> = edges().iter().map(|bits| store(i128::from(*bits), from_bits)).collect();
                check(&format!("cvt.sat.{to}.{from}"), destination, &source, &inputs, |bits| {
                    store(clamp(read(bits, from_bits, from_signed), to_bits, to_signed), register)
                });
            }
        }
    }
}

/// The bits in a register of an integer result.
fn integer_of(number: f64, round: Round, (bits, signed): (u32, bool), register: u32, from_f64: bool) -> u64 {
    if number.is_nan() {
        // The manual: zero, unless the source is f64 or the result has 64 bits; then the highest bit alone.
        let highest = if from_f64 || bits == 64 { 1_i128 << (bits - 1) } else { 0 };
        return store(if signed { -highest } else { highest }, register);
    }
    store(clamp(to_integer(number, round), bits, signed), register)
}

#[test]
fn every_16_bit_number_becomes_every_integer() {
    let all: Vec<u64> = (0..1 << 16).collect();
    for (to, bits, signed) in INTEGERS {
        for (name, round) in INTEGRAL {
            for (destination, register) in registers(bits.max(16)) {
                check(&format!("cvt.{name}.{to}.f16"), destination, "b16", &all, |input| {
                    integer_of(f16::from_bits(input as u16).to_f64(), round, (bits, signed), register, false)
                });
                check(&format!("cvt.{name}.{to}.bf16"), destination, "b16", &all, |input| {
                    integer_of(bf16::from_bits(input as u16).to_f64(), round, (bits, signed), register, false)
                });
            }
        }
    }
}

#[test]
fn f32_and_f64_become_integers_around_the_ends_of_the_types() {
    let mut numbers =
        vec![0.0, -0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 1e30, 1e300, f64::INFINITY, f64::NAN, 1e-40, 123_456.5];
    for bits in [7, 8, 15, 16, 31, 32, 63, 64] {
        let end = 2.0_f64.powi(bits);
        for near in [end, end - 1.0, end + 1.0, end - 0.5, end + 0.5, end - 1.5, end - 0.25] {
            numbers.extend([near, near.next_down(), near.next_up()]);
            numbers.extend([f64::from((near as f32).next_down()), f64::from((near as f32).next_up())]);
        }
    }
    numbers.extend(random(1000).map(|bits| f64::from(f32::from_bits(bits as u32))));
    numbers.extend(random(1000).map(|bits| (bits as f64) / 2.0_f64.powi((bits % 64) as i32)));
    let longs: Vec<u64> = numbers.iter().flat_map(|number| [number.to_bits(), (-number).to_bits()]).collect();
    let words: Vec<u64> = longs.iter().map(|bits| u64::from((f64::from_bits(*bits) as f32).to_bits())).collect();
    for (to, bits, signed) in INTEGERS {
        for (name, round) in INTEGRAL {
            for (destination, register) in registers(bits.max(16)) {
                let f32_of = |input: u64| f64::from(f32::from_bits(input as u32));
                check(&format!("cvt.{name}.{to}.f32"), destination, "f32", &words, |input| {
                    integer_of(f32_of(input), round, (bits, signed), register, false)
                });
                check(&format!("cvt.{name}.ftz.{to}.f32"), destination, "f32", &words, |input| {
                    let flushed = if input & 0x7f80_0000 == 0 { 0 } else { input };
                    integer_of(f32_of(flushed), round, (bits, signed), register, false)
                });
                check(&format!("cvt.{name}.sat.{to}.f64"), destination, "f64", &longs, |input| {
                    integer_of(f64::from_bits(input), round, (bits, signed), register, true)
                });
            }
        }
    }
}

/// An integer in a format of `precision` bits whose largest finite number is `largest`; `pack` encodes a number that
/// the format has.
fn rounded(value: i128, precision: u32, largest: i128, round: Round, pack: impl Fn(i128) -> u64, infinity: u64) -> u64 {
    let negative = value < 0;
    let magnitude = value.abs();
    let length = 128 - magnitude.leading_zeros();
    let unit = 1_i128 << length.saturating_sub(precision);
    let (low, rest) = (magnitude / unit * unit, magnitude % unit);
    let outwards = match round {
        Round::Zero => false,
        Round::Down => negative,
        Round::Up => !negative,
        _ => true,
    };
    let up = match round {
        Round::Nearest => 2 * rest > unit || 2 * rest == unit && low / unit % 2 == 1,
        _ => outwards && rest > 0,
    };
    let result = low + if up { unit } else { 0 };
    let sign = |bits: u64| if negative { bits | (infinity + 1).next_power_of_two() } else { bits };
    if result > largest {
        return sign(if outwards { infinity } else { pack(largest) });
    }
    sign(pack(result))
}

#[test]
fn integers_become_floating_point_numbers() {
    let mut values = edges();
    for precision in [8, 11, 24, 53] {
        for length in precision..64 {
            let unit = 1_u64 << (length - precision);
            for base in [1_u64 << length, (1_u64 << length) + unit, (1 << length) - unit, (1 << length) + 2 * unit] {
                let near = [
                    base,
                    base + unit / 2,
                    (base + unit / 2).wrapping_sub(1),
                    base + unit / 2 + 1,
                    base.wrapping_sub(1),
                ];
                values.extend(near.iter().flat_map(|value| [*value, value.wrapping_neg()]));
            }
        }
    }
    values.extend(
        [65_503, 65_504, 65_505, 65_519, 65_520, 65_521, 65_535, 65_536]
            .iter()
            .flat_map(|value: &u64| [*value, value.wrapping_neg()]),
    );
    let short = |value: i128| u64::from(f16::from_f64(value as f64).to_bits());
    let brain = |value: i128| u64::from(bf16::from_f64(value as f64).to_bits());
    for (from, bits, signed) in INTEGERS {
        for (source, width) in registers(bits.max(16)) {
            let inputs: Vec<u64> = values.iter().map(|value| store(i128::from(*value), width)).collect();
            for (name, round) in DIRECTED {
                let value = |input: u64| read(input, bits, signed);
                check(&format!("cvt.{name}.f16.{from}"), "b16", source, &inputs, |input| {
                    rounded(value(input), 11, 65_504, round, short, 0x7c00)
                });
                check(&format!("cvt.{name}.bf16.{from}"), "b16", source, &inputs, |input| {
                    rounded(value(input), 8, i128::MAX, round, brain, 0x7f80)
                });
                check(&format!("cvt.{name}.f32.{from}"), "f32", source, &inputs, |input| {
                    // The value is one that f32 has, so that the cast is exact.
                    rounded(
                        value(input),
                        24,
                        i128::MAX,
                        round,
                        |value| u64::from((value as f32).to_bits()),
                        0x7f80_0000,
                    )
                });
                check(&format!("cvt.{name}.f64.{from}"), "f64", source, &inputs, |input| {
                    rounded(value(input), 53, i128::MAX, round, |value| (value as f64).to_bits(), 0x7ff0 << 48)
                });
            }
        }
    }
}

#[test]
fn integers_that_f16_does_not_have_go_where_its_table_says() {
    // The same through the table of values, for the integers around the largest f16.
    let table = Table::f16();
    let inputs: Vec<u64> = (60_000..70_000).collect();
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.f16.u32"), "b16", "u32", &inputs, |input| table.round(input as f64, round));
    }
}

#[test]
fn lanes_without_the_guard_keep_their_value() {
    use softcuda::machine::snippet::Snippet;
    let text =
        ".reg .pred p; .reg .b32 d; .reg .b64 l; .reg .f32 s; @p cvt.rzi.s32.f32 d, s; @!p cvt.rzi.u64.f32 l, s;";
    let mut snippet = Snippet::new(text).unwrap();
    snippet.set("p", &std::array::from_fn(|lane| (lane % 3 == 0) as u64));
    snippet.set("d", &[7; 32]);
    snippet.set("l", &[u64::MAX; 32]);
    snippet.set("s", &[u64::from(5.75_f32.to_bits()); 32]);
    snippet.run();
    assert_eq!(snippet.get("d"), std::array::from_fn(|lane| if lane % 3 == 0 { 5 } else { 7 }));
    assert_eq!(snippet.get("l"), std::array::from_fn(|lane| if lane % 3 == 0 { u64::MAX } else { 5 }));
}
