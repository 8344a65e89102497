//! The linear stage on the device.

use super::stages::{Kept, Lent, OnDevice, check_status};
use super::{Placed, cuda, upload};
use crate::hostile::Choices;
use crate::hostile::guarded::{Guarded, Sentinel, untouched};
use crate::hostile::linear_case::{self, Case, SIZE};
use crate::hostile::rows::{Kind, VOCAB};
use crate::hostile::settings::{self, Fit};
use crate::hostile::token_log_prob::{self, Outputs};
use crate::hostile::{linear, row_loss};
use cudarc::driver::{CudaSlice, DeviceRepr};
use exo_kernels::cuda::{
    Cuda, Head, Hidden, LinearGradients, LinearOutputs, Matrix, MatrixMut, RowLosses, SavedLinear, Status, Targets,
    View,
};
use exo_kernels::{Backend, Dtype, Element, Error, LogitOptions, RowLoss, SoftmaxState};
use half::{bf16, f16};

/// A case, brought to the device.
pub(super) struct Brought<'c, T> {
    pub(super) case: &'c Case<T, T>,
    hidden: CudaSlice<T>,
    pub(super) weight: CudaSlice<T>,
    pub(super) bias: Option<CudaSlice<T>>,
    targets: CudaSlice<i64>,
}

impl<'c, T: Element + Sentinel + DeviceRepr> Brought<'c, T> {
    pub(super) fn new(cuda: &Cuda, case: &'c Case<T, T>) -> Self {
        Self {
            hidden: upload(cuda, &case.hidden),
            weight: upload(cuda, &case.weight),
            bias: case.bias.as_ref().map(|bias| upload(cuda, bias)),
            targets: upload(cuda, &case.targets),
            case,
        }
    }

    pub(super) fn hidden(&self) -> Matrix<'_, T> {
        let (rows, stride) = (self.case.rows, self.case.hidden_stride);
        Matrix::strided(self.hidden.slice(..self.case.hidden.len()).into(), rows, SIZE, stride)
            .expect("room for the rows")
    }

    pub(super) fn head(&self) -> Head<'_, T> {
        let weight = Matrix::strided((&self.weight).into(), VOCAB, SIZE, self.case.weight_stride).expect("room");
        let head = Head::new(weight).expect("a vocabulary");
        match &self.bias {
            Some(bias) => head.with_bias(bias.into()).expect("V long"),
            None => head,
        }
    }

    pub(super) fn targets(&self, count: usize) -> Targets<'_> {
        self.targets.slice(..count).into()
    }
}

/// Buffers for gradients, brought to the device.
pub(super) struct Gradients<T, G> {
    held: linear_case::Gradients<T, G>,
    hidden: Option<Placed<T>>,
    weight: Option<Placed<G>>,
    bias: Option<Placed<G>>,
}

impl<T: Element + Sentinel + DeviceRepr, G: Element + Sentinel + DeviceRepr> Gradients<T, G> {
    pub(super) fn new(cuda: &Cuda, mut held: linear_case::Gradients<T, G>) -> Self {
        Self {
            hidden: held.hidden.take().map(|hidden| Placed::of(cuda, hidden)),
            weight: held.weight.take().map(|weight| Placed::of(cuda, weight)),
            bias: held.bias.take().map(|bias| Placed::of(cuda, bias)),
            held,
        }
    }

    pub(super) fn views(&mut self) -> LinearGradients<'_, T, G> {
        fn view<N: Element + Sentinel + DeviceRepr>(
            placed: &mut Option<Placed<N>>,
            (rows, columns, stride): (usize, usize, usize),
        ) -> Option<MatrixMut<'_, N>> {
            let view = placed.as_mut()?.view_mut();
            Some(MatrixMut::strided(view, rows, columns, stride).expect("room for the rows"))
        }
        let hidden = view(&mut self.hidden, self.held.hidden_shape);
        let gradients = LinearGradients::new(hidden, view(&mut self.weight, self.held.weight_shape));
        let gradients = match &mut self.bias {
            Some(bias) => gradients.with_bias(bias.view_mut()),
            None => gradients,
        };
        if self.held.accumulate { gradients.accumulating() } else { gradients }
    }

    pub(super) fn fetch(self, cuda: &Cuda) -> linear_case::Gradients<T, G> {
        let mut held = self.held;
        held.hidden = self.hidden.map(|hidden| hidden.fetch(cuda));
        held.weight = self.weight.map(|weight| weight.fetch(cuda));
        held.bias = self.bias.map(|bias| bias.fetch(cuda));
        held
    }
}

/// Hidden states with what is said of the number of scored rows, and whether fewer are placed than are scored.
pub(super) fn scored<'m, 'a, T: Element>(
    choices: &mut Choices<'_>,
    states: &'m Matrix<'a, T>,
    kinds: &[Kind],
) -> (Hidden<'m, 'a, T>, bool) {
    let said = choices.of(None, &[Some(usize::MAX), Some(kinds.len()), Some(0), Some(1)]);
    let scored = kinds.iter().filter(|kind| **kind != Kind::Masked).count();
    match said {
        Some(said) => (Hidden::new(states).with_scored_rows(said), said < scored),
        None => (Hidden::new(states), false),
    }
}

pub(super) fn token_log_probs(choices: &mut Choices<'_>) {
    match choices.choose(5) {
        0 => token_log_probs_of::<f32, f32>(choices),
        1 => token_log_probs_of::<bf16, f32>(choices),
        2 => token_log_probs_of::<f16, f16>(choices),
        3 => mixed_types(choices),
        // A gradient of the head of neither of the two types that there may be.
        _ => token_log_probs_of::<f32, bf16>(choices),
    }
}

/// Whether the head's gradients are of a type that is written.
fn has_type<T: Element, G: Element>(gradients: &linear_case::Gradients<T, G>) -> bool {
    let type_of = (<T as Element>::DTYPE, <G as Element>::DTYPE);
    type_of.0 == type_of.1 || type_of.1 == Dtype::F32 || (gradients.weight.is_none() && gradients.bias.is_none())
}

fn token_log_probs_of<T, G>(choices: &mut Choices<'_>)
where
    T: Element + Sentinel + DeviceRepr,
    G: Element + Sentinel + DeviceRepr,
{
    choices.calls(&[
        "cuda/backend::Cuda::check_linear",
        "cuda/backend::Cuda::linear_token_log_probs",
        "cuda/backend::Cuda::linear_token_log_probs_backward",
    ]);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let case = Case::<T, T>::choose(choices, count);
    let options = settings::logit_options(choices);
    let kinds = case.kinds(&options);
    let brought = Brought::new(&cuda, &case);
    let outputs = Outputs::choose(choices, count);
    let short = usize::from(count > 0 && choices.yes());
    let wide = choices.yes();
    let other = upload(&cuda, &vec![T::from_f32(1.0); count * (SIZE + 1)]);
    let other = Matrix::new(other.slice(..count * (SIZE + 1)).into(), SIZE + 1).expect("rows");
    let states = brought.hidden();
    let (hidden, beyond) = scored(choices, if wide { &other } else { &states }, &kinds);
    let most = hidden.scored_rows().map_or(count, |rows| rows.min(count));
    let products = linear_case::Kept::choose(choices, most, <T as Element>::DTYPE);
    let fit = products.fit(most, <T as Element>::DTYPE, true);
    let refused = wide || short > 0 || !outputs.fit(count) || !fit;
    let mut units = products.units.as_ref().map(|numbers| (upload(&cuda, numbers), numbers.len()));
    let mut words = products.words.as_ref().map(|numbers| (upload(&cuda, numbers), numbers.len()));
    let mut placed = OnDevice::new(&cuda, outputs);
    cuda.clear_status().expect("no fault");
    let targets = brought.targets(count - short);
    let result = cuda.check_linear(&hidden, &brought.head(), &targets);
    assert_eq!(result.is_err(), wide || short > 0, "{result:?}");
    let views = LinearOutputs {
        rows: placed.views(),
        unit_gradients: units.as_mut().map(|(numbers, length)| numbers.slice_mut(..*length).into()),
        logit_gradients: words.as_mut().map(|(words, length)| words.slice_mut(..*length).into()),
    };
    let result = cuda.linear_token_log_probs(hidden, &brought.head(), targets, &options, views);
    let forward = placed.fetch(&cuda);
    if beyond && !refused {
        assert_eq!(result, Ok(()));
        assert!(cuda.status().expect("no fault").unplaced_rows() > 0);
        return;
    }
    if !forward.check(result, refused, &kinds, VOCAB) {
        return;
    }
    check_status(&cuda, &kinds);

    let upstream = token_log_prob::Upstream::choose(choices, count);
    let mut of_rows = forward.states.get().to_vec();
    of_rows.resize(choices.length(count), SoftmaxState::default());
    let kept = forward.entropies.as_ref().map(Guarded::get).filter(|_| !choices.yes());
    let gradients = linear_case::Gradients::<T, G>::choose(choices, count);
    let refused = of_rows.len() != count
        || !upstream.fit(count)
        || !gradients.fit(count)
        || !has_type(&gradients)
        || !products.fit(count, <T as Element>::DTYPE, false)
        || (upstream.entropies.is_some() && kept.is_none());
    let on_device = Kept::new(&cuda, &of_rows, kept, &upstream);
    let mut placed = Gradients::new(&cuda, gradients);
    let from = on_device.upstream();
    let saved = SavedLinear {
        rows: on_device.saved(),
        unit_gradients: units.as_ref().map(|(numbers, length)| numbers.slice(..*length).into()),
        logit_gradients: words.as_ref().map(|(words, length)| words.slice(..*length).into()),
    };
    let ids = brought.targets(count);
    let result =
        cuda.linear_token_log_probs_backward(&states, &brought.head(), ids, &options, saved, &from, placed.views());
    let gradients = placed.fetch(&cuda);
    match result {
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            gradients.untouched();
        }
        Ok(()) => {
            assert!(!refused, "accepted");
            let of_rows: Vec<_> = (0..count).map(|row| linear::of_row(&upstream, row, &options)).collect();
            gradients.check(&case, &kinds, &of_rows);
        }
    }
}

/// A head of another type than the hidden states is refused by every verb, in whichever order it looks at things.
fn mixed_types(choices: &mut Choices<'_>) {
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let case = Case::<f32, f32>::choose(choices, count);
    let narrow: Vec<bf16> = case.weight.iter().map(|number| bf16::from_f32(*number)).collect();
    let weight = upload(&cuda, &narrow);
    let head = Matrix::strided((&weight).into(), VOCAB, SIZE, case.weight_stride).and_then(Head::new).expect("room");
    let brought = Brought::new(&cuda, &case);
    let (hidden, ids, options) = (brought.hidden(), brought.targets(count), LogitOptions::default());
    let refused = Err(Error::GradientType { given: Dtype::F32, head: Dtype::Bf16 });
    assert_eq!(cuda.check_linear(&Hidden::new(&hidden), &head, &ids), refused);
    let mut outputs = OnDevice::new(&cuda, Outputs::new(count));
    assert_eq!(cuda.linear_token_log_probs(&hidden, &head, ids.clone(), &options, outputs.views()), refused);
    let outputs = outputs.fetch(&cuda);
    assert!(!outputs.check(refused.clone(), true, &[], VOCAB));

    let upstream = token_log_prob::Upstream::choose(choices, count);
    let kept = Kept::new(&cuda, &vec![SoftmaxState::default(); count], Some(&vec![0.5; count]), &upstream);
    let mut placed = Gradients::new(&cuda, linear_case::Gradients::<f32, bf16>::choose(choices, count));
    let (saved, from) = (kept.saved(), kept.upstream());
    let result =
        cuda.linear_token_log_probs_backward(&hidden, &head, ids.clone(), &options, &saved, &from, placed.views());
    assert!(result.is_err());
    let weights = Lent::new(&cuda, &vec![0.5f32; count]);
    let (mut log_probs, mut losses) = (Placed::<f32>::new(&cuda, count), Placed::<f32>::new(&cuda, count));
    let outputs = RowLosses { log_probs: log_probs.view_mut(), losses: losses.view_mut() };
    let loss = RowLoss::Weighted { weights: weights.view() };
    assert!(cuda.linear_row_loss(&hidden, &head, ids, &options, &loss, outputs, placed.views()).is_err());
    let (log_probs, losses) = (log_probs.fetch(&cuda), losses.fetch(&cuda));
    untouched!(log_probs, losses);
    placed.fetch(&cuda).untouched();
}

pub(super) fn row_loss(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => row_loss_of::<f32, f32>(choices),
        1 => row_loss_of::<bf16, f32>(choices),
        _ => row_loss_of::<f16, f16>(choices),
    }
}

fn row_loss_of<T, G>(choices: &mut Choices<'_>)
where
    T: Element + Sentinel + DeviceRepr,
    G: Element + Sentinel + DeviceRepr,
{
    choices.calls(&["cuda/backend::Cuda::linear_row_loss"]);
    let cuda = cuda();
    let count = choices.of(4, &[0, 1]);
    let case = Case::<T, T>::choose(choices, count);
    let options = settings::logit_options(choices);
    let kinds = case.kinds(&options);
    let brought = Brought::new(&cuda, &case);
    let loss = row_loss::Held::choose(choices, count);
    let mut log_probs = Placed::<f32>::new(&cuda, choices.length(count));
    let mut losses = Placed::<f32>::new(&cuda, choices.length(count));
    let gradients = linear_case::Gradients::<T, G>::choose(choices, count);
    let lengths = [log_probs.range.len(), losses.range.len()] == [count; 2];
    let refused = !lengths || !gradients.fit(count) || !loss.fits(count);
    let slices = [&loss.weights, &loss.advantages, &loss.old_log_probs].map(|slice| Lent::new(&cuda, slice));
    let [weights, advantages, old_log_probs] = slices.each_ref().map(Lent::view);
    let on_device = on_device(&loss, weights, advantages, old_log_probs);
    let mut placed = Gradients::new(&cuda, gradients);
    let states = brought.hidden();
    let outputs = RowLosses { log_probs: log_probs.view_mut(), losses: losses.view_mut() };
    cuda.clear_status().expect("no fault");
    let (head, ids) = (brought.head(), brought.targets(count));
    let result = cuda.linear_row_loss(&states, &head, ids, &options, &on_device, outputs, placed.views());
    let (log_probs, losses, gradients) = (log_probs.fetch(&cuda), losses.fetch(&cuda), placed.fetch(&cuda));
    if let Err(error) = result {
        assert!(refused, "refused: {error:?}");
        untouched!(log_probs, losses);
        gradients.untouched();
        return;
    }
    assert!(!refused, "accepted: {loss:?}");
    // A row whose numbers are not finite is counted, and left out: loss and gradient 0.
    let numbers = |row: usize| match kinds[row] {
        Kind::Masked | Kind::NoColumn => Fit::Useful,
        _ => loss.fit(row, &options),
    };
    let counted = cuda.status() != Ok(Status::CLEAR);
    assert!(counted || !(0..count).any(|row| numbers(row) == Fit::Wrong), "not counted: {loss:?}");
    for (row, kind) in kinds.iter().enumerate() {
        kind.check_log_prob(row, log_probs.get()[row]);
        let found = losses.get()[row];
        match numbers(row) {
            Fit::Useful => loss.check(row, *kind, found),
            Fit::Extreme => assert!(found.is_finite() || !kind.has_softmax(), "row {row}: {found} of {loss:?}"),
            Fit::Wrong => assert!(found == 0.0 || !kind.has_softmax(), "row {row}: {found} of {loss:?}"),
        }
    }
    let of_row = |row: usize| match numbers(row) {
        Fit::Useful => row_loss::of_row(&loss, row, &options),
        Fit::Extreme => linear_case::Upstream::Any,
        Fit::Wrong => linear_case::Upstream::UpTo(0.0),
    };
    let upstream: Vec<_> = (0..count).map(of_row).collect();
    gradients.check(&case, &kinds, &upstream);
}

fn on_device<'v>(
    loss: &row_loss::Held,
    weights: View<'v, f32>,
    advantages: View<'v, f32>,
    old_log_probs: View<'v, f32>,
) -> RowLoss<View<'v, f32>> {
    if loss.clipped {
        let (low, high, log_ratio_limit) = (loss.low, loss.high, loss.log_ratio_limit);
        RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit }
    } else {
        RowLoss::Weighted { weights }
    }
}
