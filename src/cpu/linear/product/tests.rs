//! Products against f64, within a bound derived from rounding; and what an element's bits depend on.

use super::{Block, Kernels, ProductScratch, Products, Sums};
use crate::cpu::InstructionSet;
use crate::element::{Dtype, Element};
use crate::reference::bounds::linear_log_prob::{flushed, product};
use half::{bf16, f16};

/// Numbers that look random: in ±1, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn below(&mut self, count: usize) -> usize {
        ((self.next() + 1.0) * 0.5 * count as f32) as usize % count
    }
}

/// What operands are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Uniform,
    /// Neighbours along the depth that nearly cancel.
    Cancelling,
    /// From 2^-60 to 2^60, or 2^-10 to 2^10 for f16.
    AllMagnitudes,
    /// Around the smallest normal number, above and below, and 0.
    Subnormal,
}

const KINDS: [Kind; 4] = [Kind::Uniform, Kind::Cancelling, Kind::AllMagnitudes, Kind::Subnormal];

impl Kind {
    /// The k-th number of an item.
    fn number<T: Element>(self, numbers: &mut Numbers, before: f32, k: usize, subnormal: bool) -> T {
        let x = numbers.next();
        let wide = T::DTYPE != Dtype::F16;
        T::from_f32(match self {
            Kind::Cancelling if k % 2 == 1 => -before * (1.0 + x / 256.0),
            Kind::Uniform | Kind::Cancelling => x,
            Kind::AllMagnitudes => {
                x * f32::powi(2.0, numbers.below(121) as i32 / if wide { 1 } else { 6 } - if wide { 60 } else { 10 })
            }
            Kind::Subnormal if numbers.below(4) == 0 => 0.0,
            Kind::Subnormal if subnormal => x * f32::powi(2.0, if wide { -124 - numbers.below(8) as i32 } else { -14 }),
            Kind::Subnormal => x * f32::powi(2.0, numbers.below(20) as i32 / if wide { 1 } else { 2 }),
        })
    }
}

/// A matrix of so many items, in rows of memory that are items or that are not, with NaN between its rows.
struct Stored<T> {
    data: Vec<T>,
    stride: usize,
    items: usize,
    depth: usize,
    by_items: bool,
}

impl<T: Element> Stored<T> {
    fn new(kind: Kind, numbers: &mut Numbers, items: usize, depth: usize, by_items: bool, subnormal: bool) -> Self {
        let (rows, columns) = if by_items { (items, depth) } else { (depth, items) };
        let stride = columns + 3;
        let mut stored = Self { data: vec![T::NAN; rows * stride - 3], stride, items, depth, by_items };
        for item in 0..items {
            let mut before = 0.0;
            for k in 0..depth {
                let number: T = kind.number(numbers, before, k, subnormal);
                before = number.to_f32();
                *stored.at_mut(item, k) = number;
            }
        }
        stored
    }

    fn index(&self, item: usize, k: usize) -> usize {
        if self.by_items { item * self.stride + k } else { k * self.stride + item }
    }

    fn at(&self, item: usize, k: usize) -> T {
        self.data[self.index(item, k)]
    }

    fn at_mut(&mut self, item: usize, k: usize) -> &mut T {
        let index = self.index(item, k);
        &mut self.data[index]
    }

    /// Items `first..first + count`.
    fn block(&self, first: usize, count: usize) -> Block<'_, T> {
        let (rows, columns) = if self.by_items { (count, self.depth) } else { (self.depth, count) };
        Block { data: &self.data[self.index(first, 0)..], rows, columns, stride: self.stride }
    }

    /// The same numbers, the other way round.
    fn turned(&self) -> Self {
        let (rows, columns) = if self.by_items { (self.depth, self.items) } else { (self.items, self.depth) };
        let (stride, by_items) = (columns + 1, !self.by_items);
        let mut turned = Self { data: vec![T::NAN; rows * stride], stride, by_items, ..*self };
        for item in 0..self.items {
            for k in 0..self.depth {
                *turned.at_mut(item, k) = self.at(item, k);
            }
        }
        turned
    }
}

/// What each of these two is multiplied by, of a left operand of f32.
fn multiply<A: Element, B: Element>(
    products: Products,
    (left, left_by_items): (Block<'_, A>, bool),
    (right, right_by_items): (Block<'_, B>, bool),
    out: Sums<'_>,
) {
    let mut scratch = ProductScratch::default();
    let operand = |by_items: bool| if by_items { Block::rows_as_items } else { Block::columns_as_items };
    let of_right = if right_by_items { right.rows_as_items() } else { right.columns_as_items() };
    products.multiply(operand(left_by_items)(left), of_right, out, &mut scratch);
}

/// All kernels that this processor has, for operands of these types.
fn all(left: Dtype, right: Dtype) -> Vec<(InstructionSet, Products)> {
    let mut all: Vec<(InstructionSet, Products)> = Vec::new();
    for set in InstructionSet::ALL {
        let products = Products::new(set, left, right);
        if !set.is_available() {
            println!("NOT RUN: this processor has no {}", set.name());
        } else if all.iter().all(|(_, other)| *other != products) {
            all.push((set, products));
        }
    }
    all
}

fn is_of_pairs(products: Products) -> bool {
    !matches!(products, Products(Kernels::Gemm)) && format!("{products:?}").contains("Bf16Pairs")
}

/// Sides that are odd, or one more or less than what kernels take at once.
fn sizes(numbers: &mut Numbers) -> Vec<(usize, usize, usize)> {
    let mut sizes = Vec::new();
    for side in 1..=70 {
        sizes.push((side, 1 + numbers.below(70), 1 + numbers.below(40)));
        sizes.push((1 + numbers.below(70), side, 1 + numbers.below(40)));
    }
    let depths = (1..=35).chain([255, 256, 257, 511, 512, 513, 514, 515, 767, 769, 1023, 1024, 1025, 1026, 1029, 1030]);
    sizes.extend(depths.map(|depth| (1 + depth % 11, 1 + depth % 53, depth)));
    sizes.push((70, 69, 1030));
    sizes
}

/// Every element of a product of these against f64, and what lies beside the product as it was.
fn hold<A: Element, B: Element>(
    (set, products): (InstructionSet, Products),
    left: &Stored<A>,
    right: &Stored<B>,
    kind: Kind,
    add: bool,
) -> f64 {
    const BESIDE: f32 = 77.0;
    const BEFORE: f32 = 0.375;
    let (rows, columns, depth) = (left.items, right.items, left.depth);
    let stride = columns + 5;
    let mut out = vec![BESIDE; rows * stride];
    for row in out.chunks_mut(stride) {
        row[..columns].fill(BEFORE);
    }
    let sums = Sums { data: &mut out, stride, add };
    multiply(products, (left.block(0, rows), left.by_items), (right.block(0, columns), right.by_items), sums);
    let pairs = is_of_pairs(products);
    // What the kernels multiply is rounded to bf16 by another crate here.
    let operand = |x: f32| f64::from(if pairs { bf16::from_f32(x).to_f32() } else { x });
    let roundings = depth.min(512) + depth.div_ceil(256) + 1;
    let mut largest_share: f64 = 0.0;
    for (row, out) in out.chunks(stride).enumerate() {
        for (column, sum) in out[..columns].iter().enumerate() {
            let mut expected = if add { f64::from(BEFORE) } else { 0.0 };
            let (mut magnitude, mut largest) = (expected, 0.0f64);
            for k in 0..depth {
                let (x, y) = (operand(left.at(row, k).to_f32()), operand(right.at(column, k).to_f32()));
                expected += x * y;
                magnitude += (x * y).abs();
                largest = largest.max(x.abs()).max(y.abs());
            }
            let lost = if pairs { flushed(depth, largest) } else { 0.0 };
            let (error, bound) = ((f64::from(*sum) - expected).abs(), product(magnitude, roundings as f64) + lost);
            assert!(
                error <= bound,
                "({row}, {column}) of {rows}x{columns}x{depth}, {set:?}, {:?} {:?}, {kind:?}: {sum:e}, {expected:e} ± {bound:e}",
                A::DTYPE,
                B::DTYPE
            );
            largest_share = largest_share.max(error / bound);
        }
        assert!(out[columns..].iter().all(|x| *x == BESIDE), "row {row} of {rows}x{columns}x{depth}, {set:?}");
    }
    largest_share
}

fn products_of_types_are_within_bounds<A: Element, B: Element>(left: Dtype, right: Dtype) {
    for (set, products) in all(left, right) {
        let mut numbers = Numbers(5);
        let mut largest: f64 = 0.0;
        for (index, (rows, columns, depth)) in sizes(&mut numbers).into_iter().enumerate() {
            let kind = KINDS[index / 2 % KINDS.len()];
            let is_left_subnormal = index % 3 == 0;
            for (left_by_items, right_by_items) in [(true, true), (true, false), (false, false)] {
                let left = Stored::<A>::new(kind, &mut numbers, rows, depth, left_by_items, is_left_subnormal);
                let right = Stored::<B>::new(kind, &mut numbers, columns, depth, right_by_items, !is_left_subnormal);
                largest = largest.max(hold((set, products), &left, &right, kind, index % 2 == 1));
            }
        }
        println!("{set:?}, {:?} {:?}: {largest:.2} of the bound", A::DTYPE, B::DTYPE);
    }
}

#[test]
fn products_are_within_bounds() {
    products_of_types_are_within_bounds::<f32, f32>(Dtype::F32, Dtype::F32);
    products_of_types_are_within_bounds::<bf16, bf16>(Dtype::Bf16, Dtype::Bf16);
    products_of_types_are_within_bounds::<f32, bf16>(Dtype::Bf16, Dtype::Bf16);
    products_of_types_are_within_bounds::<f32, bf16>(Dtype::F32, Dtype::Bf16);
    products_of_types_are_within_bounds::<bf16, f32>(Dtype::Bf16, Dtype::F32);
    products_of_types_are_within_bounds::<f16, f16>(Dtype::F16, Dtype::F16);
}

/// An element of a part of a product has the bits that it has in the whole one, from operands that lie one way or the other;
/// also where it is added to what is there.
fn parts_have_the_bits_of_the_whole<A: Element, B: Element>(left: Dtype, right: Dtype) {
    for (set, products) in all(left, right) {
        let mut numbers = Numbers(9);
        for depth in [1, 2, 3, 4, 5, 7, 64, 257, 513, 1030] {
            let (rows, columns) = (70, 115);
            let left = Stored::<A>::new(Kind::Cancelling, &mut numbers, rows, depth, true, false);
            let right = Stored::<B>::new(Kind::Uniform, &mut numbers, columns, depth, true, false);
            let (turned_left, turned_right) = (left.turned(), right.turned());
            let before = |row: usize, column: usize| ((row * 31 + column * 17) % 101) as f32 * 0.013 - 0.7;
            let wholes = [false, true].map(|add| {
                let mut whole: Vec<f32> = (0..rows * columns).map(|i| before(i / columns, i % columns)).collect();
                let sums = Sums { data: &mut whole, stride: columns, add };
                multiply(products, (left.block(0, rows), true), (right.block(0, columns), true), sums);
                whole
            });
            for part in 0..120 {
                let (part, add) = (part / 2, part % 2 == 1);
                let whole = &wholes[usize::from(add)];
                // One row, or one column, and whatever there is from somewhere on, are among the parts.
                let first_row = if part % 5 == 0 { 0 } else { numbers.below(rows) };
                let first_column = if part % 7 == 0 || part % 10 == 0 { 0 } else { numbers.below(columns) };
                let mut count = if part % 3 == 0 { 1 } else { 1 + numbers.below(rows - first_row) };
                let mut width = if part % 4 == 0 { 1 } else { 1 + numbers.below(columns - first_column) };
                if first_row == 0 && first_column == 0 {
                    // What `gemm` needs not be filled up for.
                    (count, width) = (64, 64 + part % 51);
                }
                let left = if part % 2 == 0 { &left } else { &turned_left };
                let right = if part / 2 % 2 == 0 { &right } else { &turned_right };
                let mut out: Vec<f32> =
                    (0..count * width).map(|i| before(first_row + i / width, first_column + i % width)).collect();
                let sums = Sums { data: &mut out, stride: width, add };
                let (left, right) =
                    ((left.block(first_row, count), left.by_items), (right.block(first_column, width), right.by_items));
                multiply(products, left, right, sums);
                for (row, out) in out.chunks(width).enumerate() {
                    for (column, x) in out.iter().enumerate() {
                        let of_whole = whole[(first_row + row) * columns + first_column + column];
                        assert_eq!(
                            x.to_bits(),
                            of_whole.to_bits(),
                            "({row}, {column}) of {count}x{width} from ({first_row}, {first_column}), depth {depth}, {set:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn an_element_depends_on_its_row_and_column_alone() {
    parts_have_the_bits_of_the_whole::<f32, f32>(Dtype::F32, Dtype::F32);
    parts_have_the_bits_of_the_whole::<bf16, bf16>(Dtype::Bf16, Dtype::Bf16);
    parts_have_the_bits_of_the_whole::<f32, bf16>(Dtype::Bf16, Dtype::Bf16);
    parts_have_the_bits_of_the_whole::<f32, f16>(Dtype::F16, Dtype::F16);
}

/// NaN, with whatever bits, and infinities go through to the elements of their row or column and to no other.
#[test]
fn what_is_no_number_stays_in_its_row_and_column() {
    let (rows, columns, depth) = (19, 67, 37);
    for (set, products) in all(Dtype::Bf16, Dtype::Bf16) {
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0x7fc0_0000, 0xffff_8000, 0x7f80_0000u32] {
            let special = f32::from_bits(bits);
            for by_items in [true, false] {
                let mut numbers = Numbers(3);
                let mut left = Stored::<f32>::new(Kind::Uniform, &mut numbers, rows, depth, by_items, false);
                let mut right = Stored::<bf16>::new(Kind::Uniform, &mut numbers, columns, depth, by_items, false);
                let run = |left: &Stored<f32>, right: &Stored<bf16>| {
                    let mut out = vec![0.0; rows * columns];
                    let sums = Sums { data: &mut out, stride: columns, add: false };
                    multiply(products, (left.block(0, rows), by_items), (right.block(0, columns), by_items), sums);
                    out
                };
                let clean = run(&left, &right);
                *left.at_mut(11, 36) = special;
                *right.at_mut(50, 20) = bf16::INFINITY;
                for (index, (x, clean)) in run(&left, &right).iter().zip(&clean).enumerate() {
                    let (row, column) = (index / columns, index % columns);
                    let context = format!("({row}, {column}) is {x}, {special} {bits:#x} put in, {set:?}");
                    match (row == 11, column == 50) {
                        (false, false) => assert_eq!(x.to_bits(), clean.to_bits(), "{context}"),
                        (true, _) if special.is_nan() => assert!(x.is_nan(), "{context}"),
                        _ => assert!(!x.is_finite(), "{context}"),
                    }
                }
            }
        }
    }
}

/// bf16 pairs only where both are bf16: f32 hidden states keep their digits.
#[test]
fn pairs_are_for_bf16_alone() {
    for set in InstructionSet::ALL {
        for hidden in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for head in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let expected = set == InstructionSet::Avx512Bf16
                    && set.is_available()
                    && (hidden, head) == (Dtype::Bf16, Dtype::Bf16);
                assert_eq!(is_of_pairs(Products::new(set, hidden, head)), expected, "{set:?} {hidden:?} {head:?}");
            }
        }
    }
}
