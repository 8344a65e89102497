//! The backends behind one interface over host memory: a contract's test is written once, generic, and run for each.
//!
//! `on_every_backend!(one, another);` makes tests `cpu::one`, `cuda::one`, ... of functions that take a backend.

mod cuda;

pub use crate::host_rows::{Forward, Rows};
pub use crate::on_every_backend;

use exo_kernels::cpu::InstructionSet;
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::{
    Batch, Cpu, Element, GroupStatistics, LogRatio, LogitOptions, Logits, LogitsMut, LossOptions, Objective,
    ObjectiveInputs, ObjectiveOutputs, PreferenceLoss, Reduction, Reference, Report, Result, Rewards, RowGradients,
    SavedRows, SoftmaxState, Step, TokenLogProbs,
};

/// A type of logits, on every backend there is.
pub trait TestElement: Element + cudarc::driver::DeviceRepr {}
impl<T: Element + cudarc::driver::DeviceRepr> TestElement for T {}

/// What the objective stage gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    pub losses: Vec<f64>,
    pub coefficients: Vec<f64>,
    pub statistics: Vec<GroupStatistics>,
}

/// d loss / d log-prob and, if there is one, d loss / d entropy, of each row.
pub type Upstream<'a> = (&'a [f32], Option<&'a [f32]>);

/// A backend's stages and its loss. Outputs are poisoned before each call: what is not written shows.
pub trait TestBackend: Clone {
    /// What its bounds are derived from.
    const ARITHMETIC: Arithmetic;
    type Loss: TestLoss;

    fn name(&self) -> String;

    /// What there is of it on this machine: the instruction sets of a processor.
    fn variants(&self) -> Vec<Self>;

    /// The size of a test: the processor's, or one that a software device has time for.
    fn pick<N>(cpu: N, cuda: N) -> N;

    fn try_forward<T: TestElement>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Result<Forward>;

    /// The whole buffer behind the backward pass: the logits', overwritten, or a gradient's, which held the logits.
    fn try_backward<T: TestElement>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        in_place: bool,
    ) -> Result<Vec<T>>;

    fn log_ratios(
        &self,
        log_probs: &[f32],
        targets: &[i64],
        reference: Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
    ) -> Vec<f64>;

    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        batch: &Batch,
        rewards: Rewards<'_>,
        reduction: Reduction,
    ) -> Groups;

    fn loss(&self, options: impl Into<LossOptions>) -> Self::Loss;

    fn forward<T: TestElement>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Forward {
        self.try_forward(rows, options, entropies).expect("forward")
    }

    fn backward<T: TestElement>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        in_place: bool,
    ) -> Vec<T> {
        self.try_backward(rows, options, forward, upstream, in_place).expect("backward")
    }

    /// Loss and d loss / d log-ratio of one group of K sequences, not reduced; `offsets` are the proposal's.
    fn one_group(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        rewards: &[f64],
        offsets: Option<&[f64]>,
    ) -> (f64, Vec<f64>) {
        let k = log_ratios.len();
        let batch = Batch::padded(k, 1, k).expect("a group of at least one");
        let rewards = Rewards::from(rewards);
        let rewards = offsets.map_or(rewards, |offsets| rewards.with_proposal(offsets));
        let groups = self.objective(objective, log_ratios, &batch, rewards, Reduction::Sum);
        (groups.losses[0], groups.coefficients)
    }
}

/// A backend's [`PreferenceLoss`] over host memory.
pub trait TestLoss {
    fn forward<T: TestElement>(
        &mut self,
        rows: &Rows<T>,
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
    ) -> Result<Step>;

    /// Writes the gradient; a refused call leaves the buffer as it was.
    fn backward_into<T: TestElement>(&mut self, step: &Step, rows: &Rows<T>, gradient: &mut Rows<T>) -> Result<()>;

    /// The gradient, in a buffer that held NaN before.
    fn backward<T: TestElement>(&mut self, step: &Step, rows: &Rows<T>) -> Result<Vec<T>> {
        let mut gradient = Rows { logits: vec![T::NAN; rows.logits.len()], ..rows.clone() };
        self.backward_into(step, rows, &mut gradient)?;
        Ok(gradient.logits)
    }

    /// Overwrites the logits; a refused call leaves them as they were.
    fn backward_in_place<T: TestElement>(&mut self, step: Step, rows: &mut Rows<T>) -> Result<()>;

    fn set_loss_scale(&mut self, loss_scale: f64);

    fn report(&self) -> Result<Report>;

    fn unchecked_report(&self) -> Result<Report>;
}

/// Tests of functions that take a backend, by name, for every backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        mod cpu {
            $(#[test]
            fn $test() {
                super::$test(&exo_kernels::Cpu::default());
            })*
        }

        mod cuda {
            $(#[test]
            fn $test() {
                super::$test(&$crate::device::cuda());
            })*
        }
    };
}
impl TestBackend for Cpu {
    const ARITHMETIC: Arithmetic = Arithmetic::BACKEND;
    type Loss = PreferenceLoss<Cpu>;

    fn name(&self) -> String {
        format!("CPU, {}", self.instruction_set().name())
    }

    fn variants(&self) -> Vec<Self> {
        let found = InstructionSet::ALL.into_iter().map(Cpu::with_instruction_set);
        found.filter_map(|cpu| cpu.inspect_err(|error| println!("NOT RUN: {error}")).ok()).collect()
    }

    fn pick<N>(cpu: N, _: N) -> N {
        cpu
    }

    fn try_forward<T: TestElement>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Result<Forward> {
        let count = rows.count();
        let mut forward = Forward {
            log_probs: vec![f32::MAX; count],
            states: vec![SoftmaxState { r: f32::MAX, s: f32::MAX }; count],
            entropies: vec![f32::MAX; if entropies { count } else { 0 }],
        };
        let outputs = TokenLogProbs {
            log_probs: &mut forward.log_probs,
            states: &mut forward.states,
            entropies: entropies.then_some(&mut forward.entropies),
        };
        let logits = Logits::strided(&rows.logits[rows.offset..], count, rows.vocab, rows.row_stride)?;
        if rows.targets_in_32_bits {
            self.token_log_probs(logits, &rows.narrow_targets(), options, outputs)?;
        } else {
            self.token_log_probs(logits, &rows.targets, options, outputs)?;
        }
        Ok(forward)
    }

    fn try_backward<T: TestElement>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        (log_probs, entropies): Upstream<'_>,
        in_place: bool,
    ) -> Result<Vec<T>> {
        let (count, vocab, stride) = (rows.count(), rows.vocab, rows.row_stride);
        let kept = (!forward.entropies.is_empty()).then_some(forward.entropies.as_slice());
        let saved = SavedRows { states: &forward.states, entropies: kept };
        let upstream = RowGradients { log_probs, entropies };
        let mut written = rows.logits.clone();
        let out = LogitsMut::strided(&mut written[rows.offset..], count, vocab, stride)?;
        if in_place {
            self.token_log_probs_backward_in_place(out, &rows.targets, options, saved, upstream)?;
        } else {
            let logits = Logits::strided(&rows.logits[rows.offset..], count, vocab, stride)?;
            self.token_log_probs_backward(logits, &rows.targets, options, saved, upstream, out)?;
        }
        Ok(written)
    }

    fn log_ratios(
        &self,
        log_probs: &[f32],
        targets: &[i64],
        reference: Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
    ) -> Vec<f64> {
        let mut log_ratios = vec![f64::MAX; batch.sequences()];
        Cpu::log_ratios(self, log_probs, targets, reference, batch, log_ratio, &mut log_ratios).expect("log-ratios");
        log_ratios
    }

    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        batch: &Batch,
        rewards: Rewards<'_>,
        reduction: Reduction,
    ) -> Groups {
        let mut groups = Groups {
            losses: vec![f64::MAX; batch.groups()],
            coefficients: vec![f64::MAX; batch.sequences()],
            statistics: vec![GroupStatistics::default(); batch.groups()],
        };
        let outputs = ObjectiveOutputs {
            group_losses: &mut groups.losses,
            coefficients: &mut groups.coefficients,
            statistics: &mut groups.statistics,
        };
        Cpu::objective(self, objective, ObjectiveInputs { log_ratios, batch, rewards }, reduction, outputs)
            .expect("inputs that the objective takes");
        groups
    }

    fn loss(&self, options: impl Into<LossOptions>) -> Self::Loss {
        PreferenceLoss::new(*self, options)
    }
}

fn view<T: Element>(rows: &Rows<T>) -> Result<Logits<'_, T>> {
    Logits::strided(&rows.logits[rows.offset..], rows.rows_of_logits(), rows.vocab, rows.row_stride)
}

fn view_mut<T: Element>(rows: &mut Rows<T>) -> Result<LogitsMut<'_, T>> {
    let count = rows.rows_of_logits();
    LogitsMut::strided(&mut rows.logits[rows.offset..], count, rows.vocab, rows.row_stride)
}

impl TestLoss for PreferenceLoss<Cpu> {
    fn forward<T: TestElement>(
        &mut self,
        rows: &Rows<T>,
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
    ) -> Result<Step> {
        PreferenceLoss::<Cpu>::forward(self, view(rows)?, &rows.targets, batch, reference, rewards)
    }

    fn backward_into<T: TestElement>(&mut self, step: &Step, rows: &Rows<T>, gradient: &mut Rows<T>) -> Result<()> {
        PreferenceLoss::<Cpu>::backward(self, step, view(rows)?, view_mut(gradient)?)
    }

    fn backward_in_place<T: TestElement>(&mut self, step: Step, rows: &mut Rows<T>) -> Result<()> {
        PreferenceLoss::<Cpu>::backward_in_place(self, step, view_mut(rows)?)
    }

    fn set_loss_scale(&mut self, loss_scale: f64) {
        PreferenceLoss::<Cpu>::set_loss_scale(self, loss_scale);
    }

    fn report(&self) -> Result<Report> {
        PreferenceLoss::<Cpu>::report(self).cloned()
    }

    fn unchecked_report(&self) -> Result<Report> {
        PreferenceLoss::<Cpu>::unchecked_report(self).cloned()
    }
}
