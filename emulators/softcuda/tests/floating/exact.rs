//! Rounding by its definition, in integers: which number of a format is nearest to, or next below, an exact value,
//! given only a way to compare that value with a dyadic number.

use std::cmp::Ordering;

/// An IEEE binary format in the low bits of a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Bits of the exponent.
    pub(crate) exponent_bits: u32,
    /// Bits of the fraction.
    pub(crate) fraction_bits: u32,
    /// The bits of the NaN that instructions give.
    pub(crate) nan: u64,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, fraction_bits: 10, nan: 0x7fff };
pub(crate) const BF16: Format = Format { exponent_bits: 8, fraction_bits: 7, nan: 0x7fff };
pub(crate) const F32: Format = Format { exponent_bits: 8, fraction_bits: 23, nan: 0x7fff_ffff };
pub(crate) const F64: Format = Format { exponent_bits: 11, fraction_bits: 52, nan: 0x7ff8_0000_0000_0000 };

impl Format {
    pub(crate) fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.fraction_bits)
    }

    pub(crate) fn infinity(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.fraction_bits
    }

    pub(crate) fn one(self) -> u64 {
        ((1 << (self.exponent_bits - 1)) - 1) << self.fraction_bits
    }

    pub(crate) fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign() > self.infinity()
    }

    pub(crate) fn is_infinite(self, bits: u64) -> bool {
        bits & !self.sign() == self.infinity()
    }

    pub(crate) fn is_zero(self, bits: u64) -> bool {
        bits & !self.sign() == 0
    }

    pub(crate) fn is_negative(self, bits: u64) -> bool {
        bits & self.sign() != 0
    }

    /// Subnormal numbers to zero, the sign kept.
    pub(crate) fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// The value of a number; that of the bits of infinity is the power of two after the greatest number.
    pub(crate) fn value(self, bits: u64) -> Dyadic {
        let magnitude = bits & !self.sign();
        let field = (magnitude >> self.fraction_bits) as i32;
        let fraction = (magnitude & ((1 << self.fraction_bits) - 1)) as i128;
        let hidden = if field == 0 { 0 } else { 1 << self.fraction_bits };
        let bias = (1 << (self.exponent_bits - 1)) - 1 + self.fraction_bits as i32;
        let integer = fraction + hidden;
        Dyadic { integer: if self.is_negative(bits) { -integer } else { integer }, exponent: field.max(1) - bias }
    }
}

/// `integer * 2^exponent`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dyadic {
    pub(crate) integer: i128,
    pub(crate) exponent: i32,
}

impl Dyadic {
    pub(crate) fn negated(self) -> Self {
        Self { integer: -self.integer, ..self }
    }

    /// The exact product; the integers have 63 bits at most.
    pub(crate) fn times(self, other: Self) -> Self {
        Self { integer: self.integer * other.integer, exponent: self.exponent + other.exponent }
    }
}

/// The sign of a sum, as its comparison with zero.
pub(crate) fn sign_of_sum(terms: &[Dyadic]) -> Ordering {
    let terms = || terms.iter().filter(|term| term.integer != 0);
    let Some(least) = terms().map(|term| term.exponent).min() else { return Ordering::Equal };
    let greatest = terms().map(|term| term.exponent).max().unwrap_or(least);
    let span = greatest - least;
    // Room for the sum of a few shifted terms: the common case.
    if terms().all(|term| (term.integer.unsigned_abs().leading_zeros() as i32) > span + 4) {
        return terms().map(|term| term.integer << (term.exponent - least)).sum::<i128>().cmp(&0);
    }
    // Two big integers of 32-bit limbs: what is above zero, and what is below.
    let limbs = span as usize / 32 + 7;
    let mut sums = [vec![0u32; limbs], vec![0u32; limbs]];
    for term in terms() {
        let shift = (term.exponent - least) as u32;
        let sum = &mut sums[usize::from(term.integer < 0)];
        let magnitude = term.integer.unsigned_abs();
        let mut carry = 0u64;
        for place in 0..limbs - shift as usize / 32 {
            // The 32 bits of the shifted magnitude that belong to this limb.
            let start = place as i32 * 32 - (shift % 32) as i32;
            let part = match start {
                128.. => 0,
                0..128 => (magnitude >> start) as u32,
                _ => (magnitude << -start) as u32,
            };
            let limb = &mut sum[place + shift as usize / 32];
            carry += u64::from(*limb) + u64::from(part);
            *limb = carry as u32;
            carry >>= 32;
        }
        assert_eq!(carry, 0);
    }
    sums[0].iter().rev().cmp(sums[1].iter().rev())
}

/// A direction of rounding, by the modifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Rn,
    Rz,
    Rm,
    Rp,
}

pub(crate) const MODES: [(&str, Mode); 4] = [("rn", Mode::Rn), ("rz", Mode::Rz), ("rm", Mode::Rm), ("rp", Mode::Rp)];

/// The bits of the rounded value, which is not zero. `compare` says how the exact value relates to a number.
pub(crate) fn round(format: Format, mode: Mode, compare: impl Fn(Dyadic) -> Ordering) -> u64 {
    let negative = match compare(Dyadic { integer: 0, exponent: 0 }) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => panic!("the sign of an exact zero is a rule of its own"),
    };
    // How the exact magnitude relates to a number.
    let compare = |number: Dyadic| if negative { compare(number.negated()).reverse() } else { compare(number) };
    // The greatest number not above the magnitude; infinity if the magnitude is at least the power of two after the
    // greatest number.
    let (mut low, mut high) = (0, format.infinity() + 1);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if compare(format.value(middle)) == Ordering::Less { high = middle } else { low = middle }
    }
    let is_exact = low < format.infinity() && compare(format.value(low)) == Ordering::Equal;
    let greatest = format.infinity() - 1;
    let magnitude = match mode {
        _ if is_exact => low,
        Mode::Rn if low > greatest => format.infinity(),
        Mode::Rn => {
            let number = format.value(low);
            // Halfway to the next number, which has the same unit.
            match compare(Dyadic { integer: 2 * number.integer + 1, exponent: number.exponent - 1 }) {
                Ordering::Less => low,
                Ordering::Greater => low + 1,
                Ordering::Equal => low + (low & 1),
            }
        }
        Mode::Rz => low.min(greatest),
        Mode::Rm if !negative => low.min(greatest),
        Mode::Rp if negative => low.min(greatest),
        Mode::Rm | Mode::Rp => (low + 1).min(format.infinity()),
    };
    if negative { magnitude | format.sign() } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_sums_with_far_apart_terms() {
        let dyadic = |integer, exponent| Dyadic { integer, exponent };
        assert_eq!(sign_of_sum(&[dyadic(1, 200), dyadic(-1, 200), dyadic(-1, -700)]), Ordering::Less);
        assert_eq!(sign_of_sum(&[dyadic(1, 3), dyadic(-8, 0)]), Ordering::Equal);
        assert_eq!(sign_of_sum(&[dyadic(-(1 << 120), 1), dyadic(1 << 121, 0), dyadic(1, 0)]), Ordering::Greater);
    }

    #[test]
    fn thirds_round_as_the_host_and_the_definition_say() {
        // One third: compare by multiplying with three.
        let third = |number: Dyadic| {
            sign_of_sum(&[Dyadic { integer: 1, exponent: 0 }, number.times(Dyadic { integer: -3, exponent: 0 })])
        };
        assert_eq!(round(F64, Mode::Rn, third), (1f64 / 3.0).to_bits());
        assert_eq!(round(F32, Mode::Rn, third), u64::from((1f32 / 3.0).to_bits()));
        assert_eq!(round(F32, Mode::Rz, third), 0x3eaa_aaaa);
        assert_eq!(round(F32, Mode::Rm, third), 0x3eaa_aaaa);
        assert_eq!(round(F32, Mode::Rp, third), 0x3eaa_aaab);
        assert_eq!(round(F16, Mode::Rn, third), 0x3555);
        assert_eq!(round(BF16, Mode::Rn, third), 0x3eab);
    }
}
