//! Lanes to f32 and back, by the processor's own f16 conversions where it has them.
//!
//! [`Element`]'s conversions are plain operations that a compiler makes vectors of. For bf16 that is as good as it gets; for
//! f16 it is a dozen operations for each way, where F16C has one instruction for eight lanes.

use crate::element::Element;

/// Lanes in f32.
#[inline(always)]
pub(super) fn widen<T: Element, const FMA: bool, const LANES: usize>(group: &[T; LANES]) -> [f32; LANES] {
    let mut wide = [0.0; LANES];
    #[cfg(target_arch = "x86_64")]
    if FMA && T::DTYPE == crate::element::Dtype::F16 {
        // SAFETY: on x86_64 `FMA` says that this was compiled into a function of an instruction set that was found on this
        // processor, and all of those have F16C.
        unsafe { f16c::widen(bytemuck::cast_slice(group), &mut wide) };
        return wide;
    }
    for lane in 0..LANES {
        wide[lane] = group[lane].to_f32();
    }
    wide
}

/// Lanes of what arithmetic makes of numbers, as [`Element::from_f32_result`].
#[inline(always)]
pub(super) fn narrow<T: Element, const FMA: bool, const LANES: usize>(values: &[f32; LANES]) -> [T; LANES] {
    let mut group = [T::NEG_INFINITY; LANES];
    #[cfg(target_arch = "x86_64")]
    if FMA && T::DTYPE == crate::element::Dtype::F16 {
        // SAFETY: as above.
        unsafe { f16c::narrow(values, bytemuck::cast_slice_mut(&mut group)) };
        return group;
    }
    for lane in 0..LANES {
        group[lane] = T::from_f32_result(values[lane]);
    }
    group
}

#[cfg(target_arch = "x86_64")]
mod f16c {
    use core::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph,
        _mm256_loadu_ps, _mm256_storeu_ps,
    };

    /// # Safety
    /// The processor has F16C.
    #[inline(always)]
    pub(super) unsafe fn widen(group: &[u16], wide: &mut [f32]) {
        let (group, wide) = (group.as_chunks::<8>().0, wide.as_chunks_mut::<8>().0);
        for (group, wide) in group.iter().zip(wide) {
            // SAFETY: the processor has the instructions, as the caller promises; 8 numbers are read and written.
            unsafe { _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(group.as_ptr().cast()))) };
        }
    }

    /// # Safety
    /// The processor has F16C.
    #[inline(always)]
    pub(super) unsafe fn narrow(values: &[f32], group: &mut [u16]) {
        let (values, group) = (values.as_chunks::<8>().0, group.as_chunks_mut::<8>().0);
        for (values, group) in values.iter().zip(group) {
            // SAFETY: as above.
            unsafe {
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(values.as_ptr()));
                _mm_storeu_si128(group.as_mut_ptr().cast(), halves);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{narrow, widen};
    use crate::cpu::InstructionSet;
    use crate::cpu::dispatch::{Available, Kernel};
    use crate::element::Element;
    use half::f16;

    const LANES: usize = 32;

    struct Widen([f16; LANES]);

    impl Kernel for Widen {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<const FMA: bool>(self) -> [f32; LANES] {
            widen::<_, FMA, LANES>(&self.0)
        }
    }

    struct Narrow([f32; LANES]);

    impl Kernel for Narrow {
        type Output = [f16; LANES];

        #[inline(always)]
        fn run<const FMA: bool>(self) -> [f16; LANES] {
            narrow::<_, FMA, LANES>(&self.0)
        }
    }

    fn available() -> impl Iterator<Item = Available> {
        InstructionSet::ALL.into_iter().filter_map(|set| {
            let found = Available::require(set);
            found.inspect_err(|error| println!("NOT RUN: {error}")).ok()
        })
    }

    #[test]
    fn every_half_is_widened_as_by_its_definition() {
        for instructions in available() {
            for first in (0..=u16::MAX).step_by(LANES) {
                let group = std::array::from_fn(|lane| f16::from_bits(first + lane as u16));
                for (half, wide) in group.iter().zip(instructions.run(Widen(group))) {
                    let expected = half.to_f32_const();
                    let good = if half.is_nan() { wide.is_nan() } else { wide.to_bits() == expected.to_bits() };
                    assert!(good, "{:#06x}: {wide:e}, {expected:e} expected", half.to_bits());
                }
            }
        }
    }

    /// Each half, the midpoint above it, and the floats on both sides of either; NaN of all kinds; what overflows, and what is
    /// below the smallest half.
    #[test]
    fn numbers_are_rounded_to_the_nearest_half() {
        let mut values = vec![f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-40, 0.0, 65519.99, 65520.0];
        values.extend([0x7f80_0001, 0x7f80_2000, 0x7fff_ffff].map(f32::from_bits));
        for bits in 0..0x7c00u16 {
            let half = f16::from_bits(bits).to_f32();
            for middle in [half, f32::midpoint(half, f16::from_bits(bits + 1).to_f32())] {
                values.extend([-1i32, 0, 1].map(|step| f32::from_bits(middle.to_bits().saturating_add_signed(step))));
            }
        }
        values.extend(values.clone().iter().map(|value| -value));
        values.resize(values.len().next_multiple_of(LANES), 1.0);
        for instructions in available() {
            for group in values.as_chunks::<LANES>().0 {
                for (value, half) in group.iter().zip(instructions.run(Narrow(*group))) {
                    let expected = f16::from_f32_const(*value);
                    let good = if value.is_nan() { half.is_nan() } else { half.to_bits() == expected.to_bits() };
                    assert!(good, "{value:e}: {half:?}, {expected:?} expected, {:?}", instructions.get());
                    assert_eq!(half.is_nan(), <f16 as Element>::from_f32(*value).is_nan());
                }
            }
        }
    }
}
