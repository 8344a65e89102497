//! The contract of the token log-prob stage: what it reads, writes and refuses.

use crate::error::{Result, check_length};

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
pub struct TokenLogProbs<'a> {
    /// log softmax(z)\[target\] in nats, never positive; 0 for a masked row, NaN for a row without a softmax.
    pub log_probs: &'a mut [f32],
    /// For the backward pass.
    pub states: &'a mut [SoftmaxState],
    /// Entropy of the row's distribution in nats; 0 for a masked row. `None`: not computed.
    pub entropies: Option<&'a mut [f32]>,
}

impl TokenLogProbs<'_> {
    /// That there is an entry per row.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        check_length("log-probs", self.log_probs.len(), rows)?;
        check_length("softmax states", self.states.len(), rows)?;
        self.entropies.as_ref().map_or(Ok(()), |entropies| check_length("entropies", entropies.len(), rows))
    }
}

/// What the token log-prob stage kept of its forward pass.
#[derive(Debug, Clone, Copy)]
pub struct SavedRows<'a> {
    /// As written by the forward pass, N.
    pub states: &'a [SoftmaxState],
    /// As written by the forward pass, N; needed for an entropy gradient only.
    pub entropies: Option<&'a [f32]>,
}

/// The gradient that comes back to the token log-prob stage, per row; what it says of masked rows is not read.
///
/// A row whose gradient does not fit f32 gets NaN for all of it, as one without a softmax: where 2·|g| + 256·|e| is NaN or
/// more than `f32::MAX`·T·min(1, 2s), with g and e the two numbers, T the temperature and s of the row's [`SoftmaxState`]
/// (½ or more, but for logits of 2²⁴ and more in base 2); or where e is not 0 and the entropy not finite.
#[derive(Debug, Clone, Copy)]
pub struct RowGradients<'a> {
    /// d loss / d log-prob, N.
    pub log_probs: &'a [f32],
    /// d loss / d entropy, N; `None`: the loss has no entropy term.
    pub entropies: Option<&'a [f32]>,
}
