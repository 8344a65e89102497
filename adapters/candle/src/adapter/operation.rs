//! An operation as candle takes it: of logits, or of hidden states, the weight of a head and, if there is one, its bias.

#[cfg(feature = "cuda")]
use super::candle_core::CudaStorage;
use super::candle_core::backend::BackendStorage;
use super::candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use super::operands::{Gradients, Operands, Tensors, names};
use super::tensor_backend::{DeviceOf, Located, Scalar, TensorBackend};
use exo_kernels::backend::Place;

/// The memory of a pass.
pub(super) type MemoryOf<P> = <<P as Pass>::Backend as Place>::Memory;

/// What an operation computes, forward and backward.
pub(super) trait Pass: Send + Sync + 'static {
    type Backend: TensorBackend;

    /// Of the operation on logits, and of that on hidden states.
    const NAMES: [&'static str; 2];

    /// The values.
    fn forward<T: Scalar>(
        &self,
        device: &DeviceOf<Self::Backend>,
        operands: &Operands<'_, T, MemoryOf<Self>>,
    ) -> Result<(<Self::Backend as TensorBackend>::Storage, Shape)>;

    /// The gradients, on the backend of the calling thread. `values` and `upstream`, both contiguous, have the shape of the
    /// values.
    fn backward<T: Scalar>(
        &self,
        backend: &Self::Backend,
        operands: &Operands<'_, T, MemoryOf<Self>>,
        values: &Tensor,
        upstream: &Tensor,
        gradients: Gradients<'_, T, MemoryOf<Self>>,
    ) -> Result<()>;
}

/// Runs `$run` with `$T` the type of the operands: f32, f16 or bf16. Others are refused.
macro_rules! by_type {
    ($operands:expr, |$T:ident| $run:expr) => {{
        let operands = $operands;
        match operands[0].0.dtype() {
            DType::F32 => {
                type $T = f32;
                $run
            }
            DType::F16 => {
                type $T = half::f16;
                $run
            }
            DType::BF16 => {
                type $T = half::bf16;
                $run
            }
            other => {
                let what = names(operands.len())[0];
                bail!("{what}: dtype {other:?} given, f32, f16 or bf16 expected")
            }
        }
    }};
}
pub(super) use by_type;

/// Runs `run` with the storages of tensors.
pub(super) fn with_storages<B: TensorBackend, R>(
    tensors: &[&Tensor],
    run: impl FnOnce(&[Located<'_, B::Storage>]) -> Result<R>,
) -> Result<R> {
    let storages: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let operands = storages.iter().zip(names(tensors.len()));
    let operands = operands.map(|((storage, layout), what)| Ok((B::storage(what, storage)?, *layout)));
    run(&operands.collect::<Result<Vec<_>>>()?)
}

/// A pass as candle takes it: with one operand, two, or three.
struct Operation<P>(P);

/// The result of a pass, differentiable.
pub(super) fn apply<P: Pass>(pass: P, tensors: &Tensors) -> Result<Tensor> {
    match tensors.all() {
        [logits] => logits.apply_op1(Operation(pass)),
        [hidden, weight] => hidden.apply_op2(weight, Operation(pass)),
        [hidden, weight, bias] => hidden.apply_op3(weight, bias, Operation(pass)),
        other => bail!("an operation of {} operands", other.len()),
    }
}

pub(super) fn forward<B: TensorBackend, P: Pass<Backend = B>>(
    pass: &P,
    operands: &[Located<'_, B::Storage>],
) -> Result<(B::Storage, Shape)> {
    by_type!(operands, |T| pass.forward::<T>(operands[0].0.device(), &Operands::new::<B>(operands)?))
}

/// The gradients of those of the tensors that take part in one.
///
/// candle gives no storages to a backward pass, so they are asked of the tensors.
fn backward<P: Pass>(pass: &P, tensors: &[&Tensor], values: &Tensor, upstream: &Tensor) -> Result<[Option<Tensor>; 3]> {
    let upstream = &upstream.contiguous()?;
    with_storages::<P::Backend, _>(tensors, |operands| {
        by_type!(operands, |T| {
            let device = operands[0].0.device();
            let operands = Operands::<T, _>::new::<P::Backend>(operands)?;
            let mut buffers = [None, None, None];
            // Nothing for a frozen tensor, which would otherwise cost a product and a buffer of its size.
            for (buffer, tensor) in buffers.iter_mut().zip(tensors).filter(|(_, tensor)| tensor.track_op()) {
                *buffer = Some((P::Backend::allocate::<T>(device, tensor.elem_count())?, tensor.shape()));
            }
            let views = buffers.each_mut().map(|buffer| {
                let (numbers, shape) = buffer.as_mut()?;
                Some(P::Backend::split(numbers, shape.elem_count()).0)
            });
            let gradients = Gradients::new::<P::Backend>(views, operands.rows().columns())?;
            pass.backward(&P::Backend::of(device)?, &operands, values, upstream, gradients)?;
            Ok(buffers.map(|buffer| {
                let (numbers, shape) = buffer?;
                Some(P::Backend::into_tensor(P::Backend::into_storage(numbers, device), shape))
            }))
        })
    })
}

impl<P: Pass> CustomOp1 for Operation<P> {
    fn name(&self) -> &'static str {
        P::NAMES[0]
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        P::Backend::forward_on_host(&self.0, &[(logits, layout)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        P::Backend::forward_on_device(&self.0, &[(logits, layout)])
    }

    fn bwd(&self, logits: &Tensor, values: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let [gradient, ..] = backward(&self.0, &[logits], values, upstream)?;
        Ok(gradient)
    }
}

impl<P: Pass> CustomOp2 for Operation<P> {
    fn name(&self) -> &'static str {
        P::NAMES[1]
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        P::Backend::forward_on_host(&self.0, &[(hidden, hidden_layout), (weight, weight_layout)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        P::Backend::forward_on_device(&self.0, &[(hidden, hidden_layout), (weight, weight_layout)])
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, _] = backward(&self.0, &[hidden, weight], values, upstream)?;
        Ok((hidden, weight))
    }
}

impl<P: Pass> CustomOp3 for Operation<P> {
    fn name(&self) -> &'static str {
        P::NAMES[1]
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        P::Backend::forward_on_host(&self.0, &[(hidden, hidden_layout), (weight, weight_layout), (bias, bias_layout)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        P::Backend::forward_on_device(&self.0, &[(hidden, hidden_layout), (weight, weight_layout), (bias, bias_layout)])
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, bias] = backward(&self.0, &[hidden, weight, bias], values, upstream)?;
        Ok((hidden, weight, bias))
    }
}
