//! Loops over the lanes, and the bit patterns that all operations share.
//!
//! Everything here is inlined into the two copies of the executors, so that the loops use the vectors of the copy.

use crate::machine::registers::LANES;

/// The NaN that every f32 operation gives.
pub(in super::super) const NAN: u32 = 0x7fff_ffff;
/// The NaN that every f64 operation gives. The manual leaves the payload open.
pub(in super::super) const NAN_DOUBLE: u64 = 0x7ff8_0000_0000_0000;
/// The sign bit of f32.
pub(in super::super) const SIGN: u32 = 1 << 31;
/// The sign bit of f64.
pub(in super::super) const SIGN_DOUBLE: u64 = 1 << 63;

/// Whether this machine has the features of the second copy of the executors.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(in super::super) fn has_vectors() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// `f` of every lane.
#[inline(always)]
pub(in super::super) fn map<A: Copy, R: Copy + Default>(a: &[A; LANES], f: impl Fn(A) -> R) -> [R; LANES] {
    let mut result = [R::default(); LANES];
    for lane in 0..LANES {
        result[lane] = f(a[lane]);
    }
    result
}

/// `f` of every pair of lanes.
#[inline(always)]
pub(in super::super) fn zip<A: Copy, B: Copy, R: Copy + Default>(
    a: &[A; LANES],
    b: &[B; LANES],
    f: impl Fn(A, B) -> R,
) -> [R; LANES] {
    let mut result = [R::default(); LANES];
    for lane in 0..LANES {
        result[lane] = f(a[lane], b[lane]);
    }
    result
}

/// `f` of every triple of lanes.
#[inline(always)]
pub(in super::super) fn zip3<A: Copy, R: Copy + Default>(
    a: &[A; LANES],
    b: &[A; LANES],
    c: &[A; LANES],
    f: impl Fn(A, A, A) -> R,
) -> [R; LANES] {
    let mut result = [R::default(); LANES];
    for lane in 0..LANES {
        result[lane] = f(a[lane], b[lane], c[lane]);
    }
    result
}

/// Subnormal f32 to zero of the same sign.
#[inline(always)]
pub(in super::super) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & SIGN } else { bits }
}

/// f32 clamped to [0, 1]; NaN and both zeros give plus zero.
#[inline(always)]
pub(in super::super) fn saturate(value: f32) -> f32 {
    // A comparison with NaN is false.
    let positive = if value > 0.0 { value } else { 0.0 };
    if positive > 1.0 { 1.0 } else { positive }
}

/// The bits of an f32 result, with the one NaN.
#[inline(always)]
pub(in super::super) fn bits(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

/// The bits of an f64 result, with the one NaN.
#[inline(always)]
pub(in super::super) fn bits_double(value: f64) -> u64 {
    if value.is_nan() { NAN_DOUBLE } else { value.to_bits() }
}

/// The error of an addition: `a + b` is exactly `sum` and this (Knuth), where nothing overflows.
#[inline(always)]
pub(in super::super) fn addition_error(a: f64, b: f64, sum: f64) -> f64 {
    let from_a = sum - b;
    (a - from_a) + (b - (sum - from_a))
}
