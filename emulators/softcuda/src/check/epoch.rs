//! Who and when: the stamp of an access.

const CLOCK_BITS: u32 = 26;
const THREAD_BITS: u32 = 10;
pub(super) const BLOCK_BITS: u32 = 28;
pub(super) const LATEST: u32 = (1 << CLOCK_BITS) - 1;
pub(super) const BLOCK_MASK: u32 = (1 << BLOCK_BITS) - 1;

/// A point in the life of a thread: its block's linear index, its linear index in the block, its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// No thread at no time.
    pub const NONE: Self = Self(0);

    pub(super) fn new(block: u32, thread: u32, clock: u32) -> Self {
        let block = u64::from(block & BLOCK_MASK);
        Self(((block << THREAD_BITS) | u64::from(thread)) << CLOCK_BITS | u64::from(clock))
    }

    /// The same thread, which is at clock 0 here, at another clock.
    #[inline]
    pub(super) fn at(self, clock: u32) -> Self {
        Self(self.0 | u64::from(clock))
    }

    /// Whether this is [`Epoch::NONE`].
    #[inline]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The block's linear index in the grid (its low 28 bits).
    #[inline]
    pub fn block(self) -> u32 {
        (self.0 >> (CLOCK_BITS + THREAD_BITS)) as u32
    }

    /// The thread's linear index in the block.
    #[inline]
    pub fn thread(self) -> u32 {
        (self.0 >> CLOCK_BITS) as u32 & ((1 << THREAD_BITS) - 1)
    }

    /// The clock.
    #[inline]
    pub fn clock(self) -> u32 {
        self.0 as u32 & LATEST
    }

    /// Whether both are of the same thread.
    #[inline]
    pub fn is_same_thread(self, other: Self) -> bool {
        (self.0 ^ other.0) >> CLOCK_BITS == 0
    }

    /// Whether both are of the same warp of the same block.
    #[inline]
    pub fn is_same_warp(self, other: Self) -> bool {
        (self.0 ^ other.0) >> (CLOCK_BITS + 5) == 0
    }

    /// The same clock with the first thread of the warp.
    #[inline]
    #[must_use]
    pub fn of_warp(self) -> Self {
        Self(self.0 & !(31 << CLOCK_BITS))
    }

    /// The same clock with another lane of the warp, of whose first thread this is.
    #[inline]
    #[must_use]
    pub(super) fn of_lane(self, lane: u32) -> Self {
        Self(self.0 | u64::from(lane) << CLOCK_BITS)
    }

    /// The lane in the warp, from 0.
    #[inline]
    pub fn lane(self) -> u32 {
        (self.0 >> CLOCK_BITS) as u32 & 31
    }
}
