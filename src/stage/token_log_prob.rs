//! The contract of the token log-prob stage: what it reads, writes and refuses.

use crate::data::matrix::{Matrix, MatrixMut, check_vocab};
use crate::data::memory::{Memory, Place, check_view, check_view_mut};
use crate::element::Number;
use crate::error::{Error, Result, check_length};

/// What the softmax of a row leaves for the backward pass: Σ exp z = s·2^r, in base 2.
///
/// r is the largest scaled logit, in base 2, rounded up to an integer, so that bringing two states to a common r
/// multiplies by a power of two, which is exact. The pair keeps the digits that a log-sum-exp in one f32 loses under a
/// large common offset. Zero and NaN for rows that are masked and rows that have no softmax.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SoftmaxState {
    /// Exponent of the scale, in base 2; an integer.
    pub r: f32,
    /// Σ 2^(z·log2 e − r); between ½ and V, or from |r| = 2²⁴ on, where f32 have not every integer, up to 2⁶⁴ times that or as
    /// much less.
    pub s: f32,
}

impl SoftmaxState {
    /// log Σ exp z over the row, in nats.
    pub fn log_sum_exp(self) -> f64 {
        (f64::from(self.r) + f64::from(self.s).log2()) * std::f64::consts::LN_2
    }
}

/// A row whose largest scaled logit, in base 2, is this large or larger in size has no softmax: its log-prob is NaN.
/// Neighbouring f32 are 128 apart there, so that no r keeps 2^(z·log2 e − r) in range.
pub(crate) const LARGEST_EXPONENT: f32 = (1u32 << 30) as f32;

/// Where the token log-prob stage writes: one entry per row, N of each.
#[derive(Debug)]
pub struct TokenLogProbs<'a, M: Memory> {
    /// log softmax(z)\[target\] in nats, never positive; 0 for a masked row, NaN for a row without a softmax.
    pub log_probs: M::ViewMut<'a, f32>,
    /// For the backward pass.
    pub states: M::ViewMut<'a, SoftmaxState>,
    /// Entropy of the row's distribution in nats; 0 for a masked row. `None`: not computed.
    pub entropies: Option<M::ViewMut<'a, f32>>,
}

impl<M: Memory> TokenLogProbs<'_, M> {
    /// Checks that there is an entry per row, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, rows: usize) -> Result<()> {
        check_view_mut(place, "log-probs", &self.log_probs, rows)?;
        check_view_mut(place, "softmax states", &self.states, rows)?;
        self.entropies.as_ref().map_or(Ok(()), |entropies| check_view_mut(place, "entropies", entropies, rows))
    }
}

/// What the token log-prob stage kept of its forward pass.
#[derive(Debug, Clone, Copy)]
pub struct SavedRows<'a, M: Memory> {
    /// As written by the forward pass, N.
    pub states: M::View<'a, SoftmaxState>,
    /// As written by the forward pass, N; needed for an entropy gradient only.
    pub entropies: Option<M::View<'a, f32>>,
}

/// The gradient that comes back to the token log-prob stage, for each row; what it says of masked rows is not read.
///
/// A row whose gradient does not fit f32 gets NaN for all of it, as one without a softmax: where 2·|g| + 256·|e| is NaN or
/// more than `f32::MAX`·T·min(1, 2s), with g and e the two numbers, T the temperature and s of the row's [`SoftmaxState`]
/// (½ or more, but for logits of 2²⁴ and more in base 2); or where e is not 0 and the entropy not finite.
#[derive(Debug, Clone, Copy)]
pub enum RowGradients<'a, M: Memory> {
    /// Two numbers a row.
    PerRow {
        /// d loss / d log-prob, N.
        log_probs: M::View<'a, f32>,
        /// d loss / d entropy, N; `None`: the loss has no entropy term.
        entropies: Option<M::View<'a, f32>>,
    },
    /// The rows of a sequence share one, as those of a preference loss do: the row's d loss / d log-prob is its sequence's
    /// weight times the loss scale, rounded to f32.
    PerSequence {
        /// The sequence of each row, N: as [`LogRatioOutputs::row_sequences`](crate::LogRatioOutputs::row_sequences). A row
        /// whose sequence is none of those that have a weight gets NaN.
        row_sequences: M::View<'a, i32>,
        /// d loss / d log-prob of a row of each sequence, S: as [`RowWeights::weights`](crate::RowWeights::weights).
        weights: M::View<'a, f64>,
        /// What it is multiplied by.
        loss_scale: f64,
    },
}

/// Checks what a backward pass reads of its rows.
pub(crate) fn check_saved<P: Place>(
    place: &P,
    saved: &SavedRows<'_, P::Memory>,
    upstream: &RowGradients<'_, P::Memory>,
    rows: usize,
) -> Result<()> {
    check_view(place, "softmax states", &saved.states, rows)?;
    if let Some(entropies) = &saved.entropies {
        check_view(place, "entropies", entropies, rows)?;
    }
    match upstream {
        RowGradients::PerRow { log_probs, entropies } => {
            check_view(place, "log-prob gradients", log_probs, rows)?;
            let Some(entropies) = entropies else { return Ok(()) };
            check_view(place, "entropy gradients", entropies, rows)?;
            if saved.entropies.is_none() { Err(Error::EntropiesNotKept) } else { Ok(()) }
        }
        RowGradients::PerSequence { row_sequences, weights, .. } => {
            check_view(place, "row sequences", row_sequences, rows)?;
            place.check_place("sequence weights", weights)
        }
    }
}

/// Checks logits and the buffer of their gradient.
pub(crate) fn check_gradient<P: Place, T: Number>(
    place: &P,
    logits: &Matrix<'_, T, P::Memory>,
    gradient: &MatrixMut<'_, T, P::Memory>,
) -> Result<()> {
    check_logits(place, logits)?;
    place.check_place_mut("gradient", &gradient.data)?;
    check_length("rows of the gradient", gradient.rows(), logits.rows())?;
    check_length("vocabulary of the gradient", gradient.columns(), logits.columns())
}

/// Checks the vocabulary of logits, and where they lie.
pub(crate) fn check_logits<P: Place, T: Number>(place: &P, logits: &Matrix<'_, T, P::Memory>) -> Result<()> {
    check_vocab(logits.columns())?;
    place.check_place("logits", &logits.data)
}
