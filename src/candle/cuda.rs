//! The operations on CUDA tensors: everything in the order of candle's stream, nothing through the host.
//!
//! candle hands the storage of a tensor only to an operation's forward pass. So a backward pass is an operation of its
//! own, without a gradient, over the same logits.

use crate::candle::row_layout::RowLayout;
use crate::candle::{LossInputs, cpu, result_shape};
use crate::cuda::Cuda;
use crate::cuda::forward_pass::ForwardPass;
use crate::cuda::memory::{Logits, LogitsMut};
use crate::cuda::token_log_prob::{Reference, RowGradients, SavedRows, TokenLogProbs};
use crate::data::{reference, targets};
use crate::element::Element;
use crate::loss::PreferenceLoss;
use crate::options::{LogitOptions, LossOptions};
use crate::report::Report;
use crate::stage::token_log_prob::SoftmaxState;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

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
            _ => Err(unexpected_types("logits", $logits, $ids)),
        }
    };
}

/// `[N]`, or `[2, N]` with the entropies, of logits `[.., V]`.
pub(super) fn token_log_probs(
    device: &CudaDevice,
    logits: &Tensor,
    targets: &Tensor,
    options: &LogitOptions,
    entropy: bool,
) -> Result<Tensor> {
    let RowLayout { rows, columns: vocab, .. } = RowLayout::of_operand("logits", logits.layout())?;
    let targets = placed_targets(device, rows, vocab, targets)?;
    logits.apply_op1(TokenLogProbOp { targets, options: *options, entropy, states: OnceLock::new() })
}

/// The loss of logits `[.., V]`, and its report, for which this waits.
pub(super) fn preference_loss(
    device: &CudaDevice,
    logits: &Tensor,
    inputs: LossInputs<'_>,
    options: LossOptions,
) -> Result<(Tensor, Report)> {
    let LossInputs { targets, batch, reference, rewards } = inputs;
    let RowLayout { rows: count, columns: vocab, .. } = RowLayout::of_operand("logits", logits.layout())?;
    let targets = placed_targets(device, count, vocab, targets)?;
    let reference = placed_reference(device, reference)?;
    let mut loss = PreferenceLoss::new(backend(device)?, options);
    {
        let ((logits, layout), (ids, ids_layout)) = (logits.storage_and_layout(), targets.storage_and_layout());
        let (logits, ids) = (cuda_storage(&logits)?, cuda_storage(&ids)?);
        by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (rows(logits, layout)?, elements(ids, ids_layout));
            // The step ties a backward pass of the loss to this pass; here the pass itself is taken out.
            loss.forward(&logits, &ids, batch, &reference.view(), rewards).map(drop).map_err(Error::wrap)
        })?;
    }
    let report = loss.unchecked_report().map_err(Error::wrap)?.clone();
    let op = LossOp { value: report.loss as f32, pass: loss.into_forward_pass().map_err(Error::wrap)? };
    Ok((logits.apply_op1(op)?, report))
}

/// A reference on the device: how many numbers, and where.
pub(super) enum PlacedReference {
    PerToken(usize, CudaSlice<f32>),
    PerSequence(usize, CudaSlice<f64>),
    None,
}

pub(super) fn placed_reference(device: &CudaDevice, reference: reference::Reference<'_>) -> Result<PlacedReference> {
    Ok(match reference {
        reference::Reference::PerToken(numbers) => PlacedReference::PerToken(numbers.len(), upload(device, numbers)?),
        reference::Reference::PerSequence(numbers) => {
            PlacedReference::PerSequence(numbers.len(), upload(device, numbers)?)
        }
        reference::Reference::None => PlacedReference::None,
    })
}

impl PlacedReference {
    pub(super) fn view(&self) -> Reference<'_> {
        match self {
            Self::PerToken(count, numbers) => Reference::PerToken(numbers.slice(..*count)),
            Self::PerSequence(count, numbers) => Reference::PerSequence(numbers.slice(..*count)),
            Self::None => Reference::None,
        }
    }
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

/// The ids on the device as a contiguous `[N]`. Ids that come from the CPU are looked at first.
pub(super) fn placed_targets(device: &CudaDevice, rows: usize, vocab: usize, targets: &Tensor) -> Result<Tensor> {
    let here = Device::Cuda(device.clone());
    if rows == 0 {
        // CUDA allocates nothing of no length.
        return Tensor::zeros(1, targets.dtype(), &here)?.narrow(0, 0, 0);
    }
    if targets.device().is_cpu() {
        targets::check(&cpu::target_ids(targets)?, rows, vocab).map_err(Error::wrap)?;
        return targets.flatten_all()?.to_device(&here);
    }
    if !targets.device().same_device(&here) {
        bail!(
            "targets: a tensor on {:?} given, {:?} (the device of the logits) or the CPU expected",
            targets.device(),
            here
        );
    }
    targets.flatten_all()?.contiguous()
}

/// Host numbers on the device. An allocation of nothing would be none: there is always one element.
pub(super) fn upload<T: DeviceRepr + Copy + Default + 'static>(
    device: &CudaDevice,
    numbers: &[T],
) -> Result<CudaSlice<T>> {
    if numbers.is_empty() { device.clone_htod(&[T::default()]) } else { device.clone_htod(numbers) }
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

/// The logits `[N, V]` of a tensor whose rows lie at one stride.
fn rows<'a, T: Element>(data: &'a CudaSlice<T>, layout: &Layout) -> Result<Logits<'a, T>> {
    let RowLayout { start, rows, columns, stride } = RowLayout::of_operand("logits", layout)?;
    Logits::strided(data.slice(start..), rows, columns, stride).map_err(Error::wrap)
}

/// The elements of a contiguous tensor.
pub(super) fn elements<'a, T>(data: &'a CudaSlice<T>, layout: &Layout) -> CudaView<'a, T> {
    data.slice(layout.start_offset()..layout.start_offset() + layout.shape().elem_count())
}

/// A new contiguous tensor of `shape` that `write` fills with the gradient of the logits, `[N, V]`.
fn gradient<T: Element + CudaDType + DeviceRepr>(
    device: &CudaDevice,
    logits: &Logits<'_, T>,
    shape: &Shape,
    write: impl FnOnce(&mut LogitsMut<'_, T>) -> crate::error::Result<()>,
) -> Result<(CudaStorage, Shape)> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let mut gradient = unwritten::<T>(device, rows * vocab)?;
    let mut view = LogitsMut::new(gradient.slice_mut(..rows * vocab), vocab).map_err(Error::wrap)?;
    write(&mut view).map_err(Error::wrap)?;
    Ok((CudaStorage::wrap_cuda_slice(gradient, device.clone()), shape.clone()))
}

/// What an operation of this module says on the CPU, where nobody sends it.
fn cuda_only<T>(name: &str) -> Result<T> {
    bail!("{name}: this operation is for CUDA tensors")
}

/// The forward pass; what it leaves for the backward pass stays on the device.
struct TokenLogProbOp {
    /// `[N]`, contiguous, on the device.
    targets: Tensor,
    options: LogitOptions,
    entropy: bool,
    /// Of the forward pass.
    states: OnceLock<CudaSlice<SoftmaxState>>,
}

impl CustomOp1 for TokenLogProbOp {
    fn name(&self) -> &'static str {
        "exo-token-log-probs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cuda_only(self.name())
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = logits.device();
        let cuda = backend(device)?;
        let count = RowLayout::of_operand("logits", layout)?.rows;
        let shape = result_shape(count, self.entropy);
        let mut values = unwritten::<f32>(device, shape.elem_count())?;
        let mut states = unwritten::<SoftmaxState>(device, count)?;
        let (ids, ids_layout) = self.targets.storage_and_layout();
        let ids = cuda_storage(&ids)?;
        let (log_probs, mut entropies) = values.split_at_mut(count);
        let mut outputs = TokenLogProbs {
            log_probs,
            states: states.slice_mut(..count),
            entropies: self.entropy.then(|| entropies.slice_mut(..count)),
        };
        by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (rows(logits, layout)?, elements(ids, ids_layout));
            cuda.token_log_probs(&logits, &ids, &self.options, &mut outputs).map_err(Error::wrap)
        })?;
        // Nobody has set it: candle runs an operation's forward pass once.
        let _ = self.states.set(states);
        Ok((CudaStorage::wrap_cuda_slice(values, device.clone()), shape))
    }

    fn bwd(&self, logits: &Tensor, values: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let upstream = upstream.contiguous()?;
        logits.apply_op1_no_bwd(&TokenLogProbGradient { forward: self, values, upstream: &upstream }).map(Some)
    }
}

/// The backward pass of [`TokenLogProbOp`].
struct TokenLogProbGradient<'a> {
    forward: &'a TokenLogProbOp,
    /// What the forward pass gave, for the entropies in it.
    values: &'a Tensor,
    /// In the shape of the values, contiguous.
    upstream: &'a Tensor,
}

impl CustomOp1 for TokenLogProbGradient<'_> {
    fn name(&self) -> &'static str {
        "exo-token-log-probs-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cuda_only(self.name())
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let TokenLogProbOp { targets, options, entropy, states } = self.forward;
        let Some(states) = states.get() else { bail!("{}: no forward pass has been made", self.name()) };
        let device = logits.device();
        let cuda = backend(device)?;
        let count = RowLayout::of_operand("logits", layout)?.rows;
        let (ids, ids_layout) = targets.storage_and_layout();
        let (values, values_layout) = self.values.storage_and_layout();
        let (upstream, upstream_layout) = self.upstream.storage_and_layout();
        let (ids, values, upstream) = (cuda_storage(&ids)?, cuda_storage(&values)?, cuda_storage(&upstream)?);
        let values = elements(values.as_cuda_slice::<f32>()?, values_layout);
        let upstream = elements(upstream.as_cuda_slice::<f32>()?, upstream_layout);
        let second_row = count..2 * count;
        let saved =
            SavedRows { states: states.slice(..count), entropies: entropy.then(|| values.slice(second_row.clone())) };
        let upstream =
            RowGradients { log_probs: upstream.slice(..count), entropies: entropy.then(|| upstream.slice(second_row)) };
        by_types!(logits, ids, |logits, ids| {
            let (logits, ids) = (rows(logits, layout)?, elements(ids, ids_layout));
            gradient(device, &logits, layout.shape(), |gradient| {
                cuda.token_log_probs_backward(&logits, &ids, options, &saved, &upstream, gradient)
            })
        })
    }
}

/// A finished forward pass, its value, and what the backward pass needs. Nothing in it changes, so that nothing is locked
/// while the backward pass calls the driver.
struct LossOp {
    value: f32,
    pass: ForwardPass,
}

impl CustomOp1 for LossOp {
    fn name(&self) -> &'static str {
        "exo-preference-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cuda_only(self.name())
    }

    fn cuda_fwd(&self, logits: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = logits.device();
        Ok((CudaStorage::wrap_cuda_slice(upload(device, &[self.value])?, device.clone()), Shape::from(())))
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

impl LossGradient<'_> {
    fn run<T: Element + CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        data: &CudaSlice<T>,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (cuda, logits) = (backend(device)?, rows(data, layout)?);
        gradient(device, &logits, layout.shape(), |gradient| {
            self.pass.backward(&cuda, self.loss_scale, &logits, gradient)
        })
    }
}

impl CustomOp1 for LossGradient<'_> {
    fn name(&self) -> &'static str {
        "exo-preference-loss-backward"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cuda_only(self.name())
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = logits.device();
        match &logits.slice {
            CudaStorageSlice::F32(data) => self.run(device, data, layout),
            CudaStorageSlice::F16(data) => self.run(device, data, layout),
            CudaStorageSlice::BF16(data) => self.run(device, data, layout),
            _ => bail!("logits: dtype {:?} given, f32, f16 or bf16 expected", logits.dtype()),
        }
    }
}
