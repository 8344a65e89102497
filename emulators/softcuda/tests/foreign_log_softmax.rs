//! Log-softmax over bf16 rows within a bound that follows from the kernel's roundings.

mod support;

use cudarc::driver::PushKernelArg;
use half::bf16;
use support::device::{Device, function, shape};
use support::random::Random;

const THREADS: u32 = 256;

/// log sum exp of a row, and the greatest magnitude in it.
fn exact(row: &[bf16]) -> (f64, f64) {
    let greatest = row.iter().map(|value| value.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|value| (value.to_f64() - greatest).exp()).sum();
    let magnitude = row.iter().map(|value| value.to_f64().abs()).filter(|value| value.is_finite()).fold(0.0, f64::max);
    (greatest + sum.ln(), magnitude)
}

/// How far the normaliser can be from the exact one, for rows of `columns` with values up to `magnitude`.
fn bound(columns: usize, magnitude: f64) -> f64 {
    let unit = 2f64.powi(-24);
    let steps = (columns / 8).div_ceil(THREADS as usize) as f64;
    // The argument of every exponential in bits: two roundings of at most |x - m| log2 e (one of the shift, that of
    // fma), twice the magnitude at most; in the exponent that is a relative error of ln 2 times as much.
    let arguments = 2.0 * 2.0 * magnitude * std::f64::consts::LOG2_E * unit * std::f64::consts::LN_2;
    // The relative error of the sum: every exponential 2 units in the last place (4 of `unit`); eight additions a step
    // and a rescaling by an exponential and a product; ten merges across the block with two of each.
    let sum = (4.0 + steps * (8.0 + 5.0) + 10.0 * 2.0 * 6.0) * unit + (steps + 10.0) * arguments;
    // The logarithm: lg2.approx is within 2^-22 (absolute near one) or two units of its result; times ln 2; added to
    // the greatest.
    let logarithm = 2f64.powi(-22) + 3.0 * (columns as f64).ln() * 2.0 * unit;
    sum + logarithm + (magnitude + (columns as f64).ln()) * unit
}

/// Rows of several kinds: ordinary logits, a peak, equal values, minus infinity among the others.
fn rows(columns: usize) -> Vec<Vec<bf16>> {
    let mut random = Random::new(35);
    let mut ordinary =
        |scale: f64| -> Vec<bf16> { (0..columns).map(|_| bf16::from_f64(random.real(-scale, scale))).collect() };
    let mut peak = ordinary(2.0);
    peak[columns / 3] = bf16::from_f64(40.0);
    let mut excluded = ordinary(8.0);
    excluded.iter_mut().step_by(3).for_each(|value| *value = bf16::NEG_INFINITY);
    // Whole threads see nothing but minus infinity at first.
    excluded[..columns / 2].fill(bf16::NEG_INFINITY);
    vec![ordinary(8.0), ordinary(30.0), peak, excluded, vec![bf16::from_f64(3.0); columns]]
}

#[test]
fn log_softmax() {
    let device = Device::new();
    let module = device.module("log_softmax");
    let kernel = function(&module, "log_softmax_bf16");
    for columns in [256usize, 4096, 12808] {
        let rows = rows(columns);
        let logits = device.upload(&rows.concat());
        let mut out = device.zeros::<f32>(rows.len() * columns);
        let width = columns as u32;
        let report = device.run(&kernel, shape(rows.len() as u32, THREADS), |arguments| {
            arguments.arg(&logits).arg(&mut out).arg(&width);
        });
        let out = device.download(&out);
        for (row, got) in rows.iter().zip(out.chunks(columns)) {
            let (normalizer, magnitude) = exact(row);
            // And the rounding of the difference itself.
            let bound = bound(columns, magnitude) + (2.0 * magnitude + normalizer.abs()) * 2f64.powi(-24);
            for (value, &got) in row.iter().zip(got) {
                let expected = value.to_f64() - normalizer;
                let close = f64::from(got) == expected || (f64::from(got) - expected).abs() <= bound;
                assert!(close, "{columns} columns: {got}, not {expected} +- {bound:e}");
            }
        }
        if let Some(report) = report {
            let elements = (rows.len() * columns) as u64;
            // Read twice, 2 bytes each; written once, 4 bytes each; a warp's 512 bytes are 16 sectors.
            assert_eq!(report.counters.global.bytes_loaded, 2 * 2 * elements);
            assert_eq!(report.counters.global.bytes_stored, 4 * elements);
            assert_eq!(report.counters.global.distinct_bytes_read, 2 * elements);
            assert_eq!(report.counters.global.distinct_bytes_written, 4 * elements);
            // Rows of 12808 columns begin within a sector.
            if columns.is_multiple_of(256) {
                assert_eq!(report.counters.global.sectors_loaded, 2 * 2 * elements / 32);
                // Each lane stores half of its 32 bytes at a time: both stores touch all sectors.
                assert_eq!(report.counters.global.sectors_stored, 2 * 4 * elements / 32);
            }
        }
    }
}

#[test]
fn normalizers_alone() {
    let device = Device::new();
    let kernel = device.kernel("log_softmax", "log_sum_exp_bf16");
    let columns = 4096usize;
    let rows = rows(columns);
    let logits = device.upload(&rows.concat());
    let mut out = device.zeros::<f32>(rows.len());
    let width = columns as u32;
    let report = device.run(&kernel, shape(rows.len() as u32, THREADS), |arguments| {
        arguments.arg(&logits).arg(&mut out).arg(&width);
    });
    for (row, got) in rows.iter().zip(device.download(&out)) {
        let (normalizer, magnitude) = exact(row);
        let bound = bound(columns, magnitude);
        assert!((f64::from(got) - normalizer).abs() <= bound, "{got}, not {normalizer} +- {bound:e}");
    }
    if let Some(report) = report {
        let elements = (rows.len() * columns) as u64;
        assert_eq!(report.counters.global.bytes_loaded, 2 * elements);
        assert_eq!(report.counters.global.sectors_loaded, 2 * elements / 32);
        // One exponential an element and one to rescale per eight; then, where both sides have seen a number, two in
        // each of ten merges of every thread; one logarithm a row.
        let special = report.counters.special_function_results;
        let (passes, rows) = (elements + elements / 8, rows.len() as u64);
        let merges = rows * u64::from(THREADS) * 10 * 2;
        assert!(special >= passes + rows && special <= passes + merges + rows, "{special} for {elements} elements");
    }
}
