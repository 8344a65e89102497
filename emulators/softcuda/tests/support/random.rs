//! Reproducible test data: splitmix64 with a seed that the test gives.

/// A generator of uniform numbers.
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// All 64-bit patterns alike.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// An integer of `low..=high`.
    pub(crate) fn integer(&mut self, low: i32, high: i32) -> i32 {
        let span = (i64::from(high) - i64::from(low) + 1) as u64;
        (i64::from(low) + (self.bits() % span) as i64) as i32
    }

    /// A number of `low..high`.
    pub(crate) fn real(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.bits() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// `count` integers of `low..=high`.
    pub(crate) fn integers(&mut self, count: usize, low: i32, high: i32) -> Vec<i32> {
        (0..count).map(|_| self.integer(low, high)).collect()
    }

    /// `count` numbers of `low..high`, rounded to f32.
    pub(crate) fn reals(&mut self, count: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count).map(|_| self.real(low, high) as f32).collect()
    }
}
