//! `wmma` for a whole warp. Where an element lies in a fragment is not PTX's to say: see
//! [`Fragment`]. Sums are those of `mma` (`matrix.rs`).

use super::matrix::{factor, finish_float, finish_integer, integer_factor};
use super::memory;
use crate::machine::registers::{LANES, Registers};
use crate::machine::step::{LaneFault, Step};
use crate::ptx::decode::address::Base;
use crate::ptx::decode::memory::Memory;
use crate::ptx::decode::wmma::{Fragment, Shape, Transfer, Wmma};
use crate::ptx::types::Type;

/// Executes for all 32 lanes.
///
/// # Errors
/// The first lane whose access is refused.
pub fn execute(operation: &Wmma, step: &mut Step) -> Result<(), LaneFault> {
    match operation {
        Wmma::Load(transfer) => load(transfer, step),
        Wmma::Store(transfer) => store(transfer, step),
        Wmma::Multiply { shape, saturate, fragments } => {
            multiply(*shape, *saturate, fragments, &mut step.warp.registers);
            Ok(())
        }
    }
}

/// The elements of a fragment's matrix, row after row, as bits.
fn gather(fragment: &Fragment, registers: &Registers) -> Vec<u64> {
    let (bits, per_register) = (fragment.ty.bits(), fragment.per_register());
    let kept = u64::MAX >> (64 - bits);
    let mut elements = Vec::with_capacity(fragment.rows * fragment.columns);
    for slot in 0..fragment.per_lane() {
        let row = registers.extended(fragment.registers[slot / per_register]);
        elements.extend(row.iter().map(|word| word >> ((slot % per_register) as u32 * bits) & kept));
    }
    elements
}

/// Writes the elements of a matrix to its fragment's registers.
fn scatter(fragment: &Fragment, elements: &[u64], registers: &mut Registers) {
    let (bits, per_register) = (fragment.ty.bits(), fragment.per_register());
    for index in 0..fragment.count {
        let row: [u64; LANES] = std::array::from_fn(|lane| {
            (0..per_register).fold(0, |word, place| {
                // Lanes with room for more have their elements again.
                let slot = (index * per_register + place) % fragment.per_lane();
                word | elements[slot * LANES + lane] << (place as u32 * bits)
            })
        });
        registers.set_extended(fragment.registers[index], u32::MAX, &row);
    }
}

/// Puts the addresses of the lanes' elements with this number into the element's address register.
fn point(transfer: &Transfer, slot: usize, step: &mut Step) {
    let Base::Register(place) = transfer.element.address.base else { return };
    let first = step.addresses(&transfer.address);
    let Fragment { rows, columns, ty, .. } = transfer.fragment;
    let length = if transfer.by_rows { columns } else { rows };
    let strides = transfer.stride.map_or([length as u64; LANES], |stride| step.warp.registers.extended(stride));
    let addresses = std::array::from_fn(|lane| {
        let element = slot * LANES + lane;
        let (row, column) = (element / columns, element % columns);
        let (outer, inner) = if transfer.by_rows { (row, column) } else { (column, row) };
        let index = (outer as u64).wrapping_mul(strides[lane]).wrapping_add(inner as u64);
        first[lane].wrapping_add(index.wrapping_mul(u64::from(ty.bytes())))
    });
    step.warp.registers.set_long(place, u32::MAX, &addresses);
}

fn load(transfer: &Transfer, step: &mut Step) -> Result<(), LaneFault> {
    let mut elements = Vec::with_capacity(transfer.fragment.rows * transfer.fragment.columns);
    for slot in 0..transfer.fragment.per_lane() {
        point(transfer, slot, step);
        memory::execute(&Memory::Load(transfer.element), step, u32::MAX)?;
        elements.extend(step.warp.registers.extended(transfer.element.registers[0]));
    }
    scatter(&transfer.fragment, &elements, &mut step.warp.registers);
    Ok(())
}

fn store(transfer: &Transfer, step: &mut Step) -> Result<(), LaneFault> {
    let elements = gather(&transfer.fragment, &step.warp.registers);
    for (slot, row) in elements.chunks_exact(LANES).enumerate() {
        point(transfer, slot, step);
        let row = std::array::from_fn(|lane| row[lane]);
        step.warp.registers.set_extended(transfer.element.registers[0], u32::MAX, &row);
        memory::execute(&Memory::Store(transfer.element), step, u32::MAX)?;
    }
    Ok(())
}

/// `D = A * B + C`, element by element.
fn multiply(shape: Shape, saturate: bool, [d, a, b, c]: &[Fragment; 4], registers: &mut Registers) {
    let (left, right, sums) = (gather(a, registers), gather(b, registers), gather(c, registers));
    let values = |ty: Type, bits: &[u64]| -> Vec<f64> { bits.iter().map(|bits| factor(ty, *bits)).collect() };
    let results: Vec<u64> = match a.ty {
        Type::S8 | Type::U8 => {
            let integers = |bits: &[u64]| -> Vec<i64> { bits.iter().map(|bits| integer_factor(a.ty, *bits)).collect() };
            let start = |element: usize| i64::from(sums[element] as i32);
            let sum = dots(shape, &integers(&left), &integers(&right), start, |a, b, sum| sum + a * b);
            sum.into_iter().map(|sum| finish_integer(sum, saturate)).collect()
        }
        Type::F64 => {
            let doubles = |bits: &[u64]| -> Vec<f64> { bits.iter().map(|bits| f64::from_bits(*bits)).collect() };
            let start = |element: usize| f64::from_bits(sums[element]);
            let sum = dots(shape, &doubles(&left), &doubles(&right), start, f64::mul_add);
            sum.into_iter().map(f64::to_bits).collect()
        }
        ty => {
            let sum = dots(shape, &values(ty, &left), &values(ty, &right), |_| 0.0, |a, b, sum| sum + a * b);
            sum.into_iter().zip(&sums).map(|(sum, bits)| finish_float(sum, (c.ty, *bits), d.ty)).collect()
        }
    };
    scatter(d, &results, registers);
}

/// For each element of D, row after row: the sum over ascending k from `start` on.
fn dots<T: Copy>(
    Shape { m, n, k }: Shape,
    a: &[T],
    b: &[T],
    start: impl Fn(usize) -> T,
    add: impl Fn(T, T, T) -> T,
) -> Vec<T> {
    let one = |element: usize| {
        let (row, column) = (element / n, element % n);
        (0..k).fold(start(element), |sum, at| add(a[row * k + at], b[at * n + column], sum))
    };
    (0..m * n).map(one).collect()
}
