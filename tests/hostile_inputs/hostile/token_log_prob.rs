//! Token log-probs from logits: forward, backward, in place.

use super::choices::Choices;
use super::guarded::{Guarded, Sentinel, untouched};
use super::rows::{Kind, Rows, VOCAB, are_columns};
use super::settings::{self, HostBackend};
use exo_kernels::{
    Element, Error, LogitOptions, Matrix, MatrixMut, Result, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => walk_of::<B, f32>(choices),
        1 => walk_of::<B, f16>(choices),
        _ => walk_of::<B, bf16>(choices),
    }
}

/// Where a forward pass writes.
pub(crate) struct Outputs {
    pub(crate) log_probs: Guarded<f32>,
    pub(crate) states: Guarded<SoftmaxState>,
    pub(crate) entropies: Option<Guarded<f32>>,
}

impl Outputs {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        Self {
            log_probs: Guarded::new(choices.length(rows)),
            states: Guarded::new(choices.length(rows)),
            entropies: (!choices.yes()).then(|| Guarded::new(choices.length(rows))),
        }
    }

    /// Of the right lengths.
    pub(crate) fn new(rows: usize) -> Self {
        let (log_probs, entropies) = (Guarded::new(rows), Some(Guarded::new(rows)));
        Self { log_probs, states: Guarded::new(rows), entropies }
    }

    pub(crate) fn fit(&self, rows: usize) -> bool {
        let entropies = self.entropies.as_ref().is_none_or(|entropies| entropies.get().len() == rows);
        self.log_probs.get().len() == rows && self.states.get().len() == rows && entropies
    }

    pub(crate) fn views(&mut self) -> TokenLogProbs<'_> {
        TokenLogProbs {
            log_probs: self.log_probs.get_mut(),
            states: self.states.get_mut(),
            entropies: self.entropies.as_mut().map(Guarded::get_mut),
        }
    }

    /// Asserts that the call was refused exactly if it must be, that a refused one has written nothing, and that an
    /// accepted one has given every row what its kind gets. Whether it was accepted.
    pub(crate) fn check(&self, result: Result<()>, refused: bool, kinds: &[Kind], vocab: usize) -> bool {
        match result {
            Err(error) => {
                assert!(refused, "refused: {error:?}");
                untouched!(self.log_probs, self.states);
                if let Some(entropies) = &self.entropies {
                    entropies.untouched("entropies");
                }
                false
            }
            Ok(()) => {
                assert!(!refused, "accepted");
                self.log_probs.untouched_but("log-probs", |_| true);
                self.states.untouched_but("states", |_| true);
                self.log_probs.written("log-probs");
                self.states.written("states");
                for (row, kind) in kinds.iter().enumerate() {
                    kind.check_log_prob(row, self.log_probs.get()[row]);
                    kind.check_state(row, self.states.get()[row], vocab);
                }
                if let Some(entropies) = &self.entropies {
                    entropies.untouched_but("entropies", |_| true);
                    entropies.written("entropies");
                    for (row, kind) in kinds.iter().enumerate() {
                        kind.check_entropy(row, entropies.get()[row], vocab);
                    }
                }
                true
            }
        }
    }
}

/// Upstream gradients, one of them hostile.
pub(crate) struct Upstream {
    /// Of each row, wherever it comes from.
    pub(crate) log_probs: Vec<f32>,
    pub(crate) entropies: Option<Vec<f32>>,
    pub(crate) per_sequence: Option<PerSequence>,
}

/// Sequences that rows have their gradient from: one of them may be none, or its weight hostile.
pub(crate) struct PerSequence {
    pub(crate) row_sequences: Vec<i32>,
    pub(crate) weights: Vec<f64>,
    pub(crate) loss_scale: f64,
}

impl PerSequence {
    /// `last`: the sequence of the last row.
    fn choose(choices: &mut Choices<'_>, rows: usize, last: Option<i32>) -> Self {
        let mut row_sequences: Vec<i32> = (0..choices.length(rows)).map(|row| (row / 2) as i32).collect();
        let row = choices.choose(rows.max(1));
        if let Some(sequence) = row_sequences.get_mut(row) {
            *sequence = choices.of(*sequence, &[0, 1, 2, 3, -1, i32::MIN, i32::MAX, 1 << 16]);
        }
        if let (Some(sequence), Some(last)) = (row_sequences.last_mut(), last) {
            *sequence = last;
        }
        let mut weights = vec![0.5; choices.of(2, &[1, 3, 0])];
        if let Some(weight) = weights.first_mut() {
            *weight = choices.f64(*weight);
        }
        Self { row_sequences, weights, loss_scale: choices.f64(2.0) }
    }

    /// d loss / d log-prob of a row: NaN where its sequence is none.
    fn of_row(&self, sequence: i32) -> f32 {
        let weight = usize::try_from(sequence).ok().and_then(|sequence| self.weights.get(sequence));
        weight.map_or(f32::NAN, |weight| (weight * self.loss_scale) as f32)
    }
}

impl Upstream {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        // Per row; per sequence; the same with a sequence that is none.
        let way = choices.choose(5);
        if way > 0 {
            let last = [None, Some(-1), Some(2), Some(i32::MAX)][way - 1];
            let per_sequence = PerSequence::choose(choices, rows, last);
            let log_probs = per_sequence.row_sequences.iter().map(|sequence| per_sequence.of_row(*sequence)).collect();
            return Self { log_probs, entropies: None, per_sequence: Some(per_sequence) };
        }
        let mut log_probs: Vec<f32> = (0..choices.length(rows)).map(|row| 0.5 - row as f32 * 0.125).collect();
        let row = choices.choose(rows.max(1));
        if let Some(gradient) = log_probs.get_mut(row) {
            *gradient = choices.f32(*gradient);
        }
        let entropies = choices.yes().then(|| {
            let mut entropies = vec![0.25; choices.length(rows)];
            if let Some(gradient) = entropies.get_mut(row) {
                *gradient = choices.f32(*gradient);
            }
            entropies
        });
        Self { log_probs, entropies, per_sequence: None }
    }

    pub(crate) fn fit(&self, rows: usize) -> bool {
        self.log_probs.len() == rows && self.entropies.as_ref().is_none_or(|entropies| entropies.len() == rows)
    }

    pub(crate) fn views(&self) -> RowGradients<'_> {
        match &self.per_sequence {
            None => RowGradients::PerRow { log_probs: &self.log_probs, entropies: self.entropies.as_deref() },
            Some(PerSequence { row_sequences, weights, loss_scale }) => {
                RowGradients::PerSequence { row_sequences, weights, loss_scale: *loss_scale }
            }
        }
    }

    /// Bound on what the gradient of a logit of this row can be in size.
    pub(crate) fn largest(&self, row: usize, vocab: usize, options: &LogitOptions) -> f64 {
        let of_entropy = self.entropies.as_ref().map_or(0.0, |entropies| f64::from(entropies[row]).abs());
        let size = f64::from(self.log_probs[row]).abs() + of_entropy * (2.0 + (vocab as f64).ln());
        // Formed in f32, in whatever order: with and without the temperature.
        size * (1.0 / options.temperature()).max(1.0)
    }
}

/// The largest number of a type, less what rounding may add.
pub(crate) fn largest<T: Element>() -> f64 {
    match T::UNIT_ROUNDOFF {
        unit if unit == f16::UNIT_ROUNDOFF => 65_000.0,
        _ => 1e38,
    }
}

fn walk_of<B: HostBackend, T: Element + Sentinel>(choices: &mut Choices<'_>) {
    let verbs = ["token_log_probs", "token_log_probs_backward", "token_log_probs_backward_in_place"];
    choices.calls_of(B::VERBS, &verbs);
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<T>::choose(choices, count);
    let options = settings::logit_options(choices);
    let backend = B::choose(choices);
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();

    let mut outputs = Outputs::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let targets = &rows.targets[..count - short];
    let refused = short > 0 || !outputs.fit(count) || !are_columns(targets, VOCAB);
    let logits = Matrix::strided(&rows.data, count, VOCAB, rows.stride).expect("room for the rows");
    let result = if rows.narrow {
        backend.token_log_probs(&logits, &super::rows::narrow(targets), &options, outputs.views())
    } else {
        backend.token_log_probs(&logits, targets, &options, outputs.views())
    };
    if outputs.check(result, refused, &kinds, VOCAB) {
        backward(choices, &backend, &rows, &options, &outputs, &kinds);
    }
}

fn backward<B: HostBackend, T: Element + Sentinel>(
    choices: &mut Choices<'_>,
    backend: &B,
    rows: &Rows<T>,
    options: &LogitOptions,
    forward: &Outputs,
    kinds: &[Kind],
) {
    let count = rows.count;
    let upstream = Upstream::choose(choices, count);
    let mut states = forward.states.get().to_vec();
    states.resize(choices.length(count), SoftmaxState::default());
    // Not what the forward pass left: nothing is promised but that nothing breaks.
    let strange = choices.yes();
    if strange {
        states.fill(SoftmaxState { r: choices.f32(0.0), s: choices.f32(0.0) });
    }
    let kept = forward.entropies.as_ref().map(Guarded::get).filter(|_| !choices.yes());
    let saved = SavedRows { states: &states, entropies: kept };
    let (of_rows, of_columns) = (choices.length(count), choices.of(VOCAB, &[VOCAB + 1, 1]));
    let stride = of_columns + choices.of(0, &[2]);
    let mut gradient = Guarded::<T>::new(of_rows * stride);
    let refused = of_rows != count
        || of_columns != VOCAB
        || states.len() != count
        || !upstream.fit(count)
        || (upstream.entropies.is_some() && kept.is_none());

    let logits = Matrix::strided(&rows.data, count, VOCAB, rows.stride).expect("room for the rows");
    let out = MatrixMut::strided(gradient.get_mut(), of_rows, of_columns, stride).expect("room for the rows");
    let result = backend.token_log_probs_backward(&logits, &rows.targets, options, &saved, &upstream.views(), out);
    if let Err(error) = &result {
        assert!(refused, "refused: {error:?}");
        assert!(!matches!(error, Error::EntropiesNotKept) || kept.is_none());
        untouched!(gradient);
    } else {
        assert!(!refused, "accepted");
        gradient.untouched_between_rows("gradient", VOCAB, stride);
        gradient.rows_written("gradient", count, VOCAB, stride);
        for (row, kind) in kinds.iter().enumerate() {
            let found = &gradient.get()[row * stride..][..VOCAB];
            let upstream = (!strange).then(|| upstream.largest(row, VOCAB, options));
            check_gradient(*kind, row, rows.row(row), found, upstream);
        }
    }

    let mut in_place = Guarded::holding(&rows.data);
    let out = MatrixMut::strided(in_place.get_mut(), count, VOCAB, rows.stride).expect("room for the rows");
    let narrow = rows.narrow_targets();
    let second = backend.token_log_probs_backward_in_place(out, &narrow, options, &saved, &upstream.views());
    let refused = refused && (of_rows, of_columns) == (count, VOCAB);
    match second {
        Err(error) => {
            assert!(refused || result.is_err(), "in place refused: {error:?}");
            untouched!(in_place);
        }
        Ok(()) => {
            in_place.untouched_between_rows("logits", VOCAB, rows.stride);
            for row in (0..count).filter(|_| result.is_ok()) {
                let (one, other) = (&gradient.get()[row * stride..], &in_place.get()[row * rows.stride..]);
                let same = one.iter().zip(other).take(VOCAB).all(|(one, other)| one.same(other));
                assert!(same, "row {row} in place: {:?}, {:?}", &one[..VOCAB], &other[..VOCAB]);
            }
        }
    }
}

/// Asserts what a row's gradient must be. `upstream` bounds its size, NaN if the upstream gradient is; `None`: only what no
/// upstream gradient changes.
pub(crate) fn check_gradient<T: Element>(kind: Kind, row: usize, logits: &[T], found: &[T], upstream: Option<f64>) {
    let found: Vec<f32> = found.iter().map(|value| value.to_f32()).collect();
    let told = format!("row {row} is {kind:?} with upstream {upstream:?}: logits {logits:?}, gradient {found:?}");
    if kind == Kind::Masked {
        assert!(found.iter().all(|value| *value == 0.0), "{told}");
    }
    let Some(upstream) = upstream else { return };
    assert!(!upstream.is_nan() || kind == Kind::Masked || found.iter().all(|value| value.is_nan()), "{told}");
    match kind {
        Kind::NoSoftmax => assert!(found.iter().all(|value| value.is_nan()), "{told}"),
        Kind::Scored | Kind::Impossible if upstream < largest::<T>() => {
            assert!(found.iter().all(|value| value.is_finite()), "{told}");
            for (logit, value) in logits.iter().zip(&found) {
                let excluded = logit.to_f32() == f32::NEG_INFINITY && kind == Kind::Scored;
                assert!(!excluded || *value == 0.0, "{told}");
                assert!(f64::from(*value).abs() <= upstream * 1.01 + 1e-7, "{told}");
            }
        }
        _ => {}
    }
}
