//! Losses that are a sum over rows, straight from hidden states, on the CPU: two products under a frozen head, and four under a
//! trained one.
//!
//! The loss's gradient of a row is known as soon as its log-prob is, so that three products would do for both. But then the
//! gradients of the logits of some rows have to be held for all of the vocabulary, and with few rows at a time the gradient of the
//! weight, which each of them adds to, costs as much to read and write as the fourth product takes. So this is the two passes, with
//! what they take of memory, and 4·M·H bytes for the unit gradients.

use crate::cpu::Cpu;
use crate::cpu::linear::{log_prob, log_prob_backward};
use crate::element::Element;
use crate::error::Result;
use crate::host::{
    Head, Hidden, LinearGradients, LinearOutputs, RowGradients, RowLosses, SavedLinear, SavedRows, Targets,
    TokenLogProbs,
};
use crate::options::LogitOptions;
use crate::stage::linear::{check_gradients, check_inputs};
use crate::stage::row_loss::RowLoss;
use crate::stage::token_log_prob::SoftmaxState;

/// [`Backend::linear_row_loss`](crate::Backend::linear_row_loss): the bits are those of the two passes.
#[allow(clippy::too_many_arguments)]
pub(in crate::cpu) fn row_loss<T: Element, W: Element, G: Element>(
    cpu: Cpu,
    hidden: Hidden<'_, '_, T>,
    head: &Head<'_, W>,
    targets: Targets<'_>,
    options: &LogitOptions,
    loss: RowLoss<&[f32]>,
    outputs: RowLosses<'_>,
    gradients: LinearGradients<'_, T, G>,
) -> Result<()> {
    let rows = hidden.states.rows();
    options.check_whole(head.vocab())?;
    check_inputs(&cpu, &hidden, head, targets, head.vocab())?;
    check_gradients(&cpu, &gradients, &hidden, head)?;
    loss.check(rows, |slice| slice.len())?;
    loss.check_numbers(&targets, options)?;
    outputs.check(&cpu, rows)?;
    let RowLosses { log_probs, losses } = outputs;

    // Of the rows that are scored, whatever was said of their number.
    let hidden = hidden.with_scored_rows(targets.scored_rows());
    let mut states = vec![SoftmaxState::default(); rows];
    let mut units = gradients.hidden.as_ref().map(|_| vec![0.0; hidden.most_scored_rows() * hidden.states.columns()]);
    let kept = LinearOutputs {
        rows: TokenLogProbs { log_probs: &mut *log_probs, states: &mut states, entropies: None },
        unit_gradients: units.as_deref_mut(),
        logit_gradients: None,
    };
    log_prob::forward(cpu, hidden, head, targets, options, kept)?;
    let mut row_gradients = vec![0.0; rows];
    for row in 0..rows {
        let of_row = if targets.is_scored(row) { loss.at(row, log_probs[row]) } else { (0.0, 0.0) };
        (losses[row], row_gradients[row]) = of_row;
    }
    let saved = SavedLinear {
        rows: SavedRows { states: &states, entropies: None },
        unit_gradients: units.as_deref(),
        logit_gradients: None,
    };
    let upstream = RowGradients::PerRow { log_probs: &row_gradients, entropies: None };
    log_prob_backward::backward(cpu, hidden, head, targets, options, &saved, &upstream, gradients)
}
