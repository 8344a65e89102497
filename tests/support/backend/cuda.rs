//! CUDA behind the interface of the module above: uploads, runs, downloads.

use super::{Forward, Groups, Rows, TestBackend, TestElement, TestLoss, Upstream};
use crate::device::{download, upload};
use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{Cuda, DeviceGroupStatistics, LogRatios, Logits, LogitsMut, ObjectiveOutputs};
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::{
    Batch, GroupStatistics, LogRatio, LogitOptions, LossOptions, Objective, PreferenceLoss, Reduction, Reference,
    Report, Result, Rewards, Step, cuda,
};

/// A reference in device memory.
enum Uploaded {
    PerToken(CudaSlice<f32>, usize),
    PerSequence(CudaSlice<f64>, usize),
    None,
}

impl Uploaded {
    fn new(cuda: &Cuda, reference: Reference<'_>) -> Self {
        match reference {
            Reference::PerToken(values) => Self::PerToken(upload(cuda, values), values.len()),
            Reference::PerSequence(values) => Self::PerSequence(upload(cuda, values), values.len()),
            Reference::None => Self::None,
        }
    }

    fn view(&self) -> cuda::Reference<'_> {
        match self {
            Self::PerToken(values, length) => cuda::Reference::PerToken(values.slice(..*length)),
            Self::PerSequence(values, length) => cuda::Reference::PerSequence(values.slice(..*length)),
            Self::None => cuda::Reference::None,
        }
    }
}

fn poisoned<T: DeviceRepr + Copy>(cuda: &Cuda, poison: T, length: usize) -> CudaSlice<T> {
    upload(cuda, &vec![poison; length])
}

impl TestBackend for Cuda {
    const ARITHMETIC: Arithmetic = Arithmetic::CUDA;
    type Loss = CudaLoss;

    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn variants(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn pick<N>(_: N, cuda: N) -> N {
        cuda
    }

    fn try_forward<T: TestElement>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Result<Forward> {
        rows.try_forward(self, options, entropies)
    }

    fn try_backward<T: TestElement>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        in_place: bool,
    ) -> Result<Vec<T>> {
        rows.try_backward(self, options, forward, upstream, in_place)
    }

    fn log_ratios(
        &self,
        log_probs: &[f32],
        targets: &[i64],
        reference: Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
    ) -> Vec<f64> {
        let (rows, sequences) = (batch.rows(), batch.sequences());
        let (log_probs, targets) = (upload(self, log_probs), upload(self, targets));
        let reference = Uploaded::new(self, reference);
        let (mut log_ratios, mut sums) = (poisoned(self, f64::MAX, sequences), poisoned(self, f64::MAX, sequences));
        let (mut scored, mut of_rows) = (poisoned(self, -1, sequences), poisoned(self, -1, rows));
        let mut outputs = LogRatios {
            log_ratios: log_ratios.slice_mut(..sequences),
            log_prob_sums: sums.slice_mut(..sequences),
            scored_rows: scored.slice_mut(..sequences),
            row_sequences: of_rows.slice_mut(..rows),
        };
        let placed = self.upload_batch(batch).expect("offsets");
        let (log_probs, targets) = (log_probs.slice(..rows), targets.slice(..rows));
        Cuda::log_ratios(self, &log_probs, &targets, &reference.view(), &placed, log_ratio, &mut outputs)
            .expect("log-ratios");
        download(self, &log_ratios.slice(..sequences))
    }

    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        batch: &Batch,
        rewards: Rewards<'_>,
        reduction: Reduction,
    ) -> Groups {
        let (sequences, groups) = (batch.sequences(), batch.groups());
        let log_ratios = upload(self, log_ratios);
        let (mut losses, mut coefficients) = (poisoned(self, f64::MAX, groups), poisoned(self, f64::MAX, sequences));
        let mut statistics = poisoned(self, DeviceGroupStatistics::default(), groups);
        let mut outputs = ObjectiveOutputs {
            group_losses: losses.slice_mut(..groups),
            coefficients: coefficients.slice_mut(..sequences),
            statistics: statistics.slice_mut(..groups),
        };
        let placed = self.upload_batch(batch).expect("offsets");
        let log_ratios = log_ratios.slice(..sequences);
        Cuda::objective(self, objective, &log_ratios, &placed, rewards, reduction, &mut outputs)
            .expect("inputs that the objective takes");
        let statistics = download(self, &statistics.slice(..groups));
        Groups {
            losses: download(self, &losses.slice(..groups)),
            coefficients: download(self, &coefficients.slice(..sequences)),
            statistics: statistics.into_iter().map(GroupStatistics::from).collect(),
        }
    }

    fn loss(&self, options: impl Into<LossOptions>) -> Self::Loss {
        CudaLoss { cuda: self.clone(), loss: PreferenceLoss::new(self.clone(), options) }
    }
}

/// A loss, and the backend that brings its inputs to the device.
pub struct CudaLoss {
    cuda: Cuda,
    loss: PreferenceLoss<Cuda>,
}

fn view<'a, T: TestElement>(logits: &'a CudaSlice<T>, rows: &Rows<T>) -> Result<Logits<'a, T>> {
    let view = logits.slice(rows.offset..rows.logits.len());
    Logits::strided(view, rows.rows_of_logits(), rows.vocab, rows.row_stride)
}

fn view_mut<'a, T: TestElement>(logits: &'a mut CudaSlice<T>, rows: &Rows<T>) -> Result<LogitsMut<'a, T>> {
    let view = logits.slice_mut(rows.offset..rows.logits.len());
    LogitsMut::strided(view, rows.rows_of_logits(), rows.vocab, rows.row_stride)
}

impl TestLoss for CudaLoss {
    fn forward<T: TestElement>(
        &mut self,
        rows: &Rows<T>,
        batch: &Batch,
        reference: Reference<'_>,
        rewards: Rewards<'_>,
    ) -> Result<Step> {
        let (logits, targets) = (upload(&self.cuda, &rows.logits), upload(&self.cuda, &rows.targets));
        let reference = Uploaded::new(&self.cuda, reference);
        let view = view(&logits, rows)?;
        let step = self.loss.forward(&view, &targets.slice(..rows.count()), batch, &reference.view(), rewards)?;
        // The backward pass brings the same logits to the device again.
        Ok(step.with_moved_inputs())
    }

    fn backward_into<T: TestElement>(&mut self, step: &Step, rows: &Rows<T>, gradient: &mut Rows<T>) -> Result<()> {
        let logits = upload(&self.cuda, &rows.logits);
        let mut written = upload(&self.cuda, &gradient.logits);
        let result = self.loss.backward(step, &view(&logits, rows)?, &mut view_mut(&mut written, gradient)?);
        gradient.logits = download(&self.cuda, &written.slice(..gradient.logits.len()));
        result
    }

    fn backward_in_place<T: TestElement>(&mut self, step: Step, rows: &mut Rows<T>) -> Result<()> {
        let mut logits = upload(&self.cuda, &rows.logits);
        let result = self.loss.backward_in_place(step, &mut view_mut(&mut logits, rows)?);
        rows.logits = download(&self.cuda, &logits.slice(..rows.logits.len()));
        result
    }

    fn set_loss_scale(&mut self, loss_scale: f64) {
        self.loss.set_loss_scale(loss_scale);
    }

    fn report(&self) -> Result<Report> {
        self.loss.report().cloned()
    }

    fn unchecked_report(&self) -> Result<Report> {
        self.loss.unchecked_report().cloned()
    }
}
