//! The operations from hidden states in place of logits, on any device.

use candle_core::{Device, Result, Tensor, bail};

#[cfg(feature = "candle-cuda")]
use super::linear_cuda;
use super::{LossInputs, linear_cpu, refused, rows_of};
use crate::batch::Batch;
use crate::logits::LogitOptions;
use crate::loss_options::LossOptions;
use crate::report::Report;
use crate::stages::{Reference, Rewards};

/// [`token_log_probs`](super::token_log_probs) of the logits hidden·weightᵀ + bias, which are never held: hidden states
/// `[N, H]` or `[.., H]`, weight `[V, H]` and bias `[V]` of one dtype, targets in the hidden states' leading shape → f32
/// of that shape. Differentiable in hidden, weight and bias: those that are variables, or depend on some, when the
/// backward pass runs; a frozen weight costs no product.
///
/// The logits are products in f32 whatever the dtype. A row's hidden state is not read where its target is negative.
///
/// # Errors
/// As [`token_log_probs`](super::token_log_probs); hidden states, weight and bias that differ in dtype or device, or do
/// not fit together.
pub fn linear_token_log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<Tensor> {
    run(hidden, weight, bias, targets, options, false)?.reshape(targets.shape())
}

/// [`linear_token_log_probs`] and, from the same pass, the entropy of each row's distribution; both differentiable.
///
/// # Errors
/// As [`linear_token_log_probs`].
pub fn linear_token_log_probs_and_entropies(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<(Tensor, Tensor)> {
    let both = run(hidden, weight, bias, targets, options, true)?;
    Ok((both.get(0)?.reshape(targets.shape())?, both.get(1)?.reshape(targets.shape())?))
}

/// [`preference_loss`](super::preference_loss) of the logits hidden·weightᵀ + bias, which are never held.
///
/// # Errors
/// As [`preference_loss`](super::preference_loss) and [`linear_token_log_probs`].
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
    let linear = Linear::new(hidden, weight, bias, targets)?;
    let inputs = LossInputs { targets, batch, reference, rewards: rewards.into() };
    match linear.hidden.device() {
        Device::Cpu => linear_cpu::preference_loss(&linear, inputs, options.into()),
        #[cfg(feature = "candle-cuda")]
        Device::Cuda(device) => linear_cuda::preference_loss(device, &linear, inputs, options.into()),
        device => Err(refused(device)),
    }
}

/// `[N]`, or `[2, N]` with the entropies.
fn run(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LogitOptions,
    entropy: bool,
) -> Result<Tensor> {
    let linear = Linear::new(hidden, weight, bias, targets)?;
    match linear.hidden.device() {
        Device::Cpu => linear_cpu::token_log_probs(&linear, targets, options, entropy),
        #[cfg(feature = "candle-cuda")]
        Device::Cuda(device) => linear_cuda::token_log_probs(device, &linear, targets, options, entropy),
        device => Err(refused(device)),
    }
}

/// What makes the logits: on one device, of one dtype, with contiguous columns.
pub(super) struct Linear {
    /// `[N, H]`
    pub(super) hidden: Tensor,
    /// `[V, H]`
    pub(super) weight: Tensor,
    /// `[V]`
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    fn new(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, targets: &Tensor) -> Result<Self> {
        let hidden = rows_of("hidden", hidden, targets)?;
        let size = hidden.dim(1)?;
        let &[vocab, columns] = weight.dims() else {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims())
        };
        if columns != size {
            bail!("weight: shape {:?} given, [V, {size}] expected", weight.dims());
        }
        for (what, tensor) in [("weight", Some(weight)), ("bias", bias)] {
            let Some(tensor) = tensor else { continue };
            if tensor.dtype() != hidden.dtype() {
                bail!(
                    "{what}: dtype {:?} given, {:?} (that of the hidden states) expected",
                    tensor.dtype(),
                    hidden.dtype()
                );
            }
            if !tensor.device().same_device(hidden.device()) {
                bail!("{what}: a tensor on {:?} given, {:?} expected", tensor.device(), hidden.device());
            }
        }
        if let Some(bias) = bias
            && bias.dims() != [vocab]
        {
            bail!("bias: shape {:?} given, [{vocab}] expected", bias.dims());
        }
        let strides = weight.stride();
        let in_place = strides[1] == 1 && strides[0] >= size;
        Ok(Self {
            hidden,
            weight: if in_place { weight.clone() } else { weight.contiguous()? },
            bias: bias.map(Tensor::contiguous).transpose()?,
        })
    }
}
