//! An operation on hidden states, the weight of a head and, if there is one, its bias.

#[cfg(feature = "cuda")]
use super::candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaDType;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr};
use super::candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType};
#[cfg(feature = "cuda")]
use super::candle_core::{CudaDevice, CudaStorage};
#[cfg(feature = "cuda")]
use super::device;
use super::host;
use super::operands::{Linear, Targets, refused};
use exo_kernels::{Element, Head, LinearGradients, Matrix};
#[cfg(feature = "cuda")]
use exo_kernels::{TokenId, cuda};

/// What an operation computes, forward and backward, on either side.
pub(super) trait Pass: Send + Sync + 'static {
    const NAME: &'static str;

    /// The targets of the rows.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on a device they are an operand"))]
    fn targets(&self) -> &Targets;

    /// The values, on the host.
    fn forward_on_host<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
    ) -> Result<(CpuStorage, Shape)>;

    /// The gradients, on the host. `values` and `upstream` have the shape of the values.
    fn backward_on_host<T: Element + WithDType>(
        &self,
        hidden: Matrix<'_, T>,
        head: &Head<'_, T>,
        values: &Tensor,
        upstream: &Tensor,
        gradients: LinearGradients<'_, T, T>,
    ) -> Result<()>;

    /// The values, on a CUDA device.
    #[cfg(feature = "cuda")]
    fn forward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        operands: (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
    ) -> Result<(CudaStorage, Shape)>;

    /// The gradients, on a CUDA device. `values` and `upstream`, both contiguous, have the shape of the values.
    #[cfg(feature = "cuda")]
    fn backward_on_device<T: Element + CudaDType + DeviceRepr, I: TokenId + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        operands: (&cuda::Matrix<'_, T>, &cuda::Head<'_, T>, &CudaView<'_, I>),
        values: &Tensor,
        upstream: &Tensor,
        gradients: cuda::LinearGradients<'_, T, T>,
    ) -> Result<()>;
}

/// A pass as candle takes it: with two operands, or with a bias three.
pub(super) struct LinearOp<P>(pub(super) P);

impl<P: Pass> LinearOp<P> {
    pub(super) fn apply(self, linear: &Linear) -> Result<Tensor> {
        match &linear.bias {
            Some(bias) => linear.hidden.apply_op3(&linear.weight, bias, self),
            None => linear.hidden.apply_op2(&linear.weight, self),
        }
    }

    fn forward_on_host(&self, operands: host::Operands<'_>) -> Result<(CpuStorage, Shape)> {
        host::by_linear_type!(operands, |hidden, head| self.0.forward_on_host(hidden, &head))
    }

    #[cfg(feature = "cuda")]
    fn forward_on_device(&self, operands: device::Operands<'_>) -> Result<(CudaStorage, Shape)> {
        let device = operands.hidden.0.device();
        let (ids, layout) = self.0.targets().on_device()?.ids.storage_and_layout();
        device::by_linear_types!(operands, (device::cuda_storage(&ids)?, layout), |hidden, head, ids| {
            self.0.forward_on_device(device, (hidden, head, ids))
        })
    }

    /// The gradients of those of the three tensors that take part in one.
    fn gradients(
        &self,
        operands: [&Tensor; 2],
        bias: Option<&Tensor>,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let upstream = &upstream.contiguous()?;
        let tensors = [Some(operands[0]), Some(operands[1]), bias];
        match operands[0].device() {
            Device::Cpu => host::with_operands(operands, bias, |operands| {
                host::by_linear_type!(operands, |hidden, head| {
                    host::linear_gradients(tensors, hidden.columns(), |gradients| {
                        self.0.backward_on_host(hidden, &head, values, upstream, gradients)
                    })
                })
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => device::with_operands(operands, bias, |operands| {
                let (ids, layout) = self.0.targets().on_device()?.ids.storage_and_layout();
                device::by_linear_types!(operands, (device::cuda_storage(&ids)?, layout), |hidden, head, ids| {
                    device::linear_gradients(device, tensors, hidden.columns(), |gradients| {
                        self.0.backward_on_device(device, (hidden, head, ids), values, upstream, gradients)
                    })
                })
            }),
            device => Err(refused(device)),
        }
    }
}

impl<P: Pass> CustomOp2 for LinearOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (hidden, weight) = ((hidden, hidden_layout), (weight, weight_layout));
        self.forward_on_host(host::Operands { hidden, weight, bias: None })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (hidden, weight) = ((hidden, hidden_layout), (weight, weight_layout));
        self.forward_on_device(device::Operands { hidden, weight, bias: None })
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, _] = self.gradients([hidden, weight], None, values, upstream)?;
        Ok((hidden, weight))
    }
}

impl<P: Pass> CustomOp3 for LinearOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
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
        let (hidden, weight) = ((hidden, hidden_layout), (weight, weight_layout));
        self.forward_on_host(host::Operands { hidden, weight, bias: Some((bias, bias_layout)) })
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
        let (hidden, weight) = ((hidden, hidden_layout), (weight, weight_layout));
        self.forward_on_device(device::Operands { hidden, weight, bias: Some((bias, bias_layout)) })
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        values: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [hidden, weight, bias] = self.gradients([hidden, weight], Some(bias), values, upstream)?;
        Ok((hidden, weight, bias))
    }
}
