//! Token log-probs and entropies from hidden states.

#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaDType;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr};
use super::candle_core::{CpuStorage, Result, Shape, Tensor, WithDType};
#[cfg(feature = "cuda")]
use super::candle_core::{CudaDevice, CudaStorage, Error};
#[cfg(feature = "cuda")]
use super::device;
use super::op::{LinearOp, Pass};
use super::operands::{Linear, Targets};
use super::token::TokenLogProbPass;
use exo_kernels::{Cpu, Element, Head, LinearGradients, LogitOptions, Matrix};
#[cfg(feature = "cuda")]
use exo_kernels::{TokenId, cuda};

/// [`token_log_probs`](super::super::token_log_probs) of the logits hidden·weightᵀ + bias, which are never held: hidden
/// states `[N, H]` or `[.., H]`, weight `[V, H]` and bias `[V]` of one dtype, targets in the hidden states' leading shape →
/// f32 of that shape. Differentiable in hidden, weight and bias: those that are variables, or depend on some, when the
/// backward pass runs; a frozen weight costs no product.
///
/// The logits are products in f32 whatever the dtype. A row's hidden state is not read where its target is negative.
///
/// # Errors
/// As [`token_log_probs`](super::super::token_log_probs); hidden states, weight and bias that differ in dtype or device, or
/// do not fit together.
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
    let targets = Targets::new(&linear.hidden, linear.weight.dim(0)?, targets)?;
    LinearOp(TokenLogProbPass::new(targets, options, entropy)).apply(&linear)
}

impl Pass for TokenLogProbPass {
    const NAME: &'static str = "exo-linear-token-log-probs";

    fn targets(&self) -> &Targets {
        TokenLogProbPass::targets(self)
    }

    fn forward_on_host<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
    ) -> Result<(CpuStorage, Shape)> {
        TokenLogProbPass::forward_on_host(self, |targets, options, outputs| {
            Cpu::default().linear_token_log_probs(hidden, head, targets, options, outputs)
        })
    }

    fn backward_on_host<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        values: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()> {
        TokenLogProbPass::backward_on_host(self, values, upstream, |targets, options, saved, upstream| {
            Cpu::default().linear_token_log_probs_backward(hidden, head, targets, options, saved, upstream, gradients)
        })
    }

    #[cfg(feature = "cuda")]
    fn forward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        (states, head, ids): (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
    ) -> Result<(CudaStorage, Shape)> {
        let (cuda, hidden) = (device::backend(device)?, self.targets().on_device()?.hidden(states));
        TokenLogProbPass::forward_on_device(self, device, states.rows(), |options, outputs| {
            cuda.linear_token_log_probs(hidden, head, ids, options, outputs).map_err(Error::wrap)
        })
    }

    #[cfg(feature = "cuda")]
    fn backward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        (states, head, ids): (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
        values: &Tensor,
        upstream: &Tensor,
        gradients: cuda::LinearGradients<'_, T, T>,
    ) -> Result<()> {
        let (cuda, hidden) = (device::backend(device)?, self.targets().on_device()?.hidden(states));
        TokenLogProbPass::backward_on_device(self, states.rows(), values, upstream, |options, saved, upstream| {
            cuda.linear_token_log_probs_backward(hidden, head, ids, options, saved, upstream, gradients)
                .map_err(Error::wrap)
        })
    }
}
