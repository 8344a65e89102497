//! Where the rows of a tensor lie.

use super::candle_core::{Error, Layout, Result, Tensor};

/// The rows of a tensor `[.., columns]` that can be read where they lie: one stride from each to the next, whatever the
/// leading dimensions, and contiguous columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowLayout {
    /// Elements before the first row.
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// At least `columns`.
    pub(super) stride: usize,
}

impl RowLayout {
    /// `None` if the rows do not lie so: columns apart from one another (a transposed tensor), rows that overlap (a
    /// broadcast one), leading dimensions that leave gaps of several sizes (one narrowed in an inner dimension). Dimensions
    /// of length 1 have no stride, whatever the layout says.
    pub(super) fn of(layout: &Layout) -> Option<Self> {
        let (&columns, leading) = layout.dims().split_last()?;
        let (&column_stride, strides) = layout.stride().split_last()?;
        if layout.dims().contains(&0) {
            return Some(Self { start: 0, rows: leading.iter().product(), columns, stride: columns });
        }
        if columns > 1 && column_stride != 1 {
            return None;
        }
        let (mut rows, mut stride) = (1usize, columns);
        for (&length, &given) in leading.iter().zip(strides).rev().filter(|(length, _)| **length > 1) {
            if rows == 1 {
                stride = given;
            } else if Some(given) != rows.checked_mul(stride) {
                return None;
            }
            rows *= length;
        }
        (stride >= columns).then_some(Self { start: layout.start_offset(), rows, columns, stride })
    }

    /// As [`RowLayout::of`], of an operand that [`in_place`] has seen.
    pub(super) fn of_operand(what: &str, layout: &Layout) -> Result<Self> {
        Self::of(layout).ok_or_else(|| Error::msg(format!("{what}: rows at one stride expected, {layout:?} given")))
    }
}

/// The tensor itself where its rows can be read where they lie, otherwise a contiguous copy; of the same shape, and the
/// gradient finds its way back.
///
/// The layout is looked at before any reshape: candle's own copies whatever is not contiguous altogether.
pub(super) fn in_place(tensor: &Tensor) -> Result<Tensor> {
    if RowLayout::of(tensor.layout()).is_some() { Ok(tensor.clone()) } else { tensor.contiguous() }
}

#[cfg(test)]
mod test {
    use super::super::candle_core::Shape;
    use super::*;

    fn of(dims: &[usize], strides: &[usize]) -> Option<(usize, usize, usize)> {
        let layout = Layout::new(Shape::from(dims), strides.to_vec(), 5);
        RowLayout::of(&layout).map(|rows| (rows.rows, rows.columns, rows.stride))
    }

    /// Dimensions, strides, and rows, columns and stride if they collapse.
    type Case<'a> = (&'a [usize], &'a [usize], Option<(usize, usize, usize)>);

    #[test]
    fn what_lies_at_one_stride_collapses() {
        let cases: &[Case<'_>] = &[
            (&[7], &[1], Some((1, 7, 7))),
            (&[4, 7], &[7, 1], Some((4, 7, 7))),
            // A padded vocabulary, in two and in more dimensions.
            (&[4, 7], &[9, 1], Some((4, 7, 9))),
            (&[2, 3, 7], &[27, 9, 1], Some((6, 7, 9))),
            (&[2, 3, 5, 7], &[135, 45, 9, 1], Some((30, 7, 9))),
            // One dimension of rows at another stride than its own.
            (&[2, 1, 7], &[27, 9, 1], Some((2, 7, 27))),
            (&[1, 3, 7], &[999, 9, 1], Some((3, 7, 9))),
            // The strides of dimensions of length 1 mean nothing.
            (&[1, 7], &[1, 1], Some((1, 7, 7))),
            (&[1, 1, 7], &[0, 3, 1], Some((1, 7, 7))),
            (&[4, 1], &[3, 99], Some((4, 1, 3))),
            // Nothing there.
            (&[0, 7], &[7, 1], Some((0, 7, 7))),
            (&[3, 0, 7], &[0, 1, 0], Some((0, 7, 7))),
            (&[3, 0], &[1, 1], Some((3, 0, 0))),
            // Narrowed in an inner leading dimension: gaps of two sizes.
            (&[2, 3, 7], &[36, 9, 1], None),
            // Transposed, as columns and as leading dimensions.
            (&[4, 7], &[1, 4], None),
            (&[3, 2, 7], &[7, 21, 1], None),
            // Broadcast: one row for all, the rows of one sequence for all, and columns.
            (&[4, 7], &[0, 1], None),
            (&[2, 3, 7], &[0, 7, 1], None),
            (&[2, 3, 7], &[7, 0, 1], None),
            (&[4, 7], &[1, 0], None),
            // Rows that overlap.
            (&[4, 7], &[3, 1], None),
            (&[], &[], None),
            (&[3, 2, 7], &[7, usize::MAX / 2 + 1, 1], None),
        ];
        for (dims, strides, expected) in cases {
            assert_eq!(of(dims, strides), *expected, "{dims:?} {strides:?}");
        }
    }
}
