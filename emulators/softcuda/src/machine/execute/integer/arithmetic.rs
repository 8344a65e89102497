//! Sums, products, quotients.

use super::lanes::{by_number, map1, map2, map3};
use crate::machine::registers::Registers;
use crate::ptx::decode::integer::{Arithmetic, Integer, Number};

pub(super) fn execute(arithmetic: Arithmetic, integer: &Integer, registers: &mut Registers, active: u32) {
    let signed = matches!(integer.number, Number::S16 | Number::S32 | Number::S64);
    by_number!(integer.number, T, Wide => match arithmetic {
        Arithmetic::Add => map2(integer, registers, active, |a: T, b: T| a.wrapping_add(b)),
        Arithmetic::Subtract => map2(integer, registers, active, |a: T, b: T| a.wrapping_sub(b)),
        Arithmetic::MultiplyLow => map2(integer, registers, active, |a: T, b: T| a.wrapping_mul(b)),
        Arithmetic::MultiplyHigh => {
            map2(integer, registers, active, |a: T, b: T| (Wide::from(a).wrapping_mul(Wide::from(b)) >> T::BITS) as T);
        }
        Arithmetic::MultiplyAddLow => {
            map3(integer, registers, active, |a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c));
        }
        Arithmetic::MultiplyAddHigh => map3(integer, registers, active, |a: T, b: T, c: T| {
            ((Wide::from(a).wrapping_mul(Wide::from(b)) >> T::BITS) as T).wrapping_add(c)
        }),
        Arithmetic::SumOfAbsoluteDifference => {
            map3(integer, registers, active, |a: T, b: T, c: T| c.wrapping_add(a.abs_diff(b) as T));
        }
        // The manual leaves division by zero open; compilers for sm_90 emit code that gives all ones for both.
        Arithmetic::Divide => {
            map2(integer, registers, active, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) });
        }
        Arithmetic::Remainder => {
            map2(integer, registers, active, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_rem(b) });
        }
        Arithmetic::Minimum => map2(integer, registers, active, |a: T, b: T| a.min(b)),
        Arithmetic::Maximum => map2(integer, registers, active, |a: T, b: T| a.max(b)),
        Arithmetic::Negate => map1(integer, registers, active, |a: T| (0 as T).wrapping_sub(a)),
        Arithmetic::Absolute => absolute(integer, registers, active),
        Arithmetic::MultiplyWide | Arithmetic::MultiplyAddWide => wide(arithmetic, integer, registers, active),
        Arithmetic::PackedAdd
        | Arithmetic::PackedMinimum
        | Arithmetic::PackedMaximum
        | Arithmetic::PackedMinimumRelu
        | Arithmetic::PackedMaximumRelu => packed(arithmetic, signed, integer, registers, active),
        _ => word(arithmetic, signed, integer, registers, active),
    });
}

fn absolute(integer: &Integer, registers: &mut Registers, active: u32) {
    match integer.number {
        Number::U16 | Number::S16 => map1(integer, registers, active, i16::wrapping_abs),
        Number::U32 | Number::S32 => map1(integer, registers, active, i32::wrapping_abs),
        Number::U64 | Number::S64 => map1(integer, registers, active, i64::wrapping_abs),
    }
}

/// Products in twice the width: the table has them for 16 and 32 bits.
fn wide(arithmetic: Arithmetic, integer: &Integer, registers: &mut Registers, active: u32) {
    macro_rules! product {
        ($t:ty, $wide:ty) => {
            if arithmetic == Arithmetic::MultiplyWide {
                map2(integer, registers, active, |a: $t, b: $t| <$wide>::from(a).wrapping_mul(<$wide>::from(b)));
            } else {
                map3(integer, registers, active, |a: $t, b: $t, c: $wide| {
                    <$wide>::from(a).wrapping_mul(<$wide>::from(b)).wrapping_add(c)
                });
            }
        };
    }
    match integer.number {
        Number::U16 => product!(u16, u32),
        Number::S16 => product!(i16, i32),
        Number::U32 => product!(u32, u64),
        Number::S32 => product!(i32, i64),
        Number::U64 | Number::S64 => {}
    }
}

/// The product of the low 24 bits, 48 bits long, its sign above.
fn product24(a: u32, b: u32, signed: bool) -> i64 {
    let extended = |value: u32| {
        if signed { i64::from((value << 8) as i32 >> 8) } else { i64::from(value & 0x00ff_ffff) }
    };
    extended(a) * extended(b)
}

/// What exists for 32 bits only.
fn word(arithmetic: Arithmetic, signed: bool, integer: &Integer, registers: &mut Registers, active: u32) {
    let low24 = move |a: u32, b: u32| product24(a, b, signed) as u32;
    let high24 = move |a: u32, b: u32| (product24(a, b, signed) >> 16) as u32;
    match arithmetic {
        Arithmetic::AddSaturating => map2(integer, registers, active, i32::saturating_add),
        Arithmetic::SubtractSaturating => map2(integer, registers, active, i32::saturating_sub),
        Arithmetic::MultiplyAddHighSaturating => map3(integer, registers, active, |a: i32, b: i32, c: i32| {
            (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c)
        }),
        Arithmetic::Multiply24Low => map2(integer, registers, active, low24),
        Arithmetic::Multiply24High => map2(integer, registers, active, high24),
        Arithmetic::MultiplyAdd24Low => {
            map3(integer, registers, active, |a: u32, b: u32, c: u32| low24(a, b).wrapping_add(c));
        }
        Arithmetic::MultiplyAdd24High => {
            map3(integer, registers, active, |a: u32, b: u32, c: u32| high24(a, b).wrapping_add(c));
        }
        Arithmetic::MultiplyAdd24HighSaturating => {
            map3(integer, registers, active, |a: u32, b: u32, c: i32| (high24(a, b) as i32).saturating_add(c));
        }
        Arithmetic::MinimumRelu => map2(integer, registers, active, |a: i32, b: i32| a.min(b).max(0)),
        Arithmetic::MaximumRelu => map2(integer, registers, active, |a: i32, b: i32| a.max(b).max(0)),
        // The others are for any number.
        _ => {}
    }
}

/// The operation on both halves of a word.
#[inline(always)]
fn halves<T>(
    cut: impl Fn(u32) -> T,
    bits: impl Fn(T) -> u16,
    operation: impl Fn(T, T) -> T,
) -> impl Fn(u32, u32) -> u32 {
    move |a, b| {
        let low = bits(operation(cut(a), cut(b)));
        let high = bits(operation(cut(a >> 16), cut(b >> 16)));
        u32::from(low) | u32::from(high) << 16
    }
}

fn packed(arithmetic: Arithmetic, signed: bool, integer: &Integer, registers: &mut Registers, active: u32) {
    macro_rules! apply {
        ($t:ty, $operation:expr) => {
            map2(integer, registers, active, halves(|bits| bits as $t, |value| value as u16, $operation))
        };
    }
    match (arithmetic, signed) {
        (Arithmetic::PackedAdd, _) => apply!(u16, u16::wrapping_add),
        (Arithmetic::PackedMinimum, false) => apply!(u16, Ord::min),
        (Arithmetic::PackedMaximum, false) => apply!(u16, Ord::max),
        (Arithmetic::PackedMinimum, true) => apply!(i16, Ord::min),
        (Arithmetic::PackedMaximum, true) => apply!(i16, Ord::max),
        (Arithmetic::PackedMinimumRelu, _) => apply!(i16, |a: i16, b: i16| a.min(b).max(0)),
        _ => apply!(i16, |a: i16, b: i16| a.max(b).max(0)),
    }
}
