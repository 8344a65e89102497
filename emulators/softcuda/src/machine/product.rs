//! Matrix products over device memory, in arithmetic of the host.
//!
//! The bits of an element depend on its own row of A and column of B alone: its k products are rounded and added in
//! ascending order in f32, whatever m and n are. Products of 16-bit numbers are exact in f32.

use super::device::Device;
use super::memory::Refusal;
use super::memory::global::GlobalMemory;
use crate::count::{Counters, GlobalTraffic};
use crate::product::{BF16, F16, F32, Operand, Product, Scalar};
use crate::report::{Fault, FaultKind, LaunchReport};
use half::{bf16, f16};

/// The name that products have among the launches.
pub const NAME: &str = "cublasGemmEx";

/// Rows of C that are worked on at once: the part of A that they need stays in the cache.
const BLOCK: usize = 512;

/// A refused access, and of which matrix.
struct Trouble(Refusal, &'static str, u64);

/// Bytes of an element.
fn width(data_type: u64) -> Result<usize, Refusal> {
    match data_type {
        F32 => Ok(4),
        F16 | BF16 => Ok(2),
        other => Err(Refusal::new(FaultKind::InvalidOperation, format!("no matrix has the type {other}"))),
    }
}

fn widen(data_type: u64, bytes: &[u8]) -> f32 {
    match *bytes {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b] if data_type == F16 => f16::from_le_bytes([a, b]).to_f32(),
        [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    }
}

fn narrow(data_type: u64, value: f32, into: &mut Vec<u8>) {
    match data_type {
        F32 => into.extend(value.to_le_bytes()),
        F16 => into.extend(f16::from_f32(value).to_le_bytes()),
        _ => into.extend(bf16::from_f32(value).to_le_bytes()),
    }
}

/// Reads bytes that must have been written, unless that is not looked for.
fn read(memory: &GlobalMemory, address: u64, bytes: &mut [u8], checked: bool) -> Result<(), Refusal> {
    if checked {
        memory.check_initialized(address, bytes.len() as u64)?;
    }
    memory.read(address, bytes)
}

/// One column of a matrix, in f32.
fn column(
    memory: &GlobalMemory,
    matrix: &Operand,
    rows: usize,
    index: usize,
    checked: bool,
) -> Result<Vec<f32>, (Refusal, u64)> {
    let address = place(matrix, index);
    let size = width(matrix.data_type).map_err(|refusal| (refusal, address))?;
    if !address.is_multiple_of(size as u64) {
        let text = format!("the matrix begins at {address:#x}, which is no multiple of its elements' {size} bytes");
        return Err((Refusal::new(FaultKind::Misaligned, text), address));
    }
    let mut bytes = vec![0; rows * size];
    read(memory, address, &mut bytes, checked).map_err(|refusal| (refusal, address))?;
    Ok(bytes.chunks_exact(size).map(|element| widen(matrix.data_type, element)).collect())
}

fn place(matrix: &Operand, column: usize) -> u64 {
    let size = if matrix.data_type == F32 { 4 } else { 2 };
    matrix.address.wrapping_add((column as u64).wrapping_mul(matrix.leading_dimension).wrapping_mul(size))
}

/// A matrix of `rows` × `columns` in f32, `rows` numbers after one another; from its transpose if it is stored so.
fn load(
    memory: &GlobalMemory,
    matrix: &Operand,
    (rows, columns): (usize, usize),
    transposed: bool,
    name: &'static str,
    checked: bool,
) -> Result<Vec<f32>, Trouble> {
    let trouble = |(refusal, address)| Trouble(refusal, name, address);
    let mut numbers = vec![0.0; rows * columns];
    if transposed {
        for row in 0..rows {
            let stored = column(memory, matrix, columns, row, checked).map_err(trouble)?;
            stored.iter().enumerate().for_each(|(column, number)| numbers[column * rows + row] = *number);
        }
    } else {
        for (index, to) in numbers.chunks_exact_mut(rows.max(1)).enumerate() {
            to.copy_from_slice(&column(memory, matrix, rows, index, checked).map_err(trouble)?);
        }
    }
    Ok(numbers)
}

fn scalar(memory: &GlobalMemory, scalar: &Scalar, name: &'static str, checked: bool) -> Result<f32, Trouble> {
    if scalar.address == 0 {
        return Ok(scalar.value);
    }
    let mut bytes = [0; 4];
    read(memory, scalar.address, &mut bytes, checked).map_err(|refusal| Trouble(refusal, name, scalar.address))?;
    Ok(f32::from_le_bytes(bytes))
}

/// The nearest number of TF32, ties away from zero; infinities and NaN as they are.
fn to_tf32(number: f32) -> f32 {
    const BELOW: u32 = 13;
    if !number.is_finite() {
        return number;
    }
    f32::from_bits((number.to_bits() + (1 << (BELOW - 1))) & !((1 << BELOW) - 1))
}

/// Σ a·b for every element of C, m after one another.
fn sums(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let mut sums = vec![0.0_f32; m * n];
    for begin in (0..m).step_by(BLOCK) {
        let end = m.min(begin + BLOCK);
        for column in 0..n {
            let to = &mut sums[column * m + begin..column * m + end];
            for (term, factor) in b[column * k..(column + 1) * k].iter().enumerate() {
                let from = &a[term * m + begin..term * m + end];
                to.iter_mut().zip(from).for_each(|(sum, number)| *sum += number * factor);
            }
        }
    }
    sums
}

/// Performs a product; what it read and wrote.
fn perform(memory: &GlobalMemory, product: &Product, checked: bool) -> Result<GlobalTraffic, Trouble> {
    let (m, n, k) = (product.m as usize, product.n as usize, product.k as usize);
    let alpha = scalar(memory, &product.alpha, "alpha", checked)?;
    let beta = scalar(memory, &product.beta, "beta", checked)?;
    let mut a = load(memory, &product.a, (m, k), product.transpose_a != 0, "A", checked)?;
    // Stored k after one another: columns of B.
    let mut b = load(memory, &product.b, (k, n), product.transpose_b != 0, "B", checked)?;
    if product.tf32 != 0 && product.a.data_type == F32 {
        a.iter_mut().chain(&mut b).for_each(|number| *number = to_tf32(*number));
    }
    let size = |matrix: &Operand| width(matrix.data_type).map_err(|refusal| Trouble(refusal, "C", matrix.address));
    let c_size = size(&product.c)?;
    let mut loaded = m * k * size(&product.a)? + k * n * size(&product.b)?;
    for (index, sums) in sums(&a, &b, (m, n, k)).chunks_exact(m).enumerate() {
        let trouble = |(refusal, address)| Trouble(refusal, "C", address);
        let mut bytes = Vec::with_capacity(m * c_size);
        let before = if beta == 0.0 {
            Vec::new()
        } else {
            loaded += m * c_size;
            column(memory, &product.c, m, index, checked).map_err(trouble)?
        };
        for (row, sum) in sums.iter().enumerate() {
            let value = before.get(row).map_or(alpha * sum, |before| alpha * sum + beta * before);
            narrow(product.c.data_type, value, &mut bytes);
        }
        let address = place(&product.c, index);
        memory.write(address, &bytes).map_err(|refusal| trouble((refusal, address)))?;
    }
    let (loaded, stored) = (loaded as u64, (m * n * c_size) as u64);
    Ok(GlobalTraffic {
        bytes_loaded: loaded,
        bytes_stored: stored,
        warp_bytes_loaded: loaded,
        warp_bytes_stored: stored,
        distinct_bytes_read: loaded,
        distinct_bytes_written: stored,
        ..GlobalTraffic::default()
    })
}

impl Device {
    /// Performs a product, and reports it as a launch whose grid is (m, n, k).
    pub fn product(&self, product: &Product) -> LaunchReport {
        let mut report = LaunchReport {
            kernel: NAME.to_owned(),
            grid: [product.m as u32, product.n as u32, product.k as u32],
            block: [1; 3],
            cluster: [1; 3],
            ..LaunchReport::default()
        };
        match perform(&self.memory, product, self.settings().checks.uninitialized) {
            Ok(global) => report.counters = Counters { global, ..Counters::default() },
            Err(Trouble(refusal, matrix, address)) => {
                report.fault = Some(Fault {
                    kind: refusal.kind,
                    kernel: NAME.to_owned(),
                    line: 0,
                    instruction: format!("{matrix} of {product:?}"),
                    block: [0; 3],
                    thread: [0; 3],
                    address: Some(address),
                    message: refusal.message,
                    other: None,
                });
            }
        }
        report
    }
}
