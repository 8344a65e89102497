//! Device memory that is kept between calls and only grows.

use super::arguments::Status;
use super::context::Kept;
use super::driver::called;
use super::raw::Address;
use crate::error::Result;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, ValidAsZeroBits};
use std::sync::Arc;

/// A buffer that grows when it must. What it held is lost when it does.
pub(super) struct Grown<T> {
    slice: Kept<Option<CudaSlice<T>>>,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { slice: Kept::default() }
    }
}

impl<T: DeviceRepr + ValidAsZeroBits> Grown<T> {
    /// At least `length` elements; zeros when new. Growing frees the old buffer in the stream's order, behind what
    /// still uses it.
    pub(super) fn at_least(&mut self, stream: &Arc<CudaStream>, length: usize) -> Result<&mut CudaSlice<T>> {
        if self.slice.as_ref().is_some_and(|slice| slice.len() < length) {
            *self.slice = None;
        }
        match &mut *self.slice {
            Some(slice) => Ok(slice),
            // An allocation of nothing would be none.
            slot => Ok(slot.insert(called("cuMemAllocAsync", stream.alloc_zeros(length.max(1)))?)),
        }
    }

    /// The buffer, if there is one.
    pub(super) fn get(&self) -> Option<&CudaSlice<T>> {
        self.slice.as_ref()
    }
}

/// The address of a buffer of at least `length` elements, for launches in the order of the one stream.
pub(super) fn address<T: DeviceRepr + ValidAsZeroBits>(
    buffer: &mut Grown<T>,
    stream: &Arc<CudaStream>,
    length: usize,
) -> Result<Address> {
    Ok(buffer.at_least(stream, length)?.device_ptr_mut(stream).0)
}

/// What the token log-prob stage needs beside its outputs.
#[derive(Default)]
pub(super) struct Scratch {
    /// State and entropy sum of each slice of each row, `[N, slices]` of four f32, where several blocks share a row.
    pub(super) partials: Grown<f32>,
    /// How many blocks of each row have come, `[N]`; the last one sets it back to 0.
    pub(super) tickets: Grown<u32>,
    /// What was found wrong.
    pub(super) status: Grown<Status>,
}

impl Scratch {
    /// The status word; clear when new.
    pub(super) fn status(&mut self, stream: &Arc<CudaStream>) -> Result<&mut CudaSlice<Status>> {
        self.status.at_least(stream, 1)
    }

    /// Reads the status word. Waits for the stream.
    pub(super) fn read_status(&mut self, stream: &Arc<CudaStream>) -> Result<Status> {
        let mut read = [Status::CLEAR];
        called("cuMemcpyDtoHAsync", stream.memcpy_dtoh(self.status(stream)?, &mut read))?;
        called("cuStreamSynchronize", stream.synchronize())?;
        Ok(read[0])
    }

    /// Clears the status word, in the stream's order and on the device, so that a graph can hold it.
    pub(super) fn clear_status(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        called("cuMemsetD8Async", stream.memset_zeros(self.status(stream)?))
    }
}
