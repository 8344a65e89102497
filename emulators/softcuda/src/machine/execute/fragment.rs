//! `ldmatrix`, `stmatrix`, `movmatrix`.

use super::memory::account;
use crate::machine::memory::Refusal;
use crate::machine::memory::Who;
use crate::machine::registers::LANES;
use crate::machine::step::{LaneFault, Step};
use crate::ptx::decode::fragment::{Fragment, Rows};
use crate::ptx::types::Space;
use crate::report::FaultKind;

/// Rows and columns of a matrix.
const SIDE: usize = 8;
/// Bytes of a row.
const ROW: usize = 2 * SIDE;

/// `[row][column]`.
type Matrix = [[u16; SIDE]; SIDE];

/// Executes for the whole warp.
///
/// # Errors
/// The first lane whose row is refused.
pub fn execute(operation: &Fragment, step: &mut Step) -> Result<(), LaneFault> {
    match operation {
        Fragment::Load(rows) => load(rows, step),
        Fragment::Store(rows) => store(rows, step),
        Fragment::Transpose { destination, source } => {
            let matrix = transposed(&gather(&step.warp.registers.word(*source)));
            step.warp.registers.set_word(*destination, u32::MAX, &scatter(&matrix));
            Ok(())
        }
    }
}

fn transposed(matrix: &Matrix) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| matrix[column][row]))
}

/// The matrix that the lanes' words hold.
fn gather(words: &[u32; LANES]) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| (words[row * 4 + column / 2] >> (16 * (column % 2))) as u16))
}

/// The lanes' words of a matrix.
fn scatter(matrix: &Matrix) -> [u32; LANES] {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        u32::from(matrix[row][column]) | u32::from(matrix[row][column + 1]) << 16
    })
}

/// The addresses of the rows in shared memory, checked and counted, matrix by matrix.
fn addresses(rows: &Rows, step: &mut Step, is_load: bool) -> Result<[u64; LANES], LaneFault> {
    let active = if rows.count == 4 { u32::MAX } else { (1 << (SIDE as u32 * rows.count)) - 1 };
    let mut addresses = [0; LANES];
    for (space, members, places) in step.by_space(&rows.address, active) {
        if !matches!(space, Space::Shared | Space::SharedCluster) {
            let lane = members.trailing_zeros() as usize;
            let refusal = Refusal::new(FaultKind::InvalidOperation, "the address is not one of shared memory");
            return Err(LaneFault::at(lane, places[lane], refusal));
        }
        for matrix in 0..rows.count {
            let quarter = 0xff << (SIDE as u32 * matrix);
            account(step, space, &places, members & quarter, ROW as u64, is_load)?;
        }
        for lane in crate::machine::step::lanes(members) {
            addresses[lane] = places[lane];
        }
    }
    Ok(addresses)
}

fn load(rows: &Rows, step: &mut Step) -> Result<(), LaneFault> {
    let addresses = addresses(rows, step, true)?;
    for matrix in 0..rows.count as usize {
        let mut values: Matrix = [[0; SIDE]; SIDE];
        for (row, value) in values.iter_mut().enumerate() {
            let lane = SIDE * matrix + row;
            let mut bytes = [0; ROW];
            let (block, offset) = step.shared_place(lane, addresses[lane])?;
            let who = Who::weak(step.thread(lane), step.clocks, step.place);
            let loaded = step.blocks[block].shared.load(&who, offset, &mut bytes);
            loaded.map_err(|refusal| LaneFault::at(lane, addresses[lane], refusal))?;
            *value = std::array::from_fn(|column| u16::from_le_bytes([bytes[2 * column], bytes[2 * column + 1]]));
        }
        let values = if rows.transposed { transposed(&values) } else { values };
        step.warp.registers.set_word(rows.registers[matrix], u32::MAX, &scatter(&values));
    }
    Ok(())
}

fn store(rows: &Rows, step: &mut Step) -> Result<(), LaneFault> {
    let addresses = addresses(rows, step, false)?;
    for matrix in 0..rows.count as usize {
        let values = gather(&step.warp.registers.word(rows.registers[matrix]));
        let values = if rows.transposed { transposed(&values) } else { values };
        for (row, value) in values.iter().enumerate() {
            let lane = SIDE * matrix + row;
            let mut bytes = [0; ROW];
            for (pair, element) in bytes.chunks_mut(2).zip(value) {
                pair.copy_from_slice(&element.to_le_bytes());
            }
            let (block, offset) = step.shared_place(lane, addresses[lane])?;
            let who = Who::weak(step.thread(lane), step.clocks, step.place);
            let stored = step.blocks[block].shared.store(&who, offset, &bytes);
            stored.map_err(|refusal| LaneFault::at(lane, addresses[lane], refusal))?;
        }
    }
    Ok(())
}
