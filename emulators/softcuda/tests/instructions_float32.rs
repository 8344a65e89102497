//! f32 and f32x2 arithmetic against rounding by definition, in integers.

mod floating;

use floating::exact::{BF16, F16, F32, Format, MODES, Mode};
use floating::oracle::{Extremum, Operator, compute, saturate};
use floating::samples::{self, Random};
use floating::{REGISTERS, apply, assert_refused};
use softcuda::machine::snippet::Snippet;

const F: &str = "f32";

/// Operands of every operator, by number.
fn operands(number: usize, seed: u64) -> Vec<Vec<u64>> {
    let mut random = Random(seed);
    match number {
        1 => {
            let mut column = samples::special(F32);
            column.extend((0..4000).map(|_| random.number(F32)));
            vec![column]
        }
        2 => samples::pairs(F32, 4000, &mut random).to_vec(),
        _ => samples::triples(F32, 6000, &mut random).to_vec(),
    }
}

fn columns(operands: &[Vec<u64>]) -> Vec<&[u64]> {
    operands.iter().map(Vec::as_slice).collect()
}

#[track_caller]
fn assert_results(instruction: &str, operands: &[Vec<u64>], expected: impl Fn(&[u64]) -> u64) {
    let types = [F; 4];
    let results = apply(instruction, &types[..=operands.len()], &columns(operands));
    for (index, result) in results.iter().enumerate() {
        let row: Vec<u64> = operands.iter().map(|column| column[index]).collect();
        let expected = expected(&row);
        assert_eq!(*result, expected, "{instruction} of {row:x?}: {result:#x}, not {expected:#x}");
    }
}

/// The result with `.ftz`.
fn flushed(operator: Operator, mode: Mode, row: &[u64]) -> u64 {
    let row: Vec<u64> = row.iter().map(|bits| F32.flush(*bits)).collect();
    F32.flush(compute(operator, F32, mode, &row))
}

#[test]
fn every_operator_rounds_in_every_mode_as_defined() {
    let rows: &[(&str, Operator, usize, bool)] = &[
        ("add", Operator::Add, 2, true),
        ("sub", Operator::Subtract, 2, true),
        ("mul", Operator::Multiply, 2, true),
        ("fma", Operator::Fused, 3, true),
        ("mad", Operator::Fused, 3, true),
        ("div", Operator::Divide, 2, false),
        ("rcp", Operator::Reciprocal, 1, false),
        ("sqrt", Operator::SquareRoot, 1, false),
    ];
    for (name, operator, number, saturates) in rows {
        let operands = operands(*number, 1);
        for (word, mode) in MODES {
            assert_results(&format!("{name}.{word}.f32"), &operands, |row| compute(*operator, F32, mode, row));
            assert_results(&format!("{name}.{word}.ftz.f32"), &operands, |row| flushed(*operator, mode, row));
            if *saturates {
                assert_results(&format!("{name}.{word}.sat.f32"), &operands, |row| {
                    saturate(F32, compute(*operator, F32, mode, row))
                });
                assert_results(&format!("{name}.{word}.ftz.sat.f32"), &operands, |row| {
                    F32.flush(saturate(F32, flushed(*operator, mode, row)))
                });
            }
        }
    }
}

#[test]
fn sums_and_products_without_a_rounding_modifier_are_rounded_to_nearest() {
    let operands = operands(2, 2);
    for (name, operator) in [("add", Operator::Add), ("sub", Operator::Subtract), ("mul", Operator::Multiply)] {
        assert_results(&format!("{name}.f32"), &operands, |row| compute(operator, F32, Mode::Rn, row));
        assert_results(&format!("{name}.ftz.f32"), &operands, |row| flushed(operator, Mode::Rn, row));
        assert_results(&format!("{name}.sat.f32"), &operands, |row| {
            saturate(F32, compute(operator, F32, Mode::Rn, row))
        });
    }
}

#[test]
fn pairs_are_two_numbers_that_do_not_touch() {
    let rows = [
        ("add", Operator::Add, 2),
        ("sub", Operator::Subtract, 2),
        ("mul", Operator::Multiply, 2),
        ("fma", Operator::Fused, 3),
    ];
    for (name, operator, number) in rows {
        let low = operands(number, 3);
        // The same rows in another order above them.
        let high: Vec<Vec<u64>> = low.iter().map(|column| column.iter().rev().copied().collect()).collect();
        let packed: Vec<Vec<u64>> =
            low.iter().zip(&high).map(|(low, high)| low.iter().zip(high).map(|(l, h)| l | h << 32).collect()).collect();
        for (word, mode) in MODES {
            for flush in [false, true] {
                let of =
                    |row: &[u64]| if flush { flushed(operator, mode, row) } else { compute(operator, F32, mode, row) };
                let instruction = format!("{name}.{word}{}.f32x2", if flush { ".ftz" } else { "" });
                let results = apply(&instruction, &["b64"; 4][..=number], &columns(&packed));
                for (index, result) in results.iter().enumerate() {
                    let [low, high] =
                        [&low, &high].map(|half| half.iter().map(|column| column[index]).collect::<Vec<_>>());
                    assert_eq!(*result, of(&low) | of(&high) << 32, "{instruction} of {low:x?}, {high:x?}");
                }
            }
        }
    }
}

/// The f32 with the value of a 16-bit number, NaN as any NaN.
fn widened(format: Format, bits: u64) -> u64 {
    if format.is_nan(bits) {
        return F32.nan;
    }
    let sign = if format.is_negative(bits) { F32.sign() } else { 0 };
    if format.is_infinite(bits) {
        return F32.infinity() | sign;
    }
    let value = format.value(bits);
    // Every number of 16 bits is an f32: the host's conversions are exact.
    sign | u64::from(((value.integer.unsigned_abs() as f64 * 2f64.powi(value.exponent)) as f32).to_bits())
}

#[test]
fn sixteen_bit_operands_are_widened_exactly_before_f32_arithmetic() {
    let mut random = Random(4);
    for (name, format) in [("f16", F16), ("bf16", BF16)] {
        for a in [samples::special(format), (0..0x1_0000).step_by(11).collect()].concat() {
            // The conversion of the test itself: back to the value.
            let wide = widened(format, a);
            assert!(
                format.is_nan(a) || format.is_infinite(a) || {
                    let (narrow, wide) = (format.value(a), F32.value(wide));
                    floating::exact::sign_of_sum(&[narrow, wide.negated()]).is_eq()
                }
            );
        }
        let [a, b] = samples::pairs(format, 3000, &mut random);
        let c: Vec<u64> =
            a.iter().map(|_| if random.bits().is_multiple_of(4) { 0 } else { random.number(F32) }).collect();
        for (word, mode) in MODES {
            for sat in [false, true] {
                let finish = |bits| if sat { saturate(F32, bits) } else { bits };
                let suffix = format!("{word}{}.f32.{name}", if sat { ".sat" } else { "" });
                for (opcode, operator) in [("add", Operator::Add), ("sub", Operator::Subtract)] {
                    let instruction = format!("{opcode}.{suffix}");
                    let results = apply(&instruction, &["f32", "b16", "f32"], &[&a, &c]);
                    for (index, result) in results.iter().enumerate() {
                        let row = [widened(format, a[index]), c[index]];
                        assert_eq!(*result, finish(compute(operator, F32, mode, &row)), "{instruction} of {row:x?}");
                    }
                }
                let instruction = format!("fma.{suffix}");
                let results = apply(&instruction, &["f32", "b16", "b16", "f32"], &[&a, &b, &c]);
                for (index, result) in results.iter().enumerate() {
                    let row = [widened(format, a[index]), widened(format, b[index]), c[index]];
                    let expected = finish(compute(Operator::Fused, F32, mode, &row));
                    assert_eq!(*result, expected, "{instruction} of {row:x?}");
                }
            }
        }
    }
}

#[test]
fn signs_are_bits() {
    let one = operands(1, 5);
    assert_results("abs.f32", &one, |row| row[0] & 0x7fff_ffff);
    assert_results("neg.f32", &one, |row| row[0] ^ 0x8000_0000);
    assert_results("abs.ftz.f32", &one, |row| F32.flush(row[0]) & 0x7fff_ffff);
    assert_results("neg.ftz.f32", &one, |row| F32.flush(row[0]) ^ 0x8000_0000);
    assert_results("copysign.f32", &operands(2, 5), |row| row[0] & 0x8000_0000 | row[1] & 0x7fff_ffff);
}

#[test]
fn minimum_and_maximum() {
    let two = operands(2, 6);
    let three = operands(3, 6);
    for bits in 0..8 {
        let extremum = Extremum {
            maximum: bits & 1 != 0,
            propagate: bits & 2 != 0,
            absolute: bits & 4 != 0,
            exclusive_sign: bits & 4 != 0,
        };
        let name = extremum.spelling();
        assert_results(&format!("{name}.f32"), &two, |row| extremum.of(F32, row[0], row[1]));
        // .ftz stands before .NaN.
        let flushed = format!("{}.ftz{}.f32", &name[..3], &name[3..]);
        assert_results(&flushed, &two, |row| extremum.of(F32, F32.flush(row[0]), F32.flush(row[1])));
        let extremum = Extremum { exclusive_sign: false, ..extremum };
        assert_results(&format!("{}.f32", extremum.spelling()), &three, |row| {
            extremum.of(F32, extremum.of(F32, row[0], row[1]), row[2])
        });
    }
}

/// The manual's rules that have names, as literal bits: a (b), and the results of min and max without and with .NaN.
#[test]
fn minimum_and_maximum_of_zeros_and_nan() {
    const ZERO: u64 = 0;
    const MINUS_ZERO: u64 = 0x8000_0000;
    const ONE: u64 = 0x3f80_0000;
    const PAYLOAD: u64 = 0xffc0_1234;
    const SIGNALLING: u64 = 0x7f80_0001;
    const NAN: u64 = 0x7fff_ffff;
    let rows = [
        (ZERO, MINUS_ZERO, [MINUS_ZERO, ZERO, MINUS_ZERO, ZERO]),
        (MINUS_ZERO, ZERO, [MINUS_ZERO, ZERO, MINUS_ZERO, ZERO]),
        (PAYLOAD, ONE, [ONE, ONE, NAN, NAN]),
        (ONE, SIGNALLING, [ONE, ONE, NAN, NAN]),
        (PAYLOAD, SIGNALLING, [NAN, NAN, NAN, NAN]),
    ];
    for (a, b, expected) in rows {
        for (instruction, expected) in ["min.f32", "max.f32", "min.NaN.f32", "max.NaN.f32"].iter().zip(expected) {
            assert_eq!(apply(instruction, &[F; 3], &[&[a], &[b]]), [expected], "{instruction} {a:x} {b:x}");
        }
    }
}

/// A word of `testp`, and the host's name for it.
type Row = (&'static str, fn(f32) -> bool);

#[test]
fn properties() {
    let values = &operands(1, 7)[0];
    let rows: &[Row] = &[
        ("finite", f32::is_finite),
        ("infinite", f32::is_infinite),
        ("number", |value| !value.is_nan()),
        ("notanumber", f32::is_nan),
        ("normal", |value| value.is_normal() || value == 0.0),
        ("subnormal", f32::is_subnormal),
    ];
    for (word, holds) in rows {
        let answers = apply(&format!("testp.{word}.f32"), &["pred", "f32"], &[values]);
        for (answer, bits) in answers.iter().zip(values) {
            assert_eq!(*answer == 1, holds(f32::from_bits(*bits as u32)), "testp.{word} of {bits:x}");
        }
    }
}

#[test]
fn lanes_whose_guard_fails_keep_their_value() {
    let text = ".reg .f32 %f<3>; .reg .pred %p; @%p fma.rn.f32 %f2, %f0, %f1, %f1; @!%p add.rz.f32 %f2, %f0, %f0;";
    let mut snippet = Snippet::new(text).unwrap();
    let lane_bits = |value: fn(usize) -> f32| std::array::from_fn(|lane| u64::from(value(lane).to_bits()));
    snippet.set("%f0", &lane_bits(|lane| lane as f32));
    snippet.set("%f1", &lane_bits(|_| 3.0));
    snippet.set("%p", &std::array::from_fn(|lane| u64::from(lane % 3 == 0)));
    snippet.run();
    let expected = lane_bits(|lane| if lane % 3 == 0 { lane as f32 * 3.0 + 3.0 } else { 2.0 * lane as f32 });
    assert_eq!(snippet.get("%f2"), expected);
}

#[test]
fn immediate_operands() {
    let single = "fma.rn.f32 %f1, %f0, 0f40000000, 0fBF800000;";
    let double = "add.f64 %d1, %d0, 0d3FF8000000000000;";
    let mut snippet = Snippet::new(&format!("{REGISTERS}{single}{double}")).unwrap();
    snippet.set("%f0", &[u64::from(5f32.to_bits()); 32]);
    snippet.set("%d0", &[5f64.to_bits(); 32]);
    snippet.run();
    assert_eq!(snippet.get("%f1"), [u64::from(9f32.to_bits()); 32]);
    assert_eq!(snippet.get("%d1"), [6.5f64.to_bits(); 32]);
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    assert_refused(&[
        ("add.rna.f32 %f0, %f1, %f2;", ".rna"),
        ("add.relu.f32 %f0, %f1, %f2;", ".relu"),
        ("add.rn.rz.f32 %f0, %f1, %f2;", ".rz"),
        ("add.rn.sat.f32x2 %l0, %l1, %l2;", ".sat"),
        ("fma.f32 %f0, %f1, %f2, %f3;", "rounding"),
        ("mad.f32 %f0, %f1, %f2, %f3;", "rounding"),
        ("fma.rn.f32x2 %f0, %f1, %f2, %f3;", "width"),
        ("mad.rn.f32x2 %l0, %l1, %l2, %l3;", "f32x2"),
        ("div.rn.sat.f32 %f0, %f1, %f2;", ".sat"),
        ("div.f32 %f0, %f1, %f2;", "rounding"),
        ("rcp.f32 %f0, %f1;", "rounding"),
        ("sqrt.f32 %f0, %f1;", "rounding"),
        ("abs.rn.f32 %f0, %f1;", ".rn"),
        ("neg.sat.f32 %f0, %f1;", ".sat"),
        ("copysign.ftz.f32 %f0, %f1, %f2;", ".ftz"),
        ("min.xorsign.f32 %f0, %f1, %f2;", ".abs"),
        ("min.abs.f32 %f0, %f1, %f2;", ".abs"),
        ("min.xorsign.abs.f32 %f0, %f1, %f2, %f3;", ".xorsign"),
        ("min.sat.f32 %f0, %f1, %f2;", ".sat"),
        ("testp.f32 %p, %f1;", "property"),
        ("testp.normal.ftz.f32 %p, %f1;", ".ftz"),
        ("add.rn.ftz.f32.f16 %f0, %h1, %f2;", ".ftz"),
        ("mul.rn.f32.f16 %f0, %h1, %f2;", "not supported"),
        ("fma.rn.f32.f16x2 %f0, %r1, %r2, %f2;", "f16x2"),
        ("add.f32 %f0, %f1;", "operands"),
        ("add.f32 %f0, %f1, %f2, %f3;", "operands"),
        ("add.f32 %f0, %f1, %d2;", "width"),
        ("add.f32 %f0, %f1, %x;", "%x"),
    ]);
}
