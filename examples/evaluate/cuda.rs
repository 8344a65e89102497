//! The stages on a CUDA device, over host memory.

use cudarc::driver::{CudaContext, CudaSlice, CudaView, CudaViewMut, DeviceRepr};
use exo_kernels::cuda::{
    Cuda, DeviceGroupStatistics, LogRatios, Logits, LogitsMut, ObjectiveOutputs, Reference, RowGradients, SavedRows,
    TokenLogProbs,
};
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::{Element, LogRatio, Reduction, SoftmaxState};
use golden::{Fixture, Stages, StoredLogits, TokenStage};

/// A CUDA device.
pub(crate) struct Device(Cuda);

impl Device {
    /// The first one; softcuda where there is no driver.
    pub(crate) fn new() -> Self {
        let installed = softcuda::install().expect("softcuda can be loaded where there is no driver");
        eprintln!("CUDA device: {installed:?}");
        let context = CudaContext::new(0).expect("device 0");
        Self(Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load"))
    }

    fn upload<T: DeviceRepr + Copy + Default>(&self, numbers: &[T]) -> Buffer<T> {
        // An allocation of nothing is an error.
        let one = [T::default()];
        let memory = self.0.stream().clone_htod(if numbers.is_empty() { one.as_slice() } else { numbers });
        Buffer { memory: memory.expect("upload"), length: numbers.len() }
    }

    fn download<T: DeviceRepr + Clone>(&self, buffer: &Buffer<T>) -> Vec<T> {
        self.0.stream().clone_dtoh(&buffer.view()).expect("download")
    }

    fn forward_of<T: Element + DeviceRepr + Default>(&self, fixture: &Fixture, logits: &[T]) -> TokenStage {
        let rows = fixture.targets.len();
        let (logits, targets) = (self.upload(logits), self.upload(&fixture.targets));
        let (mut log_probs, mut entropies) = (self.upload(&vec![0.0; rows]), self.upload(&vec![0.0; rows]));
        let mut states = self.upload(&vec![SoftmaxState::default(); rows]);
        let mut outputs = TokenLogProbs {
            log_probs: log_probs.view_mut(),
            states: states.view_mut(),
            entropies: Some(entropies.view_mut()),
        };
        let view = Logits::new(logits.view(), fixture.vocab).expect("rows");
        self.0
            .token_log_probs(&view, &targets.view(), &fixture.options.logits(), &mut outputs)
            .expect("token log-probs");
        TokenStage {
            log_probs: self.download(&log_probs),
            states: self.download(&states),
            entropies: self.download(&entropies),
        }
    }

    fn backward_of<T: Element + DeviceRepr + Default>(
        &self,
        fixture: &Fixture,
        logits: &[T],
        states: &[SoftmaxState],
        gradients: &[f32],
    ) -> Vec<f64> {
        let mut logits = self.upload(logits);
        let (targets, states) = (self.upload(&fixture.targets), self.upload(states));
        let gradients = self.upload(gradients);
        let saved = SavedRows { states: states.view(), entropies: None };
        let upstream = RowGradients { log_probs: gradients.view(), entropies: None };
        let mut view = LogitsMut::new(logits.view_mut(), fixture.vocab).expect("rows");
        let (targets, options) = (targets.view(), fixture.options.logits());
        self.0
            .token_log_probs_backward_in_place(&mut view, &targets, &options, &saved, &upstream)
            .expect("token log-probs, backward");
        self.download(&logits).iter().map(|value| f64::from(value.to_f32())).collect()
    }
}

/// Numbers on the device.
struct Buffer<T> {
    memory: CudaSlice<T>,
    length: usize,
}

impl<T> Buffer<T> {
    fn view(&self) -> CudaView<'_, T> {
        self.memory.slice(..self.length)
    }

    fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.memory.slice_mut(..self.length)
    }
}

impl Stages for Device {
    const ARITHMETIC: Arithmetic = Arithmetic::CUDA;

    fn forward(&self, fixture: &Fixture) -> TokenStage {
        match &fixture.logits {
            StoredLogits::F32(logits) => self.forward_of(fixture, logits),
            StoredLogits::F16(logits) => self.forward_of(fixture, logits),
            StoredLogits::Bf16(logits) => self.forward_of(fixture, logits),
        }
    }

    fn backward(&self, fixture: &Fixture, states: &[SoftmaxState], gradients: &[f32]) -> Vec<f64> {
        match &fixture.logits {
            StoredLogits::F32(logits) => self.backward_of(fixture, logits, states, gradients),
            StoredLogits::F16(logits) => self.backward_of(fixture, logits, states, gradients),
            StoredLogits::Bf16(logits) => self.backward_of(fixture, logits, states, gradients),
        }
    }

    fn log_ratios(&self, fixture: &Fixture, log_probs: &[f32]) -> Vec<f64> {
        let (rows, sequences) = (fixture.targets.len(), fixture.batch.sequences());
        let batch = self.0.upload_batch(&fixture.batch).expect("offsets");
        let (log_probs, targets) = (self.upload(log_probs), self.upload(&fixture.targets));
        let reference = self.upload(&fixture.reference);
        let (mut log_ratios, mut sums) = (self.upload(&vec![0.0; sequences]), self.upload(&vec![0.0; sequences]));
        let (mut scored_rows, mut row_sequences) = (self.upload(&vec![0; sequences]), self.upload(&vec![0; rows]));
        let mut outputs = LogRatios {
            log_ratios: log_ratios.view_mut(),
            log_prob_sums: sums.view_mut(),
            scored_rows: scored_rows.view_mut(),
            row_sequences: row_sequences.view_mut(),
        };
        let (log_probs, targets) = (log_probs.view(), targets.view());
        let reference = Reference::PerToken(reference.view());
        self.0.log_ratios(&log_probs, &targets, &reference, &batch, LogRatio::Sum, &mut outputs).expect("log-ratios");
        self.download(&log_ratios)
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (sequences, groups) = (fixture.batch.sequences(), fixture.batch.groups());
        let batch = self.0.upload_batch(&fixture.batch).expect("offsets");
        let log_ratios = self.upload(log_ratios);
        let (mut losses, mut coefficients) = (self.upload(&vec![0.0; groups]), self.upload(&vec![0.0; sequences]));
        let mut statistics = self.upload(&vec![DeviceGroupStatistics::default(); groups]);
        let mut outputs = ObjectiveOutputs {
            group_losses: losses.view_mut(),
            coefficients: coefficients.view_mut(),
            statistics: statistics.view_mut(),
        };
        let (objective, rewards) = (fixture.options.objective(), fixture.rewards.as_slice());
        self.0
            .objective(&objective, &log_ratios.view(), &batch, rewards, Reduction::Mean, &mut outputs)
            .expect("objective");
        (self.download(&losses), self.download(&coefficients))
    }
}
