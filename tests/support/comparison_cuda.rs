//! A fixture computed on CUDA, stage by stage.

use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{Cuda, DeviceGroupStatistics, LogRatios, ObjectiveOutputs, Reference};
use exo_kernels::{Element, LogRatio, Reduction};

use crate::comparison::{Computed, Groups};
use crate::device::{Rows, download, upload};
use crate::fixture::Fixture;

fn poisoned(cuda: &Cuda, length: usize) -> CudaSlice<f64> {
    upload(cuda, &vec![f64::MAX; length])
}

/// Every output.
pub(crate) fn computed<T: Element + DeviceRepr>(fixture: &Fixture, logits: &[T], cuda: &Cuda) -> Computed {
    let options = fixture.options.logits();
    let rows = Rows::new(logits.to_vec(), fixture.targets.clone(), fixture.vocab);
    let forward = rows.forward(cuda, &options, true);
    let plain = rows.forward(cuda, &options, false);
    assert_eq!((&plain.log_probs, &plain.states), (&forward.log_probs, &forward.states));

    let (count, sequences) = (fixture.targets.len(), fixture.batch.sequences());
    let batch = cuda.upload_batch(&fixture.batch).expect("offsets");
    let log_probs = upload(cuda, &forward.log_probs);
    let targets = upload(cuda, &fixture.targets);
    let reference = upload(cuda, &fixture.reference);
    let (mut log_ratios, mut sums) = (poisoned(cuda, sequences), poisoned(cuda, sequences));
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
    let log_ratios = download(cuda, &log_ratios.slice(..sequences));
    let of_row = download(cuda, &row_sequences.slice(..count));
    for (sequence, range) in fixture.batch.sequence_offsets().windows(2).enumerate() {
        assert!(of_row[range[0]..range[1]].iter().all(|found| *found as usize == sequence), "sequence of each row");
    }
    let groups = objective(fixture, &log_ratios, cuda);
    let row_gradients: Vec<f32> =
        of_row.iter().map(|sequence| groups.coefficients[*sequence as usize] as f32).collect();
    let gradient = rows.backward(cuda, &options, &plain, (&row_gradients, None), false);

    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
    Computed {
        log_probs: wide(&forward.log_probs),
        log_sum_exps: (0..count)
            .map(|row| if fixture.targets[row] < 0 { 0.0 } else { forward.states[row].log_sum_exp() })
            .collect(),
        entropies: wide(&forward.entropies),
        log_ratios,
        groups,
        gradient: fixture
            .gradient
            .rows
            .iter()
            .flat_map(|row| &gradient[row * fixture.vocab..(row + 1) * fixture.vocab])
            .map(|value| f64::from(value.to_f32()))
            .collect(),
    }
}

/// The objective stage.
pub(crate) fn objective(fixture: &Fixture, log_ratios: &[f64], cuda: &Cuda) -> Groups {
    let (sequences, groups) = (fixture.batch.sequences(), fixture.batch.groups());
    let batch = cuda.upload_batch(&fixture.batch).expect("offsets");
    let log_ratios = upload(cuda, log_ratios);
    let (mut losses, mut coefficients) = (poisoned(cuda, groups), poisoned(cuda, sequences));
    let mut statistics = upload(cuda, &vec![DeviceGroupStatistics::default(); groups]);
    let mut outputs = ObjectiveOutputs {
        group_losses: losses.slice_mut(..groups),
        coefficients: coefficients.slice_mut(..sequences),
        statistics: statistics.slice_mut(..groups),
    };
    let rewards = fixture.rewards.as_slice();
    let log_ratios = log_ratios.slice(..sequences);
    cuda.objective(&fixture.options.objective(), &log_ratios, &batch, rewards, Reduction::Mean, &mut outputs)
        .expect("objective");
    let losses = download(cuda, &losses.slice(..groups));
    let loss = losses.iter().sum::<f64>() / groups.max(1) as f64;
    Groups { loss, losses, coefficients: download(cuda, &coefficients.slice(..sequences)) }
}
