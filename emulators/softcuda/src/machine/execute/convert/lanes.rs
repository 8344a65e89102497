//! Conversions between the formats of up to 32 bits on a whole row at a time: no branches, so that the loops become
//! vector code.

use super::format::Format;
use crate::machine::registers::LANES;
use crate::ptx::decode::convert::{Rules, Saturation};
use crate::ptx::types::Rounding;

/// A row of words.
pub type Row = [u32; LANES];

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7f80_0000;
/// The NaN that f32 results are.
pub const NAN: u32 = 0x7fff_ffff;

/// Every lane through a function.
#[inline(always)]
pub fn map(row: &Row, each: impl Fn(u32) -> u32) -> Row {
    std::array::from_fn(|lane| each(row[lane]))
}

/// The lower 16 bits as an f16, to an f32. A NaN becomes the canonical one.
#[inline(always)]
pub fn f32_of_f16(bits: u32) -> u32 {
    let magnitude = bits & 0x7fff;
    let sign = (bits & 0x8000) << 16;
    let normal = (magnitude << 13) + ((127 - 15) << 23);
    // The fraction of a subnormal number counts units of 2^-24.
    let subnormal = (magnitude as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let finite = sign | if magnitude < 0x400 { subnormal } else { normal };
    let special = if magnitude == 0x7c00 { sign | INFINITY } else { NAN };
    if magnitude < 0x7c00 { finite } else { special }
}

/// An f32 to the nearest f16, ties to even. A NaN becomes the canonical one.
#[inline(always)]
pub fn f16_of_f32(bits: u32) -> u32 {
    let magnitude = bits & !SIGN;
    let sign = bits >> 16 & 0x8000;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0xfff + odd).wrapping_sub((127 - 15) << 23) >> 13;
    // 2^-24, the unit of the subnormal numbers, is the unit in the last place of 1/2: the addition rounds to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < (127 - 14) << 23 { subnormal } else { normal };
    // From half a unit above the largest one up.
    let rounded = sign | if magnitude < 0x477f_f000 { finite } else { 0x7c00 };
    if magnitude > INFINITY { 0x7fff } else { rounded }
}

/// An f32 to the format with the same exponents and `DROPPED` bits fewer, in place: 16 for bf16, 13 for tf32.
#[inline(always)]
fn shorten<const DROPPED: u32>(bits: u32, rounding: Rounding, nan: u32) -> u32 {
    let magnitude = bits & !SIGN;
    let sign = bits & SIGN;
    let rest = (1 << DROPPED) - 1;
    // What carries into the bits that stay whenever the rounding goes away from zero. An infinity has no rest, and is
    // not changed by it.
    let carry = match rounding {
        Rounding::NearestEven => (rest >> 1) + (magnitude >> DROPPED & 1),
        Rounding::NearestAway => (rest >> 1) + 1,
        Rounding::Zero => 0,
        Rounding::Down => rest & (sign >> 31).wrapping_neg(),
        Rounding::Up => rest & !(sign >> 31).wrapping_neg(),
    };
    let rounded = sign | magnitude.wrapping_add(carry) & !rest;
    if magnitude > INFINITY { nan } else { rounded }
}

/// An f32 to the nearest bf16, ties to even. A NaN becomes the canonical one.
#[inline(always)]
pub fn bf16_of_f32(bits: u32) -> u32 {
    shorten::<16>(bits, Rounding::NearestEven, 0x7fff_0000) >> 16
}

/// f32 to bf16 with any rounding.
pub fn to_bf16(row: &Row, rounding: Rounding) -> Row {
    match rounding {
        Rounding::NearestEven => map(row, bf16_of_f32),
        other => map(row, |bits| shorten::<16>(bits, other, 0x7fff_0000) >> 16),
    }
}

/// f32 to tf32 with any rounding.
pub fn to_tf32(row: &Row, rounding: Rounding) -> Row {
    match rounding {
        Rounding::NearestEven => map(row, |bits| shorten::<13>(bits, Rounding::NearestEven, NAN)),
        Rounding::NearestAway => map(row, |bits| shorten::<13>(bits, Rounding::NearestAway, NAN)),
        other => map(row, |bits| shorten::<13>(bits, other, NAN)),
    }
}

/// f32 to f16 with any rounding.
pub fn to_f16(row: &Row, rounding: Rounding) -> Row {
    match rounding {
        Rounding::NearestEven => map(row, f16_of_f32),
        other => map(row, |bits| super::format::F16.encode(f64::from(f32::from_bits(bits)), other) as u32),
    }
}

/// Subnormal f32 to zeros of the same sign.
pub fn flush(row: &Row) -> Row {
    map(row, |bits| if bits & INFINITY == 0 { bits & SIGN } else { bits })
}

/// Limits results that are encoded so.
pub fn limit(row: &Row, format: &Format, rules: Rules) -> Row {
    let mut row = *row;
    let (sign, infinity) = (format.sign() as u32, format.infinity() as u32);
    match rules.saturation {
        Saturation::Unlimited => {}
        Saturation::Finite => {
            let largest = format.largest() as u32;
            row = map(&row, |bits| if bits & !sign == infinity { bits & sign | largest } else { bits });
        }
        Saturation::Unit => {
            let one = format.one() as u32;
            row = map(&row, |bits| {
                let limited = if bits > one { one } else { bits };
                if bits & sign != 0 || bits > infinity { 0 } else { limited }
            });
        }
    }
    if rules.relu {
        // A NaN has no sign by now.
        row = map(&row, |bits| if bits & sign == 0 { bits } else { 0 });
    }
    row
}
