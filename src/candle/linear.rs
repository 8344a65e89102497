//! The operations from hidden states in place of logits, on any device.

#[cfg(feature = "candle-cuda")]
use crate::candle::linear_cuda;
use crate::candle::row_layout::in_place;
use crate::candle::{LossInputs, linear_cpu, refused, rows_of};
use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::data::rewards::Rewards;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor, bail};

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

/// What makes the logits: on one device, of one dtype, with rows that lie at one stride.
pub(super) struct Linear {
    /// `[.., H]`
    pub(super) hidden: Tensor,
    /// `[V, H]`
    pub(super) weight: Tensor,
    /// `[V]`
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    fn new(hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>, targets: &Tensor) -> Result<Self> {
        let hidden = rows_of("hidden", hidden, targets)?;
        let size = hidden.dim(D::Minus1)?;
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
        Ok(Self { hidden, weight: in_place(weight)?, bias: bias.map(Tensor::contiguous).transpose()? })
    }
}

/// A pass in an operation: its values, and its way back. What is of another device than the pass says so itself.
pub(super) trait Pass: Send + Sync + 'static {
    const NAME: &'static str;

    /// The values of a pass on the CPU, which has been made.
    fn cpu_values(&self) -> Result<(CpuStorage, Shape)> {
        bail!("{}: this operation is for CUDA tensors", Self::NAME)
    }

    /// Makes the pass on a CUDA device.
    fn cuda_values(
        &self,
        _hidden: Place<'_>,
        _weight: Place<'_>,
        _bias: Option<Place<'_>>,
    ) -> Result<(CudaStorage, Shape)> {
        bail!("{}: this operation is for CPU tensors", Self::NAME)
    }

    /// The gradients of those of the three tensors that take part in one.
    fn gradients(
        &self,
        operands: [&Tensor; 2],
        bias: Option<&Tensor>,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<[Option<Tensor>; 3]>;
}

/// A storage and where the tensor lies in it.
pub(super) type Place<'a> = (&'a CudaStorage, &'a Layout);

/// A pass as candle takes it: with two operands, or with a bias three.
pub(super) struct LinearOp<P>(pub(super) P);

impl<P: Pass> LinearOp<P> {
    pub(super) fn apply(self, linear: &Linear) -> Result<Tensor> {
        match &linear.bias {
            Some(bias) => linear.hidden.apply_op3(&linear.weight, bias, self),
            None => linear.hidden.apply_op2(&linear.weight, self),
        }
    }
}

impl<P: Pass> CustomOp2 for LinearOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_values()
    }

    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.cuda_values((hidden, hidden_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, _] = self.0.gradients([hidden, weight], None, values, upstream)?;
        Ok((hidden, weight))
    }
}

impl<P: Pass> CustomOp3 for LinearOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.cpu_values()
    }

    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.cuda_values((hidden, hidden_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, bias] = self.0.gradients([hidden, weight], Some(bias), values, upstream)?;
        Ok((hidden, weight, bias))
    }
}
