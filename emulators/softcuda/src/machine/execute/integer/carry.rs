//! Sums with the carry flag, for numbers of more than one register.

use super::lanes::Lane;
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::integer::{Carry, Integer, Number, Sum};

pub(super) fn execute(carry: Carry, integer: &Integer, registers: &mut Registers, active: u32) {
    macro_rules! sums {
        ($t:ty, $product:expr) => {
            match carry.sum {
                Sum::Add => chain(carry, integer, registers, active, |a: $t, b: $t, _: $t, carry| add(a, b, carry)),
                Sum::Subtract => chain(carry, integer, registers, active, |a: $t, b: $t, _: $t, borrow| {
                    let (difference, first) = a.overflowing_sub(b);
                    let (difference, second) = difference.overflowing_sub(<$t>::from(borrow));
                    (difference, first | second)
                }),
                Sum::ProductLow => chain(carry, integer, registers, active, |a: $t, b: $t, c: $t, carry| {
                    add(a.wrapping_mul(b), c, carry)
                }),
                Sum::ProductHigh => {
                    chain(carry, integer, registers, active, |a: $t, b: $t, c: $t, carry| {
                        add($product(a, b), c, carry)
                    });
                }
            }
        };
    }
    match integer.number {
        Number::U16 | Number::S16 => {}
        Number::U32 => sums!(u32, |a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Number::S32 => sums!(u32, |a: u32, b: u32| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        Number::U64 => sums!(u64, |a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        Number::S64 => sums!(u64, |a: u64, b: u64| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
    }
}

/// An unsigned number of 32 or 64 bits.
trait Unsigned: Sized + From<bool> {
    fn with_overflow(self, other: Self) -> (Self, bool);
}

impl Unsigned for u32 {
    fn with_overflow(self, other: Self) -> (Self, bool) {
        self.overflowing_add(other)
    }
}

impl Unsigned for u64 {
    fn with_overflow(self, other: Self) -> (Self, bool) {
        self.overflowing_add(other)
    }
}

/// Two of three can never both overflow.
fn add<T: Unsigned>(a: T, b: T, carry: bool) -> (T, bool) {
    let (sum, first) = a.with_overflow(b);
    let (sum, second) = sum.with_overflow(T::from(carry));
    (sum, first | second)
}

#[inline(never)]
fn chain<T: Lane>(
    carry: Carry,
    integer: &Integer,
    registers: &mut Registers,
    active: u32,
    operation: impl Fn(T, T, T, bool) -> (T, bool),
) {
    let [a, b, c] = [0, 1, 2].map(|place| T::read(registers, integer.sources[place]));
    let carried = if carry.reads { registers.carry } else { 0 };
    let mut result = [T::default(); LANES];
    let mut flags = 0;
    for lane in 0..LANES {
        let (value, flag) = operation(a[lane], b[lane], c[lane], carried >> lane & 1 == 1);
        result[lane] = value;
        flags |= u32::from(flag) << lane;
    }
    T::write(registers, integer.destination, active, &result);
    if carry.writes {
        registers.carry = registers.carry & !active | flags & active;
    }
}
