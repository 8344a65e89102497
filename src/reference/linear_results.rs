//! What the linear verbs of [`ReferenceBackend`](crate::reference::ReferenceBackend) write.

use crate::element::Element;
use crate::error::Result;
use crate::host::{Head, LinearGradients, Matrix, Targets};
use crate::options::LogitOptions;
use crate::reference::linear_log_prob::{self, Gradients};
use crate::reference::token_log_prob;

/// T·∂ log π/∂h of each scored row, in their order; NaN where a row has no softmax. Nobody reads it here: the backward pass
/// makes all of it again.
pub(super) fn write_unit_gradients<T: Element, W: Element>(
    hidden: &Matrix<'_, T>,
    head: &Head<'_, W>,
    targets: &Targets<'_>,
    options: &LogitOptions,
    out: &mut [f32],
) -> Result<()> {
    let size = hidden.columns();
    let scored = (0..hidden.rows()).filter_map(|row| targets.column(row).map(|target| (row, target)));
    for ((row, target), out) in scored.zip(out.chunks_exact_mut(size)) {
        let logits = linear_log_prob::logits(hidden.row(row), head);
        let of_logits = token_log_prob::backward_f64(&logits, target, options, options.temperature(), 0.0);
        let gradients = linear_log_prob::backward(&of_logits, &Matrix::new(hidden.row(row), size)?, head);
        for (out, gradient) in out.iter_mut().zip(&gradients.hidden) {
            *out = *gradient as f32;
        }
    }
    Ok(())
}

/// Rounds sums once, to the type of their buffers.
pub(super) fn write_gradients<T: Element, G: Element>(sums: &Gradients, gradients: LinearGradients<'_, T, G>) {
    let LinearGradients { hidden, weight, bias, accumulate } = gradients;
    let add = |out: &mut G, sum: f64| {
        let before = if accumulate { f64::from(out.to_f32()) } else { 0.0 };
        *out = G::from_f32((before + sum) as f32);
    };
    if let Some(mut hidden) = hidden {
        for row in 0..hidden.rows() {
            let columns = hidden.columns();
            for (out, sum) in hidden.row_mut(row).iter_mut().zip(&sums.hidden[row * columns..]) {
                *out = T::from_f32(*sum as f32);
            }
        }
    }
    if let Some(mut weight) = weight {
        for row in 0..weight.rows() {
            let columns = weight.columns();
            match sums.weight.get(row * columns..(row + 1) * columns) {
                Some(sums) => weight.row_mut(row).iter_mut().zip(sums).for_each(|(out, sum)| add(out, *sum)),
                None if accumulate => {}
                // Of padding.
                None => weight.row_mut(row).fill(G::from_f32(0.0)),
            }
        }
    }
    for (column, out) in bias.into_iter().flatten().enumerate() {
        match sums.bias.get(column) {
            Some(sum) => add(out, *sum),
            None if accumulate => {}
            None => *out = G::from_f32(0.0),
        }
    }
}
