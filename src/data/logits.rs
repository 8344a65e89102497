//! Views of logits, and what is done to a logit before the softmax.

use crate::data::matrix::{fits, stride_that_counts};
use crate::element::Element;
use crate::error::{Error, Result};

/// Logits to read: `[N, V]`, row stride ≥ V, columns contiguous.
///
/// With a stride above V the columns beyond V (a padded vocabulary, say) are never read.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a, T> {
    data: &'a [T],
    shape: Shape,
}

/// Logits to overwrite with their gradient, or a buffer for that gradient: `[N, V]`, row stride ≥ V.
///
/// With a stride above V the columns beyond V are never written.
#[derive(Debug)]
pub struct LogitsMut<'a, T> {
    data: &'a mut [T],
    shape: Shape,
}

/// Rows, columns, and elements from one row to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) row_stride: usize,
}

impl Shape {
    pub(crate) fn contiguous(elements: usize, vocab: usize) -> Result<Self> {
        check_vocab(vocab)?;
        if !elements.is_multiple_of(vocab) {
            return Err(Error::Shape { elements, rows: None, vocab, row_stride: vocab });
        }
        Ok(Shape { rows: elements / vocab, vocab, row_stride: vocab })
    }

    pub(crate) fn strided(elements: usize, rows: usize, vocab: usize, row_stride: usize) -> Result<Self> {
        check_vocab(vocab)?;
        if !fits(elements, rows, vocab, row_stride) {
            return Err(Error::Shape { elements, rows: Some(rows), vocab, row_stride });
        }
        Ok(Shape { rows, vocab, row_stride: stride_that_counts(rows, vocab, row_stride) })
    }
}

/// Columns are counted in 32 bits inside a row; rows are placed with 64.
pub(crate) fn check_vocab(vocab: usize) -> Result<()> {
    if vocab == 0 || vocab > i32::MAX as usize { Err(Error::Vocabulary { vocab }) } else { Ok(()) }
}

impl<'a, T: Element> Logits<'a, T> {
    /// Contiguous rows: `data` is `[N, V]` with V = `vocab`, and N follows from its length.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if V is 0 or above `i32::MAX`; [`Error::Shape`] if the length is no multiple of V.
    pub fn new(data: &'a [T], vocab: usize) -> Result<Self> {
        Ok(Logits { data, shape: Shape::contiguous(data.len(), vocab)? })
    }

    /// `rows` rows of `vocab` columns, the first elements of two neighbouring rows `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] as above; [`Error::Shape`] if the stride is below V or the last row ends beyond `data`.
    pub fn strided(data: &'a [T], rows: usize, vocab: usize, row_stride: usize) -> Result<Self> {
        Ok(Logits { data, shape: Shape::strided(data.len(), rows, vocab, row_stride)? })
    }

    /// Rows, N.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns, V.
    pub fn vocab(&self) -> usize {
        self.shape.vocab
    }

    /// The V logits of row `row`; empty if there is no such row.
    pub fn row(&self, row: usize) -> &'a [T] {
        if row >= self.shape.rows {
            return &[];
        }
        let start = row * self.shape.row_stride;
        &self.data[start..start + self.shape.vocab]
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }
}

impl<'a, T: Element> LogitsMut<'a, T> {
    /// Contiguous rows, as [`Logits::new`].
    ///
    /// # Errors
    /// As [`Logits::new`].
    pub fn new(data: &'a mut [T], vocab: usize) -> Result<Self> {
        let shape = Shape::contiguous(data.len(), vocab)?;
        Ok(LogitsMut { data, shape })
    }

    /// Strided rows, as [`Logits::strided`].
    ///
    /// # Errors
    /// As [`Logits::strided`].
    pub fn strided(data: &'a mut [T], rows: usize, vocab: usize, row_stride: usize) -> Result<Self> {
        let shape = Shape::strided(data.len(), rows, vocab, row_stride)?;
        Ok(LogitsMut { data, shape })
    }

    /// Rows, N.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Columns, V.
    pub fn vocab(&self) -> usize {
        self.shape.vocab
    }

    /// The same rows, to read.
    pub fn as_logits(&self) -> Logits<'_, T> {
        Logits { data: self.data, shape: self.shape }
    }

    pub(crate) fn into_parts(self) -> (&'a mut [T], Shape) {
        (self.data, self.shape)
    }
}

/// Settings enter products and quotients in f32: between these two all of them stay normal numbers.
pub(crate) const SMALLEST_SETTING: f64 = 1e-30;

pub(crate) const LARGEST_SETTING: f64 = 1e30;

/// Of softcap to temperature: 2⁶⁰.
pub(crate) const LARGEST_RATIO: f64 = (1u64 << 60) as f64;
