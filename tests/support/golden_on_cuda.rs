//! The golden fixtures on CUDA, stage by stage.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{Cuda, LogRatios, Reference};
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::{Element, LogRatio, Reduction, Rewards, SoftmaxState};
use golden::{Fixture, Stages, StoredLogits, TokenStage};

use crate::backend::TestBackend;
use crate::device::{download, upload};
use crate::host_rows::{Forward, Rows};

fn rows<T: Element>(fixture: &Fixture, logits: &[T]) -> Rows<T> {
    Rows::new(logits.to_vec(), fixture.targets.clone(), fixture.vocab)
}

fn forward<T: Element + DeviceRepr>(cuda: &Cuda, fixture: &Fixture, logits: &[T]) -> TokenStage {
    let (rows, options) = (rows(fixture, logits), fixture.options.logits());
    let Forward { log_probs, states, entropies } = rows.forward(cuda, &options, true);
    let plain = rows.forward(cuda, &options, false);
    assert_eq!((&plain.log_probs, &plain.states), (&log_probs, &states), "the entropy changes no other bit");
    TokenStage { log_probs, states, entropies }
}

fn backward<T: Element + DeviceRepr>(
    cuda: &Cuda,
    fixture: &Fixture,
    logits: &[T],
    states: &[SoftmaxState],
    gradients: &[f32],
) -> Vec<f64> {
    let forward = Forward { log_probs: Vec::new(), states: states.to_vec(), entropies: Vec::new() };
    let options = fixture.options.logits();
    let gradient = rows(fixture, logits).backward(cuda, &options, &forward, (gradients, None), false);
    gradient.iter().map(|value| f64::from(value.to_f32())).collect()
}

/// CUDA, for [`golden::compare`].
pub struct OnCuda(pub Cuda);

impl Stages for OnCuda {
    const ARITHMETIC: Arithmetic = Arithmetic::CUDA;

    fn forward(&self, fixture: &Fixture) -> TokenStage {
        match &fixture.logits {
            StoredLogits::F32(logits) => forward(&self.0, fixture, logits),
            StoredLogits::F16(logits) => forward(&self.0, fixture, logits),
            StoredLogits::Bf16(logits) => forward(&self.0, fixture, logits),
        }
    }

    fn backward(&self, fixture: &Fixture, states: &[SoftmaxState], gradients: &[f32]) -> Vec<f64> {
        match &fixture.logits {
            StoredLogits::F32(logits) => backward(&self.0, fixture, logits, states, gradients),
            StoredLogits::F16(logits) => backward(&self.0, fixture, logits, states, gradients),
            StoredLogits::Bf16(logits) => backward(&self.0, fixture, logits, states, gradients),
        }
    }

    fn log_ratios(&self, fixture: &Fixture, log_probs: &[f32]) -> Vec<f64> {
        let (count, sequences) = (fixture.targets.len(), fixture.batch.sequences());
        let cuda = &self.0;
        let batch = cuda.upload_batch(&fixture.batch).expect("offsets");
        let (log_probs, targets) = (upload(cuda, log_probs), upload(cuda, &fixture.targets));
        let reference = upload(cuda, &fixture.reference);
        let (mut log_ratios, mut sums) =
            (upload(cuda, &vec![f64::MAX; sequences]), upload(cuda, &vec![f64::MAX; sequences]));
        let (mut scored, mut row_sequences) = (upload(cuda, &vec![-1; sequences]), upload(cuda, &vec![-1; count]));
        let mut outputs = LogRatios {
            log_ratios: log_ratios.slice_mut(..sequences),
            log_prob_sums: sums.slice_mut(..sequences),
            scored_rows: scored.slice_mut(..sequences),
            row_sequences: row_sequences.slice_mut(..count),
        };
        let reference = Reference::PerToken(reference.slice(..count));
        let (log_probs, targets) = (log_probs.slice(..count), targets.slice(..count));
        cuda.log_ratios(&log_probs, &targets, &reference, &batch, LogRatio::Sum, &mut outputs).expect("log-ratios");
        let of_row = download(cuda, &row_sequences.slice(..count));
        for (sequence, range) in fixture.batch.sequence_offsets().windows(2).enumerate() {
            assert!(of_row[range[0]..range[1]].iter().all(|found| *found as usize == sequence), "sequence of each row");
        }
        download(cuda, &log_ratios.slice(..sequences))
    }

    fn objective(&self, fixture: &Fixture, log_ratios: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let rewards = Rewards::from(fixture.rewards.as_slice());
        let objective = fixture.options.objective();
        let groups = TestBackend::objective(&self.0, &objective, log_ratios, &fixture.batch, rewards, Reduction::Mean);
        (groups.losses, groups.coefficients)
    }
}
