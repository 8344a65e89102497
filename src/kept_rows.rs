//! What a forward pass keeps of its rows for backward passes.

use crate::backend::Backend;
use crate::data::head::Hidden;
use crate::data::memory::Memory;
use crate::data::targets::Targets;
use crate::element::Element;
use crate::error::Result;
use crate::options::LinearKept;
use crate::stage::linear::{SavedLinear, kept_logit_words};
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState};

/// What the backward passes of the token log-probs take of a forward pass, next to its inputs.
pub(crate) type ForBackward<'a, M> = (Targets<'a, M>, SavedRows<'a, M>, RowGradients<'a, M>);

/// Targets and softmax state of each row, and what the loss passes on to each; from hidden states what [`LinearKept`] says.
#[derive(Debug)]
pub(crate) struct KeptRows<B: Backend> {
    /// `[N]`, a copy: the caller's need not last so long.
    pub(crate) targets: B::Buffer<u32>,
    /// `[N]`
    pub(crate) states: B::Buffer<SoftmaxState>,
    /// `[N]`
    pub(crate) row_sequences: B::Buffer<i32>,
    /// d loss / d log-prob of a row of each sequence, `[S]`; of all ranks' sequences.
    pub(crate) sequence_weights: B::Buffer<f64>,
    /// Which of them is that of this rank's first sequence.
    pub(crate) first_sequence: usize,
    pub(crate) products: KeptProducts<B>,
}

/// What the linear stage keeps, of the last forward pass that was over hidden states.
#[derive(Debug)]
pub(crate) struct KeptProducts<B: Backend> {
    /// How much of the buffers there is of the last forward pass.
    lengths: (usize, usize),
    unit_gradients: B::Buffer<f32>,
    logit_gradients: B::Buffer<u32>,
}

impl<B: Backend> Default for KeptProducts<B> {
    fn default() -> Self {
        Self { lengths: (0, 0), unit_gradients: B::Buffer::default(), logit_gradients: B::Buffer::default() }
    }
}

/// Where a forward pass from hidden states writes what is kept.
type KeptProductsMut<'a, M> = (Option<<M as Memory>::ViewMut<'a, f32>>, Option<<M as Memory>::ViewMut<'a, u32>>);

impl<B: Backend> KeptProducts<B> {
    /// Before a forward pass from logits.
    pub(crate) fn keep_nothing(&mut self) {
        self.lengths = (0, 0);
    }

    /// Makes room for a forward pass over these operands. Nothing is reserved for what is not kept.
    pub(crate) fn reserve<T: Element, W: Element>(
        &mut self,
        backend: &B,
        kept: LinearKept,
        hidden: &Hidden<'_, '_, T, B::Memory>,
        vocab: usize,
    ) -> Result<KeptProductsMut<'_, B::Memory>> {
        self.lengths = (0, 0);
        let rows = hidden.most_scored_rows();
        let (units, words) = (rows * hidden.states.columns(), kept_logit_words(W::DTYPE, rows, vocab));
        if kept == LinearKept::Nothing {
            return Ok((None, None));
        }
        backend.reserve(&mut self.unit_gradients, units)?;
        if kept < LinearKept::LogitGradients {
            self.lengths = (units, 0);
            return Ok((Some(backend.view_mut(&mut self.unit_gradients, units)), None));
        }
        backend.reserve(&mut self.logit_gradients, words)?;
        self.lengths = (units, words);
        let units = backend.view_mut(&mut self.unit_gradients, units);
        Ok((Some(units), Some(backend.view_mut(&mut self.logit_gradients, words))))
    }

    /// What was kept, for a backward pass over these operands: nothing, where the number of scored rows that is said of them is
    /// not that of the forward pass. Then all of it is made again.
    pub(crate) fn with_rows<'a, T: Element, W: Element>(
        &'a self,
        backend: &B,
        rows: SavedRows<'a, B::Memory>,
        hidden: &Hidden<'_, '_, T, B::Memory>,
        vocab: usize,
    ) -> SavedLinear<'a, B::Memory> {
        let count = hidden.most_scored_rows();
        let (units, words) = (count * hidden.states.columns(), kept_logit_words(W::DTYPE, count, vocab));
        let has_units = self.lengths.0 == units && units > 0;
        let has_logits = has_units && self.lengths.1 == words;
        SavedLinear {
            rows,
            unit_gradients: has_units.then(|| backend.view(&self.unit_gradients, units)),
            logit_gradients: has_logits.then(|| backend.view(&self.logit_gradients, words)),
        }
    }
}

impl<B: Backend> Default for KeptRows<B> {
    fn default() -> Self {
        Self {
            targets: B::Buffer::default(),
            states: B::Buffer::default(),
            row_sequences: B::Buffer::default(),
            sequence_weights: B::Buffer::default(),
            first_sequence: 0,
            products: KeptProducts::default(),
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
        let end = self.first_sequence + sequences;
        let weights = backend.view(&self.sequence_weights, end);
        let weights = B::Memory::part(&weights, self.first_sequence..end).unwrap_or(weights);
        let upstream =
            RowGradients::PerSequence { row_sequences: backend.view(&self.row_sequences, rows), weights, loss_scale };
        (Targets::U32(backend.view(&self.targets, rows)), saved, upstream)
    }
}
