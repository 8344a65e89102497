//! A finished forward pass of a loss on the device, apart from the loss.

use crate::cuda::linear::{Head, Hidden, LinearGradients, inputs_with};
use crate::cuda::memory::{Logits, LogitsMut};
use crate::cuda::raw::token_log_prob;
use crate::cuda::raw::token_log_prob::Upstream;
use crate::cuda::token_log_prob::rows;
use crate::cuda::{Cuda, memory, raw};
use crate::element::Element;
use crate::error::{Result, check_length};
use crate::options::LogitOptions;
use crate::stage::token_log_prob::SoftmaxState;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, SyncOnDrop};

/// What a backward pass needs of its forward pass, O(N), on the device. Nothing of it changes any more: several threads may
/// go backward from it at once, each with a backend of its own, without a lock.
pub struct ForwardPass {
    /// N.
    pub(super) rows: usize,
    /// V.
    pub(super) vocab: usize,
    pub(super) options: LogitOptions,
    /// `[N]`
    pub(super) targets: KeptTargets,
    /// `[N]`
    pub(super) states: CudaSlice<SoftmaxState>,
    /// `[N]`
    pub(super) row_sequences: CudaSlice<i32>,
    /// d loss / d log-prob of a row of each sequence, `[S]`.
    pub(super) sequence_weights: CudaSlice<f64>,
}

/// Ids of either type.
pub(super) enum KeptTargets {
    U32(CudaSlice<u32>),
    I64(CudaSlice<i64>),
}

/// What is kept, as addresses.
struct Kept<'a> {
    targets: raw::Targets,
    states: memory::Address,
    upstream: Upstream,
    /// Until the launches are ordered in the stream.
    _read: [SyncOnDrop<'a>; 4],
}

impl ForwardPass {
    /// Writes `loss_scale` × d loss / d logits, `[N, V]`, to `gradients`; does not wait for the device.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for what does not fit, and what CUDA says.
    pub fn backward<T: Element>(
        &self,
        cuda: &Cuda,
        loss_scale: f64,
        logits: &Logits<'_, T>,
        gradients: &mut LogitsMut<'_, T>,
    ) -> Result<()> {
        self.check(logits.shape.rows, logits.shape.vocab)?;
        check_length("rows of the gradient", gradients.shape.rows, logits.shape.rows)?;
        check_length("vocabulary of the gradient", gradients.shape.vocab, logits.shape.vocab)?;
        let kept = self.kept(cuda, loss_scale);
        let Kept { targets, states, upstream, .. } = kept;
        let (address, _read) = logits.data.device_ptr(&cuda.stream);
        let (gradient, _write) = gradients.data.device_ptr_mut(&cuda.stream);
        let (logits, gradients) = (rows::<T>(address, logits.shape), rows::<T>(gradient, gradients.shape));
        // SAFETY: what is kept has the lengths that the forward pass made; the views are the caller's, borrowed until the
        // launch is ordered in the stream.
        unsafe {
            token_log_prob::token_log_probs_backward(
                cuda,
                logits,
                targets,
                &self.options,
                states,
                0,
                upstream,
                gradients,
            )
        }
    }

    /// As [`ForwardPass::backward`], to the gradients of hidden states and head.
    ///
    /// # Errors
    /// As [`ForwardPass::backward`].
    pub fn backward_linear<T: Element, G: Element>(
        &self,
        cuda: &Cuda,
        loss_scale: f64,
        hidden: &Hidden<'_, '_, T>,
        head: &Head<'_, T>,
        mut gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        self.check(hidden.states.rows(), head.vocab())?;
        let kept = self.kept(cuda, loss_scale);
        let (inputs, _read) = inputs_with(cuda, hidden, head, kept.targets)?;
        let (gradients, _write) = gradients.addresses(cuda, head.vocab())?;
        let saved = (kept.states, 0);
        // SAFETY: as in `backward`.
        unsafe { raw::linear_token_log_probs_backward(cuda, &inputs, &self.options, saved, kept.upstream, &gradients) }
    }

    fn check(&self, rows: usize, vocab: usize) -> Result<()> {
        check_length("rows of the backward pass", rows, self.rows)?;
        check_length("vocabulary of the backward pass", vocab, self.vocab)
    }

    fn kept<'a>(&'a self, cuda: &'a Cuda, loss_scale: f64) -> Kept<'a> {
        let stream = cuda.stream();
        let (targets, read_targets) = match &self.targets {
            KeptTargets::U32(targets) => {
                let (address, read) = targets.device_ptr(stream);
                (raw::Targets::U32(address), read)
            }
            KeptTargets::I64(targets) => {
                let (address, read) = targets.device_ptr(stream);
                (raw::Targets::I64(address), read)
            }
        };
        let (states, read_states) = self.states.device_ptr(stream);
        let (row_sequences, read_sequences) = self.row_sequences.device_ptr(stream);
        let (weights, read_weights) = self.sequence_weights.device_ptr(stream);
        Kept {
            targets,
            states,
            upstream: Upstream::PerSequence { row_sequences, weights, loss_scale },
            _read: [read_targets, read_states, read_sequences, read_weights],
        }
    }
}
