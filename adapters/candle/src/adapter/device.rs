//! Tensors on a CUDA device, as the stages take them: everything in the order of candle's stream, nothing through the host.
//!
//! candle hands the storage of a tensor only to an operation's forward pass. So a backward pass is an operation of its own,
//! without a gradient, over the same logits.

use super::candle_core::backend::BackendStorage;
use super::candle_core::cuda_backend::CudaDType;
use super::candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use super::candle_core::op::BackpropOp;
use super::candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, bail};
use super::host;
use super::row_layout::RowLayout;
use exo_kernels::cuda::{self, Cuda, Head, Hidden, LinearGradients, Logits, LogitsMut, Matrix, MatrixMut};
use exo_kernels::{Element, adapter};
use std::cell::RefCell;
use std::sync::Arc;

/// A storage and where the tensor lies in it.
pub(super) type Located<'a> = (&'a CudaStorage, &'a Layout);

/// Runs `$run` with the slices of the two storages, whatever their types: logits of f32, f16 or bf16, ids of u32 or
/// i64. Other types are refused.
macro_rules! by_types {
    ($logits:expr, $ids:expr, |$x:ident, $id:ident| $run:expr) => {
        match (&$logits.slice, &$ids.slice) {
            (CudaStorageSlice::F32($x), CudaStorageSlice::U32($id)) => $run,
            (CudaStorageSlice::F32($x), CudaStorageSlice::I64($id)) => $run,
            (CudaStorageSlice::F16($x), CudaStorageSlice::U32($id)) => $run,
            (CudaStorageSlice::F16($x), CudaStorageSlice::I64($id)) => $run,
            (CudaStorageSlice::BF16($x), CudaStorageSlice::U32($id)) => $run,
            (CudaStorageSlice::BF16($x), CudaStorageSlice::I64($id)) => $run,
            _ => Err(device::unexpected_types("logits", $logits, $ids)),
        }
    };
}
pub(super) use by_types;

/// Runs `$run` with hidden states, head and ids, whatever their types: f32, f16 or bf16, and u32 or i64. Other types are
/// refused.
macro_rules! by_linear_types {
    ($operands:expr, $ids:expr, |$hidden:ident, $head:ident, $id:ident| $run:expr) => {{
        let (operands, (ids, ids_layout)) = (&$operands, $ids);
        macro_rules! typed {
            ($element:ty, $index:ty) => {{
                let ($hidden, $head) = &operands.typed::<$element>()?;
                let $id = &device::elements(ids.as_cuda_slice::<$index>()?, ids_layout);
                $run
            }};
        }
        match (device::dtype(operands.hidden.0), device::dtype(ids)) {
            (DType::F32, DType::U32) => typed!(f32, u32),
            (DType::F32, DType::I64) => typed!(f32, i64),
            (DType::F16, DType::U32) => typed!(half::f16, u32),
            (DType::F16, DType::I64) => typed!(half::f16, i64),
            (DType::BF16, DType::U32) => typed!(half::bf16, u32),
            (DType::BF16, DType::I64) => typed!(half::bf16, i64),
            _ => Err(device::unexpected_types("hidden", operands.hidden.0, ids)),
        }
    }};
}
pub(super) use by_linear_types;

pub(super) fn dtype(storage: &CudaStorage) -> DType {
    storage.dtype()
}

pub(super) fn unexpected_types(what: &str, rows: &CudaStorage, ids: &CudaStorage) -> Error {
    match ids.dtype() {
        DType::U32 | DType::I64 => {
            Error::msg(format!("{what}: dtype {:?} given, f32, f16 or bf16 expected", rows.dtype()))
        }
        dtype => Error::msg(format!("targets: dtype {dtype:?} given, u32 or i64 expected")),
    }
}

thread_local! {
    /// The backends of the streams that this thread has used.
    ///
    /// By thread, because candle's default stream is one per thread: scratch memory that two threads share would be
    /// written by two streams at once.
    static BACKENDS: RefCell<Vec<Cuda>> = const { RefCell::new(Vec::new()) };
}

/// The backend of a device's stream, kept from one operation to the next with its kernels and scratch memory: until the
/// stream has no other user (no device, no tensor) and this thread makes its next operation on any CUDA device, or ends.
pub(super) fn backend(device: &CudaDevice) -> Result<Cuda> {
    let stream = device.cuda_stream();
    let same = |cuda: &Cuda| {
        let known = cuda.stream();
        known.cu_stream() == stream.cu_stream() && known.context().cu_ctx() == stream.context().cu_ctx()
    };
    // What is left over is dropped, which waits for its stream, when the table is no longer borrowed. A backend keeps its
    // stream open, so no other stream can have taken the address.
    let (known, _left_over) = BACKENDS.with_borrow_mut(|backends| {
        let left_over: Vec<Cuda> = backends.extract_if(.., |cuda| !same(cuda) && is_left_over(cuda)).collect();
        (backends.iter().find(|cuda| same(cuda)).cloned(), left_over)
    });
    if let Some(cuda) = known {
        return Ok(cuda);
    }
    let cuda = Cuda::new(&stream).map_err(Error::wrap)?;
    BACKENDS.with_borrow_mut(|backends| backends.push(cuda.clone()));
    Ok(cuda)
}

/// Whether nobody but this backend holds its stream: then nobody can use the stream again.
fn is_left_over(cuda: &Cuda) -> bool {
    Arc::strong_count(cuda.stream()) <= cuda.stream_references()
}

/// The targets of the rows of an operation.
pub(super) struct Targets {
    /// `[N]`, contiguous, on the device.
    pub(super) ids: Tensor,
    /// How many rows are scored, where the host can tell: then the products of the linear stage leave out the others.
    scored_rows: Option<usize>,
}

impl Targets {
    /// The targets of rows over a vocabulary of `vocab`. Ids that come from the CPU are looked at first.
    pub(super) fn new(device: &CudaDevice, vocab: usize, targets: &Tensor) -> Result<Self> {
        let (here, rows) = (Device::Cuda(device.clone()), targets.elem_count());
        let on_host = targets.device().is_cpu().then(|| host::target_ids(targets)).transpose()?;
        let scored_rows = on_host.as_ref().map(|ids| ids.iter().filter(|id| **id >= 0).count());
        let ids = if rows == 0 {
            // CUDA allocates nothing of no length.
            Tensor::zeros(1, targets.dtype(), &here)?.narrow(0, 0, 0)?
        } else if let Some(ids) = on_host {
            adapter::check_targets(&ids, rows, vocab).map_err(Error::wrap)?;
            targets.flatten_all()?.to_device(&here)?
        } else if targets.device().same_device(&here) {
            targets.flatten_all()?.contiguous()?
        } else {
            bail!(
                "targets: a tensor on {:?} given, {:?} (the device of the logits) or the CPU expected",
                targets.device(),
                here
            )
        };
        Ok(Self { ids, scored_rows })
    }

    /// Hidden states with the number of scored rows, if that is known.
    pub(super) fn hidden<'m, 'a, T>(&self, states: &'m Matrix<'a, T>) -> Hidden<'m, 'a, T> {
        match self.scored_rows {
            Some(count) => Hidden::new(states).with_scored_rows(count),
            None => Hidden::new(states),
        }
    }
}

/// A reference on the device: how many numbers, and where.
pub(super) enum Reference {
    PerToken(usize, CudaSlice<f32>),
    PerSequence(usize, CudaSlice<f64>),
    None,
}

impl Reference {
    pub(super) fn new(device: &CudaDevice, reference: exo_kernels::Reference<'_>) -> Result<Self> {
        use exo_kernels::Reference::{None, PerSequence, PerToken};
        Ok(match reference {
            PerToken(numbers) => Self::PerToken(numbers.len(), upload(device, numbers)?),
            PerSequence(numbers) => Self::PerSequence(numbers.len(), upload(device, numbers)?),
            None => Self::None,
        })
    }

    pub(super) fn view(&self) -> cuda::Reference<'_> {
        match self {
            Self::PerToken(count, numbers) => cuda::Reference::PerToken(numbers.slice(..*count)),
            Self::PerSequence(count, numbers) => cuda::Reference::PerSequence(numbers.slice(..*count)),
            Self::None => cuda::Reference::None,
        }
    }
}

/// Host numbers on the device. An allocation of nothing would be none: there is always one element.
fn upload<T: DeviceRepr + Copy + Default + 'static>(device: &CudaDevice, numbers: &[T]) -> Result<CudaSlice<T>> {
    if numbers.is_empty() { device.clone_htod(&[T::default()]) } else { device.clone_htod(numbers) }
}

/// A number as the result of an operation.
pub(super) fn scalar(device: &CudaDevice, value: f32) -> Result<(CudaStorage, Shape)> {
    Ok((CudaStorage::wrap_cuda_slice(upload(device, &[value])?, device.clone()), Shape::from(())))
}

/// Device memory that the caller will write before anything reads it; at least one element, as in [`upload`].
pub(super) fn unwritten<T: DeviceRepr>(device: &CudaDevice, length: usize) -> Result<CudaSlice<T>> {
    // SAFETY: the callers' kernels write every element, in the order of the stream, before anything reads it.
    unsafe { device.alloc::<T>(length.max(1)) }
}

pub(super) fn cuda_storage(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("a tensor on {:?} given, a CUDA device expected", storage.device().location()),
    }
}

/// The elements of a contiguous tensor.
pub(super) fn elements<'a, T>(data: &'a CudaSlice<T>, layout: &Layout) -> CudaView<'a, T> {
    data.slice(layout.start_offset()..layout.start_offset() + layout.shape().elem_count())
}

/// The logits `[N, V]` of a tensor whose rows lie at one stride.
pub(super) fn logits<'a, T: Element>(data: &'a CudaSlice<T>, layout: &Layout) -> Result<Logits<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand("logits", layout)?;
    Logits::strided(data.slice(start..), rows, columns, stride).map_err(Error::wrap)
}

/// A new contiguous tensor of `shape` that `write` fills with the gradient of the logits, `[N, V]`.
pub(super) fn gradient<T: Element + CudaDType + DeviceRepr>(
    device: &CudaDevice,
    logits: &Logits<'_, T>,
    shape: &Shape,
    write: impl FnOnce(&mut LogitsMut<'_, T>) -> exo_kernels::Result<()>,
) -> Result<(CudaStorage, Shape)> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let mut gradient = unwritten::<T>(device, rows * vocab)?;
    let mut view = LogitsMut::new(gradient.slice_mut(..rows * vocab), vocab).map_err(Error::wrap)?;
    write(&mut view).map_err(Error::wrap)?;
    Ok((CudaStorage::wrap_cuda_slice(gradient, device.clone()), shape.clone()))
}

/// Hidden states, weight and bias, of one type.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) hidden: Located<'a>,
    pub(super) weight: Located<'a>,
    pub(super) bias: Option<Located<'a>>,
}

impl<'a> Operands<'a> {
    /// Hidden states and head, of type `T`.
    pub(super) fn typed<T: Element + CudaDType>(&self) -> Result<(Matrix<'a, T>, Head<'a, T>)> {
        let mut head = Head::new(matrix::<T>("weight", self.weight)?).map_err(Error::wrap)?;
        if let Some((storage, layout)) = self.bias {
            head = head.with_bias(elements(storage.as_cuda_slice::<T>()?, layout)).map_err(Error::wrap)?;
        }
        Ok((matrix::<T>("hidden", self.hidden)?, head))
    }
}

/// Runs `run` with the storages of tensors on one device.
pub(super) fn with_operands<R>(
    [hidden, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    run: impl FnOnce(Operands<'_>) -> Result<R>,
) -> Result<R> {
    let ((hidden, hidden_layout), (weight, weight_layout)) = (hidden.storage_and_layout(), weight.storage_and_layout());
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = match &bias {
        Some((storage, layout)) => Some((cuda_storage(storage)?, *layout)),
        None => None,
    };
    run(Operands {
        hidden: (cuda_storage(&hidden)?, hidden_layout),
        weight: (cuda_storage(&weight)?, weight_layout),
        bias,
    })
}

/// `[rows, columns]`, of a tensor whose rows lie at one stride.
fn matrix<'a, T: Element + CudaDType>(what: &str, (storage, layout): Located<'a>) -> Result<Matrix<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand(what, layout)?;
    Matrix::strided(storage.as_cuda_slice::<T>()?.slice(start..), rows, columns, stride).map_err(Error::wrap)
}

/// The gradients of those of the three tensors that take part in a gradient, which `write` fills.
pub(super) fn linear_gradients<T: Element + CudaDType + DeviceRepr>(
    device: &CudaDevice,
    tensors: [Option<&Tensor>; 3],
    size: usize,
    write: impl FnOnce(LinearGradients<'_, T, T>) -> Result<()>,
) -> Result<[Option<Tensor>; 3]> {
    // Nothing for a frozen tensor, which would otherwise cost a product and a buffer of its size.
    let buffer = |tensor: Option<&Tensor>| {
        let tracked = tensor.filter(|tensor| tensor.track_op());
        tracked.map(|tensor| unwritten::<T>(device, tensor.elem_count())).transpose()
    };
    let [hidden, weight, bias] = tensors;
    let (mut of_hidden, mut of_weight, mut of_bias) = (buffer(hidden)?, buffer(weight)?, buffer(bias)?);
    let mut gradients =
        LinearGradients::new(matrix_mut(&mut of_hidden, hidden, size)?, matrix_mut(&mut of_weight, weight, size)?);
    if let Some((buffer, like)) = of_bias.as_mut().zip(bias) {
        gradients = gradients.with_bias(buffer.slice_mut(..like.elem_count()));
    }
    write(gradients)?;
    let tensor = |buffer: Option<CudaSlice<T>>, like: Option<&Tensor>| {
        buffer.zip(like).map(|(buffer, like)| {
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, device.clone()));
            Tensor::from_storage(storage, like.shape(), BackpropOp::none(), false)
        })
    };
    Ok([tensor(of_hidden, hidden), tensor(of_weight, weight), tensor(of_bias, bias)])
}

/// A buffer as a matrix of rows of `columns`, as many as `like` has.
fn matrix_mut<'a, T: Element>(
    buffer: &'a mut Option<CudaSlice<T>>,
    like: Option<&Tensor>,
    columns: usize,
) -> Result<Option<MatrixMut<'a, T>>> {
    let Some((buffer, like)) = buffer.as_mut().zip(like) else { return Ok(None) };
    MatrixMut::new(buffer.slice_mut(..like.elem_count()), columns).map(Some).map_err(Error::wrap)
}
