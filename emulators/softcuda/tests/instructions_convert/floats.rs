//! Floating-point types to each other.

use super::oracle::{DIRECTED, Round, Table, to_f32};
use super::{check, random, singles};
use half::{bf16, f16};

/// f32 around every value of a format: the value, the middle to the next one, and their neighbours, of both signs;
/// every `step`-th value.
fn around(table: &Table, step: usize) -> Vec<u64> {
    let mut found = Vec::new();
    let special = [0x7f80_0000_u32, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 0x7f7f_ffff, 1, 0x007f_ffff, 0x0080_0000, 0];
    found.extend(special.iter().flat_map(|bits| [u64::from(*bits), u64::from(bits | 1 << 31)]));
    let values = table.values();
    let few = values.len() / 64;
    for index in (0..values.len() - 1).filter(|index| index % step == 0 || *index < few || index + few > values.len()) {
        let middle = f64::midpoint(values[index], values[index + 1]) as f32;
        let value = values[index] as f32;
        for center in [value, middle] {
            for number in [center.next_down(), center, center.next_up()] {
                found.extend(singles(&[number, -number]));
            }
        }
    }
    found
}

fn f32_of(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

#[test]
fn every_f16_becomes_wider_exactly() {
    let all: Vec<u64> = (0..1 << 16).collect();
    let number = |bits: u64| f16::from_bits(bits as u16);
    check("cvt.f32.f16", "f32", "b16", &all, |bits| {
        if number(bits).is_nan() { 0x7fff_ffff } else { u64::from(number(bits).to_f32().to_bits()) }
    });
    // The subnormal numbers of f16 are normal in f32: nothing is flushed.
    check("cvt.ftz.f32.f16", "f32", "f16", &all, |bits| {
        if number(bits).is_nan() { 0x7fff_ffff } else { u64::from(number(bits).to_f32().to_bits()) }
    });
    let finite: Vec<u64> = all.iter().copied().filter(|bits| !number(*bits).is_nan()).collect();
    check("cvt.f64.f16", "f64", "b16", &finite, |bits| number(bits).to_f64().to_bits());
    check("cvt.f16.f16", "b16", "b16", &all, |bits| bits);
}

#[test]
fn every_bf16_becomes_wider_exactly() {
    let all: Vec<u64> = (0..1 << 16).collect();
    let number = |bits: u64| bf16::from_bits(bits as u16);
    // The upper half of an f32, NaN included.
    check("cvt.f32.bf16", "f32", "b16", &all, |bits| bits << 16);
    check("cvt.rz.f32.bf16", "f32", "b16", &all, |bits| bits << 16);
    check(
        "cvt.ftz.f32.bf16",
        "f32",
        "b16",
        &all,
        |bits| if bits & 0x7f80 == 0 { (bits & 0x8000) << 16 } else { bits << 16 },
    );
    let finite: Vec<u64> = all.iter().copied().filter(|bits| !number(*bits).is_nan()).collect();
    check("cvt.f64.bf16", "f64", "b16", &finite, |bits| number(bits).to_f64().to_bits());
    check("cvt.bf16.bf16", "b16", "b16", &all, |bits| bits);
}

#[test]
fn every_16_bit_number_is_rounded_to_the_other_16_bit_type() {
    let all: Vec<u64> = (0..1 << 16).collect();
    let (short, brain) = (Table::f16(), Table::bf16());
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.bf16.f16"), "b16", "b16", &all, |bits| {
            brain.round(f16::from_bits(bits as u16).to_f64(), round)
        });
        check(&format!("cvt.{name}.f16.bf16"), "b16", "b16", &all, |bits| {
            short.round(bf16::from_bits(bits as u16).to_f64(), round)
        });
    }
    check("cvt.f16.bf16", "b16", "b16", &all, |bits| {
        short.round(bf16::from_bits(bits as u16).to_f64(), Round::Nearest)
    });
}

#[test]
fn f32_is_rounded_to_f16_around_every_value() {
    let table = Table::f16();
    let inputs = around(&table, 1);
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.f16.f32"), "b16", "f32", &inputs, |bits| table.round(f32_of(bits), round));
    }
}

#[test]
fn f32_is_rounded_to_bf16_around_every_value() {
    let table = Table::bf16();
    let inputs = around(&table, 1);
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.bf16.f32"), "b16", "f32", &inputs, |bits| table.round(f32_of(bits), round));
    }
}

#[test]
fn f32_is_rounded_to_tf32() {
    let table = Table::tf32();
    let inputs = around(&table, 7);
    for (name, round) in [("rna", Round::Away), ("rn", Round::Nearest), ("rz", Round::Zero)] {
        check(&format!("cvt.{name}.tf32.f32"), "b32", "f32", &inputs, |bits| table.round(f32_of(bits), round));
    }
}

/// f64 around the values and middles of a format that is given as f64.
fn around_in_f64(values: &[f64]) -> Vec<u64> {
    let mut found: Vec<u64> = [0, 1, 0x7ff0 << 48, 0x7ff8 << 48, (0x7ff0 << 48) | 1, 0x7fef_ffff_ffff_ffff, 1 << 52]
        .iter()
        .flat_map(|bits| [*bits, bits | 1 << 63])
        .collect();
    for pair in values.windows(2) {
        for center in [pair[0], f64::midpoint(pair[0], pair[1])] {
            for number in [center.next_down(), center, center.next_up()] {
                found.extend([number.to_bits(), (-number).to_bits()]);
            }
        }
    }
    found
}

#[test]
fn f64_is_rounded_once() {
    let (short, brain) = (Table::f16(), Table::bf16());
    let (to_short, to_brain) = (around_in_f64(short.values()), around_in_f64(brain.values()));
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.f16.f64"), "b16", "f64", &to_short, |bits| short.round(f64::from_bits(bits), round));
        check(&format!("cvt.{name}.bf16.f64"), "b16", "f64", &to_brain, |bits| {
            brain.round(f64::from_bits(bits), round)
        });
    }
}

#[test]
fn f64_is_rounded_to_f32() {
    // Pairs of f32 that follow each other: subnormal ones, around the powers of two, the largest, and any.
    let mut places: Vec<u32> = (0..64).chain(0x007f_ffe0..0x0080_0020).chain(0x7f7f_ffc0..0x7f7f_ffff).collect();
    places.extend((1..254).flat_map(|exponent| [(exponent << 23) - 1, exponent << 23, (exponent << 23) + 1]));
    places.extend(random(20_000).map(|bits| bits as u32 % 0x7f7f_ffff));
    let mut inputs = Vec::new();
    for place in places {
        inputs.extend(around_in_f64(&[f64::from(f32::from_bits(place)), f64::from(f32::from_bits(place + 1))]));
    }
    // From the largest f32 to the point where the nearest is infinity.
    let beyond = f64::from(f32::MAX) + 2.0_f64.powi(103);
    inputs.extend([beyond.next_down(), beyond, beyond.next_up(), -beyond, 1e300, -1e300].map(f64::to_bits));
    for (name, round) in DIRECTED {
        check(&format!("cvt.{name}.f32.f64"), "f32", "f64", &inputs, |bits| to_f32(f64::from_bits(bits), round));
    }
    check("cvt.rn.ftz.f32.f64", "f32", "f64", &inputs, |bits| {
        let result = to_f32(f64::from_bits(bits), Round::Nearest);
        if result & 0x7f80_0000 == 0 { result & 0x8000_0000 } else { result }
    });
}

#[test]
fn f32_becomes_f64_exactly() {
    let inputs: Vec<u64> = random(4096)
        .map(|bits| bits & 0xffff_ffff)
        .filter(|bits| !f32_of(*bits).is_nan())
        .chain([0, 1 << 31, 1, 0x807f_ffff, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff])
        .collect();
    check("cvt.f64.f32", "f64", "f32", &inputs, |bits| f32_of(bits).to_bits());
    check("cvt.ftz.f64.f32", "f64", "f32", &inputs, |bits| {
        if bits & 0x7f80_0000 == 0 { (bits >> 31) << 63 } else { f32_of(bits).to_bits() }
    });
}

#[test]
fn values_become_integral_in_every_type() {
    use super::oracle::{INTEGRAL, to_integer};
    let integral = |number: f64, round| {
        // Beyond 2^52 there are no fractions; below, the integer is exact. Zeros keep the sign of what they come from.
        let rounded = if number.abs() < 4.5e15 { to_integer(number, round) as f64 } else { number };
        rounded.abs().copysign(number)
    };
    let all: Vec<u64> = (0..1 << 16).collect();
    let halves = |sign: f32| (0..4000).map(move |quarter| sign * quarter as f32 / 4.0);
    let mut numbers: Vec<f32> = halves(1.0).chain(halves(-1.0)).collect();
    numbers.extend([
        8_388_607.5,
        8_388_608.0,
        4_194_303.75,
        1e30,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        -1e-40,
        f32::NAN,
    ]);
    numbers.extend(random(2000).map(|bits| f32::from_bits(bits as u32 >> 1)));
    let words = singles(&numbers);
    let longs: Vec<u64> =
        numbers.iter().filter(|number| !number.is_nan()).map(|number| f64::from(*number).to_bits()).collect();
    for (name, round) in INTEGRAL {
        check(&format!("cvt.{name}.f16.f16"), "b16", "b16", &all, |bits| {
            let number = f16::from_bits(bits as u16);
            if number.is_nan() { 0x7fff } else { u64::from(f16::from_f64(integral(number.to_f64(), round)).to_bits()) }
        });
        check(&format!("cvt.{name}.bf16.bf16"), "b16", "b16", &all, |bits| {
            let number = bf16::from_bits(bits as u16);
            if number.is_nan() { 0x7fff } else { u64::from(bf16::from_f64(integral(number.to_f64(), round)).to_bits()) }
        });
        check(&format!("cvt.{name}.f32.f32"), "f32", "f32", &words, |bits| {
            let number = f32_of(bits);
            if number.is_nan() { 0x7fff_ffff } else { u64::from((integral(number, round) as f32).to_bits()) }
        });
        check(&format!("cvt.{name}.ftz.f32.f32"), "f32", "f32", &words, |bits| {
            let flushed = if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits };
            let number = f32_of(flushed);
            if number.is_nan() { 0x7fff_ffff } else { u64::from((integral(number, round) as f32).to_bits()) }
        });
        check(&format!("cvt.{name}.f64.f64"), "f64", "f64", &longs, |bits| {
            integral(f64::from_bits(bits), round).to_bits()
        });
    }
}
