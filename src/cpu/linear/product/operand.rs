//! What a product reads and writes, wherever it lies.

use core::ops::Range;

/// Part of a matrix, to read: element (i, j) is `data[i·stride + j]`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
}

impl<'a, T> Block<'a, T> {
    /// Columns `first..first + count`.
    pub(crate) fn columns(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first..], columns: count, ..self }
    }

    /// The operand whose rows, or else columns, are the block's rows.
    pub(super) fn rows_as_items(self) -> Operand<'a, T> {
        let Self { data, rows, columns, stride } = self;
        Operand { data, stride, items: rows, depth: columns, depth_is_contiguous: true }
    }

    /// The operand whose rows, or else columns, are the block's columns.
    pub(super) fn columns_as_items(self) -> Operand<'a, T> {
        let Self { data, rows, columns, stride } = self;
        Operand { data, stride, items: columns, depth: rows, depth_is_contiguous: false }
    }
}

/// Where a product goes: element (i, j) is `data[i·stride + j]`.
pub(crate) struct Sums<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// Whether to add to what is there.
    pub(crate) add: bool,
}

/// An operand: items (rows of the left one, columns of the right one), each with as many numbers along the depth, in rows
/// of memory, `stride` numbers from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a, T> {
    pub(super) data: &'a [T],
    pub(super) stride: usize,
    pub(super) items: usize,
    pub(super) depth: usize,
    /// Whether a row of memory is an item (or else holds one number of each item).
    pub(super) depth_is_contiguous: bool,
}

impl<T> Operand<'_, T> {
    /// Whether this part of it is there.
    pub(super) fn holds(&self, items: &Range<usize>, depth: &Range<usize>) -> bool {
        let (rows, columns) = if self.depth_is_contiguous { (items, depth) } else { (depth, items) };
        items.end <= self.items
            && depth.end <= self.depth
            && (rows.is_empty() || columns.is_empty() || (rows.end - 1) * self.stride + columns.end <= self.data.len())
    }
}
