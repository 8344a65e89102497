//! The preference loss: forward, report, backward, from logits and from hidden states.

use super::choices::Choices;
use super::guarded::{Guarded, Sentinel, untouched};
use super::linear::scored;
use super::linear_case::{Case, Gradients, SIZE, Upstream};
use super::log_ratio;
use super::objective::{Held as Rewards, check_group, groups};
use super::rows::{self, Kind, Rows, VOCAB, are_columns};
use super::settings::{self, HostBackend};
use super::token_log_prob::check_gradient;
use exo_kernels::{
    Batch, Cpu, Element, Error, ForwardPass, Head, LossOptions, Matrix, MatrixMut, Objective, PreferenceLoss,
    Reference, Report, Step,
};
use half::{bf16, f16};

/// What a step takes beside logits or hidden states.
pub(crate) struct Inputs {
    pub(crate) batch: Batch,
    pub(crate) reference: log_ratio::Held,
    pub(crate) rewards: Rewards,
    pub(crate) options: LossOptions,
    /// What the reduction multiplies a group's loss with.
    weight: f64,
    pub(crate) loss_scale: f64,
}

impl Inputs {
    pub(crate) fn choose(choices: &mut Choices<'_>) -> Self {
        let batch = rows::batch(choices);
        let objective = settings::objective(choices);
        let reduction = settings::reduction(choices, objective);
        let log_ratio = settings::log_ratio(choices);
        let options = LossOptions::from(objective)
            .with_logits(settings::logit_options(choices))
            .with_log_ratio(log_ratio)
            .with_entropy(choices.yes())
            .with_linear_kept(settings::linear_kept(choices))
            .with_reduction(reduction)
            .expect("as before");
        Self {
            reference: log_ratio::Held::choose(choices, &batch),
            rewards: Rewards::choose(choices, batch.sequences()),
            options,
            weight: settings::weight(reduction, batch.groups()),
            loss_scale: choices.f64(1.0),
            batch,
        }
    }

    fn refused(&self, rows: usize, targets: &[i64]) -> bool {
        rows != self.batch.rows()
            || targets.len() != rows
            || !are_columns(targets, VOCAB)
            || !self.reference.fits(&self.batch, targets)
            || !self.rewards.fit(&self.options.objective(), &self.batch)
    }

    /// Asserts what the report must say, and with what error.
    pub(crate) fn check_report(&self, error: Option<&Error>, report: &Report, kinds: &[Kind]) {
        let bad = kinds.iter().filter(|kind| **kind == Kind::NoSoftmax).count();
        let unsure = kinds.contains(&Kind::Edge);
        if !unsure {
            let first = kinds.iter().position(|kind| *kind == Kind::NoSoftmax);
            let expected = first.map(|row| Error::NonFiniteRow { row, count: bad });
            assert_eq!(error, expected.as_ref());
            assert_eq!(report.check().err(), expected);
            let impossible = kinds.iter().filter(|kind| **kind == Kind::Impossible).count();
            assert_eq!(report.oddities.impossible_targets, impossible);
        }
        assert_eq!(report.scored_rows, kinds.iter().filter(|kind| **kind != Kind::Masked).count());
        assert_eq!(report.group_losses.len(), self.batch.groups());
        assert!((0.0..=1.0).contains(&report.accuracy), "{report:?}");
        let objective = self.options.objective();
        for (index, group) in groups(&self.batch).enumerate() {
            let loss = report.group_losses[index];
            match self.state(kinds, index) {
                State::Poisoned => assert!(loss.is_nan(), "{report:?}"),
                State::Unsure => {}
                State::Sound => {
                    let implicit = &report.implicit_rewards[group.clone()];
                    let log_ratios: Vec<f64> = implicit.iter().map(|f| f / objective.beta_policy()).collect();
                    let policy: Vec<f64> =
                        group.clone().map(|i| report.implicit_rewards[i] + self.rewards.offset(i)).collect();
                    let target: Vec<f64> = group.map(|i| self.rewards.target_logit(&objective, i)).collect();
                    check_group(&objective, &log_ratios, (&policy, &target), (loss, &[]), 1.0);
                }
            }
        }
    }

    /// What the rows of a group make of it.
    fn state(&self, kinds: &[Kind], group: usize) -> State {
        let sequences = &self.batch.group_offsets()[group..=group + 1];
        let rows = self.batch.sequence_offsets()[sequences[0]]..self.batch.sequence_offsets()[sequences[1]];
        match &kinds[rows] {
            kinds if kinds.contains(&Kind::Edge) => State::Unsure,
            kinds if kinds.contains(&Kind::NoSoftmax) => State::Poisoned,
            _ => State::Sound,
        }
    }

    /// What comes back to each row.
    pub(crate) fn upstream(&self, report: &Report, kinds: &[Kind]) -> Vec<(State, Upstream)> {
        let objective = self.options.objective();
        let factor = objective.beta_policy() * self.weight * self.loss_scale.abs();
        let mut of_rows = Vec::new();
        for (index, group) in groups(&self.batch).enumerate() {
            let state = self.state(kinds, index);
            // No coefficient is larger than a few times the largest difference of the logits of p and q.
            let size = |value: f64| if value == f64::NEG_INFINITY { 0.0 } else { value.abs() };
            let largest = group
                .clone()
                .map(|i| {
                    size(report.implicit_rewards[i] + self.rewards.offset(i))
                        .max(size(self.rewards.target_logit(&objective, i)))
                })
                .fold(1.0, f64::max);
            let bound = factor * (8.0 * largest + 8.0) * (1.0 / self.options.logits().temperature()).max(1.0);
            let upstream = match state {
                State::Sound if (0.0..1e37).contains(&bound) && largest < 1e290 => Upstream::UpTo(bound),
                State::Poisoned if self.loss_scale.is_finite() => Upstream::NotFinite,
                _ => Upstream::Any,
            };
            for sequence in group {
                let range = &self.batch.sequence_offsets()[sequence..=sequence + 1];
                of_rows.resize(of_rows.len() + range[1] - range[0], (state, upstream));
            }
        }
        of_rows
    }
}

/// What the rows of a group make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Poisoned,
    Unsure,
    Sound,
}

fn check_report<B: HostBackend>(inputs: &Inputs, loss: &PreferenceLoss<B>, kinds: &[Kind]) {
    inputs.check_report(loss.report().err().as_ref(), loss.unchecked_report().expect("a pass was made"), kinds);
}

fn loss<B: HostBackend>(inputs: &Inputs, choices: &mut Choices<'_>) -> PreferenceLoss<B> {
    let mut loss = PreferenceLoss::new(B::choose(choices), inputs.options);
    loss.set_loss_scale(inputs.loss_scale);
    loss
}

pub(crate) fn from_logits<B: HostBackend>(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => from_logits_of::<B, f32>(choices),
        1 => from_logits_of::<B, f16>(choices),
        _ => from_logits_of::<B, bf16>(choices),
    }
}

fn from_logits_of<B: HostBackend, T: Element + Sentinel>(choices: &mut Choices<'_>) {
    choices.calls(&[
        "loss::PreferenceLoss::forward",
        "loss::PreferenceLoss::backward",
        "loss::PreferenceLoss::backward_in_place",
        "report::Report::check",
        "step::Step::with_moved_inputs",
    ]);
    let inputs = Inputs::choose(choices);
    let count = choices.length(inputs.batch.rows());
    let rows = Rows::<T>::choose(choices, count);
    let mut targets = rows.targets.clone();
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let mut loss = loss::<B>(&inputs, choices);
    let mut data = Guarded::holding(&rows.data);
    let logits = Matrix::strided(data.get(), count, VOCAB, rows.stride).expect("room for the rows");
    let (batch, reference, rewards) = (&inputs.batch, inputs.reference.view(), inputs.rewards.view());
    let result = if rows.narrow {
        loss.forward(&logits, &rows::narrow(&targets), batch, &reference, rewards)
    } else {
        loss.forward(&logits, &targets, batch, &reference, rewards)
    };
    let refused = inputs.refused(count, &targets);
    let step = match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            assert_eq!(loss.report().err(), Some(Error::NoForward));
            return;
        }
        Ok(step) => step,
    };
    assert!(!refused, "accepted");
    let options = inputs.options.logits();
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    check_report(&inputs, &loss, &kinds);

    // A refused call in between changes nothing.
    if choices.yes() {
        let wrong = Batch::new(&[0, count + 1], &[0, 1]).expect("a batch");
        let refused = loss.forward(&logits, &targets, &wrong, &Reference::None, exo_kernels::Rewards::from(&[1.0]));
        assert!(refused.is_err());
        check_report(&inputs, &loss, &kinds);
    }
    let (of_rows, of_columns) = (choices.length(count), choices.of(VOCAB, &[VOCAB + 1, 1]));
    let stride = of_columns + choices.of(0, &[2]);
    let mut gradient = Guarded::<T>::new(of_rows * stride);
    let elsewhere = choices.yes();
    let step = if choices.yes() { step.with_moved_inputs() } else { step };
    let moved = rows.data.clone();
    let read = if elsewhere { Matrix::strided(&moved, count, VOCAB, rows.stride).expect("room") } else { logits };
    let out = MatrixMut::strided(gradient.get_mut(), of_rows, of_columns, stride).expect("room for the rows");
    let upstream = inputs.upstream(loss.unchecked_report().expect("a pass was made"), &kinds);
    let result = loss.backward(&step, &read, out);
    let accepted = result.is_ok();
    match result {
        Err(error) => {
            let other_place = elsewhere && count > 0 && matches!(error, Error::OtherInputs { .. });
            assert!((of_rows, of_columns) != (count, VOCAB) || other_place, "refused: {error:?}");
            untouched!(gradient);
        }
        Ok(()) => {
            assert_eq!((of_rows, of_columns), (count, VOCAB));
            gradient.untouched_between_rows("gradient", VOCAB, stride);
            gradient.rows_written("gradient", count, VOCAB, stride);
            for (row, (state, upstream)) in upstream.iter().enumerate() {
                check_row(
                    kinds[row],
                    (*state, *upstream),
                    row,
                    rows.row(row),
                    &gradient.get()[row * stride..][..VOCAB],
                );
            }
        }
    }
    data.untouched("logits");
    if choices.yes() {
        let pass = loss.into_forward_pass(step).expect("the step of the last pass");
        let of_loss = (accepted && stride == VOCAB).then(|| gradient.get());
        forward_pass(choices, (&pass, of_loss), inputs.loss_scale, &rows);
        return;
    }
    let whole = choices.yes();
    let in_place_rows = if whole { count } else { count.saturating_sub(usize::from(choices.yes())) };
    let view = MatrixMut::strided(data.get_mut(), in_place_rows, VOCAB, rows.stride).expect("room for the rows");
    match loss.backward_in_place(step, view) {
        Err(error) => {
            assert!(in_place_rows != count, "in place refused: {error:?}");
            untouched!(data);
        }
        Ok(()) => {
            data.untouched_between_rows("logits", VOCAB, rows.stride);
            for (row, (state, upstream)) in upstream.iter().enumerate() {
                let found = &data.get()[row * rows.stride..][..VOCAB];
                check_row(kinds[row], (*state, *upstream), row, rows.row(row), found);
            }
        }
    }
}

/// A finished pass: goes backward at once or later, and refuses what is not its shape. `gradient` is what the loss gave, if
/// it was not refused, with its own scale.
fn forward_pass<B: HostBackend, T: Element + Sentinel>(
    choices: &mut Choices<'_>,
    (pass, of_loss): (&ForwardPass<B>, Option<&[T]>),
    loss_scale: f64,
    rows: &Rows<T>,
) {
    choices.calls(&[
        "loss::PreferenceLoss::into_forward_pass",
        "forward_pass::ForwardPass::backward",
        "forward_pass::ForwardPass::backward_on",
    ]);
    let count = rows.count;
    let (of_rows, of_columns) = (choices.length(count), choices.of(VOCAB, &[VOCAB + 1, 1]));
    let given = choices.length(count);
    let columns = choices.of(VOCAB, &[VOCAB - 1]);
    let mut gradient = Guarded::<T>::new(of_rows * of_columns);
    let mut data = rows.data.clone();
    data.resize(data.len().max(given * rows.stride), T::sentinel());
    let logits = Matrix::strided(&data, given, columns, rows.stride).expect("room for the rows");
    let out = MatrixMut::strided(gradient.get_mut(), of_rows, of_columns, of_columns).expect("room for the rows");
    let scale = choices.f64(loss_scale);
    let refused = [given, of_rows] != [count; 2] || [columns, of_columns] != [VOCAB; 2];
    let result = if choices.yes() {
        pass.backward_on(&pass.backend().clone(), scale, &logits, out)
    } else {
        pass.backward(scale, &logits, out)
    };
    match result {
        Err(error) => {
            assert!(refused && matches!(error, Error::Length { .. }), "refused: {error:?}");
            untouched!(gradient);
        }
        Ok(()) => {
            assert!(!refused, "accepted");
            gradient.rows_written("gradient", count, VOCAB, VOCAB);
            // The bits are those of the loss.
            for (found, expected) in gradient.get().iter().zip(of_loss.unwrap_or_default()) {
                assert!(scale.to_bits() != loss_scale.to_bits() || found.same(expected), "{found:?}, {expected:?}");
            }
        }
    }
}

pub(crate) fn check_row<T: Element>(
    kind: Kind,
    (state, upstream): (State, Upstream),
    row: usize,
    logits: &[T],
    found: &[T],
) {
    let kind = if state == State::Poisoned && kind != Kind::Masked { Kind::NoSoftmax } else { kind };
    let bound = match upstream {
        Upstream::UpTo(bound) => Some(bound),
        Upstream::NotFinite => Some(0.0),
        Upstream::Any => None,
    };
    check_gradient(kind, row, logits, found, bound);
}

pub(crate) fn from_hidden_states<B: HostBackend>(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => from_hidden_states_of::<B, f32, f32, f32>(choices),
        1 => from_hidden_states_of::<B, bf16, bf16, f32>(choices),
        _ => from_hidden_states_of::<B, f16, f16, f16>(choices),
    }
}

fn from_hidden_states_of<B, T, W, G>(choices: &mut Choices<'_>)
where
    B: HostBackend,
    T: Element + Sentinel,
    W: Element + Sentinel,
    G: Element + Sentinel,
{
    choices.calls(&[
        "loss/from_hidden::PreferenceLoss::forward_linear",
        "loss/from_hidden::PreferenceLoss::backward_linear",
    ]);
    let inputs = Inputs::choose(choices);
    let count = choices.length(inputs.batch.rows());
    let case = Case::<T, W>::choose(choices, count);
    let mut targets = case.targets.clone();
    targets.truncate(if choices.yes() { count.saturating_sub(1) } else { count });
    let mut loss = loss::<B>(&inputs, choices);
    let (hidden, head) = (case.hidden(), case.head());
    let (reference, rewards) = (inputs.reference.view(), inputs.rewards.view());
    let (said, beyond) = scored(choices, &hidden, &targets);
    let result = loss.forward_linear(said, &head, &targets, &inputs.batch, &reference, rewards);
    let refused = beyond || inputs.refused(count, &targets);
    let step = match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            assert_eq!(loss.report().err(), Some(Error::NoForward));
            return;
        }
        Ok(step) => step,
    };
    assert!(!refused, "accepted");
    let kinds = case.kinds(&inputs.options.logits());
    check_report(&inputs, &loss, &kinds);

    let mut gradients = Gradients::<T, G>::choose(choices, count);
    let upstream = inputs.upstream(loss.unchecked_report().expect("a pass was made"), &kinds);
    let (result, refused) = if choices.yes() {
        choices.calls(&["forward_pass::ForwardPass::backward_linear", "forward_pass::ForwardPass::backward_linear_on"]);
        let pass = loss.into_forward_pass(step).expect("the step of the last pass");
        // Another vocabulary, or another number of rows, than those of the forward pass.
        let (short, few) = (choices.yes(), count > 0 && choices.yes());
        let other = Matrix::new(&case.weight[..SIZE], SIZE).and_then(Head::new).expect("a vocabulary");
        let rows = count - usize::from(few);
        let states = Matrix::strided(&case.hidden, rows, SIZE, case.hidden_stride).expect("room for the rows");
        let head = if short { other } else { head };
        let result = if choices.yes() {
            pass.backward_linear_on(&pass.backend().clone(), inputs.loss_scale, &states, &head, gradients.views())
        } else {
            pass.backward_linear(inputs.loss_scale, &states, &head, gradients.views())
        };
        (result, short || few)
    } else {
        (loss.backward_linear(&step, &hidden, &head, gradients.views()), false)
    };
    let refused = refused || !gradients.fit(count);
    match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            gradients.untouched();
        }
        Ok(()) => {
            assert!(!refused, "accepted");
            let (kinds, upstream) = as_in_poisoned_groups(&kinds, &upstream);
            gradients.check(&case, &kinds, &upstream);
        }
    }
}

/// A NaN coefficient does to a row what a row without a softmax does to itself.
pub(crate) fn as_in_poisoned_groups(kinds: &[Kind], upstream: &[(State, Upstream)]) -> (Vec<Kind>, Vec<Upstream>) {
    let of_row = |(kind, (state, upstream)): (&Kind, &(State, Upstream))| {
        let kind = match (kind, state) {
            (Kind::Scored | Kind::Impossible, State::Poisoned) => Kind::NoSoftmax,
            _ => *kind,
        };
        (kind, if matches!(upstream, Upstream::NotFinite) { Upstream::UpTo(1.0) } else { *upstream })
    };
    kinds.iter().zip(upstream).map(of_row).unzip()
}

/// Steps of other passes, other losses and other options.
pub(crate) fn steps(choices: &mut Choices<'_>) {
    choices.calls(&["step::Step::number"]);
    let objective: Objective = settings::objective(choices);
    let batch = Batch::padded(2, 1, 2).expect("a pair");
    let logits = [0.5f32, -0.5, 1.0, 0.25, 0.0, -1.0];
    let forward = |loss: &mut PreferenceLoss<Cpu>| -> Step {
        let view = Matrix::new(&logits, VOCAB).expect("rows");
        loss.forward(&view, &[1u32, 0], &batch, &Reference::None, &[0.25, 0.0]).expect("usual")
    };
    let mut loss = PreferenceLoss::new(Cpu::default(), objective);
    let mut other = PreferenceLoss::new(Cpu::default(), objective);
    let (first, of_other, last) = (forward(&mut loss), forward(&mut other), forward(&mut loss));
    assert!(first.number() != last.number() && of_other.number() != last.number());
    let which = choices.choose(6);
    let (step, mut loss) = match which {
        0 => (&last, loss),
        1 => (&first, loss),
        2 => (&of_other, loss),
        // Given up for its pass, with a step that is not its last one.
        4 => return assert!(matches!(loss.into_forward_pass(first), Err(Error::OtherStep { .. }))),
        5 => return assert!(matches!(other.into_forward_pass(last), Err(Error::OtherStep { .. }))),
        _ => (&last, loss.with_temperature(0.5).expect("a temperature")),
    };
    let mut gradient = Guarded::<f32>::new(6);
    let view = MatrixMut::new(gradient.get_mut(), VOCAB).expect("rows");
    let result = loss.backward(step, &Matrix::new(&logits, VOCAB).expect("rows"), view);
    if which == 0 {
        assert_eq!(result, Ok(()));
        gradient.written("gradient");
    } else {
        assert!(matches!(result, Err(Error::OtherStep { .. })), "{result:?}");
        untouched!(gradient);
    }
}
