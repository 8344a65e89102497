//! The intrinsics of cuda_fp16.h and cuda_bf16.h, bit for bit against f64 arithmetic rounded once.

mod support;

use cudarc::driver::PushKernelArg;
use half::{bf16, f16};
use support::device::{Device, shape};
use support::random::Random;
use support::rounding::{BF16, Direction, F16, F32, Format, fused, round};

/// Rows of the kernels `half_pairs` and `bfloat_pairs`, in their order.
const ROWS: [&str; 12] =
    ["add", "sub", "mul", "fma", "max", "min", "neg", "abs", "fma relu", "greater", "add sat", "times three"];

/// What row `row` holds for one element, as f64; NaN for every NaN.
fn expected(row: &str, [a, b, c]: [f64; 3], format: Format) -> f64 {
    let nearest = |value| round(value, format, Direction::NearestEven);
    // The manual: of a number and a NaN the number, and +0 above -0.
    let greater = |a: f64, b: f64| if a == b && a == 0.0 { if a.is_sign_positive() { a } else { b } } else { a.max(b) };
    match row {
        "add" => nearest(fused(a, 1.0, b)),
        "sub" => nearest(fused(a, 1.0, -b)),
        "mul" => nearest(a * b),
        "fma" => nearest(fused(a, b, c)),
        "max" => greater(a, b),
        "min" => -greater(-a, -b),
        "neg" => -a,
        "abs" => a.abs(),
        // Clamps below zero; NaN stays.
        "fma relu" => {
            let value = nearest(fused(a, b, c));
            if value <= 0.0 { 0.0 } else { value }
        }
        "greater" => f64::from(u8::from(a > b)),
        // NaN becomes zero.
        "add sat" => {
            let value = nearest(fused(a, 1.0, b));
            if value > 0.0 { value.min(1.0) } else { 0.0 }
        }
        // Through f32: rounded there, then here.
        "times three" => nearest(round(a * 3.0, F32, Direction::NearestEven)),
        _ => unreachable!("{row}"),
    }
}

/// Three operands of 16 bits each; special values often.
fn operands(random: &mut Random, count: usize, special: &[u16]) -> [Vec<u16>; 3] {
    let mut one = || -> Vec<u16> {
        (0..count)
            .map(|_| {
                let bits = random.bits();
                if bits >> 60 < 3 { special[(bits >> 16) as usize % special.len()] } else { bits as u16 }
            })
            .collect()
    };
    [one(), one(), one()]
}

fn check(kernel: &str, format: Format, special: &[u16], decode: impl Fn(u16) -> f64) {
    let device = Device::new();
    let kernel = device.kernel("half_arithmetic", kernel);
    let pairs = 8192usize;
    let operands = operands(&mut Random::new(27), 2 * pairs, special);
    let pack = |values: &[u16]| -> Vec<u32> {
        values.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
    };
    let [a, b, c] = operands.each_ref().map(|values| device.upload(&pack(values)));
    let mut out = device.zeros::<u32>(ROWS.len() * pairs);
    let count = pairs as u32;
    device.run(&kernel, shape(32, 256), |arguments| {
        arguments.arg(&a).arg(&b).arg(&c).arg(&mut out).arg(&count);
    });
    let out = device.download(&out);
    for (row, name) in ROWS.iter().enumerate() {
        for index in 0..2 * pairs {
            let got = (out[row * pairs + index / 2] >> (index % 2 * 16)) as u16;
            let values = operands.each_ref().map(|values| decode(values[index]));
            let (got_value, expected) = (decode(got), expected(name, values, format));
            // The sign of a zero counts, except after relu and saturation, where the manual does not say.
            let same = got_value == expected
                && (expected != 0.0
                    || matches!(*name, "fma relu" | "add sat")
                    || got_value.is_sign_negative() == expected.is_sign_negative());
            assert!(
                same || (got_value.is_nan() && expected.is_nan()),
                "{name} {values:?}: {got_value} ({got:#06x}), not {expected}"
            );
        }
    }
}

#[test]
fn halves() {
    // Zeros, ones, infinities, NaN, the greatest, the least normal, subnormals.
    let special = [0, 0x8000, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0x7bff, 0xfbff, 0x0400, 0x8400, 0x0001, 0x83ff];
    check("half_pairs", F16, &special, |bits| f16::from_bits(bits).to_f64());
}

#[test]
fn bfloats() {
    let special = [0, 0x8000, 0x3f80, 0xbf80, 0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0xff7f, 0x0080, 0x8080, 0x0001, 0x807f];
    check("bfloat_pairs", BF16, &special, |bits| bf16::from_bits(bits).to_f64());
}

#[test]
fn dot_product_and_atomic_pairs() {
    let device = Device::new();
    let kernel = device.kernel("half_arithmetic", "half_dot");
    let mut random = Random::new(28);
    // Integers up to 15: exact in f16, and their products' sums in f32.
    let mut integers =
        || -> Vec<f16> { random.integers(1000, -15, 15).iter().map(|&value| f16::from_f32(value as f32)).collect() };
    let (a, b) = (integers(), integers());
    let exact: f64 = a.iter().zip(&b).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
    let (a, b) = (device.upload(&a), device.upload(&b));
    let mut out = device.zeros::<f32>(1);
    let mut pair_sum = device.zeros::<f16>(2);
    let mut bfloat_sum = device.zeros::<bf16>(2);
    let (pairs, threads) = (500u32, 96u32);
    device.run(&kernel, shape(1, threads), |arguments| {
        arguments.arg(&a).arg(&b).arg(&mut out).arg(&mut pair_sum).arg(&mut bfloat_sum).arg(&pairs);
    });
    assert_eq!(f64::from(device.download(&out)[0]), exact);
    // Up to 192 by steps of one and two: exact in both types.
    assert_eq!(device.download(&pair_sum), [f16::from_f32(threads as f32), f16::from_f32(2.0 * threads as f32)]);
    assert_eq!(device.download(&bfloat_sum), [bf16::from_f32(threads as f32), bf16::from_f32(2.0 * threads as f32)]);
}

#[test]
fn conversions_in_every_direction() {
    let device = Device::new();
    let kernel = device.kernel("half_arithmetic", "conversions");
    let mut random = Random::new(29);
    let mut values: Vec<f32> = (0..4096).map(|_| f32::from_bits(random.bits() as u32)).collect();
    // Where the narrow types and the integers end, and between.
    values.extend((0..4096).map(|_| (random.real(-1.0, 1.0) * 2f64.powi(random.integer(-30, 34))) as f32));
    values.extend([
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        65519.996,
        65520.0,
    ]);
    let count = values.len();
    let on_device = device.upload(&values);
    let mut out = device.zeros::<u32>(16 * count);
    let length = count as u32;
    device.run(&kernel, shape(length.div_ceil(128), 128), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&length);
    });
    let out = device.download(&out);
    let half_rows = [(0, Direction::NearestEven), (1, Direction::Zero), (2, Direction::Up), (3, Direction::Down)];
    let bfloat_rows = [(4, Direction::NearestEven), (5, Direction::Zero)];
    for (index, &value) in values.iter().enumerate() {
        let wide = f64::from(value);
        let row = |row: usize| out[row * count + index];
        for (at, direction) in half_rows {
            let (got, expected) = (f16::from_bits(row(at) as u16).to_f64(), round(wide, F16, direction));
            assert!(same(got, expected), "{value:e} to f16, {direction:?}: {got:e}, not {expected:e}");
        }
        for (at, direction) in bfloat_rows {
            let (got, expected) = (bf16::from_bits(row(at) as u16).to_f64(), round(wide, BF16, direction));
            assert!(same(got, expected), "{value:e} to bf16, {direction:?}: {got:e}, not {expected:e}");
        }
        // Rust's casts saturate and take NaN to zero, as cvt does.
        let integers = [value.round_ties_even() as i32, value as i32, value.ceil() as i32, value.floor() as i32];
        for (at, expected) in (6..).zip(integers) {
            assert_eq!(row(at) as i32, expected, "{value:e} to s32, row {at}");
        }
        assert_eq!(row(10), value.round_ties_even() as u32, "{value:e} to u32");
        let floats = [value.floor(), value.ceil(), value.trunc(), value.round_ties_even()];
        for (at, expected) in (11..).zip(floats) {
            let got = f32::from_bits(row(at));
            assert!(
                same(f64::from(got), f64::from(expected)),
                "{value:e} to an integral f32, row {at}: {got:e}, not {expected:e}"
            );
        }
        let saturated = if value > 0.0 { value.min(1.0) } else { 0.0 };
        assert_eq!(f32::from_bits(row(15)), saturated, "{value:e} saturated");
    }
}

fn same(got: f64, expected: f64) -> bool {
    got.is_nan() && expected.is_nan() || got == expected && got.is_sign_negative() == expected.is_sign_negative()
}
