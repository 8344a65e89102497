//! The contract of the linear stage: what it refuses.

use crate::data::head::{Head, Hidden, LinearGradients};
use crate::data::matrix::MatrixMut;
use crate::data::memory::{Host, Place, check_view_mut};
use crate::data::targets::Targets;
use crate::element::Number;
use crate::error::{Error, Result, check_length};

/// Checks what hidden states and head have in common, and where they lie.
pub(crate) fn check_operands<P: Place, T: Number, W: Number>(
    place: &P,
    hidden: &Hidden<'_, '_, T, P::Memory>,
    head: &Head<'_, W, P::Memory>,
) -> Result<()> {
    check_length("hidden size", hidden.states.columns(), head.weight().columns())?;
    place.check_place("hidden states", &hidden.states.data)?;
    place.check_place("weight", &head.weight().data)?;
    head.bias().map_or(Ok(()), |bias| place.check_place("bias", bias))
}

/// Checks that hidden states, head and targets go together, on the host, where the targets can be seen.
pub(crate) fn check_inputs<P: Place<Memory = Host>, T: Number, W: Number>(
    place: &P,
    hidden: &Hidden<'_, '_, T, Host>,
    head: &Head<'_, W, Host>,
    targets: Targets<'_, Host>,
) -> Result<()> {
    check_operands(place, hidden, head)?;
    targets.check(hidden.states.rows(), head.vocab())?;
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
