//! The preference loss straight from hidden states: the logits are never held.

use crate::batch::Batch;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::Result;
use crate::linear::{Head, LinearGradients};
use crate::loss::PreferenceLoss;
use crate::matrix::Matrix;
use crate::operand::Operand;
use crate::stages::{Reference, Rewards, check_length};
use crate::step::{Inputs, Step};
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
    ) -> Result<Step> {
        check_length("hidden size", hidden.columns(), head.weight().columns())?;
        let (backend, options) = (self.backend, self.options.logits);
        self.forward_with(inputs(hidden, head), targets, batch, reference, rewards.into(), |targets, outputs| {
            backend.linear_token_log_probs(hidden, head, targets, &options, outputs)
        })
    }

    /// Writes loss scale × the gradients of the loss by the hidden states, the weight and the bias, of those that
    /// `gradients` has. `step` is what [`forward_linear`](Self::forward_linear) gave for these hidden states and this head.
    ///
    /// # Errors
    /// [`Error::OtherStep`](crate::Error::OtherStep) if the last forward pass of this loss was another;
    /// [`Error::Length`](crate::Error::Length) for what does not fit;
    /// [`Error::OtherInputs`](crate::Error::OtherInputs) if hidden states or head are others.
    pub fn backward_linear<T: Element, W: Element, G: Element>(
        &mut self,
        step: &Step,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        self.prepare_backward(step, &inputs(hidden, head))?;
        let (saved, upstream) = self.workspace.for_backward();
        let (targets, options) = (&self.workspace.targets, &self.options.logits);
        self.backend.linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }
}

/// Where hidden states and head lie.
fn inputs<T: Element, W: Element>(hidden: Matrix<'_, T>, head: &Head<'_, W>) -> Inputs {
    let weight = head.weight();
    let bias = head.bias().map(|bias| Operand::new("bias", bias.as_ptr().addr() as u64, 1, 0));
    let matrices = (
        Operand::new("hidden states", hidden.row(0).as_ptr().addr() as u64, hidden.rows(), hidden.row_stride()),
        Operand::new("weight", weight.row(0).as_ptr().addr() as u64, weight.rows(), weight.row_stride()),
    );
    Inputs { rows: hidden.rows(), vocab: head.vocab(), operands: [Some(matrices.0), Some(matrices.1), bias] }
}
