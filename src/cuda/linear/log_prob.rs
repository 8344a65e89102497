//! Log-probs straight from hidden states: launches of `kernels/linear/` between matrix products of cuBLAS.
//!
//! # What is launched, and what it moves
//!
//! N rows, M of them gathered (the number of scored rows if it was given, else N), R at a time, vocabulary V in chunks of C
//! columns, b bytes a hidden state's element. R is up to 8192, and R·C about 2²⁶: few rows take all of their columns at once.
//! For each R rows:
//!
//! | launch | times | bytes read | bytes written |
//! |---|---|---|---|
//! | scored rows (once) | 1 | N ids | 4(N + M) |
//! | bias in f32, if there is one (once) | 1 | b·V | 4·V |
//! | gather | 1 | b·R·H | b·R·H |
//! | **forward**: product, logits in f32 | V/C | b(C·H + R·H) | 4·R·C |
//! | fold | V/C | 4·R·C | 48·R |
//! | **backward**: product, logits in f32 | V/C | b(C·H + R·H) | 4·R·C |
//! | rows to leave out, where gradients of the head are added to | 1 | 16·R | |
//! | logits to gradients | V/C | 4·R·C | b·R·C |
//! | product, hidden gradient in f32 | V/C | b(C·H + R·C) + 4·R·H | 4·R·H |
//! | product, weight gradient of a chunk | V/C | b(R·H + R·C) | C·H |
//! | scatter, one rounding | 1 | 4·R·H | b·N·H |
//!
//! A forward pass that keeps something takes whole rows, C = V and R about 2²⁶/V:
//!
//! | launch | times | bytes read | bytes written |
//! |---|---|---|---|
//! | gather, product, fold | 1 | as above | |
//! | exponentials | 1 | 4·R·V | b·R·V |
//! | product, their sum with the weight | 1 | b(V·H + R·V) | 4·R·H |
//! | unit gradients | 1 | (4 + b)·R·H | 4·R·H |
//!
//! Its backward pass has in place of hidden gradient and scatter:
//!
//! | launch | times | bytes read | bytes written |
//! |---|---|---|---|
//! | hidden gradient | 1 | 4·M·H | b·N·H |
//!
//! and where the gradients of the logits were kept, in place of gather, logits and gradients, the coefficients of the rows, 4·R
//! bytes, and their hidden states times these, b·R·H.
//!
//! f16 has one more: the power of two that keeps gradients below 6e-8 from vanishing. A frozen weight or frozen hidden
//! states leave out their product. A bias's gradient reads the chunk once more.
//!
//! # Memory
//!
//! Besides the operands and results, and what is kept: 4·R·C bytes of logits, b·R·C of what they become (none for f32, which
//! takes the logits' place), b·R·H of gathered states, 4·R·H of their gradient or unit gradients, 48·R of sums, 4·R·V/8192 + 8·R of
//! what is kept, 4(N + M) of row numbers, 4·V for a bias, 4·V·H of the weight's gradient where that is not f32 and M is above
//! 8192, and 32 MiB for cuBLAS. It stays between calls, and nothing grows after the first of a shape.

use crate::cuda::linear::{gradients_at, operands_at};
use crate::cuda::raw::token_log_prob::ForwardOutputs;
use crate::cuda::token_log_prob::{optional, optional_mut, targets_at, upstream_at};
use crate::cuda::{Cuda, Head, Hidden, LinearGradients, LinearOutputs, RowGradients, SavedLinear, Targets, raw};
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::linear::{check_gradients, check_operands};
use crate::stage::log_ratio::check_targets;
use crate::stage::token_log_prob::check_saved;

/// [`Backend::linear_token_log_probs`](crate::Backend::linear_token_log_probs).
pub(in crate::cuda) fn forward<T: Element, W: Element>(
    cuda: &Cuda,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    outputs: LinearOutputs<'_>,
) -> Result<()> {
    let rows = hidden.states.rows();
    outputs.check(cuda, &hidden, head, <W as Element>::DTYPE)?;
    let LinearOutputs { rows: mut outputs, mut unit_gradients, mut logit_gradients } = outputs;
    options.check_whole(head.vocab())?;
    check_targets(cuda, targets, rows)?;
    check_operands(cuda, &hidden, head)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (inputs, _read) = operands_at(cuda, &hidden, head, targets);
    let (log_probs, _write_log_probs) = outputs.log_probs.address(stream);
    let (states, _write_states) = outputs.states.address(stream);
    let (entropies, _write_entropies) = optional_mut(outputs.entropies.as_mut(), stream);
    let (unit_gradients, _write_units) = optional_mut(unit_gradients.as_mut(), stream);
    let (logit_gradients, _write_logits) = optional_mut(logit_gradients.as_mut(), stream);
    let rows = ForwardOutputs { log_probs, states, entropies };
    let outputs = raw::LinearOutputsAt { rows, unit_gradients, logit_gradients };
    // SAFETY: the views are as long as was checked, borrowed until the launches are in the stream, and mutable ones
    // overlap nothing.
    unsafe { raw::linear_token_log_probs(cuda, &inputs, options, outputs) }
}

/// [`Backend::linear_token_log_probs_backward`](crate::Backend::linear_token_log_probs_backward). The logits are computed
/// again, a chunk at a time, so that nothing of their size is kept from the forward pass.
///
/// Products take operands of the head's type and sum up in f32: the gradient of a logit is rounded once to that type,
/// that of a hidden state and of a weight once to its buffer's.
#[allow(clippy::too_many_arguments)]
pub(in crate::cuda) fn backward<T: Element, W: Element, G: Element>(
    cuda: &Cuda,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    saved: &SavedLinear<'_>,
    upstream: &RowGradients<'_>,
    mut gradients: LinearGradients<'_, T, G>,
) -> Result<()> {
    let rows = hidden.states.rows();
    check_saved(cuda, &saved.rows, upstream, rows)?;
    saved.check(cuda, &hidden, head, <W as Element>::DTYPE, options)?;
    check_gradients(cuda, &gradients, &hidden, head)?;
    check_targets(cuda, targets, rows)?;
    check_operands(cuda, &hidden, head)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (inputs, _read) = operands_at(cuda, &hidden, head, targets);
    let (gradients, _write) = gradients_at(cuda, &mut gradients);
    let (states, _read_states) = saved.rows.states.address(stream);
    let (entropies, _read_entropies) = optional(saved.rows.entropies.as_ref(), stream);
    let (unit_gradients, _read_units) = optional(saved.unit_gradients.as_ref(), stream);
    let (logit_gradients, _read_logits) = optional(saved.logit_gradients.as_ref(), stream);
    let saved = raw::SavedLinearAt { states, entropies, unit_gradients, logit_gradients };
    let (upstream, _read_upstream) = upstream_at(upstream, stream);
    // SAFETY: as in the forward pass.
    unsafe { raw::linear_token_log_probs_backward(cuda, &inputs, options, saved, upstream, &gradients) }
}
