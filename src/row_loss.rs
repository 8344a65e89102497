//! Losses that are a sum over rows: the gradient of a row is known as soon as its log-prob is, so that forward and
//! backward are one pass.

use crate::error::{Error, Result};
use crate::stages::check_length;

/// A loss Σ_n l_n over the scored rows, where l_n depends on row n's log-prob alone.
///
/// `F` is a slice of N numbers: `&[f32]` on the CPU, a view of device memory on a GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowLoss<F> {
    /// l = −w·log π. Fine-tuning on given tokens has w = 1 / (number of scored rows); REINFORCE the advantage over it.
    Weighted {
        /// w, `[N]`; not read at masked rows.
        weights: F,
    },
    /// l = −w·min(ρA, clip(ρ, 1 − low, 1 + high)·A), with ρ = exp(log π − log π_old): PPO (Schulman et al., 2017,
    /// equation 7), GRPO.
    ClippedRatio {
        /// w, `[N]`; not read at masked rows.
        weights: F,
        /// A, `[N]`.
        advantages: F,
        /// log π_old, `[N]`: of the policy that the completions were sampled from.
        old_log_probs: F,
        /// How far below 1 the ratio may lie and still have a gradient; in \[0, 1\].
        low: f32,
        /// How far above 1; 0 or more, may be infinite.
        high: f32,
    },
}

impl<F> RowLoss<F> {
    /// Every slice, by its name.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (&'static str, &F)> {
        let (weights, others) = match self {
            Self::Weighted { weights } => (weights, None),
            Self::ClippedRatio { weights, advantages, old_log_probs, .. } => {
                (weights, Some([("advantages", advantages), ("old log-probs", old_log_probs)]))
            }
        };
        std::iter::once(("row weights", weights)).chain(others.into_iter().flatten())
    }

    /// That there is a number per row, and that the clipping range is one. `length` is that of a slice.
    pub(crate) fn check(&self, rows: usize, length: impl Fn(&F) -> usize) -> Result<()> {
        self.slices().try_for_each(|(what, slice)| check_length(what, length(slice), rows))?;
        if let Self::ClippedRatio { low, high, .. } = self {
            if !(0.0..=1.0).contains(low) {
                return Err(Error::Parameter { name: "low", given: f64::from(*low), expected: "0 to 1" });
            }
            if high.is_nan() || *high < 0.0 {
                return Err(Error::Parameter { name: "high", given: f64::from(*high), expected: "0 or more" });
            }
        }
        Ok(())
    }
}

impl RowLoss<&[f32]> {
    /// l and dl / d log π of a scored row.
    pub(crate) fn at(&self, row: usize, log_prob: f32) -> (f32, f32) {
        let (Self::Weighted { weights } | Self::ClippedRatio { weights, .. }) = *self;
        if weights[row] == 0.0 {
            // Not 0 · −inf, for a target that has no probability.
            return (0.0, 0.0);
        }
        match *self {
            Self::Weighted { weights } => (-weights[row] * log_prob, -weights[row]),
            Self::ClippedRatio { weights, advantages, old_log_probs, low, high } => {
                let (weight, advantage) = (f64::from(weights[row]), f64::from(advantages[row]));
                let ratio = (f64::from(log_prob) - f64::from(old_log_probs[row])).exp();
                let clipped = ratio.clamp(1.0 - f64::from(low), 1.0 + f64::from(high));
                // Where the clipped branch is the smaller one the ratio has no gradient; at a tie it still has.
                if clipped * advantage < ratio * advantage {
                    return ((-weight * clipped * advantage) as f32, 0.0);
                }
                let loss = (-weight * ratio * advantage) as f32;
                (loss, loss)
            }
        }
    }
}
