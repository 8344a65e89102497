//! The contract of the linear stage where ranks hold parts of a head: what a rank writes of its columns, and what it makes of all
//! ranks' parts.

use crate::data::head::{Head, Hidden};
use crate::data::memory::{Memory, Place, check_view, check_view_mut};
use crate::element::Number;
use crate::error::Result;
use crate::ranks::gather::check_rank;
use crate::stage::partial_row::{per_row, per_row_of_ranks};
use crate::stage::token_log_prob::SoftmaxState;

/// What unit gradients are made of, before they are normalised: of the columns j of a rank that are not a row's target, with e_j the
/// power of the scaled logit and σ_j the softcap's slope. M is [`Hidden::scored_rows`], or N where that was not said; P is
/// [`Backend::PartialRow`](crate::Backend::PartialRow).
#[derive(Debug)]
pub struct UnitSums<'a, M: Memory, P: Number> {
    /// Σ' e_j·σ_j·W_j of each scored row, in their order: M·H numbers.
    /// [`Backend::linear_unit_gradients`](crate::Backend::linear_unit_gradients) turns them into this rank's share of T·∂ log π/∂h.
    pub sums: M::ViewMut<'a, f32>,
    /// Σ' e_j of each scored row, and what e_j is relative to: M, each of them the backend's own. They are for the same rank.
    pub rests: M::ViewMut<'a, P>,
}

/// Where [`Backend::linear_partial_rows`](crate::Backend::linear_partial_rows) writes. P is
/// [`Backend::PartialRow`](crate::Backend::PartialRow).
#[derive(Debug)]
pub struct LinearParts<'a, M: Memory, P: Number> {
    /// `[N, k]`, as [`Backend::partial_rows`](crate::Backend::partial_rows) writes them: for all ranks to exchange.
    pub partial_rows: M::ViewMut<'a, P>,
    /// What [`LinearKept::UnitGradients`](crate::LinearKept::UnitGradients) are made of; `None`: nothing is kept.
    pub unit_sums: Option<UnitSums<'a, M, P>>,
}

/// All ranks' partial rows, and what [`Backend::merge_rows`](crate::Backend::merge_rows) made of them. P is
/// [`Backend::PartialRow`](crate::Backend::PartialRow).
#[derive(Debug, Clone)]
pub struct GatheredRows<'a, M: Memory, P: Number> {
    /// `[ranks, N, k]`, in the order of the ranks.
    pub partial_rows: M::View<'a, P>,
    /// How many ranks there are.
    pub ranks: usize,
    /// Which of them this one is, from 0 on.
    pub rank: usize,
    /// `[N]`.
    pub states: M::View<'a, SoftmaxState>,
}

impl<M: Memory, P: Number> UnitSums<'_, M, P> {
    fn check<Q: Place<Memory = M>, T: Number, W: Number>(
        &self,
        place: &Q,
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
    ) -> Result<()> {
        let rows = hidden.most_scored_rows();
        check_view_mut(place, "unit sums", &self.sums, rows.saturating_mul(head.weight().columns()))?;
        check_view_mut(place, "rests of the unit sums", &self.rests, rows)
    }
}

impl<M: Memory, P: Number> LinearParts<'_, M, P> {
    /// Checks lengths and places. Gives the number of partial rows for each row.
    pub(crate) fn check<Q: Place<Memory = M>, T: Number, W: Number>(
        &self,
        place: &Q,
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
    ) -> Result<usize> {
        place.check_place_mut("partial rows", &self.partial_rows)?;
        if let Some(unit_sums) = &self.unit_sums {
            unit_sums.check(place, hidden, head)?;
        }
        per_row(M::length_mut(&self.partial_rows), hidden.states.rows(), head.vocab())
    }
}

impl<M: Memory, P: Number> GatheredRows<'_, M, P> {
    /// Checks lengths, places and the rank, and those of the sums. Gives the number of a rank's partial rows for each row.
    pub(crate) fn check<Q: Place<Memory = M>, T: Number, W: Number>(
        &self,
        place: &Q,
        hidden: &Hidden<'_, '_, T, M>,
        head: &Head<'_, W, M>,
        unit_sums: &UnitSums<'_, M, P>,
    ) -> Result<usize> {
        place.check_place("partial rows", &self.partial_rows)?;
        check_view(place, "softmax states", &self.states, hidden.states.rows())?;
        unit_sums.check(place, hidden, head)?;
        let per_row = per_row_of_ranks(M::length(&self.partial_rows), hidden.states.rows(), self.ranks)?;
        check_rank(self.rank, self.ranks)?;
        Ok(per_row)
    }
}
