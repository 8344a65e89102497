//! The approximations of f32 and f64: within the manual's bounds, and its tables of special values.
//!
//! The exact values come from defining equations (`r * b` against 1) or from series summed in f64, not from the
//! functions under test.

mod floating;

use floating::samples::Random;
use floating::{REGISTERS, apply, assert_refused};
use softcuda::count::Class;
use softcuda::ptx::decode::scope::Scope;
use softcuda::ptx::decode::{self, Arithmetic};
use softcuda::ptx::syntax::Statement;
use std::collections::HashMap;
use std::f64::consts::{LN_2, PI};

const LEAST_NORMAL: f64 = f32::MIN_POSITIVE as f64;

fn run(instruction: &str, operands: &[&[f32]]) -> Vec<f32> {
    let columns: Vec<Vec<u64>> =
        operands.iter().map(|column| column.iter().map(|value| u64::from(value.to_bits())).collect()).collect();
    let columns: Vec<&[u64]> = columns.iter().map(Vec::as_slice).collect();
    let results = apply(instruction, &["f32"; 4][..=operands.len()], &columns);
    results.into_iter().map(|bits| f32::from_bits(bits as u32)).collect()
}

/// Evenly spaced numbers, the ends included.
fn grid(low: f64, high: f64, count: usize) -> Vec<f32> {
    (0..=count).map(|index| (low + (high - low) * index as f64 / count as f64) as f32).collect()
}

/// Positive numbers of every exponent, subnormal ones among them.
fn every_exponent(random: &mut Random) -> Vec<f32> {
    let mut values: Vec<f32> = (0..1000).map(|_| f32::from_bits((random.bits() % (1 << 23)) as u32 | 1)).collect();
    for exponent in 1..255 {
        values.extend((0..150).map(|_| f32::from_bits(exponent << 23 | (random.bits() % (1 << 23)) as u32)));
        values.extend([0, 1, (1 << 23) - 1].map(|fraction| f32::from_bits(exponent << 23 | fraction)));
    }
    values
}

/// Checks results against exact values: relative error `bound`, or half a unit of the subnormal range; with `.ftz`
/// subnormal operands count as zeros, and subnormal results are zeros.
#[track_caller]
fn assert_relative(instruction: &str, operands: &[f32], bound: f64, exact: impl Fn(f64) -> f64) {
    let flush = instruction.contains(".ftz");
    for (operand, got) in operands.iter().zip(run(instruction, &[operands])) {
        if flush && operand.is_subnormal() {
            continue;
        }
        let exact = exact(f64::from(*operand));
        let got_wide = f64::from(got);
        let error = (got_wide - exact).abs();
        let close = if exact.abs() < LEAST_NORMAL * (1.0 - bound) && flush {
            got == 0.0
        } else if exact.abs() > f64::from(f32::MAX) {
            got.is_infinite() || error <= bound * exact.abs()
        } else {
            // Near the least normal number a result may also have been flushed.
            error <= bound * exact.abs()
                || exact.abs() < LEAST_NORMAL && error <= 2f64.powi(-150)
                || flush && exact.abs() < LEAST_NORMAL * (1.0 + bound) && got == 0.0
        };
        assert!(close, "{instruction} of {operand:e}: {got:e}, exactly {exact:e}");
    }
}

#[track_caller]
fn assert_absolute(instruction: &str, operands: &[f32], bound: f64, exact: impl Fn(f64) -> f64) {
    for (operand, got) in operands.iter().zip(run(instruction, &[operands])) {
        let exact = exact(f64::from(*operand));
        assert!((f64::from(got) - exact).abs() <= bound, "{instruction} of {operand}: {got}, exactly {exact}");
    }
}

/// 2^-23: one unit in the last place at worst.
#[test]
fn reciprocals() {
    let operands = every_exponent(&mut Random(1));
    for instruction in ["rcp.approx.f32", "rcp.approx.ftz.f32"] {
        for sign in [1.0, -1.0] {
            let operands: Vec<f32> = operands.iter().map(|value| sign * value).collect();
            assert_relative(instruction, &operands, 2f64.powi(-23), |a| 1.0 / a);
        }
    }
}

/// Relative errors of 2^-23 and 2^-22.9, by the squares of the results.
#[test]
fn square_roots() {
    let operands = every_exponent(&mut Random(2));
    for ftz in ["", ".ftz"] {
        let roots = run(&format!("sqrt.approx{ftz}.f32"), &[&operands]);
        let reciprocals = run(&format!("rsqrt.approx{ftz}.f32"), &[&operands]);
        for ((a, root), reciprocal) in operands.iter().zip(roots).zip(reciprocals) {
            if a.is_subnormal() && !ftz.is_empty() {
                assert_eq!((root, reciprocal), (0.0, f32::INFINITY), "{a:e}");
                continue;
            }
            let a = f64::from(*a);
            let within = |square: f64, bound: f64| (1.0 - bound).powi(2) <= square && square <= (1.0 + bound).powi(2);
            // The squares are exact in f64, and one rounding of f64 does not matter here.
            assert!(within(f64::from(root).powi(2) / a, 2f64.powi(-23)), "sqrt of {a:e}: {root:e}");
            assert!(within(f64::from(reciprocal).powi(2) * a, (-22.9f64).exp2()), "rsqrt of {a:e}: {reciprocal:e}");
        }
    }
}

/// Two units in the last place, for divisors of up to 2^126 where it is `.approx`.
#[test]
fn quotients() {
    let mut random = Random(3);
    let divisors = every_exponent(&mut random);
    let dividends: Vec<f32> = divisors
        .iter()
        .map(|divisor| {
            // Half of the quotients are of moderate size.
            let any = f32::from_bits(random.bits() as u32);
            if random.bits() & 1 == 0 && any.is_finite() { any } else { divisor * (1.0 + 3.0 * random.unit() as f32) }
        })
        .collect();
    for full in [false, true] {
        for ftz in [false, true] {
            let name = format!("div.{}{}.f32", if full { "full" } else { "approx" }, if ftz { ".ftz" } else { "" });
            for ((a, b), got) in dividends.iter().zip(&divisors).zip(run(&name, &[&dividends, &divisors])) {
                let flush = |value: f32| if ftz && value.is_subnormal() { value * 0.0 } else { value };
                let (a, b) = (f64::from(flush(*a)), f64::from(flush(*b)));
                let exact = a / b;
                if !a.is_finite() || b == 0.0 {
                    continue;
                }
                if !full && b > 2f64.powi(126) {
                    assert_eq!(got.to_bits(), 0f32.copysign(a as f32).to_bits(), "{name} of {a:e} and {b:e}: {got:e}");
                    continue;
                }
                let unit = 2f64.powi((exact.abs().log2().floor() as i32).max(-126) - 23);
                let close = (f64::from(got) - exact).abs() <= 2.0 * unit
                    || exact.abs() > f64::from(f32::MAX) - 2.0 * unit && got.is_infinite()
                    || ftz && exact.abs() < LEAST_NORMAL + 2.0 * unit && got == 0.0;
                assert!(close, "{name} of {a:e} and {b:e}: {got:e}, exactly {exact:e}");
                assert!(!ftz || !got.is_subnormal(), "{name} of {a:e} and {b:e}: {got:e}");
            }
        }
    }
}

/// Sine and cosine of up to 2 pi by their series, which f64 sums to about 2^-44; larger arguments are reduced first.
fn circular(x: f64) -> (f64, f64) {
    // pi in two parts, the first short enough that its multiples up to 2^10 are exact.
    const HIGH: f64 = (PI * (1u64 << 40) as f64) as u64 as f64 / (1u64 << 40) as f64;
    // What f64's PI lacks of pi is 1.22e-16.
    const LOW: f64 = PI - HIGH + 1.224_646_799_147_353e-16;
    let turns = (x / (2.0 * PI)).round();
    let x = x - 2.0 * turns * HIGH - 2.0 * turns * LOW;
    let (mut sine, mut cosine, mut term) = (0.0, 0.0, 1.0);
    for k in 0..40 {
        let signed = if k / 2 % 2 == 0 { term } else { -term };
        if k % 2 == 0 {
            cosine += signed;
        } else {
            sine += signed;
        }
        term *= x / f64::from(k + 1);
    }
    (sine, cosine)
}

/// Absolute errors of 2^-20.5 within 2 pi, and 2^-14.7 within 100 pi.
#[test]
fn sines_and_cosines() {
    for (range, bound) in [(2.0 * PI, -20.5f64), (100.0 * PI, -14.7)] {
        let operands = grid(-range, range, 100_000);
        for ftz in ["", ".ftz"] {
            assert_absolute(&format!("sin.approx{ftz}.f32"), &operands, bound.exp2(), |x| circular(x).0);
            assert_absolute(&format!("cos.approx{ftz}.f32"), &operands, bound.exp2(), |x| circular(x).1);
        }
    }
}

/// The logarithm to base 2: exponent, and the series of the inverse hyperbolic tangent for the rest.
fn logarithm(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = f64::from((bits >> 52) as i32 - 1023);
    let mut fraction = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if fraction > std::f64::consts::SQRT_2 {
        fraction /= 2.0;
        exponent += 1.0;
    }
    let t = (fraction - 1.0) / (fraction + 1.0);
    let series: f64 = (0..25).rev().map(|k| t.powi(2 * k + 1) / f64::from(2 * k + 1)).sum();
    exponent + 2.0 * series / LN_2
}

/// 2^-22: absolute from 0.5 to 2, relative elsewhere.
#[test]
fn logarithms() {
    let operands = every_exponent(&mut Random(4));
    let (middle, outer): (Vec<f32>, Vec<f32>) = operands.iter().partition(|a| (0.5..=2.0).contains(*a));
    for instruction in ["lg2.approx.f32", "lg2.approx.ftz.f32"] {
        assert_relative(instruction, &outer, 2f64.powi(-22), logarithm);
        assert_absolute(instruction, &middle, 2f64.powi(-22), logarithm);
        assert_absolute(instruction, &grid(0.5, 2.0, 100_000), 2f64.powi(-22), logarithm);
    }
}

/// 2 to a power by repeated squaring of a short series: 2^(x / 1024), then ten squares (about 2^-42 relative).
fn power(x: f64) -> f64 {
    let t = x * LN_2 / 1024.0;
    let mut value: f64 = (0..14).rev().fold(0.0, |sum, k| 1.0 + sum * t / f64::from(k + 1));
    for _ in 0..10 {
        value *= value;
    }
    value
}

/// A relative error of 2^-22.
#[test]
fn exponentials() {
    let mut operands = grid(-155.0, 130.0, 300_000);
    operands.extend(every_exponent(&mut Random(5)).iter().filter(|a| **a < 1e-3).flat_map(|a| [*a, -*a]));
    for instruction in ["ex2.approx.f32", "ex2.approx.ftz.f32"] {
        assert_relative(instruction, &operands, 2f64.powi(-22), power);
    }
    let far = [-1e4, -200.0, -151.0, -150.0, 128.0, 200.0, 1e4, 3e38, -3e38];
    let expected = [0.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY, f32::INFINITY, 0.0];
    assert_eq!(run("ex2.approx.f32", &[&far]), expected);
    // Powers of integers are exact, down to the least subnormal number, which .ftz does not have.
    let integers: Vec<f32> = (-149..128).map(|power| power as f32).collect();
    let exact: Vec<f32> = (-149..128).map(|power| 2f64.powi(power) as f32).collect();
    assert_eq!(run("ex2.approx.f32", &[&integers]), exact);
    let flushed: Vec<f32> = exact.iter().map(|value| if value.is_subnormal() { 0.0 } else { *value }).collect();
    assert_eq!(run("ex2.approx.ftz.f32", &[&integers]), flushed);
}

/// A relative error of 2^-11.
#[test]
fn hyperbolic_tangents() {
    let mut operands = grid(-12.0, 12.0, 100_000);
    operands.extend(every_exponent(&mut Random(6)).iter().flat_map(|a| [*a, -*a]));
    // tanh x = (e^2x - 1) / (e^2x + 1), without cancellation.
    let exact = |x: f64| {
        let double = (2.0 * x.abs()).exp_m1();
        if double.is_infinite() { 1f64.copysign(x) } else { (double / (double + 2.0)).copysign(x) }
    };
    assert_relative("tanh.approx.f32", &operands, 2f64.powi(-11), exact);
}

/// The manual's tables: operand, then the result of each function.
#[test]
fn special_values() {
    const I: f32 = f32::INFINITY;
    const S: f32 = f32::from_bits(0x0040_0000);
    const N: f32 = f32::from_bits(0x7fff_ffff);
    // Where the table says "result": other tests look at it.
    const A: f32 = f32::from_bits(0x7fc0_0000);
    let operands = [-I, -2.0, -S, -0.0, 0.0, S, I, f32::NAN, f32::from_bits(0xff80_0001)];
    #[rustfmt::skip]
    let table: &[(&str, [f32; 9])] = &[
        // -inf, -normal, -subnormal, -0, +0, +subnormal, +inf, NaN, signalling NaN
        ("rcp.approx.f32",       [  -0.0,      A,      A,     -I,      I,      A,    0.0,      N,      N]),
        ("rcp.approx.ftz.f32",   [  -0.0,      A,     -I,     -I,      I,      I,    0.0,      N,      N]),
        ("sqrt.approx.f32",      [     N,      N,      N,   -0.0,    0.0,      A,      I,      N,      N]),
        ("sqrt.approx.ftz.f32",  [     N,      N,   -0.0,   -0.0,    0.0,    0.0,      I,      N,      N]),
        ("rsqrt.approx.f32",     [     N,      N,      N,     -I,      I,      A,    0.0,      N,      N]),
        ("rsqrt.approx.ftz.f32", [     N,      N,     -I,     -I,      I,      I,    0.0,      N,      N]),
        ("sin.approx.f32",       [     N,      A,      A,   -0.0,    0.0,      A,      N,      N,      N]),
        ("sin.approx.ftz.f32",   [     N,      A,   -0.0,   -0.0,    0.0,    0.0,      N,      N,      N]),
        ("cos.approx.f32",       [     N,      A,    1.0,    1.0,    1.0,    1.0,      N,      N,      N]),
        ("cos.approx.ftz.f32",   [     N,      A,    1.0,    1.0,    1.0,    1.0,      N,      N,      N]),
        ("lg2.approx.f32",       [     N,      N,      N,     -I,     -I, -127.0,      I,      N,      N]),
        ("lg2.approx.ftz.f32",   [     N,      N,     -I,     -I,     -I,     -I,      I,      N,      N]),
        ("ex2.approx.f32",       [   0.0,   0.25,    1.0,    1.0,    1.0,    1.0,      I,      N,      N]),
        ("ex2.approx.ftz.f32",   [   0.0,   0.25,    1.0,    1.0,    1.0,    1.0,      I,      N,      N]),
        ("tanh.approx.f32",      [  -1.0,      A,     -S,   -0.0,    0.0,      S,    1.0,      N,      N]),
    ];
    for (instruction, row) in table {
        for ((operand, expected), got) in operands.iter().zip(row).zip(run(instruction, &[&operands])) {
            if expected.to_bits() != A.to_bits() {
                assert_eq!(
                    got.to_bits(),
                    expected.to_bits(),
                    "{instruction} of {operand:e}: {got:e}, not {expected:e}"
                );
            }
        }
    }
}

#[test]
fn special_values_of_quotients() {
    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::from_bits(0x7fff_ffff);
    const BIG: f32 = f32::from_bits((127 + 127) << 23);
    const LIMIT: f32 = f32::from_bits((127 + 126) << 23);
    const SUBNORMAL: f32 = f32::from_bits(0x0040_0000);
    let rows: &[(&str, f32, f32, f32)] = &[
        ("div.approx.f32", INF, BIG, NAN),
        ("div.approx.f32", -3.0, BIG, -0.0),
        ("div.approx.f32", BIG, -BIG, -0.0),
        ("div.approx.f32", LIMIT, LIMIT, 1.0),
        ("div.approx.f32", 3.0, INF, 0.0),
        ("div.approx.f32", INF, -INF, NAN),
        ("div.approx.f32", 0.0, 0.0, NAN),
        ("div.approx.f32", -1.0, 0.0, -INF),
        ("div.full.f32", BIG, BIG, 1.0),
        ("div.full.f32", INF, BIG, INF),
        ("div.full.f32", SUBNORMAL, SUBNORMAL, 1.0),
        ("div.full.ftz.f32", SUBNORMAL, SUBNORMAL, NAN),
        ("div.full.ftz.f32", -1.0, SUBNORMAL, -INF),
        ("div.approx.ftz.f32", -SUBNORMAL, 1.0, -0.0),
    ];
    for (instruction, a, b, expected) in rows {
        let got = run(instruction, &[&[*a], &[*b]])[0];
        assert_eq!(got.to_bits(), expected.to_bits(), "{instruction} of {a:e}, {b:e}: {got:e}");
    }
}

/// The upper 32 bits of an f64.
const UPPER: u64 = 0xffff_ffff << 32;

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` read and write the upper half only, with a relative error of 2^-20.
#[test]
fn doubles_by_their_upper_half() {
    let mut random = Random(7);
    let mut operands: Vec<u64> = (0..20_000).map(|_| random.bits() & !(1 << 63)).collect();
    operands.extend((1..0x7ff).map(|exponent| exponent << 52 | random.bits() >> 12));
    operands.retain(|bits| f64::from_bits(*bits).is_normal());
    let reciprocals = apply("rcp.approx.ftz.f64", &["f64"; 2], &[&operands]);
    let roots = apply("rsqrt.approx.ftz.f64", &["f64"; 2], &[&operands]);
    let precise = apply("rsqrt.approx.f64", &["f64"; 2], &[&operands]);
    for (index, bits) in operands.iter().enumerate() {
        let read = f64::from_bits(bits & UPPER);
        let reciprocal = f64::from_bits(reciprocals[index]);
        let root = f64::from_bits(roots[index]);
        assert_eq!((reciprocals[index] & !UPPER, roots[index] & !UPPER), (0, 0));
        if 1.0 / read < f64::MIN_POSITIVE {
            assert_eq!(reciprocal, 0.0, "1 / {read:e}");
        } else {
            assert!((reciprocal * read - 1.0).abs() <= 2f64.powi(-20), "1 / {read:e}: {reciprocal:e}");
        }
        assert!((root * read * root - 1.0).abs() <= 2.0 * 2f64.powi(-20), "rsqrt of {read:e}: {root:e}");
        let (value, root) = (f64::from_bits(*bits), f64::from_bits(precise[index]));
        assert!((root * value * root - 1.0).abs() <= 2f64.powi(-50), "rsqrt of {value:e}: {root:e}");
    }
}

#[test]
fn special_values_of_doubles() {
    const INF: u64 = 0x7ff0_0000_0000_0000;
    const NAN: u64 = 0x7ff8_0000_0000_0000;
    const MINUS: u64 = 1 << 63;
    let operands = [INF | MINUS, MINUS | 1 << 40, MINUS, 0, 1 << 40, INF, NAN, INF | 1, (-4f64).to_bits()];
    let rcp = [MINUS, INF | MINUS, INF | MINUS, INF, INF, 0, NAN, NAN, (-0.25f64).to_bits()];
    let rsqrt = [NAN, INF | MINUS, INF | MINUS, INF, INF, 0, NAN, NAN, NAN];
    // Without .ftz subnormal numbers count: 2^-1034 has the reciprocal square root 2^517.
    let precise = [NAN, NAN, INF | MINUS, INF, 2f64.powi(517).to_bits(), 0, NAN, NAN, NAN];
    let rows = [("rcp.approx.ftz.f64", rcp), ("rsqrt.approx.ftz.f64", rsqrt), ("rsqrt.approx.f64", precise)];
    for (instruction, expected) in rows {
        assert_eq!(apply(instruction, &["f64"; 2], &[&operands]), expected, "{instruction}");
    }
}

/// How an instruction is counted, and the results of the special function unit per lane.
fn counted(statement: &str) -> (Class, u32) {
    let text = format!("{REGISTERS} {statement}");
    let mut scope = Scope::new(HashMap::new());
    for statement in softcuda::ptx::parser::parse_statements(&text).unwrap() {
        match statement {
            Statement::Register { ty, name, count } => scope.declare(ty, &name, count).unwrap(),
            Statement::Instruction(instruction) => {
                let decoded = decode::arithmetic(&instruction, &mut scope).unwrap().unwrap();
                let results = match decoded {
                    Arithmetic::Float(operation) => operation.special_function_results(),
                    Arithmetic::Half(operation) => operation.special_function_results(),
                    _ => panic!("{decoded:?}"),
                };
                return (decoded.class(), results);
            }
            _ => {}
        }
    }
    panic!("no instruction in {text}");
}

#[test]
fn classes_and_results_of_the_special_function_unit() {
    let rows = [
        ("ex2.approx.ftz.f32 %f0, %f1;", Class::SpecialFunction, 1),
        ("div.approx.f32 %f0, %f1, %f2;", Class::SpecialFunction, 1),
        ("div.full.f32 %f0, %f1, %f2;", Class::SpecialFunction, 1),
        ("rcp.approx.ftz.f64 %d0, %d1;", Class::SpecialFunction, 1),
        ("ex2.approx.f16 %h0, %h1;", Class::SpecialFunction, 1),
        ("tanh.approx.bf16x2 %r0, %r1;", Class::SpecialFunction, 2),
        ("rcp.rn.f32 %f0, %f1;", Class::Float32, 0),
        ("fma.rn.f32x2 %l0, %l1, %l2, %l3;", Class::Float32, 0),
        ("add.f32.f16 %f0, %h1, %f2;", Class::Float32, 0),
        ("max.f32 %f0, %f1, %f2;", Class::Float32, 0),
        ("testp.finite.f32 %p, %f2;", Class::Float32, 0),
        ("testp.finite.f64 %p, %d2;", Class::Float64, 0),
        ("sqrt.rn.f64 %d0, %d1;", Class::Float64, 0),
        ("fma.rn.bf16x2 %r0, %r1, %r2, %r3;", Class::Half, 0),
        ("max.f16 %h0, %h1, %h2;", Class::Half, 0),
    ];
    for (statement, class, results) in rows {
        assert_eq!(counted(statement), (class, results), "{statement}");
    }
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    assert_refused(&[
        ("sin.f32 %f0, %f1;", "not supported"),
        ("sin.approx.sat.f32 %f0, %f1;", ".sat"),
        ("ex2.approx.rn.f32 %f0, %f1;", ".rn"),
        ("tanh.approx.ftz.f32 %f0, %f1;", ".ftz"),
        ("rcp.full.f32 %f0, %f1;", "rcp.full"),
        ("rcp.approx.f64 %d0, %d1;", ".ftz"),
        ("sqrt.approx.f64 %d0, %d1;", "sqrt.approx.f64"),
        ("div.approx.f64 %d0, %d1, %d2;", "div.approx.f64"),
        ("rsqrt.rn.f32 %f0, %f1;", "not supported"),
        ("ex2.approx.f64 %d0, %d1;", "ex2.approx.f64"),
        ("div.approx.f32 %f0, %f1;", "operands"),
        ("rcp.approx.f32 %f0, %f1, %f2;", "operands"),
    ]);
}
