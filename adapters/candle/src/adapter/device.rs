//! Tensors on a CUDA device: everything in the order of candle's stream, nothing through the host.

use super::candle_core::cuda_backend::CudaStorageSlice;
use super::candle_core::cuda_backend::cudarc::driver::CudaSlice;
use super::candle_core::op::BackpropOp;
use super::candle_core::{CudaDevice, CudaStorage, Device, Error, Result, Shape, Storage, Tensor, bail};
use super::host;
use super::operation::{Pass, forward};
use super::tensor_backend::{Located, Scalar, TensorBackend};
use exo_kernels::cuda::{self, Cuda, View, ViewMut};
use exo_kernels::{Backend, Cpu};
use std::cell::RefCell;
use std::sync::Arc;

impl TensorBackend for Cuda {
    type Storage = CudaStorage;
    type Numbers<T: Scalar> = CudaSlice<T>;
    type Targets = Targets;

    fn of(device: &CudaDevice) -> Result<Self> {
        backend(device)
    }

    fn storage<'a>(_: &str, storage: &'a Storage) -> Result<&'a CudaStorage> {
        match storage {
            Storage::Cuda(storage) => Ok(storage),
            _ => bail!("a tensor on {:?} given, a CUDA device expected", storage.device().location()),
        }
    }

    fn numbers<'a, T: Scalar>(_: &str, storage: &'a CudaStorage) -> Result<View<'a, T>> {
        storage.as_cuda_slice::<T>().map(View::from)
    }

    fn allocate<T: Scalar>(device: &CudaDevice, length: usize) -> Result<CudaSlice<T>> {
        // An allocation of nothing would be none.
        // SAFETY: the callers' kernels write every element, in the order of the stream, before anything reads it.
        unsafe { device.alloc::<T>(length.max(1)) }
    }

    fn split<T: Scalar>(numbers: &mut CudaSlice<T>, length: usize) -> (ViewMut<'_, T>, ViewMut<'_, T>) {
        let (first, others) = numbers.split_at_mut(length);
        (first.into(), others.into())
    }

    fn into_storage<T: Scalar>(numbers: CudaSlice<T>, device: &CudaDevice) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(numbers, device.clone())
    }

    fn into_tensor(storage: CudaStorage, shape: &Shape) -> Tensor {
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }

    fn scalar(value: f32, device: &CudaDevice) -> Result<CudaStorage> {
        Ok(CudaStorage::wrap_cuda_slice(device.clone_htod(&[value])?, device.clone()))
    }

    fn targets(rows: &Tensor, vocab: usize, targets: &Tensor) -> Result<Targets> {
        Targets::new(rows.device(), vocab, targets)
    }

    fn scored_rows(targets: &Targets) -> Option<usize> {
        targets.scored_rows
    }

    fn with_targets<R>(targets: &Targets, run: impl FnOnce(cuda::Targets<'_>) -> Result<R>) -> Result<R> {
        let (storage, layout) = targets.ids.storage_and_layout();
        let storage = Self::storage("targets", &storage)?;
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        match &storage.slice {
            CudaStorageSlice::U32(ids) => run(ids.slice(range).into()),
            CudaStorageSlice::I64(ids) => run(ids.slice(range).into()),
            _ => bail!("targets: dtype {:?} given, u32 or i64 expected", targets.ids.dtype()),
        }
    }

    fn forward_on_device<P: Pass<Backend = Self>>(
        pass: &P,
        operands: &[Located<'_, CudaStorage>],
    ) -> Result<(CudaStorage, Shape)> {
        forward(pass, operands)
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
fn backend(device: &CudaDevice) -> Result<Cuda> {
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
    ids: Tensor,
    /// How many rows are scored, where the host can tell: then the products of the linear stage leave out the others.
    scored_rows: Option<usize>,
}

impl Targets {
    /// The targets of rows over a vocabulary of `vocab`. Ids that come from the CPU are looked at first.
    fn new(here: &Device, vocab: usize, targets: &Tensor) -> Result<Self> {
        let rows = targets.elem_count();
        let on_host = targets.device().is_cpu().then(|| host::target_ids(targets)).transpose()?;
        let scored_rows = on_host.as_ref().map(|ids| ids.iter().filter(|id| **id >= 0).count());
        let ids = if rows == 0 {
            // CUDA allocates nothing of no length.
            Tensor::zeros(1, targets.dtype(), here)?.narrow(0, 0, 0)?
        } else if let Some(ids) = on_host {
            Cpu::default().check_targets(&(&ids).into(), rows, vocab).map_err(Error::wrap)?;
            targets.flatten_all()?.to_device(here)?
        } else if targets.device().same_device(here) {
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
}
