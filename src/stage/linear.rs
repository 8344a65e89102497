//! The contract of the linear stage: what it writes besides a row's results, and what it refuses.

use crate::data::head::{Head, Hidden, LinearGradients};
use crate::data::matrix::MatrixMut;
use crate::data::memory::{Host, Memory, Place, check_view, check_view_mut};
use crate::data::targets::Targets;
use crate::element::{Dtype, Number};
use crate::error::{Error, Result, check_length};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{SavedRows, TokenLogProbs};

/// Where the forward pass of the linear stage writes: the results of its rows, and what it keeps for the backward pass
/// ([`LinearKept`](crate::LinearKept)). Made from [`TokenLogProbs`] by `into()`: then it keeps nothing.
///
/// M is [`Hidden::scored_rows`], or N where that was not said. What is kept is the backend's own: it is for the backward pass
/// over the same operands, targets and options on the same backend.
#[derive(Debug)]
pub struct LinearOutputs<'a, M: Memory> {
    /// Log-probs, softmax states, entropies: `[N]` each.
    pub rows: TokenLogProbs<'a, M>,
    /// T·∂ log π/∂h of each scored row, in their order: M·H numbers.
    pub unit_gradients: Option<M::ViewMut<'a, f32>>,
    /// Gradients of the logits of each scored row: as many words as [`kept_logit_words`] says. Only with the unit gradients.
    pub logit_gradients: Option<M::ViewMut<'a, u32>>,
}

impl<'a, M: Memory> From<TokenLogProbs<'a, M>> for LinearOutputs<'a, M> {
    fn from(rows: TokenLogProbs<'a, M>) -> Self {
        Self { rows, unit_gradients: None, logit_gradients: None }
    }
}

/// What the linear stage kept of its forward pass. Made from [`SavedRows`] by `into()`, where that is all.
#[derive(Debug, Clone)]
pub struct SavedLinear<'a, M: Memory> {
    /// As written by the forward pass, `[N]`.
    pub rows: SavedRows<'a, M>,
    /// As written by the forward pass: [`LinearOutputs::unit_gradients`].
    pub unit_gradients: Option<M::View<'a, f32>>,
    /// As written by the forward pass: [`LinearOutputs::logit_gradients`].
    pub logit_gradients: Option<M::View<'a, u32>>,
}

impl<'a, M: Memory> From<SavedRows<'a, M>> for SavedLinear<'a, M> {
    fn from(rows: SavedRows<'a, M>) -> Self {
        Self { rows, unit_gradients: None, logit_gradients: None }
    }
}

impl<'a, M: Memory> From<&SavedRows<'a, M>> for SavedLinear<'a, M> {
    fn from(rows: &SavedRows<'a, M>) -> Self {
        Self::from(SavedRows { states: rows.states.clone(), entropies: rows.entropies.clone() })
    }
}

/// The words of 32 bits that hold the kept gradients of `rows` rows of logits under a head of this type: rows that begin at
/// multiples of 16 bytes, and what each of them is scaled by.
pub fn kept_logit_words(head: Dtype, rows: usize, vocab: usize) -> usize {
    rows.saturating_mul(kept_row_words(head, vocab).saturating_add(2))
}

/// Of one row.
pub(crate) fn kept_row_words(head: Dtype, vocab: usize) -> usize {
    let bytes = if head == Dtype::F32 { 4 } else { 2 };
    vocab.saturating_mul(bytes).div_ceil(16).saturating_mul(4)
}

impl<M: Memory> LinearOutputs<'_, M> {
    /// Checks lengths and places.
    pub(crate) fn check<P: Place<Memory = M>, T: Number, W: Number>(
        &self,
        place: &P,
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
        dtype: Dtype,
    ) -> Result<()> {
        self.rows.check(place, hidden.states.rows())?;
        let rows = hidden.most_scored_rows();
        if let Some(unit) = &self.unit_gradients {
            check_view_mut(place, "unit gradients", unit, rows * hidden.states.columns())?;
        }
        let Some(logits) = &self.logit_gradients else { return Ok(()) };
        check_view_mut(place, "kept gradients of the logits", logits, kept_logit_words(dtype, rows, head.vocab()))?;
        let units = self.unit_gradients.as_ref().map_or(0, M::length_mut);
        check_length("unit gradients", units, rows * hidden.states.columns())
    }
}

impl<M: Memory> SavedLinear<'_, M> {
    /// Checks lengths and places of what was kept besides the rows' states.
    pub(crate) fn check<P: Place<Memory = M>, T: Number, W: Number>(
        &self,
        place: &P,
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
        dtype: Dtype,
        options: &LogitOptions,
    ) -> Result<()> {
        let rows = hidden.most_scored_rows();
        if let Some(unit) = &self.unit_gradients {
            check_view(place, "unit gradients", unit, rows * hidden.states.columns())?;
        }
        let Some(logits) = &self.logit_gradients else { return Ok(()) };
        // No rank keeps any.
        options.check_whole(head.vocab())?;
        check_view(place, "kept gradients of the logits", logits, kept_logit_words(dtype, rows, head.vocab()))
    }
}

/// Checks what hidden states and head have in common, and where they lie.
pub(crate) fn check_operands<P: Place, T: Number, W: Number>(
    place: &P,
    hidden: &Hidden<'_, '_, T, P::Memory>,
    head: &Head<'_, W, P::Memory>,
) -> Result<()> {
    check_length("hidden size", hidden.states.columns(), head.weight().columns())?;
    check_places(place, hidden, head)
}

/// Checks where hidden states and head lie.
pub(crate) fn check_places<P: Place, T: Number, W: Number>(
    place: &P,
    hidden: &Hidden<'_, '_, T, P::Memory>,
    head: &Head<'_, W, P::Memory>,
) -> Result<()> {
    place.check_place("hidden states", &hidden.states.data)?;
    place.check_place("weight", &head.weight().data)?;
    head.bias().map_or(Ok(()), |bias| place.check_place("bias", bias))
}

/// Checks that hidden states, head and targets go together, on the host, where the targets can be seen. `vocab`: what they are
/// columns of.
pub(crate) fn check_inputs<P: Place<Memory = Host>, T: Number, W: Number>(
    place: &P,
    hidden: &Hidden<'_, '_, T, Host>,
    head: &Head<'_, W, Host>,
    targets: Targets<'_, Host>,
    vocab: usize,
) -> Result<()> {
    check_operands(place, hidden, head)?;
    targets.check(hidden.states.rows(), vocab)?;
    let beyond = hidden.scored_rows.map_or(0, |most| targets.scored_rows().saturating_sub(most));
    if beyond > 0 { Err(Error::ScoredRows { beyond }) } else { Ok(()) }
}

/// Checks that the buffers of gradients have the shapes of what they are gradients of, and where they lie.
pub(crate) fn check_gradients<P: Place, T: Number, W: Number, G: Number>(
    place: &P,
    gradients: &LinearGradients<'_, T, G, P::Memory>,
    hidden: &Hidden<'_, '_, T, P::Memory>,
    head: &Head<'_, W, P::Memory>,
) -> Result<()> {
    let (states, vocab) = (hidden.states, head.vocab());
    if let Some(gradient) = &gradients.hidden {
        check_length("rows of the hidden gradient", gradient.rows(), states.rows())?;
        check_length("columns of the hidden gradient", gradient.columns(), states.columns())?;
        check_place(place, "hidden gradient", gradient)?;
    }
    if let Some(gradient) = &gradients.weight {
        check_length("rows of the weight gradient", gradient.rows(), vocab)?;
        check_length("columns of the weight gradient", gradient.columns(), states.columns())?;
        check_place(place, "weight gradient", gradient)?;
    }
    gradients.bias.as_ref().map_or(Ok(()), |gradient| check_view_mut(place, "bias gradient", gradient, vocab))
}

fn check_place<P: Place, T: Number>(
    place: &P,
    what: &'static str,
    gradient: &MatrixMut<'_, T, P::Memory>,
) -> Result<()> {
    place.check_place_mut(what, &gradient.data)
}
