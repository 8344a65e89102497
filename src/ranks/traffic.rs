//! What the exchanges of a step bring, in bytes: for planning.

use crate::backend::{Backend, SequencePart, partial_rows_of};

/// What a step of a [`PreferenceLoss`](crate::PreferenceLoss) over [`Ranks`](crate::ranks::Ranks) is made of, on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepShape {
    /// Rows of this rank, N.
    pub rows: usize,
    /// Columns of the rank that has most; 0 where columns are not divided.
    pub most_columns: usize,
    /// Hidden states of which the gradient is wanted, and their size: M·H; 0 from logits.
    pub hidden_numbers: usize,
    /// Sequences of this rank, S.
    pub sequences: usize,
    /// Sequences of the rank that has most.
    pub most_sequences: usize,
    /// Ranks along a line of rows; 0 where rows are not divided.
    pub ranks_of_rows: usize,
    /// Whether groups are divided.
    pub groups: bool,
}

/// Bytes that one rank brings to each exchange of a step. An all-gather brings them to each of the P − 1 others, so that a rank
/// receives P − 1 times as many; a sum in a ring moves 2·(P − 1)/P times as many each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// All-gather of partial rows, along the vocabulary.
    pub partial_rows: usize,
    /// Sum of f32, along the vocabulary: once for each forward pass, with the first gradient of hidden states.
    pub hidden_sum: usize,
    /// All-gather of sequences whose rows are divided.
    pub of_rows: usize,
    /// All-gather of sequences of all groups.
    pub of_groups: usize,
}

impl Traffic {
    /// Of a step on this backend.
    pub fn of_step<B: Backend>(shape: &StepShape) -> Self {
        let part = size_of::<SequencePart>();
        let bytes =
            |factors: &[usize]| factors.iter().fold(1, |product: usize, factor| product.saturating_mul(*factor));
        let ranks_of_rows = shape.ranks_of_rows.max(1);
        Self {
            partial_rows: bytes(&[shape.rows, partial_rows_of(shape.most_columns), size_of::<B::PartialRow>()]),
            hidden_sum: bytes(&[shape.hidden_numbers, size_of::<f32>()]),
            of_rows: if shape.ranks_of_rows == 0 { 0 } else { bytes(&[shape.sequences.saturating_add(1), part]) },
            of_groups: if shape.groups {
                bytes(&[shape.most_sequences.saturating_add(ranks_of_rows), part])
            } else {
                0
            },
        }
    }
}
