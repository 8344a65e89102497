//! Token log-probs on the device: launches `kernels/token_log_prob.cu` and `kernels/token_log_prob_backward.cu`.

use crate::cuda::context::CurrentContext;
use crate::cuda::memory::{Logits, LogitsMut};
use crate::cuda::raw::token_log_prob;
use crate::cuda::{Cuda, memory, raw};
use crate::data::logits::Shape;
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::SoftmaxState;
use cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

/// Where the token log-prob stage writes: one entry per row, N of each.
pub struct TokenLogProbs<'a> {
    /// As [`crate::TokenLogProbs::log_probs`].
    pub log_probs: CudaViewMut<'a, f32>,
    /// For the backward pass.
    pub states: CudaViewMut<'a, SoftmaxState>,
    /// As [`crate::TokenLogProbs::entropies`].
    pub entropies: Option<CudaViewMut<'a, f32>>,
}

/// What the token log-prob stage kept of its forward pass.
pub struct SavedRows<'a> {
    /// As written by the forward pass, N.
    pub states: CudaView<'a, SoftmaxState>,
    /// As written by the forward pass, N; needed for an entropy gradient only.
    pub entropies: Option<CudaView<'a, f32>>,
}

/// The gradient that comes back to the token log-prob stage, per row; what it says of masked rows is not read.
pub struct RowGradients<'a> {
    /// d loss / d log-prob, N.
    pub log_probs: CudaView<'a, f32>,
    /// d loss / d entropy, N; `None`: the loss has no entropy term.
    pub entropies: Option<CudaView<'a, f32>>,
}

/// Log-probs of the same tokens under the frozen reference model, on the device.
pub enum Reference<'a> {
    /// One per row, N. Preferred: the difference is formed per token, before the sum. Not read at masked rows.
    PerToken(CudaView<'a, f32>),
    /// One per sequence, S: sums over the scored rows.
    PerSequence(CudaView<'a, f64>),
    /// None: the log-ratio is the policy's log-prob.
    None,
}

/// Which of the two kinds of ids these are.
pub(super) fn targets<I: TokenId>(address: memory::Address) -> raw::Targets {
    if size_of::<I>() == 4 { raw::Targets::U32(address) } else { raw::Targets::I64(address) }
}

pub(super) fn rows<T: Element>(address: memory::Address, shape: Shape) -> raw::Rows {
    let dtype = <T as Element>::DTYPE;
    raw::Rows { address, rows: shape.rows, vocab: shape.vocab, row_stride: shape.row_stride, dtype }
}

impl TokenLogProbs<'_> {
    /// Checks that there is an entry per row, in the backend's context.
    pub(super) fn check(&self, cuda: &Cuda, rows: usize) -> Result<()> {
        cuda.check_view("log-probs", &self.log_probs, rows)?;
        cuda.check_view("softmax states", &self.states, rows)?;
        self.entropies.as_ref().map_or(Ok(()), |view| cuda.check_view("entropies", view, rows))
    }
}

impl SavedRows<'_> {
    /// Checks that what the backward pass reads has an entry per row, in the backend's context.
    pub(super) fn check(&self, cuda: &Cuda, upstream: &RowGradients<'_>, rows: usize) -> Result<()> {
        let of_entropies = [("entropies", &self.entropies), ("entropy gradients", &upstream.entropies)];
        cuda.check_view("softmax states", &self.states, rows)?;
        cuda.check_view("log-prob gradients", &upstream.log_probs, rows)?;
        for (what, view) in of_entropies {
            view.as_ref().map_or(Ok(()), |view| cuda.check_view(what, view, rows))?;
        }
        if upstream.entropies.is_some() && self.entropies.is_none() {
            return Err(Error::EntropiesNotKept);
        }
        Ok(())
    }
}

impl Cuda {
    /// Logits `[N, V]` and targets `[N]` → log-probs, softmax states and, if wanted, entropies, `[N]` each.
    ///
    /// # Errors
    /// [`Error::Length`] for buffers that are not N long; [`Error::Device`] for one that lies elsewhere;
    /// [`Error::Cuda`]. A target that is no column, and a row without a softmax, are counted in [`Cuda::status`].
    pub fn token_log_probs<T: Element, I: TokenId>(
        &self,
        logits: &Logits<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        outputs: &mut TokenLogProbs<'_>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.check_context("logits", &logits.data)?;
        self.check_view("targets", targets, logits.rows())?;
        outputs.check(self, logits.rows())?;
        let TokenLogProbs { log_probs, states, entropies } = outputs;
        let stream = &self.stream;
        let (logits_address, _read_logits) = logits.data.device_ptr(stream);
        let (targets_address, _read_targets) = targets.device_ptr(stream);
        let (log_probs, _write_log_probs) = log_probs.device_ptr_mut(stream);
        let (states, _write_states) = states.device_ptr_mut(stream);
        let entropies = entropies.as_mut().map(|entropies| entropies.device_ptr_mut(stream));
        let outputs = token_log_prob::ForwardOutputs {
            log_probs,
            states,
            entropies: entropies.as_ref().map_or(0, |held| held.0),
        };
        // SAFETY: the views are as long as was checked, borrowed for as long as the launch takes to be ordered in the
        // stream, and mutable ones overlap nothing.
        unsafe {
            token_log_prob::token_log_probs(
                self,
                rows::<T>(logits_address, logits.shape),
                self::targets::<I>(targets_address),
                options,
                outputs,
            )
        }
    }

    /// Writes d loss / d logits, `[N, V]`, to `gradients`.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::Shape`] for what does not fit; [`Error::Device`] for what lies elsewhere;
    /// [`Error::EntropiesNotKept`]; [`Error::Cuda`].
    pub fn token_log_probs_backward<T: Element, I: TokenId>(
        &self,
        logits: &Logits<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        gradients: &mut LogitsMut<'_, T>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.check_context("logits", &logits.data)?;
        self.check_context("gradient", &gradients.data)?;
        self.check_backward(logits.rows(), targets, saved, upstream)?;
        let stream = &self.stream;
        let (address, _read_logits) = logits.data.device_ptr(stream);
        let (gradient, _write) = gradients.data.device_ptr_mut(stream);
        let logits = rows::<T>(address, logits.shape);
        self.backward(logits, targets, options, saved, upstream, rows::<T>(gradient, gradients.shape))
    }

    /// Overwrites the logits with d loss / d logits. The bits are those of [`Cuda::token_log_probs_backward`].
    ///
    /// # Errors
    /// As [`Cuda::token_log_probs_backward`].
    pub fn token_log_probs_backward_in_place<T: Element, I: TokenId>(
        &self,
        logits: &mut LogitsMut<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        self.check_context("logits", &logits.data)?;
        self.check_backward(logits.rows(), targets, saved, upstream)?;
        let (address, _write) = logits.data.device_ptr_mut(&self.stream);
        let both = rows::<T>(address, logits.shape);
        self.backward(both, targets, options, saved, upstream, both)
    }

    fn check_backward<I: TokenId>(
        &self,
        rows: usize,
        targets: &CudaView<'_, I>,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
    ) -> Result<()> {
        self.check_view("targets", targets, rows)?;
        saved.check(self, upstream, rows)
    }

    /// What was checked.
    fn backward<I: TokenId>(
        &self,
        logits: raw::Rows,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        gradients: raw::Rows,
    ) -> Result<()> {
        let stream = &self.stream;
        let (targets, _read_targets) = targets.device_ptr(stream);
        let (states, _read_states) = saved.states.device_ptr(stream);
        let entropies = saved.entropies.as_ref().map(|entropies| entropies.device_ptr(stream));
        let (log_probs, _read_gradients) = upstream.log_probs.device_ptr(stream);
        let entropy_gradients = upstream.entropies.as_ref().map(|entropies| entropies.device_ptr(stream));
        let address =
            |held: &Option<(memory::Address, cudarc::driver::SyncOnDrop<'_>)>| held.as_ref().map_or(0, |held| held.0);
        let per_row = token_log_prob::Upstream::PerRow { log_probs, entropies: address(&entropy_gradients) };
        // SAFETY: as in the forward pass; the logits and gradients are the caller's views, or one view twice.
        unsafe {
            let targets = self::targets::<I>(targets);
            token_log_prob::token_log_probs_backward(
                self,
                logits,
                targets,
                options,
                states,
                address(&entropies),
                per_row,
                gradients,
            )
        }
    }
}
