//! The preference loss, of logits or from hidden states.

use super::candle_core::backend::BackendStorage;
use super::candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use super::operands::{Gradients, Operands, Tensors, names, with_scored_rows};
use super::operation::{Pass, apply, by_type, with_storages};
use super::tensor_backend;
use super::tensor_backend::{DeviceOf, Scalar, TensorBackend, by_backend};
use exo_kernels::{Batch, ForwardPass, LossOptions, PreferenceLoss, Reference, Report, Rewards, backend};

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
/// As [`token_log_probs`](super::token_log_probs), but a target of V or more is an error on every device; and everything
/// that [`PreferenceLoss::forward`](PreferenceLoss#method.forward) refuses.
pub fn preference_loss<'a>(
    logits: &Tensor,
    targets: &Tensor,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: impl Into<Rewards<'a>>,
    options: impl Into<LossOptions>,
) -> Result<(Tensor, Report)> {
    loss(&Tensors::logits(logits, targets)?, targets, batch, reference, rewards.into(), options.into())
}

/// [`preference_loss`] of the logits hidden·weightᵀ + bias, which are never held.
///
/// # Errors
/// As [`preference_loss`] and
/// [`linear_token_log_probs`](super::linear_token_log_probs).
#[allow(clippy::too_many_arguments)]
pub fn linear_preference_loss<'a>(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: impl Into<Rewards<'a>>,
    options: impl Into<LossOptions>,
) -> Result<(Tensor, Report)> {
    let tensors = Tensors::linear(hidden, weight, bias, targets)?;
    loss(&tensors, targets, batch, reference, rewards.into(), options.into())
}

fn loss(
    tensors: &Tensors,
    targets: &Tensor,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: Rewards<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    by_backend!(tensors.rows(), |B| {
        let targets = B::targets(tensors.rows(), tensors.vocab()?, targets)?;
        let scored_rows = B::scored_rows(&targets);
        let (forward, report) = forward::<B>(tensors, &targets, batch, reference, rewards, options)?;
        Ok((apply(LossPass { value: report.loss as f32, scored_rows, forward }, tensors)?, report))
    })
}

/// The forward pass and its report, for which this waits on a device.
fn forward<B: TensorBackend>(
    tensors: &Tensors,
    targets: &B::Targets,
    batch: &Batch,
    reference: Reference<'_>,
    rewards: Rewards<'_>,
    options: LossOptions,
) -> Result<(ForwardPass<B>, Report)> {
    let tensors: Vec<&Tensor> = tensors.all().iter().collect();
    let (loss, step) = with_storages::<B, _>(&tensors, |operands| {
        let backend = B::of(operands[0].0.device())?;
        let (mut per_token, mut per_sequence) = (B::Buffer::default(), B::Buffer::default());
        let reference = match reference {
            Reference::PerToken(numbers) => {
                backend.upload(numbers, &mut per_token).map_err(Error::wrap)?;
                backend::Reference::PerToken(backend.view(&per_token, numbers.len()))
            }
            Reference::PerSequence(numbers) => {
                backend.upload(numbers, &mut per_sequence).map_err(Error::wrap)?;
                backend::Reference::PerSequence(backend.view(&per_sequence, numbers.len()))
            }
            Reference::None => backend::Reference::None,
        };
        let mut loss = PreferenceLoss::new(backend.clone(), options);
        let step = by_type!(operands, |T| B::with_targets(targets, |ids| {
            match &Operands::<T, _>::new::<B>(operands)? {
                Operands::Logits(logits) => loss.forward(logits, ids, batch, &reference, rewards),
                Operands::Linear(states, head) => {
                    let hidden = with_scored_rows(states, B::scored_rows(targets));
                    loss.forward_linear(hidden, head, ids, batch, &reference, rewards)
                }
            }
            .map_err(Error::wrap)
        }))?;
        Ok((loss, step))
    })?;
    let report = loss.unchecked_report().map_err(Error::wrap)?.clone();
    Ok((loss.into_forward_pass(step).map_err(Error::wrap)?, report))
}

/// A finished forward pass and its value. Nothing in it changes, so that nothing is locked while rayon works or the driver is
/// called: a thread that waits for a part of its work takes up other work, perhaps of this very operation.
struct LossPass<B: TensorBackend> {
    value: f32,
    /// If known.
    scored_rows: Option<usize>,
    forward: ForwardPass<B>,
}

impl<B: TensorBackend> Pass for LossPass<B> {
    type Backend = B;

    const NAMES: [&'static str; 2] = ["exo-preference-loss", "exo-linear-preference-loss"];

    fn forward<T: Scalar>(&self, device: &DeviceOf<B>, _: &Operands<'_, T, B::Memory>) -> Result<(B::Storage, Shape)> {
        Ok((B::scalar(self.value, device)?, Shape::from(())))
    }

    fn backward<T: Scalar>(
        &self,
        backend: &B,
        operands: &Operands<'_, T, B::Memory>,
        _: &Tensor,
        upstream: &Tensor,
        gradients: Gradients<'_, T, B::Memory>,
    ) -> Result<()> {
        let scale = f64::from(upstream.to_vec0::<f32>()?);
        match operands {
            Operands::Logits(logits) => {
                gradients.rows.map_or(Ok(()), |gradient| self.forward.backward_on(backend, scale, logits, gradient))
            }
            Operands::Linear(states, head) => {
                let hidden = with_scored_rows(states, self.scored_rows);
                self.forward.backward_linear_on(backend, scale, hidden, head, gradients.linear())
            }
        }
        .map_err(Error::wrap)
    }
}
