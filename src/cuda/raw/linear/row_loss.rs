//! A loss that is a sum over rows, forward and backward in one pass, over device addresses; see
//! [`Cuda::linear_row_loss`].

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::log_prob::chunks;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs, clear_head};
use crate::cuda::raw::token_log_prob::Upstream;
use crate::cuda::raw::{MatrixAt, launch, passed_by_value};
use crate::element::Dtype;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::row_loss::RowLoss;
use std::ops::Range;

/// What the row loss writes, besides the gradients.
#[derive(Clone, Copy, Debug)]
pub struct RowLossesAt {
    /// `[N]` f32.
    pub losses: Address,
    /// `[N]` f32.
    pub log_probs: Address,
}

/// Hidden states and targets to row losses, log-probs and gradients.
///
/// # Errors
/// As [`linear_token_log_probs_backward`](super::log_prob::linear_token_log_probs_backward), and
/// [`Error::Parameter`](crate::Error::Parameter) for a clipping range or a limit out of range. Numbers that [`RowLoss`] does
/// not accept are counted: [`Cuda::status`].
///
/// # Safety
/// 1. to 4. of [`linear_token_log_probs`](super::log_prob::linear_token_log_probs), with the gradients as outputs too.
/// 5. The loss's addresses hold N f32 each, and none is 0.
pub unsafe fn linear_row_loss(
    cuda: &Cuda,
    inputs: &LinearInputs,
    options: &LogitOptions,
    loss: &RowLoss<Address>,
    outputs: RowLossesAt,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    let _current = CurrentContext::keep()?;
    // Before memory is taken for so many rows.
    inputs.check()?;
    loss.check(inputs.hidden.rows, |_| inputs.hidden.rows)?;
    gradients.check(inputs)?;
    // SAFETY: the caller's promise.
    cuda.with_linear_scratch(|work| unsafe { with_scratch(cuda, work, inputs, options, loss, outputs, gradients) })
}

/// [`linear_row_loss`] with scratch memory, of arguments that have been checked.
///
/// # Safety
/// As [`linear_row_loss`].
unsafe fn with_scratch(
    cuda: &Cuda,
    work: &mut LinearScratch,
    inputs: &LinearInputs,
    options: &LogitOptions,
    loss: &RowLoss<Address>,
    outputs: RowLossesAt,
    gradients: &LinearGradientsAt,
) -> Result<()> {
    let stream = &cuda.stream;
    let results = RowResults {
        log_probs: outputs.log_probs,
        states: address(&mut work.states, stream, inputs.hidden.rows)?,
        entropies: 0,
        losses: outputs.losses,
    };
    let row_gradients = address(&mut work.row_gradients, stream, inputs.hidden.rows)?;
    let at_once = work.chunks.rows(inputs.weight.rows.max(1));
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, results)? };
    let (count, vocab) = (pass.count, pass.vocab());
    let of_loss = arguments(loss, outputs, row_gradients, options);
    let upstream = Upstream::PerRow { log_probs: row_gradients, entropies: 0 }.of_rows(0)?;
    // Several chunks add up in f32: beside the buffer, if that is of another type.
    let beside = match gradients.weight {
        Some(weight) if count > at_once && weight.dtype != Dtype::F32 => Some(weight_sums(&mut pass)?),
        _ => None,
    };
    for rows in chunks(count, at_once) {
        let (is_first, is_last) = (rows.start == 0, rows.end == count);
        // SAFETY: the caller's promise.
        unsafe {
            let logits = pass.logits(rows.clone(), 0..vocab)?;
            pass.fold(&logits, rows.start, 0, &results)?;
            pass.row_losses(rows.clone(), of_loss)?;
            if !gradients.any() {
                continue;
            }
            if gradients.accumulate {
                pass.withhold(rows.clone(), (results.states, upstream))?;
            }
            let factors = pass.gradient_scale(rows.clone(), upstream)?;
            let of_logits = pass.gradients(&logits, rows.start, 0, (results.states, upstream, factors))?;
            if gradients.hidden.is_some() {
                pass.hidden_product(&of_logits, rows.start, 0, true, factors)?;
            }
            if let Some(weight) = &gradients.weight {
                let target = beside.as_ref().unwrap_or(weight);
                let accumulate = !is_first || (beside.is_none() && gradients.accumulate);
                pass.weight_product(&of_logits, rows.start, (target, 0), accumulate, factors)?;
            }
            if gradients.bias != 0 {
                pass.bias_sums(&of_logits, 0, gradients, (is_first, is_last), factors)?;
            }
        }
    }
    if count == 0 {
        // SAFETY: the caller's promise.
        unsafe { clear_head(cuda, gradients, vocab)? };
    }
    if let (Some(sums), Some(weight)) = (&beside, &gradients.weight) {
        // SAFETY: the caller's promise.
        unsafe { pass.round_weight(sums, weight, gradients.accumulate)? };
    }
    match &gradients.hidden {
        // SAFETY: the caller's promise.
        Some(hidden) => unsafe { pass.scatter(hidden) },
        None => Ok(()),
    }
}

fn weight_sums(pass: &mut Pass<'_>) -> Result<MatrixAt> {
    let weight = pass.inputs.weight;
    let place = address(&mut pass.work.weight_sums, &pass.cuda.stream, weight.rows * weight.columns)?;
    Ok(MatrixAt { address: place, row_stride: weight.columns, dtype: Dtype::F32, ..weight })
}

/// The kernel's arguments, but for the rows.
fn arguments(
    loss: &RowLoss<Address>,
    outputs: RowLossesAt,
    gradients: Address,
    options: &LogitOptions,
) -> RowLossArguments {
    let RowLossesAt { losses, log_probs } = outputs;
    let (weights, advantages, old_log_probs, low, high, log_ratio_limit) = match *loss {
        RowLoss::Weighted { weights } => (weights, 0, 0, 0.0, 0.0, 0.0),
        RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit } => {
            (weights, advantages, old_log_probs, low, high, log_ratio_limit)
        }
    };
    RowLossArguments {
        rows: 0,
        log_probs,
        weights,
        advantages,
        old_log_probs,
        losses,
        gradients,
        status: 0,
        largest_product: loss.largest_product(options),
        count: 0,
        low,
        high,
        log_ratio_limit,
    }
}

/// `kernels/linear/row_loss.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RowLossArguments {
    rows: u64,
    log_probs: u64,
    weights: u64,
    advantages: u64,
    old_log_probs: u64,
    losses: u64,
    gradients: u64,
    status: u64,
    largest_product: f64,
    count: i32,
    low: f32,
    high: f32,
    log_ratio_limit: f32,
}

passed_by_value!(RowLossArguments);

impl Pass<'_> {
    /// The row losses of some rows, and their gradients.
    ///
    /// # Safety
    /// The addresses are there for all rows.
    unsafe fn row_losses(&self, rows: Range<usize>, mut losses: RowLossArguments) -> Result<()> {
        losses.rows = self.row_list(rows.start);
        losses.count = rows.len() as i32;
        losses.status = self.status;
        let threads = self.cuda.kernels.kernel("linear/row_loss", "row_loss")?.threads as usize;
        let blocks = rows.len().div_ceil(threads) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, "linear/row_loss", "row_loss", (blocks, 1), &losses) }
    }
}
