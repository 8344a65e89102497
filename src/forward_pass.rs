//! A finished forward pass of a loss on the CPU, apart from the loss.

use crate::cpu::Cpu;
use crate::data::head::{Head, LinearGradients};
use crate::data::logits::{Logits, LogitsMut};
use crate::data::matrix::Matrix;
use crate::element::Element;
use crate::error::Result;
use crate::loss::row_gradient;
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState};

/// What a backward pass needs of its forward pass, O(N). Nothing of it changes any more: several threads may go backward
/// from it at once, without a lock.
///
/// [`PreferenceLoss`](crate::PreferenceLoss) keeps workspaces between steps instead, and goes backward by `&mut self`.
#[derive(Debug)]
pub struct ForwardPass {
    pub(crate) backend: Cpu,
    pub(crate) options: LogitOptions,
    /// `[N]`
    pub(crate) targets: Vec<i64>,
    /// `[N]`
    pub(crate) states: Vec<SoftmaxState>,
    /// d loss / d log-prob, `[N]`.
    pub(crate) row_weights: Vec<f64>,
}

impl ForwardPass {
    /// Writes `loss_scale` × d loss / d logits, `[N, V]`, to `gradients`: with the bits of
    /// [`PreferenceLoss`](crate::PreferenceLoss)'s backward pass.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for what does not fit.
    pub fn backward<T: Element>(
        &self,
        loss_scale: f64,
        logits: Logits<'_, T>,
        gradients: LogitsMut<'_, T>,
    ) -> Result<()> {
        let upstream = self.row_gradients(loss_scale);
        let (saved, upstream) = self.for_backward(&upstream);
        self.backend.token_log_probs_backward(logits, &self.targets, &self.options, saved, upstream, gradients)
    }

    /// As [`ForwardPass::backward`], to the gradients of hidden states and head.
    ///
    /// # Errors
    /// As [`ForwardPass::backward`].
    pub fn backward_linear<T: Element, W: Element, G: Element>(
        &self,
        loss_scale: f64,
        hidden: Matrix<'_, T>,
        head: &Head<'_, W>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let upstream = self.row_gradients(loss_scale);
        let (saved, upstream) = self.for_backward(&upstream);
        let (targets, options) = (&self.targets, &self.options);
        self.backend.linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
    }

    /// Loss scale × d loss / d log-prob, `[N]`.
    fn row_gradients(&self, loss_scale: f64) -> Vec<f32> {
        self.row_weights.iter().map(|weight| row_gradient(*weight, loss_scale)).collect()
    }

    /// What the token log-prob stage takes back: the loss has no entropy term.
    fn for_backward<'a>(&'a self, row_gradients: &'a [f32]) -> (SavedRows<'a>, RowGradients<'a>) {
        (
            SavedRows { states: &self.states, entropies: None },
            RowGradients { log_probs: row_gradients, entropies: None },
        )
    }
}
