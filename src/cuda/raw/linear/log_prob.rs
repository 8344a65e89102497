//! Log-probs straight from hidden states, over device addresses; see [`Cuda::linear_token_log_probs`] for what is
//! launched and held.

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::raw::linear::head::HeadGradients;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs, LinearOutputsAt, SavedLinearAt, clear_head};
use crate::cuda::raw::token_log_prob::{Upstream, UpstreamOfRows};
use crate::error::Result;
use crate::options::LogitOptions;
use std::ops::Range;

/// Hidden states and targets to log-probs, softmax states and, if wanted, entropies, and what is kept for the backward pass.
///
/// # Errors
/// [`Error::Vocabulary`](crate::Error::Vocabulary), [`Error::Shape`](crate::Error::Shape),
/// [`Error::Length`](crate::Error::Length) for shapes that do not fit,
/// [`Error::PartOfVocabulary`](crate::Error::PartOfVocabulary),
/// [`Error::NoCublas`](crate::Error::NoCublas), [`Error::Cuda`](crate::Error::Cuda). What the device finds is in
/// [`Cuda::status`].
///
/// # Safety
/// 1. The matrices cover their rows as they say, in memory that the stream may read, and hold their `dtype`; the bias
///    holds V numbers of it.
/// 2. The targets are N ids, and `outputs` has room for N results, each address aligned to its type, and for what is kept as
///    [`LinearOutputsAt`] says.
/// 3. Nothing else writes what is read, or touches what is written, until the stream has run it.
/// 4. Outputs overlap neither one another nor the inputs.
pub unsafe fn linear_token_log_probs(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    outputs: impl Into<LinearOutputsAt>,
) -> Result<()> {
    let (_current, outputs) = (CurrentContext::enter(cuda.stream.context())?, outputs.into());
    // SAFETY: the caller's promise.
    cuda.with_linear_scratch(|work| unsafe { forward_with_scratch(cuda, work, inputs, options, &outputs) })
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
    outputs: &LinearOutputsAt,
) -> Result<()> {
    options.check_whole(inputs.weight.rows)?;
    let rows = outputs.rows;
    let results = RowResults { log_probs: rows.log_probs, states: rows.states, entropies: rows.entropies, losses: 0 };
    let keeps = outputs.unit_gradients != 0;
    let (count, vocab) = (inputs.gathered_rows(), inputs.weight.rows);
    let chunk = if keeps { work.chunks.of_rows(count, vocab) } else { work.chunks.of_columns(count, vocab) };
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, results, chunk)? };
    for taken in pass.row_chunks() {
        // SAFETY: the caller's promise.
        unsafe { pass.gather(taken)? };
        for columns in pass.column_chunks() {
            // SAFETY: the caller's promise; where something is kept these are all columns.
            unsafe {
                let logits = pass.logits(columns.clone())?;
                pass.fold(&logits, columns.start, &results)?;
                if keeps {
                    pass.keep(&logits, &results, outputs)?;
                }
            }
        }
    }
    Ok(())
}

/// The gradients of hidden states, weight and bias; logits are computed again where what was kept is not enough.
///
/// # Errors
/// As [`linear_token_log_probs`], and [`Error::GradientType`](crate::Error::GradientType),
/// [`Error::EntropiesNotKept`](crate::Error::EntropiesNotKept); [`Error::PartOfVocabulary`](crate::Error::PartOfVocabulary) for kept
/// gradients of the logits under part of a head.
///
/// # Safety
/// 1. to 4. of [`linear_token_log_probs`], with the gradients as outputs.
/// 5. What is saved is that of the forward pass over the same operands with the same options.
/// 6. `upstream` holds as many entries as it says.
pub unsafe fn linear_token_log_probs_backward(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    saved: impl Into<SavedLinearAt>,
    upstream: Upstream,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    let (_current, saved) = (CurrentContext::enter(cuda.stream.context())?, saved.into());
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
    saved: SavedLinearAt,
    upstream: Upstream,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    inputs.check()?;
    gradients.check(inputs)?;
    if saved.logit_gradients != 0 {
        // No rank keeps any.
        options.check_whole(inputs.weight.rows)?;
    }
    let upstream = upstream.of_rows(saved.entropies)?;
    if !gradients.any() {
        return Ok(());
    }
    // The gradient of an entropy is no multiple of what was kept.
    let saved = if upstream.entropy_gradients == 0 { saved } else { saved.without_kept() };
    let (held, inputs) = (inputs.weight.rows, &inputs.without_padding(options));
    let (count, vocab) = (inputs.gathered_rows(), inputs.weight.rows);
    let chunk = work.chunks.of_columns(count, vocab);
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, RowResults::default(), chunk)? };
    // No row adds to what belongs to padding.
    let without_rows = if count == 0 { 0..held } else { vocab..held };
    // SAFETY: the caller's promise.
    unsafe { clear_head(cuda, gradients, without_rows)? };
    let gradients = &gradients.of_columns(vocab);
    let multiplies_hidden = gradients.hidden.is_some() && saved.unit_gradients == 0;
    if multiplies_hidden || gradients.has_head() {
        let head = HeadGradients::new(&mut pass, gradients)?;
        for taken in pass.row_chunks() {
            // SAFETY: the caller's promise.
            unsafe {
                if saved.logit_gradients != 0 && !multiplies_hidden {
                    pass.of_kept_logits(taken, &saved, upstream, gradients, &head)?;
                } else {
                    pass.of_new_logits(taken, &saved, upstream, gradients, &head)?;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { head.finish(&pass)? };
    }
    match &gradients.hidden {
        // SAFETY: the caller's promise.
        Some(hidden) if !multiplies_hidden => unsafe {
            pass.hidden_gradient(hidden, &saved.units(&pass), 0..count, (saved.states, upstream))
        },
        // SAFETY: the caller's promise.
        Some(hidden) if count == 0 => unsafe { pass.scatter(hidden) },
        _ => Ok(()),
    }
}

impl Pass<'_> {
    /// The gradients of a chunk's rows by their logits, which are made again.
    ///
    /// # Safety
    /// As [`linear_token_log_probs_backward`].
    unsafe fn of_new_logits(
        &mut self,
        taken: Range<usize>,
        saved: &SavedLinearAt,
        upstream: UpstreamOfRows,
        gradients: &LinearGradientsAt,
        head: &HeadGradients,
    ) -> Result<()> {
        let multiplies_hidden = gradients.hidden.is_some() && saved.unit_gradients == 0;
        // SAFETY: the caller's promise.
        unsafe {
            self.gather(taken)?;
            if gradients.accumulate {
                self.withhold((saved.states, upstream))?;
            }
            let factors = self.gradient_scale(upstream)?;
            for columns in self.column_chunks() {
                let begin = columns.start;
                let logits = self.logits(columns)?;
                let of_logits = self.gradients(&logits, begin, (saved.states, upstream, factors))?;
                if multiplies_hidden {
                    self.hidden_product(&of_logits, begin, begin == 0, factors)?;
                }
                head.add(self, &of_logits, begin, 0, factors)?;
            }
            match &gradients.hidden {
                Some(hidden) if multiplies_hidden => self.scatter(hidden),
                _ => Ok(()),
            }
        }
    }

    /// The gradients of the head by a chunk's rows, from what was kept of their logits.
    ///
    /// # Safety
    /// As [`linear_token_log_probs_backward`].
    unsafe fn of_kept_logits(
        &mut self,
        taken: Range<usize>,
        saved: &SavedLinearAt,
        upstream: UpstreamOfRows,
        gradients: &LinearGradientsAt,
        head: &HeadGradients,
    ) -> Result<()> {
        self.taken = taken;
        // Those that fill a chunk up have none.
        self.taken.end = self.taken.end.min(self.count);
        let kept = saved.logits(self);
        // SAFETY: the caller's promise.
        unsafe {
            if gradients.accumulate {
                self.withhold((saved.states, upstream))?;
            }
            let (coefficients, factors) = self.coefficients(kept.shifts, (saved.states, upstream))?;
            self.gather_scaled(coefficients, factors)?;
            head.add(self, &kept.gradients, 0, coefficients, factors)
        }
    }
}

impl SavedLinearAt {
    /// The same without what was kept besides the rows' states.
    fn without_kept(self) -> Self {
        Self { unit_gradients: 0, logit_gradients: 0, ..self }
    }
}
