//! What the calls of the linear stage take.

mod fold;
mod gradient;
mod head;
mod kept_logits;
pub(crate) mod log_prob;
mod pass;
pub(crate) mod row_loss;
mod rows;
pub(crate) mod shard;
mod unit_gradient;

use crate::cuda::linear::workspace::clear;
use crate::cuda::memory::Address;
use crate::cuda::raw::token_log_prob::ForwardOutputs;
use crate::cuda::raw::{MatrixAt, Targets, bytes};
use crate::cuda::{Cuda, tuning};
use crate::data::matrix::check_vocab;
use crate::element::Dtype;
use crate::error::{Error, Result, check_length};
use crate::options::LogitOptions;
use std::ops::Range;

/// What the linear stage reads.
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs {
    /// Hidden states, `[N, H]`.
    pub hidden: MatrixAt,
    /// Weight of the head, `[V, H]`, of the same type.
    pub weight: MatrixAt,
    /// Bias of the head, `[V]` of the same type, or 0.
    pub bias: Address,
    /// `[N]` ids.
    pub targets: Targets,
    /// As [`Hidden::with_scored_rows`](crate::cuda::Hidden::with_scored_rows).
    pub scored_rows: Option<usize>,
}

impl LinearInputs {
    pub(super) fn check(&self) -> Result<()> {
        let vocab = self.weight.rows;
        check_vocab(vocab)?;
        // A grid has up to 65535 blocks along y.
        if vocab > 65_535 * tuning::LINEAR_BLOCK_COLUMNS {
            return Err(Error::Vocabulary { vocab });
        }
        self.hidden.check()?;
        self.weight.check()?;
        check_length("hidden size", self.hidden.columns, self.weight.columns)?;
        if self.hidden.dtype != self.weight.dtype {
            return Err(Error::GradientType { given: self.hidden.dtype, head: self.weight.dtype });
        }
        Ok(())
    }

    /// The same without the padding of a shard's head.
    pub(super) fn without_padding(self, options: &LogitOptions) -> Self {
        let rows = options.shard_of(self.weight.rows).columns(self.weight.rows);
        Self { weight: MatrixAt { rows, ..self.weight }, ..self }
    }

    /// M: rows that are gathered.
    pub(super) fn gathered_rows(&self) -> usize {
        self.scored_rows.map_or(self.hidden.rows, |rows| rows.min(self.hidden.rows))
    }
}

/// What the forward pass of the linear stage writes. Made from [`ForwardOutputs`] by `into()`: then it keeps nothing.
///
/// M is `scored_rows`, or N where that was not said. What is kept is for
/// [`linear_token_log_probs_backward`](log_prob::linear_token_log_probs_backward) over the same operands, targets and options.
#[derive(Clone, Copy, Debug)]
pub struct LinearOutputsAt {
    /// The rows' results.
    pub rows: ForwardOutputs,
    /// M·H f32, or 0: [`LinearOutputs::unit_gradients`](crate::backend::LinearOutputs::unit_gradients).
    pub unit_gradients: Address,
    /// [`kept_logit_words`](crate::backend::kept_logit_words) words, aligned to 16 bytes, or 0; only with the unit gradients.
    pub logit_gradients: Address,
}

impl From<ForwardOutputs> for LinearOutputsAt {
    fn from(rows: ForwardOutputs) -> Self {
        Self { rows, unit_gradients: 0, logit_gradients: 0 }
    }
}

/// What the forward pass of the linear stage left. Made from the addresses of states and entropies (or 0) by `into()`, where it
/// kept nothing.
#[derive(Clone, Copy, Debug)]
pub struct SavedLinearAt {
    /// `[N]` [`SoftmaxState`](crate::SoftmaxState).
    pub states: Address,
    /// `[N]` f32, or 0.
    pub entropies: Address,
    /// As [`LinearOutputsAt::unit_gradients`].
    pub unit_gradients: Address,
    /// As [`LinearOutputsAt::logit_gradients`].
    pub logit_gradients: Address,
}

impl From<(Address, Address)> for SavedLinearAt {
    fn from((states, entropies): (Address, Address)) -> Self {
        Self { states, entropies, unit_gradients: 0, logit_gradients: 0 }
    }
}

/// Where the linear stage writes gradients. What is `None` or 0 is frozen.
#[derive(Clone, Copy, Debug)]
pub struct LinearGradientsAt {
    /// `[N, H]` in the head's type.
    pub hidden: Option<MatrixAt>,
    /// `[V, H]`, f32 or in the head's type.
    pub weight: Option<MatrixAt>,
    /// `[V]` in the type below, or 0.
    pub bias: Address,
    /// Of the bias: f32 or the head's.
    pub bias_dtype: Dtype,
    /// As [`LinearGradients::accumulating`](crate::cuda::LinearGradients::accumulating).
    pub accumulate: bool,
}

impl LinearGradientsAt {
    pub(super) fn check(&self, inputs: &LinearInputs) -> Result<()> {
        let (hidden, vocab, head) = (inputs.hidden, inputs.weight.rows, inputs.hidden.dtype);
        if let Some(gradient) = &self.hidden {
            gradient.check()?;
            check_length("rows of the hidden gradient", gradient.rows, hidden.rows)?;
            check_length("columns of the hidden gradient", gradient.columns, hidden.columns)?;
            if gradient.dtype != head {
                return Err(Error::GradientType { given: gradient.dtype, head });
            }
        }
        if let Some(gradient) = &self.weight {
            gradient.check()?;
            check_length("rows of the weight gradient", gradient.rows, vocab)?;
            check_length("columns of the weight gradient", gradient.columns, hidden.columns)?;
        }
        let of_weight = self.weight.map(|gradient| gradient.dtype);
        let of_bias = (self.bias != 0).then_some(self.bias_dtype);
        match of_weight.into_iter().chain(of_bias).find(|given| ![head, Dtype::F32].contains(given)) {
            Some(given) => Err(Error::GradientType { given, head }),
            None => Ok(()),
        }
    }

    /// The same of the first columns that the head has.
    pub(super) fn of_columns(self, columns: usize) -> Self {
        Self { weight: self.weight.map(|weight| MatrixAt { rows: columns, ..weight }), ..self }
    }

    /// Whether there is anything to compute.
    pub(super) fn any(&self) -> bool {
        self.hidden.is_some() || self.has_head()
    }

    /// Whether the head is trained.
    pub(super) fn has_head(&self) -> bool {
        self.weight.is_some() || self.bias != 0
    }
}

/// Zeros in the gradients of the head that no row adds to, of these of its columns; nothing where they are added to.
///
/// # Safety
/// The buffers are there.
pub(super) unsafe fn clear_head(cuda: &Cuda, gradients: &LinearGradientsAt, columns: Range<usize>) -> Result<()> {
    if gradients.accumulate || columns.is_empty() {
        return Ok(());
    }
    if let Some(weight) = &gradients.weight {
        let (size, pitch) = (bytes(weight.dtype), weight.row_stride * bytes(weight.dtype));
        let first = weight.address + (columns.start * pitch) as Address;
        // SAFETY: the caller's promise.
        unsafe { clear(&cuda.stream, first, pitch, weight.columns * size, columns.len())? };
    }
    if gradients.bias != 0 {
        let size = bytes(gradients.bias_dtype);
        let (first, width) = (gradients.bias + (columns.start * size) as Address, columns.len() * size);
        // SAFETY: the caller's promise.
        unsafe { clear(&cuda.stream, first, width, width, 1)? };
    }
    Ok(())
}
