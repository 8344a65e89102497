//! Local memory of the lanes of one warp, with a bit per byte that says whether it was written.

use crate::machine::registers::LANES;

/// Bytes and what is known of them, lane by lane.
#[derive(Default)]
pub struct LocalMemory {
    lanes: [Lane; LANES],
}

#[derive(Default)]
struct Lane {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

/// Why an access of local memory was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalRefusal {
    /// Beyond the thread's local memory.
    OutOfBounds,
    /// The first byte that nobody has written.
    Uninitialized(u64),
}

impl LocalMemory {
    /// Forgets everything; the storage stays.
    pub fn clear(&mut self) {
        for lane in &mut self.lanes {
            lane.bytes.clear();
            lane.written.clear();
        }
    }

    /// Makes sure that a lane has so many bytes.
    pub fn reserve(&mut self, lane: usize, bytes: u64) {
        let lane = &mut self.lanes[lane];
        if (lane.bytes.len() as u64) < bytes {
            lane.bytes.resize(bytes as usize, 0);
            lane.written.resize(bytes as usize, false);
        }
    }

    /// Marks the bytes of a new frame as never written.
    pub fn forget(&mut self, lane: usize, from: u64, bytes: u64) {
        let written = &mut self.lanes[lane].written;
        let end = ((from + bytes) as usize).min(written.len());
        let start = (from as usize).min(end);
        written[start..end].fill(false);
    }

    fn range(&self, lane: usize, offset: u64, length: usize) -> Result<std::ops::Range<usize>, LocalRefusal> {
        let end = offset.checked_add(length as u64).ok_or(LocalRefusal::OutOfBounds)?;
        if end > self.lanes[lane].bytes.len() as u64 {
            return Err(LocalRefusal::OutOfBounds);
        }
        Ok(offset as usize..end as usize)
    }

    /// Reads; with `check`, bytes that nobody has written are refused.
    ///
    /// # Errors
    /// Out of bounds, or not written.
    pub fn load(&self, lane: usize, offset: u64, destination: &mut [u8], check: bool) -> Result<(), LocalRefusal> {
        let range = self.range(lane, offset, destination.len())?;
        if check && let Some(place) = self.lanes[lane].written[range.clone()].iter().position(|written| !written) {
            return Err(LocalRefusal::Uninitialized(offset + place as u64));
        }
        destination.copy_from_slice(&self.lanes[lane].bytes[range]);
        Ok(())
    }

    /// Whether all of some bytes were written; false beyond the thread's local memory.
    pub fn is_written(&self, lane: usize, offset: u64, length: usize) -> bool {
        self.range(lane, offset, length)
            .is_ok_and(|range| self.lanes[lane].written[range].iter().all(|written| *written))
    }

    /// Writes.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn store(&mut self, lane: usize, offset: u64, source: &[u8]) -> Result<(), LocalRefusal> {
        let range = self.range(lane, offset, source.len())?;
        self.lanes[lane].bytes[range.clone()].copy_from_slice(source);
        self.lanes[lane].written[range].fill(true);
        Ok(())
    }

    /// Copies bytes with what is known of them: the arguments and results of calls.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn copy(&mut self, lane: usize, from: u64, to: u64, bytes: u64) -> Result<(), LocalRefusal> {
        let from = self.range(lane, from, bytes as usize)?;
        let to = self.range(lane, to, bytes as usize)?;
        let lane = &mut self.lanes[lane];
        lane.bytes.copy_within(from.clone(), to.start);
        lane.written.copy_within(from, to.start);
        Ok(())
    }
}
