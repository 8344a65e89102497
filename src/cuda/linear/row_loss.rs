//! A loss that is a sum over rows, forward and backward in one pass: two matrix products under a frozen head, and three under a
//! trained one.
//!
//! Rows are taken some at a time ([`LinearChunks::with_row_bytes`](super::LinearChunks::with_row_bytes), or as a forward pass
//! that keeps unit gradients takes them where the head is frozen), with all of their logits: R rows hold 4·R·V bytes in f32 and
//! b·R·V of what they become. For each: product, fold (`kernels/linear/fold.cu`), `kernels/linear/row_loss.cu`; exponentials,
//! product and unit gradients (`kernels/linear/unit_gradient.cu`), times the loss's gradient; logits to gradients, product of the
//! weight's, which is added up in f32. If there are several chunks and the weight's gradient is not in f32, that takes 4·V·H bytes
//! more, and one more launch that rounds. The rest is as in `cuda/linear/log_prob.rs`.

use crate::cuda::linear::{gradients_at, operands_at};
use crate::cuda::token_log_prob::targets_at;
use crate::cuda::{Cuda, Head, Hidden, LinearGradients, RowLosses, Targets, View, raw};
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::linear::{check_gradients, check_operands};
use crate::stage::log_ratio::check_targets;
use crate::stage::row_loss::RowLoss;

/// [`Backend::linear_row_loss`](crate::Backend::linear_row_loss). The log-probs have the bits of the two passes, if those of
/// an element of a product do not depend on its other rows and columns.
#[allow(clippy::too_many_arguments)]
pub(in crate::cuda) fn row_loss<T: Element, W: Element, G: Element>(
    cuda: &Cuda,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    loss: &RowLoss<View<'_, f32>>,
    mut outputs: RowLosses<'_>,
    mut gradients: LinearGradients<'_, T, G>,
) -> Result<()> {
    let rows = hidden.states.rows();
    loss.check(rows, View::len)?;
    loss.slices().try_for_each(|(what, slice)| crate::backend::Place::check_place(cuda, what, slice))?;
    outputs.check(cuda, rows)?;
    check_gradients(cuda, &gradients, &hidden, head)?;
    options.check_whole(head.vocab())?;
    check_targets(cuda, targets, rows)?;
    check_operands(cuda, &hidden, head)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (inputs, _read) = operands_at(cuda, &hidden, head, targets);
    let (gradients, _write) = gradients_at(cuda, &mut gradients);
    let (losses, _write_losses) = outputs.losses.address(stream);
    let (log_probs, _write_log_probs) = outputs.log_probs.address(stream);
    let outputs = raw::RowLossesAt { losses, log_probs };
    let (addresses, _read_loss): (Vec<_>, Vec<_>) = loss.slices().map(|(_, slice)| slice.address(stream)).unzip();
    let loss = match (loss, addresses.as_slice()) {
        (RowLoss::ClippedRatio { low, high, log_ratio_limit, .. }, &[weights, advantages, old_log_probs]) => {
            let (low, high, log_ratio_limit) = (*low, *high, *log_ratio_limit);
            RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit }
        }
        (_, addresses) => RowLoss::Weighted { weights: addresses[0] },
    };
    // SAFETY: the views are as long as was checked, borrowed until the launches are in the stream, and mutable ones
    // overlap nothing.
    unsafe { raw::linear_row_loss(cuda, &inputs, options, &loss, outputs, &gradients) }
}
