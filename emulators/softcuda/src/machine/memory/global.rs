//! Device memory as the host sees it: allocations, copies, fills.
//!
//! Device addresses are synthetic: never a host pointer, never used twice, far apart; so a stray address hits nothing.
//! Bytes are kept in pages of 4 KiB, and whoever touches one, host call or kernel, holds the page's lock for that one
//! access.

use super::Refusal;
pub use super::Who;
use super::allocation::{Allocation, Kind, LockedPage, PAGE, Stripes, Table, freed_refusal};
use super::bits;
pub use super::launch::LaunchMemory;
use crate::report::FaultKind;
use crate::settings::Checks;
use std::sync::{Arc, PoisonError, RwLock};

/// Device memory. Cheap to clone: clones are the same memory.
#[derive(Clone, Debug)]
pub struct GlobalMemory(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) table: RwLock<Table>,
    pub(super) stripes: Stripes,
    capacity: u64,
}

/// An allocation, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes, as asked for.
    pub bytes: u64,
}

impl Inner {
    pub(super) fn with_table<R>(&self, read: impl FnOnce(&Table) -> R) -> R {
        read(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_table<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        change(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Locks the page of an address for an access to an allocation that is still there.
    fn lock(&self, allocation: &Allocation, address: u64) -> Result<LockedPage<'_>, Refusal> {
        let page = self.stripes.lock(address);
        if allocation.is_freed() {
            return Err(freed_refusal(address, allocation.base, allocation.bytes));
        }
        Ok(page)
    }
}

impl GlobalMemory {
    /// Memory of `capacity` bytes. Nothing is reserved for it.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Inner { table: RwLock::new(Table::new()), stripes: Stripes::new(), capacity }))
    }

    /// A new allocation, aligned to 512 bytes; `None` when the device is full or `bytes` is 0.
    pub fn allocate(&self, bytes: u64) -> Option<u64> {
        self.0.change_table(|table| table.allocate(bytes, self.0.capacity, Kind::Device))
    }

    /// The same for constant variables: kernels may read it and the host may write it.
    pub fn allocate_constant(&self, bytes: u64) -> Option<u64> {
        self.0.change_table(|table| table.allocate(bytes, self.0.capacity, Kind::Constant))
    }

    /// Memory of the host that kernels can reach under its own address (pinned, managed, registered). All of it counts
    /// as initialised, and it does not count as device memory in use.
    ///
    /// # Safety
    /// The memory stays valid until [`GlobalMemory::free`] of its address has returned. While a kernel runs, the host
    /// touches only what the kernel does not.
    pub unsafe fn map_host(&self, pointer: *mut u8, bytes: u64) {
        if bytes > 0 && (pointer as u64).checked_add(bytes).is_some() {
            self.0.change_table(|table| table.map_host(pointer, bytes));
        }
    }

    /// Frees an allocation (or forgets a mapping of the host's memory), given by its first address.
    ///
    /// # Errors
    /// No allocation begins there, or it was freed before.
    pub fn free(&self, base: u64) -> Result<(), Refusal> {
        let allocation = self.0.change_table(|table| table.free(base))?;
        if allocation.kind == Kind::Host {
            // Accesses that began before the allocation was marked as freed hold its page's lock: they end first.
            let first_page = base / PAGE;
            let pages = allocation.pages().min(super::allocation::STRIPES as u64);
            (first_page..first_page + pages).for_each(|page| drop(self.0.stripes.lock(page * PAGE)));
        }
        Ok(())
    }

    /// The live allocation that holds the address.
    pub fn containing(&self, address: u64) -> Option<Range> {
        self.0.with_table(|table| {
            table.containing(address).map(|allocation| Range { base: allocation.base, bytes: allocation.bytes })
        })
    }

    /// (free, total) in bytes.
    pub fn usage(&self) -> (u64, u64) {
        let used = self.0.with_table(|table| table.used);
        (self.0.capacity - used, self.0.capacity)
    }

    /// Device to host. Uninitialised bytes are copied as they are (zero).
    ///
    /// # Errors
    /// The bytes are not all in one live allocation.
    pub fn read(&self, address: u64, destination: &mut [u8]) -> Result<(), Refusal> {
        let allocation = self.find(address, destination.len() as u64)?;
        for (at, part) in page_parts(address, destination.len()) {
            let page = self.0.lock(&allocation, at)?;
            allocation.get(&page, at, &mut destination[part]);
        }
        Ok(())
    }

    /// That every byte was written.
    ///
    /// # Errors
    /// The first byte that was not; or the bytes are not all in one live allocation.
    pub fn check_initialized(&self, address: u64, bytes: u64) -> Result<(), Refusal> {
        let allocation = self.find(address, bytes)?;
        for (at, part) in page_parts(address, bytes as usize) {
            let mut page = self.0.lock(&allocation, at)?;
            let Some(words) = allocation.initialized(&mut page) else { continue };
            if let Some(byte) = bits::first_clear(words, (at % PAGE) as usize, part.len()) {
                let address = at - at % PAGE + byte as u64;
                let text = format!("byte {address:#x} is read, and nobody has written it");
                return Err(Refusal::new(FaultKind::Uninitialized, text));
            }
        }
        Ok(())
    }

    /// Host to device: the bytes become initialised.
    ///
    /// # Errors
    /// The bytes are not all in one live allocation.
    pub fn write(&self, address: u64, source: &[u8]) -> Result<(), Refusal> {
        let allocation = self.find(address, source.len() as u64)?;
        for (at, part) in page_parts(address, source.len()) {
            let mut page = self.0.lock(&allocation, at)?;
            put(&allocation, &mut page, at, &source[part]);
        }
        Ok(())
    }

    /// Device to device: bytes and their initialised bits.
    ///
    /// # Errors
    /// Source or destination are not all in one live allocation.
    pub fn copy(&self, destination: u64, source: u64, bytes: u64) -> Result<(), Refusal> {
        let (to, from) = (self.find(destination, bytes)?, self.find(source, bytes)?);
        let (mut data, mut done) = (vec![0; PAGE as usize], 0);
        while done < bytes {
            let (source, destination) = (source + done, destination + done);
            let count = (bytes - done).min(PAGE - source % PAGE).min(PAGE - destination % PAGE) as usize;
            let mut known = [u64::MAX; super::allocation::PAGE_WORDS];
            {
                let mut page = self.0.lock(&from, source)?;
                from.get(&page, source, &mut data[..count]);
                if let Some(initialized) = from.initialized(&mut page) {
                    known.copy_from_slice(initialized);
                }
            }
            let mut page = self.0.lock(&to, destination)?;
            to.put(&mut page, destination, &data[..count]);
            if let Some(initialized) = to.initialized(&mut page) {
                bits::copy(initialized, (destination % PAGE) as usize, &known, (source % PAGE) as usize, count);
            }
            done += count as u64;
        }
        Ok(())
    }

    /// Repeats a pattern of 1, 2 or 4 bytes `count` times.
    ///
    /// # Errors
    /// The bytes are not all in one live allocation.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), Refusal> {
        let width = pattern.len();
        let total = count.checked_mul(width as u64).and_then(|total| usize::try_from(total).ok());
        let too_many =
            || Refusal::new(FaultKind::OutOfBounds, format!("{count} times {width} bytes exceed all memory"));
        let total = total.ok_or_else(too_many)?;
        let allocation = self.find(address, total as u64)?;
        // Long enough for a page at every phase of the pattern.
        let repeated: Vec<u8> = pattern.iter().copied().cycle().take(PAGE as usize + width).collect();
        for (at, part) in page_parts(address, total) {
            let mut page = self.0.lock(&allocation, at)?;
            let phase = part.start % width;
            put(&allocation, &mut page, at, &repeated[phase..phase + part.len()]);
        }
        Ok(())
    }

    /// The memory as one launch sees it.
    pub fn begin_launch(&self, checks: &Checks) -> LaunchMemory {
        let snapshot = self.0.change_table(Table::snapshot);
        LaunchMemory::new(self.0.clone(), snapshot, *checks)
    }

    fn find(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, Refusal> {
        self.0.with_table(|table| table.find(address, bytes))
    }
}

/// Stores bytes of one page and marks them as initialised.
fn put(allocation: &Allocation, page: &mut LockedPage, address: u64, bytes: &[u8]) {
    allocation.put(page, address, bytes);
    if let Some(initialized) = allocation.initialized(page) {
        bits::set(initialized, (address % PAGE) as usize, bytes.len());
    }
}

/// An access, page by page: the address and the range of its bytes.
#[inline]
pub(super) fn page_parts(address: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < bytes).then(|| {
            let at = address + done as u64;
            let count = (bytes - done).min((PAGE - at % PAGE) as usize);
            done += count;
            (at, done - count..done)
        })
    })
}
