//! The verbs of a backend over host memory. Outputs are poisoned before each call: what is not written shows.

use crate::backend::TestBackend;
use crate::host_rows::{Forward, Rows};
use exo_kernels::backend::{
    LogRatioOutputs, Matrix, MatrixMut, Memory, Number, ObjectiveOutputs, Reference, Rewards, RowGradients,
    RowLogProbs, SavedRows, Targets, TokenLogProbs, View, ViewMut,
};
use exo_kernels::{
    Backend, Batch, Element, GroupStatistics, LogRatio, LogitOptions, Objective, Reduction, Result, SoftmaxState,
};

/// What the objective stage gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    pub losses: Vec<f64>,
    pub coefficients: Vec<f64>,
    pub statistics: Vec<GroupStatistics>,
}

/// d loss / d log-prob and, if there is one, d loss / d entropy, of each row.
pub type Upstream<'a> = (&'a [f32], Option<&'a [f32]>);

/// Host numbers in the backend's memory.
pub fn upload<B: Backend, T: Number>(backend: &B, numbers: &[T]) -> B::Buffer<T> {
    let mut buffer = B::Buffer::default();
    backend.upload(numbers, &mut buffer).expect("upload");
    buffer
}

/// A buffer's numbers on the host. A fault of the device fails the test with its text.
pub fn download<B: TestBackend, T: Number>(backend: &B, buffer: &B::Buffer<T>, length: usize) -> Vec<T> {
    match backend.read(&backend.view(buffer, length)) {
        Ok(numbers) => numbers.into_owned(),
        Err(error) => panic!("{}", backend.fault().unwrap_or_else(|| error.to_string())),
    }
}

/// Rows in a buffer of the backend's that holds them as they lie on the host.
pub fn place<'a, B: Backend, T: Element>(
    backend: &B,
    buffer: &'a B::Buffer<T>,
    rows: &Rows<T>,
    count: usize,
) -> Result<Matrix<'a, T, B::Memory>> {
    let all = backend.view(buffer, rows.logits.len());
    let from = B::Memory::part(&all, rows.offset..rows.logits.len()).expect("the offset lies inside");
    Matrix::strided(from, count, rows.vocab, rows.row_stride)
}

/// The same rows to write, handed to `call`.
pub fn place_mut<B: Backend, T: Element, R>(
    backend: &B,
    buffer: &mut B::Buffer<T>,
    rows: &Rows<T>,
    count: usize,
    call: impl FnOnce(MatrixMut<'_, T, B::Memory>) -> Result<R>,
) -> Result<R> {
    let mut all: ViewMut<'_, B, T> = backend.view_mut(buffer, rows.logits.len());
    let from = B::Memory::part_mut(&mut all, rows.offset..rows.logits.len()).expect("the offset lies inside");
    call(MatrixMut::strided(from, count, rows.vocab, rows.row_stride)?)
}

/// Target ids in the backend's memory.
pub(crate) enum Ids<B: Backend> {
    U32(B::Buffer<u32>, usize),
    I64(B::Buffer<i64>, usize),
}

impl<B: Backend> Ids<B> {
    pub(crate) fn new(backend: &B, ids: &[i64]) -> Self {
        Self::I64(upload(backend, ids), ids.len())
    }

    pub(crate) fn of<T: Copy>(backend: &B, rows: &Rows<T>) -> Self {
        if rows.targets_in_32_bits {
            Self::U32(upload(backend, &rows.narrow_targets()), rows.count())
        } else {
            Self::new(backend, &rows.targets)
        }
    }

    pub(crate) fn view(&self, backend: &B) -> Targets<'_, B::Memory> {
        match self {
            Self::U32(ids, count) => Targets::U32(backend.view(ids, *count)),
            Self::I64(ids, count) => Targets::I64(backend.view(ids, *count)),
        }
    }
}

/// The reference's log-probs in the backend's memory.
pub(crate) enum PlacedReference<B: Backend> {
    PerToken(B::Buffer<f32>, usize),
    PerSequence(B::Buffer<f64>, usize),
    None,
}

impl<B: Backend> PlacedReference<B> {
    pub(crate) fn new(backend: &B, reference: &exo_kernels::Reference<'_>) -> Self {
        match reference {
            Reference::PerToken(numbers) => Self::PerToken(upload(backend, numbers), numbers.len()),
            Reference::PerSequence(numbers) => Self::PerSequence(upload(backend, numbers), numbers.len()),
            Reference::None => Self::None,
        }
    }

    pub(crate) fn view(&self, backend: &B) -> Reference<'_, B::Memory> {
        match self {
            Self::PerToken(numbers, count) => Reference::PerToken(backend.view(numbers, *count)),
            Self::PerSequence(numbers, count) => Reference::PerSequence(backend.view(numbers, *count)),
            Self::None => Reference::None,
        }
    }
}

/// Forward over rows.
pub(crate) fn try_forward<B: TestBackend, T: Element>(
    backend: &B,
    rows: &Rows<T>,
    options: &LogitOptions,
    entropies: bool,
) -> Result<Forward> {
    let count = rows.count();
    let logits = upload(backend, &rows.logits);
    let ids = Ids::of(backend, rows);
    let mut outputs = ForwardBuffers::new(backend, count);
    let view = place(backend, &logits, rows, count)?;
    backend.token_log_probs(&view, ids.view(backend), options, outputs.views(backend, count, entropies))?;
    Ok(outputs.download(backend, count, entropies))
}

/// The buffers of a forward pass.
pub struct ForwardBuffers<B: Backend> {
    log_probs: B::Buffer<f32>,
    states: B::Buffer<SoftmaxState>,
    entropies: B::Buffer<f32>,
}

impl<B: TestBackend> ForwardBuffers<B> {
    pub fn new(backend: &B, count: usize) -> Self {
        Self {
            log_probs: upload(backend, &vec![f32::MAX; count]),
            states: upload(backend, &vec![SoftmaxState { r: f32::MAX, s: f32::MAX }; count]),
            entropies: upload(backend, &vec![f32::MAX; count]),
        }
    }

    pub fn views(&mut self, backend: &B, count: usize, entropies: bool) -> TokenLogProbs<'_, B::Memory> {
        TokenLogProbs {
            log_probs: backend.view_mut(&mut self.log_probs, count),
            states: backend.view_mut(&mut self.states, count),
            entropies: entropies.then(|| backend.view_mut(&mut self.entropies, count)),
        }
    }

    pub fn download(self, backend: &B, count: usize, entropies: bool) -> Forward {
        Forward {
            log_probs: download(backend, &self.log_probs, count),
            states: download(backend, &self.states, count),
            entropies: if entropies { download(backend, &self.entropies, count) } else { Vec::new() },
        }
    }
}

/// What a backward pass reads of its forward pass and gets back, in the backend's memory.
pub struct BackwardInputs<B: Backend> {
    states: (B::Buffer<SoftmaxState>, usize),
    entropies: Option<(B::Buffer<f32>, usize)>,
    log_prob_gradients: (B::Buffer<f32>, usize),
    entropy_gradients: Option<(B::Buffer<f32>, usize)>,
}

impl<B: Backend> BackwardInputs<B> {
    pub fn new(backend: &B, forward: &Forward, (log_probs, entropies): Upstream<'_>) -> Self {
        // Of no rows nothing is missing.
        let is_kept = forward.entropies.len() == forward.log_probs.len();
        let kept = is_kept.then_some(forward.entropies.as_slice());
        let optional = |numbers: Option<&[f32]>| numbers.map(|numbers| (upload(backend, numbers), numbers.len()));
        Self {
            states: (upload(backend, &forward.states), forward.states.len()),
            entropies: optional(kept),
            log_prob_gradients: (upload(backend, log_probs), log_probs.len()),
            entropy_gradients: optional(entropies),
        }
    }

    pub fn saved(&self, backend: &B) -> SavedRows<'_, B::Memory> {
        SavedRows {
            states: backend.view(&self.states.0, self.states.1),
            entropies: self.entropies.as_ref().map(|(numbers, count)| backend.view(numbers, *count)),
        }
    }

    pub fn upstream(&self, backend: &B) -> RowGradients<'_, B::Memory> {
        RowGradients::PerRow {
            log_probs: backend.view(&self.log_prob_gradients.0, self.log_prob_gradients.1),
            entropies: self.entropy_gradients.as_ref().map(|(numbers, count)| backend.view(numbers, *count)),
        }
    }
}

/// The whole buffer behind the backward pass: the logits', overwritten, or a gradient's, which held the logits.
pub(crate) fn try_backward<B: TestBackend, T: Element>(
    backend: &B,
    rows: &Rows<T>,
    options: &LogitOptions,
    forward: &Forward,
    upstream: Upstream<'_>,
    in_place: bool,
) -> Result<Vec<T>> {
    let count = rows.count();
    let inputs = BackwardInputs::new(backend, forward, upstream);
    let (saved, upstream) = (inputs.saved(backend), inputs.upstream(backend));
    let ids = Ids::new(backend, &rows.targets);
    let mut written = upload(backend, &rows.logits);
    if in_place {
        place_mut(backend, &mut written, rows, count, |logits| {
            backend.token_log_probs_backward_in_place(logits, ids.view(backend), options, &saved, &upstream)
        })?;
    } else {
        let logits = upload(backend, &rows.logits);
        let view = place(backend, &logits, rows, count)?;
        place_mut(backend, &mut written, rows, count, |gradient| {
            backend.token_log_probs_backward(&view, ids.view(backend), options, &saved, &upstream, gradient)
        })?;
    }
    Ok(download(backend, &written, rows.logits.len()))
}

/// Log-ratios of a batch.
pub(crate) fn log_ratios<B: TestBackend>(
    backend: &B,
    log_probs: &[f32],
    targets: &[i64],
    reference: &exo_kernels::Reference<'_>,
    batch: &Batch,
    log_ratio: LogRatio,
) -> Vec<f64> {
    let (rows, sequences) = (batch.rows(), batch.sequences());
    let (policy, ids) = (upload(backend, log_probs), Ids::new(backend, targets));
    let reference = PlacedReference::new(backend, reference);
    let (mut ratios, mut sums) =
        (upload(backend, &vec![f64::MAX; sequences]), upload(backend, &vec![f64::MAX; sequences]));
    let (mut scored, mut of_rows) = (upload(backend, &vec![-1; sequences]), upload(backend, &vec![-1; rows]));
    let mut kept_targets = upload(backend, &vec![77_u32; rows]);
    let inputs =
        RowLogProbs { log_probs: backend.view(&policy, log_probs.len()), entropies: None, targets: ids.view(backend) };
    let outputs = LogRatioOutputs {
        log_ratios: backend.view_mut(&mut ratios, sequences),
        log_prob_sums: backend.view_mut(&mut sums, sequences),
        entropy_sums: None,
        scored_rows: backend.view_mut(&mut scored, sequences),
        row_sequences: backend.view_mut(&mut of_rows, rows),
        row_targets: backend.view_mut(&mut kept_targets, rows),
    };
    let placed = backend.upload_batch(batch).expect("offsets");
    backend.log_ratios(&inputs, &reference.view(backend), &placed, log_ratio, outputs).expect("log-ratios");
    check_companions(
        batch,
        (log_probs, targets),
        &download(backend, &sums, sequences),
        &download(backend, &scored, sequences),
        &download(backend, &of_rows, rows),
    );
    check_kept_targets(targets, &download(backend, &kept_targets, rows));
    download(backend, &ratios, sequences)
}

/// Checks the targets that a backward pass takes: masked, or the same column, or none of any vocabulary.
fn check_kept_targets(targets: &[i64], kept: &[u32]) {
    for (row, (target, kept)) in targets.iter().zip(kept).enumerate() {
        let kept = i64::from(*kept as i32);
        let same = if *target < 0 { kept < 0 } else { kept == (*target).min(i64::from(i32::MAX)) };
        assert!(same, "row {row}: {kept} for {target}");
    }
}

/// Checks what goes with log-ratios: sums of the policy's log-probs, scored rows, and the sequence of each row.
fn check_companions(
    batch: &Batch,
    (log_probs, targets): (&[f32], &[i64]),
    sums: &[f64],
    scored: &[i32],
    of_rows: &[i32],
) {
    for (sequence, range) in batch.sequence_offsets().windows(2).map(|pair| pair[0]..pair[1]).enumerate() {
        let of_sequence: Vec<f64> =
            range.clone().filter(|row| targets[*row] >= 0).map(|row| f64::from(log_probs[row])).collect();
        assert_eq!(scored[sequence] as usize, of_sequence.len(), "scored rows of sequence {sequence}");
        assert!(range.clone().all(|row| of_rows[row] as usize == sequence), "the sequence of each row");
        // n terms in any order in f64: n roundings of the sum of their sizes.
        let (exact, size) = of_sequence.iter().fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
        let bound = size * of_sequence.len() as f64 * f64::EPSILON;
        let same = sums[sequence].to_bits() == exact.to_bits() || (sums[sequence] - exact).abs() <= bound;
        assert!(same || exact.is_nan() && sums[sequence].is_nan(), "sum of sequence {sequence}");
    }
}

/// The objective stage.
pub(crate) fn objective<B: TestBackend>(
    backend: &B,
    objective: &Objective,
    log_ratios: &[f64],
    batch: &Batch,
    rewards: &exo_kernels::Rewards<'_>,
    reduction: Reduction,
) -> Groups {
    let (sequences, groups) = (batch.sequences(), batch.groups());
    let ratios = upload(backend, log_ratios);
    let mut losses = upload(backend, &vec![f64::MAX; groups]);
    let mut coefficients = upload(backend, &vec![f64::MAX; sequences]);
    let mut statistics = upload(backend, &vec![GroupStatistics::default(); groups]);
    let outputs = ObjectiveOutputs {
        group_losses: backend.view_mut(&mut losses, groups),
        coefficients: backend.view_mut(&mut coefficients, sequences),
        statistics: backend.view_mut(&mut statistics, groups),
        row_weights: None,
    };
    let placed = backend.upload_batch(batch).expect("offsets");
    let rewards: B::Rewards<'_> = (*rewards).into();
    backend.check_rewards(objective, &rewards, batch).expect("rewards that the objective takes");
    let mut buffers = B::RewardBuffers::default();
    let brought: Rewards<'_, B::Memory> = backend.bring_rewards(&rewards, &mut buffers).expect("rewards");
    let view: View<'_, B, f64> = backend.view(&ratios, log_ratios.len());
    backend
        .objective(objective, &view, &placed, &brought, reduction, outputs)
        .expect("inputs that the objective takes");
    Groups {
        losses: download(backend, &losses, groups),
        coefficients: download(backend, &coefficients, sequences),
        statistics: download(backend, &statistics, groups),
    }
}
