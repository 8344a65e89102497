//! Views of matrices: logits, hidden states, the weight of a language model's head, and their gradients.

use crate::data::memory::{Host, Memory};
use crate::element::{Element, Number};
use crate::error::{Error, Result};

/// A matrix to read: `[rows, columns]`, row stride ≥ columns, columns contiguous.
///
/// With a stride above the number of columns what lies between the rows (a padded vocabulary, say) is never read. In the
/// memory of a device any alignment works; rows that begin at a multiple of 16 bytes are read fastest.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T: Number, M: Memory> {
    pub(crate) data: M::View<'a, T>,
    pub(crate) shape: Shape,
}

/// A matrix to write, or to overwrite: `[rows, columns]`, row stride ≥ columns, columns contiguous.
///
/// With a stride above the number of columns what lies between the rows is never written.
#[derive(Debug)]
pub struct MatrixMut<'a, T: Number, M: Memory> {
    pub(crate) data: M::ViewMut<'a, T>,
    pub(crate) shape: Shape,
}

/// Rows, columns, and elements from one row to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl Shape {
    fn contiguous(elements: usize, columns: usize) -> Result<Self> {
        if columns == 0 || !elements.is_multiple_of(columns) {
            return Err(Error::Shape { elements, rows: None, columns, row_stride: columns });
        }
        Ok(Self { rows: elements / columns, columns, row_stride: columns })
    }

    fn strided(elements: usize, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        if columns == 0 || !fits(elements, rows, columns, row_stride) {
            return Err(Error::Shape { elements, rows: Some(rows), columns, row_stride });
        }
        Ok(Self { rows, columns, row_stride: stride_that_counts(rows, columns, row_stride) })
    }
}

/// The stride of a view whose rows [fit](fits). That of a single row leads nowhere and may be any number, `usize::MAX` too:
/// then the number of columns takes its place, so that no stride is larger than the buffer and products of it do not
/// overflow.
fn stride_that_counts(rows: usize, columns: usize, row_stride: usize) -> usize {
    if rows > 1 { row_stride } else { columns }
}

/// Whether rows do not overlap and lie within so many elements.
fn fits(elements: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    // The last row needs no padding after it. An overflowing product cannot fit either.
    let needed = match rows.checked_sub(1) {
        None => Some(0),
        Some(before) => before.checked_mul(row_stride).and_then(|start| start.checked_add(columns)),
    };
    row_stride >= columns && needed.is_some_and(|needed| needed <= elements)
}

/// Checks the number of columns of logits: a target id is at most `i32::MAX`.
pub(crate) fn check_vocab(vocab: usize) -> Result<()> {
    if vocab == 0 || i32::try_from(vocab).is_err() { Err(Error::Vocabulary { vocab }) } else { Ok(()) }
}

impl<'a, T: Number, M: Memory> Matrix<'a, T, M> {
    /// Contiguous rows: `data` is `[rows, columns]`, and the number of rows follows from its length.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no column, or the length is no multiple of their number.
    pub fn new(data: M::View<'a, T>, columns: usize) -> Result<Self> {
        let shape = Shape::contiguous(M::length(&data), columns)?;
        Ok(Self { data, shape })
    }

    /// The first elements of two neighbouring rows lie `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no column, the stride is below their number, or the last row ends beyond `data`.
    pub fn strided(data: M::View<'a, T>, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        let shape = Shape::strided(M::length(&data), rows, columns, row_stride)?;
        Ok(Self { data, shape })
    }

    /// Rows: N of logits and hidden states.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns: V of logits, H of hidden states.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }

    /// Elements from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.shape.row_stride
    }
}

impl<'a, T: Number, M: Memory> MatrixMut<'a, T, M> {
    /// Contiguous rows, as [`Matrix::new`].
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn new(data: M::ViewMut<'a, T>, columns: usize) -> Result<Self> {
        let shape = Shape::contiguous(M::length_mut(&data), columns)?;
        Ok(Self { data, shape })
    }

    /// Strided rows, as [`Matrix::strided`].
    ///
    /// # Errors
    /// As [`Matrix::strided`].
    pub fn strided(data: M::ViewMut<'a, T>, rows: usize, columns: usize, row_stride: usize) -> Result<Self> {
        let shape = Shape::strided(M::length_mut(&data), rows, columns, row_stride)?;
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

    /// Elements from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.shape.row_stride
    }

    /// The same rows, to read.
    pub fn as_matrix(&self) -> Matrix<'_, T, M> {
        Matrix { data: M::as_view(&self.data), shape: self.shape }
    }
}

impl<'a, T: Element> Matrix<'a, T, Host> {
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
}

impl<T: Element> MatrixMut<'_, T, Host> {
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        let start = row * self.shape.row_stride;
        &mut self.data[start..start + self.shape.columns]
    }

    /// Rows `first..last`, with what lies between them; after the last row nothing.
    pub(crate) fn rows_mut(&mut self, first: usize, last: usize) -> &mut [T] {
        let end = if last > first { (last - 1) * self.shape.row_stride + self.shape.columns } else { 0 };
        &mut self.data[(first * self.shape.row_stride).min(end)..end]
    }
}
