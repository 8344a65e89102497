//! Views of matrices on the device.

use super::raw::{Address, MatrixAt};
use crate::element::Element;
use crate::error::Result;
use crate::matrix::MatrixShape;
use cudarc::driver::{CudaView, CudaViewMut};

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

/// A matrix of this type and shape at an address.
pub(super) fn at<T: Element>(address: Address, shape: MatrixShape) -> MatrixAt {
    let MatrixShape { rows, columns, row_stride } = shape;
    MatrixAt { address, rows, columns, row_stride, dtype: <T as Element>::DTYPE }
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
