//! What a forward pass keeps of its rows for backward passes.

use crate::backend::Backend;
use crate::data::targets::Targets;
use crate::error::Result;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState};

/// What the backward passes of the token log-probs take of a forward pass, next to its inputs.
pub(crate) type ForBackward<'a, M> = (Targets<'a, M>, SavedRows<'a, M>, RowGradients<'a, M>);

/// O(N): targets and softmax state of each row, and what the loss passes on to each.
#[derive(Debug)]
pub(crate) struct KeptRows<B: Backend> {
    /// `[N]`
    pub(crate) targets: KeptTargets<B>,
    /// `[N]`
    pub(crate) states: B::Buffer<SoftmaxState>,
    /// `[N]`
    pub(crate) row_sequences: B::Buffer<i32>,
    /// d loss / d log-prob of a row of each sequence, `[S]`.
    pub(crate) sequence_weights: B::Buffer<f64>,
}

impl<B: Backend> Default for KeptRows<B> {
    fn default() -> Self {
        Self {
            targets: KeptTargets::default(),
            states: B::Buffer::default(),
            row_sequences: B::Buffer::default(),
            sequence_weights: B::Buffer::default(),
        }
    }
}

impl<B: Backend> KeptRows<B> {
    /// Targets, states and upstream gradient, loss scale included, of N rows in S sequences.
    pub(crate) fn for_backward(
        &self,
        backend: &B,
        rows: usize,
        sequences: usize,
        loss_scale: f64,
    ) -> ForBackward<'_, B::Memory> {
        let saved = SavedRows { states: backend.view(&self.states, rows), entropies: None };
        let upstream = RowGradients::PerSequence {
            row_sequences: backend.view(&self.row_sequences, rows),
            weights: backend.view(&self.sequence_weights, sequences),
            loss_scale,
        };
        (self.targets.view(backend, rows), saved, upstream)
    }
}

/// Copies of target ids, which the backward pass reads again: of one of the two types.
#[derive(Debug)]
pub(crate) struct KeptTargets<B: Backend> {
    narrow: bool,
    u32: B::Buffer<u32>,
    i64: B::Buffer<i64>,
}

impl<B: Backend> Default for KeptTargets<B> {
    fn default() -> Self {
        Self { narrow: false, u32: B::Buffer::default(), i64: B::Buffer::default() }
    }
}

impl<B: Backend> KeptTargets<B> {
    pub(crate) fn keep(&mut self, backend: &B, targets: &Targets<'_, B::Memory>) -> Result<()> {
        self.narrow = matches!(targets, Targets::U32(_));
        match targets {
            Targets::U32(ids) => backend.copy(ids, &mut self.u32),
            Targets::I64(ids) => backend.copy(ids, &mut self.i64),
        }
    }

    pub(crate) fn view(&self, backend: &B, rows: usize) -> Targets<'_, B::Memory> {
        if self.narrow {
            Targets::U32(backend.view(&self.u32, rows))
        } else {
            Targets::I64(backend.view(&self.i64, rows))
        }
    }
}
