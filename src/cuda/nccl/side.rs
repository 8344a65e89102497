//! Streams and events of this crate's own, and memory that a stream copies to while the host goes on.

use crate::cuda::context::{CurrentContext, FreedInContext, Kept, bind};
use crate::cuda::driver::called;
use crate::cuda::memory::Grown;
use crate::cuda::page_locked::PageLocked;
use crate::error::Result;
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};
use std::sync::Arc;

impl FreedInContext for CudaEvent {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(self.context())
    }
}

/// An event that only orders.
pub(super) fn event(context: &Arc<CudaContext>) -> Result<Kept<CudaEvent>> {
    bind(context)?;
    called("cuEventCreate", context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))).map(Kept::new)
}

/// A stream that waits for no other unless it is told to. Not made by cudarc, which from a context's second stream on would wait for
/// events at every use of a slice.
pub(super) struct Side(Kept<Destroyed>);

/// A stream that is destroyed with this, when its work is done.
struct Destroyed(Arc<CudaStream>);

impl FreedInContext for Destroyed {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(self.0.context())
    }
}

impl Drop for Destroyed {
    fn drop(&mut self) {
        // An error here: the context is no more, and the stream neither.
        // SAFETY: made by `Side::new`; whoever holds a clone is dropped before.
        let _ = unsafe { result::stream::destroy(self.0.cu_stream()) };
    }
}

impl Side {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        bind(context)?;
        let stream = called("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        // SAFETY: a stream of this context, which is destroyed with the last field that uses it.
        Ok(Self(Kept::new(Destroyed(unsafe { context.wrap_borrowed_stream(stream) }))))
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.0.0
    }
}

/// Words on the device and on the host, whose pages stay where they are, and the event that says when they have come.
pub(super) struct Staging {
    pub(super) device: Grown<u32>,
    host: PageLocked,
    pub(super) arrived: Kept<CudaEvent>,
    stream: Arc<CudaStream>,
}

impl Staging {
    /// For copies in the order of one stream.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let arrived = event(stream.context())?;
        Ok(Self { device: Grown::default(), host: PageLocked::default(), arrived, stream: stream.clone() })
    }

    /// Room for so many words on either side. What the stream still does with the old ones is waited for.
    pub(super) fn reserve(&mut self, words: usize) -> Result<()> {
        self.device.reserve(&self.stream, words)?;
        let bytes = words.saturating_mul(size_of::<u32>());
        if self.host.bytes().len() < bytes {
            self.finish()?;
            self.host = PageLocked::new(self.stream.context(), bytes)?;
        }
        Ok(())
    }

    /// The host's words. Nothing in the stream uses them when they are read or written.
    pub(super) fn host(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(self.host.bytes_mut())
    }

    fn finish(&self) -> Result<()> {
        bind(self.stream.context())?;
        called("cuStreamSynchronize", self.stream.synchronize())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A call that has failed may have left copies in the stream.
        let _current = CurrentContext::enter(self.stream.context());
        let _ = self.finish();
        self.host = PageLocked::default();
    }
}
