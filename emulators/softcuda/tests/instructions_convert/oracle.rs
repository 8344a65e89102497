//! What a conversion must give, found by looking the neighbours of a number up among all values of the format.

use half::{bf16, f16};

/// A rounding modifier of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Round {
    Nearest,
    Away,
    Zero,
    Down,
    Up,
}

pub(crate) const DIRECTED: [(&str, Round); 4] =
    [("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];

pub(crate) const INTEGRAL: [(&str, Round); 4] =
    [("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)];

/// All values of a format from +0 up, with their bits. The last is what follows the largest finite one: infinity stands
/// for it.
pub(crate) struct Table {
    values: Vec<f64>,
    bits: Vec<u64>,
    pub(crate) sign: u64,
    pub(crate) nan: u64,
}

impl Table {
    fn new(finite: usize, sign: u64, nan: u64, step: u64, value: impl Fn(u64) -> f64) -> Self {
        let bits: Vec<u64> = (0..=finite as u64).map(|index| index * step).collect();
        let mut values: Vec<f64> = bits[..finite].iter().map(|bits| value(*bits)).collect();
        values.push(2.0 * values[finite - 1] - values[finite - 2]);
        Self { values, bits, sign, nan }
    }

    pub(crate) fn f16() -> Self {
        Self::new(0x7c00, 0x8000, 0x7fff, 1, |bits| f16::from_bits(bits as u16).to_f64())
    }

    pub(crate) fn bf16() -> Self {
        Self::new(0x7f80, 0x8000, 0x7fff, 1, |bits| bf16::from_bits(bits as u16).to_f64())
    }

    pub(crate) fn tf32() -> Self {
        Self::new(0xff << 10, 1 << 31, 0x7fff_ffff, 1 << 13, |bits| f64::from(f32::from_bits(bits as u32)))
    }

    pub(crate) fn e5m2() -> Self {
        Self::new(0x7c, 0x80, 0x7f, 1, |bits| f16::from_bits((bits as u16) << 8).to_f64())
    }

    pub(crate) fn e4m3() -> Self {
        Self::new(0x7f, 0x80, 0x7f, 1, |bits| {
            let (exponent, fraction) = ((bits >> 3) as i32, (bits & 7) as f64);
            if exponent == 0 { fraction / 512.0 } else { (1.0 + fraction / 8.0) * 2.0_f64.powi(exponent - 7) }
        })
    }

    /// Finite values and the one after them.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    pub(crate) fn largest(&self) -> u64 {
        self.bits[self.bits.len() - 2]
    }

    pub(crate) fn infinity(&self) -> u64 {
        self.bits[self.bits.len() - 1]
    }

    /// The bits of the value that a number is rounded to.
    pub(crate) fn round(&self, number: f64, round: Round) -> u64 {
        if number.is_nan() {
            return self.nan;
        }
        let negative = number.is_sign_negative();
        let sign = if negative { self.sign } else { 0 };
        let magnitude = number.abs();
        let outwards = match round {
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
            Round::Nearest | Round::Away => true,
        };
        let beyond = self.values.len() - 1;
        if magnitude.is_infinite() {
            return sign | self.bits[beyond];
        }
        let low = self.values.partition_point(|value| *value <= magnitude) - 1;
        if low == beyond {
            return sign | self.bits[if outwards { beyond } else { beyond - 1 }];
        }
        if self.values[low] == magnitude {
            return sign | self.bits[low];
        }
        // The middle of two neighbours has one bit more than they have, and f64 has that.
        let middle = self.values[low] / 2.0 + self.values[low + 1] / 2.0;
        let up = match round {
            Round::Nearest => magnitude > middle || magnitude == middle && low % 2 == 1,
            Round::Away => magnitude >= middle,
            _ => outwards,
        };
        sign | self.bits[low + usize::from(up)]
    }
}

/// What an f64 is rounded to in f32.
pub(crate) fn to_f32(number: f64, round: Round) -> u64 {
    if number.is_nan() {
        return 0x7fff_ffff;
    }
    let negative = number.is_sign_negative();
    let sign = u64::from(negative) << 31;
    let magnitude = number.abs();
    if magnitude.is_infinite() {
        return sign | 0x7f80_0000;
    }
    // The f32 next below or equal, by bisection over the bits, which are in the order of the values.
    let value =
        |bits: u64| if bits == 0x7f80_0000 { 2.0_f64.powi(128) } else { f64::from(f32::from_bits(bits as u32)) };
    let (mut low, mut high) = (0_u64, 0x7f80_0000);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if value(middle) <= magnitude { low = middle } else { high = middle - 1 }
    }
    let outwards = match round {
        Round::Zero => false,
        Round::Down => negative,
        Round::Up => !negative,
        _ => true,
    };
    if low == 0x7f80_0000 {
        return sign | if outwards { low } else { low - 1 };
    }
    if value(low) == magnitude {
        return sign | low;
    }
    let middle = value(low) / 2.0 + value(low + 1) / 2.0;
    let up = match round {
        Round::Nearest => magnitude > middle || magnitude == middle && low % 2 == 1,
        Round::Away => magnitude >= middle,
        _ => outwards,
    };
    sign | (low + u64::from(up))
}

/// The integer that a number is rounded to. Numbers beyond 128 bits become the ends of that range.
pub(crate) fn to_integer(number: f64, round: Round) -> i128 {
    let floor = number.floor();
    // Exact: a number with a fraction is below 2^52.
    let fraction = number - floor;
    let low = floor as i128;
    let up = match round {
        Round::Nearest => fraction > 0.5 || fraction == 0.5 && low % 2 != 0,
        Round::Away => fraction > 0.5 || fraction == 0.5 && number > 0.0,
        Round::Zero => fraction > 0.0 && number < 0.0,
        Round::Down => false,
        Round::Up => fraction > 0.0,
    };
    low.saturating_add(i128::from(up))
}

/// An integer type of PTX: name, bits, signed.
pub(crate) const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("u16", 16, false),
    ("u32", 32, false),
    ("u64", 64, false),
    ("s8", 8, true),
    ("s16", 16, true),
    ("s32", 32, true),
    ("s64", 64, true),
];

/// The value nearest to this one that the type has.
pub(crate) fn clamp(value: i128, bits: u32, signed: bool) -> i128 {
    let (low, high) =
        if signed { (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1) } else { (0, (1_i128 << bits) - 1) };
    value.max(low).min(high)
}

/// The value of the low bits, read as this type.
pub(crate) fn read(bits: u64, width: u32, signed: bool) -> i128 {
    let value = i128::from(bits) % (1_i128 << width);
    if signed && value >= 1_i128 << (width - 1) { value - (1_i128 << width) } else { value }
}

/// The low bits of a value, as a register of so many bits holds it.
pub(crate) fn store(value: i128, register: u32) -> u64 {
    (value.rem_euclid(1_i128 << register)) as u64
}
