//! Output buffers that show every write.

use exo_kernels::{GroupStatistics, SoftmaxState};
use half::{bf16, f16};

/// A number, or a few, that can be told from what was there before.
pub(crate) trait Sentinel: Copy + std::fmt::Debug {
    /// What is there before a call; no call writes it.
    fn sentinel() -> Self;
    fn same(&self, other: &Self) -> bool;
}

macro_rules! floats {
    ($($number:ty => $bits:literal),*) => {$(
        impl Sentinel for $number {
            /// A NaN with a payload: whoever reads it instead of writing it shows too.
            fn sentinel() -> Self {
                <$number>::from_bits($bits)
            }

            fn same(&self, other: &Self) -> bool {
                self.to_bits() == other.to_bits()
            }
        }
    )*};
}

floats!(f32 => 0x7fc5_a5a5, f64 => 0x7ff8_5a5a_5a5a_5a5a, f16 => 0x7e5a, bf16 => 0x7fda);

macro_rules! integers {
    ($($number:ty => $value:literal),*) => {$(
        impl Sentinel for $number {
            fn sentinel() -> Self {
                $value
            }

            fn same(&self, other: &Self) -> bool {
                self == other
            }
        }
    )*};
}

integers!(i32 => -777_777_777, u32 => 0xd1a4_1c0f);

impl Sentinel for SoftmaxState {
    fn sentinel() -> Self {
        Self { r: f32::sentinel(), s: f32::sentinel() }
    }

    fn same(&self, other: &Self) -> bool {
        self.r.same(&other.r) && self.s.same(&other.s)
    }
}

impl Sentinel for GroupStatistics {
    fn sentinel() -> Self {
        Self::new(-777.0, 1e300, 0.0, false)
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

/// A buffer between two guard zones.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<T> {
    data: Vec<T>,
    before: Vec<T>,
}

/// Elements before and behind the buffer.
const ZONE: usize = 3;

impl<T: Sentinel> Guarded<T> {
    /// `length` sentinels.
    pub(crate) fn new(length: usize) -> Self {
        Self::holding(&vec![T::sentinel(); length])
    }

    /// A buffer that holds something that is added to or overwritten.
    pub(crate) fn holding(content: &[T]) -> Self {
        let mut data = vec![T::sentinel(); ZONE];
        data.extend_from_slice(content);
        data.extend_from_slice(&[T::sentinel(); ZONE]);
        Self { before: data.clone(), data }
    }

    /// Everything, zones and all, and where the buffer begins and ends in it: for a copy elsewhere.
    pub(crate) fn whole(&self) -> (&[T], std::ops::Range<usize>) {
        (&self.data, ZONE..self.data.len() - ZONE)
    }

    /// What became of that copy.
    pub(crate) fn replace(&mut self, whole: Vec<T>) {
        assert_eq!(whole.len(), self.data.len());
        self.data = whole;
    }

    pub(crate) fn get(&self) -> &[T] {
        &self.data[ZONE..self.data.len() - ZONE]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [T] {
        let end = self.data.len() - ZONE;
        &mut self.data[ZONE..end]
    }

    /// What it held at first.
    pub(crate) fn before(&self) -> &[T] {
        &self.before[ZONE..self.before.len() - ZONE]
    }

    /// Asserts that nothing was written.
    pub(crate) fn untouched(&self, what: &str) {
        self.untouched_but(what, |_| false);
    }

    /// Asserts that nothing was written but elements that `written` names.
    pub(crate) fn untouched_but(&self, what: &str, written: impl Fn(usize) -> bool) {
        for (index, (now, before)) in self.data.iter().zip(&self.before).enumerate() {
            let inside = index >= ZONE && index < self.data.len() - ZONE && written(index - ZONE);
            assert!(
                inside || now.same(before),
                "{what}: element {} of {} was written: {before:?} became {now:?}",
                index as isize - ZONE as isize,
                self.data.len() - 2 * ZONE
            );
        }
    }

    /// As [`untouched_but`](Self::untouched_but) for rows of `columns` elements, `stride` apart.
    pub(crate) fn untouched_between_rows(&self, what: &str, columns: usize, stride: usize) {
        self.untouched_but(what, |index| stride == 0 || index % stride < columns);
    }

    /// Asserts that every element of rows of `columns` elements, `stride` apart, was written.
    pub(crate) fn rows_written(&self, what: &str, rows: usize, columns: usize, stride: usize) {
        for row in 0..rows {
            for (column, value) in self.get()[row * stride..][..columns].iter().enumerate() {
                assert!(!value.same(&T::sentinel()), "{what}: element {column} of row {row} was not written");
            }
        }
    }

    /// Asserts that every element was written.
    pub(crate) fn written(&self, what: &str) {
        self.rows_written(what, 1, self.get().len(), 0);
    }

    /// Takes what there is now for what was there before.
    pub(crate) fn settle(&mut self) {
        self.before.clone_from(&self.data);
    }
}

/// Asserts for a list of buffers that nothing was written.
macro_rules! untouched {
    ($($buffer:expr),* $(,)?) => {$(
        $buffer.untouched(stringify!($buffer));
    )*};
}
pub(crate) use untouched;
