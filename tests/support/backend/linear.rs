//! The linear stage of a backend over host memory.

use crate::backend::calls::{BackwardInputs, ForwardBuffers, Ids, Upstream, download, upload};
use crate::backend::{Forward, TestBackend};
use crate::linear::{Case, Gradients, Wanted};
use exo_kernels::backend::{
    Head, Hidden, LinearGradients, LinearOutputs, Matrix, MatrixMut, RowLosses, SavedLinear, Targets, kept_logit_words,
};
use exo_kernels::{Element, LinearKept, LogitOptions, Result, RowLoss};
use std::sync::RwLock;

/// What a call wrote, and what was found wrong: by the call itself, or by the device when its status was read. Outputs are
/// poisoned with `f32::MAX` before, gradients as [`Wanted`] says.
#[derive(Debug)]
pub struct Outcome<T, G> {
    pub log_probs: Vec<f32>,
    /// Of a row loss.
    pub losses: Vec<f32>,
    pub gradients: Gradients<T, G>,
    pub found: Result<()>,
}

/// A case in the backend's memory.
pub struct Placed<B: TestBackend, T: Element, W: Element> {
    backend: B,
    rows: usize,
    hidden_size: usize,
    vocab: usize,
    hidden: B::Buffer<T>,
    weight: B::Buffer<W>,
    bias: Option<B::Buffer<W>>,
    ids: Ids<B>,
    /// What is said of the number of scored rows.
    pub scored_rows: Option<usize>,
    /// What forward passes keep, and backward passes use.
    pub kept: LinearKept,
    products: RwLock<(B::Buffer<f32>, B::Buffer<u32>)>,
}

impl<B: TestBackend, T: Element, W: Element> Placed<B, T, W> {
    pub fn new(backend: &B, case: &Case<T, W>) -> Self {
        Self {
            backend: backend.clone(),
            rows: case.rows,
            hidden_size: case.hidden_size,
            vocab: case.vocab,
            hidden: upload(backend, &case.hidden),
            weight: upload(backend, &case.weight),
            bias: case.bias.as_ref().map(|bias| upload(backend, bias)),
            ids: Ids::new(backend, &case.targets),
            scored_rows: None,
            kept: LinearKept::Nothing,
            products: RwLock::default(),
        }
    }

    /// Calls with the operands.
    pub fn with<R>(&self, call: impl FnOnce(Hidden<'_, '_, T, B::Memory>, &Head<'_, W, B::Memory>) -> R) -> R {
        let (backend, size) = (&self.backend, self.hidden_size);
        let hidden = Matrix::new(backend.view(&self.hidden, self.rows * size), size).expect("rows");
        let weight = Matrix::new(backend.view(&self.weight, self.vocab * size), size).expect("rows");
        let head = Head::new(weight).expect("a vocabulary");
        let head = match &self.bias {
            Some(bias) => head.with_bias(backend.view(bias, self.vocab)).expect("a bias"),
            None => head,
        };
        let hidden = Hidden::new(&hidden);
        call(self.scored_rows.map_or(hidden, |rows| hidden.with_scored_rows(rows)), &head)
    }

    /// Numbers and words that are kept.
    fn kept_lengths(&self) -> (usize, usize) {
        let rows = self.scored_rows.map_or(self.rows, |rows| rows.min(self.rows));
        (rows * self.hidden_size, kept_logit_words(W::DTYPE, rows, self.vocab))
    }

    /// Unit gradients of the scored rows, as a forward pass has kept them.
    pub fn units(&self) -> Vec<f32> {
        download(&self.backend, &self.products.read().expect("no call has failed").0, self.kept_lengths().0)
    }

    /// Backward passes use these unit gradients from now on.
    pub fn use_units(&mut self, units: &[f32]) {
        self.kept = LinearKept::UnitGradients;
        self.products = RwLock::new((upload(&self.backend, units), B::Buffer::default()));
    }

    /// The target ids.
    pub fn targets(&self) -> Targets<'_, B::Memory> {
        self.ids.view(&self.backend)
    }

    /// What was written, and what the call itself found.
    pub fn try_forward(&self, options: &LogitOptions, entropies: bool) -> (Forward, Result<()>) {
        let backend = &self.backend;
        let mut outputs = ForwardBuffers::new(backend, self.rows);
        let (units, words) = self.kept_lengths();
        let mut products = (B::Buffer::default(), B::Buffer::default());
        if self.kept > LinearKept::Nothing {
            products.0 = upload(backend, &vec![f32::MAX; units]);
        }
        if self.kept == LinearKept::LogitGradients {
            products.1 = upload(backend, &vec![0x7f7f_7f7f; words]);
        }
        let result = self.with(|hidden, head| {
            let outputs = LinearOutputs {
                rows: outputs.views(backend, self.rows, entropies),
                unit_gradients: (self.kept > LinearKept::Nothing).then(|| backend.view_mut(&mut products.0, units)),
                logit_gradients: (self.kept == LinearKept::LogitGradients)
                    .then(|| backend.view_mut(&mut products.1, words)),
            };
            backend.linear_token_log_probs(hidden, head, self.targets(), options, outputs)
        });
        if self.kept > LinearKept::Nothing {
            *self.products.write().expect("no call has failed") = products;
        }
        (outputs.download(backend, self.rows, entropies), result)
    }

    pub fn forward(&self, options: &LogitOptions, entropies: bool) -> Forward {
        let (forward, result) = self.try_forward(options, entropies);
        result.expect("forward");
        forward
    }

    /// What was written, and what the call itself found.
    pub fn try_backward<G: Element>(
        &self,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        wanted: Wanted,
    ) -> (Gradients<T, G>, Result<()>) {
        let backend = &self.backend;
        let inputs = BackwardInputs::new(backend, forward, upstream);
        let mut buffers = Buffers::<B, T, G>::new(self, wanted);
        let (units, words) = self.kept_lengths();
        let products = self.products.read().expect("no call has failed");
        let result = self.with(|hidden, head| {
            let (rows, upstream) = (inputs.saved(backend), inputs.upstream(backend));
            let saved = SavedLinear {
                rows,
                unit_gradients: (self.kept > LinearKept::Nothing).then(|| backend.view(&products.0, units)),
                logit_gradients: (self.kept == LinearKept::LogitGradients).then(|| backend.view(&products.1, words)),
            };
            let views = buffers.views(backend, wanted);
            backend.linear_token_log_probs_backward(hidden, head, self.targets(), options, saved, &upstream, views)
        });
        (buffers.download(backend), result)
    }

    pub fn backward<G: Element>(
        &self,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        wanted: Wanted,
    ) -> Gradients<T, G> {
        let (gradients, result) = self.try_backward(options, forward, upstream, wanted);
        result.expect("backward");
        gradients
    }

    /// A row loss, forward and backward in one: log-probs, losses, gradients, and what the call itself found.
    #[allow(clippy::type_complexity)]
    pub fn try_row_loss<G: Element>(
        &self,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> ((Vec<f32>, Vec<f32>, Gradients<T, G>), Result<()>) {
        let (backend, rows) = (&self.backend, self.rows);
        let (mut log_probs, mut losses) =
            (upload(backend, &vec![f32::MAX; rows]), upload(backend, &vec![f32::MAX; rows]));
        let mut buffers = Buffers::<B, T, G>::new(self, wanted);
        let numbers = match loss {
            RowLoss::Weighted { weights } => vec![weights],
            RowLoss::ClippedRatio { weights, advantages, old_log_probs, .. } => {
                vec![weights, advantages, old_log_probs]
            }
        };
        let placed: Vec<_> = numbers.iter().map(|numbers| (upload(backend, numbers), numbers.len())).collect();
        let view = |index: usize| backend.view(&placed[index].0, placed[index].1);
        let loss = match loss {
            RowLoss::Weighted { .. } => RowLoss::Weighted { weights: view(0) },
            RowLoss::ClippedRatio { low, high, log_ratio_limit, .. } => RowLoss::ClippedRatio {
                weights: view(0),
                advantages: view(1),
                old_log_probs: view(2),
                low,
                high,
                log_ratio_limit,
            },
        };
        let result = self.with(|hidden, head| {
            let outputs = RowLosses {
                log_probs: backend.view_mut(&mut log_probs, rows),
                losses: backend.view_mut(&mut losses, rows),
            };
            let views = buffers.views(backend, wanted);
            backend.linear_row_loss(hidden, head, self.targets(), options, &loss, outputs, views)
        });
        let of_rows = (download(backend, &log_probs, rows), download(backend, &losses, rows));
        ((of_rows.0, of_rows.1, buffers.download(backend)), result)
    }

    pub fn row_loss<G: Element>(
        &self,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>, Gradients<T, G>) {
        let (outputs, result) = self.try_row_loss(options, loss, wanted);
        result.expect("a pass");
        outputs
    }
}

/// Buffers for gradients.
pub(crate) struct Buffers<B: TestBackend, T: Element, G: Element> {
    hidden: B::Buffer<T>,
    weight: B::Buffer<G>,
    bias: B::Buffer<G>,
    lengths: (usize, usize, usize),
    columns: usize,
}

impl<B: TestBackend, T: Element, G: Element> Buffers<B, T, G> {
    pub(crate) fn new<W: Element>(case: &Placed<B, T, W>, wanted: Wanted) -> Self {
        // Poison: what is not written shows.
        let before = wanted.accumulate.map_or(G::NAN, G::from_f32);
        let lengths = (case.rows * case.hidden_size, case.vocab * case.hidden_size, case.vocab);
        Self {
            hidden: upload(&case.backend, &vec![T::NAN; lengths.0]),
            weight: upload(&case.backend, &vec![before; lengths.1]),
            bias: upload(&case.backend, &vec![before; lengths.2]),
            lengths,
            columns: case.hidden_size,
        }
    }

    pub(crate) fn views(&mut self, backend: &B, wanted: Wanted) -> LinearGradients<'_, T, G, B::Memory> {
        let (lengths, columns) = (self.lengths, self.columns);
        let hidden = backend.view_mut(&mut self.hidden, lengths.0);
        let weight = backend.view_mut(&mut self.weight, lengths.1);
        let gradients = LinearGradients::new(
            wanted.hidden.then(|| MatrixMut::new(hidden, columns).expect("rows")),
            wanted.weight.then(|| MatrixMut::new(weight, columns).expect("rows")),
        );
        let bias = backend.view_mut(&mut self.bias, lengths.2);
        let gradients = if wanted.bias { gradients.with_bias(bias) } else { gradients };
        if wanted.accumulate.is_some() { gradients.accumulating() } else { gradients }
    }

    pub(crate) fn download(self, backend: &B) -> Gradients<T, G> {
        Gradients {
            hidden: download(backend, &self.hidden, self.lengths.0),
            weight: download(backend, &self.weight, self.lengths.1),
            bias: download(backend, &self.bias, self.lengths.2),
        }
    }
}
