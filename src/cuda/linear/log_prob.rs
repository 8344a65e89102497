//! Log-probs straight from hidden states: launches `kernels/linear/fold.cu` and
//! `kernels/linear/gradient.cu` between matrix products of cuBLAS.
//!
//! # What is launched, and what it moves
//!
//! N rows, M of them gathered (the number of scored rows if it was given, else N), vocabulary V in chunks of C columns
//! (8192), b bytes a hidden state's element:
//!
//! | launch | times | bytes read | bytes written |
//! |---|---|---|---|
//! | scored rows | 1 | N ids | 4(N + M) |
//! | gather | 1 | b·M·H | b·M·H |
//! | bias in f32, if there is one | 1 | b·V | 4·V |
//! | **forward**: product, logits in f32 | V/C | b(C·H + M·H) | 4·M·C |
//! | fold | V/C | 4·M·C | 24·M |
//! | **backward**: product, logits in f32 | V/C | b(C·H + M·H) | 4·M·C |
//! | rows to leave out, where gradients of the head are added to | 1 | 16·M | |
//! | logits to gradients | V/C | 4·M·C | b·M·C |
//! | product, hidden gradient in f32 | V/C | b(C·H + M·C) + 4·M·H | 4·M·H |
//! | product, weight gradient of a chunk | V/C | b(M·H + M·C) | C·H |
//! | scatter, one rounding | 1 | 4·M·H | b·N·H |
//!
//! f16 has one more: the power of two that keeps gradients below 6e-8 from vanishing. A frozen weight or frozen hidden
//! states leave out their product. A bias's gradient reads the chunk once more.
//!
//! # Memory
//!
//! Beside the operands and results: 4·M·C bytes of logits, b·M·C of their gradient (backward; none for f32, which takes
//! the logits' place), b·M·H of gathered states, 4·M·H of their gradient (backward), 24·M of sums, 4(N + M) of row
//! numbers, 4·V for a bias, and 32 MiB for cuBLAS. It is kept between calls, and nothing grows after the first of a shape.

use crate::cuda::context::CurrentContext;
use crate::cuda::linear::{Head, Hidden, LinearGradients, inputs};
use crate::cuda::raw::linear::log_prob as stage;
use crate::cuda::raw::token_log_prob;
use crate::cuda::token_log_prob::{RowGradients, SavedRows, TokenLogProbs};
use crate::cuda::{Cuda, raw};
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};

impl Cuda {
    /// Hidden states `[N, H]`, a head and targets `[N]` → log-probs, softmax states and, if wanted, entropies, `[N]`
    /// each, without ever holding the logits `[N, V]`: they are formed in f32, some columns at a time
    /// ([`LinearChunks`](crate::cuda::LinearChunks)).
    ///
    /// Masked rows are left out and never read; [`Hidden::with_scored_rows`] lets the products be as small as the scored
    /// rows. The contracts of [`Cuda::token_log_probs`] hold, but for the bits of a row: they are that row's alone as far
    /// as those of cuBLAS's products are.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) and [`Error::Matrix`](crate::Error::Matrix) for what does not fit;
    /// [`Error::Device`](crate::Error::Device) for what lies elsewhere;
    /// [`Error::NoCublas`](crate::Error::NoCublas); [`Error::Cuda`](crate::Error::Cuda). A target that is no column, a
    /// row without a softmax, and rows beyond the stated number are counted in [`Cuda::status`].
    pub fn linear_token_log_probs<'m, 'a: 'm, T: Element, I: TokenId>(
        &self,
        hidden: impl Into<Hidden<'m, 'a, T>>,
        head: &Head<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        outputs: &mut TokenLogProbs<'_>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let hidden = hidden.into();
        let rows = hidden.states.rows();
        outputs.check(self, rows)?;
        let TokenLogProbs { log_probs, states, entropies } = outputs;
        let (inputs, _read) = inputs(self, &hidden, head, targets)?;
        let stream = &self.stream;
        let (log_probs, _write_log_probs) = log_probs.device_ptr_mut(stream);
        let (states, _write_states) = states.device_ptr_mut(stream);
        let entropies = entropies.as_mut().map(|entropies| entropies.device_ptr_mut(stream));
        let outputs = token_log_prob::ForwardOutputs {
            log_probs,
            states,
            entropies: entropies.as_ref().map_or(0, |held| held.0),
        };
        // SAFETY: the views are as long as was checked, borrowed until the launches are in the stream, and mutable ones
        // overlap nothing.
        unsafe { raw::linear_token_log_probs(self, &inputs, options, outputs) }
    }

    /// Writes the gradients of hidden states, weight and bias. The logits are computed again, a chunk at a time, so that
    /// nothing of their size is kept from the forward pass. Call it with the same operands, options and number of scored
    /// rows.
    ///
    /// Products take operands of the head's type and sum up in f32: the gradient of a logit is rounded once to that type,
    /// that of a hidden state and of a weight once to its buffer's.
    ///
    /// Gradients that are added to are not spoilt by a row that would add NaN or an infinity
    /// ([`LinearGradients::accumulating`](crate::LinearGradients::accumulating)): [`Cuda::status`] counts such rows, and is an
    /// error.
    ///
    /// # Errors
    /// As [`Cuda::linear_token_log_probs`], and [`Error::GradientType`](crate::Error::GradientType) if G is neither f32
    /// nor T; [`Error::EntropiesNotKept`](crate::Error::EntropiesNotKept).
    #[allow(clippy::too_many_arguments)]
    pub fn linear_token_log_probs_backward<'m, 'a: 'm, T: Element, I: TokenId, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'a, T>>,
        head: &Head<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        mut gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let hidden = hidden.into();
        let rows = hidden.states.rows();
        saved.check(self, upstream, rows)?;
        gradients.check(self, head.vocab())?;
        let (inputs, _read) = inputs(self, &hidden, head, targets)?;
        let (gradients, _write) = gradients.addresses(self, head.vocab())?;
        let stream = &self.stream;
        let (states, _read_states) = saved.states.device_ptr(stream);
        let (log_probs, _read_gradients) = upstream.log_probs.device_ptr(stream);
        let entropies = saved.entropies.as_ref().map(|entropies| entropies.device_ptr(stream));
        let entropy_gradients = upstream.entropies.as_ref().map(|entropies| entropies.device_ptr(stream));
        let upstream = token_log_prob::Upstream::PerRow {
            log_probs,
            entropies: entropy_gradients.as_ref().map_or(0, |held| held.0),
        };
        let saved = (states, entropies.as_ref().map_or(0, |held| held.0));
        // SAFETY: as in the forward pass.
        unsafe { stage::linear_token_log_probs_backward(self, &inputs, options, saved, upstream, &gradients) }
    }
}
