//! What a forward pass keeps of its rows for backward passes.

use crate::backend::Backend;
use crate::data::head::Hidden;
use crate::data::memory::Memory;
use crate::data::targets::Targets;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::options::LinearKept;
use crate::ranks::Communicator;
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
    kept: LinearKept,
    /// Whether the unit gradients are this rank's share of them, to be added up over ranks.
    are_shares: bool,
    unit_gradients: B::Buffer<f32>,
    logit_gradients: B::Buffer<u32>,
}

impl<B: Backend> Default for KeptProducts<B> {
    fn default() -> Self {
        Self {
            lengths: (0, 0),
            kept: LinearKept::Nothing,
            are_shares: false,
            unit_gradients: B::Buffer::default(),
            logit_gradients: B::Buffer::default(),
        }
    }
}

/// Where a forward pass from hidden states writes what is kept.
type KeptProductsMut<'a, M> = (Option<<M as Memory>::ViewMut<'a, f32>>, Option<<M as Memory>::ViewMut<'a, u32>>);

impl<B: Backend> KeptProducts<B> {
    /// Before a forward pass from logits.
    pub(crate) fn keep_nothing(&mut self) {
        (self.lengths, self.kept, self.are_shares) = ((0, 0), LinearKept::Nothing, false);
    }

    /// Makes room for a forward pass over these operands. Nothing is reserved for what is not kept.
    pub(crate) fn reserve<T: Element, W: Element>(
        &mut self,
        backend: &B,
        kept: LinearKept,
        hidden: &Hidden<'_, '_, T, B::Memory>,
        vocab: usize,
    ) -> Result<()> {
        self.keep_nothing();
        let rows = hidden.most_scored_rows();
        let units = if kept == LinearKept::Nothing { 0 } else { rows * hidden.states.columns() };
        let words = if kept < LinearKept::LogitGradients { 0 } else { kept_logit_words(W::DTYPE, rows, vocab) };
        // Nothing is allocated for what is not kept.
        if kept > LinearKept::Nothing {
            backend.reserve(&mut self.unit_gradients, units)?;
        }
        if kept >= LinearKept::LogitGradients {
            backend.reserve(&mut self.logit_gradients, words)?;
        }
        (self.lengths, self.kept) = ((units, words), kept);
        Ok(())
    }

    /// Where a forward pass writes what is kept.
    pub(crate) fn views_mut(&mut self, backend: &B) -> KeptProductsMut<'_, B::Memory> {
        let (units, words) = self.lengths;
        let of_units = self.kept > LinearKept::Nothing;
        let of_logits = self.kept >= LinearKept::LogitGradients;
        let unit_gradients = of_units.then(|| backend.view_mut(&mut self.unit_gradients, units));
        (unit_gradients, of_logits.then(|| backend.view_mut(&mut self.logit_gradients, words)))
    }

    /// What was written is a rank's share, and the unit gradients are the sum over ranks.
    pub(crate) fn become_shares(&mut self) {
        self.are_shares = true;
    }

    /// Whether they have to be added up still.
    pub(crate) fn are_shares(&self) -> bool {
        self.are_shares
    }

    /// Checks that there are unit gradients of these hidden states.
    pub(crate) fn check_units<T: Element>(&self, hidden: &Hidden<'_, '_, T, B::Memory>) -> Result<()> {
        let units = hidden.most_scored_rows() * hidden.states.columns();
        let are_kept = self.kept > LinearKept::Nothing && self.lengths.0 == units;
        if are_kept { Ok(()) } else { Err(Error::UnitGradientsNotKept) }
    }

    /// Adds up the ranks' shares, if that is what there is, while `meanwhile` is called.
    pub(crate) fn sum(
        &mut self,
        backend: &B,
        line: &dyn Communicator<B>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.are_shares {
            return meanwhile();
        }
        let mut meanwhile = Some(meanwhile);
        let units = backend.view_mut(&mut self.unit_gradients, self.lengths.0);
        line.sum(backend, units, &mut || meanwhile.take().map_or(Ok(()), |meanwhile| meanwhile()))?;
        self.are_shares = false;
        Ok(())
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
