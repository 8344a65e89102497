//! Matrix products by `mma.sync`: exact where the sums are exact, within the bound of an f32 sum elsewhere.

mod support;

use cudarc::driver::{DeviceRepr, PushKernelArg};
use half::{bf16, f16};
use support::device::{Device, Shape};
use support::random::Random;
use support::rounding::{Direction, Format, round};

const ROWS: usize = 32;
const COLUMNS: usize = 24;
const DEPTH: usize = 80;

/// tf32: f32's exponents with ten fraction bits.
const TF32: Format = Format { fraction_bits: 10, least_exponent: -126, greatest_exponent: 127 };

/// `a`: rows x depth, `b`: columns x depth (or depth x columns for `b_row_major`), both as the kernel's types; `values`
/// of them.
fn check<T: DeviceRepr>(kernel: &str, b_row_major: bool, exact: bool, convert: impl Fn(f64) -> (T, f64)) {
    let device = Device::new();
    let name = kernel;
    let kernel = device.kernel("gemm", name);
    let mut random = Random::new(30);
    let mut matrix = |count: usize| -> (Vec<T>, Vec<f64>) {
        (0..count)
            .map(|_| convert(if exact { f64::from(random.integer(-15, 15)) } else { random.real(-2.0, 2.0) }))
            .unzip()
    };
    let (a, a_values) = matrix(ROWS * DEPTH);
    let (b, b_values) = matrix(COLUMNS * DEPTH);
    let (a, b) = (device.upload(&a), device.upload(&b));
    let mut c = device.zeros::<f32>(ROWS * COLUMNS);
    let (columns, depth) = (COLUMNS as u32, DEPTH as u32);
    let tiles = Shape { grid: (columns / 8, ROWS as u32 / 16), block: (32, 1), shared: 0 };
    device.run(&kernel, tiles, |arguments| {
        arguments.arg(&a).arg(&b).arg(&mut c).arg(&columns).arg(&depth);
    });
    let c = device.download(&c);
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            let products = (0..DEPTH).map(|k| {
                let b = if b_row_major { b_values[k * COLUMNS + column] } else { b_values[column * DEPTH + k] };
                a_values[row * DEPTH + k] * b
            });
            let (sum, magnitude) =
                products.fold((0.0, 0.0), |(sum, size): (f64, f64), product| (sum + product, size + product.abs()));
            let got = f64::from(c[row * COLUMNS + column]);
            // Products are exact in f32. Each of DEPTH additions is off by at most one unit of f32 (tensor cores
            // truncate): 2^-23 of a partial sum, which is at most the sum of magnitudes (and a little, for the errors
            // before: second order).
            let bound = if exact { 0.0 } else { DEPTH as f64 * 2f64.powi(-23) * magnitude * 1.0001 };
            assert!((got - sum).abs() <= bound, "{name} at {row}, {column}: {got}, not {sum} +- {bound:e}");
        }
    }
}

fn as_bf16(value: f64) -> (bf16, f64) {
    let rounded = bf16::from_f64(value);
    (rounded, rounded.to_f64())
}

fn as_f16(value: f64) -> (f16, f64) {
    let rounded = f16::from_f64(value);
    (rounded, rounded.to_f64())
}

/// The kernel rounds f32 to tf32 itself, ties away from zero.
fn as_tf32(value: f64) -> (f32, f64) {
    let given = value as f32;
    (given, round(f64::from(given), TF32, Direction::NearestAway))
}

#[test]
fn bf16_exact() {
    check("gemm_bf16", false, true, as_bf16);
}

#[test]
fn bf16_rounded() {
    check("gemm_bf16", false, false, as_bf16);
}

#[test]
fn bf16_transposed_by_ldmatrix() {
    check("gemm_bf16_row", true, true, as_bf16);
    check("gemm_bf16_row", true, false, as_bf16);
}

#[test]
fn f16_exact() {
    check("gemm_f16", false, true, as_f16);
}

#[test]
fn f16_rounded() {
    check("gemm_f16", false, false, as_f16);
}

#[test]
fn tf32_exact() {
    check("gemm_tf32", false, true, as_tf32);
}

#[test]
fn tf32_rounded() {
    check("gemm_tf32", false, false, as_tf32);
}
