//! The stages composed: every intermediate result of one step, in f64.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::data::matrix::check_vocab;
use crate::element::Element;
use crate::error::Result;
use crate::host::{Matrix, Reference, Rewards, Targets};
use crate::options::{LogRatio, LossOptions};
use crate::reference::ReferenceBackend;
use crate::reference::objective::GroupLoss;
use crate::reference::token_log_prob::TokenLogProb;
use crate::reference::{log_ratio, objective, token_log_prob};
use crate::stage::log_ratio::check_rows;

/// Everything that one step computes, gradient included.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Per row, N; zeros for a masked row.
    pub rows: Vec<TokenLogProb>,
    /// Per sequence, S.
    pub log_ratios: Vec<f64>,
    /// Per group, G.
    pub groups: Vec<GroupLoss>,
    /// Reduced over groups.
    pub loss: f64,
    /// d loss / d log-ratio, S.
    pub coefficients: Vec<f64>,
    /// d loss / d log-prob of each row, N; 0 for a masked row.
    pub row_gradients: Vec<f64>,
}

/// One step.
///
/// # Errors
/// Those of [`PreferenceLoss::forward`](crate::PreferenceLoss::forward), for the same inputs.
pub fn forward<'i, 'r, T: Element>(
    options: &LossOptions,
    logits: &Matrix<'_, T>,
    targets: impl Into<Targets<'i>>,
    batch: &Batch,
    reference: &Reference<'_>,
    rewards: impl Into<Rewards<'r>>,
) -> Result<Step> {
    let (targets, rewards) = (targets.into(), rewards.into());
    check_vocab(logits.columns())?;
    targets.check(logits.rows(), logits.columns())?;
    check_rows(batch, logits.rows())?;
    ReferenceBackend.check_reference(reference, &targets, batch)?;
    ReferenceBackend.check_rewards(&options.objective, &rewards, batch)?;

    let mut rows = vec![TokenLogProb::default(); logits.rows()];
    for row in 0..logits.rows() {
        if let Some(target) = targets.column(row) {
            rows[row] = token_log_prob::forward(logits.row(row), target, &options.logits);
        }
    }

    let mut log_ratios = Vec::new();
    for (sequence, range) in batch.sequence_ranges().enumerate() {
        let scored: Vec<usize> = range.filter(|&row| targets.is_scored(row)).collect();
        let log_probs: Vec<f64> = scored.iter().map(|&row| rows[row].log_prob).collect();
        let references = log_ratio::references(reference, sequence, &scored);
        log_ratios.push(log_ratio::forward(&log_probs, &references, options.log_ratio));
    }

    let (mut groups, mut coefficients) = (Vec::new(), Vec::new());
    let weight = options.reduction.weight(batch.groups());
    for range in batch.group_ranges() {
        let reward: Vec<f64> = range.clone().map(|i| rewards.value(i)).collect();
        let offset: Vec<f64> = range.clone().map(|i| rewards.offset(i)).collect();
        let group = objective::group_loss(&options.objective, &log_ratios[range], &reward, &offset);
        coefficients.extend(group.gradient.iter().map(|g| g * options.objective.beta_policy() * weight));
        groups.push(group);
    }
    let loss = groups.iter().map(|group| group.loss).sum::<f64>() * weight;

    let mut row_gradients = vec![0.0; logits.rows()];
    for (sequence, range) in batch.sequence_ranges().enumerate() {
        let scored: Vec<usize> = range.filter(|&row| targets.is_scored(row)).collect();
        for &row in &scored {
            row_gradients[row] = match options.log_ratio {
                LogRatio::Sum => coefficients[sequence],
                LogRatio::Mean => coefficients[sequence] / scored.len() as f64,
            };
        }
    }
    Ok(Step { rows, log_ratios, groups, loss, coefficients, row_gradients })
}

impl Step {
    /// d loss / d logits of one row, V.
    pub fn grad_logits<'i, T: Element>(
        &self,
        options: &LossOptions,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        row: usize,
    ) -> Vec<f64> {
        match targets.into().column(row) {
            Some(target) => {
                token_log_prob::backward(logits.row(row), target, &options.logits, self.row_gradients[row], 0.0)
            }
            None => vec![0.0; logits.columns()],
        }
    }
}
