//! The linear stage under a rank's rows of a head, over views of device memory.
//!
//! The launches are those of `cuda/linear/log_prob.rs` with these in addition or in place of others, for N rows of P parts and M
//! gathered, R at a time (`kernels/linear/shard.cu`):
//!
//! | launch | times | bytes read | bytes written |
//! |---|---|---|---|
//! | empty parts | 1 | 4·N | 16·P·N |
//! | unit sums, after product, fold, exponentials and product | M/R | 4·R·H | 4·R·H + 16·R |
//! | share in unit gradients, once all ranks' parts are here | 1 | 4·M·H, 16·P·M for each rank, b·H for each target | 4·M·H |
//!
//! Besides what is held there it takes 12·N bytes, where unit sums are kept.

use crate::cuda::linear::operands_at;
use crate::cuda::raw::partial_row::PartialRowsAt;
use crate::cuda::token_log_prob::targets_at;
use crate::cuda::{Cuda, GatheredRows, Head, Hidden, LinearParts, PartialRow, Targets, UnitSums, raw};
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::linear::check_operands;
use crate::stage::log_ratio::check_targets;

/// [`Backend::linear_partial_rows`](crate::Backend::linear_partial_rows).
pub(in crate::cuda) fn partial_rows<T: Element, W: Element>(
    cuda: &Cuda,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    entropy: bool,
    outputs: LinearParts<'_, PartialRow>,
) -> Result<()> {
    let per_row = outputs.check(cuda, &hidden, head)?;
    check_targets(cuda, targets, hidden.states.rows())?;
    check_operands(cuda, &hidden, head)?;
    let LinearParts { mut partial_rows, mut unit_sums } = outputs;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (inputs, _read) = operands_at(cuda, &hidden, head, targets);
    let (parts, _write_parts) = partial_rows.address(stream);
    let parts = PartialRowsAt { address: parts, per_row };
    let (sums, _write) = unit_sums.as_mut().map(|sums| unit_sums_at(cuda, sums)).unzip();
    // SAFETY: the views are as long as was checked, borrowed until the launches are in the stream, and mutable ones
    // overlap nothing.
    unsafe { raw::linear_partial_rows(cuda, &inputs, options, entropy, parts, sums.unwrap_or_default()) }
}

/// [`Backend::linear_unit_gradients`](crate::Backend::linear_unit_gradients).
pub(in crate::cuda) fn unit_gradients<T: Element, W: Element>(
    cuda: &Cuda,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    gathered: &GatheredRows<'_, PartialRow>,
    mut unit_sums: UnitSums<'_, PartialRow>,
) -> Result<()> {
    let per_row = gathered.check(cuda, &hidden, head, &unit_sums)?;
    check_targets(cuda, targets, hidden.states.rows())?;
    check_operands(cuda, &hidden, head)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (inputs, _read) = operands_at(cuda, &hidden, head, targets);
    let (parts, _read_parts) = gathered.partial_rows.address(stream);
    let (states, _read_states) = gathered.states.address(stream);
    let partial_rows = PartialRowsAt { address: parts, per_row };
    let gathered = raw::GatheredRowsAt { partial_rows, ranks: gathered.ranks, rank: gathered.rank, states };
    let (sums, _write) = unit_sums_at(cuda, &mut unit_sums);
    // SAFETY: as above.
    unsafe { raw::linear_unit_gradients(cuda, &inputs, options, &gathered, sums) }
}

/// The sums as addresses, and what keeps them in order.
fn unit_sums_at<'v>(
    cuda: &'v Cuda,
    unit_sums: &'v mut UnitSums<'_, PartialRow>,
) -> (raw::UnitSumsAt, [crate::cuda::memory::Held<'v>; 2]) {
    let (sums, write_sums) = unit_sums.sums.address(&cuda.stream);
    let (rests, write_rests) = unit_sums.rests.address(&cuda.stream);
    (raw::UnitSumsAt { sums, rests }, [write_sums, write_rests])
}
