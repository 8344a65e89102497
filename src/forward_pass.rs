//! A finished forward pass of a loss, apart from the loss.

use crate::backend::Backend;
use crate::data::head::{Head, Hidden, LinearGradients};
use crate::data::matrix::{Matrix, MatrixMut};
use crate::element::Element;
use crate::error::Result;
use crate::kept_rows::KeptRows;
use crate::options::LogitOptions;
use crate::ordered;
use crate::stage::linear::check_places;
use crate::stage::token_log_prob::check_gradient;
use crate::step::Inputs;

/// What a backward pass needs of its forward pass, O(N), and from hidden states what
/// [`LinearKept`](crate::LinearKept) says: for the automatic differentiation of a framework, which goes
/// backward later, or more than once. Nothing of it changes any more: several threads may go backward from it at once, without
/// a lock.
///
/// [`PreferenceLoss`](crate::PreferenceLoss) keeps workspaces between steps instead, and goes backward by `&mut self`; the bits
/// are the same. Made by [`PreferenceLoss::into_forward_pass`](crate::PreferenceLoss::into_forward_pass).
///
/// ```
/// # use exo_kernels::*;
/// # fn main() -> Result<()> {
/// let (values, batch) = ([0.1f32, 0.9, 1.2, 0.4], Batch::new(&[0, 1, 2], &[0, 2])?);
/// let logits = Matrix::new(&values, 2)?;
/// let mut loss = PreferenceLoss::new(Cpu::default(), Objective::exo(Betas { policy: 0.5, reward: 0.5 })?);
/// let step = loss.forward(&logits, &[0i64, 1], &batch, &Reference::None, &[1.0f32, 0.2])?;
/// let report = loss.report()?.clone(); // before the loss is gone
/// let pass = loss.into_forward_pass(step)?;
/// std::thread::scope(|scope| {
///     for upstream in [1.0, 0.5] {
///         let (pass, logits) = (&pass, &logits);
///         scope.spawn(move || pass.backward(upstream, logits, MatrixMut::new(&mut [0f32; 4], 2)?));
///     }
/// });
/// assert!(report.loss > 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ForwardPass<B: Backend> {
    pub(crate) options: LogitOptions,
    /// What it read: N, V, and from what.
    pub(crate) inputs: Inputs,
    /// S.
    pub(crate) sequences: usize,
    pub(crate) kept: KeptRows<B>,
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
    /// [`Error::OtherInputs`](crate::Error::OtherInputs) if that was from hidden states;
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
        backend.check_memory_of("forward pass", &self.backend)?;
        backend.check_place("logits", &logits.data)?;
        let (logits, _logits) = ordered::matrix(backend, logits);
        self.check(&Inputs::of_logits(&logits))?;
        check_gradient(backend, &logits, &gradient)?;
        let (targets, saved, upstream) = self.kept.for_backward(backend, self.inputs.rows, self.sequences, loss_scale);
        backend.token_log_probs_backward(&logits, targets, &self.options, &saved, &upstream, gradient)
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
        backend.check_memory_of("forward pass", &self.backend)?;
        check_places(backend, &hidden, head)?;
        let (states, _states) = ordered::matrix(backend, hidden.states);
        let hidden = Hidden { states: &states, scored_rows: hidden.scored_rows };
        let (head, _head) = ordered::head(backend, head);
        self.check(&Inputs::of_hidden(&hidden, &head))?;
        let (targets, saved, upstream) = self.kept.for_backward(backend, self.inputs.rows, self.sequences, loss_scale);
        let options = &self.options;
        let saved = self.kept.products.with_rows::<T, W>(backend, saved, &hidden, head.vocab());
        backend.linear_token_log_probs_backward(hidden, &head, targets, options, saved, &upstream, gradients)
    }

    fn check(&self, inputs: &Inputs) -> Result<()> {
        self.inputs.check_shape(inputs)?;
        self.inputs.check_kinds(inputs)
    }
}
