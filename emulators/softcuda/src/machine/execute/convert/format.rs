//! Binary floating-point formats, and the one place where any number is rounded to any of them.
//!
//! The arithmetic is on integers, one number at a time: `lanes` has faster ways for the conversions that kernels are
//! full of.

use crate::ptx::types::{Rounding, Type};

/// A format of sign, biased exponent and fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
    /// Zero bits below the fraction in a register: tf32 is kept like an f32.
    padding: u32,
    /// Whether the highest exponent means infinities and NaN. Without them (e4m3) it is an exponent like any other, and
    /// only all ones is NaN.
    has_infinity: bool,
    /// The NaN that results are.
    nan: u64,
}

const fn ieee(exponent_bits: u32, fraction_bits: u32, padding: u32, nan: u64) -> Format {
    Format { exponent_bits, fraction_bits, padding, has_infinity: true, nan }
}

/// f16.
pub const F16: Format = ieee(5, 10, 0, 0x7fff);
/// bf16.
pub const BF16: Format = ieee(8, 7, 0, 0x7fff);
/// tf32, in the upper 19 bits of a word.
pub const TF32: Format = ieee(8, 10, 13, 0x7fff_ffff);
/// f32.
pub const F32: Format = ieee(8, 23, 0, 0x7fff_ffff);
/// f64.
pub const F64: Format = ieee(11, 52, 0, 0x7fff_ffff_ffff_ffff);
/// e5m2.
pub const E5M2: Format = ieee(5, 2, 0, 0x7f);
/// e4m3.
pub const E4M3: Format = Format { exponent_bits: 4, fraction_bits: 3, padding: 0, has_infinity: false, nan: 0x7f };

impl Format {
    /// The format of a type, or of the halves of a packed one.
    pub fn of(ty: Type) -> &'static Self {
        match ty {
            Type::F16 | Type::F16x2 => &F16,
            Type::Bf16 | Type::Bf16x2 => &BF16,
            Type::Tf32 => &TF32,
            Type::E4m3 | Type::E4m3x2 => &E4M3,
            Type::E5m2 | Type::E5m2x2 => &E5M2,
            Type::F64 => &F64,
            _ => &F32,
        }
    }

    fn bias(&self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// The sign bit of an encoded number.
    pub fn sign(&self) -> u64 {
        1 << (self.exponent_bits + self.fraction_bits + self.padding)
    }

    /// The encoding of +infinity; of NaN where there is none, as it is what lies beyond the finite numbers there.
    pub fn infinity(&self) -> u64 {
        if !self.has_infinity {
            return self.nan;
        }
        ((1 << self.exponent_bits) - 1) << (self.fraction_bits + self.padding)
    }

    /// The encoding of the largest finite number.
    pub fn largest(&self) -> u64 {
        self.infinity() - (1 << self.padding)
    }

    /// The encoding of 1.
    pub fn one(&self) -> u64 {
        (self.bias() as u64) << (self.fraction_bits + self.padding)
    }

    /// The NaN that results are.
    pub fn nan(&self) -> u64 {
        self.nan
    }

    /// Rounds `significand * 2^exponent`, negated if asked for, and encodes it.
    pub fn round(&self, negative: bool, significand: u64, exponent: i32, rounding: Rounding) -> u64 {
        let sign = if negative { self.sign() } else { 0 };
        if significand == 0 {
            return sign;
        }
        let lowest = 1 - self.bias();
        let scale = (63 - significand.leading_zeros() as i32 + exponent).max(lowest);
        // The result is a multiple of 2^unit; below the lowest normal number the unit stays what it is there.
        let unit = scale - self.fraction_bits as i32;
        let dropped = unit - exponent;
        let kept = if dropped <= 0 {
            significand << -dropped
        } else {
            // Beyond 100 dropped bits nothing is left and less than half is lost.
            let dropped = dropped.min(100) as u32;
            let wide = u128::from(significand);
            let (kept, rest, half) = (wide >> dropped, wide & ((1 << dropped) - 1), 1_u128 << (dropped - 1));
            let away = match rounding {
                Rounding::NearestEven => rest > half || rest == half && kept & 1 == 1,
                Rounding::NearestAway => rest >= half,
                Rounding::Zero => false,
                Rounding::Down => negative && rest > 0,
                Rounding::Up => !negative && rest > 0,
            };
            kept as u64 + u64::from(away)
        };
        // A normal number's leading bit adds one to the exponent field, and so does a carry out of the rounding.
        let magnitude = (((scale - lowest) as u64) << self.fraction_bits).wrapping_add(kept) << self.padding;
        if magnitude > self.largest() {
            return self.overflow(negative, rounding);
        }
        sign | magnitude
    }

    fn overflow(&self, negative: bool, rounding: Rounding) -> u64 {
        let sign = if negative { self.sign() } else { 0 };
        let stays_finite = match rounding {
            Rounding::NearestEven | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        sign | if stays_finite { self.largest() } else { self.infinity() }
    }

    /// Rounds a number to this format and encodes it. Where there is no infinity, the caller limits to the finite
    /// numbers.
    pub fn encode(&self, value: f64, rounding: Rounding) -> u64 {
        let bits = value.to_bits();
        let negative = value.is_sign_negative();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        match field {
            0x7ff if fraction != 0 => self.nan,
            0x7ff => self.infinity() | if negative { self.sign() } else { 0 },
            0 => self.round(negative, fraction, -1074, rounding),
            _ => self.round(negative, fraction | 1 << 52, field - 1075, rounding),
        }
    }

    /// As [`Format::encode`], with what is too large or infinite becoming the largest finite number.
    pub fn encode_finite(&self, value: f64, rounding: Rounding) -> u64 {
        let encoded = self.encode(value, rounding);
        if value.is_nan() || encoded & (self.sign() - 1) <= self.largest() {
            return encoded;
        }
        encoded & self.sign() | self.largest()
    }

    /// The number that is encoded so: exact, as f64 contains all of these formats.
    pub fn decode(&self, bits: u64) -> f64 {
        if self.fraction_bits == 52 {
            return f64::from_bits(bits);
        }
        let magnitude = (bits & (self.sign() - 1)) >> self.padding;
        let field = (magnitude >> self.fraction_bits) as i32;
        let fraction = magnitude & ((1 << self.fraction_bits) - 1);
        let ones = (1 << self.exponent_bits) - 1;
        let power = |exponent: i32| f64::from_bits(((exponent + 1023) as u64) << 52);
        let value = if field == ones && self.has_infinity {
            if fraction == 0 { f64::INFINITY } else { f64::NAN }
        } else if !self.has_infinity && magnitude == self.nan {
            f64::NAN
        } else {
            let significand = if field == 0 { fraction } else { fraction | 1 << self.fraction_bits };
            significand as f64 * power(field.max(1) - self.bias() - self.fraction_bits as i32)
        };
        if bits & self.sign() == 0 { value } else { -value }
    }
}
