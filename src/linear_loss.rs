//! The preference loss straight from hidden states: the logits are never held.

use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::Result;
use crate::linear::{Head, LinearGradients};
use crate::logits::Shape;
use crate::loss::PreferenceLoss;
use crate::matrix::Matrix;
use crate::stages::{Reference, Rewards, check_length};
use crate::targets::TokenId;

impl PreferenceLoss<Cpu> {
    /// As [`forward`](Self::forward), with hidden states `[N, H]` and a head in place of logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Length`](crate::Error::Length) for a hidden state that is not as long
    /// as a row of the weight.
    pub fn forward_linear<'a, T: Element, W: Element, I: TokenId>(
        &mut self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        targets: &[I],
        batch: &Batch,
        reference: Reference<'_>,
        rewards: impl Into<Rewards<'a>>,
    ) -> Result<()> {
        check_length("hidden size", hidden.columns(), head.weight().columns())?;
        let (backend, options) = (self.backend, self.options.logits);
        self.forward_with(logit_shape(hidden, head), targets, batch, reference, rewards.into(), |targets, outputs| {
            backend.linear_token_log_probs(hidden, head, targets, &options, outputs)
        })
    }

    /// Writes loss scale × the gradients of the loss by the hidden states, the weight and the bias, of those that
    /// `gradients` has. Hidden states and head must be those of the forward pass.
    ///
    /// # Errors
    /// [`Error::NoForward`](crate::Error::NoForward); [`Error::LogitsOverwritten`](crate::Error::LogitsOverwritten)
    /// after a backward pass in place over logits; [`Error::Length`](crate::Error::Length) for what does not fit.
    pub fn backward_linear<T: Element, W: Element, G: Element>(
        &mut self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        self.prepare_backward(logit_shape(hidden, head))?;
        let (saved, upstream) = self.workspace.for_backward();
        let (targets, options) = (&self.workspace.targets, &self.options.logits);
        self.backend.linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }
}

/// The shape that the logits would have.
fn logit_shape<T: Element, W: Element>(hidden: Matrix<'_, T>, head: &Head<'_, W>) -> Shape {
    Shape { rows: hidden.rows(), vocab: head.vocab(), row_stride: head.vocab() }
}
