//! Memory of the host that costs nothing until it is touched.

/// Zeroed pages of the host, given back when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that is owned by this value; those who share it synchronise their accesses (see
// `GlobalMemory`).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `None` when the host has no address space for it.
    pub(super) fn new(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?.max(1);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let pointer = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (pointer != libc::MAP_FAILED).then_some(Self { pointer: pointer.cast(), bytes })
    }

    /// The first byte; aligned to a page.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping, and no reference into it outlives the value. A failure would
        // only leak it.
        unsafe { libc::munmap(self.pointer.cast(), self.bytes) };
    }
}
