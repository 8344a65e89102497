//! Launches for rows whose columns lie on several ranks: a rank's parts of them, and the whole of them from all parts.

use crate::cuda::context::CurrentContext;
use crate::cuda::kernels::{KernelId, variant, variants};
use crate::cuda::memory::Address;
use crate::cuda::raw::token_log_prob::{ForwardOutputs, TokenLogProb, check, forward_kernel};
use crate::cuda::raw::{MatrixAt, Targets, launch, passed_by_value, scale};
use crate::cuda::{Cuda, tuning};
use crate::error::{Error, Result};
use crate::options::LogitOptions;

/// `kernels/merge_rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MergeRows {
    pub(crate) parts: u64,
    pub(crate) targets: u64,
    pub(crate) log_probs: u64,
    pub(crate) states: u64,
    pub(crate) entropies: u64,
    pub(crate) status: u64,
    pub(crate) rows: i64,
    pub(crate) parts_per_row: i64,
    pub(crate) ranks: i32,
    pub(crate) target_bytes: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

passed_by_value!(MergeRows);

/// By [`variant`].
const MERGE: [KernelId; 4] = variants!("merge_rows", "merge_rows");

/// Threads of a block of these.
const THREADS: usize = 256;

/// Where partial rows are, and how many to a row.
#[derive(Clone, Copy, Debug)]
pub struct PartialRowsAt {
    /// `[N, per_row]` [`PartialRow`](crate::cuda::PartialRow), or `[ranks, N, per_row]`; aligned to 16 bytes.
    pub address: Address,
    /// At least one for each slice of a rank's columns.
    pub per_row: usize,
}

/// A rank's columns of logits to its parts of the rows. `options` says which columns they are.
///
/// # Errors
/// As [`token_log_probs`](super::token_log_probs); [`Error::Length`] for fewer parts than slices.
///
/// # Safety
/// As there, of the logits, the targets and the parts.
pub unsafe fn partial_rows(
    cuda: &Cuda,
    logits: MatrixAt,
    targets: Targets,
    options: &LogitOptions,
    entropy: bool,
    parts: PartialRowsAt,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    check(&logits)?;
    let shard = options.shard_of(logits.columns);
    let columns = shard.columns(logits.columns);
    let slices = columns.div_ceil(tuning::SLICE);
    if parts.per_row < slices || parts.per_row > 65_535 {
        return Err(Error::Length { what: "partial rows", given: parts.per_row, expected: slices });
    }
    if logits.rows == 0 {
        return Ok(());
    }
    let key = tuning::Key { dtype: logits.dtype, vocab: columns, capability: cuda.capability };
    let (file, _) = cuda.token_log_prob_tuning.choose(key, |file| cuda.kernels.has(file));
    let (target_address, target_bytes) = targets.parts();
    let arguments = TokenLogProb {
        logits: logits.address,
        targets: target_address,
        log_probs: 0,
        states: 0,
        entropies: 0,
        partials: parts.address,
        tickets: 0,
        status: cuda.status.address(&cuda.stream)?,
        row_stride: logits.row_stride as i64,
        vocab: columns as i32,
        slices: slices as i32,
        slices_per_block: 1,
        target_bytes,
        scale: scale(options),
        softcap: options.softcap() as f32,
        first_column: shard.start() as i32,
        whole_vocab: shard.vocab() as i32,
        kept_parts: parts.per_row as i32,
        reserved: 0,
    };
    let kernel = forward_kernel(&logits, options, entropy);
    let grid = (logits.rows as u32, parts.per_row as u32);
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, kernel.in_file(file), grid, &arguments) }
}

/// All ranks' parts of N rows, in the order of the ranks, to what the rows are.
///
/// # Errors
/// [`Error::Shape`] for more than 2^31 − 1 rows; [`Error::Parameter`] for as many ranks; [`Error::Cuda`].
///
/// # Safety
/// As [`token_log_probs`](super::token_log_probs), of the parts, the targets and the outputs.
pub unsafe fn merge_rows(
    cuda: &Cuda,
    parts: PartialRowsAt,
    (ranks, rows): (usize, usize),
    targets: Targets,
    options: &LogitOptions,
    outputs: ForwardOutputs,
) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    if i32::try_from(rows).is_err() {
        return Err(Error::Shape { elements: usize::MAX, rows: Some(rows), columns: 1, row_stride: 1 });
    }
    let Ok(ranks) = i32::try_from(ranks) else {
        return Err(Error::Parameter { name: "ranks", given: ranks as f64, expected: "1 to 2^31 - 1" });
    };
    if rows == 0 {
        return Ok(());
    }
    let (target_address, target_bytes) = targets.parts();
    let arguments = MergeRows {
        parts: parts.address,
        targets: target_address,
        log_probs: outputs.log_probs,
        states: outputs.states,
        entropies: outputs.entropies,
        status: cuda.status.address(&cuda.stream)?,
        rows: rows as i64,
        parts_per_row: parts.per_row as i64,
        ranks,
        target_bytes,
        scale: scale(options),
        softcap: options.softcap() as f32,
    };
    let kernel = MERGE[variant(options.softcap() > 0.0, outputs.entropies != 0)];
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, kernel, (rows.div_ceil(THREADS) as u32, 1), &arguments) }
}
