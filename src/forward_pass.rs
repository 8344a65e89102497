//! A finished forward pass of a loss, apart from the loss.

use crate::backend::Backend;
use crate::data::head::{Head, Hidden, LinearGradients};
use crate::data::matrix::{Matrix, MatrixMut};
use crate::data::targets::Targets;
use crate::element::Element;
use crate::error::{Result, check_length};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::{RowGradients, SavedRows, SoftmaxState, check_gradient};

/// What a backward pass needs of its forward pass, O(N): for the automatic differentiation of a framework, which goes
/// backward later, or more than once. Nothing of it changes any more: several threads may go backward from it at once, without
/// a lock.
///
/// [`PreferenceLoss`](crate::PreferenceLoss) keeps workspaces between steps instead, and goes backward by `&mut self`; the bits
/// are the same. Made by [`PreferenceLoss::into_forward_pass`](crate::PreferenceLoss::into_forward_pass).
#[derive(Debug)]
pub struct ForwardPass<B: Backend> {
    pub(crate) options: LogitOptions,
    /// N.
    pub(crate) rows: usize,
    /// V.
    pub(crate) vocab: usize,
    /// S.
    pub(crate) sequences: usize,
    /// `[N]`
    pub(crate) targets: KeptTargets<B>,
    /// `[N]`
    pub(crate) states: B::Buffer<SoftmaxState>,
    /// `[N]`
    pub(crate) row_sequences: B::Buffer<i32>,
    /// d loss / d log-prob of a row of each sequence, `[S]`.
    pub(crate) sequence_weights: B::Buffer<f64>,
    /// Dropped after the buffers.
    pub(crate) backend: B,
}

impl<B: Backend> ForwardPass<B> {
    /// The backend that it was made on, and goes backward on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Writes `loss_scale` × d loss / d logits, `[N, V]`, to `gradient`. The logits must hold the numbers of the forward pass;
    /// they may lie elsewhere.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) if logits or gradient do not have the N and V of the forward pass;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    pub fn backward<T: Element>(
        &self,
        loss_scale: f64,
        logits: &Matrix<'_, T, B::Memory>,
        gradient: MatrixMut<'_, T, B::Memory>,
    ) -> Result<()> {
        self.backward_on(&self.backend, loss_scale, logits, gradient)
    }

    /// As [`ForwardPass::backward`], on another backend of the same memory. A CUDA backend on cudarc's per-thread stream is for
    /// one thread: another thread goes backward on one of its own, once the stream of the forward pass has come so far, and
    /// has gone so far itself when the pass is dropped.
    ///
    /// # Errors
    /// As [`ForwardPass::backward`]; [`Error::Device`](crate::Error::Device) for a backend of another device or context.
    pub fn backward_on<T: Element>(
        &self,
        backend: &B,
        loss_scale: f64,
        logits: &Matrix<'_, T, B::Memory>,
        gradient: MatrixMut<'_, T, B::Memory>,
    ) -> Result<()> {
        let _entered = backend.enter()?;
        self.check(backend, logits.rows(), logits.columns())?;
        check_gradient(backend, logits, &gradient)?;
        let (targets, saved, upstream) = self.kept(loss_scale);
        backend.token_log_probs_backward(logits, targets, &self.options, &saved, &upstream, gradient)
    }

    /// As [`ForwardPass::backward`], to the gradients of hidden states and head.
    ///
    /// # Errors
    /// As [`PreferenceLoss::backward_linear`](crate::PreferenceLoss::backward_linear), of the lengths and types.
    pub fn backward_linear<'m, 'd: 'm, T: Element, W: Element, G: Element>(
        &self,
        loss_scale: f64,
        hidden: impl Into<Hidden<'m, 'd, T, B::Memory>>,
        head: &Head<'_, W, B::Memory>,
        gradients: LinearGradients<'_, T, G, B::Memory>,
    ) -> Result<()> {
        self.backward_linear_on(&self.backend, loss_scale, hidden, head, gradients)
    }

    /// As [`ForwardPass::backward_linear`], on another backend: see [`ForwardPass::backward_on`].
    ///
    /// # Errors
    /// As these two.
    pub fn backward_linear_on<'m, 'd: 'm, T: Element, W: Element, G: Element>(
        &self,
        backend: &B,
        loss_scale: f64,
        hidden: impl Into<Hidden<'m, 'd, T, B::Memory>>,
        head: &Head<'_, W, B::Memory>,
        gradients: LinearGradients<'_, T, G, B::Memory>,
    ) -> Result<()> {
        let _entered = backend.enter()?;
        let hidden = hidden.into();
        self.check(backend, hidden.states.rows(), head.vocab())?;
        let (targets, saved, upstream) = self.kept(loss_scale);
        let options = &self.options;
        backend.linear_token_log_probs_backward(hidden, head, targets, options, &saved, &upstream, gradients)
    }

    fn check(&self, backend: &B, rows: usize, vocab: usize) -> Result<()> {
        backend.check_memory_of("forward pass", &self.backend)?;
        check_length("rows of the backward pass", rows, self.rows)?;
        check_length("vocabulary of the backward pass", vocab, self.vocab)
    }

    #[allow(clippy::type_complexity)]
    fn kept(&self, loss_scale: f64) -> (Targets<'_, B::Memory>, SavedRows<'_, B::Memory>, RowGradients<'_, B::Memory>) {
        let backend = &self.backend;
        let upstream = RowGradients::PerSequence {
            row_sequences: backend.view(&self.row_sequences, self.rows),
            weights: backend.view(&self.sequence_weights, self.sequences),
            loss_scale,
        };
        let saved = SavedRows { states: backend.view(&self.states, self.rows), entropies: None };
        (self.targets.view(backend, self.rows), saved, upstream)
    }
}

/// Copies of target ids, which the backward pass reads again: of one of the two types.
#[derive(Debug)]
pub(crate) struct KeptTargets<B: Backend> {
    narrow: bool,
    u32: B::Buffer<u32>,
    i64: B::Buffer<i64>,
}

impl<B: Backend> Default for KeptTargets<B> {
    fn default() -> Self {
        Self { narrow: false, u32: B::Buffer::default(), i64: B::Buffer::default() }
    }
}

impl<B: Backend> KeptTargets<B> {
    pub(crate) fn keep(&mut self, backend: &B, targets: &Targets<'_, B::Memory>) -> Result<()> {
        self.narrow = matches!(targets, Targets::U32(_));
        match targets {
            Targets::U32(ids) => backend.copy(ids, &mut self.u32),
            Targets::I64(ids) => backend.copy(ids, &mut self.i64),
        }
    }

    pub(crate) fn view(&self, backend: &B, rows: usize) -> Targets<'_, B::Memory> {
        if self.narrow {
            Targets::U32(backend.view(&self.u32, rows))
        } else {
            Targets::I64(backend.view(&self.i64, rows))
        }
    }
}
