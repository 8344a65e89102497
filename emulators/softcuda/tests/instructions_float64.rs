//! f64 arithmetic against rounding by definition, in integers.

mod floating;

use floating::exact::{F64, MODES, Mode};
use floating::oracle::{Extremum, Operator, compute};
use floating::samples::{self, Random};
use floating::{apply, assert_refused};

const F: &str = "f64";

fn operands(number: usize, seed: u64) -> Vec<Vec<u64>> {
    let mut random = Random(seed);
    match number {
        1 => {
            let mut column = samples::special(F64);
            column.extend((0..2000).map(|_| random.number(F64)));
            vec![column]
        }
        2 => samples::pairs(F64, 2000, &mut random).to_vec(),
        _ => samples::triples(F64, 2000, &mut random).to_vec(),
    }
}

#[track_caller]
fn assert_results(instruction: &str, operands: &[Vec<u64>], expected: impl Fn(&[u64]) -> u64) {
    let columns: Vec<&[u64]> = operands.iter().map(Vec::as_slice).collect();
    let results = apply(instruction, &[F; 4][..=operands.len()], &columns);
    for (index, result) in results.iter().enumerate() {
        let row: Vec<u64> = operands.iter().map(|column| column[index]).collect();
        let expected = expected(&row);
        assert_eq!(*result, expected, "{instruction} of {row:x?}: {result:#x}, not {expected:#x}");
    }
}

#[test]
fn every_operator_rounds_in_every_mode_as_defined() {
    let rows: &[(&str, Operator, usize)] = &[
        ("add", Operator::Add, 2),
        ("sub", Operator::Subtract, 2),
        ("mul", Operator::Multiply, 2),
        ("fma", Operator::Fused, 3),
        ("mad", Operator::Fused, 3),
        ("div", Operator::Divide, 2),
        ("rcp", Operator::Reciprocal, 1),
        ("sqrt", Operator::SquareRoot, 1),
    ];
    for (name, operator, number) in rows {
        let operands = operands(*number, 1);
        for (word, mode) in MODES {
            assert_results(&format!("{name}.{word}.f64"), &operands, |row| compute(*operator, F64, mode, row));
        }
    }
}

#[test]
fn sums_and_products_without_a_rounding_modifier_are_rounded_to_nearest() {
    let operands = operands(2, 2);
    for (name, operator) in [("add", Operator::Add), ("sub", Operator::Subtract), ("mul", Operator::Multiply)] {
        assert_results(&format!("{name}.f64"), &operands, |row| compute(operator, F64, Mode::Rn, row));
    }
}

#[test]
fn minimum_and_maximum() {
    let operands = operands(2, 3);
    for maximum in [false, true] {
        let extremum = Extremum { maximum, ..Extremum::default() };
        assert_results(&format!("{}.f64", extremum.spelling()), &operands, |row| extremum.of(F64, row[0], row[1]));
    }
}

#[test]
fn signs_are_bits() {
    let one = operands(1, 4);
    assert_results("abs.f64", &one, |row| row[0] & !(1 << 63));
    assert_results("neg.f64", &one, |row| row[0] ^ 1 << 63);
    assert_results("copysign.f64", &operands(2, 4), |row| row[0] & 1 << 63 | row[1] & !(1 << 63));
}

/// A word of `testp`, and the host's name for it.
type Row = (&'static str, fn(f64) -> bool);

#[test]
fn properties() {
    let values = &operands(1, 5)[0];
    let rows: &[Row] = &[
        ("finite", f64::is_finite),
        ("infinite", f64::is_infinite),
        ("number", |value| !value.is_nan()),
        ("notanumber", f64::is_nan),
        ("normal", |value| value.is_normal() || value == 0.0),
        ("subnormal", f64::is_subnormal),
    ];
    for (word, holds) in rows {
        let answers = apply(&format!("testp.{word}.f64"), &["pred", "f64"], &[values]);
        for (answer, bits) in answers.iter().zip(values) {
            assert_eq!(*answer == 1, holds(f64::from_bits(*bits)), "testp.{word} of {bits:x}");
        }
    }
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    assert_refused(&[
        ("add.ftz.f64 %d0, %d1, %d2;", ".ftz"),
        ("add.rn.sat.f64 %d0, %d1, %d2;", ".sat"),
        ("fma.f64 %d0, %d1, %d2, %d3;", "rounding"),
        ("div.f64 %d0, %d1, %d2;", "rounding"),
        ("sqrt.rn.ftz.f64 %d0, %d1;", ".ftz"),
        ("min.NaN.f64 %d0, %d1, %d2;", ".NaN"),
        ("min.ftz.f64 %d0, %d1, %d2;", ".ftz"),
        ("max.f64 %d0, %d1, %d2, %d3;", "operands"),
        ("abs.ftz.f64 %d0, %d1;", ".ftz"),
        ("add.f64 %d0, %d1, %f2;", "width"),
    ]);
}
