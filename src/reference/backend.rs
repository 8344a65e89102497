//! The specification as a [`Backend`]: every verb is the loops of this module's siblings over f64, rounded once when it is
//! written.

use crate::backend::{Backend, Host, Number};
use crate::data::batch::Batch;
use crate::data::host_memory::{host_memory, host_place};
use crate::data::targets::narrowed;
use crate::element::Element;
use crate::error::{Result, check_length};
use crate::host::{
    GatheredRows, Head, Hidden, LinearGradients, LinearOutputs, LinearParts, LogRatioOutputs, Matrix, MatrixMut,
    ObjectiveOutputs, Reference, Rewards, RowGradients, RowLogProbs, RowLosses, RowWeights, SavedLinear, SavedRows,
    Targets, TokenLogProbs, UnitSums,
};
use crate::objective::Objective;
use crate::options::{LogRatio, LogitOptions, Reduction};
use crate::ranks::on_host::host_ranked;
use crate::reference::linear_results::{write_gradients, write_unit_gradients};
use crate::reference::partial_row::PartialRow;
use crate::reference::row_loss::Clipping;
use crate::reference::token_log_prob::TokenLogProb;
use crate::reference::{
    linear_log_prob, linear_shard, log_ratio, objective, partial_row, row_loss, statistics, token_log_prob,
};
use crate::stage::linear::{check_gradients, check_inputs};
use crate::stage::log_ratio::{check_finite_reference, check_reference, check_rows};
use crate::stage::objective::check_rewards;
use crate::stage::partial_row::{per_row, per_row_of_ranks};
use crate::stage::row_loss::RowLoss;
use crate::stage::token_log_prob::{SoftmaxState, check_gradient, check_logits, check_saved};

/// The reference as a backend: f64, plain loops, one thread. Slow: for tests, and to see what a trainer should get.
///
/// It keeps the contracts of every backend but for two. It allocates in every call, as much as the logits take in f64. And
/// its objective is the textbook's form in f64, which loses digits next to the optimum, and where one sample has all the
/// weight, that the centred form of [`Cpu`](crate::Cpu) and CUDA keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReferenceBackend;

host_place!(ReferenceBackend);
host_ranked!(ReferenceBackend);

impl Backend for ReferenceBackend {
    host_memory!();

    type PartialRow = PartialRow;

    fn token_log_probs<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        mut outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        let targets = targets.into();
        check_logits(self, logits)?;
        options.check_whole(logits.columns())?;
        targets.check(logits.rows(), logits.columns())?;
        outputs.check(self, logits.rows())?;
        for row in 0..logits.rows() {
            let found = targets.column(row).map(|target| {
                let logits = widened(logits.row(row));
                (token_log_prob::forward_f64(&logits, target, options), state(&logits, options))
            });
            write_row(&mut outputs, row, found);
        }
        Ok(())
    }

    fn token_log_probs_backward<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        mut gradient: MatrixMut<'_, T>,
    ) -> Result<()> {
        let targets = targets.into();
        check_gradient(self, logits, &gradient)?;
        let shard = options.shard_of(logits.columns());
        targets.check(logits.rows(), shard.vocab())?;
        check_saved(self, saved, upstream, logits.rows())?;
        for row in 0..logits.rows() {
            let columns = widened(&logits.row(row)[..shard.columns(logits.columns())]);
            let mut of_logits = logit_gradient(&columns, &targets, row, options, saved, upstream);
            // Of padding.
            of_logits.resize(logits.columns(), 0.0);
            for (out, gradient) in gradient.row_mut(row).iter_mut().zip(of_logits) {
                *out = T::from_f32(gradient as f32);
            }
        }
        Ok(())
    }

    fn token_log_probs_backward_in_place<'i, T: Element>(
        &self,
        logits: MatrixMut<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
    ) -> Result<()> {
        let copy = logits.data.to_vec();
        let before = Matrix::strided(&copy, logits.rows(), logits.columns(), logits.row_stride())?;
        self.token_log_probs_backward(&before, targets, options, saved, upstream, logits)
    }

    fn partial_rows<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        _entropy: bool,
        partial_rows: &mut [PartialRow],
    ) -> Result<()> {
        let targets = targets.into();
        check_logits(self, logits)?;
        let shard = options.shard_of(logits.columns());
        targets.check(logits.rows(), shard.vocab())?;
        let per_row = per_row(partial_rows.len(), logits.rows(), logits.columns())?;
        partial_rows.fill(PartialRow::EMPTY);
        // All of a rank's columns of a row in one part: the others count for nothing.
        for (row, parts) in partial_rows.chunks_mut(per_row).enumerate() {
            if let Some(target) = targets.column(row) {
                let columns = &logits.row(row)[..shard.columns(logits.columns())];
                parts[0] = partial_row::partial(&widened(columns), shard.column_of(target, columns.len()), options);
            }
        }
        Ok(())
    }

    fn merge_rows<'i>(
        &self,
        partial_rows: &&[PartialRow],
        ranks: usize,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        mut outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        let targets = targets.into();
        let rows = targets.len();
        let per_row = per_row_of_ranks(partial_rows.len(), rows, ranks)?;
        outputs.check(self, rows)?;
        for row in 0..rows {
            let parts: Vec<PartialRow> = (0..ranks)
                .flat_map(|rank| &partial_rows[(rank * rows + row) * per_row..][..per_row])
                .copied()
                .collect();
            write_row(&mut outputs, row, targets.is_scored(row).then(|| partial_row::merge(&parts, options)));
        }
        Ok(())
    }

    fn log_ratios(
        &self,
        rows: &RowLogProbs<'_>,
        reference: &Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
        mut outputs: LogRatioOutputs<'_>,
    ) -> Result<()> {
        check_rows(batch, rows.log_probs.len())?;
        rows.check(self, batch.rows())?;
        outputs.check(self, batch, rows)?;
        check_reference(self, reference, batch)?;
        check_finite_reference(reference, &rows.targets, batch)?;
        for (sequence, range) in batch.sequence_ranges().enumerate() {
            for row in range.clone() {
                outputs.row_sequences[row] = sequence as i32;
                outputs.row_targets[row] = narrowed(rows.targets.id(row));
            }
            let scored: Vec<usize> = range.filter(|row| rows.targets.is_scored(*row)).collect();
            let log_probs: Vec<f64> = scored.iter().map(|row| f64::from(rows.log_probs[*row])).collect();
            let references = log_ratio::references(reference, sequence, &scored);
            outputs.log_ratios[sequence] = log_ratio::forward(&log_probs, &references, log_ratio);
            outputs.log_prob_sums[sequence] = log_probs.iter().sum::<f64>() + 0.0;
            outputs.scored_rows[sequence] = scored.len() as i32;
            if let (Some(sums), Some(entropies)) = (&mut outputs.entropy_sums, rows.entropies) {
                sums[sequence] = scored.iter().map(|row| f64::from(entropies[*row])).sum::<f64>() + 0.0;
            }
        }
        Ok(())
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
        check_length("log-ratios", log_ratios.len(), batch.sequences())?;
        check_rewards(objective, rewards, batch)?;
        outputs.check(self, batch)?;
        reduction.check()?;
        let ObjectiveOutputs { group_losses, coefficients, statistics, row_weights } = outputs;
        let weight = reduction.weight(batch.groups());
        for (group, sequences) in batch.group_ranges().enumerate() {
            let reward: Vec<f64> = sequences.clone().map(|i| rewards.value(i)).collect();
            let offset: Vec<f64> = sequences.clone().map(|i| rewards.offset(i)).collect();
            let log_ratios = &log_ratios[sequences.clone()];
            let loss = objective::group_loss(objective, log_ratios, &reward, &offset);
            let f: Vec<f64> =
                log_ratios.iter().zip(&offset).map(|(ratio, c)| objective.beta_policy() * ratio + c).collect();
            let s = objective::target_logits(objective.target(), &reward, &offset);
            group_losses[group] = loss.loss;
            statistics[group] = statistics::of_group(&f, &s, &loss.policy);
            for (i, sequence) in sequences.enumerate() {
                coefficients[sequence] = loss.gradient[i] * objective.beta_policy() * weight;
            }
        }
        if let Some(RowWeights { log_ratio, scored_rows, weights }) = row_weights {
            for sequence in 0..batch.sequences() {
                weights[sequence] = match log_ratio {
                    LogRatio::Sum => coefficients[sequence],
                    LogRatio::Mean => coefficients[sequence] / f64::from(scored_rows[sequence].max(1)),
                };
            }
        }
        Ok(())
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
        let (hidden, targets, outputs) = (hidden.into(), targets.into(), outputs.into());
        options.check_whole(head.vocab())?;
        self.check_linear(&hidden, head, &targets)?;
        outputs.check(self, &hidden, head, W::DTYPE)?;
        if let Some(unit_gradients) = outputs.unit_gradients {
            write_unit_gradients(hidden.states, head, &targets, options, unit_gradients)?;
        }
        let mut outputs = outputs.rows;
        for row in 0..hidden.states.rows() {
            let found = targets.column(row).map(|target| {
                let logits = linear_log_prob::logits(hidden.states.row(row), head);
                (token_log_prob::forward_f64(&logits, target, options), state(&logits, options))
            });
            write_row(&mut outputs, row, found);
        }
        Ok(())
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
        let (hidden, targets, kept) = (hidden.into(), targets.into(), saved.into());
        self.check_linear_shard(&hidden, head, &targets, options)?;
        check_gradients(self, &gradients, &hidden, head)?;
        kept.check(self, &hidden, head, W::DTYPE, options)?;
        let saved = &kept.rows;
        check_saved(self, saved, upstream, hidden.states.rows())?;
        let head = &head.without_padding(options.shard_of(head.vocab()));
        let (rows, vocab) = (hidden.states.rows(), head.vocab());
        let mut of_logits = vec![0.0; rows * vocab];
        let mut withheld = Vec::new();
        for row in (0..rows).filter(|row| targets.is_scored(*row)) {
            let logits = linear_log_prob::logits(hidden.states.row(row), head);
            let gradient = logit_gradient(&logits, &targets, row, options, saved, upstream);
            if gradients.accumulate && gradient[0].is_nan() {
                withheld.push(row);
            } else {
                of_logits[row * vocab..(row + 1) * vocab].copy_from_slice(&gradient);
            }
        }
        let mut sums = linear_log_prob::backward(&of_logits, hidden.states, head);
        for row in withheld {
            sums.hidden[row * hidden.states.columns()..][..hidden.states.columns()].fill(f64::NAN);
        }
        let of_entropy = matches!(upstream, RowGradients::PerRow { entropies: Some(_), .. });
        let is_part = options.check_whole(vocab).is_err();
        if let (Some(units), true, false) = (kept.unit_gradients, is_part, of_entropy) {
            linear_shard::use_units(&mut sums.hidden, units, &targets, options, saved, upstream);
        }
        write_gradients(&sums, gradients);
        Ok(())
    }

    fn linear_partial_rows<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        _entropy: bool,
        outputs: LinearParts<'_, PartialRow>,
    ) -> Result<()> {
        let (hidden, targets) = (hidden.into(), targets.into());
        self.check_linear_shard(&hidden, head, &targets, options)?;
        let per_row = outputs.check(self, &hidden, head)?;
        linear_shard::partial_rows(hidden.states, head, &targets, options, per_row, outputs);
        Ok(())
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
        let (hidden, targets) = (hidden.into(), targets.into());
        self.check_linear_shard(&hidden, head, &targets, options)?;
        let per_row = gathered.check(self, &hidden, head, &unit_sums)?;
        linear_shard::unit_gradients(head, &targets, options, per_row, gathered, unit_sums);
        Ok(())
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
        let rows = hidden.states.rows();
        options.check_whole(head.vocab())?;
        self.check_linear(&hidden, head, &targets)?;
        check_gradients(self, &gradients, &hidden, head)?;
        loss.check(rows, |slice| slice.len())?;
        loss.check_numbers(&targets, options)?;
        outputs.check(self, rows)?;
        let mut states = vec![SoftmaxState::default(); rows];
        let kept = TokenLogProbs { log_probs: &mut *outputs.log_probs, states: &mut states, entropies: None };
        self.linear_token_log_probs(hidden, head, targets, options, kept)?;
        let mut upstream = vec![0.0; rows];
        for row in 0..rows {
            let log_prob = f64::from(outputs.log_probs[row]);
            let of_row = if targets.is_scored(row) { of_row(loss, row, log_prob) } else { (0.0, 0.0) };
            (outputs.losses[row], upstream[row]) = (of_row.0 as f32, of_row.1 as f32);
        }
        let saved = SavedRows { states: &states, entropies: None };
        let upstream = RowGradients::PerRow { log_probs: &upstream, entropies: None };
        self.linear_token_log_probs_backward(hidden, head, targets, options, saved, &upstream, gradients)
    }
}

fn widened<T: Element>(logits: &[T]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(logit.to_f32())).collect()
}

/// Σ exp z = s·2^r of a row's scaled logits z; NaN where the row has no softmax.
fn state(logits: &[f64], options: &LogitOptions) -> SoftmaxState {
    let (top, rest) = token_log_prob::largest_and_log_sum(logits, options);
    SoftmaxState::of(top, rest)
}

impl SoftmaxState {
    /// Of the largest scaled logit z, and log Σ exp(z − largest).
    pub(super) fn of(top: f64, rest: f64) -> Self {
        let exponent = top * std::f64::consts::LOG2_E;
        // From 2²⁴ on f32 have not every integer: s is relative to the r that is kept. Without a -0.
        let r = exponent.ceil() as f32 + 0.0;
        // The difference first: it is small, and exact to the digits that z has.
        SoftmaxState { r, s: ((exponent - f64::from(r)) + rest * std::f64::consts::LOG2_E).exp2() as f32 }
    }
}

/// Writes a scored row's results, or the zeros of a masked one.
fn write_row(outputs: &mut TokenLogProbs<'_>, row: usize, found: Option<(TokenLogProb, SoftmaxState)>) {
    let (exact, state) = found.unwrap_or_default();
    let is_nan = exact.log_prob.is_nan();
    outputs.log_probs[row] = exact.log_prob as f32;
    outputs.states[row] = if is_nan { SoftmaxState { r: 0.0, s: f32::NAN } } else { state };
    if let Some(entropies) = &mut outputs.entropies {
        entropies[row] = exact.entropy as f32;
    }
}

/// d loss / d logits of a row: NaN where it has no softmax or its upstream gradient does not fit ([`RowGradients`]).
fn logit_gradient(
    logits: &[f64],
    targets: &Targets<'_>,
    row: usize,
    options: &LogitOptions,
    saved: &SavedRows<'_>,
    upstream: &RowGradients<'_>,
) -> Vec<f64> {
    let Some(target) = targets.column(row) else { return vec![0.0; logits.len()] };
    let (g, e) = upstream_of(row, upstream);
    let (fits, is_zero) = (has_gradient(row, options, saved, (g, e)), g == 0.0 && e == 0.0);
    match (fits, is_zero) {
        (false, _) => vec![f64::NAN; logits.len()],
        (true, true) => vec![0.0; logits.len()],
        (true, false) if options.check_whole(logits.len()).is_ok() => {
            token_log_prob::backward_f64(logits, target, options, g, e)
        }
        (true, false) => {
            let target = options.shard_of(logits.len()).column_of(target, logits.len());
            let entropy = saved.entropies.map_or(0.0, |entropies| f64::from(entropies[row]));
            partial_row::backward(logits, target, options, (saved.states[row], entropy), (g, e))
        }
    }
}

/// d loss / d log-prob and d loss / d entropy of a row.
pub(super) fn upstream_of(row: usize, upstream: &RowGradients<'_>) -> (f64, f64) {
    let (g, e) = match upstream {
        RowGradients::PerRow { log_probs, entropies } => {
            (log_probs[row], entropies.map_or(0.0, |entropies| entropies[row]))
        }
        RowGradients::PerSequence { row_sequences, weights, loss_scale } => {
            // A sequence that is none has no weight.
            let sequence = usize::try_from(row_sequences[row]).ok();
            let weight = sequence.and_then(|sequence| weights.get(sequence)).copied();
            ((weight.unwrap_or(f64::NAN) * loss_scale) as f32, 0.0)
        }
    };
    (f64::from(g), f64::from(e))
}

/// Whether a row has a softmax, and a gradient that fits ([`RowGradients`]).
pub(super) fn has_gradient(row: usize, options: &LogitOptions, saved: &SavedRows<'_>, (g, e): (f64, f64)) -> bool {
    let s = f64::from(saved.states[row].s);
    let has_entropy = saved.entropies.is_none_or(|entropies| entropies[row].is_finite());
    // The smaller of a NaN and 1 is 1: a row without a softmax is asked for by name.
    let fits = !s.is_nan() && 2.0 * g.abs() + 256.0 * e.abs() <= options.largest_upstream() * (2.0 * s).min(1.0);
    fits && (e == 0.0 || has_entropy)
}

/// l and dl / d log π of a scored row, as numbers that fit f32.
fn of_row(loss: &RowLoss<&[f32]>, row: usize, log_prob: f64) -> (f64, f64) {
    let number = |numbers: &[f32]| f64::from(numbers[row]);
    let found = match *loss {
        RowLoss::Weighted { weights } => row_loss::weighted(log_prob, number(weights)),
        RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit } => {
            let clipping =
                Clipping { low: f64::from(low), high: f64::from(high), log_ratio_limit: f64::from(log_ratio_limit) };
            row_loss::clipped_ratio(log_prob, number(weights), number(advantages), number(old_log_probs), clipping)
        }
    };
    let largest = f64::from(f32::MAX);
    let loss = if log_prob.is_finite() { found.loss.clamp(-largest, largest) } else { found.loss };
    (loss, found.gradient)
}
