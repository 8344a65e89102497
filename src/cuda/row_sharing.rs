//! When several blocks share the slices of a row, and when each row is one block's.
//!
//! A block for each row starts fewer blocks, which wait for less. But blocks that are as long as a row end in steps: where rows
//! are few, or few are left after the multiprocessors were full, the rest of the device waits for them. `wave_model.rs` says
//! what that costs.

// Public with the feature alone, for the bench.
#![cfg_attr(not(feature = "tuning"), allow(unreachable_pub))]

/// Which of the two, for a number of rows. No choice changes a bit of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSharing {
    /// From so many waves on rows are whole whatever the last wave is. A wave is the rows that fill the device, one block each.
    pub waves: usize,
    /// Below that, rows are whole where the last wave has so many: in hundredths of a multiprocessor's block. About what fills
    /// the memory's bandwidth.
    pub filling_percent: usize,
    /// Slices of a row that a block walks where rows are not whole.
    pub shared_slices: usize,
}

impl RowSharing {
    /// No row is whole that has more than one slice.
    #[cfg(any(test, feature = "tuning"))]
    pub const ALWAYS: Self = Self { waves: usize::MAX, filling_percent: usize::MAX, shared_slices: 1 };

    /// Every row is whole.
    #[cfg(any(test, feature = "tuning"))]
    pub const NEVER: Self = Self { waves: 0, filling_percent: 0, shared_slices: 1 };

    /// Whether a block walks all of its row. `blocks`: those that a multiprocessor holds at once.
    pub fn walks_whole_rows(&self, rows: usize, multiprocessors: usize, blocks: usize) -> bool {
        let wave = multiprocessors.saturating_mul(blocks).max(1);
        if rows >= wave.saturating_mul(self.waves) {
            return true;
        }
        let last_wave = rows.saturating_sub(1) % wave + 1;
        last_wave.saturating_mul(100) >= multiprocessors.saturating_mul(self.filling_percent)
    }
}
