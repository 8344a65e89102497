//! Losses that are a sum over rows, from hidden states.

use super::choices::Choices;
use super::guarded::{Guarded, Sentinel, untouched};
use super::linear::scored;
use super::linear_case::{Case, Gradients, Upstream};
use super::rows::{self, Kind, VOCAB, are_columns};
use super::settings::{self, Fit, HostBackend};
use exo_kernels::{Element, LogitOptions, RowLoss, RowLosses};
use half::{bf16, f16};

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => walk_of::<B, f32, f32, f32>(choices),
        1 => walk_of::<B, bf16, bf16, f32>(choices),
        _ => walk_of::<B, f16, f16, f16>(choices),
    }
}

/// A row loss in the host's memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) clipped: bool,
    pub(crate) weights: Vec<f32>,
    pub(crate) advantages: Vec<f32>,
    pub(crate) old_log_probs: Vec<f32>,
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) log_ratio_limit: f32,
}

impl Held {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        let clipped = choices.yes();
        let row = choices.choose(rows.max(1));
        let mut numbers = |usual: f32| {
            let mut numbers: Vec<f32> = (0..choices.length(rows)).map(|row| usual + row as f32 * 0.25).collect();
            if let Some(number) = numbers.get_mut(row) {
                *number = choices.f32(*number);
            }
            numbers
        };
        let weights = numbers(0.25);
        let (advantages, old_log_probs) = if clipped { (numbers(-0.5), numbers(-1.5)) } else { Default::default() };
        let (low, high) = if clipped { (choices.f32(0.2), choices.f32(0.3)) } else { (0.2, 0.3) };
        let log_ratio_limit = if clipped { choices.f32(20.0) } else { 20.0 };
        Self { clipped, weights, advantages, old_log_probs, low, high, log_ratio_limit }
    }

    fn view(&self) -> RowLoss<&[f32]> {
        if self.clipped {
            RowLoss::ClippedRatio {
                weights: &self.weights,
                advantages: &self.advantages,
                old_log_probs: &self.old_log_probs,
                low: self.low,
                high: self.high,
                log_ratio_limit: self.log_ratio_limit,
            }
        } else {
            RowLoss::Weighted { weights: &self.weights }
        }
    }

    /// Whether it fits the rows, and its clipping range is one.
    pub(crate) fn fits(&self, rows: usize) -> bool {
        let of_ratio = [self.advantages.len(), self.old_log_probs.len()] == [rows; 2]
            && (0.0..=1.0).contains(&self.low)
            && self.high >= 0.0
            && self.log_ratio_limit > 0.0
            && self.log_ratio_limit <= 88.0;
        self.weights.len() == rows && (!self.clipped || of_ratio)
    }

    /// What a scored row's numbers are. They must be finite where they matter: what stands beside a factor of 0 is not
    /// looked at. Where their product may leave f32 the row is refused, or saturates.
    pub(crate) fn fit(&self, row: usize, options: &LogitOptions) -> Fit {
        let weight = self.weights[row];
        let finite = if !self.clipped || weight == 0.0 {
            weight.is_finite()
        } else {
            let (advantage, old) = (self.advantages[row], self.old_log_probs[row]);
            weight.is_finite() && (advantage == 0.0 || (advantage.is_finite() && old.is_finite()))
        };
        match self.upstream(row) * (2.0 / options.temperature()).max(1.0) {
            _ if !finite => Fit::Wrong,
            size if size > 1e37 => Fit::Extreme,
            _ => Fit::Useful,
        }
    }

    /// What the scored rows' numbers are together.
    fn fit_of_rows(&self, targets: &[i64], options: &LogitOptions) -> Fit {
        let scored = (0..targets.len()).filter(|row| targets[*row] >= 0);
        scored.map(|row| self.fit(row, options)).fold(Fit::Useful, Fit::and)
    }

    /// What the gradient of a row's log-prob can be in size; 0 where no factor lets it through.
    pub(crate) fn upstream(&self, row: usize) -> f64 {
        let weight = f64::from(self.weights[row]).abs();
        let of_ratio = if self.clipped {
            f64::from(self.advantages[row]).abs() * f64::from(self.log_ratio_limit).exp() * 1.001
        } else {
            1.0
        };
        if weight == 0.0 || of_ratio == 0.0 { 0.0 } else { weight * of_ratio }
    }

    /// Asserts what the loss of a row must be.
    pub(crate) fn check(&self, row: usize, kind: Kind, loss: f32) {
        let silent = self.upstream(row) == 0.0;
        let right = match kind {
            Kind::Masked => loss == 0.0,
            // A weight of 0 takes the row out of the loss: 0, or NaN as its log-prob.
            Kind::NoSoftmax => loss.is_nan() || (silent && loss == 0.0),
            Kind::Edge | Kind::NoColumn => true,
            _ if silent => loss == 0.0,
            Kind::Impossible if !self.clipped => loss.is_infinite(),
            Kind::Impossible | Kind::Scored => loss.is_finite(),
        };
        assert!(right, "row {row} is {kind:?}, its loss {loss}: {self:?}");
    }
}

fn walk_of<B, T, W, G>(choices: &mut Choices<'_>)
where
    B: HostBackend,
    T: Element + Sentinel,
    W: Element + Sentinel,
    G: Element + Sentinel,
{
    choices.calls_of(B::VERBS, &["linear_row_loss"]);
    let count = choices.of(4, &[0, 1]);
    let case = Case::<T, W>::choose(choices, count);
    let options = settings::logit_options(choices);
    let backend = B::choose(choices);
    let kinds = case.kinds(&options);
    let loss = Held::choose(choices, count);
    let (mut log_probs, mut losses) =
        (Guarded::<f32>::new(choices.length(count)), Guarded::<f32>::new(choices.length(count)));
    let mut gradients = Gradients::<T, G>::choose(choices, count);
    let refused = log_probs.get().len() != count
        || losses.get().len() != count
        || !gradients.fit(count)
        || !are_columns(&case.targets, VOCAB)
        || !loss.fits(count);
    let numbers = if refused { Fit::Wrong } else { loss.fit_of_rows(&case.targets, &options) };

    let outputs = RowLosses { log_probs: log_probs.get_mut(), losses: losses.get_mut() };
    let (states, head, views) = (case.hidden(), case.head(), gradients.views());
    let (hidden, beyond) = scored(choices, &states, &case.targets);
    let numbers = if beyond { Fit::Wrong } else { numbers };
    let result = if choices.yes() {
        let targets = rows::narrow(&case.targets);
        backend.linear_row_loss(hidden, &head, &targets, &options, &loss.view(), outputs, views)
    } else {
        backend.linear_row_loss(hidden, &head, &case.targets, &options, &loss.view(), outputs, views)
    };
    if let Err(error) = result {
        assert_ne!(numbers, Fit::Useful, "refused: {error:?}");
        assert!(!error.to_string().is_empty());
        untouched!(log_probs, losses);
        gradients.untouched();
        return;
    }
    assert_ne!(numbers, Fit::Wrong, "accepted: {loss:?}");
    log_probs.untouched_but("log-probs", |_| true);
    losses.untouched_but("losses", |_| true);
    for (row, kind) in kinds.iter().enumerate() {
        kind.check_log_prob(row, log_probs.get()[row]);
        loss.check(row, *kind, losses.get()[row]);
    }
    let upstream: Vec<Upstream> = (0..count).map(|row| of_row(&loss, row, &options)).collect();
    gradients.check(&case, &kinds, &upstream);
}

/// What comes back to a row. It saturates at the ends of f32: only the temperature can take it beyond.
pub(crate) fn of_row(loss: &Held, row: usize, options: &LogitOptions) -> Upstream {
    let size = loss.upstream(row).min(f64::from(f32::MAX));
    match size * (1.0 / options.temperature()).max(1.0) {
        size if size > 1e37 => Upstream::Any,
        size => Upstream::UpTo(size),
    }
}
