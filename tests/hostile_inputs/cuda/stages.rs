//! Token log-probs, log-ratios and objective on the device.

use super::{Placed, cuda, upload};
use crate::hostile::Choices;
use crate::hostile::guarded::{Guarded, Sentinel, untouched};
use crate::hostile::log_ratio::Held;
use crate::hostile::objective::{self, check_group, groups};
use crate::hostile::rows::{self, Kind, Rows, VOCAB};
use crate::hostile::settings::{self, Fit};
use crate::hostile::token_log_prob::{Outputs, Upstream, check_gradient};
use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{
    Cuda, DeviceRewards, LinearChunks, LogRatios, Logits, LogitsMut, Matrix, MatrixMut, ObjectiveOutputs, Reference,
    RowGradients, SavedRows, TokenLogProbs,
};
use exo_kernels::{Batch, Element, LogRatio, LogitOptions, SoftmaxState, Target};
use half::{bf16, f16};

/// Views, chunks and devices.
pub(super) fn views(choices: &mut Choices<'_>) {
    choices.calls(&[
        "cuda/memory::Logits::new",
        "cuda/memory::Logits::strided",
        "cuda/memory::LogitsMut::new",
        "cuda/memory::LogitsMut::strided",
        "cuda/memory::Matrix::new",
        "cuda/memory::Matrix::strided",
        "cuda/memory::MatrixMut::new",
        "cuda/memory::MatrixMut::strided",
        "cuda/linear/workspace::LinearChunks::with_columns",
        "cuda/linear/workspace::LinearChunks::with_row_bytes",
        "cuda/linear/workspace::Cuda::set_linear_chunks",
        "cuda/mod::Cuda::device",
    ]);
    let cuda = cuda();
    let mut data = upload(&cuda, &[1.0f32; 13]);
    let elements = choices.of(12, &[0, 1, 2, 11, 13]);
    let (rows, columns, stride) = (choices.size(3), choices.size(4), choices.size(4));
    let host = vec![1.0f32; elements];
    let given = format!("{elements} elements, {rows} rows of {columns}, stride {stride}");
    // The host's views have the same rules, and walks of their own.
    let logits = exo_kernels::Logits::new(&host, columns).map(|view| (view.rows(), view.vocab()));
    let strided = exo_kernels::Logits::strided(&host, rows, columns, stride).map(|view| (view.rows(), view.vocab()));
    let view = || data.slice(..elements);
    assert_eq!(Logits::new(view(), columns).map(|view| (view.rows(), view.vocab())), logits, "{given}");
    let found = Logits::strided(view(), rows, columns, stride).map(|view| (view.rows(), view.vocab()));
    assert_eq!(found, strided, "{given}");
    let matrix = exo_kernels::Matrix::new(&host, columns).map(|view| (view.rows(), view.columns()));
    let spaced = exo_kernels::Matrix::strided(&host, rows, columns, stride).map(|view| (view.rows(), view.columns()));
    assert_eq!(Matrix::new(view(), columns).map(|view| (view.rows(), view.columns())), matrix, "{given}");
    let found = Matrix::strided(view(), rows, columns, stride).map(|view| (view.rows(), view.columns()));
    assert_eq!(found, spaced, "{given}");
    let found = LogitsMut::new(data.slice_mut(..elements), columns).map(|view| (view.rows(), view.vocab()));
    assert_eq!(found, logits, "{given}");
    let found = LogitsMut::strided(data.slice_mut(..elements), rows, columns, stride);
    assert_eq!(found.map(|view| (view.rows(), view.vocab())), strided, "{given}");
    let found = MatrixMut::new(data.slice_mut(..elements), columns).map(|view| (view.rows(), view.columns()));
    assert_eq!(found, matrix, "{given}");
    let found = MatrixMut::strided(data.slice_mut(..elements), rows, columns, stride);
    assert_eq!(found.map(|view| (view.rows(), view.columns())), spaced, "{given}");

    let (of_columns, of_bytes) = (choices.size(512), choices.size(1 << 20));
    match LinearChunks::default().with_columns(of_columns) {
        Ok(chunks) => {
            assert!(of_columns > 0 && of_columns.is_multiple_of(512));
            cuda.set_linear_chunks(chunks.with_row_bytes(of_bytes));
            cuda.set_linear_chunks(LinearChunks::default());
        }
        Err(error) => assert!(of_columns == 0 || !of_columns.is_multiple_of(512), "{error:?}"),
    }
    let ordinal = choices.size(0);
    let count = cudarc::driver::CudaContext::device_count().expect("a driver") as usize;
    assert_eq!(Cuda::device(ordinal).is_ok(), ordinal < count, "device {ordinal} of {count}");
}

pub(super) fn token_log_probs(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => token_log_probs_of::<f32>(choices),
        1 => token_log_probs_of::<f16>(choices),
        _ => token_log_probs_of::<bf16>(choices),
    }
}

/// A forward pass's outputs, brought to the device.
pub(super) struct OnDevice {
    log_probs: Placed<f32>,
    states: Placed<SoftmaxState>,
    entropies: Option<Placed<f32>>,
}

impl OnDevice {
    pub(super) fn new(cuda: &Cuda, outputs: Outputs) -> Self {
        Self {
            log_probs: Placed::of(cuda, outputs.log_probs),
            states: Placed::of(cuda, outputs.states),
            entropies: outputs.entropies.map(|entropies| Placed::of(cuda, entropies)),
        }
    }

    pub(super) fn views(&mut self) -> TokenLogProbs<'_> {
        TokenLogProbs {
            log_probs: self.log_probs.view_mut(),
            states: self.states.view_mut(),
            entropies: self.entropies.as_mut().map(Placed::view_mut),
        }
    }

    pub(super) fn fetch(self, cuda: &Cuda) -> Outputs {
        Outputs {
            log_probs: self.log_probs.fetch(cuda),
            states: self.states.fetch(cuda),
            entropies: self.entropies.map(|entropies| entropies.fetch(cuda)),
        }
    }
}

/// Asserts that the device counted what rows of these kinds are.
pub(super) fn check_status(cuda: &Cuda, kinds: &[Kind]) {
    let status = cuda.status().expect("no fault");
    let count = |kind: Kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(status.bad_targets(), count(Kind::NoColumn), "{status:?}");
    assert_eq!(status.first_bad_target_row(), kinds.iter().position(|kind| *kind == Kind::NoColumn));
    if count(Kind::Edge) == 0 {
        assert_eq!(status.non_finite_rows(), count(Kind::NoSoftmax), "{status:?}");
        assert_eq!(status.first_non_finite_row(), kinds.iter().position(|kind| *kind == Kind::NoSoftmax));
        assert_eq!(status.minus_infinite_targets(), count(Kind::Impossible), "{status:?}");
    }
}

/// Upstream gradients and what the forward pass kept, on the device.
pub(super) struct Kept {
    states: CudaSlice<SoftmaxState>,
    state_count: usize,
    entropies: Option<(CudaSlice<f32>, usize)>,
    log_probs: (CudaSlice<f32>, usize),
    of_entropies: Option<(CudaSlice<f32>, usize)>,
}

impl Kept {
    pub(super) fn new(cuda: &Cuda, states: &[SoftmaxState], entropies: Option<&[f32]>, upstream: &Upstream) -> Self {
        let place = |numbers: &[f32]| (upload(cuda, numbers), numbers.len());
        Self {
            states: upload(cuda, states),
            state_count: states.len(),
            entropies: entropies.map(place),
            log_probs: place(&upstream.log_probs),
            of_entropies: upstream.entropies.as_deref().map(place),
        }
    }

    pub(super) fn saved(&self) -> SavedRows<'_> {
        SavedRows {
            states: self.states.slice(..self.state_count),
            entropies: self.entropies.as_ref().map(|(slice, length)| slice.slice(..*length)),
        }
    }

    pub(super) fn upstream(&self) -> RowGradients<'_> {
        RowGradients {
            log_probs: self.log_probs.0.slice(..self.log_probs.1),
            entropies: self.of_entropies.as_ref().map(|(slice, length)| slice.slice(..*length)),
        }
    }
}

fn token_log_probs_of<T: Element + Sentinel + DeviceRepr>(choices: &mut Choices<'_>) {
    choices.calls(&[
        "cuda/token_log_prob::Cuda::token_log_probs",
        "cuda/token_log_prob::Cuda::token_log_probs_backward",
        "cuda/token_log_prob::Cuda::token_log_probs_backward_in_place",
    ]);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<T>::choose(choices, count);
    let options: LogitOptions = settings::logit_options(choices);
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    let outputs = Outputs::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let refused = short > 0 || !outputs.fit(count);
    let data = upload(&cuda, &rows.data);
    let logits = || Logits::strided(data.slice(..rows.data.len()), count, VOCAB, rows.stride).expect("room");
    let ids = upload(&cuda, &rows.targets);
    let narrow = upload(&cuda, &rows.narrow_targets());
    cuda.clear_status().expect("no fault");
    let mut placed = OnDevice::new(&cuda, outputs);
    let result = if rows.narrow {
        cuda.token_log_probs(&logits(), &narrow.slice(..count - short), &options, &mut placed.views())
    } else {
        cuda.token_log_probs(&logits(), &ids.slice(..count - short), &options, &mut placed.views())
    };
    let forward = placed.fetch(&cuda);
    if !forward.check(result, refused, &kinds, VOCAB) {
        return;
    }
    check_status(&cuda, &kinds);

    let upstream = Upstream::choose(choices, count);
    let states = choices.length(count);
    let mut of_rows = forward.states.get().to_vec();
    of_rows.resize(states, SoftmaxState::default());
    let kept = forward.entropies.as_ref().map(Guarded::get).filter(|_| !choices.yes());
    let (rows_of_gradient, columns) = (choices.length(count), choices.of(VOCAB, &[VOCAB + 1, 1]));
    let stride = columns + choices.of(0, &[2]);
    let refused = rows_of_gradient != count
        || columns != VOCAB
        || states != count
        || !upstream.fit(count)
        || (upstream.entropies.is_some() && kept.is_none());
    let on_device = Kept::new(&cuda, &of_rows, kept, &upstream);
    let mut gradient = Placed::<T>::new(&cuda, rows_of_gradient * stride);
    let mut out = LogitsMut::strided(gradient.view_mut(), rows_of_gradient, columns, stride).expect("room");
    let (saved, from) = (on_device.saved(), on_device.upstream());
    let result = cuda.token_log_probs_backward(&logits(), &ids.slice(..count), &options, &saved, &from, &mut out);
    let gradient = gradient.fetch(&cuda);
    if let Err(error) = &result {
        assert!(refused, "refused: {error:?}");
        untouched!(gradient);
        return;
    }
    assert!(!refused, "accepted");
    gradient.untouched_between_rows("gradient", VOCAB, stride);
    gradient.rows_written("gradient", count, VOCAB, stride);
    for (row, kind) in kinds.iter().enumerate() {
        let bound = upstream.largest(row, VOCAB, &options);
        check_gradient(*kind, row, rows.row(row), &gradient.get()[row * stride..][..VOCAB], Some(bound));
    }
    let mut in_place = Placed::of(&cuda, Guarded::holding(&rows.data));
    let mut view = LogitsMut::strided(in_place.view_mut(), count, VOCAB, rows.stride).expect("room");
    cuda.token_log_probs_backward_in_place(&mut view, &narrow.slice(..count), &options, &saved, &from)
        .expect("as out of place");
    let in_place = in_place.fetch(&cuda);
    in_place.untouched_between_rows("logits", VOCAB, rows.stride);
    for row in 0..count {
        let (one, other) = (&gradient.get()[row * stride..], &in_place.get()[row * rows.stride..]);
        assert!(one.iter().zip(other).take(VOCAB).all(|(one, other)| one.same(other)), "row {row} in place");
    }
}

/// A reference, brought to the device.
pub(super) enum Brought {
    PerToken(CudaSlice<f32>, usize),
    PerSequence(CudaSlice<f64>, usize),
    None,
}

impl Brought {
    pub(super) fn new(cuda: &Cuda, held: &Held) -> Self {
        match held {
            Held::PerToken(values) => Self::PerToken(upload(cuda, values), values.len()),
            Held::PerSequence(values) => Self::PerSequence(upload(cuda, values), values.len()),
            Held::None => Self::None,
        }
    }

    pub(super) fn view(&self) -> Reference<'_> {
        match self {
            Self::PerToken(values, length) => Reference::PerToken(values.slice(..*length)),
            Self::PerSequence(values, length) => Reference::PerSequence(values.slice(..*length)),
            Self::None => Reference::None,
        }
    }
}

/// Whether its length is right.
pub(super) fn has_length(reference: &Held, batch: &Batch) -> bool {
    match reference {
        Held::PerToken(values) => values.len() == batch.rows(),
        Held::PerSequence(values) => values.len() == batch.sequences(),
        Held::None => true,
    }
}

pub(super) fn log_ratios(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/log_ratio::Cuda::log_ratios", "cuda/log_ratio::Cuda::upload_batch"]);
    let cuda = cuda();
    let batch = rows::batch(choices);
    let (count, sequences) = (batch.rows(), batch.sequences());
    let mut log_probs: Vec<f32> = (0..choices.length(count)).map(|row| -1.0 - row as f32 * 0.5).collect();
    let row = choices.choose(count.max(1));
    if let Some(log_prob) = log_probs.get_mut(row) {
        *log_prob = choices.f32(*log_prob);
    }
    let mut targets = rows::targets(choices, count);
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let reference = Held::choose(choices, &batch);
    let kind = settings::log_ratio(choices);
    let mut log_ratios = Placed::<f64>::new(&cuda, choices.length(sequences));
    let mut sums = Placed::<f64>::new(&cuda, choices.length(sequences));
    let mut scored = Placed::<i32>::new(&cuda, choices.length(sequences));
    let mut of_rows = Placed::<i32>::new(&cuda, choices.length(count));
    let refused = log_probs.len() != count
        || targets.len() != count
        || [log_ratios.range.len(), sums.range.len(), scored.range.len()] != [sequences; 3]
        || of_rows.range.len() != count
        || !has_length(&reference, &batch);
    let (placed, ids) = (upload(&cuda, &log_probs), upload(&cuda, &targets));
    let on_device = cuda.upload_batch(&batch).expect("memory");
    let brought = Brought::new(&cuda, &reference);
    let mut outputs = LogRatios {
        log_ratios: log_ratios.view_mut(),
        log_prob_sums: sums.view_mut(),
        scored_rows: scored.view_mut(),
        row_sequences: of_rows.view_mut(),
    };
    cuda.clear_status().expect("no fault");
    let (placed, ids) = (placed.slice(..log_probs.len()), ids.slice(..targets.len()));
    let result = cuda.log_ratios(&placed, &ids, &brought.view(), &on_device, kind, &mut outputs);
    let (log_ratios, sums) = (log_ratios.fetch(&cuda), sums.fetch(&cuda));
    let (scored, of_rows) = (scored.fetch(&cuda), of_rows.fetch(&cuda));
    if let Err(error) = result {
        assert!(refused, "refused: {error:?}");
        untouched!(log_ratios, sums, scored, of_rows);
        return;
    }
    assert!(!refused, "accepted");
    let status = cuda.status().expect("no fault");
    let fine = reference.fits(&batch, &targets);
    assert_eq!(status.non_finite_references() > 0, !fine, "{status:?}");
    for (sequence, range) in batch.sequence_offsets().windows(2).enumerate() {
        let rows: Vec<usize> = (range[0]..range[1]).filter(|row| targets[*row] >= 0).collect();
        assert_eq!(scored.get()[sequence] as usize, rows.len());
        let expected = if kind == LogRatio::Mean { 1.0 / rows.len().max(1) as f64 } else { 1.0 };
        let sum: f64 = rows.iter().map(|row| f64::from(log_probs[*row])).sum();
        let found = log_ratios.get()[sequence];
        if matches!(reference, Held::None) && sum.is_finite() {
            assert!((found - sum * expected).abs() <= 1e-12 * sum.abs(), "sequence {sequence}: {found}");
        } else if fine {
            assert_eq!(found.is_nan(), sum.is_nan(), "sequence {sequence}: {found}, {sum}");
        }
    }
}

pub(super) fn objective(choices: &mut Choices<'_>) {
    choices.calls(&["cuda/objective::Cuda::objective", "cuda/rewards::DeviceRewards::with_proposal"]);
    let cuda = cuda();
    let objective = settings::objective(choices);
    let batch = rows::batch(choices);
    let (reduction, of_reduction) = settings::any_reduction(choices);
    let (sequences, group_count) = (batch.sequences(), batch.groups());
    let mut log_ratios: Vec<f64> = (0..choices.length(sequences)).map(|i| i as f64 * 0.25 - 0.5).collect();
    let sequence = choices.choose(sequences.max(1));
    if let Some(log_ratio) = log_ratios.get_mut(sequence) {
        *log_ratio = choices.f64(*log_ratio);
    }
    let rewards = objective::Held::choose(choices, sequences);
    let on_device = choices.yes();
    let mut losses = Placed::<f64>::new(&cuda, choices.length(group_count));
    let mut coefficients = Placed::<f64>::new(&cuda, choices.length(sequences));
    let mut statistics = Placed::new(&cuda, choices.length(group_count));
    let lengths = [losses.range.len(), statistics.range.len()] == [group_count; 2]
        && [coefficients.range.len(), log_ratios.len()] == [sequences; 2];
    let pairs = objective.target() != Target::OfficialPreference || groups(&batch).all(|group| group.len() <= 2);
    let seen = if on_device { rewards.have_length(sequences) && pairs } else { rewards.fit(&objective, &batch) };
    let fit = if lengths && seen { of_reduction } else { Fit::Wrong };
    let mut outputs = ObjectiveOutputs {
        group_losses: losses.view_mut(),
        coefficients: coefficients.view_mut(),
        statistics: statistics.view_mut(),
    };
    let placed = cuda.upload_batch(&batch).expect("memory");
    let ratios = upload(&cuda, &log_ratios);
    let ratios = ratios.slice(..log_ratios.len());
    cuda.clear_status().expect("no fault");
    let result = if on_device {
        let values = upload(&cuda, rewards.wide());
        let view = DeviceRewards::from(values.slice(..rewards.wide().len()));
        let offsets = rewards.proposal().map(|offsets| (upload(&cuda, offsets), offsets.len()));
        let view = match &offsets {
            Some((offsets, length)) => view.with_proposal(offsets.slice(..*length)),
            None => view,
        };
        cuda.objective(&objective, &ratios, &placed, view, reduction, &mut outputs)
    } else {
        cuda.objective(&objective, &ratios, &placed, rewards.view(), reduction, &mut outputs)
    };
    let (losses, coefficients) = (losses.fetch(&cuda), coefficients.fetch(&cuda));
    let statistics = statistics.fetch(&cuda);
    if let Err(error) = result {
        assert_ne!(fit, Fit::Useful, "refused: {error:?}");
        untouched!(losses, coefficients, statistics);
        return;
    }
    assert_ne!(fit, Fit::Wrong, "accepted");
    let status = cuda.status().expect("no fault");
    let fine = rewards.fit(&objective, &batch);
    assert_eq!(status.first_bad_reward_sequence().is_some(), !fine, "{status:?} of {rewards:?}");
    if !fine {
        return;
    }
    let factor = objective.beta_policy() * settings::weight(reduction, group_count);
    for (index, group) in groups(&batch).enumerate() {
        let policy: Vec<f64> =
            group.clone().map(|i| objective.beta_policy() * log_ratios[i] + rewards.offset(i)).collect();
        let target: Vec<f64> = group.clone().map(|i| rewards.target_logit(&objective, i)).collect();
        let of_group = (losses.get()[index], &coefficients.get()[group.clone()]);
        check_group(&objective, &log_ratios[group], (&policy, &target), of_group, factor);
    }
}
