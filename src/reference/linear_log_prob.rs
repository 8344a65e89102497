//! Logits from hidden states and a head, x_n = W·h_n + b, and the gradients of the three from the logits'.

use crate::element::Element;
use crate::host::{Head, Matrix};

/// The logits of one hidden state, `[V]`.
pub fn logits<T: Element, W: Element>(hidden: &[T], head: &Head<'_, W>) -> Vec<f64> {
    products(hidden, head, |product| product)
}

/// Σ_i |W_ji·h_i| + |b_j|, `[V]`: what the rounding of a logit is proportional to.
pub fn magnitudes<T: Element, W: Element>(hidden: &[T], head: &Head<'_, W>) -> Vec<f64> {
    products(hidden, head, f64::abs)
}

fn products<T: Element, W: Element>(hidden: &[T], head: &Head<'_, W>, term: impl Fn(f64) -> f64) -> Vec<f64> {
    (0..head.vocab())
        .map(|column| {
            let mut sum = head.bias().map_or(0.0, |bias| term(f64::from(bias[column].to_f32())));
            for (weight, state) in head.weight().row(column).iter().zip(hidden) {
                sum += term(f64::from(weight.to_f32()) * f64::from(state.to_f32()));
            }
            sum
        })
        .collect()
}

/// The gradients that belong to those of the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Σ_j D_nj·W_j, `[N, H]`.
    pub hidden: Vec<f64>,
    /// Σ_n D_nj·h_n, `[V, H]`.
    pub weight: Vec<f64>,
    /// Σ_n D_nj, `[V]`.
    pub bias: Vec<f64>,
}

/// Backward: D `[N, V]` is the gradient of the logits, with zeros in masked rows, whose hidden states are not read.
pub fn backward<T: Element, W: Element>(
    logit_gradients: &[f64],
    hidden: &Matrix<'_, T>,
    head: &Head<'_, W>,
) -> Gradients {
    let (rows, size, vocab) = (hidden.rows(), hidden.columns(), head.vocab());
    let mut gradients =
        Gradients { hidden: vec![0.0; rows * size], weight: vec![0.0; vocab * size], bias: vec![0.0; vocab] };
    for row in 0..rows {
        for column in 0..vocab {
            let gradient = logit_gradients[row * vocab + column];
            if gradient == 0.0 {
                continue;
            }
            gradients.bias[column] += gradient;
            for i in 0..size {
                let weight = f64::from(head.weight().row(column)[i].to_f32());
                let state = f64::from(hidden.row(row)[i].to_f32());
                gradients.hidden[row * size + i] += gradient * weight;
                gradients.weight[column * size + i] += gradient * state;
            }
        }
    }
    gradients
}
