//! Device memory of this crate's own: blocks, buffers that grow, copies to and from the host. All of it is used in the order of
//! one stream, so that cudarc has nothing to wait for or to record: its addresses are asked for once, when it is allocated.

use crate::cuda::context::{Kept, bind};
use crate::cuda::driver::called;
use crate::cuda::memory::{Address, View, ViewMut};
use crate::element::Number;
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result, sys};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// An allocation, which several buffers may be parts of; freed with the last of them, in the stream's order.
pub(super) struct Block {
    slice: Kept<Option<CudaSlice<u8>>>,
    address: Address,
    bytes: usize,
}

impl Block {
    /// So many bytes, zeros; a byte where it is none, since an allocation of nothing would be none.
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Arc<Self>> {
        let bytes = bytes.max(1);
        if isize::try_from(bytes).is_err() {
            return called("cuMemAllocAsync", Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        }
        bind(stream.context())?;
        let slice = called("cuMemAllocAsync", stream.alloc_zeros::<u8>(bytes))?;
        let address = slice.device_ptr(stream).0;
        Ok(Arc::new(Self { slice: Kept::new(Some(slice)), address, bytes }))
    }

    /// Where it lies.
    pub(super) fn range(&self) -> Range<Address> {
        self.address..self.address + self.bytes as Address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is used on this stream.
    pub(super) fn is_of(&self, stream: &Arc<CudaStream>) -> bool {
        self.slice.as_ref().is_some_and(|slice| Arc::ptr_eq(slice.stream(), stream))
    }
}

/// A buffer that grows when it must. What it held is lost when it does.
pub struct Grown<T> {
    block: Option<Arc<Block>>,
    address: Address,
    length: usize,
    numbers: PhantomData<fn() -> T>,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { block: None, address: 0, length: 0, numbers: PhantomData }
    }
}

impl<T> std::fmt::Debug for Grown<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Grown")
            .field("address", &self.address)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl<T> Grown<T> {
    /// The context that it lies in, if there is one.
    pub(super) fn context(&self) -> Option<&Arc<CudaContext>> {
        self.block.as_ref()?.slice.as_ref().map(|slice| slice.stream().context())
    }

    /// The first `length` numbers; all, if there are fewer.
    pub(super) fn view(&self, length: usize) -> View<'_, T> {
        View::of_buffer(self.address, length.min(self.length), self.context())
    }

    /// The first `length` numbers; all, if there are fewer.
    pub(super) fn view_mut(&mut self, length: usize) -> ViewMut<'_, T> {
        ViewMut::of_buffer(self.address, length.min(self.length), self.context())
    }

    /// Blocks that are held: 1 or 0.
    pub(super) fn slices(&self) -> usize {
        usize::from(self.block.is_some())
    }

    /// What it is part of.
    pub(super) fn block(&self) -> Option<&Arc<Block>> {
        self.block.as_ref()
    }

    /// Where it begins, or 0.
    pub(super) fn address(&self) -> Address {
        self.address
    }
}

impl<T: Number> Grown<T> {
    /// Makes it at least `length` numbers long; zeros when new. Growing frees the old buffer in the stream's order, after
    /// what still uses it.
    pub(super) fn reserve(&mut self, stream: &Arc<CudaStream>, length: usize) -> Result<()> {
        // One of another stream is let go of: nothing would order what uses it there and here.
        if self.fits(stream, length) {
            return Ok(());
        }
        *self = Self::default();
        let block = Block::new(stream, length.saturating_mul(size_of::<T>()))?;
        self.become_part(&block, 0, length);
        Ok(())
    }

    /// Whether it is so long already, and of this stream.
    pub(super) fn fits(&self, stream: &Arc<CudaStream>, length: usize) -> bool {
        self.length >= length && self.block.as_ref().is_some_and(|block| block.is_of(stream))
    }

    /// Lets go of what it is, and becomes the part of a block that begins `offset` bytes after its start.
    pub(super) fn become_part(&mut self, block: &Arc<Block>, offset: usize, length: usize) {
        let address = block.address + offset as Address;
        *self = Self { block: Some(block.clone()), address, length, numbers: PhantomData };
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

/// Copies numbers of the host to memory that has room for them, in the stream's order.
pub(super) fn copy_to_device<T: Number>(stream: &Arc<CudaStream>, to: Address, numbers: &[T]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    bind(stream.context())?;
    // SAFETY: the buffer is as long as the numbers, and used in the order of the stream only.
    called("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, numbers, stream.cu_stream()) })
}

/// Copies numbers on the device, in the stream's order.
pub(super) fn copy_on_device<T: Number>(stream: &Arc<CudaStream>, from: &View<'_, T>, to: &mut Grown<T>) -> Result<()> {
    to.reserve(stream, from.len())?;
    if from.is_empty() {
        return Ok(());
    }
    bind(stream.context())?;
    let (source, _read) = from.address(stream);
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
    bind(stream.context())?;
    let (source, _read) = from.address(stream);
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

impl Scratch {
    /// Blocks that are held.
    pub(super) fn slices(&self) -> usize {
        let Self { partials, tickets } = self;
        partials.slices() + tickets.slices()
    }
}
