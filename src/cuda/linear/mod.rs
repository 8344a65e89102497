//! What the linear stage takes and gives on the device: hidden states and a head in place of logits.

mod log_prob;
mod row_loss;
pub(crate) mod workspace;

use crate::cuda::memory::{Address, Matrix, MatrixMut};
use crate::cuda::raw::Targets;
use crate::cuda::raw::linear::{LinearGradientsAt, LinearInputs};
use crate::cuda::token_log_prob::targets;
use crate::cuda::{Cuda, raw};
use crate::data::logits::check_vocab;
use crate::data::targets::TokenId;
use crate::element::Element;
use crate::error::{Result, check_length};
use cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop};

/// The last layer of a language model, on the device: weight `[V, H]`, row stride ≥ H, and bias `[V]` or none.
pub struct Head<'a, T> {
    pub(super) weight: Matrix<'a, T>,
    pub(super) bias: Option<CudaView<'a, T>>,
}

impl<'a, T: Element> Head<'a, T> {
    /// A head without bias.
    ///
    /// # Errors
    /// As [`crate::Head::new`].
    pub fn new(weight: Matrix<'a, T>) -> Result<Self> {
        check_vocab(weight.rows())?;
        Ok(Self { weight, bias: None })
    }

    /// With a bias `[V]`.
    ///
    /// # Errors
    /// As [`crate::Head::with_bias`].
    pub fn with_bias(self, bias: CudaView<'a, T>) -> Result<Self> {
        check_length("bias", bias.len(), self.vocab())?;
        Ok(Self { bias: Some(bias), ..self })
    }

    /// V.
    pub fn vocab(&self) -> usize {
        self.weight.rows()
    }
}

/// Hidden states `[N, H]`, and how many of their rows are scored at most. Made from a [`Matrix`] by `into()`.
///
/// Masked rows are left out of the matrix products. Which they are is known on the device alone, and nothing waits for
/// it, but a product's size is the host's to say. A trainer has mostly made the targets on the host and knows how many it
/// scores: with that number products, time and memory are of the scored rows alone. Without it they are those of all N
/// rows, zeros in place of the masked.
pub struct Hidden<'m, 'a, T> {
    pub(super) states: &'m Matrix<'a, T>,
    pub(super) scored_rows: Option<usize>,
}

impl<'m, 'a, T> From<&'m Matrix<'a, T>> for Hidden<'m, 'a, T> {
    fn from(states: &'m Matrix<'a, T>) -> Self {
        Self { states, scored_rows: None }
    }
}

impl<'m, 'a, T> Hidden<'m, 'a, T> {
    /// Hidden states.
    pub fn new(states: &'m Matrix<'a, T>) -> Self {
        states.into()
    }

    /// At most this many rows have a target that is not negative. Should there be more, the rows behind the first
    /// `scored_rows` of them get NaN for their log-prob and their gradient, and are counted in
    /// [`Status::unplaced_rows`](super::Status::unplaced_rows).
    #[must_use]
    pub fn with_scored_rows(self, scored_rows: usize) -> Self {
        Self { scored_rows: Some(scored_rows), ..self }
    }
}

/// Where the backward pass writes on the device. What is left out is frozen, and costs nothing.
///
/// G, the type of the gradients of weight and bias, is f32 or the head's.
pub struct LinearGradients<'a, T, G> {
    pub(super) hidden: Option<MatrixMut<'a, T>>,
    pub(super) weight: Option<MatrixMut<'a, G>>,
    pub(super) bias: Option<CudaViewMut<'a, G>>,
    pub(super) accumulate: bool,
}

impl<'a, T: Element, G: Element> LinearGradients<'a, T, G> {
    /// As [`crate::LinearGradients::new`].
    pub fn new(hidden: Option<MatrixMut<'a, T>>, weight: Option<MatrixMut<'a, G>>) -> Self {
        Self { hidden, weight, bias: None, accumulate: false }
    }

    /// As [`crate::LinearGradients::with_bias`].
    #[must_use]
    pub fn with_bias(self, bias: CudaViewMut<'a, G>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// As [`crate::LinearGradients::accumulating`].
    #[must_use]
    pub fn accumulating(self) -> Self {
        Self { accumulate: true, ..self }
    }
}

/// Where [`Cuda::linear_row_loss`] writes, beside the gradients: one entry per row, N of each.
pub struct RowLosses<'a> {
    /// As [`crate::RowLosses::log_probs`].
    pub log_probs: CudaViewMut<'a, f32>,
    /// As [`crate::RowLosses::losses`].
    pub losses: CudaViewMut<'a, f32>,
}

/// What keeps views ordered in the stream until the launches are.
pub(super) type Held<'a> = Vec<SyncOnDrop<'a>>;

/// The operands as addresses.
pub(super) fn inputs<'v, T: Element, I: TokenId>(
    cuda: &'v Cuda,
    hidden: &'v Hidden<'_, '_, T>,
    head: &'v Head<'_, T>,
    ids: &'v CudaView<'_, I>,
) -> Result<(LinearInputs, Held<'v>)> {
    cuda.check_view("targets", ids, hidden.states.rows())?;
    check_inputs(cuda, hidden, head)?;
    let (address, read) = ids.device_ptr(&cuda.stream);
    let (inputs, mut held) = inputs_with(cuda, hidden, head, targets::<I>(address))?;
    held.push(read);
    Ok((inputs, held))
}

/// Checks what the operands have in common, and that they lie in the backend's context.
fn check_inputs<T: Element>(cuda: &Cuda, hidden: &Hidden<'_, '_, T>, head: &Head<'_, T>) -> Result<()> {
    check_length("hidden size", hidden.states.columns(), head.weight.columns())?;
    cuda.check_context("hidden states", &hidden.states.data)?;
    cuda.check_context("weight", &head.weight.data)?;
    head.bias.as_ref().map_or(Ok(()), |bias| cuda.check_context("bias", bias))
}

/// [`inputs`] with ids that are an address already.
pub(super) fn inputs_with<'v, T: Element>(
    cuda: &'v Cuda,
    hidden: &'v Hidden<'_, '_, T>,
    head: &'v Head<'_, T>,
    targets: Targets,
) -> Result<(LinearInputs, Held<'v>)> {
    check_inputs(cuda, hidden, head)?;
    let stream = &cuda.stream;
    let (states, read_states) = hidden.states.data.device_ptr(stream);
    let (weight, read_weight) = head.weight.data.device_ptr(stream);
    let mut held = vec![read_states, read_weight];
    let mut bias = 0;
    if let Some(view) = &head.bias {
        let (address, read) = view.device_ptr(stream);
        bias = address;
        held.push(read);
    }
    let inputs = LinearInputs {
        hidden: raw::at::<T>(states, hidden.states.shape),
        weight: raw::at::<T>(weight, head.weight.shape),
        bias,
        targets,
        scored_rows: hidden.scored_rows,
    };
    Ok((inputs, held))
}

impl<T: Element, G: Element> LinearGradients<'_, T, G> {
    /// Checks that the buffers lie in the backend's context, and the length of the bias's.
    pub(super) fn check(&self, cuda: &Cuda, vocab: usize) -> Result<()> {
        let hidden = self.hidden.as_ref().map(|gradient| cuda.check_context("hidden gradient", &gradient.data));
        let weight = self.weight.as_ref().map(|gradient| cuda.check_context("weight gradient", &gradient.data));
        let bias = self.bias.as_ref().map(|gradient| cuda.check_view("bias gradient", gradient, vocab));
        [hidden, weight, bias].into_iter().flatten().collect()
    }

    /// The buffers as addresses.
    pub(super) fn addresses<'v>(&'v mut self, cuda: &'v Cuda, vocab: usize) -> Result<(LinearGradientsAt, Held<'v>)> {
        self.check(cuda, vocab)?;
        let (stream, mut held) = (&cuda.stream, Vec::new());
        let mut hidden = None;
        if let Some(MatrixMut { data, shape }) = &mut self.hidden {
            let (address, write) = data.device_ptr_mut(stream);
            hidden = Some(raw::at::<T>(address, *shape));
            held.push(write);
        }
        let mut weight = None;
        if let Some(MatrixMut { data, shape }) = &mut self.weight {
            let (address, write) = data.device_ptr_mut(stream);
            weight = Some(raw::at::<G>(address, *shape));
            held.push(write);
        }
        let mut bias: Address = 0;
        if let Some(view) = &mut self.bias {
            let (address, write) = view.device_ptr_mut(stream);
            bias = address;
            held.push(write);
        }
        let bias_dtype = <G as Element>::DTYPE;
        Ok((LinearGradientsAt { hidden, weight, bias, bias_dtype, accumulate: self.accumulate }, held))
    }
}
