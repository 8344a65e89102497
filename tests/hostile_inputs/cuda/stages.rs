//! Token log-probs, log-ratios and objective on the device.

use super::{Placed, cuda, upload};
use crate::hostile::Choices;
use crate::hostile::guarded::{Guarded, Sentinel, untouched};
use crate::hostile::log_ratio::{self, Held};
use crate::hostile::objective::{self, check_group, groups};
use crate::hostile::rows::{self, Kind, Rows, VOCAB};
use crate::hostile::settings::{self, Fit};
use crate::hostile::token_log_prob::{Outputs, PerSequence, Upstream, check_gradient};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use exo_kernels::backend::Memory;
use exo_kernels::cuda::{
    Cuda, Device, DeviceRewards, LinearChunks, LinearPrecision, LogRatioOutputs, Matrix, MatrixMut, ObjectiveOutputs,
    Reference, RewardBuffers, Rewards, RowGradients, RowLogProbs, RowWeights, SavedRows, TokenLogProbs, View, ViewMut,
};
use exo_kernels::{Backend, Batch, Element, Error, LogRatio, LogitOptions, SoftmaxState, Target};
use half::{bf16, f16};

/// What a grid has room for along y: slices of 32768 columns.
pub(super) const MOST_COLUMNS: usize = 65_535 * 32_768;

/// Views, chunks and devices.
pub(super) fn views(choices: &mut Choices<'_>) {
    choices.calls(&[
        "cuda/memory::View::from_address",
        "cuda/memory::ViewMut::from_address",
        "cuda/linear/workspace::LinearChunks::with_logits",
        "cuda/linear/workspace::LinearChunks::with_columns",
        "cuda/linear/workspace::LinearChunks::with_row_bytes",
        "cuda/linear/workspace::Cuda::set_linear_chunks",
        "cuda/linear/workspace::Cuda::set_linear_precision",
        "cuda/mod::Cuda::device",
    ]);
    let cuda = cuda();
    let mut data = upload(&cuda, &[1.0f32; 13]);
    let elements = choices.of(12, &[0, 1, 2, 11, 13]);
    let (rows, columns, stride) = (choices.size(3), choices.size(4), choices.size(4));
    let host = vec![1.0f32; elements];
    let given = format!("{elements} elements, {rows} rows of {columns}, stride {stride}");
    // The host's views have the same rules, and walks of their own.
    let shape = |matrix: Matrix<'_, f32>| (matrix.rows(), matrix.columns(), matrix.row_stride());
    let host_shape = |matrix: exo_kernels::Matrix<'_, f32>| (matrix.rows(), matrix.columns(), matrix.row_stride());
    let shape_mut = |matrix: MatrixMut<'_, f32>| {
        assert_eq!(shape(matrix.as_matrix()), (matrix.rows(), matrix.columns(), matrix.row_stride()));
        shape(matrix.as_matrix())
    };
    let contiguous = exo_kernels::Matrix::new(&host, columns).map(host_shape);
    let strided = exo_kernels::Matrix::strided(&host, rows, columns, stride).map(host_shape);
    let address = data.device_ptr(cuda.stream()).0;
    // SAFETY: no call reads or writes through them.
    let view_at = || unsafe { View::from_address(address, elements) };
    // SAFETY: the same.
    let view_mut_at = || unsafe { ViewMut::from_address(address, elements) };
    for view in [data.slice(..elements).into(), view_at()] {
        assert_eq!((view.len(), view.is_empty()), (elements, elements == 0));
        vocabulary(&cuda, Matrix::new(view.clone(), columns));
        vocabulary(&cuda, Matrix::strided(view.clone(), rows, columns, stride));
        assert_eq!(Matrix::new(view.clone(), columns).map(shape), contiguous, "{given}");
        assert_eq!(Matrix::strided(view, rows, columns, stride).map(shape), strided, "{given}");
    }
    assert_eq!(MatrixMut::new(data.slice_mut(..elements).into(), columns).map(shape_mut), contiguous, "{given}");
    assert_eq!(MatrixMut::new(view_mut_at(), columns).map(shape_mut), contiguous, "{given}");
    let found = MatrixMut::strided(data.slice_mut(..elements).into(), rows, columns, stride);
    assert_eq!(found.map(shape_mut), strided, "{given}");
    assert_eq!(MatrixMut::strided(view_mut_at(), rows, columns, stride).map(shape_mut), strided, "{given}");
    parts(choices, &mut data, elements);

    let (of_columns, of_bytes) = (choices.size(512), choices.size(1 << 20));
    match LinearChunks::default().with_columns(of_columns) {
        Ok(chunks) => {
            assert!(of_columns > 0 && of_columns.is_multiple_of(512));
            cuda.set_linear_chunks(chunks.with_row_bytes(of_bytes).with_logits(of_bytes));
            cuda.set_linear_chunks(LinearChunks::default());
        }
        Err(error) => assert!(of_columns == 0 || !of_columns.is_multiple_of(512), "{error:?}"),
    }
    let precision = choices.of(LinearPrecision::F32, &[LinearPrecision::Tf32, LinearPrecision::Bf16x9]);
    cuda.set_linear_precision(precision).expect("built for CUDA 13");
    cuda.set_linear_precision(LinearPrecision::default()).expect("f32 is what there always is");
    let ordinal = choices.size(0);
    let count = cudarc::driver::CudaContext::device_count().expect("a driver") as usize;
    assert_eq!(Cuda::device(ordinal).is_ok(), ordinal < count, "device {ordinal} of {count}");
}

/// Parts of views of cudarc's, and of an address.
fn parts(choices: &mut Choices<'_>, data: &mut CudaSlice<f32>, elements: usize) {
    let range = choices.size(1)..choices.size(elements);
    let expected = (range.start <= range.end && range.end <= elements).then(|| range.len());
    let length = |part: Option<View<'_, f32>>| part.map(|part| part.len());
    let mut view = ViewMut::from(data.slice_mut(..elements));
    assert_eq!(length(Device::part(&Device::as_view(&view), range.clone())), expected, "{range:?} of {elements}");
    let part = Device::part_mut(&mut view, range.clone()).map(|part| part.len());
    assert_eq!(part, expected, "{range:?} of {elements}");
}

/// Without rows a matrix may have any number of columns; the stage takes as many as a grid has room for.
fn vocabulary(cuda: &Cuda, logits: exo_kernels::Result<Matrix<'_, f32>>) {
    let Some(logits) = logits.ok().filter(|logits| logits.rows() == 0) else { return };
    let ids = upload(cuda, &[0i64]);
    let (mut log_probs, mut states) = (Placed::<f32>::new(cuda, 0), Placed::<SoftmaxState>::new(cuda, 0));
    let outputs = TokenLogProbs { log_probs: log_probs.view_mut(), states: states.view_mut(), entropies: None };
    let result = cuda.token_log_probs(&logits, ids.slice(..0), &LogitOptions::default(), outputs);
    let vocab = logits.columns();
    assert_eq!(result, if vocab > MOST_COLUMNS { Err(Error::Vocabulary { vocab }) } else { Ok(()) });
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
    states: Lent<SoftmaxState>,
    entropies: Option<Lent<f32>>,
    upstream: OfRows,
}

enum OfRows {
    PerRow { log_probs: Lent<f32>, entropies: Option<Lent<f32>> },
    PerSequence { row_sequences: Lent<i32>, weights: Lent<f64>, loss_scale: f64 },
}

/// Numbers on the device, and how many there are: a slice has one at least.
pub(super) struct Lent<T>(CudaSlice<T>, usize);

impl<T: DeviceRepr + Copy> Lent<T> {
    pub(super) fn new(cuda: &Cuda, numbers: &[T]) -> Self {
        Self(upload(cuda, numbers), numbers.len())
    }

    pub(super) fn view(&self) -> View<'_, T> {
        self.0.slice(..self.1).into()
    }
}

impl Kept {
    pub(super) fn new(cuda: &Cuda, states: &[SoftmaxState], entropies: Option<&[f32]>, upstream: &Upstream) -> Self {
        let upstream = match &upstream.per_sequence {
            None => OfRows::PerRow {
                log_probs: Lent::new(cuda, &upstream.log_probs),
                entropies: upstream.entropies.as_deref().map(|entropies| Lent::new(cuda, entropies)),
            },
            Some(PerSequence { row_sequences, weights, loss_scale }) => OfRows::PerSequence {
                row_sequences: Lent::new(cuda, row_sequences),
                weights: Lent::new(cuda, weights),
                loss_scale: *loss_scale,
            },
        };
        let entropies = entropies.map(|entropies| Lent::new(cuda, entropies));
        Self { states: Lent::new(cuda, states), entropies, upstream }
    }

    pub(super) fn saved(&self) -> SavedRows<'_> {
        SavedRows { states: self.states.view(), entropies: self.entropies.as_ref().map(Lent::view) }
    }

    pub(super) fn upstream(&self) -> RowGradients<'_> {
        match &self.upstream {
            OfRows::PerRow { log_probs, entropies } => {
                RowGradients::PerRow { log_probs: log_probs.view(), entropies: entropies.as_ref().map(Lent::view) }
            }
            OfRows::PerSequence { row_sequences, weights, loss_scale } => RowGradients::PerSequence {
                row_sequences: row_sequences.view(),
                weights: weights.view(),
                loss_scale: *loss_scale,
            },
        }
    }
}

fn token_log_probs_of<T: Element + Sentinel + DeviceRepr>(choices: &mut Choices<'_>) {
    let verbs = ["token_log_probs", "token_log_probs_backward", "token_log_probs_backward_in_place"];
    choices.calls_of("cuda/backend::Cuda", &verbs);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<T>::choose(choices, count);
    let options: LogitOptions = settings::logit_options(choices);
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    let outputs = Outputs::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let refused = short > 0 || !outputs.fit(count);
    let data = upload(&cuda, &rows.data);
    let logits = || Matrix::strided(data.slice(..rows.data.len()).into(), count, VOCAB, rows.stride).expect("room");
    let ids = upload(&cuda, &rows.targets);
    let narrow = upload(&cuda, &rows.narrow_targets());
    cuda.clear_status().expect("no fault");
    let mut placed = OnDevice::new(&cuda, outputs);
    let result = if rows.narrow {
        cuda.token_log_probs(&logits(), narrow.slice(..count - short), &options, placed.views())
    } else {
        cuda.token_log_probs(&logits(), ids.slice(..count - short), &options, placed.views())
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
    let out = MatrixMut::strided(gradient.view_mut(), rows_of_gradient, columns, stride).expect("room");
    let (saved, from) = (on_device.saved(), on_device.upstream());
    let result = cuda.token_log_probs_backward(&logits(), ids.slice(..count), &options, &saved, &from, out);
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
    let view = MatrixMut::strided(in_place.view_mut(), count, VOCAB, rows.stride).expect("room");
    cuda.token_log_probs_backward_in_place(view, narrow.slice(..count), &options, &saved, &from)
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
    PerToken(Lent<f32>),
    PerSequence(Lent<f64>),
    None,
}

impl Brought {
    pub(super) fn new(cuda: &Cuda, held: &Held) -> Self {
        match held {
            Held::PerToken(values) => Self::PerToken(Lent::new(cuda, values)),
            Held::PerSequence(values) => Self::PerSequence(Lent::new(cuda, values)),
            Held::None => Self::None,
        }
    }

    pub(super) fn view(&self) -> Reference<'_> {
        match self {
            Self::PerToken(values) => Reference::PerToken(values.view()),
            Self::PerSequence(values) => Reference::PerSequence(values.view()),
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
    choices.calls_of("cuda/backend::Cuda", &["log_ratios"]);
    let cuda = cuda();
    let batch = rows::batch(choices);
    let count = batch.rows();
    let log_probs = log_ratio::numbers(choices, count);
    let entropies = (!choices.yes()).then(|| log_ratio::numbers(choices, count));
    let mut targets = rows::targets(choices, count);
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let reference = Held::choose(choices, &batch);
    let kind = settings::log_ratio(choices);
    let outputs = log_ratio::Outputs::choose(choices, &batch);
    let refused = log_probs.len() != count
        || entropies.as_ref().is_some_and(|entropies| entropies.len() != count)
        || targets.len() != count
        || !outputs.fit(&batch)
        || (entropies.is_none() && outputs.entropy_sums.is_some())
        || !has_length(&reference, &batch);
    let (placed, ids) = (Lent::new(&cuda, &log_probs), Lent::new(&cuda, &targets));
    let of_entropies = entropies.as_ref().map(|entropies| Lent::new(&cuda, entropies));
    let on_device = cuda.upload_batch(&batch).expect("memory");
    let brought = Brought::new(&cuda, &reference);
    let mut log_ratios = Placed::of(&cuda, outputs.log_ratios);
    let mut log_prob_sums = Placed::of(&cuda, outputs.log_prob_sums);
    let mut entropy_sums = outputs.entropy_sums.map(|sums| Placed::of(&cuda, sums));
    let mut scored_rows = Placed::of(&cuda, outputs.scored_rows);
    let mut row_sequences = Placed::of(&cuda, outputs.row_sequences);
    let mut row_targets = Placed::of(&cuda, outputs.row_targets);
    let views = LogRatioOutputs {
        log_ratios: log_ratios.view_mut(),
        log_prob_sums: log_prob_sums.view_mut(),
        entropy_sums: entropy_sums.as_mut().map(Placed::view_mut),
        scored_rows: scored_rows.view_mut(),
        row_sequences: row_sequences.view_mut(),
        row_targets: row_targets.view_mut(),
    };
    cuda.clear_status().expect("no fault");
    let inputs = RowLogProbs {
        log_probs: placed.view(),
        entropies: of_entropies.as_ref().map(Lent::view),
        targets: ids.view().into(),
    };
    let result = cuda.log_ratios(&inputs, &brought.view(), &on_device, kind, views);
    let outputs = log_ratio::Outputs {
        log_ratios: log_ratios.fetch(&cuda),
        log_prob_sums: log_prob_sums.fetch(&cuda),
        entropy_sums: entropy_sums.map(|sums| sums.fetch(&cuda)),
        scored_rows: scored_rows.fetch(&cuda),
        row_sequences: row_sequences.fetch(&cuda),
        row_targets: row_targets.fetch(&cuda),
    };
    if let Err(error) = result {
        assert!(refused, "refused: {error:?}");
        outputs.untouched();
        return;
    }
    assert!(!refused, "accepted");
    let status = cuda.status().expect("no fault");
    let fine = reference.fits(&batch, &targets);
    assert_eq!(status.non_finite_references() > 0, !fine, "{status:?}");
    outputs.check(&batch, &targets, &log_probs, entropies.as_deref());
    for (sequence, range) in batch.sequence_offsets().windows(2).enumerate() {
        let rows: Vec<usize> = (range[0]..range[1]).filter(|row| targets[*row] >= 0).collect();
        let expected = if kind == LogRatio::Mean { 1.0 / rows.len().max(1) as f64 } else { 1.0 };
        let sum: f64 = rows.iter().map(|row| f64::from(log_probs[*row])).sum();
        let found = outputs.log_ratios.get()[sequence];
        if matches!(reference, Held::None) && sum.is_finite() {
            assert!((found - sum * expected).abs() <= 1e-12 * sum.abs(), "sequence {sequence}: {found}");
        } else if fine {
            assert_eq!(found.is_nan(), sum.is_nan(), "sequence {sequence}: {found}, {sum}");
        }
    }
}

pub(super) fn objective(choices: &mut Choices<'_>) {
    choices.calls_of("cuda/backend::Cuda", &["objective"]);
    choices.calls(&["data/rewards::Rewards::with_proposal"]);
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
    let outputs = objective::Outputs::choose(choices, &batch);
    let lengths = outputs.fit(&batch) && log_ratios.len() == sequences;
    let pairs = objective.target() != Target::OfficialPreference || groups(&batch).all(|group| group.len() <= 2);
    let seen = if on_device { rewards.have_length(sequences) && pairs } else { rewards.fit(&objective, &batch) };
    let fit = if lengths && seen { of_reduction } else { Fit::Wrong };
    let mut losses = Placed::of(&cuda, outputs.group_losses);
    let mut coefficients = Placed::of(&cuda, outputs.coefficients);
    let mut statistics = Placed::of(&cuda, outputs.statistics);
    let mut weights = outputs.row_weights.map(|(log_ratio, scored_rows, weights)| {
        (log_ratio, Lent::new(&cuda, &scored_rows), scored_rows, Placed::of(&cuda, weights))
    });
    let views = ObjectiveOutputs {
        group_losses: losses.view_mut(),
        coefficients: coefficients.view_mut(),
        statistics: statistics.view_mut(),
        row_weights: weights.as_mut().map(|(log_ratio, scored_rows, _, weights)| RowWeights {
            log_ratio: *log_ratio,
            scored_rows: scored_rows.view(),
            weights: weights.view_mut(),
        }),
    };
    let placed = cuda.upload_batch(&batch).expect("memory");
    let ratios = Lent::new(&cuda, &log_ratios);
    cuda.clear_status().expect("no fault");
    let values = Lent::new(&cuda, rewards.wide());
    let offsets = rewards.proposal().map(|offsets| Lent::new(&cuda, offsets));
    let mut buffers = RewardBuffers::default();
    let of_host = Rewards::from(rewards.view());
    let result = if on_device {
        let view = DeviceRewards::from(values.view());
        Ok(offsets.as_ref().map_or(view.clone(), |offsets| view.with_proposal(offsets.view())))
    } else {
        // As a loss does it: checked, then brought.
        let checked = cuda.check_rewards(&objective, &of_host, &batch);
        checked.and_then(|()| cuda.bring_rewards(&of_host, &mut buffers))
    };
    let result =
        result.and_then(|brought| cuda.objective(&objective, &ratios.view(), &placed, &brought, reduction, views));
    let outputs = objective::Outputs {
        group_losses: losses.fetch(&cuda),
        coefficients: coefficients.fetch(&cuda),
        statistics: statistics.fetch(&cuda),
        row_weights: weights.map(|(log_ratio, _, scored_rows, weights)| (log_ratio, scored_rows, weights.fetch(&cuda))),
    };
    if let Err(error) = result {
        assert_ne!(fit, Fit::Useful, "refused: {error:?}");
        outputs.untouched();
        return;
    }
    assert_ne!(fit, Fit::Wrong, "accepted");
    let status = cuda.status().expect("no fault");
    let fine = rewards.fit(&objective, &batch);
    assert_eq!(status.first_bad_reward_sequence().is_some(), !fine, "{status:?} of {rewards:?}");
    outputs.check();
    if !fine {
        return;
    }
    let objective::Outputs { group_losses: losses, coefficients, .. } = &outputs;
    let factor = objective.beta_policy() * settings::weight(reduction, group_count);
    for (index, group) in groups(&batch).enumerate() {
        let policy: Vec<f64> =
            group.clone().map(|i| objective.beta_policy() * log_ratios[i] + rewards.offset(i)).collect();
        let target: Vec<f64> = group.clone().map(|i| rewards.target_logit(&objective, i)).collect();
        let of_group = (losses.get()[index], &coefficients.get()[group.clone()]);
        check_group(&objective, &log_ratios[group], (&policy, &target), of_group, factor);
    }
}
