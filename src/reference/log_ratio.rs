//! Sequence log-ratios: S_i = Σ_t (log π(y_t) − log π_ref(y_t)) over the scored rows of completion i (EXO,
//! the argument of Eq. 13's softmax before β_π).

use crate::host::Reference;
use crate::options::LogRatio;

/// One sequence: the scored rows' log-probs under the policy and the reference. 0 without a scored row.
pub fn forward(log_probs: &[f64], reference: &[f64], kind: LogRatio) -> f64 {
    let mut sum = 0.0;
    for t in 0..log_probs.len() {
        sum += log_probs[t] - reference[t];
    }
    match kind {
        LogRatio::Sum => sum,
        LogRatio::Mean if log_probs.is_empty() => 0.0,
        LogRatio::Mean => sum / log_probs.len() as f64,
    }
}

/// The reference's log-prob of each scored row of a sequence. One of the whole sequence counts once, in the first of them.
pub(crate) fn references(reference: &Reference<'_>, sequence: usize, scored: &[usize]) -> Vec<f64> {
    match reference {
        Reference::PerToken(reference) => scored.iter().map(|&row| f64::from(reference[row])).collect(),
        Reference::PerSequence(reference) => {
            (0..scored.len()).map(|t| if t == 0 { reference[sequence] } else { 0.0 }).collect()
        }
        Reference::None => vec![0.0; scored.len()],
    }
}
