//! Views of matrices: hidden states, the weight of a language model's head, and their gradients.

use crate::element::Element;
use crate::error::{Error, Result};

/// A matrix to read: `[rows, columns]`, row stride ≥ columns, columns contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    shape: MatrixShape,
}

/// A matrix to write: `[rows, columns]`, row stride ≥ columns, columns contiguous.
///
/// With a stride above the number of columns what lies between the rows is never written.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    shape: MatrixShape,
}

/// Rows, columns, and elements from one row to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl MatrixShape {
    pub(crate) fn contiguous(elements: usize, columns: usize) -> Result<Self> {
        if columns == 0 || !elements.is_multiple_of(columns) {
            return Err(Error::Matrix { elements, rows: None, columns, row_stride: columns });
        }
        Ok(Self { rows: elements / columns, columns, row_stride: columns })
    }

    pub(crate) fn strided(elements: usize, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        if columns == 0 || !fits(elements, rows, columns, row_stride) {
            return Err(Error::Matrix { elements, rows: Some(rows), columns, row_stride });
        }
        Ok(Self { rows, columns, row_stride: stride_that_counts(rows, columns, row_stride) })
    }
}

/// The stride of a view whose rows [fit](fits). That of a single row leads nowhere and may be any number, `usize::MAX` too:
/// then the number of columns takes its place, so that no stride is larger than the buffer and products of it do not
/// overflow.
pub(crate) fn stride_that_counts(rows: usize, columns: usize, row_stride: usize) -> usize {
    if rows > 1 { row_stride } else { columns }
}

/// Whether rows do not overlap and lie within so many elements.
pub(crate) fn fits(elements: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    // The last row needs no padding behind it. An overflowing product cannot fit either.
    let needed = match rows.checked_sub(1) {
        None => Some(0),
        Some(before) => before.checked_mul(row_stride).and_then(|start| start.checked_add(columns)),
    };
    row_stride >= columns && needed.is_some_and(|needed| needed <= elements)
}

impl<'a, T: Element> Matrix<'a, T> {
    /// Contiguous rows: `data` is `[rows, columns]`, and the number of rows follows from its length.
    ///
    /// # Errors
    /// [`Error::Matrix`] if there is no column, or the length is no multiple of their number.
    pub fn new(data: &'a [T], columns: usize) -> Result<Self> {
        Ok(Self { data, shape: MatrixShape::contiguous(data.len(), columns)? })
    }

    /// The first elements of two neighbouring rows lie `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Matrix`] if there is no column, the stride is below their number, or the last row ends beyond `data`.
    pub fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        Ok(Self { data, shape: MatrixShape::strided(data.len(), rows, columns, row_stride)? })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }

    /// The elements of row `row`; empty if there is no such row.
    pub fn row(&self, row: usize) -> &'a [T] {
        if row >= self.shape.rows {
            return &[];
        }
        let start = row * self.shape.row_stride;
        &self.data[start..start + self.shape.columns]
    }

    /// Everything from row `row` on.
    pub(crate) fn rows_from(&self, row: usize) -> &'a [T] {
        &self.data[row * self.shape.row_stride..]
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.shape.row_stride
    }

    pub(crate) fn shape(&self) -> MatrixShape {
        self.shape
    }
}

impl<'a, T: Element> MatrixMut<'a, T> {
    /// Contiguous rows, as [`Matrix::new`].
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn new(data: &'a mut [T], columns: usize) -> Result<Self> {
        let shape = MatrixShape::contiguous(data.len(), columns)?;
        Ok(Self { data, shape })
    }

    /// Strided rows, as [`Matrix::strided`].
    ///
    /// # Errors
    /// As [`Matrix::strided`].
    pub fn strided(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
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

    pub(crate) fn row_stride(&self) -> usize {
        self.shape.row_stride
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        let start = row * self.shape.row_stride;
        &mut self.data[start..start + self.shape.columns]
    }

    /// Rows `first..last`, with what lies between them; behind the last row nothing.
    pub(crate) fn rows_mut(&mut self, first: usize, last: usize) -> &mut [T] {
        let end = if last > first { (last - 1) * self.shape.row_stride + self.shape.columns } else { 0 };
        &mut self.data[(first * self.shape.row_stride).min(end)..end]
    }
}
