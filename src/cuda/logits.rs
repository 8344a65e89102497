//! Views of logits on the device.

use crate::element::Element;
use crate::error::Result;
use crate::logits::Shape;
use cudarc::driver::{CudaView, CudaViewMut};

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
