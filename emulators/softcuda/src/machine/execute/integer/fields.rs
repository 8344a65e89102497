//! Bit fields: `bfe`, `bfi`, `szext`, `bmsk`, `fns`.

use super::lanes::{Lane, map3};
use crate::machine::registers::{LANES, Registers};
use crate::ptx::decode::integer::{Bits, Integer, Number};

pub(super) fn execute(bits: Bits, integer: &Integer, registers: &mut Registers, active: u32) {
    match (bits, integer.number) {
        (Bits::Extract, Number::U32) => map3(integer, registers, active, extract_u32),
        (Bits::Extract, Number::S32) => map3(integer, registers, active, extract_s32),
        (Bits::Extract, Number::U64) => map3(integer, registers, active, extract_u64),
        (Bits::Extract, Number::S64) => map3(integer, registers, active, extract_s64),
        (Bits::Insert, Number::U32) => insert::<u32>(integer, registers, active, |a, b, position, length| {
            let field = field(position, length) as u32;
            (u64::from(a) << position.min(63)) as u32 & field | b & !field
        }),
        (Bits::Insert, Number::U64) => insert::<u64>(integer, registers, active, |a, b, position, length| {
            let field = field(position, length);
            a.checked_shl(position).unwrap_or(0) & field | b & !field
        }),
        // The table has no others.
        _ => {}
    }
}

/// `length` ones, shifted left by `position`, both at most 255.
fn field(position: u32, length: u32) -> u64 {
    let ones = if length < 64 { (1 << length) - 1 } else { u64::MAX };
    ones.checked_shl(position).unwrap_or(0)
}

fn extract_u64(a: u64, position: u32, length: u32) -> u64 {
    a.checked_shr(position & 255).unwrap_or(0) & field(0, length & 255)
}

fn extract_u32(a: u32, position: u32, length: u32) -> u32 {
    extract_u64(u64::from(a), position, length) as u32
}

/// Beyond the number its sign goes on, in the field and in what fills the bits above the field.
fn extract_s64(a: i64, position: u32, length: u32) -> i64 {
    let shifted = a >> (position & 255).min(63);
    match length & 255 {
        0 => 0,
        length @ 1..64 => shifted << (64 - length) >> (64 - length),
        _ => shifted,
    }
}

fn extract_s32(a: i32, position: u32, length: u32) -> i32 {
    extract_s64(i64::from(a), position, length) as i32
}

#[inline(never)]
fn insert<T: Lane>(integer: &Integer, registers: &mut Registers, active: u32, operation: impl Fn(T, T, u32, u32) -> T) {
    let [a, b] = [0, 1].map(|place| T::read(registers, integer.sources[place]));
    let [position, length] = [2, 3].map(|place| registers.word(integer.sources[place]));
    let mut result = [T::default(); LANES];
    for lane in 0..LANES {
        result[lane] = operation(a[lane], b[lane], position[lane] & 255, length[lane] & 255);
    }
    T::write(registers, integer.destination, active, &result);
}

/// The low `width` bits, below 32, with zeros or the highest of them above.
pub(super) fn extend(a: u32, width: u32, signed: bool) -> u32 {
    let kept = (1u32 << width) - 1;
    let negative = signed && width > 0 && a >> (width.wrapping_sub(1) & 31) & 1 == 1;
    if negative { a | !kept } else { a & kept }
}

/// `width` ones from bit `start`, those beyond bit 31 lost.
pub(super) fn mask(start: u32, width: u32) -> u32 {
    let ones = if width < 32 { (1 << width) - 1 } else { u32::MAX };
    ones.checked_shl(start).unwrap_or(0)
}

/// The place of the n-th one from bit `base`: upwards for a positive n, downwards for a negative, at `base` itself for
/// zero.
pub(super) fn find_nth(mask: u32, base: u32, n: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    if n == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut left = n.unsigned_abs();
    let mut place = base as i32;
    while (0..32).contains(&place) {
        left -= mask >> place & 1;
        if left == 0 {
            return place as u32;
        }
        place += n.signum();
    }
    u32::MAX
}
