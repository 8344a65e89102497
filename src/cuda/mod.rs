//! The CUDA backend: hand-written kernels, launched on the caller's stream through [cudarc].
//!
//! - Three levels: [`raw`] takes device pointers (for tch, and frameworks that own their memory); the stages, which are the
//!   verbs of [`Backend`](crate::Backend), take [`View`]s, of cudarc's slices or of addresses;
//!   [`PreferenceLoss`](crate::PreferenceLoss)`<Cuda>` is the loss with its workspaces.
//! - Everything runs on the stream that [`Cuda::new`] was given, in order, and nothing waits for the device: what the
//!   device finds wrong (a NaN row, a target beyond the vocabulary) is counted there and becomes an `Error` when a report
//!   or [`Cuda::status`] is read.
//! - After the first step of a shape nothing is allocated, so the stages can be captured in a CUDA graph (with cudarc's
//!   event tracking off: a capture may not wait for events from outside). So can a step of
//!   [`PreferenceLoss`](crate::PreferenceLoss), which says how, whose [`Rewards`] are on the device.
//! - The bits of a row's result depend on that row alone, as on the CPU. The two backends differ within
//!   [`reference::bounds`](crate::reference::bounds).
//! - From hidden states ([`Backend::linear_token_log_probs`](crate::Backend::linear_token_log_probs)) matrix products are
//!   cuBLAS's, which is looked for when the first such call is made. They are without atomics and on one stream, so that they
//!   give the same bits again; that a row's do not depend on the number of rows, cuBLAS does not promise.
//! - Views must lie in the context of the backend's stream ([`Error::Device`]). The calling thread's
//!   current context is the same after a call as before it, whichever that is, and after these values are dropped.
//!
//! The kernels are compiled by `build.rs`. Where that found no nvcc, the crate builds all the same and [`Cuda::new`]
//! says what is missing.

#[cfg(feature = "tuning")]
mod alternatives;
mod backend;
mod blas;
mod buffer;
mod context;
mod driver;
mod kernels;
mod lent;
pub(crate) mod linear;
mod log_ratio;
pub(crate) mod memory;
#[cfg(feature = "nccl")]
mod nccl;
mod objective;
mod page_locked;
mod partial_row;
pub mod raw;
mod rewards;
mod row_sharing;
mod sequence_part;
mod status;
mod status_word;
mod step;
mod targets;
mod token_log_prob;
mod tuning;

use crate::cuda::context::{CurrentContext, ForeignContext, Kept};
use crate::cuda::kernels::Kernels;
use crate::cuda::lent::Lender;
use crate::cuda::linear::workspace::LinearScratch;
use crate::cuda::memory::Scratch;
use crate::cuda::status_word::StatusWord;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUcontext, CUdevice_attribute, CUresult, CUstream};
use cudarc::driver::{CudaStream, DriverError};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "tuning")]
pub use crate::cuda::alternatives::SLICE;
pub use crate::cuda::blas::{LinearPrecision, cublas_present};
pub use crate::cuda::driver::driver_present;
pub use crate::cuda::linear::workspace::LinearChunks;
pub use crate::cuda::log_ratio::DeviceBatch;
pub use crate::cuda::memory::{Device, Grown, Use, View, ViewMut};
#[cfg(feature = "nccl")]
#[cfg_attr(docsrs, doc(cfg(feature = "nccl")))]
pub use crate::cuda::nccl::{Nccl, nccl_present};
pub use crate::cuda::partial_row::PartialRow;
pub use crate::cuda::rewards::{DeviceRewards, RewardBuffers, Rewards};
#[cfg(feature = "tuning")]
pub use crate::cuda::row_sharing::RowSharing;
pub use crate::cuda::status::Status;
pub use crate::cuda::views::*;

/// The types of [`backend`](crate::backend) over the memory of a CUDA device.
mod views {
    use crate::backend;
    use crate::cuda::Device;

    /// [`backend::Matrix`] on the device: made from a [`View`](crate::cuda::View).
    pub type Matrix<'a, T> = backend::Matrix<'a, T, Device>;
    /// [`backend::MatrixMut`] on the device: made from a [`ViewMut`](crate::cuda::ViewMut).
    pub type MatrixMut<'a, T> = backend::MatrixMut<'a, T, Device>;
    /// [`backend::Head`] on the device.
    pub type Head<'a, T> = backend::Head<'a, T, Device>;
    /// [`backend::Hidden`] on the device.
    pub type Hidden<'m, 'a, T> = backend::Hidden<'m, 'a, T, Device>;
    /// [`backend::LinearGradients`] on the device.
    pub type LinearGradients<'a, T, G> = backend::LinearGradients<'a, T, G, Device>;
    /// [`backend::Targets`] on the device: made from a view of ids, or a reference to a slice of cudarc's.
    pub type Targets<'a> = backend::Targets<'a, Device>;
    /// [`backend::Reference`] on the device.
    pub type Reference<'a> = backend::Reference<'a, Device>;
    /// [`backend::TokenLogProbs`] on the device.
    pub type TokenLogProbs<'a> = backend::TokenLogProbs<'a, Device>;
    /// [`backend::SavedRows`] on the device.
    pub type SavedRows<'a> = backend::SavedRows<'a, Device>;
    /// [`backend::LinearOutputs`] on the device.
    pub type LinearOutputs<'a> = backend::LinearOutputs<'a, Device>;
    /// [`backend::SavedLinear`] on the device.
    pub type SavedLinear<'a> = backend::SavedLinear<'a, Device>;
    /// [`backend::RowGradients`] on the device.
    pub type RowGradients<'a> = backend::RowGradients<'a, Device>;
    /// [`backend::RowLogProbs`] on the device.
    pub type RowLogProbs<'a> = backend::RowLogProbs<'a, Device>;
    /// [`backend::LogRatioOutputs`] on the device.
    pub type LogRatioOutputs<'a> = backend::LogRatioOutputs<'a, Device>;
    /// [`backend::ObjectiveOutputs`] on the device.
    pub type ObjectiveOutputs<'a> = backend::ObjectiveOutputs<'a, Device>;
    /// [`backend::RowWeights`] on the device.
    pub type RowWeights<'a> = backend::RowWeights<'a, Device>;
    /// [`backend::RowLosses`] on the device.
    pub type RowLosses<'a> = backend::RowLosses<'a, Device>;
    /// [`backend::LinearParts`] on the device; P is [`PartialRow`](crate::cuda::PartialRow).
    pub type LinearParts<'a, P> = backend::LinearParts<'a, Device, P>;
    /// [`backend::UnitSums`] on the device.
    pub type UnitSums<'a, P> = backend::UnitSums<'a, Device, P>;
    /// [`backend::GatheredRows`] on the device.
    pub type GatheredRows<'a, P> = backend::GatheredRows<'a, Device, P>;
}

/// A CUDA device as a backend: a stream, the kernels of its context, and scratch memory that is kept between calls.
/// Cheap to clone; clones share the scratch memory, as they share the stream. Threads that call clones at the same time get
/// scratch memory each.
#[derive(Clone)]
pub struct Cuda {
    stream: Kept<Arc<CudaStream>>,
    kernels: Arc<Kept<Kernels>>,
    scratch: Arc<Lender<Scratch>>,
    /// What the device has found wrong in the calls of this backend.
    status: Arc<StatusWord>,
    /// What the linear stage keeps.
    linear: Arc<Lender<LinearScratch>>,
    linear_settings: Arc<Mutex<(LinearChunks, LinearPrecision)>>,
    /// Multiprocessors of the device.
    multiprocessors: usize,
    /// Its compute capability.
    capability: tuning::Capability,
    /// How the forward pass of the token log-probs is launched.
    token_log_prob_tuning: &'static tuning::Table<tuning::TokenLogProb>,
    /// The last field: what those above hold of the context is given back before it.
    _foreign: Option<Arc<ForeignContext>>,
}

impl Cuda {
    /// The device of `stream`, on which everything will run. cudarc's per-thread stream is another stream on every thread:
    /// a backend on it is for one thread.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::KernelsNotBuilt`], [`Error::KernelsRefused`] where the driver is older than the kernels
    /// allow, or what else the driver says.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // Asks for the driver, which nothing else may be asked before.
        driver::require()?;
        let _current = CurrentContext::enter(stream.context())?;
        let kernels = kernels::of_context(stream.context(), kernels::IMAGES)?;
        let attribute = |attribute| {
            let value = driver::called("cuDeviceGetAttribute", stream.context().attribute(attribute))?;
            Ok::<_, Error>(value.max(0) as u32)
        };
        let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(Self {
            stream: Kept::new(stream.clone()),
            kernels,
            scratch: Arc::default(),
            status: Arc::default(),
            linear: Arc::default(),
            linear_settings: Arc::default(),
            multiprocessors: multiprocessors.max(1) as usize,
            capability,
            token_log_prob_tuning: &tuning::TOKEN_LOG_PROB,
            _foreign: None,
        })
    }

    /// A context and a stream that another framework owns: tch, or a trainer in C++.
    ///
    /// Neither is destroyed when this value and what was made from it are dropped; the kernels are unloaded from the context
    /// and scratch memory is freed, in the stream's order. The calling thread's current context is the same after every
    /// call, this one included. A null `stream` is the context's null stream, and the driver's handles for the legacy and
    /// the per-thread stream (1 and 2) are streams too.
    ///
    /// With the runtime API, and so with PyTorch, the context is the device's primary one: what `cuCtxGetCurrent` says
    /// after any call of it, or what `cuDevicePrimaryCtxRetain` gives. The stream is PyTorch's
    /// `at::cuda::getCurrentCUDAStream().stream()`.
    ///
    /// ```no_run
    /// use exo_kernels::cuda::{Cuda, raw};
    /// use exo_kernels::{Dtype, LogitOptions};
    /// use std::ffi::c_void;
    ///
    /// /// Log-probs of `[rows, vocab]` bf16 logits, all of it in the framework's memory and on its stream.
    /// ///
    /// /// # Safety
    /// /// `context` and `stream` as [`Cuda::from_raw`] says; the addresses as [`raw::token_log_probs`] says.
    /// unsafe fn log_probs(
    ///     (context, stream): (*mut c_void, *mut c_void),
    ///     (logits, rows, vocab): (u64, usize, usize),
    ///     targets: u64,
    ///     (log_probs, states): (u64, u64),
    /// ) -> exo_kernels::Result<()> {
    ///     // SAFETY: the caller's promise. A trainer makes it once and keeps it.
    ///     let cuda = unsafe { Cuda::from_raw(context.cast(), stream.cast())? };
    ///     let logits = raw::MatrixAt { address: logits, rows, columns: vocab, row_stride: vocab, dtype: Dtype::Bf16 };
    ///     let outputs = raw::ForwardOutputs { log_probs, states, entropies: 0 };
    ///     // SAFETY: the caller's promise.
    ///     unsafe { raw::token_log_probs(&cuda, logits, raw::Targets::I64(targets), &LogitOptions::default(), outputs) }
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`Error::Device`] for a stream of another context; [`Error::Cuda`] for a null context.
    ///
    /// # Safety
    /// 1. `context` is a context of the driver, and `stream` one of its streams, null, or one of the special handles.
    /// 2. Both outlive this value, its clones, and everything that holds one: losses, workspaces, batches, clones of
    ///    [`Cuda::stream`].
    /// 3. The per-thread stream is another stream on every thread, and calls on several streams do not wait for one another:
    ///    made from it, this value, its clones and what was made from them are used and dropped on one thread.
    pub unsafe fn from_raw(context: CUcontext, stream: CUstream) -> Result<Self> {
        driver::require()?;
        let _current = CurrentContext::keep()?;
        // SAFETY: the caller's promise.
        let foreign = unsafe { ForeignContext::new(context)? };
        // SAFETY: the caller's promise; the line above has made the context current.
        let stream = unsafe { foreign.stream(stream)? };
        let cuda = Self::new(&stream)?;
        Ok(Self { _foreign: Some(Arc::new(foreign)), ..cuda })
    }

    /// Device `ordinal`'s default stream: the null stream of its primary context.
    ///
    /// # Errors
    /// As [`Cuda::new`], and what the driver says to opening the device.
    pub fn device(ordinal: usize) -> Result<Self> {
        driver::require()?;
        driver::called("cuInit", cudarc::driver::result::init())?;
        let _current = CurrentContext::keep()?;
        context::changed();
        // cudarc keeps the lower 32 bits of an ordinal: 2^32 would be device 0.
        let counted = i32::try_from(ordinal).map_err(|_| DriverError(CUresult::CUDA_ERROR_INVALID_DEVICE));
        driver::called("cuDeviceGet", counted)?;
        let context = driver::called("cuDevicePrimaryCtxRetain", cudarc::driver::CudaContext::new(ordinal))?;
        Self::new(&context.default_stream())
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Runs `call` with scratch memory.
    fn with_scratch<R>(&self, call: impl FnOnce(&mut Scratch) -> R) -> R {
        self.scratch.with(Scratch::default, call)
    }

    /// Runs `call` with what the linear stage keeps.
    fn with_linear_scratch<R>(&self, call: impl FnOnce(&mut LinearScratch) -> R) -> R {
        let (chunks, precision) = *self.linear_settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.linear.with(LinearScratch::default, |work| {
            work.chunks = chunks;
            work.precision = precision;
            call(work)
        })
    }

    /// How many references to the stream this backend and its memory hold, those that are lent at the moment and clones
    /// left out: for adapters that keep a backend per stream, and want to let go of the streams that nobody else has.
    pub fn stream_references(&self) -> usize {
        1 + usize::from(self.status.is_made())
            + self.scratch.sum(Scratch::slices)
            + self.linear.sum(LinearScratch::stream_references)
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cuda").field("device", &self.stream.context().ordinal()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod wave_model;
