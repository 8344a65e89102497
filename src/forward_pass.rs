//! A finished forward pass of a loss on the CPU, apart from the loss.

use crate::cpu::Cpu;
use crate::loss::row_gradient;
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState};

/// What a backward pass needs of its forward pass, O(N). Nothing of it changes any more: several threads may go backward
/// from it at once, without a lock.
///
/// [`PreferenceLoss`](crate::PreferenceLoss) keeps workspaces between steps instead, and goes backward by `&mut self`.
#[derive(Debug)]
pub(crate) struct ForwardPass {
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
    /// Loss scale × d loss / d log-prob, `[N]`: with the bits of [`PreferenceLoss`](crate::PreferenceLoss)'s backward pass.
    pub(crate) fn row_gradients(&self, loss_scale: f64) -> Vec<f32> {
        self.row_weights.iter().map(|weight| row_gradient(*weight, loss_scale)).collect()
    }

    /// What the token log-prob stage takes back: the loss has no entropy term.
    pub(crate) fn for_backward<'a>(&'a self, row_gradients: &'a [f32]) -> (SavedRows<'a>, RowGradients<'a>) {
        (
            SavedRows { states: &self.states, entropies: None },
            RowGradients { log_probs: row_gradients, entropies: None },
        )
    }
}
