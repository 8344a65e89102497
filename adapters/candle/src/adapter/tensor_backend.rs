//! Where tensors lie, as a backend: what host and device differ in, so that the operations are written once.

#[cfg(feature = "cuda")]
use super::candle_core::CudaStorage;
use super::candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::CudaDType;
#[cfg(feature = "cuda")]
use super::candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use super::candle_core::{CpuStorage, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use super::operation::Pass;
use exo_kernels::Element;
use exo_kernels::backend::{Backend, Memory, Number, Targets, View, ViewMut};

/// A type of logits, hidden states and heads.
#[cfg(not(feature = "cuda"))]
pub(super) trait Scalar: Element + WithDType {}
/// A type of logits, hidden states and heads.
#[cfg(feature = "cuda")]
pub(super) trait Scalar: Element + WithDType + CudaDType + DeviceRepr {}

impl Scalar for f32 {}
impl Scalar for half::f16 {}
impl Scalar for half::bf16 {}

/// A storage and where the tensor lies in it.
pub(super) type Located<'a, S> = (&'a S, &'a Layout);

/// candle's device of a backend.
pub(super) type DeviceOf<B> = <<B as TensorBackend>::Storage as BackendStorage>::Device;

/// A backend whose memory candle has tensors in.
pub(super) trait TensorBackend: Backend + 'static {
    type Storage: BackendStorage;
    /// Numbers that are going to be a storage.
    type Numbers<T: Scalar>;
    /// The targets of rows.
    type Targets: Send + Sync + 'static;

    /// The backend of a device, for this thread.
    fn of(device: &DeviceOf<Self>) -> Result<Self>;

    fn storage<'a>(what: &str, storage: &'a Storage) -> Result<&'a Self::Storage>;

    /// Everything in a storage.
    fn numbers<'a, T: Scalar>(what: &str, storage: &'a Self::Storage) -> Result<View<'a, Self, T>>;

    /// Numbers that the caller will write before anything reads them.
    fn allocate<T: Scalar>(device: &DeviceOf<Self>, length: usize) -> Result<Self::Numbers<T>>;

    /// The first `length` numbers, and the others.
    fn split<T: Scalar>(numbers: &mut Self::Numbers<T>, length: usize) -> (ViewMut<'_, Self, T>, ViewMut<'_, Self, T>);

    fn into_storage<T: Scalar>(numbers: Self::Numbers<T>, device: &DeviceOf<Self>) -> Self::Storage;

    /// A tensor without a gradient.
    fn into_tensor(storage: Self::Storage, shape: &Shape) -> Tensor;

    /// A number as the result of an operation.
    fn scalar(value: f32, device: &DeviceOf<Self>) -> Result<Self::Storage>;

    /// The targets of logits or hidden states `rows`, over a vocabulary of `vocab`.
    fn targets(rows: &Tensor, vocab: usize, targets: &Tensor) -> Result<Self::Targets>;

    /// How many rows are scored, where a host that does not wait can tell and the stages cannot.
    fn scored_rows(targets: &Self::Targets) -> Option<usize>;

    /// Runs `run` with the ids.
    fn with_targets<R>(targets: &Self::Targets, run: impl FnOnce(Targets<'_, Self::Memory>) -> Result<R>) -> Result<R>;

    /// An operation's forward pass, if this is the host.
    fn forward_on_host<P: Pass<Backend = Self>>(_: &P, _: &[Located<'_, CpuStorage>]) -> Result<(CpuStorage, Shape)> {
        bail!("the forward pass was made on a CUDA device")
    }

    /// An operation's forward pass, if this is a CUDA device.
    #[cfg(feature = "cuda")]
    fn forward_on_device<P: Pass<Backend = Self>>(
        _: &P,
        _: &[Located<'_, CudaStorage>],
    ) -> Result<(CudaStorage, Shape)> {
        bail!("the forward pass was made on the CPU")
    }
}

/// Part of a view.
pub(super) fn part<'a, B: TensorBackend, T: Number>(
    numbers: &View<'a, B, T>,
    start: usize,
    length: usize,
) -> Result<View<'a, B, T>> {
    <B::Memory as Memory>::part(numbers, start..start + length).ok_or_else(beyond)
}

/// The first numbers of a view.
pub(super) fn part_mut<'a, B: TensorBackend, T: Number>(
    numbers: &'a mut ViewMut<'_, B, T>,
    length: usize,
) -> Result<ViewMut<'a, B, T>> {
    <B::Memory as Memory>::part_mut(numbers, 0..length).ok_or_else(beyond)
}

fn beyond() -> Error {
    Error::msg("a tensor ends beyond its storage")
}

/// Runs `$run` with `$B` the backend of the device that a tensor lies on.
macro_rules! by_backend {
    ($tensor:expr, |$B:ident| $run:expr) => {
        match $tensor.device() {
            Device::Cpu => {
                type $B = exo_kernels::Cpu;
                $run
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                type $B = exo_kernels::cuda::Cuda;
                $run
            }
            device => Err(tensor_backend::refused(device)),
        }
    };
}
pub(super) use by_backend;

pub(super) fn refused(device: &Device) -> Error {
    let built = if cfg!(feature = "cuda") {
        "the CPU or a CUDA device expected"
    } else {
        "the CPU expected (exo-kernels-candle is built without its feature cuda)"
    };
    Error::msg(format!("logits: a tensor on {:?} given, {built}", device.location()))
}
