//! What the calls of the linear stage take.

use super::{Address, Targets, Upstream, bytes, bytes_fit};
use crate::cuda::blas::Operand;
use crate::cuda::linear_arguments as arguments;
use crate::cuda::linear_workspace::clear;
use crate::cuda::{Cuda, tuning};
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::logits::check_vocab;
use crate::stages::check_length;

/// A matrix on the device: `[rows, columns]`, row stride ≥ columns in elements, aligned to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixAt {
    /// The first element.
    pub address: Address,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from the start of one row to the start of the next.
    pub row_stride: usize,
    /// The type of an element.
    pub dtype: Dtype,
}

impl MatrixAt {
    pub(super) fn check(&self) -> Result<()> {
        let Self { rows, columns, row_stride, dtype, .. } = *self;
        let fits = |length: usize| i32::try_from(length).is_ok();
        let is_matrix = columns > 0 && row_stride >= columns;
        if !is_matrix || !fits(rows) || !fits(row_stride) || !bytes_fit(rows, row_stride, dtype) {
            return Err(Error::Matrix { elements: usize::MAX, rows: Some(rows), columns, row_stride });
        }
        Ok(())
    }

    /// The address of a row.
    pub(super) fn row(&self, row: usize) -> Address {
        self.address + (row * self.row_stride * bytes(self.dtype)) as Address
    }

    /// As an operand, from a row on.
    pub(super) fn operand(&self, row: usize, transposed: bool) -> Operand {
        Operand { address: self.row(row), stride: self.row_stride, dtype: self.dtype, transposed }
    }
}

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
            return Err(Error::GradientType { given: self.weight.dtype, head: self.hidden.dtype });
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

/// The upstream gradient as the kernels take it.
pub(super) fn upstream_of_rows(upstream: Upstream, entropies: Address) -> Result<arguments::UpstreamOfRows> {
    let mut of_rows = arguments::UpstreamOfRows {
        row_gradients: 0,
        entropy_gradients: 0,
        entropies: 0,
        row_sequences: 0,
        sequence_weights: 0,
        loss_scale: 1.0,
    };
    match upstream {
        Upstream::PerRow { log_probs, entropies: entropy_gradients } => {
            if entropy_gradients != 0 && entropies == 0 {
                return Err(Error::EntropiesNotKept);
            }
            of_rows.row_gradients = log_probs;
            of_rows.entropy_gradients = entropy_gradients;
            of_rows.entropies = if entropy_gradients == 0 { 0 } else { entropies };
        }
        Upstream::PerSequence { row_sequences, weights, loss_scale } => {
            of_rows.row_sequences = row_sequences;
            of_rows.sequence_weights = weights;
            of_rows.loss_scale = loss_scale;
        }
    }
    Ok(of_rows)
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
