//! Differentiable operations on [candle](candle_core) tensors (feature `candle`; on CUDA devices `candle-cuda`).
//!
//! - [`token_log_probs`]: logits `[N, V]`, targets `[N]` → log-probs `[N]` in f32, differentiable in the logits.
//! - [`token_log_probs_and_entropies`]: the entropies with them, differentiable too.
//! - [`preference_loss`]: logits, targets, batch, reference, rewards → the loss, a differentiable scalar, and a report.
//! - [`linear_token_log_probs`], [`linear_token_log_probs_and_entropies`], [`linear_preference_loss`]: the same from
//!   hidden states `[N, H]` and the weight `[V, H]` of a model's head, differentiable in both; the logits are never held.
//!
//! Logits are tensors of f32, f16 or bf16. Rows may be strided (a narrowed vocabulary, say, whether the tensor is `[N, V]`
//! or `[B, T, V]`) and are read where they lie, forward and backward; a layout whose rows do not lie at one stride, or whose
//! columns are not contiguous, is made contiguous first. Every other dtype is refused with an error: an operation that
//! cannot send a gradient back does not run.
//!
//! The softmax state that the backward pass needs is kept inside the operation, O(N); no `[N, V]` tensor is made but
//! the gradient.
//!
//! # Threads
//! Operations may run, and go backward, on any number of threads at once, those of a rayon pool included; one loss may go
//! backward on several. No lock of this crate is held while anything is computed. candle's own is: as in all of its
//! operations the storage of a tensor that is read is locked for reading meanwhile, so nobody may write to it
//! ([`Var::set`](candle_core::Var::set)) before the operation is done.
//!
//! # Devices
//! The CPU, and with the feature `candle-cuda`, which switches candle's own `cuda` on, CUDA devices. What an operation
//! gives, gradients too, lies on the device of its logits. There the targets may lie as well, or on the CPU.
//!
//! Everything on a CUDA device runs in the order of candle's stream and no tensor passes through the host. Nothing
//! waits for the device, but for [`preference_loss`], which reads its report, and in whose backward pass the one number
//! that is the upstream gradient is read. As no waiting means not looking, the targets that lie on a CUDA device are
//! not checked beforehand: the log-prob of a row whose target is V or more is NaN there (and [`preference_loss`] finds
//! it in its report, and names it).
//!
//! candle's default CUDA stream is one per thread: a tensor that another thread goes on with needs a
//! [`Device::synchronize`] in between, here as in all of candle.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use exo_kernels::{Batch, Betas, LogitOptions, LossOptions, Objective, Reference};
//!
//! // Two completions of two tokens each for one prompt, over a vocabulary of three.
//! let logits = Var::randn(0f32, 1f32, (4, 3), &Device::Cpu)?;
//! let targets = Tensor::new(&[0u32, 2, 1, 1], &Device::Cpu)?;
//! let batch = Batch::new(&[0, 2, 4], &[0, 2])?;
//! let options = LossOptions::from(Objective::exo(Betas { policy: 0.5, reward: 0.5 })?)
//!     .with_logits(LogitOptions::default().with_temperature(0.8)?);
//! let reference = Reference::PerToken(&[-1.0, -1.2, -0.9, -1.1]);
//! let (loss, report) =
//!     exo_kernels::candle::preference_loss(logits.as_tensor(), &targets, &batch, reference, &[1.0f32, 0.0], options)?;
//! let gradients = loss.backward()?;
//! assert!(gradients.get(&logits).is_some());
//! assert_eq!(report.check()?.scored_rows, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cpu;
#[cfg(feature = "candle-cuda")]
mod cuda;
mod linear;
mod linear_cpu;
#[cfg(feature = "candle-cuda")]
mod linear_cuda;
mod row_layout;

use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::data::rewards::Rewards;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use candle_core::{Device, Error, Result, Shape, Tensor, bail};

pub use crate::candle::linear::{linear_preference_loss, linear_token_log_probs, linear_token_log_probs_and_entropies};

/// log softmax(z)\[target\] of each row: logits `[N, V]` or `[.., V]`, targets of u32 or i64 in the same leading shape
/// → f32 of that shape; 0 where the target is negative.
///
/// # Errors
/// A device that this build has no operation for, logits of another dtype than f32, f16 and bf16, targets of another
/// than u32 and i64 or on another device than the logits' and the CPU, shapes that do not fit, a target of V or more
/// (on a CUDA device it gives NaN). What CUDA says.
pub fn token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions) -> Result<Tensor> {
    run_token_log_probs(logits, targets, options, false)?.reshape(targets.shape())
}

/// [`token_log_probs`] and, from the same pass, the entropy of each row's distribution; both differentiable.
///
/// # Errors
/// As [`token_log_probs`].
pub fn token_log_probs_and_entropies(
    logits: &Tensor,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<(Tensor, Tensor)> {
    let both = run_token_log_probs(logits, targets, options, true)?;
    Ok((both.get(0)?.reshape(targets.shape())?, both.get(1)?.reshape(targets.shape())?))
}

/// The preference loss: logits `[N, V]` or `[.., V]`, targets in the same leading shape, a [`Batch`] over the N rows →
/// a differentiable f32 scalar, and what a trainer logs.
///
/// On a CUDA device this waits until the device has run it, because the report is read; so does its backward pass, for
/// the one number that is its upstream gradient.
///
/// A row without a softmax makes the loss NaN, not an error: loss scaling looks for it in the gradient.
/// [`Report::check`] names it.
///
/// # Errors
/// As [`token_log_probs`], but a target of V or more is an error on every device; and everything that
/// [`PreferenceLoss::forward`](crate::PreferenceLoss#method.forward) refuses.
pub fn preference_loss<'a>(
    logits: &Tensor,
    targets: &Tensor,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: impl Into<Rewards<'a>>,
    options: impl Into<LossOptions>,
) -> Result<(Tensor, Report)> {
    let logits = rows_of("logits", logits, targets)?;
    let inputs = LossInputs { targets, batch, reference, rewards: rewards.into() };
    match logits.device() {
        Device::Cpu => cpu::preference_loss(&logits, inputs, options.into()),
        #[cfg(feature = "candle-cuda")]
        Device::Cuda(device) => cuda::preference_loss(device, &logits, inputs, options.into()),
        device => Err(refused(device)),
    }
}

/// What the preference loss is computed from beside the logits.
#[derive(Clone, Copy)]
struct LossInputs<'a> {
    targets: &'a Tensor,
    batch: &'a Batch,
    reference: Reference<'a>,
    rewards: Rewards<'a>,
}

/// `[N]`, or `[2, N]` with the entropies.
fn run_token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions, entropy: bool) -> Result<Tensor> {
    let logits = rows_of("logits", logits, targets)?;
    match logits.device() {
        Device::Cpu => cpu::token_log_probs(&logits, targets, options, entropy),
        #[cfg(feature = "candle-cuda")]
        Device::Cuda(device) => cuda::token_log_probs(device, &logits, targets, options, entropy),
        device => Err(refused(device)),
    }
}

/// The shape of [`run_token_log_probs`]' result.
fn result_shape(rows: usize, entropy: bool) -> Shape {
    if entropy { Shape::from((2, rows)) } else { Shape::from(rows) }
}

fn refused(device: &Device) -> Error {
    let built = if cfg!(feature = "candle-cuda") {
        "the CPU or a CUDA device expected"
    } else {
        "the CPU expected (exo-kernels is built without its feature candle-cuda)"
    };
    Error::msg(format!("logits: a tensor on {:?} given, {built}", device.location()))
}

/// Logits `[.., V]`, or hidden states `[.., H]`, of rows that can be read where they lie: see [`row_layout::in_place`].
fn rows_of(what: &str, rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let Some((_, leading)) = rows.dims().split_last() else { bail!("{what}: a scalar given, rows expected") };
    if leading != targets.dims() {
        bail!(
            "targets: shape {:?} given, {leading:?} (that of the {what} without the last dimension) expected",
            targets.dims()
        );
    }
    row_layout::in_place(rows)
}
