//! Rows whose columns lie on several ranks, over views of device memory.

use crate::cuda::raw::partial_row::{self, PartialRowsAt};
use crate::cuda::raw::{self, token_log_prob::ForwardOutputs};
use crate::cuda::token_log_prob::{optional_mut, targets_at};
use crate::cuda::{Cuda, Matrix, Targets, TokenLogProbs, View, ViewMut};
use crate::data::memory::Place;
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::log_ratio::check_targets;
use crate::stage::partial_row::{per_row, per_row_of_ranks};
use crate::stage::token_log_prob::check_logits;

/// What a CUDA device keeps of one slice of a row, for ranks to exchange: 16 bytes, four f32. A sum over ranks, each of which
/// has zeros where the others' parts are, leaves them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(16))]
pub struct PartialRow {
    /// Exponent of the scale of the sums, in base 2; an integer.
    pub r: f32,
    /// Σ 2^(z·log2 e − r).
    pub s: f32,
    /// The same, each term times its exponent; for the entropy.
    pub weighted: f32,
    /// The target's logit, where it is one of these columns; else 0.
    pub target: f32,
}

/// [`Backend::partial_rows`](crate::Backend::partial_rows).
pub(super) fn partial_rows<T: Element>(
    cuda: &Cuda,
    logits: &Matrix<'_, T>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    entropy: bool,
    mut parts: ViewMut<'_, PartialRow>,
) -> Result<()> {
    check_logits(cuda, logits)?;
    check_targets(cuda, targets, logits.rows())?;
    cuda.check_place_mut("partial rows", &parts)?;
    let per_row = per_row(parts.len(), logits.rows(), logits.columns())?;
    let stream = &cuda.stream;
    let (address, _read_logits) = logits.data.address(stream);
    let (targets, _read_targets) = targets_at(targets, stream);
    let (parts, _write_parts) = parts.address(stream);
    let (logits, parts) = (raw::at::<T>(address, logits.shape), PartialRowsAt { address: parts, per_row });
    // SAFETY: the views are as long as was checked, borrowed until the launch is ordered in the stream, and the mutable one
    // overlaps nothing.
    unsafe { partial_row::partial_rows(cuda, logits, targets, options, entropy, parts) }
}

/// [`Backend::merge_rows`](crate::Backend::merge_rows).
pub(super) fn merge_rows(
    cuda: &Cuda,
    parts: &View<'_, PartialRow>,
    ranks: usize,
    targets: &Targets<'_>,
    options: &LogitOptions,
    mut outputs: TokenLogProbs<'_>,
) -> Result<()> {
    let rows = targets.len();
    check_targets(cuda, targets, rows)?;
    cuda.check_place("partial rows", parts)?;
    let per_row = per_row_of_ranks(parts.len(), rows, ranks)?;
    outputs.check(cuda, rows)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (parts, _read_parts) = parts.address(stream);
    let (log_probs, _write_log_probs) = outputs.log_probs.address(stream);
    let (states, _write_states) = outputs.states.address(stream);
    let (entropies, _write_entropies) = optional_mut(outputs.entropies.as_mut(), stream);
    let (outputs, parts) = (ForwardOutputs { log_probs, states, entropies }, PartialRowsAt { address: parts, per_row });
    // SAFETY: the views are as long as was checked, borrowed until the launch is ordered in the stream, and mutable ones
    // overlap nothing.
    unsafe { partial_row::merge_rows(cuda, parts, (ranks, rows), targets, options, outputs) }
}

// SAFETY: four f32, nothing else.
unsafe impl cudarc::driver::DeviceRepr for PartialRow {}
