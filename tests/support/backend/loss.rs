//! A backend's [`PreferenceLoss`] over host memory.

use crate::backend::calls::{Ids, PlacedReference, download, place, place_mut, upload};
use crate::backend::linear::Buffers;
use crate::backend::{Placed, Rows, TestBackend};
use crate::linear::{Gradients, Wanted};
use exo_kernels::ranks::Ranks;
use exo_kernels::{Batch, Element, LossOptions, PreferenceLoss, Reference, Report, Result, Rewards, Shard, Step};

/// A loss, and the backend that brings its inputs to where they are read. Steps over logits are of moved inputs: every call
/// brings the same numbers again.
#[derive(Debug)]
pub struct HostLoss<B: TestBackend> {
    backend: B,
    loss: PreferenceLoss<B>,
}

impl<B: TestBackend> HostLoss<B> {
    pub fn new(backend: &B, options: impl Into<LossOptions>) -> Self {
        Self { backend: backend.clone(), loss: PreferenceLoss::new(backend.clone(), options) }
    }

    /// Divides it among ranks; this one has the columns of the shard.
    #[must_use]
    pub fn with_ranks(self, ranks: Ranks<B>, shard: Shard) -> Self {
        Self { loss: self.loss.with_ranks(ranks).with_shard(shard), ..self }
    }

    pub fn forward<T: Element>(
        &mut self,
        rows: &Rows<T>,
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
    ) -> Result<Step> {
        let backend = &self.backend;
        let (logits, ids) = (upload(backend, &rows.logits), Ids::new(backend, &rows.targets));
        let reference = PlacedReference::new(backend, &reference);
        let view = place(backend, &logits, rows, rows.rows_of_logits())?;
        let rewards: B::Rewards<'_> = rewards.into();
        let step = self.loss.forward(&view, ids.view(backend), batch, &reference.view(backend), rewards)?;
        Ok(step.with_moved_inputs())
    }

    /// Writes the gradient; a refused call leaves the buffer as it was.
    pub fn backward_into<T: Element>(&mut self, step: &Step, rows: &Rows<T>, gradient: &mut Rows<T>) -> Result<()> {
        let (backend, loss) = (&self.backend, &mut self.loss);
        let logits = upload(backend, &rows.logits);
        let view = place(backend, &logits, rows, rows.rows_of_logits())?;
        let mut written = upload(backend, &gradient.logits);
        let count = gradient.rows_of_logits();
        let result = place_mut(backend, &mut written, gradient, count, |gradient| loss.backward(step, &view, gradient));
        gradient.logits = download(backend, &written, gradient.logits.len());
        result
    }

    /// The gradient, in a buffer that held NaN before.
    pub fn backward<T: Element>(&mut self, step: &Step, rows: &Rows<T>) -> Result<Vec<T>> {
        let mut gradient = Rows { logits: vec![T::NAN; rows.logits.len()], ..rows.clone() };
        self.backward_into(step, rows, &mut gradient)?;
        Ok(gradient.logits)
    }

    /// Overwrites the logits; a refused call leaves them as they were.
    pub fn backward_in_place<T: Element>(&mut self, step: Step, rows: &mut Rows<T>) -> Result<()> {
        let (backend, loss) = (&self.backend, &mut self.loss);
        let mut logits = upload(backend, &rows.logits);
        let count = rows.rows_of_logits();
        let result = place_mut(backend, &mut logits, rows, count, |logits| loss.backward_in_place(step, logits));
        rows.logits = download(backend, &logits, rows.logits.len());
        result
    }

    /// The hidden states of one case, with its targets, under the head of another. They stay where they are, and the step is
    /// of these.
    pub fn forward_linear<T: Element, W: Element>(
        &mut self,
        of_hidden: &Placed<B, T, W>,
        of_head: &Placed<B, T, W>,
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
    ) -> Result<Step> {
        let (backend, loss) = (&self.backend, &mut self.loss);
        let reference = PlacedReference::new(backend, &reference);
        let (reference, rewards): (_, B::Rewards<'_>) = (reference.view(backend), rewards.into());
        of_hidden.with(|hidden, _| {
            of_head.with(|_, head| loss.forward_linear(hidden, head, of_hidden.targets(), batch, &reference, rewards))
        })
    }

    /// The gradients' buffers after the call, and what it found.
    pub fn backward_linear<T: Element, W: Element, G: Element>(
        &mut self,
        step: &Step,
        of_hidden: &Placed<B, T, W>,
        of_head: &Placed<B, T, W>,
        wanted: Wanted,
    ) -> (Gradients<T, G>, Result<()>) {
        let (backend, loss) = (&self.backend, &mut self.loss);
        let mut buffers = Buffers::<B, T, G>::new(of_hidden, wanted);
        let result = of_hidden.with(|hidden, _| {
            of_head.with(|_, head| loss.backward_linear(step, hidden, head, buffers.views(backend, wanted)))
        });
        (buffers.download(backend), result)
    }

    pub fn set_loss_scale(&mut self, loss_scale: f64) {
        self.loss.set_loss_scale(loss_scale);
    }

    pub fn report(&self) -> Result<Report> {
        self.loss.report().cloned()
    }

    pub fn unchecked_report(&self) -> Result<Report> {
        self.loss.unchecked_report().cloned()
    }
}
