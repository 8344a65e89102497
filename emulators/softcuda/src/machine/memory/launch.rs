//! Device memory as one launch sees it: every access of a kernel's lane is checked here.
//!
//! Beside the memory itself a launch keeps, per byte, who accessed it (`check::shadow`) and whether it was read,
//! written, or read by `ld.global.nc`. That is address space until it is touched, guarded by the same page locks as the
//! bytes, and gone when the launch ends.

use super::allocation::{Allocation, Kind, LockedPage, PAGE, PAGE_WORDS, STRIPES, Snapshot, freed_refusal};
use super::global::{Inner, page_parts};
use super::mapping::Mapping;
use super::{Refusal, WIDEST_ATOMIC, Who, bits, check_atomic_width};
use crate::check::flags::{Message, Reader, SyncTable};
use crate::check::scope::MemoryScope;
use crate::check::shadow::{self, Accessor, Cell, GLOBAL_ENTRIES, Side};
use crate::report::FaultKind;
use crate::settings::Checks;
use std::cell::UnsafeCell;
use std::sync::{Arc, OnceLock};

const PAGE_CELLS: usize = PAGE as usize / 4;

/// Device memory for the length of one launch; shared by the host threads that run its blocks.
///
/// Allocations that are made after the launch began are not seen.
#[derive(Debug)]
pub struct LaunchMemory {
    memory: Arc<Inner>,
    snapshot: Arc<Snapshot>,
    /// One per allocation, made at the first access; `None` when the host has no address space for it.
    logs: Vec<OnceLock<Option<Log>>>,
    /// One per stripe of page locks.
    sides: Box<[PageSide]>,
    checks: Checks,
    /// Flags in global memory.
    sync: SyncTable,
}

/// What belongs to the pages of one stripe.
#[derive(Debug, Default)]
struct StripeState {
    side: Side,
    distinct_read: u64,
    distinct_written: u64,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct PageSide(UnsafeCell<StripeState>);

// SAFETY: the contents are only reached with the lock of the stripe held (`LaunchMemory::page`,
// `LaunchMemory::finish`).
unsafe impl Sync for PageSide {}

/// What happened to 64 bytes, one bit each.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Track {
    read: u64,
    written: u64,
    /// Read by `ld.global.nc`.
    read_only: u64,
    unused: u64,
}

/// The record of an allocation: for each page its tracks, then for each page its race cells.
#[derive(Debug)]
struct Log {
    mapping: Mapping,
    pages: usize,
}

/// All that is kept of one locked page.
struct Page<'a> {
    tracks: &'a mut [Track],
    cells: &'a mut [Cell],
    state: &'a mut StripeState,
}

impl LaunchMemory {
    pub(super) fn new(memory: Arc<Inner>, snapshot: Arc<Snapshot>, checks: Checks) -> Self {
        let logs = snapshot.allocations.iter().map(|_| OnceLock::new()).collect();
        let sides = (0..STRIPES).map(|_| PageSide::default()).collect();
        Self { memory, snapshot, logs, sides, checks, sync: SyncTable::default() }
    }

    /// Whether the address is in an allocation.
    pub fn contains(&self, address: u64) -> bool {
        self.snapshot.find(address, 1).is_some()
    }

    /// A load of `out.len()` bytes by one lane, aligned to its width.
    ///
    /// # Errors
    /// What a check found.
    #[inline]
    pub fn load(&self, who: &Who, address: u64, out: &mut [u8]) -> Result<(), Refusal> {
        check_alignment(address, out.len())?;
        self.load_bulk(who, address, out)
    }

    /// A load of any length and alignment (bulk copies).
    ///
    /// # Errors
    /// What a check found.
    #[inline]
    pub fn load_bulk(&self, who: &Who, address: u64, out: &mut [u8]) -> Result<(), Refusal> {
        let (index, allocation) = self.find(address, out.len())?;
        for (at, part) in page_parts(address, out.len()) {
            let mut page = self.lock(allocation, at)?;
            let count = part.len();
            if !who.takes_undefined {
                self.check_initialized(allocation, &mut page, at, count)?;
            }
            if allocation.kind != Kind::Constant {
                let mut log = self.page(index, &mut page)?;
                self.note_read(who, &mut log, at, count)?;
            }
            allocation.get(&page, at, &mut out[part]);
        }
        Ok(())
    }

    /// Whether all of some bytes, of one aligned access, were written.
    pub fn is_initialized(&self, address: u64, count: usize) -> bool {
        let Ok((_, allocation)) = self.find(address, count) else { return false };
        let Ok(mut page) = self.lock(allocation, address) else { return false };
        self.check_initialized(allocation, &mut page, address, count).is_ok()
    }

    /// A store of `bytes` by one lane, aligned to its width.
    ///
    /// # Errors
    /// What a check found; then nothing is stored.
    #[inline]
    pub fn store(&self, who: &Who, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        check_alignment(address, bytes.len())?;
        self.store_bulk(who, address, bytes)
    }

    /// A store of any length and alignment (bulk copies).
    ///
    /// # Errors
    /// What a check found.
    #[inline]
    pub fn store_bulk(&self, who: &Who, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let (index, allocation) = self.find_writable(address, bytes.len())?;
        for (at, part) in page_parts(address, bytes.len()) {
            let mut page = self.lock(allocation, at)?;
            let bytes = &bytes[part];
            self.note_write(who, index, &mut page, at, bytes.len(), Some(bytes))?;
            put(allocation, &mut page, at, bytes);
        }
        Ok(())
    }

    /// An atomic operation of one lane on 1, 2, 4, 8 or 16 bytes: `operation` gets the old value and gives the new one,
    /// or `None` to leave the old one (a compare-and-swap that fails). Returns the old value. It runs with the page
    /// locked: it must not access memory, but may [publish](LaunchMemory::publish_at).
    ///
    /// # Errors
    /// What a check found; then nothing is stored.
    pub fn atomic(
        &self,
        who: &Who,
        address: u64,
        bytes: u32,
        operation: &mut dyn FnMut(u128) -> Option<u128>,
    ) -> Result<u128, Refusal> {
        check_atomic_width(bytes)?;
        let bytes = bytes as usize;
        check_alignment(address, bytes)?;
        let (index, allocation) = self.find_writable(address, bytes)?;
        let who = Who { scope: who.scope.or(Some(MemoryScope::Device)), read_only: false, ..*who };
        let mut page = self.lock(allocation, address)?;
        self.check_initialized(allocation, &mut page, address, bytes)?;
        let mut value = [0; WIDEST_ATOMIC];
        allocation.get(&page, address, &mut value[..bytes]);
        let old = u128::from_le_bytes(value);
        let new = operation(old);
        {
            let mut log = self.page(index, &mut page)?;
            if new.is_none() {
                self.note_read(&who, &mut log, address, bytes)?;
            } else {
                count_read(&mut log, address, bytes, false);
            }
        }
        if let Some(new) = new {
            self.note_write(&who, index, &mut page, address, bytes, None)?;
            put(allocation, &mut page, address, &new.to_le_bytes()[..bytes]);
        }
        Ok(old)
    }

    /// Ends the launch: how many different bytes it read and wrote.
    pub fn finish(&self) -> (u64, u64) {
        (0..STRIPES).fold((0, 0), |(read, written), stripe| {
            let _page = self.memory.stripes.lock(stripe as u64 * PAGE);
            // SAFETY: the lock of the stripe is held.
            let state = unsafe { &*self.sides[stripe].0.get() };
            (read + state.distinct_read, written + state.distinct_written)
        })
    }

    /// Adds to what readers of the flag at `address` find; see [`SyncTable`].
    pub fn publish_at(&self, address: u64, message: &Message) {
        self.sync.publish_at(address, message);
    }

    /// What this reader of the flag at `address` finds, if anything was published there for it.
    #[inline]
    pub fn message_at(&self, address: u64, reader: Reader) -> Option<Message> {
        self.sync.message_at(address, reader)
    }

    #[inline]
    fn find(&self, address: u64, bytes: usize) -> Result<(usize, &Allocation), Refusal> {
        match self.snapshot.find(address, bytes as u64) {
            Some(index) => Ok((index, &self.snapshot.allocations[index])),
            None => Err(self.memory.with_table(|table| table.explain(address, bytes as u64))),
        }
    }

    #[inline]
    fn find_writable(&self, address: u64, bytes: usize) -> Result<(usize, &Allocation), Refusal> {
        let (index, allocation) = self.find(address, bytes)?;
        if allocation.kind == Kind::Constant {
            let Allocation { base, bytes: size, .. } = *allocation;
            return Err(Refusal::new(
                FaultKind::ReadOnlyWrite,
                format!("a write to {address:#x}, in constant memory of {size} bytes at {base:#x}"),
            ));
        }
        Ok((index, allocation))
    }

    #[inline]
    fn lock(&self, allocation: &Allocation, address: u64) -> Result<LockedPage<'_>, Refusal> {
        let page = self.memory.stripes.lock(address);
        if allocation.is_freed() {
            return Err(freed_refusal(address, allocation.base, allocation.bytes));
        }
        Ok(page)
    }

    #[inline]
    fn page<'a>(&'a self, index: usize, page: &'a mut LockedPage) -> Result<Page<'a>, Refusal> {
        let allocation = &self.snapshot.allocations[index];
        let log = self.logs[index].get_or_init(|| Log::new(allocation.pages() as usize, self.checks.races));
        let Some(log) = log else {
            let message = format!("the host has no room for the checks of an allocation of {} bytes", allocation.bytes);
            return Err(Refusal::new(FaultKind::InvalidOperation, message));
        };
        let (tracks, cells) = log.pointers(allocation.page_index(page));
        let cell_count = if self.checks.races { PAGE_CELLS } else { 0 };
        // SAFETY: the log's mapping holds tracks for each page, and cells for each page unless races are not checked,
        // zeroed, which is a valid value of both. These of one page, and the state of its stripe, are only reached with
        // the lock held that `page` stands for; the result borrows it mutably.
        unsafe {
            Ok(Page {
                tracks: std::slice::from_raw_parts_mut(tracks, PAGE_WORDS),
                cells: std::slice::from_raw_parts_mut(cells, cell_count),
                state: &mut *self.sides[page.stripe()].0.get(),
            })
        }
    }

    #[inline]
    fn check_initialized(
        &self,
        allocation: &Allocation,
        page: &mut LockedPage,
        address: u64,
        count: usize,
    ) -> Result<(), Refusal> {
        if !self.checks.uninitialized {
            return Ok(());
        }
        let Some(initialized) = allocation.initialized(page) else { return Ok(()) };
        match bits::first_clear(initialized, offset(address), count) {
            None => Ok(()),
            Some(byte) => {
                let Allocation { base, bytes: size, .. } = *allocation;
                let byte = address - address % PAGE + byte as u64;
                let message = format!(
                    "byte {byte:#x} ({} of an allocation of {size} bytes at {base:#x}) was never written",
                    byte - base
                );
                Err(Refusal::new(FaultKind::Uninitialized, message))
            }
        }
    }

    #[inline]
    fn note_read(&self, who: &Who, page: &mut Page, address: u64, count: usize) -> Result<(), Refusal> {
        if who.read_only && self.checks.read_only_loads {
            let stale = bits::spans(offset(address), count).find(|&(word, mask)| page.tracks[word].written & mask != 0);
            if stale.is_some() {
                let message = format!("ld.global.nc of {count} bytes at {address:#x}, which this kernel has written");
                return Err(Refusal::new(FaultKind::StaleReadOnlyLoad, message));
            }
        }
        if self.checks.races {
            let accessor = Accessor::new(who, &self.checks, GLOBAL_ENTRIES);
            shadow::access::<false>(page.cells, offset(address), count, &mut page.state.side, &accessor)
                .map_err(|(byte, earlier)| race(address, byte, (false, false), earlier))?;
        }
        count_read(page, address, count, who.read_only);
        Ok(())
    }

    /// `stored`: the bytes of an ordinary store; `None`: an atomic writes them.
    #[inline]
    fn note_write(
        &self,
        who: &Who,
        index: usize,
        locked: &mut LockedPage,
        address: u64,
        count: usize,
        stored: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        let page = self.page(index, locked)?;
        let mut fresh = 0;
        for (word, mask) in bits::spans(offset(address), count) {
            let track = &mut page.tracks[word];
            if track.read_only & mask != 0 && self.checks.read_only_loads {
                let message =
                    format!("a write of {count} bytes at {address:#x}, which this kernel has read by ld.global.nc");
                return Err(Refusal::new(FaultKind::StaleReadOnlyLoad, message));
            }
            fresh += (mask & !track.written).count_ones();
            track.written |= mask;
        }
        page.state.distinct_written += u64::from(fresh);
        if !self.checks.races {
            return Ok(());
        }
        let accessor = Accessor::new(who, &self.checks, GLOBAL_ENTRIES);
        let accessor = if stored.is_none() { accessor.observing() } else { accessor };
        let Err((byte, earlier)) =
            shadow::access::<true>(page.cells, offset(address), count, &mut page.state.side, &accessor)
        else {
            return Ok(());
        };
        let old = stored.map(|stored| self.bytes_of(index, locked, address, stored.len()));
        let page = self.page(index, locked)?;
        let same = |range: std::ops::Range<usize>| match (stored, &old) {
            (Some(stored), Some(old)) => stored[range.clone()] == old[range],
            _ => false,
        };
        shadow::store_again(page.cells, offset(address), count, &mut page.state.side, &accessor, (byte, earlier), &same)
            .map_err(|(byte, unchanged, earlier)| race(address, byte, (true, unchanged), earlier))
    }

    #[cold]
    fn bytes_of(&self, index: usize, page: &LockedPage, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.snapshot.allocations[index].get(page, address, &mut bytes);
        bytes
    }
}

impl Log {
    fn new(pages: usize, has_cells: bool) -> Option<Self> {
        let cells = if has_cells { PAGE_CELLS * size_of::<Cell>() } else { 0 };
        let bytes = pages.checked_mul(PAGE_WORDS * size_of::<Track>() + cells)?;
        Some(Self { mapping: Mapping::new(bytes as u64)?, pages })
    }

    /// Tracks and cells of one page. The cells are only there if they were asked for.
    #[inline]
    #[allow(
        clippy::cast_ptr_alignment,
        reason = "the mapping begins at a page of the host, and tracks fill whole cache lines"
    )]
    fn pointers(&self, page: usize) -> (*mut Track, *mut Cell) {
        assert!(page < self.pages, "a page of the allocation");
        let start = self.mapping.pointer();
        let cells = start.wrapping_add(self.pages * PAGE_WORDS * size_of::<Track>());
        (start.cast::<Track>().wrapping_add(page * PAGE_WORDS), cells.cast::<Cell>().wrapping_add(page * PAGE_CELLS))
    }
}

/// The offset in its page.
fn offset(address: u64) -> usize {
    (address % PAGE) as usize
}

#[inline]
fn check_alignment(address: u64, width: usize) -> Result<(), Refusal> {
    if width == 0 || address.is_multiple_of(width as u64) {
        return Ok(());
    }
    Err(Refusal::misaligned("address", address, width))
}

#[cold]
fn race(address: u64, byte: usize, (wrote, unchanged): (bool, bool), earlier: super::Earlier) -> Refusal {
    let byte = address - address % PAGE + byte as u64;
    Refusal::race(&format!("byte {byte:#x}"), wrote, unchanged, earlier)
}

#[inline]
fn count_read(page: &mut Page, address: u64, count: usize, is_read_only: bool) {
    let mut fresh = 0;
    for (word, mask) in bits::spans(offset(address), count) {
        let track = &mut page.tracks[word];
        fresh += (mask & !track.read).count_ones();
        track.read |= mask;
        if is_read_only {
            track.read_only |= mask;
        }
    }
    page.state.distinct_read += u64::from(fresh);
}

/// Stores bytes of one page and marks them as initialised.
#[inline]
fn put(allocation: &Allocation, page: &mut LockedPage, address: u64, bytes: &[u8]) {
    allocation.put(page, address, bytes);
    if let Some(initialized) = allocation.initialized(page) {
        bits::set(initialized, offset(address), bytes.len());
    }
}
