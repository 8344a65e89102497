//! A loss that is a sum over rows, forward and backward in one pass, over device addresses; see
//! [`Cuda::linear_row_loss`].

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::kernels::{KernelId, kernel};
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::{Address, address};
use crate::cuda::raw::linear::head::HeadGradients;
use crate::cuda::raw::linear::pass::{Pass, RowResults};
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs, clear_head};
use crate::cuda::raw::token_log_prob::Upstream;
use crate::cuda::raw::{launch, passed_by_value};
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::row_loss::RowLoss;

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
    let _current = CurrentContext::enter(cuda.stream.context())?;
    // Before memory is taken for so many rows.
    inputs.check()?;
    options.check_whole(inputs.weight.rows)?;
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
    let (count, vocab) = (inputs.gathered_rows(), inputs.weight.rows);
    let chunk =
        if gradients.has_head() { work.chunks.of_row_loss(count, vocab) } else { work.chunks.of_rows(count, vocab) };
    // SAFETY: the caller's promise.
    let mut pass = unsafe { Pass::begin(cuda, work, inputs, options, results, chunk)? };
    let of_loss = arguments(loss, outputs, row_gradients, options);
    let upstream = Upstream::PerRow { log_probs: row_gradients, entropies: 0 }.of_rows(0)?;
    let head = HeadGradients::new(&mut pass, gradients)?;
    for taken in pass.row_chunks() {
        // SAFETY: the caller's promise.
        unsafe {
            pass.gather(taken)?;
            let logits = pass.logits(0..vocab)?;
            pass.fold(&logits, 0, &results)?;
            pass.row_losses(of_loss)?;
            if gradients.any() && gradients.accumulate {
                pass.withhold((results.states, upstream))?;
            }
            if let Some(hidden) = &gradients.hidden {
                let units = pass.units(&logits, &results, gradients.has_head())?;
                let taken = pass.taken.start..pass.taken.start + pass.taken_rows();
                pass.hidden_gradient(hidden, &units, taken, (results.states, upstream))?;
            }
            if gradients.has_head() {
                let factors = pass.gradient_scale(upstream)?;
                let of_logits = pass.gradients(&logits, 0, (results.states, upstream, factors))?;
                head.add(&mut pass, &of_logits, 0, 0, factors)?;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        head.finish(&pass)?;
        if count > 0 {
            return Ok(());
        }
        clear_head(cuda, gradients, 0..vocab)?;
        gradients.hidden.as_ref().map_or(Ok(()), |hidden| pass.scatter(hidden))
    }
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

const ROW_LOSS: KernelId = kernel!("linear/row_loss", "row_loss");

impl Pass<'_> {
    /// The row losses of the chunk's rows, and their gradients.
    ///
    /// # Safety
    /// The addresses are there for all rows.
    unsafe fn row_losses(&self, mut losses: RowLossArguments) -> Result<()> {
        losses.rows = self.row_list();
        losses.count = self.taken.len() as i32;
        losses.status = self.status;
        let threads = self.cuda.kernels.kernel(ROW_LOSS)?.threads as usize;
        let blocks = self.taken.len().div_ceil(threads) as u32;
        // SAFETY: the caller's promise.
        unsafe { launch(self.cuda, ROW_LOSS, (blocks, 1), &losses) }
    }
}
