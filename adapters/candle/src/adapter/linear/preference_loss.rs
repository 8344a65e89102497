//! The preference loss from hidden states.

#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaDType;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr};
use super::candle_core::{CpuStorage, DType, Error, Result, Shape, Tensor, WithDType};
#[cfg(feature = "cuda")]
use super::candle_core::{CudaDevice, CudaStorage};
#[cfg(feature = "cuda")]
use super::device;
use super::host;
use super::loss::ForwardPass;
use super::op::{LinearOp, Pass};
use super::operands::{Linear, LossInputs, Targets};
use exo_kernels::{Batch, Cpu, LossOptions, PreferenceLoss, Reference, Report, Rewards};
use exo_kernels::{Element, Head, LinearGradients, Matrix};
#[cfg(feature = "cuda")]
use exo_kernels::{TokenId, cuda};

/// [`preference_loss`](super::super::preference_loss) of the logits hidden·weightᵀ + bias, which are never held.
///
/// # Errors
/// As [`preference_loss`](super::super::preference_loss) and
/// [`linear_token_log_probs`](super::super::linear_token_log_probs).
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
    let inputs = LossInputs { batch, reference, rewards: rewards.into() };
    let targets = Targets::new(&linear.hidden, linear.weight.dim(0)?, targets)?;
    let (forward, report) = match &targets {
        Targets::Host(targets) => forward_on_host(&linear, targets, inputs, options.into())?,
        #[cfg(feature = "cuda")]
        Targets::Device(targets) => forward_on_device(&linear, targets, inputs, options.into())?,
    };
    Ok((LinearOp(LossPass { value: report.loss as f32, targets, forward }).apply(&linear)?, report))
}

fn forward_on_host(
    linear: &Linear,
    targets: &[i64],
    LossInputs { batch, reference, rewards }: LossInputs<'_>,
    options: LossOptions,
) -> Result<(ForwardPass, Report)> {
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    host::with_operands([&linear.hidden, &linear.weight], linear.bias.as_ref(), |operands| {
        host::by_linear_type!(operands, |hidden, head| {
            loss.forward_linear(hidden, &head, targets, batch, reference, rewards).map(drop).map_err(Error::wrap)
        })
    })?;
    ForwardPass::of_host(loss).map_err(Error::wrap)
}

#[cfg(feature = "cuda")]
fn forward_on_device(
    linear: &Linear,
    targets: &device::Targets,
    LossInputs { batch, reference, rewards }: LossInputs<'_>,
    options: LossOptions,
) -> Result<(ForwardPass, Report)> {
    let device = linear.hidden.device().as_cuda_device()?;
    let mut loss = PreferenceLoss::new(device::backend(device)?, options);
    device::with_operands([&linear.hidden, &linear.weight], linear.bias.as_ref(), |operands| {
        let (ids, layout) = targets.ids.storage_and_layout();
        device::by_linear_types!(operands, (device::cuda_storage(&ids)?, layout), |states, head, ids| {
            let reference = device::Reference::new(device, reference)?;
            let hidden = targets.hidden(states);
            loss.forward_linear(hidden, head, ids, batch, &reference.view(), rewards).map(drop).map_err(Error::wrap)
        })
    })?;
    ForwardPass::of_device(loss).map_err(Error::wrap)
}

/// A finished forward pass and its value; nothing is locked, for the reason that [`ForwardPass`] has.
struct LossPass {
    value: f32,
    targets: Targets,
    forward: ForwardPass,
}

impl Pass for LossPass {
    const NAME: &'static str = "exo-linear-preference-loss";

    fn targets(&self) -> &Targets {
        &self.targets
    }

    fn forward_on_host<T: Element + WithDType>(
        &self,
        _: Matrix<'_, T>,
        _: &Head<'_, T>,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn backward_on_host<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        _: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()> {
        let loss_scale = f64::from(upstream.to_vec0::<f32>()?);
        self.forward.on_host()?.backward_linear(loss_scale, hidden, head, gradients).map_err(Error::wrap)
    }

    #[cfg(feature = "cuda")]
    fn forward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        _: (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
    ) -> Result<(CudaStorage, Shape)> {
        device::scalar(device, self.value)
    }

    #[cfg(feature = "cuda")]
    fn backward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        (states, head, _): (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
        _: &Tensor,
        upstream: &Tensor,
        gradients: cuda::LinearGradients<'_, T, T>,
    ) -> Result<()> {
        let (cuda, loss_scale) = (device::backend(device)?, f64::from(upstream.to_vec0::<f32>()?));
        let hidden = self.targets.on_device()?.hidden(states);
        self.forward.on_device()?.backward_linear(&cuda, loss_scale, &hidden, head, gradients).map_err(Error::wrap)
    }
}
