//! Rows of hidden states under a head whose rows lie on several ranks: one exchange of partial rows, as from logits, and each rank's share in the
//! unit gradients.

use crate::backend::{Backend, GatheredRows, LinearParts, TokenLogProbs, UnitSums};
use crate::data::head::{Head, Hidden};
use crate::data::memory::Memory;
use crate::data::targets::Targets;
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::ranks::Communicator;
use crate::ranks::gather::{gather, whole};
use crate::stage::partial_row::partial_rows_of;
use crate::stages::FirstStage;

/// Log-probs, states and entropies of all ranks' columns, and this rank's share in the unit gradients, if those are kept. `most`: columns of
/// the rank that has most.
#[allow(clippy::too_many_arguments)]
pub(crate) fn exchange_hidden_rows<B: Backend, T: Element, W: Element>(
    backend: &B,
    line: &dyn Communicator<B>,
    most: usize,
    hidden: Hidden<'_, '_, T, B::Memory>,
    head: &Head<'_, W, B::Memory>,
    targets: &Targets<'_, B::Memory>,
    options: &LogitOptions,
    outputs: TokenLogProbs<'_, B::Memory>,
    first: FirstStage<'_, B>,
) -> Result<()> {
    let (of_rank, scored) = (hidden.states.rows() * partial_rows_of(most), hidden.most_scored_rows());
    let FirstStage { products, partial_rows, rests } = first;
    let TokenLogProbs { mut log_probs, mut states, mut entropies } = outputs;
    if products.views_mut(backend).0.is_some() {
        backend.reserve(rests, scored)?;
    }
    let entropy = entropies.is_some();
    let partial_rows = gather(backend, line, partial_rows, of_rank, |mut own| {
        let sums = products.views_mut(backend).0;
        let unit_sums = sums.map(|sums| UnitSums { sums, rests: backend.view_mut(rests, scored) });
        let parts = LinearParts { partial_rows: whole::<B, _>(&mut own)?, unit_sums };
        backend.linear_partial_rows(hidden, head, targets.clone(), options, entropy, parts)
    })?;
    let (rank, ranks) = (line.rank(), line.ranks());
    let merged = TokenLogProbs {
        log_probs: whole::<B, _>(&mut log_probs)?,
        states: whole::<B, _>(&mut states)?,
        entropies: entropies.as_mut().map(whole::<B, _>).transpose()?,
    };
    backend.merge_rows(&partial_rows, ranks, targets.clone(), options, merged)?;
    let Some(sums) = products.views_mut(backend).0 else { return Ok(()) };
    let gathered = GatheredRows { partial_rows, ranks, rank, states: B::Memory::as_view(&states) };
    let unit_sums = UnitSums { sums, rests: backend.view_mut(rests, scored) };
    backend.linear_unit_gradients(hidden, head, targets.clone(), options, &gathered, unit_sums)?;
    products.become_shares();
    Ok(())
}
