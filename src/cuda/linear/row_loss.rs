//! A loss that is a sum over rows, forward and backward in one pass of three matrix products instead of four.
//!
//! Rows are taken some at a time ([`LinearChunks::with_row_bytes`](super::LinearChunks::with_row_bytes)), with all of
//! their logits: R rows hold 4·R·V bytes in f32 and, unless the head is f32, 2·R·V of their gradient. For each: product,
//! fold (`kernels/linear/fold.cu`), `kernels/linear/row_loss.cu`, logits to gradients, product of the hidden states' gradient,
//! product of the weight's, which is added up in f32. If there are several and the weight's gradient is not in f32, that
//! takes 4·V·H bytes more, and one more launch that rounds. The rest is as in `cuda/linear_log_prob.rs`.

use crate::cuda::context::CurrentContext;
use crate::cuda::linear::{Head, Hidden, LinearGradients, RowLosses, inputs};
use crate::cuda::{Cuda, raw};
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::Result;
use crate::options::LogitOptions;
use crate::stage::row_loss::RowLoss;
use cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};

impl Cuda {
    /// Hidden states, a head and targets → row losses, log-probs, and the gradients of Σ l. The log-probs have the bits of
    /// [`Cuda::linear_token_log_probs`], if those of an element of a product do not depend on its other rows and columns.
    ///
    /// # Errors
    /// As [`Cuda::linear_token_log_probs_backward`]; [`Error::Parameter`](crate::Error::Parameter) for a clipping range
    /// or a limit out of range. A row with numbers that [`RowLoss`] does not accept has no loss and no gradient, and is
    /// counted: [`Cuda::status`] is an error.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "the loss is a handful of views")]
    pub fn linear_row_loss<'m, 'a: 'm, T: Element, I: TokenId, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'a, T>>,
        head: &Head<'_, T>,
        targets: &CudaView<'_, I>,
        options: &LogitOptions,
        loss: RowLoss<CudaView<'_, f32>>,
        outputs: &mut RowLosses<'_>,
        mut gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let hidden = hidden.into();
        let rows = hidden.states.rows();
        loss.check(rows, CudaView::len)?;
        loss.slices().try_for_each(|(what, slice)| self.check_context(what, slice))?;
        self.check_view("row losses", &outputs.losses, rows)?;
        self.check_view("log-probs", &outputs.log_probs, rows)?;
        gradients.check(self, head.vocab())?;
        let (inputs, _read) = inputs(self, &hidden, head, targets)?;
        let (gradients, _write) = gradients.addresses(self, head.vocab())?;
        let stream = &self.stream;
        let (losses, _write_losses) = outputs.losses.device_ptr_mut(stream);
        let (log_probs, _write_log_probs) = outputs.log_probs.device_ptr_mut(stream);
        let outputs = raw::RowLossesAt { losses, log_probs };
        let (addresses, _read_loss): (Vec<_>, Vec<_>) =
            loss.slices().map(|(_, slice)| slice.device_ptr(stream)).unzip();
        let loss = match (&loss, addresses.as_slice()) {
            (RowLoss::ClippedRatio { low, high, log_ratio_limit, .. }, &[weights, advantages, old_log_probs]) => {
                let (low, high, log_ratio_limit) = (*low, *high, *log_ratio_limit);
                RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit }
            }
            (_, addresses) => RowLoss::Weighted { weights: addresses[0] },
        };
        // SAFETY: the views are as long as was checked, borrowed until the launches are in the stream, and mutable ones
        // overlap nothing.
        unsafe { raw::linear_row_loss(self, &inputs, options, &loss, outputs, &gradients) }
    }
}
