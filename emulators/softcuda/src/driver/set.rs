//! Setting memory to a repeated value.

use super::entry::{Outcome, entry_points};
use super::error::Code;
use super::state::{Handle, state};
use super::work::{node, submit};
use std::sync::{Arc, PoisonError};

/// Repeats a pattern `width` times along each of `rows` rows.
fn set(
    stream: Handle,
    address: u64,
    pitch: usize,
    pattern: &[u8],
    width: usize,
    rows: usize,
    synchronous: bool,
) -> Outcome {
    let (handle, machine) = {
        let mut state = state();
        let handle = state.stream(stream)?;
        if synchronous {
            state.check_capture_allows()?;
        }
        if width == 0 || rows == 0 {
            return Ok(());
        }
        let size = pattern.len();
        let row = width.checked_mul(size).ok_or(Code::INVALID_VALUE)?;
        let last = pitch.checked_mul(rows - 1).and_then(|before| before.checked_add(row)).ok_or(Code::INVALID_VALUE)?;
        let aligned = address.is_multiple_of(size as u64) && (rows == 1 || pitch.is_multiple_of(size) && pitch >= row);
        if !aligned {
            return Err(Code::INVALID_VALUE);
        }
        state.check_device_range(address, last as u64)?;
        (handle, state.machine())
    };
    let pattern = pattern.to_vec();
    let fill = move || {
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        (0..rows)
            .try_for_each(|row| machine.memory.fill(address + (row * pitch) as u64, &pattern, width as u64))
            .map_err(|refusal| {
                eprintln!("softcuda: a memset failed: {}", refusal.message);
                Code::ILLEGAL_ADDRESS
            })
    };
    submit(handle, node::SET, Arc::new(fill)).map(drop)
}

entry_points! {
    fn cuMemsetD8_v2(address: u64, value: u8, count: usize) {
        set(0, address, 0, &[value], count, 1, true)
    }
    fn cuMemsetD16_v2(address: u64, value: u16, count: usize) {
        set(0, address, 0, &value.to_le_bytes(), count, 1, true)
    }
    fn cuMemsetD32_v2(address: u64, value: u32, count: usize) {
        set(0, address, 0, &value.to_le_bytes(), count, 1, true)
    }
    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: Handle) {
        set(stream, address, 0, &[value], count, 1, false)
    }
    fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: Handle) {
        set(stream, address, 0, &value.to_le_bytes(), count, 1, false)
    }
    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: Handle) {
        set(stream, address, 0, &value.to_le_bytes(), count, 1, false)
    }
    fn cuMemsetD2D8_v2(address: u64, pitch: usize, value: u8, width: usize, height: usize) {
        set(0, address, pitch, &[value], width, height, true)
    }
    fn cuMemsetD2D16_v2(address: u64, pitch: usize, value: u16, width: usize, height: usize) {
        set(0, address, pitch, &value.to_le_bytes(), width, height, true)
    }
    fn cuMemsetD2D32_v2(address: u64, pitch: usize, value: u32, width: usize, height: usize) {
        set(0, address, pitch, &value.to_le_bytes(), width, height, true)
    }
    fn cuMemsetD2D8Async(address: u64, pitch: usize, value: u8, width: usize, height: usize, stream: Handle) {
        set(stream, address, pitch, &[value], width, height, false)
    }
    fn cuMemsetD2D16Async(address: u64, pitch: usize, value: u16, width: usize, height: usize, stream: Handle) {
        set(stream, address, pitch, &value.to_le_bytes(), width, height, false)
    }
    fn cuMemsetD2D32Async(address: u64, pitch: usize, value: u32, width: usize, height: usize, stream: Handle) {
        set(stream, address, pitch, &value.to_le_bytes(), width, height, false)
    }
}
