//! What the calls of the linear stage take.

mod fold;
mod gradient;
mod head;
pub(crate) mod log_prob;
mod pass;
pub(crate) mod row_loss;
mod rows;

use crate::cuda::linear::workspace::clear;
use crate::cuda::memory::Address;
use crate::cuda::raw::{MatrixAt, Targets, bytes};
use crate::cuda::{Cuda, tuning};
use crate::data::matrix::check_vocab;
use crate::element::Dtype;
use crate::error::{Error, Result, check_length};

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

    /// M: rows that are gathered.
    pub(super) fn gathered_rows(&self) -> usize {
        self.scored_rows.map_or(self.hidden.rows, |rows| rows.min(self.hidden.rows))
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

    /// Whether there is anything to compute.
    pub(super) fn any(&self) -> bool {
        self.hidden.is_some() || self.weight.is_some() || self.bias != 0
    }
}

/// Zeros in a gradient of the head that no row adds to; nothing where it is added to.
///
/// # Safety
/// The buffers are there.
pub(super) unsafe fn clear_head(cuda: &Cuda, gradients: &LinearGradientsAt, vocab: usize) -> Result<()> {
    if gradients.accumulate {
        return Ok(());
    }
    if let Some(weight) = &gradients.weight {
        let size = bytes(weight.dtype);
        // SAFETY: the caller's promise.
        unsafe { clear(&cuda.stream, weight.address, weight.row_stride * size, weight.columns * size, weight.rows)? };
    }
    if gradients.bias != 0 {
        let width = vocab * bytes(gradients.bias_dtype);
        // SAFETY: the caller's promise.
        unsafe { clear(&cuda.stream, gradients.bias, width, width, 1)? };
    }
    Ok(())
}
