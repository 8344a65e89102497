//! Log-probs straight from hidden states, over device addresses; see [`Cuda::linear_token_log_probs`] for what is
//! launched and held.

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::Address;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs, clear_head};
use crate::cuda::raw::token_log_prob::{ForwardOutputs, Upstream};
use crate::error::Result;
use crate::options::LogitOptions;
use std::ops::Range;

/// Chunks of `length` that together are `0..end`.
pub(crate) fn chunks(end: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(length).map(move |begin| begin..end.min(begin + length))
}

/// Hidden states and targets to log-probs, softmax states and, if wanted, entropies.
///
/// # Errors
/// [`Error::Vocabulary`](crate::Error::Vocabulary), [`Error::Shape`](crate::Error::Shape),
/// [`Error::Length`](crate::Error::Length) for shapes that do not fit,
/// [`Error::NoCublas`](crate::Error::NoCublas), [`Error::Cuda`](crate::Error::Cuda). What the device finds is in
/// [`Cuda::status`].
///
/// # Safety
/// 1. The matrices cover their rows as they say, in memory that the stream may read, and hold their `dtype`; the bias
///    holds V numbers of it.
/// 2. The targets are N ids, and `outputs` has room for N results, each address aligned to its type.
/// 3. Nothing else writes what is read, or touches what is written, until the stream has run it.
/// 4. Outputs overlap neither one another nor the inputs.
pub unsafe fn linear_token_log_probs(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    let _current = CurrentContext::keep()?;
    // SAFETY: the caller's promise.
    cuda.with_linear_scratch(|work| unsafe { forward_with_scratch(cuda, work, inputs, options, outputs) })
}

/// [`linear_token_log_probs`] with scratch memory.
///
/// # Safety
/// As [`linear_token_log_probs`].
unsafe fn forward_with_scratch(
    cuda: &Cuda,
    work: &mut LinearScratch,
    inputs: &LinearInputs,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    let ForwardOutputs { log_probs, states, entropies } = outputs;
    let results = RowResults { log_probs, states, entropies, losses: 0 };
    let columns = work.chunks.columns();
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, results)? };
    if pass.count == 0 {
        return Ok(());
    }
    for chunk in chunks(pass.vocab(), columns) {
        // SAFETY: the caller's promise.
        unsafe {
            let logits = pass.logits(0..pass.count, chunk.clone())?;
            pass.fold(&logits, 0, chunk.start, &results)?;
        }
    }
    Ok(())
}

/// The gradients of hidden states, weight and bias; logits are computed again.
///
/// # Errors
/// As [`linear_token_log_probs`], and [`Error::GradientType`](crate::Error::GradientType),
/// [`Error::EntropiesNotKept`](crate::Error::EntropiesNotKept).
///
/// # Safety
/// 1. to 4. of [`linear_token_log_probs`], with the gradients as outputs.
/// 5. `states` and `entropies` are those of the forward pass over the same operands with the same options.
/// 6. `upstream` holds as many entries as it says.
pub unsafe fn linear_token_log_probs_backward(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    (states, entropies): (Address, Address),
    upstream: Upstream,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    let _current = CurrentContext::keep()?;
    let saved = (states, entropies);
    // SAFETY: the caller's promise.
    cuda.with_linear_scratch(|work| unsafe {
        backward_with_scratch(cuda, work, inputs, options, saved, upstream, gradients)
    })
}

/// [`linear_token_log_probs_backward`] with scratch memory.
///
/// # Safety
/// As [`linear_token_log_probs_backward`].
unsafe fn backward_with_scratch(
    cuda: &Cuda,
    work: &mut LinearScratch,
    inputs: &LinearInputs,
    options: &LogitOptions,
    (states, entropies): (Address, Address),
    upstream: Upstream,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    gradients.check(inputs)?;
    let upstream = upstream.of_rows(entropies)?;
    if !gradients.any() {
        return Ok(());
    }
    let columns = work.chunks.columns();
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, RowResults::default())? };
    if pass.count == 0 {
        // SAFETY: the caller's promise.
        unsafe { clear_head(cuda, gradients, pass.vocab())? };
    } else {
        if gradients.accumulate {
            // SAFETY: the caller's promise.
            unsafe { pass.withhold(0..pass.count, (states, upstream))? };
        }
        // SAFETY: the caller's promise.
        let factors = unsafe { pass.gradient_scale(0..pass.count, upstream)? };
        for chunk in chunks(pass.vocab(), columns) {
            let begin = chunk.start;
            // SAFETY: the caller's promise.
            unsafe {
                let logits = pass.logits(0..pass.count, chunk)?;
                let of_logits = pass.gradients(&logits, 0, begin, (states, upstream, factors))?;
                if gradients.hidden.is_some() {
                    pass.hidden_product(&of_logits, 0, begin, begin == 0, factors)?;
                }
                if let Some(weight) = &gradients.weight {
                    pass.weight_product(&of_logits, 0, (weight, begin), gradients.accumulate, factors)?;
                }
                if gradients.bias != 0 {
                    pass.bias_sums(&of_logits, begin, gradients, (true, true), factors)?;
                }
            }
        }
    }
    match &gradients.hidden {
        // SAFETY: the caller's promise.
        Some(hidden) => unsafe { pass.scatter(hidden) },
        None => Ok(()),
    }
}
