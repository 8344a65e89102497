//! `cvt` for the lanes of a warp.
//!
//! NaN: f16, bf16, tf32 and f32 results of a conversion are the canonical NaN, except that bf16 to f32, f32 to f64 and
//! conversions to the same type keep the payload; the device does the former by a shift, and the manual leaves the rest
//! open.

pub mod format;
mod integer;
pub mod lanes;

use crate::machine::registers::{LANES, Reg, Registers, Width};
use crate::ptx::decode::convert::{Convert, Rules, Saturation};
use crate::ptx::types::{Rounding, Type};
use format::Format;
use lanes::Row;

/// Executes for the lanes of `active`.
pub fn execute(operation: &Convert, registers: &mut Registers, active: u32) {
    match *operation {
        Convert::Integer { from, to, saturate: false, destination, source } => {
            integer::cut((from, to), destination, source, registers, active);
        }
        Convert::Integer { from, to, saturate: true, destination, source } => {
            integer::saturate((from, to), destination, source, registers, active);
        }
        Convert::FromInteger { from, to, rules, destination, source } => {
            let plain = rules.rounding == Rounding::NearestEven && rules.saturation == Saturation::Unlimited;
            let words = source.width == Width::Word && destination.width == Width::Word && from.bits() == 32;
            if plain && words && to == Type::F32 {
                let row = integer::word_to_f32(&registers.word(source), from.is_signed());
                registers.set_word(destination, active, &row);
            } else {
                let row = integer::to_float((from, to), rules, source, registers);
                registers.set_extended(destination, active, &row);
            }
        }
        Convert::ToInteger { from: Type::F64, to, rounding, flush: _, destination, source } => {
            let row = integer::integral_f64(&registers.extended(source).map(f64::from_bits), rounding);
            integer::from_f64(&row, to, destination, registers, active);
        }
        Convert::ToInteger { from, to, rounding, flush, destination, source } => {
            let row = as_f32(&low_words(registers, source), from, flush).map(f32::from_bits);
            integer::from_f32(&integer::integral_f32(&row, rounding), to, destination, registers, active);
        }
        Convert::Integral { ty: Type::F64, rules, destination, source } => {
            let row = integer::integral_f64(&registers.extended(source).map(f64::from_bits), rules.rounding);
            registers.set_extended(destination, active, &limit_f64(&row.map(f64::to_bits), rules));
        }
        Convert::Integral { ty, rules, destination, source } => {
            let row = as_f32(&low_words(registers, source), ty, rules.flush).map(f32::from_bits);
            let row = integer::integral_f32(&row, rules.rounding).map(f32::to_bits);
            let row = lanes::map(&row, |bits| if bits << 1 > 0xff00_0000 { lanes::NAN } else { bits });
            // Integral values of a type are values of it.
            let nearest = Rules { rounding: Rounding::NearestEven, ..rules };
            set_low_words(registers, destination, active, &narrow(&row, ty, nearest));
        }
        Convert::Float { from, to, rules, destination, source } => {
            float((from, to), rules, destination, source, registers, active);
        }
        Convert::Pack { to: to @ (Type::F16x2 | Type::Bf16x2), rules, destination, upper, lower } => {
            let half = if to == Type::F16x2 { Type::F16 } else { Type::Bf16 };
            let upper = narrow(&registers.word(upper), half, rules);
            let lower = narrow(&registers.word(lower), half, rules);
            let row: Row = std::array::from_fn(|lane| upper[lane] << 16 | lower[lane]);
            set_low_words(registers, destination, active, &row);
        }
        Convert::Pack { to, rules, destination, upper, lower } => {
            let byte = |bits| to_byte(f64::from(f32::from_bits(bits)), to, rules);
            let (upper, lower) = (registers.word(upper), registers.word(lower));
            let row: Row = std::array::from_fn(|lane| byte(upper[lane]) << 8 | byte(lower[lane]));
            set_low_words(registers, destination, active, &row);
        }
        Convert::Repack { from: Type::F16x2, to, rules, destination, source } => {
            let byte = |bits: u32| to_byte(format::F16.decode(u64::from(bits & 0xffff)), to, rules);
            let row = lanes::map(&low_words(registers, source), |bits| byte(bits >> 16) << 8 | byte(bits));
            set_low_words(registers, destination, active, &row);
        }
        Convert::Repack { from, to: _, rules, destination, source } => {
            let format = Format::of(from);
            let half = |bits: u32| {
                let half = format::F16.encode(format.decode(u64::from(bits & 0xff)), Rounding::NearestEven) as u32;
                if rules.relu && half & 0x8000 != 0 { 0 } else { half }
            };
            let row = lanes::map(&low_words(registers, source), |bits| half(bits >> 8) << 16 | half(bits));
            set_low_words(registers, destination, active, &row);
        }
        Convert::PackIntegers { bits, signed, destination, upper, lower, above } => {
            let (low, high) = if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
            let limit = |word: u32| (word as i32).clamp(low, high) as u32 & ((1 << bits) - 1);
            let (upper, lower) = (registers.word(upper), registers.word(lower));
            let above = above.map_or([0; LANES], |above| registers.word(above));
            let row: Row = std::array::from_fn(|lane| {
                let pair = limit(upper[lane]) << bits | limit(lower[lane]);
                // 16 bits have nothing above them.
                if bits == 16 { pair } else { above[lane] << (2 * bits) | pair }
            });
            set_low_words(registers, destination, active, &row);
        }
    }
}

/// The low words of a register that may be wider.
fn low_words(registers: &Registers, source: Reg) -> Row {
    match source.width {
        Width::Word => registers.word(source),
        _ => registers.extended(source).map(|value| value as u32),
    }
}

fn set_low_words(registers: &mut Registers, destination: Reg, active: u32, row: &Row) {
    match destination.width {
        Width::Word => registers.set_word(destination, active, row),
        _ => registers.set_extended(destination, active, &row.map(u64::from)),
    }
}

/// f16, bf16 or f32 to f32, exactly; `.ftz` is about f32 alone.
fn as_f32(row: &Row, from: Type, flush: bool) -> Row {
    match from {
        Type::F16 => lanes::map(row, lanes::f32_of_f16),
        Type::Bf16 => lanes::map(row, |bits| bits << 16),
        _ if flush => lanes::flush(row),
        _ => *row,
    }
}

/// f32 to a format of at most 32 bits.
fn narrow(row: &Row, to: Type, rules: Rules) -> Row {
    let row = match to {
        Type::F16 => lanes::to_f16(row, rules.rounding),
        Type::Bf16 => lanes::to_bf16(row, rules.rounding),
        Type::Tf32 => lanes::to_tf32(row, rules.rounding),
        _ if rules.flush => lanes::flush(row),
        _ => *row,
    };
    if rules.saturation == Saturation::Unlimited && !rules.relu {
        row
    } else {
        lanes::limit(&row, Format::of(to), rules)
    }
}

/// A floating-point number to another format.
fn float(
    (from, to): (Type, Type),
    rules: Rules,
    destination: Reg,
    source: Reg,
    registers: &mut Registers,
    active: u32,
) {
    match (from, to) {
        (Type::F64, Type::F64) => {
            let row = limit_f64(&registers.extended(source), rules);
            registers.set_extended(destination, active, &row);
        }
        (Type::F64, _) => {
            let row = registers.extended(source).map(f64::from_bits);
            let row: Row = if to == Type::F32 && rules.rounding == Rounding::NearestEven {
                row.map(|value| if value.is_nan() { lanes::NAN } else { (value as f32).to_bits() })
            } else {
                let format = Format::of(to);
                row.map(|value| format.encode(value, rules.rounding) as u32)
            };
            let row = if to == Type::F32 && rules.flush { lanes::flush(&row) } else { row };
            set_low_words(registers, destination, active, &lanes::limit(&row, Format::of(to), rules));
        }
        (_, Type::F64) => {
            let row = as_f32(&low_words(registers, source), from, rules.flush);
            let row = row.map(|bits| f64::from(f32::from_bits(bits)).to_bits());
            registers.set_extended(destination, active, &limit_f64(&row, rules));
        }
        (Type::F16, Type::F16) | (Type::Bf16, Type::Bf16) => {
            let row = lanes::map(&low_words(registers, source), |bits| bits & 0xffff);
            set_low_words(registers, destination, active, &lanes::limit(&row, Format::of(to), rules));
        }
        _ => {
            let row = as_f32(&low_words(registers, source), from, rules.flush);
            set_low_words(registers, destination, active, &narrow(&row, to, rules));
        }
    }
}

/// `.sat` of f64: only there is a limit.
fn limit_f64(row: &[u64; LANES], rules: Rules) -> [u64; LANES] {
    if rules.saturation != Saturation::Unit {
        return *row;
    }
    row.map(|bits| {
        let value = f64::from_bits(bits);
        // Not a number, below zero, and -0 all become +0.
        if value > 0.0 { value.min(1.0).to_bits() } else { 0 }
    })
}

/// A number to e4m3 or e5m2, always limited to the finite numbers.
fn to_byte(value: f64, to: Type, rules: Rules) -> u32 {
    let byte = Format::of(to).encode_finite(value, rules.rounding) as u32;
    if rules.relu && byte & 0x80 != 0 { 0 } else { byte }
}
