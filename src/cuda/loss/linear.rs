//! The preference loss straight from hidden states on the device: the logits are never held.

use crate::cuda::context::CurrentContext;
use crate::cuda::linear::{Head, Hidden, LinearGradients, inputs_with};
use crate::cuda::memory::Scratch;
use crate::cuda::raw::MatrixAt;
use crate::cuda::raw::linear::LinearInputs;
use crate::cuda::raw::linear::log_prob as stage;
use crate::cuda::rewards::Rewards;
use crate::cuda::token_log_prob::Reference;
use crate::cuda::{Cuda, raw};
use crate::data::batch::Batch;
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::Result;
use crate::loss::PreferenceLoss;
use crate::operand::Operand;
use crate::step::{Inputs, Step};
use cudarc::driver::CudaView;

impl PreferenceLoss<Cuda> {
    /// As [`forward`](Self::forward), with hidden states `[N, H]` and a head in place of logits; see
    /// [`Cuda::linear_token_log_probs`]. Can be captured in a graph as that.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Length`](crate::Error::Length) for a hidden state that is not as long
    /// as a row of the weight; [`Error::NoCublas`](crate::Error::NoCublas). From the report:
    /// [`Error::ScoredRows`](crate::Error::ScoredRows) if more rows are scored than was said.
    pub fn forward_linear<'m, 'd: 'm, 'r, T: Element, I: TokenId>(
        &mut self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, T>,
        targets: &CudaView<'_, I>,
        batch: &Batch,
        reference: &Reference<'_>,
        rewards: impl Into<Rewards<'r>>,
    ) -> Result<Step> {
        let _current = CurrentContext::keep()?;
        let hidden = hidden.into();
        let (cuda, options) = (self.backend.clone(), self.options.logits);
        // The targets' address comes with the call; what else can be refused is refused before it.
        let (inputs, _read) = inputs_with(&cuda, &hidden, head, raw::Targets::I64(0))?;
        cuda.with_linear_scratch(|work| work.blas(&cuda.stream).map(drop))?;
        let stage = |cuda: &Cuda, scratch: &mut Scratch, targets, outputs| {
            let inputs = LinearInputs { targets, ..inputs };
            // SAFETY: hidden states and head are borrowed until the launches are ordered in the stream; the others are
            // what the loss gives.
            cuda.with_linear_scratch(|work| unsafe {
                stage::linear_token_log_probs_with(cuda, &scratch.status, work, &inputs, &options, outputs)
            })
        };
        let step_inputs = step_inputs(&inputs, head.vocab());
        self.forward_with(step_inputs, targets, batch, reference, &rewards.into(), stage)
    }

    /// Writes loss scale × the gradients of the loss by the hidden states, the weight and the bias, of those that
    /// `gradients` has; see [`Cuda::linear_token_log_probs_backward`]. `step` is what
    /// [`forward_linear`](Self::forward_linear) gave for these hidden states, with the same number of scored rows, and this
    /// head. Does not wait for the device.
    ///
    /// # Errors
    /// [`Error::OtherStep`](crate::Error::OtherStep) if the last forward pass of this loss was another;
    /// [`Error::Length`](crate::Error::Length) for what does not fit;
    /// [`Error::OtherInputs`](crate::Error::OtherInputs) if hidden states or head are others;
    /// [`Error::GradientType`](crate::Error::GradientType); [`Error::Cuda`](crate::Error::Cuda).
    pub fn backward_linear<'m, 'd: 'm, T: Element, G: Element>(
        &mut self,
        step: &Step,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, T>,
        mut gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let hidden = hidden.into();
        let (cuda, options) = (self.backend.clone(), self.options.logits);
        gradients.check(&cuda, head.vocab())?;
        let (inputs, _read) = inputs_with(&cuda, &hidden, head, raw::Targets::I64(0))?;
        step.check(self.last_step, &step_inputs(&inputs, head.vocab()))?;
        let (targets, states, upstream) = self.for_backward(hidden.states.rows())?;
        let inputs = LinearInputs { targets, ..inputs };
        let (gradients, _write) = gradients.addresses(&cuda, head.vocab())?;
        let status = &self.workspace.scratch.status;
        // SAFETY: as in the forward pass, whose buffers these are; the gradients are the caller's views.
        cuda.with_linear_scratch(|work| unsafe {
            stage::backward_with(&cuda, status, work, &inputs, &options, (states, 0), upstream, &gradients)
        })
    }
}

/// Where hidden states and head lie.
fn step_inputs(inputs: &LinearInputs, vocab: usize) -> Inputs {
    let matrix = |what, at: MatrixAt| Some(Operand::new(what, at.address, at.rows, at.row_stride));
    let bias = (inputs.bias != 0).then(|| Operand::new("bias", inputs.bias, 1, 0));
    let operands = [matrix("hidden states", inputs.hidden), matrix("weight", inputs.weight), bias];
    Inputs { rows: inputs.hidden.rows, vocab, operands }
}
