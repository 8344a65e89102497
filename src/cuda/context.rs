//! Contexts: the one that views must lie in, the calling thread's current one, which every call leaves as it was, and those
//! that another framework owns.

use crate::cuda::Cuda;
use crate::cuda::driver::called;
use crate::error::{Error, Result};
use cudarc::driver::result::{ctx, device};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, sys};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Gives the calling thread its current context back, or none, when it goes out of scope.
///
/// cudarc makes the context of whatever it works on current, also to free it, and leaves it so: a caller who works on
/// another device by the driver's API would go on in ours. Every public call begins with one of these, declared before
/// anything that has to be freed. It costs one call that reads a number of the thread, and two more where another context
/// than the backend's is current; within another of the same thread it costs nothing.
#[derive(Debug)]
pub struct CurrentContext {
    /// The context to give back, null if there was none; `None` within another.
    before: Option<sys::CUcontext>,
}

/// What is known of a thread's current context.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: no [`CurrentContext`] will restore it.
    Unkept,
    /// It is this one; null: none.
    Current(sys::CUcontext),
    /// cudarc may have changed it.
    Changed,
}

thread_local! {
    static KNOWN: Cell<Known> = const { Cell::new(Known::Unkept) };
}

impl CurrentContext {
    /// Notes the current context.
    pub(super) fn keep() -> Result<Self> {
        if KNOWN.get() != Known::Unkept {
            return Ok(Self { before: None });
        }
        let before = called("cuCtxGetCurrent", current())?;
        KNOWN.set(Known::Current(before));
        Ok(Self { before: Some(before) })
    }

    /// The same, and makes `context` current.
    pub(super) fn enter(context: &CudaContext) -> Result<Self> {
        let kept = Self::keep()?;
        bind(context)?;
        Ok(kept)
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        let Some(before) = self.before else { return };
        let known = KNOWN.replace(Known::Unkept);
        if known == Known::Current(before) || (known == Known::Changed && current() == Ok(before)) {
            return;
        }
        // Fails only if the context is no more, and then it cannot be current either.
        // SAFETY: it was current when the call began, or is null, which is none.
        let _ = count(unsafe { ctx::set_current(before) });
    }
}

/// Makes a context current: in place of cudarc's `bind_to_thread`, which asks the driver each time. Within a
/// [`CurrentContext`] everything of cudarc that works on a context comes after one of these for it, so that what is known of
/// the current context stays true; what cannot is marked with [`changed`].
pub(super) fn bind(context: &CudaContext) -> Result<()> {
    // What cudarc has noted where it could not return an error.
    called("cuCtxSetCurrent", context.check_err())?;
    if KNOWN.get() == Known::Unkept {
        return called("cuCtxSetCurrent", context.bind_to_thread());
    }
    called("cuCtxSetCurrent", make_current(context))
}

/// As [`bind`], and leaves what cudarc has noted to the next call.
pub(super) fn make_current(context: &CudaContext) -> std::result::Result<(), DriverError> {
    // SAFETY: a context that is alive, as `context` is.
    unsafe { set(context.cu_ctx()) }
}

/// Notes that cudarc may have made another context current.
pub(super) fn changed() {
    if KNOWN.get() != Known::Unkept {
        KNOWN.set(Known::Changed);
    }
}

/// Makes a context current, unless it is known to be.
///
/// # Safety
/// It is alive, or null.
unsafe fn set(context: sys::CUcontext) -> std::result::Result<(), DriverError> {
    if KNOWN.get() == Known::Current(context) {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let set = count(unsafe { ctx::set_current(context) });
    if KNOWN.get() != Known::Unkept {
        KNOWN.set(if set.is_ok() { Known::Current(context) } else { Known::Changed });
    }
    set
}

/// The current context; null: none.
fn current() -> std::result::Result<sys::CUcontext, DriverError> {
    count(ctx::get_current().map(|context| context.unwrap_or(std::ptr::null_mut())))
}

/// What is freed in a context.
///
/// cudarc frees memory in the order of its stream without making the stream's context current. Where that is the null
/// stream, or one of the driver's special handles, it would be a stream of whichever context is current: the memory would
/// be freed before what still uses it, or, with none, never.
pub(super) trait FreedInContext {
    /// None where there is nothing to free.
    fn freed_in(&self) -> Option<&CudaContext>;
}

impl<T> FreedInContext for CudaSlice<T> {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(self.stream().context())
    }
}

impl FreedInContext for Arc<CudaStream> {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(self.context())
    }
}

impl<T: FreedInContext> FreedInContext for Option<T> {
    fn freed_in(&self) -> Option<&CudaContext> {
        self.as_ref().and_then(T::freed_in)
    }
}

/// What holds device memory, streams or modules: it is freed in its context, and leaves the current context as it was.
#[derive(Clone, Default)]
pub(super) struct Kept<T: FreedInContext>(ManuallyDrop<T>);

impl<T: FreedInContext> Kept<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T: FreedInContext> Drop for Kept<T> {
    fn drop(&mut self) {
        let _current = CurrentContext::keep();
        if let Some(context) = self.0.freed_in() {
            // Not cudarc's `bind_to_thread`, which does nothing where an earlier call has failed. An error here: the context
            // is no more, and what was in it neither.
            // SAFETY: a context that `self` keeps, or whose owner has promised to.
            let _ = unsafe { set(context.cu_ctx()) };
        }
        // SAFETY: here alone, and nothing uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}

impl<T: FreedInContext> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: FreedInContext> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A context that another framework owns, as a value of cudarc's: never destroyed here.
pub(super) struct ForeignContext(ManuallyDrop<Arc<CudaContext>>);

impl ForeignContext {
    /// Makes the context current, which the caller undoes.
    ///
    /// # Safety
    /// `context` is null or a context that outlives everything made from it.
    pub(super) unsafe fn new(context: sys::CUcontext) -> Result<Self> {
        // Before cudarc has it: what fails there destroys the context.
        // SAFETY: the caller's promise.
        called("cuCtxSetCurrent", unsafe { set(context) })?;
        // An error where the context is null.
        let (handle, ordinal) = current_device()?;
        // SAFETY: a context, of this device. It is not destroyed: see `drop`.
        let context = unsafe { CudaContext::from_raw_context(ordinal, handle, context) };
        called("cuDeviceGetAttribute", context).map(|context| Self(ManuallyDrop::new(context)))
    }

    /// A stream of this context that its owner destroys.
    ///
    /// # Errors
    /// [`Error::Device`] for a stream of another context.
    ///
    /// # Safety
    /// `stream` is a stream, the null stream or one of the special handles, and outlives everything made from it. This
    /// context is current.
    pub(super) unsafe fn stream(&self, stream: sys::CUstream) -> Result<Arc<CudaStream>> {
        let mut owner = std::ptr::null_mut();
        // What the driver does not answer (for streams of green contexts) is not checked.
        // SAFETY: the caller's promise; a place for the answer.
        let is_answered = unsafe { sys::cuStreamGetCtx(stream, &raw mut owner) }.result().is_ok();
        if is_answered && owner != self.0.cu_ctx() {
            // SAFETY: the context of a stream that is alive.
            called("cuCtxSetCurrent", unsafe { set(owner) })?;
            let (_, given) = current_device()?;
            return Err(Error::Device { what: "stream", given, expected: self.0.ordinal() });
        }
        // SAFETY: the caller's promise.
        Ok(unsafe { self.0.wrap_borrowed_stream(stream) })
    }
}

impl Drop for ForeignContext {
    /// cudarc destroys a context with its last reference. So the last one is taken apart here; and where somebody else
    /// holds one still (a clone of the stream, a workspace), this one is never given back, so that theirs is not the last.
    fn drop(&mut self) {
        // SAFETY: here alone, and nothing uses it afterwards.
        match Arc::try_unwrap(unsafe { ManuallyDrop::take(&mut self.0) }) {
            Ok(context) => std::mem::forget(context),
            Err(held) => std::mem::forget(held),
        }
    }
}

/// The current context's device, and its ordinal.
fn current_device() -> Result<(sys::CUdevice, usize)> {
    let mut handle = 0;
    // SAFETY: a place for the answer.
    called("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&raw mut handle) }.result())?;
    let count = called("cuDeviceGetCount", device::get_count())?;
    let ordinal = (0..count).find(|&ordinal| device::get(ordinal) == Ok(handle));
    let ordinal = ordinal.ok_or(DriverError(sys::CUresult::CUDA_ERROR_INVALID_DEVICE));
    Ok((handle, called("cuDeviceGet", ordinal)? as usize))
}

impl Cuda {
    /// Checks that this backend's context is the one that something lies in, where that is known. An address of another device
    /// would be read or written through the wrong page tables, and cudarc would note an error that whichever call comes next
    /// gets.
    pub(super) fn check_context(&self, what: &'static str, given: Option<&Arc<CudaContext>>) -> Result<()> {
        let (Some(given), expected) = (given, self.stream.context()) else { return Ok(()) };
        if given.cu_ctx() == expected.cu_ctx() {
            return Ok(());
        }
        Err(Error::Device { what, given: given.ordinal(), expected: expected.ordinal() })
    }
}

#[cfg(test)]
thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the guard's calls, for a test.
fn count<T>(result: T) -> T {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
    result
}

#[cfg(test)]
mod test {
    use super::*;

    /// One call where the context is current already, three where it is not; one more where cudarc may have changed it.
    #[test]
    fn keeping_the_context_costs_few_calls() {
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let context = CudaContext::new(0).expect("device 0");
        // SAFETY: none is always allowed.
        let unset = || unsafe { ctx::set_current(std::ptr::null_mut()) }.expect("no context");
        let counted = |work: &dyn Fn()| {
            let before = CALLS.get();
            let kept = CurrentContext::keep().expect("a driver");
            work();
            drop(kept);
            CALLS.get() - before
        };
        assert_eq!(counted(&|| bind(&context).expect("a context")), 1);
        let unknown = || {
            unset();
            changed();
        };
        assert_eq!(counted(&unknown), 3);
        assert_eq!(ctx::get_current(), Ok(Some(context.cu_ctx())));
        assert_eq!(counted(&changed), 2);
        unset();
        let twice = || {
            bind(&context).expect("a context");
            bind(&context).expect("a context");
        };
        assert_eq!(counted(&twice), 3);
        assert_eq!(ctx::get_current(), Ok(None));
        let stream = context.new_stream().expect("a stream");
        unset();
        drop(Kept::new(stream));
        assert_eq!(ctx::get_current(), Ok(None), "freeing makes its context current");
    }

    /// Memory of a null stream is freed on the null stream of its own context, whichever is current.
    #[test]
    fn memory_of_a_null_stream_is_freed_in_its_context() {
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let other = CudaContext::new_non_primary(0, 0).expect("another context");
        let context = CudaContext::new(0).expect("device 0");
        for current in [std::ptr::null_mut(), other.cu_ctx(), context.cu_ctx()] {
            let slice = context.default_stream().alloc_zeros::<f32>(3).expect("memory");
            // SAFETY: none, or a context that is alive.
            unsafe { ctx::set_current(current) }.expect("a context");
            drop(Kept::new(slice));
            assert_eq!(context.check_err(), Ok(()), "cudarc notes what fails when memory is freed");
        }
    }
}
