//! The linear stage under a rank's rows of a head, for [`ReferenceBackend`](crate::reference::ReferenceBackend).

use crate::element::Element;
use crate::host::{GatheredRows, Head, LinearParts, Matrix, RowGradients, SavedRows, Targets, UnitSums};
use crate::options::LogitOptions;
use crate::reference::backend::{has_gradient, upstream_of};
use crate::reference::linear_log_prob;
use crate::reference::partial_row::{PartialRow, partial};
use crate::reference::token_log_prob::capped;

/// Row and target of each scored row.
fn scored_rows(targets: &Targets<'_>) -> Vec<(usize, usize)> {
    (0..targets.len()).filter_map(|row| targets.column(row).map(|target| (row, target))).collect()
}

/// A rank's part of each row, and Σ' e_j·σ_j·W_j of its columns that are not the target.
pub(super) fn partial_rows<T: Element, W: Element>(
    hidden: &Matrix<'_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    per_row: usize,
    mut outputs: LinearParts<'_, PartialRow>,
) {
    let shard = options.shard_of(head.vocab());
    let head = &head.without_padding(shard);
    outputs.partial_rows.fill(PartialRow::EMPTY);
    for (index, (row, target)) in scored_rows(targets).into_iter().enumerate() {
        let logits = linear_log_prob::logits(hidden.row(row), head);
        let target = shard.column_of(target, head.vocab());
        outputs.partial_rows[row * per_row] = partial(&logits, target, options);
        let Some(UnitSums { sums, rests }) = &mut outputs.unit_sums else { continue };
        let mut others = logits.clone();
        if let Some(target) = target {
            others[target] = f64::NEG_INFINITY;
        }
        let rest = partial(&others, None, options);
        // The logit itself: the softcap's slope is made of it.
        rests[index] = PartialRow { target: target.map_or(0.0, |target| logits[target]), ..rest };
        let size = hidden.columns();
        let sums = &mut sums[index * size..(index + 1) * size];
        for (i, out) in sums.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (column, x) in capped(&others, options).into_iter().enumerate() {
                let weight = f64::from(head.weight().row(column)[i].to_f32());
                // Excluded columns, and the target.
                if x != f64::NEG_INFINITY {
                    sum += ((x - rest.top) / options.temperature()).exp() * slope(logits[column], options) * weight;
                }
            }
            *out = sum as f32;
        }
    }
}

/// The rank's share of T·∂ log π/∂h, from these sums.
pub(super) fn unit_gradients<W: Element>(
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    per_row: usize,
    gathered: &GatheredRows<'_, PartialRow>,
    unit_sums: UnitSums<'_, PartialRow>,
) {
    let (shard, size) = (options.shard_of(head.vocab()), head.weight().columns());
    let UnitSums { sums, rests } = unit_sums;
    for (index, (row, target)) in scored_rows(targets).into_iter().enumerate() {
        let sums = &mut sums[index * size..(index + 1) * size];
        let (rest, state) = (rests[index], gathered.states[row]);
        if state.s.is_nan() {
            sums.fill(f32::NAN);
            continue;
        }
        // Of all columns but the target: the other ranks' whole parts, and what this one has without it.
        let mut others = vec![rest];
        for rank in (0..gathered.ranks).filter(|rank| *rank != gathered.rank) {
            others.extend_from_slice(&gathered.partial_rows[(rank * targets.len() + row) * per_row..][..per_row]);
        }
        others.retain(|part| part.top != f64::NEG_INFINITY);
        let top = others.iter().map(|part| part.top).fold(f64::NEG_INFINITY, f64::max);
        let power = |part: &PartialRow| ((part.top - top) / options.temperature()).exp();
        let all: f64 = others.iter().map(|part| power(part) * (1.0 + part.tail)).sum();
        let to_state = (top / options.temperature() - f64::from(state.r) * std::f64::consts::LN_2).exp();
        let own = if rest.top == f64::NEG_INFINITY { 0.0 } else { power(&rest) };
        let target = shard.column_of(target, shard.columns(head.vocab()));
        for (i, sum) in sums.iter_mut().enumerate() {
            let of_target = target.map_or(0.0, |target| {
                all * slope(rest.target, options) * f64::from(head.weight().row(target)[i].to_f32())
            });
            *sum = ((of_target - own * f64::from(*sum)) * to_state / f64::from(state.s)) as f32;
        }
    }
}

/// The gradients of the hidden states from kept unit gradients, which are then those of all ranks.
pub(super) fn use_units(
    hidden: &mut [f64],
    units: &[f32],
    targets: &Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
) {
    let size = hidden.len() / targets.len().max(1);
    for (index, (row, _)) in scored_rows(targets).into_iter().enumerate() {
        let (g, e) = upstream_of(row, upstream);
        let fits = has_gradient(row, options, saved, (g, e));
        for i in 0..size {
            let gradient = if g == 0.0 { 0.0 } else { g / options.temperature() * f64::from(units[index * size + i]) };
            hidden[row * size + i] = if fits { gradient } else { f64::NAN };
        }
    }
}

/// d capped logit / d logit.
fn slope(logit: f64, options: &LogitOptions) -> f64 {
    let softcap = options.softcap();
    if softcap == 0.0 { 1.0 } else { (logit / softcap).cosh().powi(-2) }
}
