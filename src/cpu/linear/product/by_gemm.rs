//! Products in f32 by the crate `gemm`, for processors without kernels of this crate.

use super::operand::{Operand, Sums};
use crate::element::{Dtype, Element};
use core::ops::Range;
use gemm::{Parallelism, gemm};

/// The most terms that one product sums. Up to this many `gemm` has one way to divide the sum: not to.
const DEPTH: usize = 512;

/// `gemm` has other loops, with other roundings, for products with a side of 1 or of at most 256 elements. Rows are
/// filled up to a multiple of this one and columns to at least the other, so that an element's bits do not depend on how
/// many there are beside it.
const ROW_MULTIPLE: usize = 8;
const FEWEST_COLUMNS: usize = 64;

/// It has others too for sums of one or two terms, which it adds to what is there without rounding their sum first. Sums are
/// filled up to so many terms.
const FEWEST_TERMS: usize = 4;

/// Copies of operands that are not f32 or have too few items, and a product with more elements than were asked for.
#[derive(Default)]
pub(super) struct GemmScratch {
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
}

/// Part of an operand as `gemm` takes it.
struct Strided<'a> {
    data: &'a [f32],
    item_stride: usize,
    depth_stride: usize,
}

pub(super) fn multiply<A: Element, B: Element>(
    left: &Operand<'_, A>,
    right: &Operand<'_, B>,
    out: &mut Sums<'_>,
    scratch: &mut GemmScratch,
) {
    let (rows, columns, depth) = (left.items, right.items, left.depth);
    let (filled_rows, filled_columns) = (rows.next_multiple_of(ROW_MULTIPLE), columns.max(FEWEST_COLUMNS));
    let fits = (rows, columns) == (filled_rows, filled_columns);
    if !fits {
        scratch.out.resize(filled_rows * filled_columns, 0.0);
    }
    let step = depth.div_ceil(depth.div_ceil(DEPTH).max(1)).max(1);
    let mut add = out.add;
    if depth == 0 && !add {
        out.data.chunks_mut(out.stride.max(1)).take(rows).for_each(|row| row[..columns].fill(0.0));
    }
    for first in (0..depth).step_by(step) {
        let part = first..depth.min(first + step);
        let left = strided(left, filled_rows, part.clone(), &mut scratch.left);
        let right = strided(right, filled_columns, part.clone(), &mut scratch.right);
        let terms = part.len().max(FEWEST_TERMS);
        let (to, stride) =
            if fits { (out.data.as_mut_ptr(), out.stride) } else { (scratch.out.as_mut_ptr(), filled_columns) };
        // SAFETY: `strided` found, and the caller of this function asserted of `out`, that all elements that the shapes and
        // strides reach are there; `scratch.out` has just been given its size. Nothing else refers to what is written.
        unsafe {
            gemm(
                filled_rows,
                filled_columns,
                terms,
                to,
                1,
                stride as isize,
                fits && add,
                left.data.as_ptr(),
                left.depth_stride as isize,
                left.item_stride as isize,
                right.data.as_ptr(),
                right.item_stride as isize,
                right.depth_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        if !fits {
            for (out, product) in
                out.data.chunks_mut(out.stride).zip(scratch.out.chunks_exact(filled_columns)).take(rows)
            {
                for (out, product) in out.iter_mut().zip(&product[..columns]) {
                    *out = if add { *out + *product } else { *product };
                }
            }
        }
        add = true;
    }
}

/// Part of an operand in f32, filled up with items and terms of zeros: in place where it is so already.
fn strided<'a, T: Element>(
    operand: &Operand<'a, T>,
    items: usize,
    depth: Range<usize>,
    copy: &'a mut Vec<f32>,
) -> Strided<'a> {
    assert!(operand.holds(&(0..operand.items), &depth), "a part of an operand that lies outside of it");
    let strides = |stride| if operand.depth_is_contiguous { (stride, 1) } else { (1, stride) };
    let terms = depth.len().max(FEWEST_TERMS);
    if T::DTYPE == Dtype::F32 && items == operand.items && terms == depth.len() {
        let data: &[f32] = bytemuck::cast_slice(operand.data);
        let (item_stride, depth_stride) = strides(operand.stride);
        return Strided { data: &data[depth.start * depth_stride..], item_stride, depth_stride };
    }
    let (rows, columns) = if operand.depth_is_contiguous { (items, terms) } else { (terms, items) };
    let (first_row, first_column) = if operand.depth_is_contiguous { (0, depth.start) } else { (depth.start, 0) };
    let there = if operand.depth_is_contiguous { operand.items } else { depth.len() };
    copy.clear();
    copy.resize(rows * columns, 0.0);
    for (row, to) in copy.chunks_exact_mut(columns).take(there).enumerate() {
        let from = &operand.data[(first_row + row) * operand.stride + first_column..];
        let count = if operand.depth_is_contiguous { depth.len() } else { operand.items };
        widen(&from[..count], to);
    }
    let (item_stride, depth_stride) = strides(columns);
    Strided { data: copy, item_stride, depth_stride }
}

fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    for (wide, x) in to.iter_mut().zip(from) {
        *wide = x.to_f32();
    }
}
