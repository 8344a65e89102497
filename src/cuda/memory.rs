//! Device memory: views of it, buffers that grow, copies to and from the host.

use crate::cuda::context::Kept;
use crate::cuda::driver::called;
use crate::cuda::status::Status;
use crate::data::logits::Shape;
use crate::data::matrix::MatrixShape;
use crate::element::Element;
use crate::error::Result;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits, result, sys,
};
use std::sync::{Arc, OnceLock};

/// Logits on the device, to read: `[N, V]`, row stride ≥ V, columns contiguous.
///
/// With a stride above V the columns beyond V (a padded vocabulary, say) are never read. Any alignment works; rows that
/// begin at a multiple of 16 bytes are read fastest.
pub struct Logits<'a, T> {
    pub(super) data: CudaView<'a, T>,
    pub(super) shape: Shape,
}

/// Logits on the device to overwrite with their gradient, or a buffer for that gradient: `[N, V]`, row stride ≥ V.
///
/// With a stride above V the columns beyond V are never written.
pub struct LogitsMut<'a, T> {
    pub(super) data: CudaViewMut<'a, T>,
    pub(super) shape: Shape,
}

impl<'a, T: Element> Logits<'a, T> {
    /// Contiguous rows: `data` is `[N, V]` with V = `vocab`, and N follows from its length.
    ///
    /// # Errors
    /// As [`crate::Logits::new`].
    pub fn new(data: CudaView<'a, T>, vocab: usize) -> Result<Self> {
        let shape = Shape::contiguous(data.len(), vocab)?;
        Ok(Self { data, shape })
    }

    /// `rows` rows of `vocab` columns, the first elements of two neighbouring rows `row_stride` elements apart.
    ///
    /// # Errors
    /// As [`crate::Logits::strided`].
    pub fn strided(data: CudaView<'a, T>, rows: usize, vocab: usize, row_stride: usize) -> Result<Self> {
        let shape = Shape::strided(data.len(), rows, vocab, row_stride)?;
        Ok(Self { data, shape })
    }

    /// Rows, N.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns, V.
    pub fn vocab(&self) -> usize {
        self.shape.vocab
    }
}

impl<'a, T: Element> LogitsMut<'a, T> {
    /// Contiguous rows, as [`Logits::new`].
    ///
    /// # Errors
    /// As [`Logits::new`].
    pub fn new(data: CudaViewMut<'a, T>, vocab: usize) -> Result<Self> {
        let shape = Shape::contiguous(data.len(), vocab)?;
        Ok(Self { data, shape })
    }

    /// Strided rows, as [`Logits::strided`].
    ///
    /// # Errors
    /// As [`Logits::strided`].
    pub fn strided(data: CudaViewMut<'a, T>, rows: usize, vocab: usize, row_stride: usize) -> Result<Self> {
        let shape = Shape::strided(data.len(), rows, vocab, row_stride)?;
        Ok(Self { data, shape })
    }

    /// Rows, N.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns, V.
    pub fn vocab(&self) -> usize {
        self.shape.vocab
    }
}

/// A matrix on the device, to read: `[rows, columns]`, row stride ≥ columns, columns contiguous.
///
/// Any alignment works; rows that begin at a multiple of 16 bytes are read fastest.
pub struct Matrix<'a, T> {
    pub(super) data: CudaView<'a, T>,
    pub(super) shape: MatrixShape,
}

/// A matrix on the device, to write: `[rows, columns]`, row stride ≥ columns, columns contiguous.
///
/// With a stride above the number of columns what lies between the rows is never written.
pub struct MatrixMut<'a, T> {
    pub(super) data: CudaViewMut<'a, T>,
    pub(super) shape: MatrixShape,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// Contiguous rows: `data` is `[rows, columns]`, and the number of rows follows from its length.
    ///
    /// # Errors
    /// As [`crate::Matrix::new`].
    pub fn new(data: CudaView<'a, T>, columns: usize) -> Result<Self> {
        let shape = MatrixShape::contiguous(data.len(), columns)?;
        Ok(Self { data, shape })
    }

    /// The first elements of two neighbouring rows lie `row_stride` elements apart.
    ///
    /// # Errors
    /// As [`crate::Matrix::strided`].
    pub fn strided(data: CudaView<'a, T>, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        let shape = MatrixShape::strided(data.len(), rows, columns, row_stride)?;
        Ok(Self { data, shape })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }
}

impl<'a, T: Element> MatrixMut<'a, T> {
    /// Contiguous rows, as [`Matrix::new`].
    ///
    /// # Errors
    /// As [`crate::Matrix::new`].
    pub fn new(data: CudaViewMut<'a, T>, columns: usize) -> Result<Self> {
        let shape = MatrixShape::contiguous(data.len(), columns)?;
        Ok(Self { data, shape })
    }

    /// Strided rows, as [`Matrix::strided`].
    ///
    /// # Errors
    /// As [`crate::Matrix::strided`].
    pub fn strided(data: CudaViewMut<'a, T>, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        let shape = MatrixShape::strided(data.len(), rows, columns, row_stride)?;
        Ok(Self { data, shape })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }
}

/// A buffer that grows when it must. What it held is lost when it does.
pub(crate) struct Grown<T> {
    slice: Kept<Option<CudaSlice<T>>>,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { slice: Kept::default() }
    }
}

impl<T: DeviceRepr + ValidAsZeroBits> Grown<T> {
    /// At least `length` elements; zeros when new. Growing frees the old buffer in the stream's order, behind what
    /// still uses it.
    pub(super) fn at_least(&mut self, stream: &Arc<CudaStream>, length: usize) -> Result<&mut CudaSlice<T>> {
        if self.slice.as_ref().is_some_and(|slice| slice.len() < length) {
            self.slice = Kept::default();
        }
        match &mut *self.slice {
            Some(slice) => Ok(slice),
            // An allocation of nothing would be none.
            slot => Ok(slot.insert(called("cuMemAllocAsync", stream.alloc_zeros(length.max(1)))?)),
        }
    }

    /// The buffer, if there is one.
    pub(super) fn get(&self) -> Option<&CudaSlice<T>> {
        self.slice.as_ref()
    }
}

impl<T> Grown<T> {
    /// The buffer, taken out.
    pub(super) fn into_slice(mut self) -> Option<CudaSlice<T>> {
        self.slice.take()
    }

    /// Slices that are held: 1 or 0.
    pub(super) fn slices(&self) -> usize {
        usize::from(self.slice.is_some())
    }
}

/// The address of a buffer of at least `length` elements, for launches in the order of the one stream.
pub(super) fn address<T: DeviceRepr + ValidAsZeroBits>(
    buffer: &mut Grown<T>,
    stream: &Arc<CudaStream>,
    length: usize,
) -> Result<Address> {
    Ok(buffer.at_least(stream, length)?.device_ptr_mut(stream).0)
}

/// What the token log-prob stage needs besides its outputs.
#[derive(Default)]
pub(crate) struct Scratch {
    /// State and entropy sum of each slice of each row, `[N, slices]` of four f32, where several blocks share a row.
    pub(super) partials: Grown<f32>,
    /// How many blocks of each row have come, `[N]`; the last one sets it back to 0.
    pub(super) tickets: Grown<u32>,
    /// Where the calls that use this scratch memory count what they find wrong.
    pub(super) status: Arc<StatusWord>,
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

impl Scratch {
    /// Slices that are held, apart from the status word.
    pub(super) fn slices(&self) -> usize {
        let Self { partials, tickets, status: _ } = self;
        partials.slices() + tickets.slices()
    }
}

/// Copies host numbers to a buffer, in the stream's order.
pub(crate) fn upload<T: DeviceRepr + ValidAsZeroBits>(
    buffer: &mut Grown<T>,
    stream: &Arc<CudaStream>,
    numbers: &[T],
) -> Result<Address> {
    let slice = buffer.at_least(stream, numbers.len())?;
    if !numbers.is_empty() {
        called("cuMemcpyHtoDAsync", stream.memcpy_htod(numbers, slice))?;
    }
    Ok(slice.device_ptr_mut(stream).0)
}

pub(crate) fn download<T: DeviceRepr + Clone + Default>(
    slice: Option<&CudaSlice<T>>,
    stream: &Arc<CudaStream>,
    length: usize,
) -> Result<Vec<T>> {
    let mut numbers = vec![T::default(); length];
    if let Some(slice) = slice
        && length > 0
    {
        called("cuMemcpyDtoHAsync", stream.memcpy_dtoh(&slice.slice(..length), &mut numbers))?;
    }
    Ok(numbers)
}

/// An address of device memory.
pub type Address = sys::CUdeviceptr;
