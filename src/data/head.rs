//! What the stage `linear_log_prob` takes and gives: hidden states and a head in place of logits.
//!
//! The logits of row n are x_n = W·h_n + b, with h_n `[H]` a hidden state, W `[V, H]` the weight of the head and b `[V]`
//! its bias. They are formed in f32 a block at a time, and never held as a whole.

use crate::data::logits::check_vocab;
use crate::data::matrix::{Matrix, MatrixMut, MatrixShape};
use crate::element::Element;
use crate::error::{Result, check_length};

/// The last layer of a language model: weight `[V, H]`, row stride ≥ H, and bias `[V]` or none.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a, T> {
    weight: Matrix<'a, T>,
    bias: Option<&'a [T]>,
}

impl<'a, T: Element> Head<'a, T> {
    /// A head without bias.
    ///
    /// # Errors
    /// [`Error::Vocabulary`](crate::Error::Vocabulary) if V, the weight's rows, is 0 or above `i32::MAX`.
    pub fn new(weight: Matrix<'a, T>) -> Result<Self> {
        check_vocab(weight.rows())?;
        Ok(Self { weight, bias: None })
    }

    /// With a bias `[V]`.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) if it is not V long.
    pub fn with_bias(self, bias: &'a [T]) -> Result<Self> {
        check_length("bias", bias.len(), self.vocab())?;
        Ok(Self { bias: Some(bias), ..self })
    }

    /// Weight, `[V, H]`.
    pub fn weight(&self) -> Matrix<'a, T> {
        self.weight
    }

    /// Bias, `[V]`.
    pub fn bias(&self) -> Option<&'a [T]> {
        self.bias
    }

    /// V.
    pub fn vocab(&self) -> usize {
        self.weight.rows()
    }
}

/// Where the backward pass writes. What is left out is frozen, and costs nothing.
///
/// The gradient of the weight and of the bias may be of another type than they are: f32 for a bf16 head, say.
#[derive(Debug)]
pub struct LinearGradients<'a, T, G> {
    pub(crate) hidden: Option<MatrixMut<'a, T>>,
    pub(crate) weight: Option<MatrixMut<'a, G>>,
    pub(crate) bias: Option<&'a mut [G]>,
    pub(crate) accumulate: bool,
}

impl<'a, T: Element, G: Element> LinearGradients<'a, T, G> {
    /// Gradients of the hidden states `[N, H]` and of the weight `[V, H]`; `None` for what is frozen. Both are
    /// overwritten; rows of masked targets get zeros.
    pub fn new(hidden: Option<MatrixMut<'a, T>>, weight: Option<MatrixMut<'a, G>>) -> Self {
        Self { hidden, weight, bias: None, accumulate: false }
    }

    /// The gradient of the bias, `[V]`, too.
    #[must_use]
    pub fn with_bias(self, bias: &'a mut [G]) -> Self {
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

    /// Checks that the buffers have the shapes of what they are gradients of.
    pub(crate) fn check(&self, hidden: MatrixShape, vocab: usize) -> Result<()> {
        if let Some(gradient) = &self.hidden {
            check_length("rows of the hidden gradient", gradient.rows(), hidden.rows)?;
            check_length("columns of the hidden gradient", gradient.columns(), hidden.columns)?;
        }
        if let Some(gradient) = &self.weight {
            check_length("rows of the weight gradient", gradient.rows(), vocab)?;
            check_length("columns of the weight gradient", gradient.columns(), hidden.columns)?;
        }
        match &self.bias {
            Some(gradient) => check_length("bias gradient", gradient.len(), vocab),
            None => Ok(()),
        }
    }
}
