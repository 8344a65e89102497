//! Logic, shifts, counts of bits.

use super::fields;
use super::lanes::{by_number, map1, map2, map3};
use crate::machine::registers::Registers;
use crate::ptx::decode::integer::{Bits, Integer, Number, Range};

pub(super) fn execute(bits: Bits, integer: &Integer, registers: &mut Registers, active: u32) {
    by_number!(integer.number, T, Wide => match bits {
        Bits::And => map2(integer, registers, active, |a: T, b: T| a & b),
        Bits::Or => map2(integer, registers, active, |a: T, b: T| a | b),
        Bits::Xor => map2(integer, registers, active, |a: T, b: T| a ^ b),
        Bits::Not => map1(integer, registers, active, |a: T| !a),
        Bits::LogicalNot => map1(integer, registers, active, |a: T| T::from(a == 0)),
        Bits::ShiftLeft => {
            map2(integer, registers, active, |a: T, n: u32| if n < T::BITS { a << (n % T::BITS) } else { 0 });
        }
        // For signed numbers the last bit is the sign, and so it stays; unsigned ones lose it.
        Bits::ShiftRight => map2(integer, registers, active, |a: T, n: u32| {
            let beyond = if T::MIN == 0 { 0 } else { a >> (T::BITS - 1) };
            if n < T::BITS { a >> (n % T::BITS) } else { beyond }
        }),
        Bits::Population => map1(integer, registers, active, |a: T| a.count_ones()),
        Bits::LeadingZeros => map1(integer, registers, active, |a: T| a.leading_zeros()),
        Bits::Reverse => map1(integer, registers, active, |a: T| a.reverse_bits()),
        Bits::FindLeading => {
            map1(integer, registers, active, |a: T| leading(a ^ sign(a)).map_or(u32::MAX, |zeros| T::BITS - 1 - zeros));
        }
        Bits::FindLeadingShift => {
            map1(integer, registers, active, |a: T| leading(a ^ sign(a)).unwrap_or(u32::MAX));
        }
        _ => rest(bits, integer, registers, active),
    });
}

/// All ones for a negative number, else zero.
fn sign<T: Whole>(a: T) -> T {
    a.sign()
}

/// Zeros above the first one.
fn leading<T: Whole>(a: T) -> Option<u32> {
    let zeros = a.zeros();
    (zeros < T::WIDTH).then_some(zeros)
}

/// What `bfind` asks of a number.
trait Whole: Copy {
    const WIDTH: u32;
    fn sign(self) -> Self;
    fn zeros(self) -> u32;
}

macro_rules! whole {
    ($($t:ty),*) => {$(
        impl Whole for $t {
            const WIDTH: u32 = <$t>::BITS;
            fn sign(self) -> Self {
                if <$t>::MIN == 0 { 0 } else { self >> (<$t>::BITS - 1) }
            }
            fn zeros(self) -> u32 {
                self.leading_zeros()
            }
        }
    )*};
}

whole!(u16, i16, u32, i32, u64, i64);

/// Fields, and what exists for 32 bits only.
fn rest(bits: Bits, integer: &Integer, registers: &mut Registers, active: u32) {
    let signed = integer.number == Number::S32;
    let funnel = |b: u32, a: u32| u64::from(b) << 32 | u64::from(a);
    match bits {
        Bits::Extract | Bits::Insert => fields::execute(bits, integer, registers, active),
        Bits::FindNth => map3(integer, registers, active, fields::find_nth),
        Bits::Extend(Range::Clamp) => {
            map2(integer, registers, active, |a: u32, n: u32| if n < 32 { fields::extend(a, n, signed) } else { a });
        }
        Bits::Extend(Range::Wrap) => {
            map2(integer, registers, active, |a: u32, n: u32| fields::extend(a, n & 31, signed));
        }
        Bits::Mask(Range::Clamp) => map2(integer, registers, active, fields::mask),
        Bits::Mask(Range::Wrap) => {
            map2(integer, registers, active, |start: u32, width: u32| fields::mask(start & 31, width & 31));
        }
        Bits::FunnelLeft(Range::Clamp) => {
            map3(integer, registers, active, |a, b, n: u32| (funnel(b, a) << n.min(32) >> 32) as u32);
        }
        Bits::FunnelLeft(Range::Wrap) => {
            map3(integer, registers, active, |a, b, n: u32| (funnel(b, a) << (n & 31) >> 32) as u32);
        }
        Bits::FunnelRight(Range::Clamp) => {
            map3(integer, registers, active, |a, b, n: u32| (funnel(b, a) >> n.min(32)) as u32);
        }
        Bits::FunnelRight(Range::Wrap) => {
            map3(integer, registers, active, |a, b, n: u32| (funnel(b, a) >> (n & 31)) as u32);
        }
        // The others are for any number.
        _ => {}
    }
}
