//! The CPU as a [`Backend`]: which function does which verb.

use crate::backend::{Backend, Host, Number};
use crate::cpu::{Cpu, PartialRow, linear, log_ratio, objective, partial_row, token_log_prob, token_log_prob_backward};
use crate::data::batch::Batch;
use crate::data::host_memory::{host_memory, host_place};
use crate::element::Element;
use crate::error::Result;
use crate::host::{
    GatheredRows, Head, Hidden, LinearGradients, LinearOutputs, LinearParts, LogRatioOutputs, Matrix, MatrixMut,
    ObjectiveOutputs, Reference, Rewards, RowGradients, RowLogProbs, RowLosses, SavedLinear, SavedRows, Targets,
    TokenLogProbs, UnitSums,
};
use crate::objective::Objective;
use crate::options::{LogRatio, LogitOptions, Reduction};
use crate::ranks::on_host::host_ranked;
use crate::stage::linear::check_inputs;
use crate::stage::row_loss::RowLoss;

host_place!(Cpu);
host_ranked!(Cpu);

impl Backend for Cpu {
    host_memory!();

    type PartialRow = PartialRow;

    fn token_log_probs<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        token_log_prob::forward(*self, logits, targets.into(), options, outputs)
    }

    fn token_log_probs_backward<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        gradient: MatrixMut<'_, T>,
    ) -> Result<()> {
        token_log_prob_backward::backward(*self, logits, targets.into(), options, saved, upstream, gradient)
    }

    fn token_log_probs_backward_in_place<'i, T: Element>(
        &self,
        logits: MatrixMut<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
    ) -> Result<()> {
        token_log_prob_backward::backward_in_place(*self, logits, targets.into(), options, saved, upstream)
    }

    fn partial_rows<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        entropy: bool,
        partial_rows: &mut [PartialRow],
    ) -> Result<()> {
        partial_row::partial_rows(*self, logits, targets.into(), options, entropy, partial_rows)
    }

    fn merge_rows<'i>(
        &self,
        partial_rows: &&[PartialRow],
        ranks: usize,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        partial_row::merge_rows(*self, partial_rows, ranks, targets.into(), options, outputs)
    }

    fn log_ratios(
        &self,
        rows: &RowLogProbs<'_>,
        reference: &Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
        outputs: LogRatioOutputs<'_>,
    ) -> Result<()> {
        log_ratio::log_ratios(*self, rows, reference, batch, log_ratio, outputs)
    }

    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &&[f64],
        batch: &Batch,
        rewards: &Rewards<'_>,
        reduction: Reduction,
        outputs: ObjectiveOutputs<'_>,
    ) -> Result<()> {
        objective::objective(*self, objective, log_ratios, batch, rewards, reduction, outputs)
    }

    fn check_linear<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T>,
        head: &Head<'_, W>,
        targets: &Targets<'_>,
    ) -> Result<()> {
        check_inputs(self, hidden, head, *targets, head.vocab())
    }

    fn check_linear_shard<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T>,
        head: &Head<'_, W>,
        targets: &Targets<'_>,
        options: &LogitOptions,
    ) -> Result<()> {
        check_inputs(self, hidden, head, *targets, options.shard_of(head.vocab()).vocab())
    }

    fn linear_token_log_probs<'m, 'd: 'm, 'i, 'o, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: impl Into<LinearOutputs<'o>>,
    ) -> Result<()> {
        linear::log_prob::forward(*self, hidden.into(), head, targets.into(), options, outputs.into())
    }

    fn linear_token_log_probs_backward<'m, 'd: 'm, 'i, 's, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: impl Into<SavedLinear<'s>>,
        upstream: &RowGradients<'_>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let (hidden, targets, saved) = (hidden.into(), targets.into(), saved.into());
        linear::log_prob_backward::backward(*self, hidden, head, targets, options, &saved, upstream, gradients)
    }

    fn linear_partial_rows<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        entropy: bool,
        outputs: LinearParts<'_, PartialRow>,
    ) -> Result<()> {
        linear::shard::partial_rows(*self, hidden.into(), head, targets.into(), options, entropy, outputs)
    }

    fn linear_unit_gradients<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        gathered: &GatheredRows<'_, PartialRow>,
        unit_sums: UnitSums<'_, PartialRow>,
    ) -> Result<()> {
        linear::shard::unit_gradients(*self, hidden.into(), head, targets.into(), options, gathered, unit_sums)
    }

    fn linear_row_loss<'m, 'd: 'm, 'i, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        loss: &RowLoss<&[f32]>,
        outputs: RowLosses<'_>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let (hidden, targets) = (hidden.into(), targets.into());
        linear::row_loss::row_loss(*self, hidden, head, targets, options, *loss, outputs, gradients)
    }
}
