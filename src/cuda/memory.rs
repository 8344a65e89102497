//! Views of device memory: cudarc's, whose uses it keeps in order between streams, and addresses.

use crate::cuda::context::make_current;
use crate::data::memory::Memory;
use crate::element::Number;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop,
    result, sys,
};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

pub use crate::cuda::buffer::Grown;
pub(super) use crate::cuda::buffer::{Scratch, address, copy_on_device, download};

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

    fn words_mut<'a, T: Number>(view: &'a mut ViewMut<'_, T>) -> ViewMut<'a, u32> {
        let are_words = align_of::<T>().is_multiple_of(align_of::<u32>());
        let words = if are_words { view.len() * size_of::<T>() / size_of::<u32>() } else { 0 };
        ViewMut(match &mut view.0 {
            // SAFETY: numbers of any bits, as words are.
            PlaceMut::Slice(slice) => match unsafe { slice.transmute_mut(words) } {
                Some(slice) => PlaceMut::Slice(slice),
                None => PlaceMut::Address(0, 0, Owner(None, PhantomData)),
            },
            PlaceMut::Address(address, _, owner) => PlaceMut::Address(*address, words, Owner(owner.0, PhantomData)),
        })
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

/// Keeps what cudarc notes of a view's use until the launches that use it are in the stream; `None` for an address, whose
/// order is its owner's.
pub(super) type Held<'a> = Option<Use<'a>>;

/// A use of a view of cudarc's by a stream, recorded for other streams when this is dropped: as cudarc's [`SyncOnDrop`] does,
/// with one call of the driver in place of two.
#[derive(Debug)]
pub struct Use<'a>(SyncOnDrop<'a>);

impl Drop for Use<'_> {
    fn drop(&mut self) {
        let SyncOnDrop::Record(target) = &mut self.0 else { return };
        let Some((event, stream)) = target.take() else { return };
        let context = stream.context();
        if context.is_managing_stream_synchronization() {
            // SAFETY: both are alive, and in one context: a view of another has been refused.
            let record = |()| unsafe { result::event::record(event.cu_event(), stream.cu_stream()) };
            // An error is the next call's, as cudarc has it.
            context.record_err(make_current(context).and_then(record));
        }
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        match &self.0 {
            Place::Slice(slice) => View(Place::Slice(slice.slice(..))),
            Place::Address(address, length, owner) => View(Place::Address(*address, *length, *owner)),
        }
    }
}

impl<'a, T> View<'a, T> {
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

    /// A view of memory of this crate's own, in a context.
    pub(super) fn of_buffer(address: Address, length: usize, context: Option<&'a Arc<CudaContext>>) -> Self {
        Self(Place::Address(address, length, Owner(context, PhantomData)))
    }

    /// The same numbers as an address, for all of a call's launches on `stream`: what cudarc does for their order is done
    /// once, here and when the other value is dropped.
    pub(super) fn ordered<'b>(&'b self, stream: &'b CudaStream) -> (View<'b, T>, Held<'b>) {
        let (address, held) = self.address(stream);
        (View::of_buffer(address, self.len(), self.context()), held)
    }

    /// The address, for launches on `stream`.
    pub(super) fn address<'b>(&'b self, stream: &'b CudaStream) -> (Address, Held<'b>) {
        match &self.0 {
            Place::Slice(slice) => {
                let (address, held) = slice.device_ptr(stream);
                (address, Some(Use(held)))
            }
            Place::Address(address, ..) => (*address, None),
        }
    }
}

impl<'a, T> ViewMut<'a, T> {
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

    /// A view of memory of this crate's own, in a context.
    pub(super) fn of_buffer(address: Address, length: usize, context: Option<&'a Arc<CudaContext>>) -> Self {
        Self(PlaceMut::Address(address, length, Owner(context, PhantomData)))
    }

    /// As [`View::ordered`].
    pub(super) fn ordered<'b>(&'b mut self, stream: &'b CudaStream) -> (ViewMut<'b, T>, Held<'b>) {
        let length = self.len();
        match &mut self.0 {
            PlaceMut::Slice(slice) => {
                let (address, held) = slice.device_ptr_mut(stream);
                (ViewMut::of_buffer(address, length, Some(stream.context())), Some(Use(held)))
            }
            PlaceMut::Address(address, _, owner) => {
                (ViewMut(PlaceMut::Address(*address, length, owner.of_part())), None)
            }
        }
    }

    /// The address, for launches on `stream`.
    pub(super) fn address<'b>(&'b mut self, stream: &'b CudaStream) -> (Address, Held<'b>) {
        match &mut self.0 {
            PlaceMut::Slice(slice) => {
                let (address, held) = slice.device_ptr_mut(stream);
                (address, Some(Use(held)))
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

/// An address of device memory.
pub type Address = sys::CUdeviceptr;
