//! What the linear stage takes and gives: hidden states and a head in place of logits.
//!
//! The logits of row n are x_n = W·h_n + b, with h_n `[H]` a hidden state, W `[V, H]` the weight of the head and b `[V]`
//! its bias. They are formed in f32 a block at a time, and never held as a whole.

use crate::data::matrix::{Matrix, MatrixMut, Shape, check_vocab};
use crate::data::memory::{Host, Memory};
use crate::data::shard::Shard;
use crate::element::Number;
use crate::error::{Result, check_length};

/// The last layer of a language model: weight `[V, H]`, row stride ≥ H, and bias `[V]` or none.
#[derive(Debug, Clone)]
pub struct Head<'a, T: Number, M: Memory> {
    pub(crate) weight: Matrix<'a, T, M>,
    pub(crate) bias: Option<M::View<'a, T>>,
}

impl<T: Number> Copy for Head<'_, T, Host> {}

impl<T: Number> Head<'_, T, Host> {
    /// The rows that are no padding.
    pub(crate) fn without_padding(self, shard: Shard) -> Self {
        let rows = shard.columns(self.vocab());
        let shape = Shape { rows, ..self.weight.shape };
        Self { weight: Matrix { shape, ..self.weight }, bias: self.bias.map(|bias| &bias[..rows]) }
    }
}

impl<'a, T: Number, M: Memory> Head<'a, T, M> {
    /// A head without bias.
    ///
    /// # Errors
    /// [`Error::Vocabulary`](crate::Error::Vocabulary) if V, the weight's rows, is 0 or above `i32::MAX`.
    pub fn new(weight: Matrix<'a, T, M>) -> Result<Self> {
        check_vocab(weight.rows())?;
        Ok(Self { weight, bias: None })
    }

    /// With a bias `[V]`.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) if it is not V long.
    pub fn with_bias(self, bias: M::View<'a, T>) -> Result<Self> {
        check_length("bias", M::length(&bias), self.vocab())?;
        Ok(Self { bias: Some(bias), ..self })
    }

    /// Weight, `[V, H]`.
    pub fn weight(&self) -> &Matrix<'a, T, M> {
        &self.weight
    }

    /// Bias, `[V]`.
    pub fn bias(&self) -> Option<&M::View<'a, T>> {
        self.bias.as_ref()
    }

    /// V.
    pub fn vocab(&self) -> usize {
        self.weight.rows()
    }
}

/// Hidden states `[N, H]`, and how many of their rows are scored at most. Made from a reference to a [`Matrix`] by `into()`.
///
/// Masked rows are left out of the matrix products. On a device which they are is known there alone, and nothing waits for
/// it, but a product's size is the host's to say. A trainer has mostly made the targets on the host and knows how many it
/// scores: with that number products, time and memory are of the scored rows alone. Without it they are those of all N
/// rows, zeros in place of the masked. On the CPU the number changes nothing but what is refused.
#[derive(Debug, Clone, Copy)]
pub struct Hidden<'m, 'a, T: Number, M: Memory> {
    pub(crate) states: &'m Matrix<'a, T, M>,
    pub(crate) scored_rows: Option<usize>,
}

impl<'m, 'a, T: Number, M: Memory> From<&'m Matrix<'a, T, M>> for Hidden<'m, 'a, T, M> {
    fn from(states: &'m Matrix<'a, T, M>) -> Self {
        Self { states, scored_rows: None }
    }
}

impl<'m, 'a, T: Number, M: Memory> From<&Hidden<'m, 'a, T, M>> for Hidden<'m, 'a, T, M> {
    fn from(hidden: &Hidden<'m, 'a, T, M>) -> Self {
        *hidden
    }
}

impl<'m, 'a, T: Number, M: Memory> Hidden<'m, 'a, T, M> {
    /// Hidden states.
    pub fn new(states: &'m Matrix<'a, T, M>) -> Self {
        states.into()
    }

    /// At most this many rows have a target that is not negative. Should there be more, the call is refused where the
    /// targets are on the host ([`Error::ScoredRows`](crate::Error::ScoredRows)). On a device the rows after the first
    /// `scored_rows` of them get NaN for their log-prob and their gradient, and are counted in its status.
    #[must_use]
    pub fn with_scored_rows(self, scored_rows: usize) -> Self {
        Self { scored_rows: Some(scored_rows), ..self }
    }

    /// The hidden states.
    pub fn states(&self) -> &'m Matrix<'a, T, M> {
        self.states
    }

    /// M: how many rows are scored at most, as far as it was said.
    pub(crate) fn most_scored_rows(&self) -> usize {
        self.scored_rows.map_or(self.states.rows(), |rows| rows.min(self.states.rows()))
    }

    /// How many rows are scored at most, if it was said.
    pub fn scored_rows(&self) -> Option<usize> {
        self.scored_rows
    }
}

/// Where the backward pass writes. What is left out is frozen, and costs nothing.
///
/// The gradient of the weight and of the bias may be of another type than they are: f32 for a bf16 head, say. On a GPU it is
/// f32 or the head's type.
#[derive(Debug)]
pub struct LinearGradients<'a, T: Number, G: Number, M: Memory> {
    pub(crate) hidden: Option<MatrixMut<'a, T, M>>,
    pub(crate) weight: Option<MatrixMut<'a, G, M>>,
    pub(crate) bias: Option<M::ViewMut<'a, G>>,
    pub(crate) accumulate: bool,
}

impl<'a, T: Number, G: Number, M: Memory> LinearGradients<'a, T, G, M> {
    /// Gradients of the hidden states `[N, H]` and of the weight `[V, H]`; `None` for what is frozen. Both are
    /// overwritten; rows of masked targets get zeros.
    pub fn new(hidden: Option<MatrixMut<'a, T, M>>, weight: Option<MatrixMut<'a, G, M>>) -> Self {
        Self { hidden, weight, bias: None, accumulate: false }
    }

    /// The gradient of the bias, `[V]`, too.
    #[must_use]
    pub fn with_bias(self, bias: M::ViewMut<'a, G>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Adds to the gradients of weight and bias that are there, instead of overwriting them: tied embeddings,
    /// micro-batches. The sum is formed in f32 and rounded once to the buffer's type. The gradient of the hidden states
    /// is overwritten all the same.
    ///
    /// What is there is not spoilt by a row without a softmax (its log-prob is NaN), nor by one whose upstream gradient does
    /// not fit ([`RowGradients`](crate::RowGradients)): such a row adds nothing to weight and bias, and its hidden state's
    /// gradient is NaN. On a GPU these rows are counted, and reading the status is an error. Without `accumulating` the
    /// gradients become NaN, which is what loss scaling looks for. Where a partial sum does not fit f32, or the sum its
    /// buffer's type, it is infinite or NaN in both: in a matrix product the order of its terms is not promised.
    #[must_use]
    pub fn accumulating(self) -> Self {
        Self { accumulate: true, ..self }
    }
}
