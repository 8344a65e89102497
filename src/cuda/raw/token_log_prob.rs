//! Launches of the token log-prob kernels, forward and backward.

use crate::cuda::context::CurrentContext;
use crate::cuda::driver::called;
use crate::cuda::kernels::{KernelId, kernel, variant, variants};
use crate::cuda::memory::{Address, Scratch, address};
use crate::cuda::raw::{MatrixAt, Targets, bytes, bytes_fit, index, launch, passed_by_value, scale};
use crate::cuda::{Cuda, tuning};
use crate::error::{Error, Result};
use crate::options::LogitOptions;
use cudarc::driver::sys;

/// `kernels/token_log_prob.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TokenLogProb {
    pub(crate) logits: u64,
    pub(crate) targets: u64,
    pub(crate) log_probs: u64,
    pub(crate) states: u64,
    pub(crate) entropies: u64,
    pub(crate) partials: u64,
    pub(crate) tickets: u64,
    pub(crate) status: u64,
    pub(crate) row_stride: i64,
    pub(crate) vocab: i32,
    pub(crate) slices: i32,
    pub(crate) slices_per_block: i32,
    pub(crate) target_bytes: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
    pub(crate) first_column: i32,
    pub(crate) whole_vocab: i32,
    pub(crate) kept_parts: i32,
    pub(crate) reserved: i32,
}

passed_by_value!(TokenLogProb);

/// `kernels/include/row_gradient.cuh`: where the upstream gradient of a row comes from.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct UpstreamOfRows {
    pub(crate) row_gradients: u64,
    pub(crate) entropy_gradients: u64,
    pub(crate) entropies: u64,
    pub(crate) row_sequences: u64,
    pub(crate) sequence_weights: u64,
    pub(crate) loss_scale: f64,
    pub(crate) sequences: i64,
}

/// `kernels/token_log_prob_backward.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TokenLogProbBackward {
    pub(crate) logits: u64,
    pub(crate) gradients: u64,
    pub(crate) targets: u64,
    pub(crate) states: u64,
    pub(crate) upstream: UpstreamOfRows,
    pub(crate) row_stride: i64,
    pub(crate) gradient_row_stride: i64,
    pub(crate) largest_upstream: f64,
    pub(crate) vocab: i32,
    pub(crate) target_bytes: i32,
    pub(crate) scale: f32,
    pub(crate) inverse_temperature: f32,
    pub(crate) softcap: f32,
    pub(crate) first_column: i32,
    pub(crate) whole_vocab: i32,
    pub(crate) reserved: i32,
}

passed_by_value!(TokenLogProbBackward);

/// By the type of the logits, then by [`variant`].
const FORWARD: [[KernelId; 4]; 3] = [
    variants!("token_log_prob", "token_log_prob_f32"),
    variants!("token_log_prob", "token_log_prob_f16"),
    variants!("token_log_prob", "token_log_prob_bf16"),
];

/// Those without softcap and entropy, by the type of the logits, for rows that need not start at 16 bytes. All others take
/// such rows too.
const FORWARD_UNALIGNED: [KernelId; 3] = [
    kernel!("token_log_prob", "token_log_prob_f32_unaligned"),
    kernel!("token_log_prob", "token_log_prob_f16_unaligned"),
    kernel!("token_log_prob", "token_log_prob_bf16_unaligned"),
];

/// As [`FORWARD`].
const BACKWARD: [[KernelId; 4]; 3] = [
    variants!("token_log_prob_backward", "token_log_prob_backward_f32"),
    variants!("token_log_prob_backward", "token_log_prob_backward_f16"),
    variants!("token_log_prob_backward", "token_log_prob_backward_bf16"),
];

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
        /// `[N]` i32: the sequence of each row. A row whose sequence is none of the S gets NaN.
        row_sequences: Address,
        /// `[S]` f64.
        weights: Address,
        /// S.
        sequences: usize,
        /// The factor.
        loss_scale: f64,
    },
}

impl Upstream {
    /// As the kernels take it. `entropies`: those of the forward pass, or 0.
    pub(crate) fn of_rows(self, entropies: Address) -> Result<UpstreamOfRows> {
        let mut of_rows = UpstreamOfRows {
            row_gradients: 0,
            entropy_gradients: 0,
            entropies: 0,
            row_sequences: 0,
            sequence_weights: 0,
            loss_scale: 1.0,
            sequences: 0,
        };
        match self {
            Self::PerRow { log_probs, entropies: entropy_gradients } => {
                if entropy_gradients != 0 && entropies == 0 {
                    return Err(Error::EntropiesNotKept);
                }
                of_rows.row_gradients = log_probs;
                of_rows.entropy_gradients = entropy_gradients;
                of_rows.entropies = if entropy_gradients == 0 { 0 } else { entropies };
            }
            Self::PerSequence { row_sequences, weights, sequences, loss_scale } => {
                of_rows.row_sequences = row_sequences;
                of_rows.sequence_weights = weights;
                of_rows.sequences = i64::try_from(sequences).unwrap_or(i64::MAX);
                of_rows.loss_scale = loss_scale;
            }
        }
        Ok(of_rows)
    }
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
    logits: MatrixAt,
    targets: Targets,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    // SAFETY: the caller's promise.
    cuda.with_scratch(|scratch| unsafe { with_scratch(cuda, scratch, logits, targets, options, outputs) })
}

/// [`token_log_probs`] with scratch memory.
///
/// # Safety
/// As [`token_log_probs`].
unsafe fn with_scratch(
    cuda: &Cuda,
    scratch: &mut Scratch,
    logits: MatrixAt,
    targets: Targets,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    check(&logits)?;
    if logits.rows == 0 {
        return Ok(());
    }
    let slices = logits.columns.div_ceil(tuning::SLICE);
    let key = tuning::Key { dtype: logits.dtype, vocab: logits.columns, capability: cuda.capability };
    let plain = options.softcap() == 0.0 && outputs.entropies == 0;
    // The loads of rows that start elsewhere take registers: six blocks of a multiprocessor have none to spare for them.
    let six_blocks = plain && rows_start_at_16_bytes(&logits);
    let (file, tuned) = cuda.token_log_prob_tuning.choose(key, |file| cuda.kernels.has(file));
    let slices_per_block = tuned.slices_per_block(logits.rows, slices, cuda.multiprocessors, six_blocks);
    let shared = slices_per_block < slices;
    let stream = &cuda.stream;
    let (mut partials, mut tickets) = (0, 0);
    if shared {
        partials = address(&mut scratch.partials, stream, 4 * logits.rows * slices)?;
        tickets = address(&mut scratch.tickets, stream, logits.rows)?;
    }
    let status = cuda.status.address(stream)?;
    let (target_address, target_bytes) = targets.parts();
    let arguments = TokenLogProb {
        logits: logits.address,
        targets: target_address,
        log_probs: outputs.log_probs,
        states: outputs.states,
        entropies: outputs.entropies,
        partials,
        tickets,
        status,
        row_stride: logits.row_stride as i64,
        vocab: logits.columns as i32,
        slices: slices as i32,
        slices_per_block: slices_per_block as i32,
        target_bytes,
        scale: scale(options),
        softcap: options.softcap() as f32,
        first_column: 0,
        whole_vocab: logits.columns as i32,
        kept_parts: 0,
        reserved: 0,
    };
    let kernel = forward_kernel(&logits, options, outputs.entropies != 0);
    let grid = (logits.rows as u32, slices.div_ceil(slices_per_block) as u32);
    // SAFETY: the caller's promise, for the addresses; the scratch memory has the sizes that the kernel takes.
    unsafe { launch(cuda, kernel.in_file(file), grid, &arguments) }
}

/// Writes zeros, in the order of the stream.
///
/// # Safety
/// Nothing else touches these columns until the stream has run it.
unsafe fn zero(cuda: &Cuda, columns: MatrixAt) -> Result<()> {
    if columns.columns == 0 {
        return Ok(());
    }
    let size = bytes(columns.dtype);
    let (pitch, width) = (columns.row_stride * size, columns.columns * size);
    // SAFETY: the caller's promise; the context is current.
    called("cuMemsetD2D8Async", unsafe {
        sys::cuMemsetD2D8Async(columns.address, pitch, 0, width, columns.rows, cuda.stream.cu_stream()).result()
    })
}

/// The forward pass of these logits.
pub(super) fn forward_kernel(logits: &MatrixAt, options: &LogitOptions, entropy: bool) -> KernelId {
    let (softcap, dtype) = (options.softcap() > 0.0, index(logits.dtype));
    if softcap || entropy || rows_start_at_16_bytes(logits) {
        FORWARD[dtype][variant(softcap, entropy)]
    } else {
        FORWARD_UNALIGNED[dtype]
    }
}

/// Whether every row does.
fn rows_start_at_16_bytes(logits: &MatrixAt) -> bool {
    let row_bytes = (logits.row_stride % 16) * bytes(logits.dtype);
    logits.address.is_multiple_of(16) && (logits.rows == 1 || row_bytes.is_multiple_of(16))
}

/// Checks the shape of logits.
pub(super) fn check(logits: &MatrixAt) -> Result<()> {
    let MatrixAt { rows, columns, row_stride, dtype, .. } = *logits;
    // A grid has up to 65535 blocks along y, one per slice.
    if columns == 0 || columns > 65_535 * tuning::SLICE {
        return Err(Error::Vocabulary { vocab: columns });
    }
    // A grid has up to 2^31 - 1 blocks along x.
    if row_stride < columns || !bytes_fit(rows, row_stride, dtype) || i32::try_from(rows).is_err() {
        return Err(Error::Shape { elements: usize::MAX, rows: Some(rows), columns, row_stride });
    }
    Ok(())
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
/// 6. `upstream` holds as many entries as it says.
#[allow(clippy::too_many_arguments)]
pub unsafe fn token_log_probs_backward(
    cuda: &Cuda,
    logits: MatrixAt,
    targets: Targets,
    options: &LogitOptions,
    states: Address,
    entropies: Address,
    upstream: Upstream,
    gradients: MatrixAt,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    check(&logits)?;
    check(&gradients)?;
    let same = (logits.rows, logits.columns, logits.dtype) == (gradients.rows, gradients.columns, gradients.dtype);
    if !same {
        let MatrixAt { rows, columns, row_stride, .. } = gradients;
        return Err(Error::Shape { elements: rows * row_stride, rows: Some(logits.rows), columns, row_stride });
    }
    if logits.rows == 0 {
        return Ok(());
    }
    let shard = options.shard_of(logits.columns);
    let columns = shard.columns(logits.columns);
    let upstream = upstream.of_rows(entropies)?;
    let (target_address, target_bytes) = targets.parts();
    let arguments = TokenLogProbBackward {
        logits: logits.address,
        gradients: gradients.address,
        targets: target_address,
        states,
        upstream,
        row_stride: logits.row_stride as i64,
        gradient_row_stride: gradients.row_stride as i64,
        largest_upstream: options.largest_upstream(),
        vocab: columns as i32,
        target_bytes,
        scale: scale(options),
        inverse_temperature: (1.0 / options.temperature()) as f32,
        softcap: options.softcap() as f32,
        first_column: shard.start() as i32,
        whole_vocab: shard.vocab() as i32,
        reserved: 0,
    };
    let kernel = BACKWARD[index(logits.dtype)][variant(options.softcap() > 0.0, upstream.entropy_gradients != 0)];
    let grid = (logits.rows as u32, columns.div_ceil(tuning::SLICE) as u32);
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, kernel, grid, &arguments) }?;
    let padding = MatrixAt {
        address: gradients.address + (columns * bytes(gradients.dtype)) as u64,
        columns: logits.columns - columns,
        ..gradients
    };
    // SAFETY: these are columns of the gradients.
    unsafe { zero(cuda, padding) }
}
