//! The preference loss over micro-batches whose gradients are added up: a group with a row without a softmax adds nothing to
//! the head's gradient, the other groups add what they do otherwise, and the report is an error.

use approx::assert_abs_diff_eq;
use exo_kernels::{
    Batch, Betas, Cpu, Error, LinearGradients, LossOptions, MatrixMut, Objective, PreferenceLoss, Reduction, Reference,
};
use support::backend;
use support::linear::Case;

const SIZE: usize = 6;
const VOCAB: usize = 30;
const REWARDS: [f64; 4] = [0.3, -0.2, 0.9, 0.0];
const BEFORE: f32 = 0.125;
/// In the first group.
const SPOILT: usize = 2;

fn options() -> LossOptions {
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid");
    LossOptions::from(objective).with_reduction(Reduction::Sum).expect("valid")
}

fn batch() -> Batch {
    Batch::new(&[0, 4, 7, 11, 14], &[0, 2, 4]).expect("a batch")
}

fn case() -> Case<f32, f32> {
    let mut case = Case::random(14, SIZE, VOCAB, false, 21);
    case.hidden[SPOILT * SIZE + 1] = f32::NAN;
    assert!(case.targets[SPOILT] >= 0);
    case
}

/// The second group alone, and what it adds.
fn second_group(case: &Case<f32, f32>) -> Vec<f32> {
    let mut second = case.clone();
    (second.rows, second.hidden, second.targets) = (7, case.hidden[7 * SIZE..].to_vec(), case.targets[7..].to_vec());
    let mut loss = PreferenceLoss::new(Cpu::default(), options());
    let batch = Batch::new(&[0, 4, 7], &[0, 2]).expect("a batch");
    let (hidden, head) = (second.hidden(), second.head());
    let step =
        loss.forward_linear(&hidden, &head, &second.targets, &batch, &Reference::None, &REWARDS[2..]).expect("forward");
    let mut weight = vec![f32::NAN; VOCAB * SIZE];
    let gradients = LinearGradients::<f32, f32>::new(None, Some(MatrixMut::new(&mut weight, SIZE).expect("rows")));
    loss.backward_linear(&step, &hidden, &head, gradients).expect("backward");
    weight
}

/// Both are sums of at most 7 products |D h| ≤ |g| in f32, with numbers that differ by the token stage's roundings.
fn check(added: &[f32], report: Option<&Error>) {
    assert_eq!(report, Some(&Error::NonFiniteRow { row: SPOILT, count: 1 }));
    let alone = second_group(&case());
    assert!(alone.iter().any(|number| *number != 0.0));
    for (added, alone) in added.iter().zip(alone) {
        assert_abs_diff_eq!(added - BEFORE, alone, epsilon = 64.0 * f32::EPSILON);
    }
}

#[test]
fn on_the_cpu() {
    let case = case();
    let (hidden, head) = (case.hidden(), case.head());
    let mut loss = PreferenceLoss::new(Cpu::default(), options());
    let step =
        loss.forward_linear(&hidden, &head, &case.targets, &batch(), &Reference::None, &REWARDS).expect("forward");
    let mut weight = vec![BEFORE; VOCAB * SIZE];
    let gradients =
        LinearGradients::<f32, f32>::new(None, Some(MatrixMut::new(&mut weight, SIZE).expect("rows"))).accumulating();
    loss.backward_linear(&step, &hidden, &head, gradients).expect("backward");
    check(&weight, loss.report().err().as_ref());
}

#[test]
fn on_cuda() {
    use exo_kernels::cuda::{Head, Hidden, LinearGradients, Matrix, MatrixMut, Reference};
    use support::device::{download, upload};
    let cuda = backend::cuda();
    let case = case();
    let (hidden, weight) = (upload(&cuda, &case.hidden), upload(&cuda, &case.weight));
    let targets = upload(&cuda, &case.targets);
    let hidden = Matrix::new(hidden.as_view().into(), SIZE).expect("rows");
    let head = Head::new(Matrix::new(weight.as_view().into(), SIZE).expect("rows")).expect("a head");
    let mut loss = PreferenceLoss::new(cuda.clone(), options());
    let step = loss
        .forward_linear(Hidden::new(&hidden), &head, targets.as_view(), &batch(), &Reference::None, &REWARDS)
        .expect("forward");
    let mut weight = upload(&cuda, &[BEFORE; VOCAB * SIZE]);
    let gradients =
        LinearGradients::<f32, f32>::new(None, Some(MatrixMut::new(weight.as_view_mut().into(), SIZE).expect("rows")));
    loss.backward_linear(&step, Hidden::new(&hidden), &head, gradients.accumulating()).expect("backward");
    check(&download(&cuda, &weight), loss.report().err().as_ref());
}
