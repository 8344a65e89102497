//! `mma.sync` for a whole warp.
//!
//! Where an element lies (the manual's figures of the fragments, for all shapes in one rule): let `group` be lane / 4,
//! `thread` lane % 4, and E the elements that a register holds (4 of 8 bits, 2 of 16, 1 of 32 or 64), p the place in a
//! register, from the low bits up.
//!
//! | fragment | row | column |
//! | --- | --- | --- |
//! | A, 16 rows, register r | `group + 8 (r % 2)` | `E thread + p + 4 E (r / 2)` |
//! | A, 8 rows, register r | `group` | `E thread + p + 4 E r` |
//! | B, register r | `E thread + p + 4 E r` | `group` |
//! | C and D, element i of the lane | `group + 8 (i / 2)` | `2 thread + i % 2` |
//!
//! Sums: products of floating-point factors are exact in f64; they are summed there in ascending k, the accumulator is
//! added last, and the result is rounded once to the accumulator's type. f64 factors are added to the accumulator one
//! after the other, each with one rounding. The manual leaves order and internal precision open, and a device keeps
//! fewer bits. NaN results are canonical.

use super::convert::format::{self, Format};
use super::convert::lanes;
use crate::machine::registers::{LANES, Registers, Width};
use crate::ptx::decode::matrix::{Fragment, Matrix};
use crate::ptx::types::{Rounding, Type};

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const DEPTH: usize = 32;

/// A matrix A, of which `rows` x `depth` are used.
type Left<T> = [[T; DEPTH]; ROWS];
/// A matrix B, of which `depth` rows are used.
type Right<T> = [[T; COLUMNS]; DEPTH];
/// A matrix C or D.
type Sum<T> = [[T; COLUMNS]; ROWS];

/// Executes for all 32 lanes.
pub fn execute(operation: &Matrix, registers: &mut Registers) {
    match operation.accumulator {
        Type::S32 => integers(operation, registers),
        Type::F64 => doubles(operation, registers),
        _ => floats(operation, registers),
    }
}

/// The elements of A and B, each decoded by a function of its bits.
fn factors<T: Copy + Default>(
    operation: &Matrix,
    registers: &Registers,
    decode: impl Fn(Type, u64) -> T,
) -> (Left<T>, Right<T>) {
    let mut a = [[T::default(); DEPTH]; ROWS];
    let mut b = [[T::default(); COLUMNS]; DEPTH];
    let halves = usize::from(operation.shape.rows) / 8;
    for_each_element(operation.a_type, &operation.a, registers, |register, lane, first, place, bits| {
        let column = first + place + (register / halves) * 4 * per_register(operation.a_type);
        a[lane / 4 + 8 * (register % halves)][column] = decode(operation.a_type, bits);
    });
    for_each_element(operation.b_type, &operation.b, registers, |register, lane, first, place, bits| {
        let row = first + place + register * 4 * per_register(operation.b_type);
        b[row][lane / 4] = decode(operation.b_type, bits);
    });
    (a, b)
}

/// Elements in one register of a fragment.
fn per_register(ty: Type) -> usize {
    match ty.bits() {
        8 => 4,
        16 => 2,
        _ => 1,
    }
}

/// Calls with register, lane, the lane's first place in a group of four lanes, place in the register, and the element's
/// bits.
fn for_each_element<const MOST: usize>(
    ty: Type,
    fragment: &Fragment<MOST>,
    registers: &Registers,
    mut visit: impl FnMut(usize, usize, usize, usize, u64),
) {
    let elements = per_register(ty);
    let bits = ty.bits();
    let kept = u64::MAX >> (64 - bits);
    for register in 0..fragment.count() {
        let row = registers.extended(fragment.register(register));
        for lane in 0..LANES {
            for place in 0..elements {
                let value = row[lane] >> (place as u32 * bits) & kept;
                visit(register, lane, lane % 4 * elements, place, value);
            }
        }
    }
}

/// The accumulator's elements, as bits.
fn accumulator(operation: &Matrix, registers: &Registers) -> Sum<u64> {
    let mut sum = [[0; COLUMNS]; ROWS];
    let elements = per_register(operation.accumulator);
    for_each_element(operation.accumulator, &operation.c, registers, |register, lane, _, place, bits| {
        let element = register * elements + place;
        sum[lane / 4 + 8 * (element / 2)][lane % 4 * 2 + element % 2] = bits;
    });
    sum
}

/// Writes D.
fn store(operation: &Matrix, registers: &mut Registers, result: &Sum<u64>) {
    let elements = per_register(operation.accumulator);
    let bits = operation.accumulator.bits();
    for register in 0..operation.d.count() {
        let row: [u64; LANES] = std::array::from_fn(|lane| {
            (0..elements).fold(0, |word, place| {
                let element = register * elements + place;
                word | result[lane / 4 + 8 * (element / 2)][lane % 4 * 2 + element % 2] << (place as u32 * bits)
            })
        });
        let reg = operation.d.register(register);
        debug_assert!(reg.width == Width::Long || bits < 64);
        registers.set_extended(reg, u32::MAX, &row);
    }
}

/// `a * b + c` with the sum over k from `start(c)` on, in ascending k.
fn product<T: Copy>(
    operation: &Matrix,
    (a, b): &(Left<T>, Right<T>),
    start: impl Fn(usize, usize) -> T,
    add: impl Fn(T, T, T) -> T,
) -> Sum<T> {
    let mut sum: Sum<T> = std::array::from_fn(|row| std::array::from_fn(|column| start(row, column)));
    let (rows, depth) = (usize::from(operation.shape.rows), usize::from(operation.shape.depth));
    for row in 0..rows.min(ROWS) {
        let mut line = sum[row];
        for k in 0..depth.min(DEPTH) {
            for column in 0..COLUMNS {
                line[column] = add(a[row][k], b[k][column], line[column]);
            }
        }
        sum[row] = line;
    }
    sum
}

/// The value of a floating-point factor of at most 32 bits.
pub(super) fn factor(ty: Type, bits: u64) -> f64 {
    match ty {
        Type::F16 => f64::from(f32::from_bits(lanes::f32_of_f16(bits as u32))),
        Type::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        // The low bits of a tf32 register are not looked at.
        Type::Tf32 => f64::from(f32::from_bits(bits as u32 & 0xffff_e000)),
        _ => Format::of(ty).decode(bits),
    }
}

/// A sum of products and the accumulator's element, rounded to the result's type. Both are f32 or f16.
pub(super) fn finish_float(sum: f64, (c_type, bits): (Type, u64), d_type: Type) -> u64 {
    let c = if c_type == Type::F32 { f64::from(f32::from_bits(bits as u32)) } else { format::F16.decode(bits) };
    if d_type == Type::F32 {
        let value = (sum + c) as f32;
        u64::from(if value.is_nan() { lanes::NAN } else { value.to_bits() })
    } else {
        format::F16.encode(sum + c, Rounding::NearestEven)
    }
}

/// The value of an integer factor.
pub(super) fn integer_factor(ty: Type, bits: u64) -> i64 {
    if ty == Type::S8 { i64::from(bits as i8) } else { i64::from(bits as u8) }
}

/// An integer sum as s32: limited, or cut.
pub(super) fn finish_integer(sum: i64, saturate: bool) -> u64 {
    let sum = if saturate { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { sum };
    u64::from(sum as i32 as u32)
}

fn floats(operation: &Matrix, registers: &mut Registers) {
    let factors = factors(operation, registers, factor);
    let sum = product(operation, &factors, |_, _| 0.0, |a: f64, b, sum| sum + a * b);
    let c = accumulator(operation, registers);
    let ty = operation.accumulator;
    let result = std::array::from_fn(|row: usize| {
        std::array::from_fn(|column: usize| finish_float(sum[row][column], (ty, c[row][column]), ty))
    });
    store(operation, registers, &result);
}

fn doubles(operation: &Matrix, registers: &mut Registers) {
    let factors = factors(operation, registers, |_, bits| f64::from_bits(bits));
    let c = accumulator(operation, registers);
    let sum = product(operation, &factors, |row, column| f64::from_bits(c[row][column]), f64::mul_add);
    store(operation, registers, &sum.map(|line| line.map(f64::to_bits)));
}

fn integers(operation: &Matrix, registers: &mut Registers) {
    let factors = factors(operation, registers, integer_factor);
    let c = accumulator(operation, registers);
    let start = |row: usize, column: usize| i64::from(c[row][column] as i32);
    // 32 products below 2^16 and an s32: far from the ends of i64.
    let sum = product(operation, &factors, start, |a, b, sum| sum + a * b);
    store(operation, registers, &sum.map(|line| line.map(|sum| finish_integer(sum, operation.saturate))));
}
