//! Reductions over ranks, in the order of the ranks. f16 and bf16 are reduced in f32 and rounded once.

use half::{bf16, f16};

/// What an element is reduced as.
trait Number: Copy {
    fn sum(self, other: Self) -> Self;
    fn product(self, other: Self) -> Self;
    fn greater(self, other: Self) -> Self;
    fn less(self, other: Self) -> Self;
    fn divided(self, count: usize) -> Self;
}

macro_rules! integers {
    ($($number:ty)*) => {$(
        impl Number for $number {
            fn sum(self, other: Self) -> Self { self.wrapping_add(other) }
            fn product(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn greater(self, other: Self) -> Self { self.max(other) }
            fn less(self, other: Self) -> Self { self.min(other) }
            fn divided(self, count: usize) -> Self { (i128::from(self) / count as i128) as Self }
        }
    )*};
}
integers! { i8 u8 i32 u32 i64 u64 }

macro_rules! floats {
    ($($number:ty)*) => {$(
        impl Number for $number {
            fn sum(self, other: Self) -> Self { self + other }
            fn product(self, other: Self) -> Self { self * other }
            fn greater(self, other: Self) -> Self { self.max(other) }
            fn less(self, other: Self) -> Self { self.min(other) }
            fn divided(self, count: usize) -> Self { self / count as Self }
        }
    )*};
}
floats! { f32 f64 }

/// Reduces one type: `read` and `write` say how its elements stand in bytes.
fn of_type<const SIZE: usize, N: Number>(
    operation: u32,
    ranks: &[&[u8]],
    result: &mut [u8],
    read: impl Fn([u8; SIZE]) -> N,
    write: impl Fn(N) -> [u8; SIZE],
) {
    let element = |bytes: &[u8], at: usize| {
        let mut of_element = [0; SIZE];
        of_element.copy_from_slice(&bytes[at * SIZE..(at + 1) * SIZE]);
        read(of_element)
    };
    for (at, result) in result.chunks_exact_mut(SIZE).enumerate() {
        let numbers = ranks.iter().map(|bytes| element(bytes, at));
        let reduced = match operation {
            1 => numbers.reduce(N::product),
            2 => numbers.reduce(N::greater),
            3 => numbers.reduce(N::less),
            4 => numbers.reduce(N::sum).map(|sum| sum.divided(ranks.len())),
            _ => numbers.reduce(N::sum),
        };
        if let Some(reduced) = reduced {
            result.copy_from_slice(&write(reduced));
        }
    }
}

/// Reduces as many elements as `result` has room for, of each rank's bytes. Type and operation by NCCL's numbers, which have been
/// checked.
pub(crate) fn reduce(data_type: u32, operation: u32, ranks: &[&[u8]], result: &mut [u8]) {
    macro_rules! plain {
        ($number:ty) => {
            of_type(operation, ranks, result, <$number>::from_le_bytes, <$number>::to_le_bytes)
        };
    }
    macro_rules! narrow {
        ($number:ty) => {
            of_type(
                operation,
                ranks,
                result,
                |bytes| <$number>::from_le_bytes(bytes).to_f32(),
                |wide: f32| <$number>::from_f32(wide).to_le_bytes(),
            )
        };
    }
    match data_type {
        0 => plain!(i8),
        1 => plain!(u8),
        2 => plain!(i32),
        3 => plain!(u32),
        4 => plain!(i64),
        5 => plain!(u64),
        6 => narrow!(f16),
        7 => plain!(f32),
        8 => plain!(f64),
        _ => narrow!(bf16),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Every operation on every type, of three ranks' two elements: (type, bytes of ranks, bytes expected by operation).
    fn check<const SIZE: usize>(data_type: u32, of: impl Fn(i32) -> [u8; SIZE]) {
        let bytes = |numbers: [i32; 2]| numbers.map(&of).concat();
        let ranks = [bytes([2, 5]), bytes([3, 7]), bytes([4, 3])];
        let ranks: Vec<_> = ranks.iter().map(Vec::as_slice).collect();
        for (operation, expected) in [[9, 15], [24, 105], [4, 7], [2, 3], [3, 5]].into_iter().enumerate() {
            let mut result = vec![0; 2 * SIZE];
            reduce(data_type, operation as u32, &ranks, &mut result);
            assert_eq!(result, bytes(expected), "type {data_type}, operation {operation}");
        }
    }

    #[test]
    fn every_operation_on_every_type() {
        check(0, |number| (number as i8).to_le_bytes());
        check(1, |number| (number as u8).to_le_bytes());
        check(2, i32::to_le_bytes);
        check(3, |number| (number as u32).to_le_bytes());
        check(4, |number| i64::from(number).to_le_bytes());
        check(5, |number| (number as u64).to_le_bytes());
        check(6, |number| f16::from_f32(number as f32).to_le_bytes());
        check(7, |number| (number as f32).to_le_bytes());
        check(8, |number| f64::from(number).to_le_bytes());
        check(9, |number| bf16::from_f32(number as f32).to_le_bytes());
    }

    /// A sum whose result depends on its order, and 16-bit ones that would round in between.
    #[test]
    fn sums_are_in_the_order_of_the_ranks_and_16_bit_ones_round_once() {
        let ranks = [1e8_f32, 4.0, -1e8].map(f32::to_le_bytes);
        let mut result = [0; 4];
        reduce(7, 0, &ranks.each_ref().map(<[u8; 4]>::as_slice), &mut result);
        assert_eq!(f32::from_le_bytes(result), (1e8 + 4.0) - 1e8);
        let ranks = [256.0_f32, 1.0, 1.0].map(|number| bf16::from_f32(number).to_le_bytes());
        let mut result = [0; 2];
        reduce(9, 0, &ranks.each_ref().map(<[u8; 2]>::as_slice), &mut result);
        assert_eq!(bf16::from_le_bytes(result).to_f32(), 258.0);
    }

    /// Integers wrap, as on a device; their average is rounded toward zero.
    #[test]
    fn integers_wrap() {
        let mut result = [0];
        reduce(1, 0, &[&[200], &[100]], &mut result);
        assert_eq!(result, [44]);
        reduce(0, 4, &[&[(-7_i8) as u8], &[2]], &mut result);
        assert_eq!(result[0] as i8, -2);
    }
}
