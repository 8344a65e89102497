//! The number types that logits come in: `f32`, `f16` and `bf16`.

use half::{bf16, f16};

/// The type of a logit, and of its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// What a buffer holds: a number, or a fixed row of numbers, that any memory can hold bit by bit.
pub trait Number: bytemuck::Pod + std::fmt::Debug + Default + PartialEq + Send + Sync {}

impl<T: bytemuck::Pod + std::fmt::Debug + Default + PartialEq + Send + Sync> Number for T {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that logits can have. Implemented by `f32`, [`half::f16`] and [`half::bf16`], and by nothing else.
///
/// All arithmetic is done in `f32` or wider; these two conversions are the only contact with the narrow types. They
/// are plain integer and float operations, without a table, a branch or a call, so that the compiler can put eight or
/// sixteen of them into one vector register.
pub trait Element: sealed::Sealed + Number {
    /// Which type this is.
    const DTYPE: Dtype;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Not a number.
    const NAN: Self;
    /// Distance from 1 to the next larger number, halved: the largest relative error of one rounding.
    const UNIT_ROUNDOFF: f64;
    /// The smallest positive number, subnormals included.
    const SMALLEST: f64;

    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even; overflow gives an infinity; NaN stays NaN.
    fn from_f32(value: f32) -> Self;

    /// As [`from_f32`](Self::from_f32), for what arithmetic makes of numbers: its NaN has no low bits set, so that bf16
    /// need not look for it, which is a fifth of the time of a backward pass on AVX2.
    #[inline(always)]
    fn from_f32_result(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const NAN: Self = f32::NAN;
    const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;
    const SMALLEST: f64 = 1.401_298_464_324_817e-45;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    const NEG_INFINITY: Self = bf16::NEG_INFINITY;
    const NAN: Self = bf16::NAN;
    const UNIT_ROUNDOFF: f64 = 1.0 / 256.0;
    const SMALLEST: f64 = 9.183_549_615_799_121e-41;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        // A NaN with its low bits set would round up to -0 or to an infinity.
        if value.is_nan() {
            bf16::from_bits((value.to_bits() >> 16) as u16 | 0x0040)
        } else {
            Self::from_f32_result(value)
        }
    }

    #[inline(always)]
    fn from_f32_result(value: f32) -> Self {
        let bits = value.to_bits();
        // Half of the last place kept, less one where that place is even: ties go to even.
        bf16::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    const NEG_INFINITY: Self = f16::NEG_INFINITY;
    const NAN: Self = f16::NAN;
    const UNIT_ROUNDOFF: f64 = 1.0 / 2048.0;
    const SMALLEST: f64 = 5.960_464_477_539_063e-8;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = (bits & 0x7fff) << 13;
        // Exponents: 15 is f16's bias, 127 f32's; all ones stay all ones.
        let normal = magnitude + ((127 - 15) << 23);
        let special = magnitude + ((255 - 31) << 23);
        // A subnormal: put its bits below a power of two and take the power away again, which is exact.
        let lowest_normal = f32::from_bits((127 - 15 + 1) << 23);
        let subnormal = (f32::from_bits(magnitude + ((127 - 15 + 1) << 23)) - lowest_normal).to_bits();
        let wide = if magnitude < (1 << 23) { subnormal } else { normal };
        let wide = if magnitude >= (31 << 23) { special } else { wide };
        f32::from_bits(wide | sign)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Normal range: move the exponent to f16's bias, add half of the last place kept (less one where it is even).
        let rounded = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0x0fff + ((magnitude >> 13) & 1)) >> 13;
        // Below 2^-14: next to 0.5 the floats are 2^-24 apart, as f16's subnormals are, so the adder does the rounding.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let narrow = if magnitude < ((127 - 14) << 23) { subnormal } else { rounded };
        // 65520 and above round to infinity.
        let narrow = if magnitude >= 0x477f_f000 { 0x7c00 } else { narrow };
        let narrow = if magnitude > 0x7f80_0000 { 0x7e00 } else { narrow };
        f16::from_bits((narrow | sign) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_half() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            let (wide_h, wide_b) = (Element::to_f32(h), Element::to_f32(b));
            assert!(wide_h.to_bits() == h.to_f32().to_bits() || (wide_h.is_nan() && h.is_nan()), "f16 {bits:#06x}");
            assert!(wide_b.to_bits() == b.to_f32().to_bits() || (wide_b.is_nan() && b.is_nan()), "bf16 {bits:#06x}");
        }
    }

    #[test]
    fn narrowing_agrees_with_half_at_every_boundary() {
        // Each half, the midpoint above it, and the floats on both sides of either.
        for bits in 0..=u16::MAX {
            let wide_f16 = f16::from_bits(bits).to_f32();
            let middle_f16 = f32::midpoint(wide_f16, f16::from_bits(bits.wrapping_add(1)).to_f32());
            let wide_bf16 = bf16::from_bits(bits).to_f32();
            let middle_bf16 = f32::from_bits((u32::from(bits) << 16) | 0x8000);
            for value in [wide_f16, middle_f16, wide_bf16, middle_bf16] {
                for step in [-1i32, 0, 1] {
                    let value = f32::from_bits(value.to_bits().wrapping_add_signed(step));
                    let (h, b) = (<f16 as Element>::from_f32(value), <bf16 as Element>::from_f32(value));
                    if value.is_nan() {
                        assert!(h.is_nan() && b.is_nan(), "{value}");
                        let result = f32::from_bits(value.to_bits() & 0xffff_0000 | 0x0040_0000);
                        assert!(<f16 as Element>::from_f32_result(result).is_nan(), "{result}");
                        assert!(<bf16 as Element>::from_f32_result(result).is_nan(), "{result}");
                    } else {
                        assert_eq!(<f16 as Element>::from_f32_result(value), h, "{value:e}");
                        assert_eq!(<bf16 as Element>::from_f32_result(value), b, "{value:e}");
                        assert_eq!(h.to_bits(), f16::from_f32(value).to_bits(), "f16 of {value:e}");
                        assert_eq!(b.to_bits(), bf16::from_f32(value).to_bits(), "bf16 of {value:e}");
                    }
                }
            }
        }
    }
}
