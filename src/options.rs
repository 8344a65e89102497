//! Options of the stages and of the loss around its objective: temperature, softcap, log-ratio, reduction.

use crate::data::shard::Shard;
use crate::error::{Error, Result};
use crate::objective::Objective;

/// Settings enter products and quotients in f32: between these two all of them stay normal numbers.
const SMALLEST_SETTING: f64 = 1e-30;

const LARGEST_SETTING: f64 = 1e30;

/// Of softcap to temperature: 2⁶⁰.
const LARGEST_RATIO: f64 = (1u64 << 60) as f64;

/// How the rows of a sequence become its log-ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogRatio {
    /// Their sum, as in EXO and DPO.
    #[default]
    Sum,
    /// Their sum divided by the number of scored rows (0 for none), as in length-normalised losses.
    Mean,
}

/// How the losses of the groups become one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Reduction {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum divided by this number: the groups of all micro-batches or ranks, so that accumulated gradients are
    /// those of the mean over all.
    Normalizer(f64),
}

impl Reduction {
    /// That a normaliser is in its range.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            // Beyond that the quotient has not all of its digits, or is infinite.
            Reduction::Normalizer(given) if !(given > 0.0 && (1.0 / given).is_normal()) => {
                let expected = "a finite number above 0 (5.6e-309 to 4.4e307)";
                Err(Error::Parameter { name: "normalizer", given, expected })
            }
            _ => Ok(()),
        }
    }

    /// What each group's loss is multiplied by.
    pub(crate) fn weight(self, groups: usize) -> f64 {
        match self {
            Reduction::Mean if groups == 0 => 0.0,
            Reduction::Mean => 1.0 / groups as f64,
            Reduction::Sum => 1.0,
            Reduction::Normalizer(normalizer) => 1.0 / normalizer,
        }
    }
}

/// What a forward pass of the linear stage keeps for its backward pass, so that this multiplies less. With N rows, M of them
/// scored, vocabulary V, hidden size H, and b bytes to a number of the head:
///
/// | kept | products: forward | backward, frozen head | backward, trained head | memory kept |
/// |---|---|---|---|---|
/// | [`Nothing`](Self::Nothing) | 1 | 2 | 3 | |
/// | [`UnitGradients`](Self::UnitGradients) | 2 | 0 | 2 | 4·M·H bytes |
/// | [`LogitGradients`](Self::LogitGradients) | 2 | 0 | 1 | 4·M·H + b·M·V bytes, and less than 1 % of them |
///
/// A product is 2·M·H·V operations. Where the number of scored rows was not said ([`Hidden`](crate::Hidden)), M is N.
///
/// The upstream gradient of a row is one number g, so that the direction of its hidden state's gradient is known in the forward
/// pass: ∂ log π/∂h = Σ_j ([j = target] − p_j)·∂z_j/∂x_j·W_j, and the gradient is g times that. It is formed as (Σ' e_j·W_t −
/// Σ' e_j·W_j)/s over the columns that are not the target, which keeps the digits next to p = 1. A loss with a gradient of the
/// rows' entropies does not use what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum LinearKept {
    /// Nothing: for a forward pass that no backward pass follows, or whose hidden states are frozen.
    Nothing,
    /// ∂ log π/∂h of each scored row.
    #[default]
    UnitGradients,
    /// Besides, the gradients of the logits, in the head's type.
    LogitGradients,
}

/// An objective, and what is done to the logits before it and to the group losses after it.
///
/// Made from an [`Objective`]; the rest starts at temperature 1, no softcap, sums over rows, the mean over groups, no
/// entropy, and [`LinearKept::UnitGradients`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    pub(crate) objective: Objective,
    pub(crate) logits: LogitOptions,
    pub(crate) log_ratio: LogRatio,
    pub(crate) reduction: Reduction,
    pub(crate) entropy: bool,
    pub(crate) linear_kept: LinearKept,
}

impl From<Objective> for LossOptions {
    fn from(objective: Objective) -> Self {
        LossOptions {
            objective,
            logits: LogitOptions::default(),
            log_ratio: LogRatio::default(),
            reduction: Reduction::default(),
            entropy: false,
            linear_kept: LinearKept::default(),
        }
    }
}

impl LossOptions {
    /// Temperature and softcap.
    #[must_use]
    pub fn with_logits(self, logits: LogitOptions) -> Self {
        LossOptions { logits, ..self }
    }

    /// Sum or mean over the rows of a sequence.
    #[must_use]
    pub fn with_log_ratio(self, log_ratio: LogRatio) -> Self {
        LossOptions { log_ratio, ..self }
    }

    /// Mean or sum over groups, or a normaliser of the caller's.
    ///
    /// # Errors
    /// [`Error::Parameter`] if a normaliser is not a number from 5.6e-309 to 4.4e307, whose inverse is a normal f64.
    pub fn with_reduction(self, reduction: Reduction) -> Result<Self> {
        reduction.check()?;
        Ok(LossOptions { reduction, ..self })
    }

    /// Whether the report holds the mean entropy of the scored rows, from the same pass over the logits.
    #[must_use]
    pub fn with_entropy(self, entropy: bool) -> Self {
        LossOptions { entropy, ..self }
    }

    /// What a forward pass from hidden states keeps for its backward pass.
    #[must_use]
    pub fn with_linear_kept(self, linear_kept: LinearKept) -> Self {
        LossOptions { linear_kept, ..self }
    }

    /// The objective.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Temperature and softcap.
    pub fn logits(&self) -> LogitOptions {
        self.logits
    }
}

/// What is done to a logit x before the softmax: z = c·tanh(x/c)/T, with c the softcap (0: none) and T the temperature.
///
/// The default is T = 1 without a softcap. T must be the one the completions were sampled at, or the importance weights
/// are those of another policy (the official code divides policy and reference logits by 0.8).
///
/// A logit of −inf stays excluded under a softcap: its probability is 0, though c·tanh(−inf/c) would be −c.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitOptions {
    temperature: f64,
    softcap: f64,
    shard: Option<Shard>,
}

impl Default for LogitOptions {
    fn default() -> Self {
        LogitOptions { temperature: 1.0, softcap: 0.0, shard: None }
    }
}

impl LogitOptions {
    /// Divides the logits by `temperature`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is between 1e-30 and 1e30.
    pub fn with_temperature(self, temperature: f64) -> Result<Self> {
        if !(SMALLEST_SETTING..=LARGEST_SETTING).contains(&temperature) {
            return Err(Error::Parameter {
                name: "temperature",
                given: temperature,
                expected: "a number above 0 (1e-30 to 1e30)",
            });
        }
        Ok(LogitOptions { temperature, ..self })
    }

    /// Caps the logits to (−`softcap`, `softcap`) before the temperature; 0 for no cap. One of 2⁶⁰ times the temperature
    /// or more caps nothing that a softmax sees, and is none.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is 0 or between 1e-30 and 1e30.
    pub fn with_softcap(self, softcap: f64) -> Result<Self> {
        if softcap != 0.0 && !(SMALLEST_SETTING..=LARGEST_SETTING).contains(&softcap) {
            return Err(Error::Parameter {
                name: "softcap",
                given: softcap,
                expected: "0 (none) or a number above 0 (1e-30 to 1e30)",
            });
        }
        Ok(LogitOptions { softcap, ..self })
    }

    /// The logits, or the rows of the head, are a rank's columns of a larger vocabulary: for
    /// [`Backend::partial_rows`](crate::Backend::partial_rows), [`Backend::linear_partial_rows`](crate::Backend::linear_partial_rows) and
    /// for backward passes. Calls that need all columns refuse them.
    #[must_use]
    pub fn with_shard(self, shard: Shard) -> Self {
        LogitOptions { shard: Some(shard), ..self }
    }

    /// Which columns of the vocabulary the logits are; `None`: all.
    pub fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// The same of logits that have so many columns.
    pub(crate) fn shard_of(&self, columns: usize) -> Shard {
        self.shard.unwrap_or(Shard::whole(columns))
    }

    /// Checks that so many columns are all that there are.
    pub(crate) fn check_whole(&self, columns: usize) -> Result<()> {
        match self.shard {
            Some(shard) if shard != Shard::whole(columns) => {
                Err(Error::PartOfVocabulary { start: shard.start(), columns, vocab: shard.vocab() })
            }
            _ => Ok(()),
        }
    }

    /// T.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// c; 0 for none: none was asked for, or one of 2⁶⁰·T or more. A row that has a softmax has no z beyond 2³⁰ (in base
    /// 2), and those are moved by less than 2⁻⁶⁰ of themselves under such a cap, while c/T itself may be no f32.
    pub fn softcap(&self) -> f64 {
        if self.softcap < LARGEST_RATIO * self.temperature { self.softcap } else { 0.0 }
    }

    /// A row has a gradient up to 2·|g| + 256·|e| = this × min(1, 2s), with the upstream gradients g of its log-prob and e of
    /// its entropy: up to there all that the gradients of its logits are made of fits f32, (g + e·(H − ln s))/(T·s) and
    /// e·ln 2·t/(T·s), where |H − ln s| ≤ ln V < 22 and |t| ≤ 127. s is ½ or more, but for logits of 2²⁴ and more in base 2.
    pub(crate) fn largest_upstream(&self) -> f64 {
        f64::from(f32::MAX) * self.temperature()
    }
}
