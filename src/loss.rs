//! The stages composed: from logits to a loss, and back to the gradient of the logits.

use crate::data::logits::{Logits, Shape};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::operand::Operand;
use crate::options::{LogRatio, LossOptions, Reduction};
use crate::report::Report;
use crate::step::Inputs;
use std::sync::OnceLock;

/// A preference loss on one backend: forward, then backward, with the workspaces kept between steps.
///
/// After the first step of a shape neither pass allocates. Between the two passes the logits must not change: the
/// backward pass reads them again (and, in place, overwrites them with their gradient). That it is given the states of
/// the forward pass over these very logits is what the [`Step`](crate::Step) is for, which one returns and the other takes.
#[derive(Debug)]
pub struct PreferenceLoss<B: Backend> {
    pub(crate) backend: B,
    pub(crate) options: LossOptions,
    pub(crate) workspace: B::Workspace,
    /// Read from the workspace when it is asked for, or put here by the forward pass.
    pub(crate) report: OnceLock<Report>,
    pub(crate) loss_scale: f64,
    /// Number of the last forward pass that was not refused ([`Step::number`]).
    pub(crate) last_step: Option<u64>,
}

/// Where a [`PreferenceLoss`] runs. Implemented by [`Cpu`](crate::Cpu) and, with the feature `cuda`, by `cuda::Cuda`; by nothing
/// else.
pub trait Backend: sealed::Backend {}

impl<B: sealed::Backend> Backend for B {}

pub(crate) mod sealed {
    use crate::error::Result;
    use crate::report::Report;

    /// What a loss asks of its backend.
    pub trait Backend {
        /// Buffers that are kept between steps.
        type Workspace: std::fmt::Debug + Default;

        /// Reads what the last forward pass left in the workspace.
        fn read_report(&self, workspace: &Self::Workspace) -> Result<Report>;
    }
}

impl<B: Backend> PreferenceLoss<B> {
    /// A loss on `backend`, from an [`Objective`](crate::Objective) or from full [`LossOptions`].
    pub fn new(backend: B, options: impl Into<LossOptions>) -> Self {
        PreferenceLoss {
            backend,
            options: options.into(),
            workspace: B::Workspace::default(),
            report: OnceLock::new(),
            loss_scale: 1.0,
            last_step: None,
        }
    }

    /// Divides the logits by `temperature`.
    ///
    /// # Errors
    /// As [`LogitOptions::with_temperature`](crate::LogitOptions::with_temperature).
    pub fn with_temperature(mut self, temperature: f64) -> Result<Self> {
        self.options.logits = self.options.logits.with_temperature(temperature)?;
        self.last_step = None;
        Ok(self)
    }

    /// Caps the logits to (−`softcap`, `softcap`), before the temperature.
    ///
    /// # Errors
    /// As [`LogitOptions::with_softcap`](crate::LogitOptions::with_softcap).
    pub fn with_softcap(mut self, softcap: f64) -> Result<Self> {
        self.options.logits = self.options.logits.with_softcap(softcap)?;
        self.last_step = None;
        Ok(self)
    }

    /// Sum or mean over the rows of a sequence.
    #[must_use]
    pub fn with_log_ratio(mut self, log_ratio: LogRatio) -> Self {
        self.options = self.options.with_log_ratio(log_ratio);
        self
    }

    /// Mean or sum over groups, or a normaliser of the caller's.
    ///
    /// # Errors
    /// As [`LossOptions::with_reduction`].
    pub fn with_reduction(mut self, reduction: Reduction) -> Result<Self> {
        self.options = self.options.with_reduction(reduction)?;
        Ok(self)
    }

    /// Whether the report holds the mean entropy of the scored rows.
    #[must_use]
    pub fn with_entropy(mut self, entropy: bool) -> Self {
        self.options = self.options.with_entropy(entropy);
        self
    }

    /// What the next backward passes multiply the gradient by: 1 at first; the upstream gradient, or a loss scale against
    /// underflow in f16. The report is not scaled.
    ///
    /// A scale that is not finite, or with which a row's coefficient no longer fits f32 (also once divided by the
    /// temperature), gives that row a gradient of NaN, which is what dynamic loss scaling looks for.
    pub fn set_loss_scale(&mut self, loss_scale: f64) {
        self.loss_scale = loss_scale;
    }

    /// How the loss is put together.
    pub fn options(&self) -> &LossOptions {
        &self.options
    }

    /// What the last forward pass found, NaN rows and all. On a GPU this waits for the device.
    ///
    /// # Errors
    /// [`Error::NoForward`] before any forward pass; on a GPU what the device found in the inputs, and the driver's
    /// errors.
    pub fn unchecked_report(&self) -> Result<&Report> {
        self.last_step.ok_or(Error::NoForward)?;
        if let Some(report) = self.report.get() {
            return Ok(report);
        }
        let report = self.backend.read_report(&self.workspace)?;
        Ok(self.report.get_or_init(|| report))
    }

    /// What the last forward pass found.
    ///
    /// # Errors
    /// [`Error::NoForward`] before any forward pass; [`Error::NonFiniteRow`] if a row had a NaN or +inf logit or only
    /// −inf. Such a row does not stop the two passes: NaN goes through its group, and through no other, to the
    /// gradient, where loss scaling looks for it.
    pub fn report(&self) -> Result<&Report> {
        self.unchecked_report()?.check()
    }
}

/// Where logits lie.
pub(crate) fn inputs<T: Element>(logits: Logits<'_, T>) -> Inputs {
    let Shape { rows, vocab, row_stride } = logits.shape();
    let operand = Operand::new("logits", logits.row(0).as_ptr().addr() as u64, rows, row_stride);
    Inputs { rows, vocab, operands: [Some(operand), None, None] }
}

/// What a row's log-prob gets back, from its weight in the loss.
pub(crate) fn row_gradient(weight: f64, loss_scale: f64) -> f32 {
    (weight * loss_scale) as f32
}
