//! The bits of f16 and bf16, as numbers and back, without branches.

use crate::ptx::decode::half::Format;

/// The NaN that every operation gives.
pub(in super::super) const NAN: u32 = 0x7fff;
/// The sign bit.
pub(in super::super) const SIGN: u32 = 1 << 15;

/// The bits of plus infinity.
#[inline(always)]
pub(in super::super) const fn infinity(format: Format) -> u32 {
    match format {
        Format::F16 => 0x7c00,
        Format::Bf16 => 0x7f80,
    }
}

/// The bits of one.
#[inline(always)]
pub(in super::super) const fn one(format: Format) -> u32 {
    match format {
        Format::F16 => 0x3c00,
        Format::Bf16 => 0x3f80,
    }
}

/// Subnormal numbers to zero of the same sign.
#[inline(always)]
pub(in super::super) fn flush(format: Format, bits: u32) -> u32 {
    if bits & infinity(format) == 0 { bits & SIGN } else { bits }
}

/// The number that these 16 bits (upper bits zero) are; exact.
#[inline(always)]
pub(in super::super) fn decode(format: Format, bits: u32) -> f32 {
    match format {
        Format::Bf16 => f32::from_bits(bits << 16),
        Format::F16 => {
            // The exponent and fraction in f32's places are the number times 2^-112, for subnormal ones too.
            const SCALE: f32 = f32::from_bits((127 + 112) << 23);
            let magnitude = bits & !SIGN;
            let scaled = (f32::from_bits(magnitude << 13) * SCALE).to_bits();
            let special = magnitude << 13 | 0xff << 23;
            f32::from_bits((if magnitude >= 0x7c00 { special } else { scaled }) | (bits & SIGN) << 16)
        }
    }
}

/// The bits of the nearest number of the format, ties to even.
#[inline(always)]
pub(in super::super) fn encode(format: Format, value: f64) -> u32 {
    const EXPONENT: u64 = 0x7ff << 52;
    let (fraction_bits, least_exponent) = match format {
        Format::F16 => (10, -14),
        Format::Bf16 => (7, -126),
    };
    // Adding 1.5 units of the place that is 52 bits above the last one of the format, in the value's binade, leaves
    // the value rounded to that last place. The exponents of infinity and NaN wrap around, which is harmless: they
    // absorb what is added.
    let binade = (value.to_bits() & EXPONENT).max(((1023 + least_exponent) as u64) << 52);
    let shift = 1.5 * f64::from_bits(binade.wrapping_add((52 - fraction_bits) << 52));
    let rounded = (value + shift) - shift;
    let sign = (value.to_bits() >> 48) as u32 & SIGN;
    let magnitude = rounded.abs();
    let bits = match format {
        // Exact, or infinity.
        Format::Bf16 => (magnitude as f32).to_bits() >> 16,
        Format::F16 => {
            let normal = (magnitude.to_bits().wrapping_sub((1023 - 15) << 52) >> 42) as u32;
            let subnormal = (magnitude * (1 << 24) as f64) as u32;
            let finite = if magnitude < 1.0 / (1 << 14) as f64 { subnormal } else { normal };
            if magnitude >= 65536.0 { infinity(format) } else { finite }
        }
    };
    if value.is_nan() { NAN } else { bits | sign }
}
