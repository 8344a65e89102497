//! The preference loss of logits.

#[cfg(feature = "cuda")]
use super::candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaStorageSlice;
use super::candle_core::{CpuStorage, CustomOp1, D, Error, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use super::candle_core::{CudaStorage, bail};
#[cfg(feature = "cuda")]
use super::device;
use super::host;
use super::operands::{LossInputs, Targets, rows_of};
use exo_kernels::adapter;
use exo_kernels::{Batch, Cpu, LossOptions, PreferenceLoss, Reference, Report, Rewards};

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
    let logits = rows_of("logits", logits, targets)?;
    let inputs = LossInputs { batch, reference, rewards: rewards.into() };
    let targets = Targets::new(&logits, logits.dim(D::Minus1)?, targets)?;
    let (pass, report) = match &targets {
        Targets::Host(targets) => forward_on_host(&logits, targets, inputs, options.into())?,
        #[cfg(feature = "cuda")]
        Targets::Device(targets) => forward_on_device(&logits, targets, inputs, options.into())?,
    };
    Ok((logits.apply_op1(LossOp { value: report.loss as f32, pass })?, report))
}

/// A finished forward pass. Nothing in it changes, so that nothing is locked while rayon works or the driver is called: a
/// thread that waits for a part of its work takes up other work, perhaps of this very operation.
pub(super) enum ForwardPass {
    Host(adapter::ForwardPass),
    #[cfg(feature = "cuda")]
    Device(adapter::cuda::ForwardPass),
}

impl ForwardPass {
    /// The pass that a loss on the host has made, and its report.
    pub(super) fn of_host(loss: PreferenceLoss<Cpu>) -> exo_kernels::Result<(Self, Report)> {
        let report = loss.unchecked_report()?.clone();
        Ok((Self::Host(loss.into_forward_pass()?), report))
    }

    /// The pass that a loss on a device has made, and its report, for which this waits.
    #[cfg(feature = "cuda")]
    pub(super) fn of_device(loss: PreferenceLoss<exo_kernels::cuda::Cuda>) -> exo_kernels::Result<(Self, Report)> {
        let report = loss.unchecked_report()?.clone();
        Ok((Self::Device(loss.into_forward_pass()?), report))
    }

    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "with CUDA it may be the other"))]
    pub(super) fn on_host(&self) -> Result<&adapter::ForwardPass> {
        match self {
            Self::Host(pass) => Ok(pass),
            #[cfg(feature = "cuda")]
            Self::Device(_) => bail!("the forward pass was made on a CUDA device"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self) -> Result<&adapter::cuda::ForwardPass> {
        match self {
            Self::Host(_) => bail!("the forward pass was made on the CPU"),
            Self::Device(pass) => Ok(pass),
        }
    }
}

fn forward_on_host(
    logits: &Tensor,
    targets: &[i64],
    LossInputs { batch, reference, rewards }: LossInputs<'_>,
    options: LossOptions,
) -> Result<(ForwardPass, Report)> {
    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    let (storage, layout) = logits.storage_and_layout();
    host::by_type!(host::cpu_storage("logits", &storage)?, |logits| {
        // The step ties a backward pass of the loss to this pass; here the pass itself is taken out.
        loss.forward(host::logits(logits, layout)?, targets, batch, reference, rewards)
            .map(drop)
            .map_err(Error::wrap)?;
    });
    ForwardPass::of_host(loss).map_err(Error::wrap)
}

#[cfg(feature = "cuda")]
fn forward_on_device(
    logits: &Tensor,
    targets: &device::Targets,
    LossInputs { batch, reference, rewards }: LossInputs<'_>,
    options: LossOptions,
) -> Result<(ForwardPass, Report)> {
    let device = logits.device().as_cuda_device()?;
    let reference = device::Reference::new(device, reference)?;
    let mut loss = PreferenceLoss::new(device::backend(device)?, options);
    {
        let ((logits, layout), (ids, ids_layout)) = (logits.storage_and_layout(), targets.ids.storage_and_layout());
        let (logits, ids) = (device::cuda_storage(&logits)?, device::cuda_storage(&ids)?);
        device::by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (device::logits(logits, layout)?, device::elements(ids, ids_layout));
            loss.forward(&logits, &ids, batch, &reference.view(), rewards).map(drop).map_err(Error::wrap)
        })?;
    }
    ForwardPass::of_device(loss).map_err(Error::wrap)
}

/// A finished forward pass and its value.
struct LossOp {
    value: f32,
    pass: ForwardPass,
}

impl CustomOp1 for LossOp {
    fn name(&self) -> &'static str {
        "exo-preference-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        device::scalar(logits.device(), self.value)
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let loss_scale = f64::from(upstream.to_vec0::<f32>()?);
        logits.apply_op1_no_bwd(&LossGradient { pass: &self.pass, loss_scale }).map(Some)
    }
}

/// The backward pass of [`LossOp`].
struct LossGradient<'a> {
    pass: &'a ForwardPass,
    loss_scale: f64,
}

impl CustomOp1 for LossGradient<'_> {
    fn name(&self) -> &'static str {
        "exo-preference-loss-backward"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let pass = self.pass.on_host()?;
        host::by_type!(logits, |logits| {
            host::gradient(logits, layout, |logits, gradient| {
                pass.backward(self.loss_scale, logits, gradient).map_err(Error::wrap)
            })
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let pass = self.pass.on_device()?;
        let device = logits.device();
        let cuda = device::backend(device)?;
        macro_rules! run {
            ($data:expr) => {{
                let logits = device::logits($data, layout)?;
                device::gradient(device, &logits, layout.shape(), |gradient| {
                    pass.backward(&cuda, self.loss_scale, &logits, gradient)
                })
            }};
        }
        match &logits.slice {
            CudaStorageSlice::F32(data) => run!(data),
            CudaStorageSlice::F16(data) => run!(data),
            CudaStorageSlice::BF16(data) => run!(data),
            _ => bail!("logits: dtype {:?} given, f32, f16 or bf16 expected", logits.dtype()),
        }
    }
}
