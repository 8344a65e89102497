//! How a preference loss is put together around its objective.

use crate::error::{Error, Result};
use crate::logits::LogitOptions;
use crate::objective::Objective;

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

/// An objective, and what is done to the logits before it and to the group losses after it.
///
/// Made from an [`Objective`]; the rest starts at temperature 1, no softcap, sums over rows, the mean over groups, no
/// entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    pub(crate) objective: Objective,
    pub(crate) logits: LogitOptions,
    pub(crate) log_ratio: LogRatio,
    pub(crate) reduction: Reduction,
    pub(crate) entropy: bool,
}

impl From<Objective> for LossOptions {
    fn from(objective: Objective) -> Self {
        LossOptions {
            objective,
            logits: LogitOptions::default(),
            log_ratio: LogRatio::default(),
            reduction: Reduction::default(),
            entropy: false,
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

    /// The objective.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Temperature and softcap.
    pub fn logits(&self) -> LogitOptions {
        self.logits
    }
}
