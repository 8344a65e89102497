//! Log-ratios over device addresses.

use crate::cuda::Cuda;
use crate::cuda::context::CurrentContext;
use crate::cuda::kernels::kernel;
use crate::cuda::memory::Address;
use crate::cuda::raw::{Targets, launch, passed_by_value};
use crate::error::{Error, Result};

/// What the log-ratio stage reads: `[N]` per row, `[S]` per sequence; 0 where allowed.
#[derive(Clone, Copy, Debug)]
pub struct LogRatioInputs {
    /// `[N]` f32.
    pub log_probs: Address,
    /// `[N]` f32, or 0: their sums are not wanted.
    pub entropies: Address,
    /// `[N]` ids.
    pub targets: Targets,
    /// `[N]` f32 of the reference, or 0.
    pub reference_tokens: Address,
    /// `[S]` f64 of the reference, or 0.
    pub reference_sequences: Address,
    /// `[S + 1]` i64, ascending from 0 to N.
    pub sequence_offsets: Address,
    /// S.
    pub sequences: usize,
    /// The sum divided by the number of scored rows.
    pub mean: bool,
}

/// What the log-ratio stage writes.
#[derive(Clone, Copy, Debug)]
pub struct LogRatioOutputs {
    /// `[S]` f64.
    pub log_ratios: Address,
    /// `[S]` f64: sums of the policy's log-probs over scored rows.
    pub log_prob_sums: Address,
    /// `[S]` f64, or 0: sums of the entropies over scored rows.
    pub entropy_sums: Address,
    /// `[S]` i32: how many rows are scored.
    pub scored_rows: Address,
    /// `[N]` i32: the sequence of each row, for the backward pass.
    pub row_sequences: Address,
    /// `[N]` u32: the target of each row, for the backward pass; or 0.
    pub row_targets: Address,
}

/// Log-probs and the reference's to log-ratios, per token first, in f64, in a fixed order.
///
/// # Errors
/// [`Error::Shape`] for more than 2^31 − 1 sequences; [`Error::Cuda`].
///
/// # Safety
/// As 2. to 4. of [`token_log_probs`](super::token_log_probs); the offsets ascend from 0 to N.
pub unsafe fn log_ratios(cuda: &Cuda, inputs: LogRatioInputs, outputs: LogRatioOutputs) -> Result<()> {
    let _current = CurrentContext::enter(cuda.stream.context())?;
    if inputs.sequences == 0 {
        return Ok(());
    }
    let Ok(sequences) = i32::try_from(inputs.sequences) else {
        return Err(Error::OffsetRange { what: "sequence offsets", index: inputs.sequences });
    };
    let status = cuda.status.address(&cuda.stream)?;
    let (targets, target_bytes) = inputs.targets.parts();
    let arguments = LogRatio {
        log_probs: inputs.log_probs,
        entropies: inputs.entropies,
        targets,
        reference_tokens: inputs.reference_tokens,
        reference_sequences: inputs.reference_sequences,
        sequence_offsets: inputs.sequence_offsets,
        log_ratios: outputs.log_ratios,
        log_prob_sums: outputs.log_prob_sums,
        entropy_sums: outputs.entropy_sums,
        scored_rows: outputs.scored_rows,
        row_sequences: outputs.row_sequences,
        row_targets: outputs.row_targets,
        status,
        target_bytes,
        mean: i32::from(inputs.mean),
    };
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, kernel!("log_ratio", "log_ratio"), (sequences as u32, 1), &arguments) }
}

/// `kernels/log_ratio.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LogRatio {
    pub(crate) log_probs: u64,
    pub(crate) entropies: u64,
    pub(crate) targets: u64,
    pub(crate) reference_tokens: u64,
    pub(crate) reference_sequences: u64,
    pub(crate) sequence_offsets: u64,
    pub(crate) log_ratios: u64,
    pub(crate) log_prob_sums: u64,
    pub(crate) entropy_sums: u64,
    pub(crate) scored_rows: u64,
    pub(crate) row_sequences: u64,
    pub(crate) row_targets: u64,
    pub(crate) status: u64,
    pub(crate) target_bytes: i32,
    pub(crate) mean: i32,
}

passed_by_value!(LogRatio);
