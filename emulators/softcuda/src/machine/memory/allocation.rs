//! Allocations: their storage, the table that finds them by address, and words for addresses that are in none.

use super::Refusal;
use super::mapping::Mapping;
use crate::report::FaultKind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that one lock guards, aligned: no access and no bitmap word spans two.
pub(super) const PAGE: u64 = 4096;
/// Words of a page's bitmap.
pub(super) const PAGE_WORDS: usize = PAGE as usize / 64;
/// Every allocation's alignment in bytes: what code may rely on, and not more.
const ALIGNMENT: u64 = 512;
/// At least so many bytes before and after every allocation belong to none.
const RED_ZONE: u64 = 4096;
/// Where device addresses begin and end: no host on which this runs maps its own memory there.
const FIRST_ADDRESS: u64 = 0x0300_0000_0000;
const LAST_ADDRESS: u64 = 0x5000_0000_0000;
/// Locks over all pages.
pub(super) const STRIPES: usize = 256;

/// What kind of memory an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Device,
    /// Kernels may only read it.
    Constant,
    /// The host's own, under its own address; its bytes count as initialised.
    Host,
}

/// An allocation with its bytes and, unless it is the host's, one bit per byte that says whether it was written.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) base: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
    freed: AtomicBool,
    /// The host's memory for the start of the first page.
    data: *mut u8,
    /// `pages` bitmaps; null for the host's memory.
    initialized: *mut u64,
    /// What the pointers point into, unless it is the host's.
    _mapping: Option<Mapping>,
}

// SAFETY: the pointers are to memory that lives as long as the value (the mapping) or until it is freed (`map_host`'s
// contract, see `Allocation::free`), and that is only touched with the page's lock held.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn new(base: u64, bytes: u64, kind: Kind) -> Option<Self> {
        let pages = (base + bytes).div_ceil(PAGE) - base / PAGE;
        let mapping = Mapping::new(pages.checked_mul(PAGE + PAGE / 8)?)?;
        let data = mapping.pointer();
        let initialized = data.wrapping_add((pages * PAGE) as usize).cast();
        Some(Self { base, bytes, kind, freed: AtomicBool::new(false), data, initialized, _mapping: Some(mapping) })
    }

    fn host(pointer: *mut u8, bytes: u64) -> Self {
        let base = pointer as u64;
        let data = pointer.wrapping_sub((base % PAGE) as usize);
        let (kind, freed, initialized) = (Kind::Host, AtomicBool::new(false), std::ptr::null_mut());
        Self { base, bytes, kind, freed, data, initialized, _mapping: None }
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// Pages that it touches.
    pub(super) fn pages(&self) -> u64 {
        self.end().div_ceil(PAGE) - self.base / PAGE
    }

    /// The index among its pages of the one that is locked.
    pub(super) fn page_index(&self, page: &LockedPage) -> usize {
        assert!(page.number >= self.base / PAGE && page.number < self.end().div_ceil(PAGE), "a page of the allocation");
        (page.number - self.base / PAGE) as usize
    }

    /// Whether it was freed; to be asked with the page locked.
    pub(super) fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Relaxed)
    }

    fn pointer(&self, page: &LockedPage, address: u64, count: usize) -> *mut u8 {
        let end = address + count as u64;
        assert!(address >= self.base && end <= self.end(), "inside of the allocation");
        assert!(address / PAGE == page.number && end <= (page.number + 1) * PAGE, "inside of the locked page");
        self.data.wrapping_add((address - self.base / PAGE * PAGE) as usize)
    }

    /// Copies bytes of the locked page out.
    #[inline]
    pub(super) fn get(&self, page: &LockedPage, address: u64, out: &mut [u8]) {
        let from = self.pointer(page, address, out.len());
        // SAFETY: `pointer` has checked that the bytes are this allocation's, which lives, and on the page whose lock
        // is held.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Copies bytes into the locked page.
    #[inline]
    pub(super) fn put(&self, page: &mut LockedPage, address: u64, bytes: &[u8]) {
        let to = self.pointer(page, address, bytes.len());
        // SAFETY: as in `get`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// The locked page's bitmap of initialised bytes; `None` for the host's memory.
    #[inline]
    pub(super) fn initialized<'a>(&'a self, page: &'a mut LockedPage) -> Option<&'a mut [u64]> {
        let index = self.page_index(page);
        // SAFETY: the mapping holds a bitmap for each page (zeroed, so valid), and this one is only reached with the
        // page's lock held, which the result borrows.
        (!self.initialized.is_null())
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.initialized.add(index * PAGE_WORDS), PAGE_WORDS) })
    }
}

/// Locks that guard all pages, each many.
#[derive(Debug)]
pub(super) struct Stripes(Box<[Stripe]>);

/// A lock on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(Mutex<()>);

/// The right to touch one page of memory, and what is kept per stripe.
#[derive(Debug)]
pub(super) struct LockedPage<'a> {
    _guard: MutexGuard<'a, ()>,
    pub(super) number: u64,
}

impl LockedPage<'_> {
    pub(super) fn stripe(&self) -> usize {
        self.number as usize % STRIPES
    }
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self((0..STRIPES).map(|_| Stripe::default()).collect())
    }

    /// Locks the page of the address. One thread holds one at a time.
    #[inline]
    pub(super) fn lock(&self, address: u64) -> LockedPage<'_> {
        let number = address / PAGE;
        let stripe = &self.0[number as usize % STRIPES];
        LockedPage { _guard: stripe.0.lock().unwrap_or_else(PoisonError::into_inner), number }
    }
}

/// The allocations in ascending order, as they were at one time.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    bases: Vec<u64>,
    pub(super) allocations: Vec<Arc<Allocation>>,
}

impl Snapshot {
    /// The index of the allocation that holds all the bytes.
    #[inline]
    pub(super) fn find(&self, address: u64, bytes: u64) -> Option<usize> {
        let index = self.bases.partition_point(|&base| base <= address).checked_sub(1)?;
        (address.checked_add(bytes)? <= self.allocations[index].end()).then_some(index)
    }
}

/// All allocations, live and freed.
#[derive(Debug)]
pub(super) struct Table {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Base -> bytes.
    freed: BTreeMap<u64, u64>,
    next: u64,
    /// Bytes of device memory in use.
    pub(super) used: u64,
    snapshot: Option<Arc<Snapshot>>,
}

impl Table {
    pub(super) fn new() -> Self {
        let (live, freed) = (BTreeMap::new(), BTreeMap::new());
        Self { live, freed, next: FIRST_ADDRESS + RED_ZONE, used: 0, snapshot: None }
    }

    /// `None` when `bytes` is 0 or more than `capacity` would be in use.
    pub(super) fn allocate(&mut self, bytes: u64, capacity: u64, kind: Kind) -> Option<u64> {
        let used = self.used.checked_add(bytes.checked_next_multiple_of(ALIGNMENT)?)?;
        let base = self.next;
        let end = base.checked_add(bytes)?;
        if bytes == 0 || used > capacity || end > LAST_ADDRESS {
            return None;
        }
        let allocation = Allocation::new(base, bytes, kind)?;
        self.next = (end + RED_ZONE).next_multiple_of(ALIGNMENT);
        self.used = used;
        self.live.insert(base, Arc::new(allocation));
        self.snapshot = None;
        Some(base)
    }

    pub(super) fn map_host(&mut self, pointer: *mut u8, bytes: u64) {
        let base = pointer as u64;
        let end = base.saturating_add(bytes);
        // The host's allocator hands out addresses again.
        self.freed.retain(|&freed, length| freed.saturating_add(*length) <= base || freed >= end);
        self.live.insert(base, Arc::new(Allocation::host(pointer, bytes)));
        self.snapshot = None;
    }

    /// Takes an allocation out; it stays until nobody accesses it.
    pub(super) fn free(&mut self, base: u64) -> Result<Arc<Allocation>, Refusal> {
        let Some(allocation) = self.live.remove(&base) else {
            if self.freed.contains_key(&base) {
                return Err(Refusal::new(
                    FaultKind::UseAfterFree,
                    format!("the allocation at {base:#x} was freed before"),
                ));
            }
            return Err(Refusal::new(FaultKind::OutOfBounds, format!("no allocation begins at {base:#x}")));
        };
        allocation.freed.store(true, Ordering::Relaxed);
        self.freed.insert(base, allocation.bytes);
        self.snapshot = None;
        if allocation.kind != Kind::Host {
            self.used -= allocation.bytes.next_multiple_of(ALIGNMENT);
        }
        Ok(allocation)
    }

    pub(super) fn containing(&self, address: u64) -> Option<&Arc<Allocation>> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address < allocation.end()).then_some(allocation)
    }

    /// The live allocation that holds all the bytes.
    pub(super) fn find(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, Refusal> {
        self.containing(address)
            .filter(|allocation| address.checked_add(bytes).is_some_and(|end| end <= allocation.end()))
            .cloned()
            .ok_or_else(|| self.explain(address, bytes))
    }

    pub(super) fn snapshot(&mut self) -> Arc<Snapshot> {
        let live = &self.live;
        let snapshot = self.snapshot.get_or_insert_with(|| {
            Arc::new(Snapshot { bases: live.keys().copied().collect(), allocations: live.values().cloned().collect() })
        });
        snapshot.clone()
    }

    /// Why an access to these bytes is refused.
    #[cold]
    pub(super) fn explain(&self, address: u64, bytes: u64) -> Refusal {
        let out_of_bounds = |message| Refusal::new(FaultKind::OutOfBounds, message);
        if address < PAGE {
            return out_of_bounds(format!("address {address:#x} is a null pointer, or near one"));
        }
        if let Some(allocation) = self.containing(address) {
            let beyond = (address.saturating_add(bytes)).saturating_sub(allocation.end());
            let Allocation { bytes: size, base, .. } = **allocation;
            return out_of_bounds(format!(
                "the last {beyond} of {bytes} bytes at {address:#x} are beyond the end of an allocation of {size} bytes \
                 at {base:#x}"
            ));
        }
        let freed = |(base, size): (&u64, &u64)| (*base, *size, " that was freed");
        let live = |(base, allocation): (&u64, &Arc<Allocation>)| (*base, allocation.bytes, "");
        let below_freed = self.freed.range(..=address).next_back().map(freed);
        if let Some((base, size, _)) = below_freed.filter(|&(base, size, _)| address - base < size) {
            return freed_refusal(address, base, size);
        }
        let below_live = self.live.range(..=address).next_back().map(live);
        let above_live = self.live.range(address..).next().map(live);
        let above_freed = self.freed.range(address..).next().map(freed);
        let below = below_freed.into_iter().chain(below_live).map(|place| (address - (place.0 + place.1), true, place));
        let above = above_freed.into_iter().chain(above_live).map(|place| (place.0 - address, false, place));
        match below.chain(above).min_by_key(|near| (near.0, !near.2.2.is_empty())) {
            Some((distance, is_below, (base, size, state))) if distance <= 1 << 32 => {
                let side = if is_below { "after the end of" } else { "before" };
                out_of_bounds(format!(
                    "address {address:#x} is {distance} bytes {side} an allocation of {size} bytes at {base:#x}{state}"
                ))
            }
            _ => out_of_bounds(format!("address {address:#x} is nowhere near an allocation")),
        }
    }
}

/// The refusal of an access to memory that was freed.
#[cold]
pub(super) fn freed_refusal(address: u64, base: u64, bytes: u64) -> Refusal {
    let offset = address - base;
    let message = format!(
        "address {address:#x} is {offset} bytes into an allocation of {bytes} bytes at {base:#x} that was freed"
    );
    Refusal::new(FaultKind::UseAfterFree, message)
}
