//! The stages over device addresses: for tch, and for frameworks that own their memory.
//!
//! Every function launches on the stream of its [`Cuda`] and returns. An address of 0 is "none" where that is allowed.
//! Checked here are lengths and settings; that an address is one, nobody can check.

use super::Cuda;
use super::arguments::{self, Status};
use super::context::CurrentContext;
use super::driver::called;
use super::kernels::Stage;
use super::tuning;
use super::workspace::{Scratch, StatusWord, address};
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::logits::LogitOptions;
use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg, sys};

mod linear;
pub(super) mod linear_log_prob;
mod linear_pass;
mod linear_row_loss;
mod log_ratio;
mod objective;

pub use linear::{LinearGradientsAt, LinearInputs, MatrixAt};
pub use linear_log_prob::{linear_token_log_probs, linear_token_log_probs_backward};
pub use linear_row_loss::{RowLossesAt, linear_row_loss};
pub(super) use log_ratio::log_ratios_with;
pub use log_ratio::{LogRatioInputs, LogRatioOutputs, log_ratios};
pub(super) use objective::objective_with;
pub use objective::{ObjectiveInputs, ObjectiveOutputs, Rewards, objective};

/// An address of device memory.
pub type Address = sys::CUdeviceptr;

/// Target ids on the device: which of the two types, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// `[N]` u32; an id with its highest bit set masks its row.
    U32(Address),
    /// `[N]` i64; a negative id masks its row.
    I64(Address),
}

impl Targets {
    fn parts(self) -> (Address, i32) {
        match self {
            Self::U32(address) => (address, 4),
            Self::I64(address) => (address, 8),
        }
    }
}

/// Logits on the device: `[N, V]`, row stride ≥ V in elements, aligned to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first element.
    pub address: Address,
    /// N.
    pub rows: usize,
    /// V.
    pub vocab: usize,
    /// Elements from the start of one row to the start of the next.
    pub row_stride: usize,
    /// The type of an element.
    pub dtype: Dtype,
}

impl Rows {
    fn check(&self) -> Result<()> {
        let Self { rows, vocab, row_stride, dtype, .. } = *self;
        // A grid has up to 65535 blocks along y, one per slice.
        if vocab == 0 || vocab > 65_535 * tuning::SLICE {
            return Err(Error::Vocabulary { vocab });
        }
        // A grid has up to 2^31 - 1 blocks along x.
        if row_stride < vocab || !bytes_fit(rows, row_stride, dtype) || i32::try_from(rows).is_err() {
            return Err(Error::Shape { elements: usize::MAX, rows: Some(rows), vocab, row_stride });
        }
        Ok(())
    }
}

/// What the token log-prob stage writes.
#[derive(Clone, Copy, Debug)]
pub struct ForwardOutputs {
    /// `[N]` f32.
    pub log_probs: Address,
    /// `[N]` [`SoftmaxState`](crate::SoftmaxState), aligned to 8 bytes.
    pub states: Address,
    /// `[N]` f32, or 0.
    pub entropies: Address,
}

/// Where the gradient of a row's log-prob comes from.
#[derive(Clone, Copy, Debug)]
pub enum Upstream {
    /// `[N]` f32 each.
    PerRow {
        /// d loss / d log-prob.
        log_probs: Address,
        /// d loss / d entropy, or 0; needs the entropies of the forward pass.
        entropies: Address,
    },
    /// One number per sequence, times `loss_scale`.
    PerSequence {
        /// `[N]` i32: the sequence of each row.
        row_sequences: Address,
        /// `[S]` f64.
        weights: Address,
        /// The factor.
        loss_scale: f64,
    },
}

/// Bytes of an element.
fn bytes(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Whether offsets in bytes within these rows are numbers that a kernel has, i64.
fn bytes_fit(rows: usize, row_stride: usize, dtype: Dtype) -> bool {
    let end = row_stride.checked_mul(rows).and_then(|elements| elements.checked_mul(bytes(dtype)));
    end.is_some_and(|end| i64::try_from(end).is_ok())
}

fn suffix(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

/// log2 e / T: logits are exponents of two inside of the kernels.
fn scale(options: &LogitOptions) -> f32 {
    (std::f64::consts::LOG2_E / options.temperature()) as f32
}

/// Launches `name` with its one struct of arguments.
///
/// # Safety
/// `arguments` is the struct that this kernel declares, and its addresses are what the kernel takes them for.
pub(super) unsafe fn launch<A: DeviceRepr>(
    cuda: &Cuda,
    stage: Stage,
    name: &str,
    grid: (u32, u32),
    arguments: &A,
) -> Result<()> {
    let kernel = cuda.kernels.kernel(stage, name)?;
    let config = LaunchConfig { grid_dim: (grid.0, grid.1, 1), block_dim: (kernel.threads, 1, 1), shared_mem_bytes: 0 };
    let mut builder = cuda.stream.launch_builder(&kernel.function);
    builder.arg(arguments);
    // SAFETY: the caller's promise.
    called("cuLaunchKernel", unsafe { builder.launch(config) }.map(drop))
}

/// Logits and targets to log-probs, softmax states and, if wanted, entropies.
///
/// # Errors
/// [`Error::Vocabulary`], [`Error::Shape`], [`Error::Cuda`]. What the device finds is in [`Cuda::status`].
///
/// # Safety
/// 1. `logits` covers N rows as it says, in memory that the stream may read, and holds its `dtype`.
/// 2. `targets` holds N ids, and `outputs` room for N results, each address aligned to its type.
/// 3. Nothing else writes what is read, or touches what is written, until the stream has run it.
/// 4. Outputs overlap neither one another nor the inputs.
pub unsafe fn token_log_probs(
    cuda: &Cuda,
    logits: Rows,
    targets: Targets,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    let _current = CurrentContext::keep()?;
    // SAFETY: the caller's promise.
    cuda.with_scratch(|scratch| unsafe { token_log_probs_with(cuda, scratch, logits, targets, options, outputs) })
}

/// [`token_log_probs`] with scratch memory, and a status word, of the caller's.
///
/// # Safety
/// As [`token_log_probs`].
pub(super) unsafe fn token_log_probs_with(
    cuda: &Cuda,
    scratch: &mut Scratch,
    logits: Rows,
    targets: Targets,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    logits.check()?;
    if logits.rows == 0 {
        return Ok(());
    }
    let slices = logits.vocab.div_ceil(tuning::SLICE);
    let key = tuning::Key { dtype: logits.dtype, vocab: logits.vocab, capability: cuda.capability };
    let plain = options.softcap() == 0.0 && outputs.entropies == 0;
    let tuned = cuda.token_log_prob_tuning.entry(key);
    let slices_per_block = tuned.slices_per_block(logits.rows, slices, cuda.multiprocessors, plain);
    let shared = slices_per_block < slices;
    let stream = &cuda.stream;
    let (mut partials, mut tickets) = (0, 0);
    if shared {
        partials = address(&mut scratch.partials, stream, 4 * logits.rows * slices)?;
        tickets = address(&mut scratch.tickets, stream, logits.rows)?;
    }
    let status = scratch.status.address(stream)?;
    let (target_address, target_bytes) = targets.parts();
    let arguments = arguments::TokenLogProb {
        logits: logits.address,
        targets: target_address,
        log_probs: outputs.log_probs,
        states: outputs.states,
        entropies: outputs.entropies,
        partials,
        tickets,
        status,
        row_stride: logits.row_stride as i64,
        vocab: logits.vocab as i32,
        slices: slices as i32,
        slices_per_block: slices_per_block as i32,
        target_bytes,
        scale: scale(options),
        softcap: options.softcap() as f32,
    };
    let softcap = if options.softcap() > 0.0 { "_softcap" } else { "" };
    let entropy = if outputs.entropies == 0 { "" } else { "_entropy" };
    let name = format!("token_log_prob_{}{softcap}{entropy}", suffix(logits.dtype));
    let grid = (logits.rows as u32, slices.div_ceil(slices_per_block) as u32);
    // SAFETY: the caller's promise, for the addresses; the scratch memory has the sizes that the kernel takes.
    unsafe { launch(cuda, Stage::TokenLogProb, &name, grid, &arguments) }
}

/// The gradient of the logits, out of place or, with `gradients` the logits' own address and stride, in place: the bits
/// are the same.
///
/// # Errors
/// [`Error::Vocabulary`], [`Error::Shape`] (also if the two shapes differ), [`Error::EntropiesNotKept`],
/// [`Error::Cuda`].
///
/// # Safety
/// 1. to 4. of [`token_log_probs`], except that `gradients` may be the logits.
/// 5. `states` and `entropies` are those of the forward pass over the same logits with the same options.
/// 6. `upstream` holds as many entries as it says; every row's sequence is one of the weights'.
#[allow(clippy::too_many_arguments)]
pub unsafe fn token_log_probs_backward(
    cuda: &Cuda,
    logits: Rows,
    targets: Targets,
    options: &LogitOptions,
    states: Address,
    entropies: Address,
    upstream: Upstream,
    gradients: Rows,
) -> Result<()> {
    let _current = CurrentContext::keep()?;
    logits.check()?;
    gradients.check()?;
    let same = (logits.rows, logits.vocab, logits.dtype) == (gradients.rows, gradients.vocab, gradients.dtype);
    if !same {
        let Rows { rows, vocab, row_stride, .. } = gradients;
        return Err(Error::Shape { elements: rows * row_stride, rows: Some(logits.rows), vocab, row_stride });
    }
    if logits.rows == 0 {
        return Ok(());
    }
    let (mut row_gradients, mut entropy_gradients) = (0, 0);
    let (mut sequences, mut sequence_weights, mut scale_of_loss) = (0, 0, 1.0);
    match upstream {
        Upstream::PerRow { log_probs, entropies } => (row_gradients, entropy_gradients) = (log_probs, entropies),
        Upstream::PerSequence { row_sequences, weights, loss_scale } => {
            (sequences, sequence_weights, scale_of_loss) = (row_sequences, weights, loss_scale);
        }
    }
    if entropy_gradients != 0 && entropies == 0 {
        return Err(Error::EntropiesNotKept);
    }
    let (target_address, target_bytes) = targets.parts();
    let arguments = arguments::TokenLogProbBackward {
        logits: logits.address,
        gradients: gradients.address,
        targets: target_address,
        states,
        entropies,
        row_gradients,
        entropy_gradients,
        row_sequences: sequences,
        sequence_weights,
        row_stride: logits.row_stride as i64,
        gradient_row_stride: gradients.row_stride as i64,
        loss_scale: scale_of_loss,
        largest_upstream: options.largest_upstream(),
        vocab: logits.vocab as i32,
        target_bytes,
        scale: scale(options),
        inverse_temperature: (1.0 / options.temperature()) as f32,
        softcap: options.softcap() as f32,
        reserved: 0,
    };
    let softcap = if options.softcap() > 0.0 { "_softcap" } else { "" };
    let entropy = if entropy_gradients == 0 { "" } else { "_entropy" };
    let name = format!("token_log_prob_backward_{}{softcap}{entropy}", suffix(logits.dtype));
    let grid = (logits.rows as u32, logits.vocab.div_ceil(tuning::SLICE) as u32);
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, Stage::TokenLogProbBackward, &name, grid, &arguments) }
}

impl Cuda {
    /// What the device has found in the calls of this module and of the stages since the word was cleared. Waits for
    /// the stream.
    ///
    /// # Errors
    /// [`Error::DeviceRowInput`] and [`Error::WithheldRows`], until the word is [cleared](Self::clear_status);
    /// [`Error::Cuda`].
    pub fn status(&self) -> Result<Status> {
        self.unchecked_status()?.check()
    }

    /// The same, whatever was found.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn unchecked_status(&self) -> Result<Status> {
        let _current = CurrentContext::keep()?;
        self.status.read(&self.stream)
    }

    /// Clears the status word, in the stream's order.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn clear_status(&self) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.status.clear(&self.stream)
    }
}
