//! What the device finds wrong with its inputs.

use crate::cuda::raw::passed_by_value;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// What the device has found wrong, or odd, since the word was cleared: counts, and the lowest index of each kind. Held as
/// the kernels write it: zeros when nothing was found, an index as its complement (`kernels/include/status.cuh`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Status {
    non_finite_rows: u32,
    first_non_finite_row: u32,
    bad_targets: u32,
    first_bad_target_row: u32,
    non_finite_references: u32,
    first_non_finite_reference_sequence: u32,
    minus_infinite_targets: u32,
    first_bad_reward_sequence: u32,
    unplaced_rows: u32,
    bad_row_inputs: u32,
    first_bad_row_input: u32,
    withheld_rows: u32,
    first_withheld_row: u32,
}

passed_by_value!(Status);

/// The index of a word's complement; 0 is none.
pub(crate) fn first(complement: u32) -> Option<usize> {
    (complement != 0).then_some(!complement as usize)
}

impl Status {
    /// Nothing found.
    pub const CLEAR: Self = Self {
        non_finite_rows: 0,
        first_non_finite_row: 0,
        bad_targets: 0,
        first_bad_target_row: 0,
        non_finite_references: 0,
        first_non_finite_reference_sequence: 0,
        minus_infinite_targets: 0,
        first_bad_reward_sequence: 0,
        unplaced_rows: 0,
        bad_row_inputs: 0,
        first_bad_row_input: 0,
        withheld_rows: 0,
        first_withheld_row: 0,
    };

    /// Rows without a softmax ([`Error::NonFiniteRow`]).
    pub fn non_finite_rows(&self) -> usize {
        self.non_finite_rows as usize
    }

    /// The first of them.
    pub fn first_non_finite_row(&self) -> Option<usize> {
        first(self.first_non_finite_row)
    }

    /// Rows whose target is no column. Their log-prob is NaN.
    pub fn bad_targets(&self) -> usize {
        self.bad_targets as usize
    }

    /// The first of them.
    pub fn first_bad_target_row(&self) -> Option<usize> {
        first(self.first_bad_target_row)
    }

    /// Reference log-probs of scored rows, or of sequences, that are not finite.
    pub fn non_finite_references(&self) -> usize {
        self.non_finite_references as usize
    }

    /// The sequence of the first of them.
    pub fn first_non_finite_reference_sequence(&self) -> Option<usize> {
        first(self.first_non_finite_reference_sequence)
    }

    /// Scored rows whose target has a logit of −inf.
    pub fn minus_infinite_targets(&self) -> usize {
        self.minus_infinite_targets as usize
    }

    /// The first sequence whose reward, or log q, or proposal offset, is one that the host would have refused. Its group
    /// is NaN.
    pub fn first_bad_reward_sequence(&self) -> Option<usize> {
        first(self.first_bad_reward_sequence)
    }

    /// Scored rows beyond the number that [`Hidden::with_scored_rows`](super::Hidden::with_scored_rows) said. Their log-prob
    /// is NaN.
    pub fn unplaced_rows(&self) -> usize {
        self.unplaced_rows as usize
    }

    /// Scored rows with a weight, an advantage or an old log-prob that [`RowLoss`](crate::RowLoss) does not accept. They have
    /// no loss and no gradient.
    pub fn bad_row_inputs(&self) -> usize {
        self.bad_row_inputs as usize
    }

    /// The first of them.
    pub fn first_bad_row_input(&self) -> Option<usize> {
        first(self.first_bad_row_input)
    }

    /// Rows that were left out of gradients that are added to
    /// ([`LinearGradients::accumulating`](crate::LinearGradients::accumulating)).
    pub fn withheld_rows(&self) -> usize {
        self.withheld_rows as usize
    }

    /// The first of them.
    pub fn first_withheld_row(&self) -> Option<usize> {
        first(self.first_withheld_row)
    }

    /// The word, or an error for what a call on host memory would have refused, or for rows that were left out of a sum.
    pub(super) fn check(self) -> Result<Self> {
        if let Some(row) = self.first_bad_row_input() {
            return Err(Error::DeviceRowInput { row, count: self.bad_row_inputs() });
        }
        match self.first_withheld_row() {
            Some(row) => Err(Error::WithheldRows { row, count: self.withheld_rows() }),
            None => Ok(self),
        }
    }
}

// SAFETY: numbers only.
unsafe impl ValidAsZeroBits for Status {}

// SAFETY: two f32.
unsafe impl DeviceRepr for crate::stage::token_log_prob::SoftmaxState {}

// SAFETY: zero is what a masked row has.
unsafe impl ValidAsZeroBits for crate::stage::token_log_prob::SoftmaxState {}

// SAFETY: numbers only, as `kernels/objective.cu` writes them.
unsafe impl DeviceRepr for crate::GroupStatistics {}

// SAFETY: numbers only.
unsafe impl ValidAsZeroBits for crate::GroupStatistics {}
