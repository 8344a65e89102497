//! The preference loss on the device.

use super::linear::{Brought as BroughtCase, Gradients, scored};
use super::stages::{Brought, has_length};
use super::{Placed, cuda, upload};
use crate::hostile::Choices;
use crate::hostile::guarded::{Guarded, Sentinel, untouched};
use crate::hostile::linear_case::{self, Case};
use crate::hostile::preference_loss::{Inputs, as_in_poisoned_groups, check_row};
use crate::hostile::rows::{Kind, Rows, VOCAB};
use cudarc::driver::{CudaContext, DeviceRepr};
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut};
use exo_kernels::{Element, Error, ForwardPass, PreferenceLoss};
use half::{bf16, f16};

pub(super) fn from_logits(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => from_logits_of::<f32>(choices),
        1 => from_logits_of::<f16>(choices),
        _ => from_logits_of::<bf16>(choices),
    }
}

/// Whether the host refuses: what it can see does not fit.
fn refused(inputs: &Inputs, rows: usize, targets: usize) -> bool {
    rows != inputs.batch.rows()
        || targets != rows
        || !has_length(&inputs.reference, &inputs.batch)
        || !inputs.rewards.fit(&inputs.options.objective(), &inputs.batch)
}

/// Asserts what the report must say: of inputs on the device that the host would have refused, or as on the CPU.
/// Whether there is a report.
fn check_report(inputs: &Inputs, loss: &PreferenceLoss<Cuda>, kinds: &[Kind], targets: &[i64]) -> bool {
    let bad_target = kinds.iter().position(|kind| *kind == Kind::NoColumn);
    match loss.unchecked_report() {
        Ok(report) => {
            assert!(bad_target.is_none() && inputs.reference.fits(&inputs.batch, targets), "{report:?}");
            inputs.check_report(loss.report().err().as_ref(), report, kinds);
            true
        }
        Err(Error::DeviceTarget { row, .. }) => {
            assert_eq!(Some(row), bad_target);
            false
        }
        Err(Error::NotFinite { what: "reference log-prob", .. }) => {
            assert!(!inputs.reference.fits(&inputs.batch, targets));
            false
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn from_logits_of<T: Element + Sentinel + DeviceRepr>(choices: &mut Choices<'_>) {
    let cuda = cuda();
    let inputs = Inputs::choose(choices);
    let count = choices.length(inputs.batch.rows());
    let rows = Rows::<T>::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let targets = upload(&cuda, &rows.targets);
    let reference = Brought::new(&cuda, &inputs.reference);
    let mut loss = PreferenceLoss::new(cuda.clone(), inputs.options);
    loss.set_loss_scale(inputs.loss_scale);
    let mut data = Placed::of(&cuda, Guarded::holding(&rows.data));
    let logits = Matrix::strided(data.view(), count, VOCAB, rows.stride).expect("room for the rows");
    let ids = targets.slice(..count - short);
    let result = loss.forward(&logits, ids, &inputs.batch, &reference.view(), inputs.rewards.view());
    let refused = refused(&inputs, count, count - short);
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
    if !check_report(&inputs, &loss, &kinds, &rows.targets) {
        return;
    }
    let upstream = inputs.upstream(loss.unchecked_report().expect("as before"), &kinds);
    let (of_rows, of_columns) = (choices.length(count), choices.of(VOCAB, &[VOCAB + 1, 1]));
    let stride = of_columns + choices.of(0, &[2]);
    let mut gradient = Placed::<T>::new(&cuda, of_rows * stride);
    let out = MatrixMut::strided(gradient.view_mut(), of_rows, of_columns, stride).expect("room for the rows");
    let result = loss.backward(&step, &logits, out);
    let gradient = gradient.fetch(&cuda);
    if let Err(error) = result {
        assert!((of_rows, of_columns) != (count, VOCAB), "refused: {error:?}");
        untouched!(gradient);
    } else {
        assert_eq!((of_rows, of_columns), (count, VOCAB));
        gradient.untouched_between_rows("gradient", VOCAB, stride);
        gradient.rows_written("gradient", count, VOCAB, stride);
        for (row, of_row) in upstream.iter().enumerate() {
            check_row(kinds[row], *of_row, row, rows.row(row), &gradient.get()[row * stride..][..VOCAB]);
        }
    }
    let place = choices.of(None, &[Some(Place::Own), Some(Place::Clone), Some(Place::OtherContext)]);
    if let Some(place) = place {
        let pass = loss.into_forward_pass(step).expect("the step of the last pass");
        return forward_pass(choices, (&pass, place), (&logits, of_rows, of_columns), inputs.loss_scale, &gradient);
    }
    let fewer = count.saturating_sub(usize::from(choices.yes()));
    let view = MatrixMut::strided(data.view_mut(), fewer, VOCAB, rows.stride).expect("room for the rows");
    let result = loss.backward_in_place(step, view);
    let data = data.fetch(&cuda);
    if let Err(error) = result {
        assert!(fewer != count, "in place refused: {error:?}");
        untouched!(data);
    } else {
        data.untouched_between_rows("logits", VOCAB, rows.stride);
    }
}

/// Which backend goes backward from a pass.
#[derive(Clone, Copy)]
enum Place {
    Own,
    Clone,
    OtherContext,
}

/// A finished pass refuses what the loss refused, and writes the same bits where it did not: `of_loss`, of so many rows and
/// columns.
fn forward_pass<T: Element + Sentinel + DeviceRepr>(
    choices: &mut Choices<'_>,
    (pass, place): (&ForwardPass<Cuda>, Place),
    (logits, rows, columns): (&Matrix<'_, T>, usize, usize),
    loss_scale: f64,
    of_loss: &Guarded<T>,
) {
    let (cuda, stride) = (cuda(), of_loss.get().len() / rows.max(1));
    let mut gradient = Placed::<T>::new(&cuda, rows * stride);
    let out = MatrixMut::strided(gradient.view_mut(), rows, columns, stride).expect("room for the rows");
    let scale = choices.f64(loss_scale);
    let result = match place {
        Place::Own => pass.backward(scale, logits, out),
        Place::Clone => pass.backward_on(&cuda, scale, logits, out),
        Place::OtherContext => {
            let context = CudaContext::new_non_primary(0, 0).expect("another context of device 0");
            let other = Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load");
            let result = pass.backward_on(&other, scale, logits, out);
            assert!(matches!(result, Err(Error::Device { .. })), "{result:?}");
            gradient.fetch(&cuda).untouched("gradient");
            return;
        }
    };
    let gradient = gradient.fetch(&cuda);
    if let Err(error) = result {
        assert!((rows, columns) != (logits.rows(), VOCAB), "refused: {error:?}");
        untouched!(gradient);
        return;
    }
    assert_eq!((rows, columns), (logits.rows(), VOCAB));
    gradient.rows_written("gradient", rows, VOCAB, stride);
    let same = gradient.get().iter().zip(of_loss.get()).all(|(one, other)| one.same(other));
    assert!(same || scale.to_bits() != loss_scale.to_bits(), "{gradient:?}, {of_loss:?}");
}

pub(super) fn from_hidden_states(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => from_hidden_states_of::<f32, f32>(choices),
        1 => from_hidden_states_of::<bf16, f32>(choices),
        _ => from_hidden_states_of::<f16, f16>(choices),
    }
}

fn from_hidden_states_of<T, G>(choices: &mut Choices<'_>)
where
    T: Element + Sentinel + DeviceRepr,
    G: Element + Sentinel + DeviceRepr,
{
    let cuda = cuda();
    let inputs = Inputs::choose(choices);
    let count = choices.length(inputs.batch.rows());
    let case = Case::<T, T>::choose(choices, count);
    let kinds = case.kinds(&inputs.options.logits());
    let short = usize::from(count > 0 && choices.yes());
    let brought = BroughtCase::new(&cuda, &case);
    let reference = Brought::new(&cuda, &inputs.reference);
    let mut loss = PreferenceLoss::new(cuda.clone(), inputs.options);
    loss.set_loss_scale(inputs.loss_scale);
    let (states, head, ids) = (brought.hidden(), brought.head(), brought.targets(count - short));
    let (hidden, beyond) = scored(choices, &states, &kinds);
    let (batch, rewards) = (&inputs.batch, inputs.rewards.view());
    let result = loss.forward_linear(hidden, &head, ids, batch, &reference.view(), rewards);
    let refused = refused(&inputs, count, count - short);
    let step = match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            assert_eq!(loss.report().err(), Some(Error::NoForward));
            return;
        }
        Ok(step) => step,
    };
    assert!(!refused, "accepted");
    if beyond {
        assert!(matches!(loss.report(), Err(Error::ScoredRows { .. } | Error::DeviceTarget { .. })));
        return;
    }
    if !check_report(&inputs, &loss, &kinds, &case.targets) {
        return;
    }
    let upstream = inputs.upstream(loss.unchecked_report().expect("as before"), &kinds);
    let gradients = linear_case::Gradients::<T, G>::choose(choices, count);
    let mut placed = Gradients::new(&cuda, gradients);
    let result = loss.backward_linear(&step, &states, &head, placed.views());
    let gradients = placed.fetch(&cuda);
    match result {
        Err(error) => {
            assert!(!gradients.fit(count), "refused: {error:?}");
            gradients.untouched();
        }
        Ok(()) => {
            assert!(gradients.fit(count), "accepted");
            let (kinds, upstream) = as_in_poisoned_groups(&kinds, &upstream);
            gradients.check(&case, &kinds, &upstream);
        }
    }
}
