//! f16, bf16 and their pairs against rounding by definition, in integers; what has one operand, for all 65536 of them.

mod floating;

use floating::exact::{BF16, F16, Format, Mode};
use floating::oracle::{Extremum, Operator, compute, saturate};
use floating::samples::{self, Random};
use floating::{apply, assert_refused};

const FORMATS: [(&str, Format); 2] = [("f16", F16), ("bf16", BF16)];

fn all() -> Vec<u64> {
    (0..0x1_0000).collect()
}

/// Runs the scalar form and the packed one (the rows in reverse order in the upper halves) and compares both with
/// `expected`.
#[track_caller]
fn assert_results(opcode: &str, ty: &str, operands: &[&[u64]], expected: impl Fn(&[u64]) -> u64) {
    let number = operands.len();
    let length = operands[0].len();
    let expected: Vec<u64> =
        (0..length).map(|index| expected(&operands.iter().map(|column| column[index]).collect::<Vec<_>>())).collect();
    let row = |index: usize| format!("{:x?}", operands.iter().map(|column| column[index]).collect::<Vec<_>>());
    let results = apply(&format!("{opcode}.{ty}"), &["b16"; 4][..=number], operands);
    for index in 0..length {
        let (got, expected) = (results[index], expected[index]);
        assert_eq!(got, expected, "{opcode}.{ty} of {}: {got:#x}, not {expected:#x}", row(index));
    }
    let packed: Vec<Vec<u64>> = operands
        .iter()
        .map(|column| column.iter().zip(column.iter().rev()).map(|(l, h)| l | h << 16).collect())
        .collect();
    let packed: Vec<&[u64]> = packed.iter().map(Vec::as_slice).collect();
    let results = apply(&format!("{opcode}.{ty}x2"), &["b32"; 4][..=number], &packed);
    for index in 0..length {
        let expected = expected[index] | expected[length - 1 - index] << 16;
        assert_eq!(results[index], expected, "{opcode}.{ty}x2 of {} and {}", row(index), row(length - 1 - index));
    }
}

fn flushed(operator: Operator, row: &[u64]) -> u64 {
    let row: Vec<u64> = row.iter().map(|bits| F16.flush(*bits)).collect();
    F16.flush(compute(operator, F16, Mode::Rn, &row))
}

/// Not below zero; -0 becomes +0, and NaN stays.
fn relu(format: Format, bits: u64) -> u64 {
    if format.is_negative(bits) { 0 } else { bits }
}

const BINARY: [(&str, Operator); 3] =
    [("add", Operator::Add), ("sub", Operator::Subtract), ("mul", Operator::Multiply)];

#[test]
fn sums_and_products_are_rounded_once() {
    let mut random = Random(1);
    for (ty, format) in FORMATS {
        let [a, b] = samples::pairs(format, 20000, &mut random);
        let columns: [&[u64]; 2] = [&a, &b];
        for (name, operator) in BINARY {
            let nearest = |row: &[u64]| compute(operator, format, Mode::Rn, row);
            assert_results(name, ty, &columns, nearest);
            assert_results(&format!("{name}.rn"), ty, &columns, nearest);
            if ty == "f16" {
                assert_results(&format!("{name}.ftz"), ty, &columns, |row| flushed(operator, row));
                assert_results(&format!("{name}.sat"), ty, &columns, |row| saturate(F16, nearest(row)));
                assert_results(&format!("{name}.rn.ftz.sat"), ty, &columns, |row| {
                    F16.flush(saturate(F16, flushed(operator, row)))
                });
            }
        }
    }
}

/// Every third number with a few that shift it, scale it down into the subnormal range and up into overflow.
#[test]
fn numbers_of_the_whole_range_with_some_partners() {
    for (ty, format) in FORMATS {
        let a: Vec<u64> = all().into_iter().step_by(3).collect();
        let one = format.one();
        let unit = 1 << format.fraction_bits;
        for partner in [format.sign(), 1, unit - 1, one, one + 1, one - 9 * unit / 2, 2 * one - 2 * unit + 3] {
            let b = vec![partner; a.len()];
            for (name, operator) in BINARY {
                assert_results(name, ty, &[&a, &b], |row| compute(operator, format, Mode::Rn, row));
            }
        }
    }
}

#[test]
fn fused_operations_are_rounded_once() {
    let mut random = Random(2);
    for (ty, format) in FORMATS {
        let [a, b, c] = samples::triples(format, 30000, &mut random);
        let columns: [&[u64]; 3] = [&a, &b, &c];
        let nearest = |row: &[u64]| compute(Operator::Fused, format, Mode::Rn, row);
        assert_results("fma.rn", ty, &columns, nearest);
        assert_results("fma.rn.relu", ty, &columns, |row| relu(format, nearest(row)));
        if ty == "f16" {
            let flushed = |row: &[u64]| flushed(Operator::Fused, row);
            assert_results("fma.rn.ftz", ty, &columns, flushed);
            assert_results("fma.rn.sat", ty, &columns, |row| saturate(F16, nearest(row)));
            assert_results("fma.rn.ftz.sat", ty, &columns, |row| F16.flush(saturate(F16, flushed(row))));
            assert_results("fma.rn.ftz.relu", ty, &columns, |row| relu(F16, flushed(row)));
        }
    }
}

/// Products of bf16 that are ties, with an addend far below: it decides, and an f64 sum would have lost it.
#[test]
fn fused_operations_near_ties() {
    let rows = [
        // 259 lies between 258, whose fraction is odd, and 260.
        (7.0, 37.0, 0.0, 260.0),
        (7.0, 37.0, 1e-37, 260.0),
        (7.0, 37.0, -1e-37, 258.0),
        (-7.0, 37.0, 1e-37, -258.0),
        (-7.0, 37.0, -1e-37, -260.0),
        // 265 lies between 264, whose fraction is even, and 266.
        (5.0, 53.0, 0.0, 264.0),
        (5.0, 53.0, 1e-37, 266.0),
        (5.0, 53.0, -1e-37, 264.0),
    ];
    for (a, b, c, expected) in rows {
        let bits = |value: f32| u64::from(value.to_bits() >> 16);
        let columns: [&[u64]; 3] = [&[bits(a)], &[bits(b)], &[bits(c)]];
        let result = apply("fma.rn.bf16", &["b16"; 4], &columns);
        assert_eq!(result, [bits(expected)], "{a} * {b} + {c}");
    }
}

#[test]
fn signs_are_bits() {
    let a = all();
    for (ty, _) in FORMATS {
        assert_results("abs", ty, &[&a], |row| row[0] & 0x7fff);
        assert_results("neg", ty, &[&a], |row| row[0] ^ 0x8000);
    }
    assert_results("abs.ftz", "f16", &[&a], |row| F16.flush(row[0]) & 0x7fff);
    assert_results("neg.ftz", "f16", &[&a], |row| F16.flush(row[0]) ^ 0x8000);
}

#[test]
fn minimum_and_maximum() {
    let mut random = Random(3);
    for (ty, format) in FORMATS {
        let [a, b] = samples::pairs(format, 20000, &mut random);
        for bits in 0..8 {
            let extremum = Extremum {
                maximum: bits & 1 != 0,
                propagate: bits & 2 != 0,
                absolute: bits & 4 != 0,
                exclusive_sign: bits & 4 != 0,
            };
            let name = extremum.spelling();
            assert_results(&name, ty, &[&a, &b], |row| extremum.of(format, row[0], row[1]));
            if ty == "f16" {
                let name = format!("{}.ftz{}", &name[..3], &name[3..]);
                assert_results(&name, ty, &[&a, &b], |row| extremum.of(F16, F16.flush(row[0]), F16.flush(row[1])));
            }
        }
    }
}

/// A number of the format as f64.
fn number(format: Format, bits: u64) -> f64 {
    if format.is_nan(bits) {
        return f64::NAN;
    }
    let value = format.value(bits);
    let magnitude = if format.is_infinite(bits) {
        f64::INFINITY
    } else {
        value.integer.unsigned_abs() as f64 * 2f64.powi(value.exponent)
    };
    if format.is_negative(bits) { -magnitude } else { magnitude }
}

/// The scalar and packed results for all operands, after a check that they are the same.
fn approximate(opcode: &str, ty: &str) -> Vec<u64> {
    let a = all();
    let results = apply(&format!("{opcode}.{ty}"), &["b16"; 2], &[&a]);
    let packed: Vec<u64> = a.iter().map(|bits| bits | (0xffff - bits) << 16).collect();
    let pairs = apply(&format!("{opcode}.{ty}x2"), &["b32"; 2], &[&packed]);
    for (bits, pair) in pairs.iter().enumerate() {
        assert_eq!(*pair, results[bits] | results[0xffff - bits] << 16, "{opcode}.{ty}x2 of {bits:x}");
    }
    results
}

/// Greatest relative error by the manual: 2^-9.9 for f16, 2^-7 for bf16, whose subnormal results are zero.
#[test]
fn exponentials_of_every_number() {
    for (ty, format, opcode, bound) in [("f16", F16, "ex2.approx", -9.9f64), ("bf16", BF16, "ex2.approx.ftz", -7.0)] {
        let least_normal = number(format, 1 << format.fraction_bits);
        let greatest = number(format, format.infinity() - 1);
        for (bits, result) in approximate(opcode, ty).into_iter().enumerate() {
            let operand = number(format, bits as u64);
            if operand.is_nan() {
                assert_eq!(result, 0x7fff, "{opcode}.{ty} of {bits:x}");
                continue;
            }
            let exact = operand.exp2();
            let got = number(format, result);
            if exact > greatest {
                assert!(got == f64::INFINITY || got == greatest, "{opcode}.{ty} of {operand}: {got}");
            } else if exact < least_normal {
                // Half a unit of the subnormal range, which bf16 has not.
                let unit = if ty == "bf16" { 2.0 * least_normal } else { number(format, 1) };
                assert!((got - exact).abs() <= unit / 2.0, "{opcode}.{ty} of {operand}: {got}");
                assert!(ty == "f16" || got == 0.0, "{opcode}.{ty} of {operand}: {got}");
            } else {
                assert!((got / exact - 1.0).abs() <= bound.exp2(), "{opcode}.{ty} of {operand}: {got}");
            }
        }
        let table = [
            (format.infinity() | 0x8000, 0),
            (0x8001, format.one()),
            (0x8000, format.one()),
            (0, format.one()),
            (1, format.one()),
            (format.infinity(), format.infinity()),
            (0x7fff, 0x7fff),
        ];
        let results = approximate(opcode, ty);
        for (operand, expected) in table {
            assert_eq!(results[operand as usize], expected, "{opcode}.{ty} of {operand:x}");
        }
    }
}

/// Greatest error by the manual: 2^-10.987 absolute for f16, 2^-8 for bf16 (taken as relative, the stricter reading).
#[test]
fn hyperbolic_tangents_of_every_number() {
    for (ty, format) in FORMATS {
        let results = approximate("tanh.approx", ty);
        for (bits, result) in results.iter().enumerate() {
            let operand = number(format, bits as u64);
            if operand.is_nan() {
                assert_eq!(*result, 0x7fff, "{bits:x}");
                continue;
            }
            // tanh x = (e^2x - 1) / (e^2x + 1), without cancellation.
            let double = (2.0 * operand.abs()).exp_m1();
            let exact = if double.is_infinite() { 1.0 } else { double / (double + 2.0) }.copysign(operand);
            let got = number(format, *result);
            let error = (got - exact).abs();
            let least_unit = number(format, 1);
            let within =
                if ty == "f16" { error <= (-10.987f64).exp2() } else { error <= exact.abs() / 256.0 + least_unit };
            assert!(within && got.is_sign_negative() == operand.is_sign_negative(), "{ty} {operand}: {got}");
        }
        let (minus, one) = (0x8000, format.one());
        let table = [(format.infinity() | minus, one | minus), (minus, minus), (0, 0), (format.infinity(), one)];
        for (operand, expected) in table {
            assert_eq!(results[operand as usize], expected, "{ty} {operand:x}");
        }
    }
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    assert_refused(&[
        ("add.rz.f16 %h0, %h1, %h2;", ".rz"),
        ("add.ftz.bf16x2 %r0, %r1, %r2;", ".ftz"),
        ("add.sat.bf16 %h0, %h1, %h2;", ".sat"),
        ("mul.relu.f16 %h0, %h1, %h2;", ".relu"),
        ("fma.f16 %h0, %h1, %h2, %h3;", "rounding"),
        ("fma.rn.sat.relu.f16 %h0, %h1, %h2, %h3;", "exclude"),
        ("fma.rn.ftz.bf16 %h0, %h1, %h2, %h3;", ".ftz"),
        ("fma.rn.oob.f16 %h0, %h1, %h2, %h3;", ".oob"),
        ("mad.rn.f16 %h0, %h1, %h2, %h3;", "not supported"),
        ("div.rn.f16 %h0, %h1, %h2;", "not supported"),
        ("min.ftz.bf16 %h0, %h1, %h2;", ".ftz"),
        ("min.xorsign.f16x2 %r0, %r1, %r2;", ".abs"),
        ("max.f16x2 %r0, %r1, %r2, %r3;", "operands"),
        ("neg.ftz.bf16 %h0, %h1;", ".ftz"),
        ("ex2.f16 %h0, %h1;", ".approx"),
        ("ex2.approx.ftz.f16 %h0, %h1;", ".ftz"),
        ("ex2.approx.bf16 %h0, %h1;", ".ftz"),
        ("tanh.approx.ftz.bf16 %h0, %h1;", ".ftz"),
        ("tanh.f16 %h0, %h1;", ".approx"),
        ("sin.approx.f16 %h0, %h1;", "not supported"),
        ("add.f16x2 %l0, %r1, %r2;", "width"),
    ]);
}
