//! Token log-probs on the device: launches `kernels/token_log_prob.cu` and `kernels/token_log_prob_backward.cu`.

use crate::cuda::memory::{Address, Held};
use crate::cuda::raw::token_log_prob;
use crate::cuda::raw::token_log_prob::Upstream;
use crate::cuda::{Cuda, Matrix, MatrixMut, RowGradients, SavedRows, Targets, TokenLogProbs, raw};
use crate::data::matrix::check_vocab;
use crate::element::{Element, Number};
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::log_ratio::check_targets;
use crate::stage::token_log_prob::{check_gradient, check_logits, check_saved};
use cudarc::driver::CudaStream;

/// Target ids at an address, and what keeps them in order.
pub(super) fn targets_at<'v>(targets: &'v Targets<'_>, stream: &'v CudaStream) -> (raw::Targets, Held<'v>) {
    match targets {
        Targets::U32(ids) => {
            let (address, held) = ids.address(stream);
            (raw::Targets::U32(address), held)
        }
        Targets::I64(ids) => {
            let (address, held) = ids.address(stream);
            (raw::Targets::I64(address), held)
        }
    }
}

/// An optional view at an address, 0 without one, and what keeps it in order.
pub(super) fn optional<'v, T: Number>(
    view: Option<&'v crate::cuda::View<'_, T>>,
    stream: &'v CudaStream,
) -> (Address, Held<'v>) {
    view.map_or((0, None), |view| view.address(stream))
}

/// The same of a view to write.
pub(super) fn optional_mut<'v, T: Number>(
    view: Option<&'v mut crate::cuda::ViewMut<'_, T>>,
    stream: &'v CudaStream,
) -> (Address, Held<'v>) {
    view.map_or((0, None), |view| view.address(stream))
}

/// The gradient that comes back, at addresses, and what keeps it in order.
pub(super) fn upstream_at<'v>(upstream: &'v RowGradients<'_>, stream: &'v CudaStream) -> (Upstream, [Held<'v>; 2]) {
    match upstream {
        RowGradients::PerRow { log_probs, entropies } => {
            let (log_probs, read) = log_probs.address(stream);
            let (entropies, read_entropies) = optional(entropies.as_ref(), stream);
            (Upstream::PerRow { log_probs, entropies }, [read, read_entropies])
        }
        RowGradients::PerSequence { row_sequences, weights, loss_scale } => {
            let (row_sequences, read) = row_sequences.address(stream);
            let (sequences, (weights, read_weights)) = (weights.len(), weights.address(stream));
            let loss_scale = *loss_scale;
            (Upstream::PerSequence { row_sequences, weights, sequences, loss_scale }, [read, read_weights])
        }
    }
}

/// [`Backend::token_log_probs`](crate::Backend::token_log_probs).
pub(super) fn forward<T: Element>(
    cuda: &Cuda,
    logits: &Matrix<'_, T>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    mut outputs: TokenLogProbs<'_>,
) -> Result<()> {
    check_logits(cuda, logits)?;
    options.check_whole(logits.columns())?;
    check_targets(cuda, targets, logits.rows())?;
    outputs.check(cuda, logits.rows())?;
    let stream = &cuda.stream;
    let (address, _read_logits) = logits.data.address(stream);
    let (targets, _read_targets) = targets_at(targets, stream);
    let (log_probs, _write_log_probs) = outputs.log_probs.address(stream);
    let (states, _write_states) = outputs.states.address(stream);
    let (entropies, _write_entropies) = optional_mut(outputs.entropies.as_mut(), stream);
    let outputs = token_log_prob::ForwardOutputs { log_probs, states, entropies };
    // SAFETY: the views are as long as was checked, borrowed for as long as the launch takes to be ordered in the
    // stream, and mutable ones overlap nothing.
    unsafe { token_log_prob::token_log_probs(cuda, raw::at::<T>(address, logits.shape), targets, options, outputs) }
}

/// [`Backend::token_log_probs_backward`](crate::Backend::token_log_probs_backward).
pub(super) fn backward<T: Element>(
    cuda: &Cuda,
    logits: &Matrix<'_, T>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
    mut gradient: MatrixMut<'_, T>,
) -> Result<()> {
    check_gradient(cuda, logits, &gradient)?;
    let stream = &cuda.stream;
    let (address, _read) = logits.data.address(stream);
    let (gradient_address, _write) = gradient.data.address(stream);
    let logits = raw::at::<T>(address, logits.shape);
    launch_backward(cuda, logits, targets, options, saved, upstream, raw::at::<T>(gradient_address, gradient.shape))
}

/// [`Backend::token_log_probs_backward_in_place`](crate::Backend::token_log_probs_backward_in_place).
pub(super) fn backward_in_place<T: Element>(
    cuda: &Cuda,
    mut logits: MatrixMut<'_, T>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
) -> Result<()> {
    check_vocab(logits.columns())?;
    crate::backend::Place::check_place_mut(cuda, "logits", &logits.data)?;
    let (address, _write) = logits.data.address(&cuda.stream);
    let both = raw::at::<T>(address, logits.shape);
    launch_backward(cuda, both, targets, options, saved, upstream, both)
}

fn launch_backward(
    cuda: &Cuda,
    logits: raw::MatrixAt,
    targets: &Targets<'_>,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
    gradient: raw::MatrixAt,
) -> Result<()> {
    check_targets(cuda, targets, logits.rows)?;
    check_saved::<Cuda>(cuda, saved, upstream, logits.rows)?;
    let stream = &cuda.stream;
    let (targets, _read_targets) = targets_at(targets, stream);
    let (states, _read_states) = saved.states.address(stream);
    let (entropies, _read_entropies) = optional(saved.entropies.as_ref(), stream);
    let (upstream, _read_upstream) = upstream_at(upstream, stream);
    // SAFETY: the views are as long as was checked, borrowed until the launch is ordered in the stream; logits and gradient
    // are the caller's views, or one view twice.
    unsafe {
        token_log_prob::token_log_probs_backward(cuda, logits, targets, options, states, entropies, upstream, gradient)
    }
}
