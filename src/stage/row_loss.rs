//! Losses that are a sum over rows: the gradient of a row is known as soon as its log-prob is, so that forward and
//! backward are one pass.

use crate::data::memory::{Host, Memory, Place, check_view_mut};
use crate::data::targets::Targets;
use crate::error::{Error, Result, check_length};
use crate::options::LogitOptions;

/// What trainers clamp the log-ratio to (verl: `negative_approx_kl` to ±20): e²⁰ is 4.9e8.
pub const DEFAULT_LOG_RATIO_LIMIT: f32 = 20.0;

/// e⁸⁸ is 1.65e38, less than half of the largest f32: a loss of weight and advantage 1 has a gradient that fits.
const LARGEST_LOG_RATIO_LIMIT: f32 = 88.0;

/// A loss Σ_n l_n over the scored rows, where l_n depends on row n's log-prob alone.
///
/// `F` is a slice of N numbers: `&[f32]` on the CPU, a view of device memory on a GPU. Those of masked rows are not read.
///
/// # Which numbers are accepted
///
/// - w is finite. Where w = 0 the row's loss and its gradient are 0, and nothing else of it is looked at.
/// - A is finite. Where A = 0 loss and gradient are 0, and log π_old is not looked at.
/// - log π_old is finite; −9999, which samplers write for a token out of their range, is.
/// - |w|, or |w·A|·e^`log_ratio_limit`, is at most `f32::MAX` / max(1, 2/T), T being the temperature: then every loss of a
///   clipped ratio, and the gradient of every logit, fits f32.
///
/// Numbers on the host that are not are refused before anything is written ([`Error::RowInput`]). On the device such a row
/// has a loss and a gradient of 0 and is counted, and reading the status is an error.
///
/// A row without a softmax has a loss of NaN (0 where w or A is 0), and the gradients that the two passes give it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowLoss<F> {
    /// l = −w·log π. Fine-tuning on given tokens has w = 1 / (number of scored rows); REINFORCE the advantage over it.
    ///
    /// At a target that has no probability (log π = −∞) l is infinite, its gradient is not. A product of finite numbers
    /// that does not fit f32 becomes ±`f32::MAX`.
    Weighted {
        /// w, `[N]`.
        weights: F,
    },
    /// l = −w·min(ρA, clip(ρ, 1 − low, 1 + high)·A), with ρ = exp(clip(log π − log π_old, −limit, limit)): PPO (Schulman
    /// et al., 2017, equation 7), GRPO.
    ///
    /// Where log π − log π_old lies beyond ±limit ρ is constant, and l has no gradient: so at a target that has no
    /// probability, too.
    ClippedRatio {
        /// w, `[N]`.
        weights: F,
        /// A, `[N]`.
        advantages: F,
        /// log π_old, `[N]`: of the policy that the completions were sampled from.
        old_log_probs: F,
        /// How far below 1 the ratio may lie and still have a gradient; in \[0, 1\].
        low: f32,
        /// How far above 1; 0 or more, may be infinite.
        high: f32,
        /// The largest |log π − log π_old|, in nats: above 0, at most 88. [`DEFAULT_LOG_RATIO_LIMIT`] is what trainers
        /// have.
        log_ratio_limit: f32,
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

    /// Checks that there is a number per row, and the settings. `length` is that of a slice.
    pub(crate) fn check(&self, rows: usize, length: impl Fn(&F) -> usize) -> Result<()> {
        self.slices().try_for_each(|(what, slice)| check_length(what, length(slice), rows))?;
        let Self::ClippedRatio { low, high, log_ratio_limit, .. } = self else { return Ok(()) };
        let settings = [
            ("low", *low, (0.0..=1.0).contains(low), "0 to 1"),
            ("high", *high, *high >= 0.0, "0 or more"),
            (
                "log_ratio_limit",
                *log_ratio_limit,
                *log_ratio_limit > 0.0 && *log_ratio_limit <= LARGEST_LOG_RATIO_LIMIT,
                "a number above 0, at most 88",
            ),
        ];
        match settings.into_iter().find(|setting| !setting.2) {
            Some((name, given, _, expected)) => Err(Error::Parameter { name, given: f64::from(given), expected }),
            None => Ok(()),
        }
    }

    /// The largest |w|, or |w·A|, with which all that is made of it fits f32.
    ///
    /// |l| of a clipped ratio, and |dl / d log π| = g of both losses, is at most this times the largest ratio. The gradient of
    /// a logit is formed from g/(T·s), where the softmax's s is at least ½.
    pub(crate) fn largest_product(&self, options: &LogitOptions) -> f64 {
        let largest_ratio = match self {
            Self::Weighted { .. } => 1.0,
            Self::ClippedRatio { log_ratio_limit, .. } => f64::from(*log_ratio_limit).exp(),
        };
        f64::from(f32::MAX) / (largest_ratio * (2.0 / options.temperature()).max(1.0))
    }
}

impl RowLoss<&[f32]> {
    /// Checks the numbers of the scored rows.
    pub(crate) fn check_numbers(&self, targets: &Targets<'_, Host>, options: &LogitOptions) -> Result<()> {
        let largest = self.largest_product(options);
        (0..targets.len()).filter(|row| targets.is_scored(*row)).try_for_each(|row| self.check_row(row, largest))
    }

    fn check_row(&self, row: usize, largest_product: f64) -> Result<()> {
        let at_most = |largest: f64, what, given: f64| {
            // Not `>`: a NaN is refused.
            if given.abs() <= largest { Ok(()) } else { Err(Error::RowInput { what, row, given, largest }) }
        };
        let finite = f64::from(f32::MAX);
        match *self {
            Self::Weighted { weights } => at_most(largest_product, "row weight", f64::from(weights[row])),
            Self::ClippedRatio { weights, advantages, old_log_probs, .. } => {
                let (weight, advantage) = (f64::from(weights[row]), f64::from(advantages[row]));
                at_most(finite, "row weight", weight)?;
                if weight == 0.0 {
                    return Ok(());
                }
                at_most(finite, "advantage", advantage)?;
                if advantage == 0.0 {
                    return Ok(());
                }
                at_most(largest_product, "product of row weight and advantage", weight * advantage)?;
                at_most(finite, "old log-prob", f64::from(old_log_probs[row]))
            }
        }
    }

    /// l and dl / d log π of a scored row.
    pub(crate) fn at(&self, row: usize, log_prob: f32) -> (f32, f32) {
        match *self {
            Self::Weighted { weights } => {
                let weight = weights[row];
                if weight == 0.0 {
                    // Not 0 · −inf, for a target that has no probability.
                    return (0.0, 0.0);
                }
                let loss = -weight * log_prob;
                (if log_prob.is_finite() { loss.clamp(f32::MIN, f32::MAX) } else { loss }, -weight)
            }
            Self::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit } => {
                let (weight, advantage) = (f64::from(weights[row]), f64::from(advantages[row]));
                if weight == 0.0 || advantage == 0.0 {
                    return (0.0, 0.0);
                }
                let (log_ratio, limit) =
                    (f64::from(log_prob) - f64::from(old_log_probs[row]), f64::from(log_ratio_limit));
                let ratio = log_ratio.clamp(-limit, limit).exp();
                let clipped = ratio.clamp(1.0 - f64::from(low), 1.0 + f64::from(high));
                // Where the clipped branch is the smaller one the ratio has no gradient; at a tie it still has.
                if clipped * advantage < ratio * advantage {
                    return ((-weight * clipped * advantage) as f32, 0.0);
                }
                let loss = (-weight * ratio * advantage) as f32;
                (loss, if log_ratio.abs() > limit { 0.0 } else { loss })
            }
        }
    }
}

/// Where a loss that is a sum over rows is written: one entry per row, N of each.
#[derive(Debug)]
pub struct RowLosses<'a, M: Memory> {
    /// As [`TokenLogProbs::log_probs`](crate::TokenLogProbs::log_probs).
    pub log_probs: M::ViewMut<'a, f32>,
    /// l of each row; 0 for a masked row, NaN for a row without a softmax (0 if its weight or advantage is).
    pub losses: M::ViewMut<'a, f32>,
}

impl<M: Memory> RowLosses<'_, M> {
    /// Checks that there is an entry per row, in the backend's memory.
    pub(crate) fn check<P: Place<Memory = M>>(&self, place: &P, rows: usize) -> Result<()> {
        check_view_mut(place, "row losses", &self.losses, rows)?;
        check_view_mut(place, "log-probs", &self.log_probs, rows)
    }
}
