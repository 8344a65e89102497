//! Token log-probs and entropies, of logits or from hidden states.

use super::candle_core::{Device, Error, Result, Shape, Tensor, bail};
use super::operands::{Gradients, Operands, Tensors, with_scored_rows};
use super::operation::{Pass, apply};
use super::tensor_backend;
use super::tensor_backend::{DeviceOf, Scalar, TensorBackend, by_backend, part, part_mut};
use exo_kernels::backend::{RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{LogitOptions, SoftmaxState};
use std::sync::OnceLock;

/// log softmax(z)\[target\] of each row: logits `[N, V]` or `[.., V]`, targets of u32 or i64 in the same leading shape
/// → f32 of that shape; 0 where the target is negative.
///
/// # Errors
/// A device that this build has no operation for, logits of another dtype than f32, f16 and bf16, targets of another
/// than u32 and i64 or on another device than the logits' and the CPU, shapes that do not fit, a target of V or more
/// (on a CUDA device it gives NaN). What CUDA says.
pub fn token_log_probs(logits: &Tensor, targets: &Tensor, options: &LogitOptions) -> Result<Tensor> {
    run(&Tensors::logits(logits, targets)?, targets, options, false)?.reshape(targets.shape())
}

/// [`token_log_probs`] and, from the same pass, the entropy of each row's distribution; both differentiable.
///
/// # Errors
/// As [`token_log_probs`].
pub fn token_log_probs_and_entropies(
    logits: &Tensor,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<(Tensor, Tensor)> {
    both(&Tensors::logits(logits, targets)?, targets, options)
}

/// [`token_log_probs`] of the logits hidden·weightᵀ + bias, which are never held: hidden
/// states `[N, H]` or `[.., H]`, weight `[V, H]` and bias `[V]` of one dtype, targets in the hidden states' leading shape →
/// f32 of that shape. Differentiable in hidden, weight and bias: those that are variables, or depend on some, when the
/// backward pass runs; a frozen weight costs no product.
///
/// The logits are products in f32 whatever the dtype. A row's hidden state is not read where its target is negative.
///
/// # Errors
/// As [`token_log_probs`]; hidden states, weight and bias that differ in dtype or device, or
/// do not fit together.
pub fn linear_token_log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<Tensor> {
    let tensors = Tensors::linear(hidden, weight, bias, targets)?;
    run(&tensors, targets, options, false)?.reshape(targets.shape())
}

/// [`linear_token_log_probs`] and, from the same pass, the entropy of each row's distribution; both differentiable.
///
/// # Errors
/// As [`linear_token_log_probs`].
pub fn linear_token_log_probs_and_entropies(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &LogitOptions,
) -> Result<(Tensor, Tensor)> {
    both(&Tensors::linear(hidden, weight, bias, targets)?, targets, options)
}

fn both(tensors: &Tensors, targets: &Tensor, options: &LogitOptions) -> Result<(Tensor, Tensor)> {
    let both = run(tensors, targets, options, true)?;
    Ok((both.get(0)?.reshape(targets.shape())?, both.get(1)?.reshape(targets.shape())?))
}

/// `[N]`, or `[2, N]` with the entropies.
fn run(tensors: &Tensors, targets: &Tensor, options: &LogitOptions, entropy: bool) -> Result<Tensor> {
    by_backend!(tensors.rows(), |B| {
        let targets = B::targets(tensors.rows(), tensors.vocab()?, targets)?;
        apply(TokenLogProbPass::<B> { targets, options: *options, entropy, states: OnceLock::new() }, tensors)
    })
}

/// What the pass is given besides its operands, and what it leaves for the backward pass.
struct TokenLogProbPass<B: TensorBackend> {
    targets: B::Targets,
    options: LogitOptions,
    entropy: bool,
    /// Of the forward pass, `[N]`.
    states: OnceLock<B::Buffer<SoftmaxState>>,
}

impl<B: TensorBackend> Pass for TokenLogProbPass<B> {
    type Backend = B;

    const NAMES: [&'static str; 2] = ["exo-token-log-probs", "exo-linear-token-log-probs"];

    fn forward<T: Scalar>(
        &self,
        device: &DeviceOf<B>,
        operands: &Operands<'_, T, B::Memory>,
    ) -> Result<(B::Storage, Shape)> {
        let (backend, rows) = (B::of(device)?, operands.rows().rows());
        let shape = if self.entropy { Shape::from((2, rows)) } else { Shape::from(rows) };
        let mut values = B::allocate::<f32>(device, shape.elem_count())?;
        let mut states = B::Buffer::default();
        backend.reserve(&mut states, rows).map_err(Error::wrap)?;
        {
            let (mut log_probs, mut entropies) = B::split(&mut values, rows);
            let outputs = TokenLogProbs {
                log_probs: part_mut::<B, f32>(&mut log_probs, rows)?,
                states: backend.view_mut(&mut states, rows),
                entropies: self.entropy.then(|| part_mut::<B, f32>(&mut entropies, rows)).transpose()?,
            };
            let (options, scored_rows) = (&self.options, B::scored_rows(&self.targets));
            B::with_targets(&self.targets, |targets| {
                match operands {
                    Operands::Logits(logits) => backend.token_log_probs(logits, targets, options, outputs),
                    Operands::Linear(states, head) => {
                        let hidden = with_scored_rows(states, scored_rows);
                        backend.linear_token_log_probs(hidden, head, targets, options, outputs)
                    }
                }
                .map_err(Error::wrap)
            })?;
        }
        // Nobody has set it: candle runs an operation's forward pass once.
        let _ = self.states.set(states);
        Ok((B::into_storage(values, device), shape))
    }

    fn backward<T: Scalar>(
        &self,
        backend: &B,
        operands: &Operands<'_, T, B::Memory>,
        values: &Tensor,
        upstream: &Tensor,
        gradients: Gradients<'_, T, B::Memory>,
    ) -> Result<()> {
        let Some(states) = self.states.get() else { bail!("no forward pass has been made") };
        let rows = operands.rows().rows();
        let ((values, values_layout), (upstream, layout)) =
            (values.storage_and_layout(), upstream.storage_and_layout());
        let (values_start, start) = (values_layout.start_offset(), layout.start_offset());
        let values = B::numbers::<f32>("values", B::storage("values", &values)?)?;
        let upstream = B::numbers::<f32>("upstream", B::storage("upstream", &upstream)?)?;
        let second = |numbers, start| self.entropy.then(|| part::<B, f32>(numbers, start + rows, rows)).transpose();
        let saved = SavedRows { states: backend.view(states, rows), entropies: second(&values, values_start)? };
        let upstream = RowGradients::PerRow {
            log_probs: part::<B, f32>(&upstream, start, rows)?,
            entropies: second(&upstream, start)?,
        };
        let (options, scored_rows) = (&self.options, B::scored_rows(&self.targets));
        B::with_targets(&self.targets, |targets| {
            match operands {
                Operands::Logits(logits) => gradients.rows.map_or(Ok(()), |gradient| {
                    backend.token_log_probs_backward(logits, targets, options, &saved, &upstream, gradient)
                }),
                Operands::Linear(states, head) => {
                    let (hidden, gradients) = (with_scored_rows(states, scored_rows), gradients.linear());
                    backend
                        .linear_token_log_probs_backward(hidden, head, targets, options, &saved, &upstream, gradients)
                }
            }
            .map_err(Error::wrap)
        })
    }
}
