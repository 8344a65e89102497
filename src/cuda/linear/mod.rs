//! The linear stage on the device: hidden states and a head in place of logits.

pub(super) mod log_prob;
pub(super) mod row_loss;
pub(super) mod shard;
pub(crate) mod workspace;

use crate::cuda::memory::Held;
use crate::cuda::raw::Targets;
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs};
use crate::cuda::token_log_prob::optional;
use crate::cuda::{Cuda, Head, Hidden, LinearGradients, raw};
use crate::element::Element;

/// The operands as addresses, and what keeps them in order.
fn operands_at<'v, T: Element, W: Element>(
    cuda: &'v Cuda,
    hidden: &'v Hidden<'_, '_, T>,
    head: &'v Head<'_, W>,
    targets: Targets,
) -> (LinearInputs, [Held<'v>; 3]) {
    let stream = &cuda.stream;
    let (states, read_states) = hidden.states.data.address(stream);
    let (weight, read_weight) = head.weight().data.address(stream);
    let (bias, read_bias) = optional(head.bias(), stream);
    let inputs = LinearInputs {
        hidden: raw::at::<T>(states, hidden.states.shape),
        weight: raw::at::<W>(weight, head.weight().shape),
        bias,
        targets,
        scored_rows: hidden.scored_rows,
    };
    (inputs, [read_states, read_weight, read_bias])
}

/// The buffers of gradients as addresses, and what keeps them in order.
fn gradients_at<'v, T: Element, G: Element>(
    cuda: &'v Cuda,
    gradients: &'v mut LinearGradients<'_, T, G>,
) -> (LinearGradientsAt, [Held<'v>; 3]) {
    let stream = &cuda.stream;
    let (mut write_hidden, mut write_weight, mut write_bias) = (None, None, None);
    let hidden = gradients.hidden.as_mut().map(|gradient| {
        let (address, write) = gradient.data.address(stream);
        write_hidden = write;
        raw::at::<T>(address, gradient.shape)
    });
    let weight = gradients.weight.as_mut().map(|gradient| {
        let (address, write) = gradient.data.address(stream);
        write_weight = write;
        raw::at::<G>(address, gradient.shape)
    });
    let bias = gradients.bias.as_mut().map_or(0, |gradient| {
        let (address, write) = gradient.address(stream);
        write_bias = write;
        address
    });
    let (bias_dtype, accumulate) = (<G as Element>::DTYPE, gradients.accumulate);
    (LinearGradientsAt { hidden, weight, bias, bias_dtype, accumulate }, [write_hidden, write_weight, write_bias])
}
