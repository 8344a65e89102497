//! The stages of a loss in order, over its workspace.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::data::targets::Targets;
use crate::error::Result;
use crate::kept_rows::KeptProducts;
use crate::options::LossOptions;
use crate::ordered;
use crate::stage::log_ratio::{LogRatioOutputs, RowLogProbs};
use crate::stage::objective::{ObjectiveOutputs, RowWeights};
use crate::stage::token_log_prob::TokenLogProbs;
use crate::workspace::Workspace;

/// What the stages of a forward pass have in common. Everything that they are given has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Stages<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) options: &'a LossOptions,
    pub(crate) batch: &'a Batch,
}

impl<B: Backend> Stages<'_, B> {
    /// Runs them; `token_log_probs` is the first.
    pub(crate) fn run(
        self,
        work: &mut Workspace<B>,
        targets: &Targets<'_, B::Memory>,
        reference: &Reference<'_, B::Memory>,
        rewards: &B::Rewards<'_>,
        token_log_probs: impl for<'t, 'w> FnOnce(
            Targets<'t, B::Memory>,
            TokenLogProbs<'w, B::Memory>,
            &'w mut KeptProducts<B>,
        ) -> Result<()>,
    ) -> Result<()> {
        let Self { backend, options, batch } = self;
        let (rows, sequences, groups) = (batch.rows(), batch.sequences(), batch.groups());
        backend.place_batch(batch, &mut work.batch)?;
        work.reserve(backend, rows, sequences, groups, options.entropy)?;
        let (targets, _targets) = ordered::targets(backend, targets);
        let step = &mut work.step;
        let rewards = backend.begin_step(rewards, &mut step.rewards)?;
        token_log_probs(
            targets.clone(),
            TokenLogProbs {
                log_probs: backend.view_mut(&mut work.log_probs, rows),
                states: backend.view_mut(&mut work.kept.states, rows),
                entropies: options.entropy.then(|| backend.view_mut(&mut work.entropies, rows)),
            },
            &mut work.kept.products,
        )?;
        backend.log_ratios(
            &RowLogProbs {
                log_probs: backend.view(&work.log_probs, rows),
                entropies: options.entropy.then(|| backend.view(&work.entropies, rows)),
                targets,
            },
            reference,
            &work.batch,
            options.log_ratio,
            LogRatioOutputs {
                log_ratios: backend.view_mut(&mut step.log_ratios, sequences),
                log_prob_sums: backend.view_mut(&mut work.log_prob_sums, sequences),
                entropy_sums: options.entropy.then(|| backend.view_mut(&mut step.entropy_sums, sequences)),
                scored_rows: backend.view_mut(&mut step.scored_rows, sequences),
                row_sequences: backend.view_mut(&mut work.kept.row_sequences, rows),
                row_targets: backend.view_mut(&mut work.kept.targets, rows),
            },
        )?;
        backend.objective(
            &options.objective,
            &backend.view(&step.log_ratios, sequences),
            &work.batch,
            &rewards,
            options.reduction,
            ObjectiveOutputs {
                group_losses: backend.view_mut(&mut step.group_losses, groups),
                coefficients: backend.view_mut(&mut work.coefficients, sequences),
                statistics: backend.view_mut(&mut step.statistics, groups),
                row_weights: Some(RowWeights {
                    log_ratio: options.log_ratio,
                    scored_rows: backend.view(&step.scored_rows, sequences),
                    weights: backend.view_mut(&mut work.kept.sequence_weights, sequences),
                }),
            },
        )
    }
}
