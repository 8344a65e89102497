//! Conversions from and to integers.

use super::format::Format;
use super::lanes::{self, Row};
use crate::machine::registers::{LANES, Reg, Registers, Width};
use crate::ptx::decode::convert::{Destination, Rules, Saturation};
use crate::ptx::types::{Rounding, Type};

/// A row of 64-bit lanes.
type LongRow = [u64; LANES];

/// The low `bits` of a word, extended to the whole word.
#[inline(always)]
fn extend(word: u32, bits: u32, signed: bool) -> u32 {
    let shift = 32 - bits.min(32);
    if signed { ((word << shift) as i32 >> shift) as u32 } else { word << shift >> shift }
}

/// The low `bits` of a long, extended to the whole long.
#[inline(always)]
fn extend_long(long: u64, bits: u32, signed: bool) -> u64 {
    let shift = 64 - bits.min(64);
    if signed { ((long << shift) as i64 >> shift) as u64 } else { long << shift >> shift }
}

/// The source lanes of an integer type, extended to 64 bits.
fn read(registers: &Registers, source: Reg, from: Type) -> LongRow {
    let row = registers.extended(source);
    let (bits, signed) = (from.bits(), from.is_signed());
    std::array::from_fn(|lane| extend_long(row[lane], bits, signed))
}

/// Writes values of type `to` that are extended to 64 bits, cut to the register's declared width.
fn write(registers: &mut Registers, destination: Destination, active: u32, row: &LongRow) {
    let kept = if destination.bits >= 64 { u64::MAX } else { (1 << destination.bits) - 1 };
    registers.set_extended(destination.reg, active, &row.map(|value| value & kept));
}

/// An integer to an integer, cut.
pub(super) fn cut(
    (from, to): (Type, Type),
    destination: Destination,
    source: Reg,
    registers: &mut Registers,
    active: u32,
) {
    let (from_bits, from_signed, to_bits, to_signed) = (from.bits(), from.is_signed(), to.bits(), to.is_signed());
    if source.width == Width::Word && destination.reg.width == Width::Long {
        let row = registers.word(source);
        // Two loops, as the choice inside of one would keep it from becoming vector code.
        let wide: LongRow = if from_signed {
            std::array::from_fn(|lane| extend(row[lane], from_bits, true) as i32 as i64 as u64)
        } else {
            std::array::from_fn(|lane| u64::from(extend(row[lane], from_bits, false)))
        };
        if to_bits == 64 {
            registers.set_long(destination.reg, active, &wide);
        } else {
            let value = std::array::from_fn(|lane| extend_long(wide[lane], to_bits, to_signed));
            write(registers, destination, active, &value);
        }
        return;
    }
    if destination.reg.width == Width::Word {
        // Only the low word of a long source matters.
        let row: Row = match source.width {
            Width::Word => registers.word(source),
            _ => registers.extended(source).map(|value| value as u32),
        };
        let kept = if destination.bits >= 32 { u32::MAX } else { (1 << destination.bits) - 1 };
        let wide = if from_signed {
            lanes::map(&row, |word| extend(word, from_bits, true))
        } else {
            lanes::map(&row, |word| extend(word, from_bits, false))
        };
        let value = if to_signed {
            lanes::map(&wide, |word| extend(word, to_bits, true) & kept)
        } else {
            lanes::map(&wide, |word| extend(word, to_bits, false) & kept)
        };
        registers.set_word(destination.reg, active, &value);
        return;
    }
    let value = read(registers, source, from).map(|value| extend_long(value, to_bits, to_signed));
    write(registers, destination, active, &value);
}

/// An integer to an integer, limited to the result's range.
pub(super) fn saturate(
    (from, to): (Type, Type),
    destination: Destination,
    source: Reg,
    registers: &mut Registers,
    active: u32,
) {
    let signed = from.is_signed();
    let (low, high) = range(to);
    let value = read(registers, source, from).map(|bits| {
        let value = if signed { i128::from(bits as i64) } else { i128::from(bits) };
        value.clamp(low, high) as u64
    });
    write(registers, destination, active, &value);
}

/// The least and the greatest value of an integer type.
pub(super) fn range(ty: Type) -> (i128, i128) {
    match (ty.is_signed(), ty.bits()) {
        (true, bits) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        (false, bits) => (0, (1 << bits) - 1),
    }
}

/// An integer to a floating-point number, as bits of the format.
pub(super) fn to_float((from, to): (Type, Type), rules: Rules, source: Reg, registers: &Registers) -> LongRow {
    let signed = from.is_signed();
    if rules.rounding == Rounding::NearestEven && rules.saturation == Saturation::Unlimited {
        let row = read(registers, source, from);
        match (to, signed) {
            (Type::F32, false) => return row.map(|value| u64::from((value as f32).to_bits())),
            (Type::F32, true) => return row.map(|value| u64::from((value as i64 as f32).to_bits())),
            (Type::F64, false) => return row.map(|value| (value as f64).to_bits()),
            (Type::F64, true) => return row.map(|value| (value as i64 as f64).to_bits()),
            _ => {}
        }
    }
    let format = Format::of(to);
    read(registers, source, from).map(|value| {
        let negative = signed && (value as i64) < 0;
        let magnitude = if negative { (value as i64).unsigned_abs() } else { value };
        let bits = format.round(negative, magnitude, 0, rules.rounding);
        if rules.saturation == Saturation::Unit { if negative { 0 } else { bits.min(format.one()) } } else { bits }
    })
}

/// A 32-bit integer to the nearest f32.
pub(super) fn word_to_f32(row: &Row, signed: bool) -> Row {
    if signed {
        lanes::map(row, |word| (word as i32 as f32).to_bits())
    } else {
        lanes::map(row, |word| (word as f32).to_bits())
    }
}

/// Values to integral values.
pub(super) fn integral_f32(row: &[f32; LANES], rounding: Rounding) -> [f32; LANES] {
    match rounding {
        Rounding::NearestEven => row.map(f32::round_ties_even),
        Rounding::NearestAway => row.map(f32::round),
        Rounding::Zero => row.map(f32::trunc),
        Rounding::Down => row.map(f32::floor),
        Rounding::Up => row.map(f32::ceil),
    }
}

/// Values to integral values.
pub(super) fn integral_f64(row: &[f64; LANES], rounding: Rounding) -> [f64; LANES] {
    match rounding {
        Rounding::NearestEven => row.map(f64::round_ties_even),
        Rounding::NearestAway => row.map(f64::round),
        Rounding::Zero => row.map(f64::trunc),
        Rounding::Down => row.map(f64::floor),
        Rounding::Up => row.map(f64::ceil),
    }
}

/// Integral f32 to integers, limited; NaN to 0, or to the highest bit alone in 64 bits (the manual's floating-point
/// notes of `cvt`).
pub(super) fn from_f32(row: &[f32; LANES], to: Type, destination: Destination, registers: &mut Registers, active: u32) {
    if destination.reg.width == Width::Word && destination.bits == 32 {
        // Rust's casts limit, and give 0 for NaN.
        let word: Row = match to {
            Type::U32 => row.map(|value| value as u32),
            Type::S32 => row.map(|value| value as i32 as u32),
            Type::U16 => row.map(|value| u32::from(value as u16)),
            Type::S16 => row.map(|value| value as i16 as i32 as u32),
            Type::U8 => row.map(|value| u32::from(value as u8)),
            _ => row.map(|value| value as i8 as i32 as u32),
        };
        registers.set_word(destination.reg, active, &word);
        return;
    }
    let wide = row.map(f64::from);
    let nan = if to.bits() == 64 { 1 << 63 } else { 0 };
    write(registers, destination, active, &wide.map(|value| if value.is_nan() { nan } else { limited(value, to) }));
}

/// Integral f64 to integers, limited; NaN to the highest bit alone.
pub(super) fn from_f64(row: &[f64; LANES], to: Type, destination: Destination, registers: &mut Registers, active: u32) {
    let nan = extend_long(1 << (to.bits() - 1), to.bits(), to.is_signed());
    write(registers, destination, active, &row.map(|value| if value.is_nan() { nan } else { limited(value, to) }));
}

/// An integral value limited to the type's range and extended to 64 bits.
#[inline(always)]
fn limited(value: f64, to: Type) -> u64 {
    let (low, high) = range(to);
    // Exact: an integral f64 beyond i128 is beyond every type too, and the cast limits it.
    (value as i128).clamp(low, high) as u64
}
