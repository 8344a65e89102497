//! What the tests with compiled kernels share: the compiler, the device, reproducible data, and rounding.

// Each test binary uses a part of this.
#![allow(dead_code)]

pub(crate) mod compile;
pub(crate) mod device;
pub(crate) mod random;
pub(crate) mod rounding;
