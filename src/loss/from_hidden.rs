//! Forward and backward from hidden states and a head, or a rank's part of one.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::data::head::{Head, Hidden, LinearGradients};
use crate::data::reference::Reference;
use crate::data::targets::Targets;
use crate::element::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::loss::{PreferenceLoss, StepInputs};
use crate::options::LinearKept;
use crate::ordered;
use crate::ranks::agreement::{Agreement, Call, Divided};
use crate::ranks::hidden_rows::exchange_hidden_rows;
use crate::stage::linear::{LinearOutputs, SavedLinear, check_gradients, check_places};
use crate::stages::Stages;
use crate::step::{Inputs, Step};

impl<B: Backend> PreferenceLoss<B> {
    /// As [`forward`](Self::forward), with hidden states `[N, H]` and a head in place of logits; see
    /// [`Backend::linear_token_log_probs`].
    ///
    /// Over [ranks](Self::with_ranks) that have parts of the vocabulary the head is this rank's rows of it, those of the
    /// [shard](Self::with_shard), and [`LinearKept::LogitGradients`] keeps no more than [`LinearKept::UnitGradients`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Length`] for a hidden state that is not as long as a row of the weight;
    /// [`Error::GradientType`], [`Error::NoCublas`]; [`Error::ScoredRows`] if more rows are scored than was said, which on a
    /// device comes out of the report.
    pub fn forward_linear<'m, 'd: 'm, 'i, 'r, T: Element, W: Element>(
        &mut self,
        hidden: impl Into<Hidden<'m, 'd, T, B::Memory>>,
        head: &Head<'_, W, B::Memory>,
        targets: impl Into<Targets<'i, B::Memory>>,
        batch: &Batch,
        reference: &Reference<'_, B::Memory>,
        rewards: impl Into<B::Rewards<'r>>,
    ) -> Result<Step> {
        let _entered = self.backend.enter()?;
        let (hidden, targets, rewards) = (hidden.into(), targets.into(), rewards.into());
        let (rows, columns) = (hidden.states.rows(), head.vocab());
        let checked = if self.ranks.vocab.is_some() {
            self.backend.check_linear_shard(&hidden, head, &targets, &self.options.logits)
        } else {
            self.backend.check_linear(&hidden, head, &targets)
        };
        let inputs = &StepInputs { targets: &targets, batch, reference, rewards: &rewards };
        let of_hidden = (hidden.states.columns(), hidden.most_scored_rows());
        self.begin(Call::FromHidden, (rows, columns), of_hidden, checked, inputs)?;
        let Self { backend, options, ranks, layout, workspace, .. } = self;
        let (backend, options, ranks, layout) = (&*backend, &*options, &*ranks, &*layout);
        let (states, _states) = ordered::matrix(backend, hidden.states);
        let hidden = Hidden { states: &states, scored_rows: hidden.scored_rows };
        let (head, _head) = ordered::head(backend, head);
        let stages = Stages { backend, options, batch, ranks, layout };
        stages
            .run(workspace, &targets, reference, &rewards, |targets, rows, first| {
                let kept = match ranks.vocab {
                    Some(_) => options.linear_kept.min(LinearKept::UnitGradients),
                    None => options.linear_kept,
                };
                first.products.reserve::<T, W>(backend, kept, &hidden, head.vocab())?;
                if let Some(line) = &ranks.vocab {
                    let most = layout.columns;
                    return exchange_hidden_rows(
                        backend,
                        line.as_ref(),
                        most,
                        hidden,
                        &head,
                        &targets,
                        &options.logits,
                        rows,
                        first,
                    );
                }
                let (unit_gradients, logit_gradients) = first.products.views_mut(backend);
                let outputs = LinearOutputs { rows, unit_gradients, logit_gradients };
                backend.linear_token_log_probs(hidden, &head, targets, &options.logits, outputs)
            })
            .inspect_err(|_| ranks.abort())?;
        let step = Step::new(Inputs::of_hidden(&hidden, &head));
        self.last_step = Some(step.number());
        Ok(step)
    }

    /// Writes loss scale × the gradients of the loss by the hidden states, the weight and the bias, of those that
    /// `gradients` has; see [`Backend::linear_token_log_probs_backward`]. `step` is what
    /// [`forward_linear`](Self::forward_linear) gave for these hidden states, with the same number of scored rows, and this
    /// head.
    ///
    /// Over [ranks](Self::with_ranks) that have parts of the vocabulary the gradients of weight and bias are those of this rank's part,
    /// and that of the hidden states is whole on every rank: all of them ask for it or none, and the first time they do, the shares that they
    /// kept are added up in f32, [`Communicator::sum`](crate::ranks::Communicator::sum), while weight and bias are made.
    ///
    /// # Errors
    /// [`Error::OtherStep`] if the last forward pass of this loss was another; [`Error::Length`] for what does not fit;
    /// [`Error::OtherInputs`] if hidden states or head are others; [`Error::GradientType`]; [`Error::Cuda`]. Over ranks
    /// [`Error::Rank`], [`Error::RanksDisagree`] and, where the forward pass kept nothing or the number of scored rows is another,
    /// [`Error::UnitGradientsNotKept`].
    pub fn backward_linear<'m, 'd: 'm, T: Element, W: Element, G: Element>(
        &mut self,
        step: &Step,
        hidden: impl Into<Hidden<'m, 'd, T, B::Memory>>,
        head: &Head<'_, W, B::Memory>,
        gradients: LinearGradients<'_, T, G, B::Memory>,
    ) -> Result<()> {
        let _entered = self.backend.enter()?;
        let hidden = hidden.into();
        let Self { backend, ranks, options, workspace, last_step, loss_scale, .. } = self;
        let (backend, options) = (&*backend, &options.logits);
        let placed = step.check_number(*last_step).and_then(|()| check_places(backend, &hidden, head));
        let line = ranks.vocab.as_deref().filter(|_| gradients.hidden.is_some());
        if line.is_none() {
            placed.clone()?;
        }
        let (states, _states) = ordered::matrix(backend, hidden.states);
        let hidden = Hidden { states: &states, scored_rows: hidden.scored_rows };
        let (head, _head) = ordered::head(backend, head);
        let checked = placed.and_then(|()| step.check(*last_step, &Inputs::of_hidden(&hidden, &head)));
        let (rows, sequences) = (hidden.states.rows(), workspace.batch.as_ref().sequences());
        let kept = &mut workspace.kept;
        let mut gradients = gradients;
        if let Some(line) = line {
            let checked = checked.and_then(|()| check_gradients(backend, &gradients, &hidden, &head));
            let checked = checked.and_then(|()| kept.products.check_units(&hidden));
            // Whether entropies are computed is no matter of it: said to be not.
            let agreement = Agreement::new(Call::HiddenGradient, rows, options, head.vocab(), false);
            agreement.reach(Divided::Vocab, line, checked)?;
            if kept.products.are_shares() {
                // Weight and bias need none of them: they are made while the shares are added up.
                let of_head = LinearGradients {
                    hidden: None,
                    weight: gradients.weight.take(),
                    bias: gradients.bias.take(),
                    accumulate: gradients.accumulate,
                };
                let mut products = std::mem::take(&mut kept.products);
                let done = products.sum(backend, line, || {
                    let (targets, saved, upstream) = kept.for_backward(backend, rows, sequences, *loss_scale);
                    let saved = SavedLinear::from(saved);
                    backend.linear_token_log_probs_backward(hidden, &head, targets, options, saved, &upstream, of_head)
                });
                kept.products = products;
                done.inspect_err(|_| line.abort())?;
            }
        } else {
            checked?;
        }
        let (targets, saved, upstream) = kept.for_backward(backend, rows, sequences, *loss_scale);
        let saved = kept.products.with_rows::<T, W>(backend, saved, &hidden, head.vocab());
        backend.linear_token_log_probs_backward(hidden, &head, targets, options, saved, &upstream, gradients)
    }
}
