//! Memory of the host that a device copies to and from by itself.

use crate::cuda::context::{FreedInContext, Kept};
use crate::cuda::driver::called;
use crate::error::Result;
use cudarc::driver::{CudaContext, result};
use std::sync::Arc;

/// Page-locked memory of the host, freed in its context; none by default.
#[derive(Default)]
pub(super) struct PageLocked(Kept<Option<Allocation>>);

struct Allocation {
    start: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: owned memory, which any thread may read.
unsafe impl Send for Allocation {}

impl FreedInContext for Allocation {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(&self.context)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated by the driver, and nothing refers to it any more.
        self.context.record_err(unsafe { result::free_host(self.start.cast()) });
    }
}

impl PageLocked {
    /// So many bytes, zeros, aligned to pages. The context is current.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let flags = 0;
        // SAFETY: it is written before it is read.
        let start = called("cuMemHostAlloc", unsafe { result::malloc_host(bytes, flags) })?.cast::<u8>();
        // SAFETY: as long as said.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self(Kept::new(Some(Allocation { start, bytes, context: context.clone() }))))
    }

    /// All of it. No copy to it is under way.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: written when it was allocated; the callers keep the order with copies.
        self.0.as_ref().map_or(&[], |of| unsafe { std::slice::from_raw_parts(of.start, of.bytes) })
    }

    /// All of it. No copy from or to it is under way.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed by this value alone.
        self.0.as_mut().map_or(&mut [], |of| unsafe { std::slice::from_raw_parts_mut(of.start, of.bytes) })
    }
}
