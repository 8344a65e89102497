//! The stages of a loss in order, over its workspace.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::data::targets::Targets;
use crate::error::Result;
use crate::kept_rows::KeptProducts;
use crate::options::{LogRatio, LossOptions};
use crate::ordered;
use crate::ranks::mesh::{Layout, Ranks};
use crate::ranks::sequences::Exchange;
use crate::stage::log_ratio::{LogRatioOutputs, RowLogProbs};
use crate::stage::objective::{ObjectiveOutputs, RowWeights};
use crate::stage::sequence_part::SequencesMut;
use crate::stage::token_log_prob::TokenLogProbs;
use crate::workspace::Workspace;

/// What the stages of a forward pass have in common. Everything that they are given has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Stages<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) options: &'a LossOptions,
    pub(crate) batch: &'a Batch,
    pub(crate) ranks: &'a Ranks<B>,
    pub(crate) layout: &'a Layout,
}

/// What the first stage may use besides its outputs.
pub(crate) struct FirstStage<'w, B: Backend> {
    pub(crate) products: &'w mut KeptProducts<B>,
    /// `[P, N, k]`
    pub(crate) partial_rows: &'w mut B::Buffer<B::PartialRow>,
    /// `[M]`
    pub(crate) rests: &'w mut B::Buffer<B::PartialRow>,
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
            FirstStage<'w, B>,
        ) -> Result<()>,
    ) -> Result<()> {
        let Self { backend, options, batch, ranks, layout } = self;
        let divided = ranks.divide_sequences();
        let all = if divided { &layout.batch } else { batch };
        let (rows, sequences, entropy) = (batch.rows(), batch.sequences(), options.entropy);
        let (all_sequences, groups) = (all.sequences(), all.groups());
        let exchange = Exchange { backend, ranks, layout, sequences, entropy, log_ratio: options.log_ratio };
        backend.place_batch(batch, &mut work.batch)?;
        work.reserve(backend, rows, all_sequences, groups, entropy)?;
        work.ranks.reserve(&exchange)?;
        work.kept.first_sequence = if divided { layout.first_sequence } else { 0 };
        let (targets, _targets) = ordered::targets(backend, targets);
        let step = &mut work.step;
        let rewards = backend.begin_step(rewards, &mut step.rewards)?;
        token_log_probs(
            targets.clone(),
            TokenLogProbs {
                log_probs: backend.view_mut(&mut work.log_probs, rows),
                states: backend.view_mut(&mut work.kept.states, rows),
                entropies: entropy.then(|| backend.view_mut(&mut work.entropies, rows)),
            },
            FirstStage {
                products: &mut work.kept.products,
                partial_rows: &mut work.ranks.partial_rows,
                rests: &mut work.ranks.rests,
            },
        )?;

        // A sequence whose rows are divided is summed here, and becomes a mean less its reference where the sums come together.
        let (log_ratio, own_reference, whole_reference) = match (reference, &ranks.rows) {
            (Reference::PerSequence(whole), Some(_)) => (LogRatio::Sum, &Reference::None, Some(whole.clone())),
            (_, Some(_)) => (LogRatio::Sum, reference, None),
            (_, None) => (options.log_ratio, reference, None),
        };
        let own = &mut work.ranks.own;
        let (log_ratios, log_prob_sums, entropy_sums, scored_rows) = if divided {
            (&mut own.log_ratios, &mut own.log_prob_sums, &mut own.entropy_sums, &mut own.scored_rows)
        } else {
            (&mut step.log_ratios, &mut work.log_prob_sums, &mut step.entropy_sums, &mut step.scored_rows)
        };
        backend.log_ratios(
            &RowLogProbs {
                log_probs: backend.view(&work.log_probs, rows),
                entropies: entropy.then(|| backend.view(&work.entropies, rows)),
                targets,
            },
            own_reference,
            &work.batch,
            log_ratio,
            LogRatioOutputs {
                log_ratios: backend.view_mut(log_ratios, sequences),
                log_prob_sums: backend.view_mut(log_prob_sums, sequences),
                entropy_sums: entropy.then(|| backend.view_mut(entropy_sums, sequences)),
                scored_rows: backend.view_mut(scored_rows, sequences),
                row_sequences: backend.view_mut(&mut work.kept.row_sequences, rows),
                row_targets: backend.view_mut(&mut work.kept.targets, rows),
            },
        )?;
        if divided {
            let of_rows = (backend.view(&work.log_probs, rows), Targets::U32(backend.view(&work.kept.targets, rows)));
            let of_all = SequencesMut {
                log_ratios: backend.view_mut(&mut step.log_ratios, all_sequences),
                log_prob_sums: backend.view_mut(&mut work.log_prob_sums, all_sequences),
                entropy_sums: entropy.then(|| backend.view_mut(&mut step.entropy_sums, all_sequences)),
                scored_rows: backend.view_mut(&mut step.scored_rows, all_sequences),
            };
            exchange.run(&mut work.ranks, of_rows, whole_reference, &rewards, of_all)?;
        }
        let rewards = work.ranks.rewards(&exchange, rewards);
        backend.objective(
            &options.objective,
            &backend.view(&step.log_ratios, all_sequences),
            if divided { &work.ranks.batch } else { &work.batch },
            &rewards,
            options.reduction,
            ObjectiveOutputs {
                group_losses: backend.view_mut(&mut step.group_losses, groups),
                coefficients: backend.view_mut(&mut work.coefficients, all_sequences),
                statistics: backend.view_mut(&mut step.statistics, groups),
                row_weights: Some(RowWeights {
                    log_ratio: options.log_ratio,
                    scored_rows: backend.view(&step.scored_rows, all_sequences),
                    weights: backend.view_mut(&mut work.kept.sequence_weights, all_sequences),
                }),
            },
        )
    }
}
