//! Shared memory of one block.

use super::{Refusal, WIDEST_ATOMIC, Who, bits, check_atomic_width};
use crate::check::flags::{Message, Reader, SyncTable};
use crate::check::scope::MemoryScope;
use crate::check::shadow::{self, Accessor, Cell, Side};
use crate::report::FaultKind;
use crate::settings::Checks;

/// Shared memory of one block, its statically and dynamically sized parts together. Offsets and sizes are in bytes.
#[derive(Debug)]
pub struct SharedMemory {
    data: Vec<u8>,
    /// One bit per byte.
    initialized: Vec<u64>,
    /// One per 4 bytes; none when races are not checked.
    cells: Vec<Cell>,
    side: Side,
    in_flight: Vec<InFlight>,
    /// Everything from here on is as it was made.
    touched: usize,
    checks: Checks,
    /// Flags and mbarriers in this memory, by their offsets.
    sync: SyncTable,
}

/// How bytes are written.
#[derive(Clone, Copy)]
enum Writing<'a> {
    /// By a store of these bytes.
    Store(&'a [u8]),
    /// By an atomic operation, which has read what it replaces.
    Atomic,
    /// By a copy.
    Copy,
}

/// The destination of an asynchronous copy that has not arrived.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    start: usize,
    end: usize,
}

impl SharedMemory {
    /// Uninitialised memory.
    pub fn new(bytes: u32, checks: &Checks) -> Self {
        let bytes = bytes as usize;
        Self {
            data: vec![0; bytes],
            initialized: vec![0; bytes.div_ceil(64)],
            cells: vec![Cell::default(); if checks.races { bytes.div_ceil(4) } else { 0 }],
            side: Side::default(),
            in_flight: Vec::new(),
            touched: 0,
            checks: *checks,
            sync: SyncTable::default(),
        }
    }

    /// Its size.
    pub fn bytes(&self) -> u32 {
        self.data.len() as u32
    }

    /// Marks bytes as written, with zeros: the system's, before the block begins.
    pub fn zero(&mut self, start: u32, bytes: u32) {
        let (start, end) = (start as usize, (start + bytes) as usize);
        self.data[start..end].fill(0);
        bits::set(&mut self.initialized, start, end - start);
        self.touched = self.touched.max(end);
    }

    /// Uninitialised again, for the next block.
    pub fn reset(&mut self) {
        let touched = self.touched;
        self.data[..touched].fill(0);
        self.initialized[..touched.div_ceil(64)].fill(0);
        let cells = touched.div_ceil(4).min(self.cells.len());
        self.cells[..cells].fill(Cell::default());
        self.side.clear();
        self.in_flight.clear();
        self.sync.clear();
        self.touched = 0;
    }

    /// A load of `out.len()` bytes by one lane, aligned to its width.
    ///
    /// # Errors
    /// What a check found.
    #[inline]
    pub fn load(&mut self, who: &Who, offset: u32, out: &mut [u8]) -> Result<(), Refusal> {
        check_alignment(offset, out.len())?;
        self.load_bulk(who, offset, out)
    }

    /// A load of any length and alignment.
    ///
    /// # Errors
    /// What a check found.
    #[inline]
    pub fn load_bulk(&mut self, who: &Who, offset: u32, out: &mut [u8]) -> Result<(), Refusal> {
        let start = self.check(offset, out.len())?;
        if !who.takes_undefined {
            self.check_initialized(start, out.len())?;
        }
        self.note_read(who, start, out.len())?;
        out.copy_from_slice(&self.data[start..start + out.len()]);
        Ok(())
    }

    /// Whether all of some bytes were written.
    pub fn is_initialized(&self, offset: u32, count: usize) -> bool {
        bits::first_clear(&self.initialized, offset as usize, count).is_none()
    }

    /// A store of `bytes` by one lane, aligned to its width.
    ///
    /// # Errors
    /// What a check found; then nothing is stored.
    #[inline]
    pub fn store(&mut self, who: &Who, offset: u32, bytes: &[u8]) -> Result<(), Refusal> {
        check_alignment(offset, bytes.len())?;
        self.store_bulk(who, offset, bytes)
    }

    /// A store of any length and alignment.
    ///
    /// # Errors
    /// What a check found; then nothing is stored.
    #[inline]
    pub fn store_bulk(&mut self, who: &Who, offset: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let start = self.check(offset, bytes.len())?;
        self.note_write(who, start, bytes.len(), Writing::Store(bytes))?;
        self.put(start, bytes);
        Ok(())
    }

    /// An atomic operation of one lane on 1, 2, 4, 8 or 16 bytes, as [`super::launch::LaunchMemory::atomic`].
    ///
    /// # Errors
    /// What a check found; then nothing is stored.
    pub fn atomic(
        &mut self,
        who: &Who,
        offset: u32,
        bytes: u32,
        operation: &mut dyn FnMut(u128) -> Option<u128>,
    ) -> Result<u128, Refusal> {
        check_atomic_width(bytes)?;
        let bytes = bytes as usize;
        check_alignment(offset, bytes)?;
        let who = Who { scope: who.scope.or(Some(MemoryScope::Device)), read_only: false, ..*who };
        let start = self.check(offset, bytes)?;
        self.check_initialized(start, bytes)?;
        let mut value = [0; WIDEST_ATOMIC];
        value[..bytes].copy_from_slice(&self.data[start..start + bytes]);
        let old = u128::from_le_bytes(value);
        match operation(old) {
            None => self.note_read(&who, start, bytes)?,
            Some(new) => {
                self.note_write(&who, start, bytes, Writing::Atomic)?;
                self.put(start, &new.to_le_bytes()[..bytes]);
            }
        }
        Ok(old)
    }

    /// An asynchronous copy to `bytes` bytes begins: until it completes, every access to them is refused.
    ///
    /// # Errors
    /// Out of bounds, or another copy to some of the bytes is in flight.
    pub fn begin_async(&mut self, offset: u32, bytes: u32) -> Result<(), Refusal> {
        let start = self.check(offset, bytes as usize)?;
        if bytes > 0 {
            self.in_flight.push(InFlight { start, end: start + bytes as usize });
        }
        Ok(())
    }

    /// The same, with a check that earlier accesses to the bytes are ordered before the thread that issues the copy.
    /// Without it they are checked when the copy arrives, against what its thread has learnt by then.
    ///
    /// # Errors
    /// Also an access that is not ordered before the copy.
    pub fn begin_async_by(&mut self, who: &Who, offset: u32, bytes: u32) -> Result<(), Refusal> {
        let start = self.check(offset, bytes as usize)?;
        self.note_write(who, start, bytes as usize, Writing::Copy)?;
        self.begin_async(offset, bytes)
    }

    /// The copy that was begun at this offset with this length arrives. Its bytes are ordered like a write by `who`,
    /// the thread that issued it, now.
    ///
    /// # Errors
    /// No such copy was begun, or an access to the bytes is not ordered before it.
    pub fn complete_async(&mut self, who: &Who, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        let start = offset as usize;
        if data.is_empty() {
            return Ok(());
        }
        let Some(index) = self.in_flight.iter().position(|copy| copy.start == start && copy.end - start == data.len())
        else {
            let message =
                format!("no asynchronous copy of {} bytes to shared memory at {offset:#x} was begun", data.len());
            return Err(Refusal::new(FaultKind::InvalidOperation, message));
        };
        self.in_flight.swap_remove(index);
        self.note_write(who, start, data.len(), Writing::Copy)?;
        self.put(start, data);
        Ok(())
    }

    /// Adds to what readers of the flag at `offset` find; see [`SyncTable`].
    pub fn publish_at(&mut self, offset: u32, message: &Message) {
        self.sync.publish_at(u64::from(offset), message);
    }

    /// What this reader of the flag at `offset` finds, if anything was published there for it.
    #[inline]
    pub fn message_at(&self, offset: u32, reader: Reader) -> Option<Message> {
        self.sync.message_at(u64::from(offset), reader)
    }

    /// Bounds and copies in flight; the offset as an index.
    #[inline]
    fn check(&mut self, offset: u32, count: usize) -> Result<usize, Refusal> {
        let start = offset as usize;
        if count > self.data.len() || start > self.data.len() - count {
            return Err(out_of_bounds(start, count, self.data.len()));
        }
        if let Some(copy) = self.in_flight.iter().find(|copy| start < copy.end && copy.start < start + count) {
            let InFlight { start: from, end } = *copy;
            return Err(Refusal::new(
                FaultKind::InFlight,
                format!(
                    "{count} bytes at {start:#x} of shared memory overlap the destination, {from:#x} to {end:#x}, of an asynchronous \
                     copy that has not been waited for"
                ),
            ));
        }
        self.touched = self.touched.max(start + count);
        Ok(start)
    }

    #[inline]
    fn check_initialized(&self, start: usize, count: usize) -> Result<(), Refusal> {
        if !self.checks.uninitialized {
            return Ok(());
        }
        match bits::first_clear(&self.initialized, start, count) {
            None => Ok(()),
            Some(byte) => {
                let message = format!("byte {byte:#x} of shared memory was never written");
                Err(Refusal::new(FaultKind::Uninitialized, message))
            }
        }
    }

    #[inline]
    fn note_read(&mut self, who: &Who, start: usize, count: usize) -> Result<(), Refusal> {
        if !self.checks.races {
            return Ok(());
        }
        let accessor = Accessor::new(who, &self.checks, usize::MAX);
        shadow::access::<false>(&mut self.cells, start, count, &mut self.side, &accessor)
            .map_err(|(byte, earlier)| race(byte, (false, false), earlier))
    }

    #[inline]
    fn note_write(&mut self, who: &Who, start: usize, count: usize, writing: Writing) -> Result<(), Refusal> {
        if !self.checks.races {
            return Ok(());
        }
        let accessor = Accessor::new(who, &self.checks, usize::MAX);
        let accessor = if matches!(writing, Writing::Atomic) { accessor.observing() } else { accessor };
        let Err((byte, earlier)) = shadow::access::<true>(&mut self.cells, start, count, &mut self.side, &accessor)
        else {
            return Ok(());
        };
        let old = &self.data[start..start + count];
        let same = |range: std::ops::Range<usize>| matches!(writing, Writing::Store(stored) if stored[range.clone()] == old[range]);
        shadow::store_again(&mut self.cells, start, count, &mut self.side, &accessor, (byte, earlier), &same)
            .map_err(|(byte, unchanged, earlier)| race(byte, (true, unchanged), earlier))
    }

    #[inline]
    fn put(&mut self, start: usize, bytes: &[u8]) {
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
        bits::set(&mut self.initialized, start, bytes.len());
    }
}

#[inline]
fn check_alignment(offset: u32, width: usize) -> Result<(), Refusal> {
    if width == 0 || (offset as usize).is_multiple_of(width) {
        return Ok(());
    }
    Err(Refusal::misaligned("offset", u64::from(offset), width))
}

#[cold]
fn out_of_bounds(start: usize, count: usize, size: usize) -> Refusal {
    let place = if start < size {
        format!("the last {} of {count} bytes at {start:#x} are beyond the end", start + count - size)
    } else {
        format!("offset {start:#x} is {} bytes after the end", start - size)
    };
    Refusal::new(FaultKind::OutOfBounds, format!("{place} of the block's {size} bytes of shared memory"))
}

#[cold]
fn race(byte: usize, (wrote, unchanged): (bool, bool), earlier: super::Earlier) -> Refusal {
    Refusal::race(&format!("byte {byte:#x} of shared memory"), wrote, unchanged, earlier)
}
