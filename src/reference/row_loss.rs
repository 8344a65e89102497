//! Losses that are a sum over rows: of one scored row.

/// A row's loss, and its derivative by the row's log-prob.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLoss {
    /// l.
    pub loss: f64,
    /// dl / d log π.
    pub gradient: f64,
}

/// l = −w·log π; 0 where w is 0, though log π be −∞.
pub fn weighted(log_prob: f64, weight: f64) -> RowLoss {
    if weight == 0.0 {
        return RowLoss { loss: 0.0, gradient: 0.0 };
    }
    RowLoss { loss: -weight * log_prob, gradient: -weight }
}

/// The settings of [`clipped_ratio`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clipping {
    /// How far below 1 the ratio may lie and still have a gradient.
    pub low: f64,
    /// How far above 1.
    pub high: f64,
    /// The largest |log π − log π_old|.
    pub log_ratio_limit: f64,
}

/// l = −w·min(ρA, clip(ρ, 1 − low, 1 + high)·A), ρ = exp(clip(log π − log π_old, −limit, limit)); 0 where w or A is 0,
/// whatever ρ is. Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), equation 7, with a limit of
/// the log-ratio.
pub fn clipped_ratio(log_prob: f64, weight: f64, advantage: f64, old_log_prob: f64, clipping: Clipping) -> RowLoss {
    if weight == 0.0 || advantage == 0.0 {
        return RowLoss { loss: 0.0, gradient: 0.0 };
    }
    let Clipping { low, high, log_ratio_limit: limit } = clipping;
    let log_ratio = log_prob - old_log_prob;
    let ratio = log_ratio.clamp(-limit, limit).exp();
    let unclipped = ratio * advantage;
    let clipped = ratio.clamp(1.0 - low, 1.0 + high) * advantage;
    // dρ / d log π = ρ up to the limit, 0 beyond it; the clipped branch has no gradient where it is the smaller one. A NaN is
    // neither, and goes on.
    let has_none = clipped < unclipped || log_ratio.abs() > limit;
    let loss = -weight * if clipped < unclipped { clipped } else { unclipped };
    RowLoss { loss, gradient: if has_none { 0.0 } else { -weight * unclipped } }
}
