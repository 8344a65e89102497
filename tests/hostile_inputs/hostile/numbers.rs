//! Numbers that have broken numerical code.

/// The values of f32 that arithmetic has special cases for, and sizes that overflow when they are scaled or multiplied.
pub(crate) const HOSTILE_F32: [f32; 20] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1.0,
    -1.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    // The smallest and the largest subnormal.
    f32::from_bits(1),
    f32::from_bits(0x007f_ffff),
    // A signalling NaN whose low bits alone say that it is one: bf16 cuts them off.
    f32::from_bits(0xff80_0001),
    100.0,
    -745.0,
    // What samplers write for "impossible".
    -9999.0,
    1e20,
    // Beyond 2^30 in base 2.
    8e8,
    -8e8,
];

/// The same for f64, with sizes at the ends of f32.
pub(crate) const HOSTILE_F64: [f64; 26] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::MAX,
    f64::MIN,
    f64::MIN_POSITIVE,
    -f64::MIN_POSITIVE,
    f64::from_bits(1),
    -f64::from_bits(1),
    f64::from_bits(0x000f_ffff_ffff_ffff),
    f32::MAX as f64,
    f32::MIN as f64,
    1e-45,
    1e-30,
    1e30,
    1e-200,
    1e200,
    1e308,
    -1e308,
    100.0,
    -745.5,
    // The largest number below ½.
    0.499_999_999_999_999_94,
];

/// Sizes at the ends of what is counted in 31, 32, 63 and 64 bits, and such that products wrap to small numbers.
pub(crate) const HOSTILE_SIZES: [usize; 16] = [
    0,
    1,
    2,
    3,
    1 << 16,
    i32::MAX as usize,
    i32::MAX as usize + 1,
    u32::MAX as usize,
    1 << 32,
    1 << 55,
    1 << 62,
    isize::MAX as usize,
    1 << 63,
    usize::MAX / 3 + 1,
    usize::MAX - 1,
    usize::MAX,
];
