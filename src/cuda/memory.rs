//! Device memory: views of it, buffers that grow, copies to and from the host.

use crate::cuda::context::Kept;
use crate::cuda::driver::called;
use crate::cuda::status::Status;
use crate::data::memory::Memory;
use crate::element::Number;
use crate::error::Result;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    DriverError, SyncOnDrop, ValidAsZeroBits, result, sys,
};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The memory of a CUDA device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device;

impl Memory for Device {
    type View<'a, T: Number> = View<'a, T>;
    type ViewMut<'a, T: Number> = ViewMut<'a, T>;

    fn length<T: Number>(view: &View<'_, T>) -> usize {
        view.len()
    }

    fn length_mut<T: Number>(view: &ViewMut<'_, T>) -> usize {
        view.len()
    }

    fn part<'a, T: Number>(view: &Self::View<'a, T>, range: Range<usize>) -> Option<Self::View<'a, T>> {
        let place = match &view.0 {
            Place::Slice(slice) => Place::Slice(slice.try_slice(range)?),
            Place::Address(address, length, owner) => {
                Place::Address(part_of::<T>((*address, *length), &range)?, range.len(), *owner)
            }
        };
        Some(View(place))
    }

    fn part_mut<'a, T: Number>(view: &'a mut Self::ViewMut<'_, T>, range: Range<usize>) -> Option<ViewMut<'a, T>> {
        let place = match &mut view.0 {
            PlaceMut::Slice(slice) => PlaceMut::Slice(slice.try_slice_mut(range)?),
            PlaceMut::Address(address, length, owner) => {
                PlaceMut::Address(part_of::<T>((*address, *length), &range)?, range.len(), owner.of_part())
            }
        };
        Some(ViewMut(place))
    }

    fn as_view<'a, T: Number>(view: &'a ViewMut<'_, T>) -> View<'a, T> {
        match &view.0 {
            PlaceMut::Slice(slice) => View(Place::Slice(slice.as_view())),
            PlaceMut::Address(address, length, owner) => View(Place::Address(*address, *length, owner.to_read())),
        }
    }

    fn address<T: Number>(view: &View<'_, T>) -> u64 {
        match &view.0 {
            Place::Slice(slice) => slice.device_ptr(slice.stream()).0,
            Place::Address(address, ..) => *address,
        }
    }
}

/// The address of part of so many numbers.
fn part_of<T>((address, length): (Address, usize), range: &Range<usize>) -> Option<Address> {
    let inside = range.start <= range.end && range.end <= length;
    inside.then(|| address + (range.start * size_of::<T>()) as Address)
}

/// Numbers on the device, to read: made by `into()` from a view of cudarc's, or a reference to a slice.
#[derive(Debug)]
pub struct View<'a, T>(Place<'a, T>);

/// Numbers on the device, to write: made by `into()` from a mutable view of cudarc's, or a mutable reference to a slice.
#[derive(Debug)]
pub struct ViewMut<'a, T>(PlaceMut<'a, T>);

#[derive(Debug)]
enum Place<'a, T> {
    Slice(CudaView<'a, T>),
    Address(Address, usize, Owner<'a, &'a [T]>),
}

#[derive(Debug)]
enum PlaceMut<'a, T> {
    Slice(CudaViewMut<'a, T>),
    Address(Address, usize, Owner<'a, &'a mut [T]>),
}

/// What is borrowed with an address, `P`, and the context that it lies in: known of a buffer of this crate's.
#[derive(Debug, Clone, Copy)]
struct Owner<'a, P>(Option<&'a Arc<CudaContext>>, PhantomData<P>);

impl<'o, T> Owner<'o, &'o mut [T]> {
    fn of_part(&mut self) -> Owner<'_, &mut [T]> {
        Owner(self.0, PhantomData)
    }

    fn to_read(&self) -> Owner<'_, &[T]> {
        Owner(self.0, PhantomData)
    }
}

/// Keeps what cudarc notes of a view's use until the launch that uses it is in the stream.
pub(super) type Held<'a> = Option<SyncOnDrop<'a>>;

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        match &self.0 {
            Place::Slice(slice) => View(Place::Slice(slice.slice(..))),
            Place::Address(address, length, owner) => View(Place::Address(*address, *length, *owner)),
        }
    }
}

impl<T> View<'_, T> {
    /// Memory that another framework owns: `length` numbers from `address` on.
    ///
    /// # Safety
    /// They lie in the context of the backend that this is given to, aligned to T, and stay there, and are written by nothing,
    /// until that backend's stream has run every call that this is given to. Whatever wrote them is ordered before those calls.
    pub unsafe fn from_address(address: Address, length: usize) -> Self {
        Self(Place::Address(address, length, Owner(None, PhantomData)))
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Slice(slice) => slice.len(),
            Place::Address(_, length, _) => *length,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The context that the numbers lie in, where it is known.
    pub(super) fn context(&self) -> Option<&Arc<CudaContext>> {
        match &self.0 {
            Place::Slice(slice) => Some(slice.stream().context()),
            Place::Address(_, _, owner) => owner.0,
        }
    }

    /// The address, for launches on `stream`.
    pub(super) fn address<'b>(&'b self, stream: &'b CudaStream) -> (Address, Held<'b>) {
        match &self.0 {
            Place::Slice(slice) => {
                let (address, held) = slice.device_ptr(stream);
                (address, Some(held))
            }
            Place::Address(address, ..) => (*address, None),
        }
    }
}

impl<T> ViewMut<'_, T> {
    /// Memory that another framework owns: `length` numbers from `address` on.
    ///
    /// # Safety
    /// As [`View::from_address`]; and nothing reads them meanwhile, nor does another view cover them.
    pub unsafe fn from_address(address: Address, length: usize) -> Self {
        Self(PlaceMut::Address(address, length, Owner(None, PhantomData)))
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            PlaceMut::Slice(slice) => slice.len(),
            PlaceMut::Address(_, length, _) => *length,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The context that the numbers lie in, where it is known.
    pub(super) fn context(&self) -> Option<&Arc<CudaContext>> {
        match &self.0 {
            PlaceMut::Slice(slice) => Some(slice.stream().context()),
            PlaceMut::Address(_, _, owner) => owner.0,
        }
    }

    /// The address, for launches on `stream`.
    pub(super) fn address<'b>(&'b mut self, stream: &'b CudaStream) -> (Address, Held<'b>) {
        match &mut self.0 {
            PlaceMut::Slice(slice) => {
                let (address, held) = slice.device_ptr_mut(stream);
                (address, Some(held))
            }
            PlaceMut::Address(address, ..) => (*address, None),
        }
    }
}

impl<'a, T> From<CudaView<'a, T>> for View<'a, T> {
    fn from(slice: CudaView<'a, T>) -> Self {
        View(Place::Slice(slice))
    }
}

impl<'a, T> From<&'a CudaSlice<T>> for View<'a, T> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        slice.as_view().into()
    }
}

impl<'a, T> From<CudaViewMut<'a, T>> for ViewMut<'a, T> {
    fn from(slice: CudaViewMut<'a, T>) -> Self {
        ViewMut(PlaceMut::Slice(slice))
    }
}

impl<'a, T> From<&'a mut CudaSlice<T>> for ViewMut<'a, T> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        slice.as_view_mut().into()
    }
}

/// A number as cudarc wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: plain numbers without padding, that the same device program reads as they were written.
unsafe impl<T: Number> DeviceRepr for Plain<T> {}

// SAFETY: every bit pattern is a value.
unsafe impl<T: Number> ValidAsZeroBits for Plain<T> {}

/// A buffer that grows when it must. What it held is lost when it does.
pub struct Grown<T> {
    slice: Kept<Option<CudaSlice<Plain<T>>>>,
    address: Address,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { slice: Kept::default(), address: 0 }
    }
}

impl<T> std::fmt::Debug for Grown<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Grown")
            .field("address", &self.address)
            .field("length", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> Grown<T> {
    /// Numbers that it holds.
    pub(super) fn len(&self) -> usize {
        self.slice.as_ref().map_or(0, CudaSlice::len)
    }

    /// The context that it lies in, if there is one.
    pub(super) fn context(&self) -> Option<&Arc<CudaContext>> {
        self.slice.as_ref().map(|slice| slice.stream().context())
    }

    /// The first `length` numbers; all, if there are fewer.
    pub(super) fn view(&self, length: usize) -> View<'_, T> {
        View(Place::Address(self.address, length.min(self.len()), Owner(self.context(), PhantomData)))
    }

    /// The first `length` numbers; all, if there are fewer.
    pub(super) fn view_mut(&mut self, length: usize) -> ViewMut<'_, T> {
        ViewMut(PlaceMut::Address(self.address, length.min(self.len()), Owner(self.context(), PhantomData)))
    }

    /// Slices that are held: 1 or 0.
    pub(super) fn slices(&self) -> usize {
        usize::from(self.slice.is_some())
    }
}

impl<T: Number> Grown<T> {
    /// Makes it at least `length` numbers long; zeros when new. Growing frees the old buffer in the stream's order, after
    /// what still uses it.
    pub(super) fn reserve(&mut self, stream: &Arc<CudaStream>, length: usize) -> Result<()> {
        // One of another stream is let go of: nothing would order what uses it there and here.
        if self.slice.as_ref().is_some_and(|slice| slice.len() >= length && Arc::ptr_eq(slice.stream(), stream)) {
            return Ok(());
        }
        // cudarc multiplies without looking: a product that wraps would be a buffer shorter than it says.
        if length.checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return called("cuMemAllocAsync", Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        }
        // Not a new value in the old one's place: that would be freed outside of its context.
        *self = Self::default();
        // An allocation of nothing would be none.
        let slice = called("cuMemAllocAsync", stream.alloc_zeros(length.max(1)))?;
        // The calls that use it are all on its own stream, in order: there is nothing to wait for.
        self.address = slice.device_ptr(stream).0;
        self.slice = Kept::new(Some(slice));
        Ok(())
    }

    /// Copies numbers of the host, in the stream's order.
    pub(super) fn upload(&mut self, stream: &Arc<CudaStream>, numbers: &[T]) -> Result<()> {
        self.reserve(stream, numbers.len())?;
        copy_to_device(stream, self.address, numbers)
    }
}

/// The address of a buffer of at least `length` elements, for launches in the order of the one stream.
pub(super) fn address<T: Number>(buffer: &mut Grown<T>, stream: &Arc<CudaStream>, length: usize) -> Result<Address> {
    buffer.reserve(stream, length)?;
    Ok(buffer.address)
}

fn copy_to_device<T: Number>(stream: &Arc<CudaStream>, to: Address, numbers: &[T]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
    // SAFETY: the buffer is as long as the numbers, and used in the order of the stream only.
    called("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, numbers, stream.cu_stream()) })
}

/// Copies numbers on the device, in the stream's order.
pub(super) fn copy_on_device<T: Number>(stream: &Arc<CudaStream>, from: &View<'_, T>, to: &mut Grown<T>) -> Result<()> {
    to.reserve(stream, from.len())?;
    if from.is_empty() {
        return Ok(());
    }
    let (source, _read) = from.address(stream);
    called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
    let bytes = from.len() * size_of::<T>();
    // SAFETY: both hold as many numbers of this type.
    called("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to.address, source, bytes, stream.cu_stream()) })
}

/// Numbers of the device. Waits for what writes them: a copy to memory that is not pinned returns when it is done.
pub(super) fn download<T: Number>(stream: &Arc<CudaStream>, from: &View<'_, T>) -> Result<Vec<T>> {
    let mut numbers = vec![T::default(); from.len()];
    if numbers.is_empty() {
        return Ok(numbers);
    }
    let (source, _read) = from.address(stream);
    called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
    // SAFETY: both hold as many numbers of this type, which every bit pattern is one of.
    let copied = unsafe { result::memcpy_dtoh_async(&mut numbers, source, stream.cu_stream()) };
    called("cuMemcpyDtoHAsync", copied)?;
    Ok(numbers)
}

/// What the token log-prob stage needs besides its outputs.
#[derive(Default)]
pub(crate) struct Scratch {
    /// State and entropy sum of each slice of each row, `[N, slices]` of four f32, where several blocks share a row.
    pub(super) partials: Grown<f32>,
    /// How many blocks of each row have come, `[N]`; the last one sets it back to 0.
    pub(super) tickets: Grown<u32>,
}

/// What the device has found wrong, counted there. Every call is by `&self`, and without a lock: a lock would be held while
/// reading waits for the device.
#[derive(Default)]
pub(super) struct StatusWord(OnceLock<Kept<CudaSlice<Status>>>);

impl StatusWord {
    /// Its address; clear when new. For launches in the order of the one stream.
    pub(super) fn address(&self, stream: &Arc<CudaStream>) -> Result<Address> {
        Ok(self.word(stream)?.device_ptr(stream).0)
    }

    /// Reads it. Waits for the stream.
    pub(super) fn read(&self, stream: &Arc<CudaStream>) -> Result<Status> {
        let mut read = [Status::CLEAR];
        called("cuMemcpyDtoHAsync", stream.memcpy_dtoh(self.word(stream)?, &mut read))?;
        called("cuStreamSynchronize", stream.synchronize())?;
        Ok(read[0])
    }

    /// Clears it, in the stream's order and on the device, so that a graph can hold it.
    pub(super) fn clear(&self, stream: &Arc<CudaStream>) -> Result<()> {
        let address = self.address(stream)?;
        called("cuCtxSetCurrent", stream.context().bind_to_thread())?;
        // SAFETY: the word is as long as said, lives as long as `self`, and is touched in the order of the stream only.
        let cleared = unsafe { result::memset_d8_async(address, 0, size_of::<Status>(), stream.cu_stream()) };
        called("cuMemsetD8Async", cleared)
    }

    fn word(&self, stream: &Arc<CudaStream>) -> Result<&CudaSlice<Status>> {
        if let Some(word) = self.0.get() {
            return Ok(word);
        }
        // Not made inside of the cell, where another thread would wait for the driver's call. Of two, one is dropped.
        let new = called("cuMemAllocAsync", stream.alloc_zeros(1))?;
        Ok(self.0.get_or_init(|| Kept::new(new)))
    }

    /// Whether it has been made.
    pub(super) fn is_made(&self) -> bool {
        self.0.get().is_some()
    }
}

impl std::fmt::Debug for StatusWord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StatusWord").field("made", &self.is_made()).finish()
    }
}

impl Scratch {
    /// Slices that are held.
    pub(super) fn slices(&self) -> usize {
        let Self { partials, tickets } = self;
        partials.slices() + tickets.slices()
    }
}

/// An address of device memory.
pub type Address = sys::CUdeviceptr;
