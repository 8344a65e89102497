//! Where the device counts what it finds wrong, and how that and what a step has left are read: one copy to page-locked memory,
//! one wait.

use crate::cuda::buffer::Block;
use crate::cuda::context::bind;
use crate::cuda::driver::called;
use crate::cuda::lent::Lender;
use crate::cuda::memory::Address;
use crate::cuda::page_locked::PageLocked;
use crate::cuda::status::Status;
use crate::error::Result;
use cudarc::driver::{CudaStream, result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that [`StatusWord::place`] and what clears the word keep for it: whole f64.
pub(super) const STATUS_BYTES: usize = size_of::<Status>().next_multiple_of(8);

/// What the device has found wrong, counted there. Every call is by `&self`, and no lock is held over a call of the driver:
/// reading waits for the device.
#[derive(Default)]
pub(super) struct StatusWord {
    /// 0 before there is one.
    address: AtomicU64,
    /// What it lies in: its own, or that of a step.
    block: Mutex<Option<Arc<Block>>>,
    /// Where it is read to.
    pinned: Lender<Pinned>,
}

impl StatusWord {
    /// Its address; clear when new. For launches in the order of the one stream.
    pub(super) fn address(&self, stream: &Arc<CudaStream>) -> Result<Address> {
        match self.address.load(Ordering::Acquire) {
            0 => {}
            address => return Ok(address),
        }
        // Not made under the lock. Of two threads' the first is kept.
        let new = Block::new(stream, STATUS_BYTES)?;
        let mut block = self.block();
        let address = block.get_or_insert_with(|| new.clone()).range().start;
        match self.address.compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(address),
            Err(placed) => Ok(placed),
        }
    }

    /// Puts it at the start of `range` in a block of the same stream, where it has to be cleared.
    pub(super) fn place(&self, block: &Arc<Block>, address: Address) {
        let before = self.block().replace(block.clone());
        self.address.store(address, Ordering::Release);
        drop(before);
    }

    /// Reads it. Waits for the stream.
    pub(super) fn read(&self, stream: &Arc<CudaStream>) -> Result<Status> {
        let address = self.address(stream)?;
        let word = address..address + size_of::<Status>() as Address;
        self.read_with(stream, std::slice::from_ref(&word), |parts| bytemuck::pod_read_unaligned(parts[0]))
    }

    /// Reads ranges of device memory, each as bytes: in one copy where they lie in the block of the word. Waits for the stream.
    pub(super) fn read_with<R>(
        &self,
        stream: &Arc<CudaStream>,
        ranges: &[Range<Address>],
        read: impl FnOnce(&[&[u8]]) -> R,
    ) -> Result<R> {
        bind(stream.context())?;
        let block = self.block().as_ref().map(|block| block.range());
        let is_inside = |block: Range<Address>| {
            ranges.iter().all(|range| range.is_empty() || (block.start <= range.start && range.end <= block.end))
        };
        let filled = || ranges.iter().filter(|range| !range.is_empty());
        let copies: Vec<Range<Address>> = if block.is_some_and(is_inside) {
            let ends = filled().map(|range| range.start).min().zip(filled().map(|range| range.end).max());
            ends.map(|(start, end)| start..end).into_iter().collect()
        } else {
            filled().cloned().collect()
        };
        self.pinned.with(Pinned::default, |pinned| {
            let copied = pinned.copy(stream, &copies);
            if copied.is_err() {
                // What a copy may still write is not lent again, and freed when all is done.
                *pinned = Pinned::default();
            }
            copied?;
            let parts: Vec<&[u8]> = ranges.iter().map(|range| pinned.part(&copies, range)).collect();
            Ok(read(&parts))
        })
    }

    /// Clears it, in the stream's order and on the device, so that a graph can hold it.
    pub(super) fn clear(&self, stream: &Arc<CudaStream>) -> Result<()> {
        let address = self.address(stream)?;
        bind(stream.context())?;
        // SAFETY: the word is as long as said, lives as long as `self`, and is touched in the order of the stream only.
        let cleared = unsafe { result::memset_d8_async(address, 0, size_of::<Status>(), stream.cu_stream()) };
        called("cuMemsetD8Async", cleared)
    }

    /// Whether it has been made.
    pub(super) fn is_made(&self) -> bool {
        self.address.load(Ordering::Acquire) != 0
    }

    fn block(&self) -> MutexGuard<'_, Option<Arc<Block>>> {
        self.block.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for StatusWord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StatusWord").field("made", &self.is_made()).finish()
    }
}

/// Memory of the host that the device writes by itself; allocated when it is first read to.
#[derive(Default)]
struct Pinned(PageLocked);

impl Pinned {
    /// Copies ranges of device memory to its start, one after the other, and waits for them.
    fn copy(&mut self, stream: &Arc<CudaStream>, copies: &[Range<Address>]) -> Result<()> {
        let length = |range: &Range<Address>| (range.end - range.start) as usize;
        let bytes: usize = copies.iter().map(length).sum();
        if self.0.bytes().len() < bytes {
            *self = Self::default();
            let room = bytes.next_power_of_two().max(4096);
            *self = Self(PageLocked::new(stream.context(), room)?);
        }
        let mut rest = self.0.bytes_mut();
        for range in copies {
            let (to, after) = rest.split_at_mut(length(range));
            // SAFETY: both are as long; this value keeps the memory until the wait below, or the driver does until it is
            // freed.
            let copied = unsafe { result::memcpy_dtoh_async(to, range.start, stream.cu_stream()) };
            called("cuMemcpyDtoHAsync", copied)?;
            rest = after;
        }
        // SAFETY: a stream that is alive.
        called("cuStreamSynchronize", unsafe { result::stream::synchronize(stream.cu_stream()) })
    }

    /// A range that was copied, alone or as part of a larger one.
    fn part(&self, copies: &[Range<Address>], range: &Range<Address>) -> &[u8] {
        let mut before = 0;
        for copy in copies {
            if copy.start <= range.start && range.end <= copy.end {
                let start = before + (range.start - copy.start) as usize;
                return &self.0.bytes()[start..start + (range.end - range.start) as usize];
            }
            before += (copy.end - copy.start) as usize;
        }
        // An empty one is not copied.
        &[]
    }
}
