//! The preference loss from hidden states against the f64 reference and against the loss over logits that are the same
//! products.

use exo_kernels::{
    Batch, Betas, Cpu, Element, Error, LinearGradients, Logits, LogitsMut, LossOptions, MatrixMut, Objective,
    PreferenceLoss, Reference,
};
use support::linear::Case;

/// Two groups, of three and of two completions.
fn batch() -> Batch {
    Batch::new(&[0, 4, 7, 11, 14, 20], &[0, 3, 5]).expect("a batch")
}

const REWARDS: [f64; 5] = [0.3, -0.2, 0.9, 0.0, 0.4];

fn loss() -> PreferenceLoss<Cpu> {
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid");
    PreferenceLoss::new(Cpu::default(), LossOptions::from(objective)).with_temperature(0.8).expect("valid")
}

/// Over an identity head logits and hidden states are one, so both losses are too, to the last bit.
#[test]
fn over_an_identity_head_it_is_the_loss_over_logits() {
    let mut case = Case::<f32, f32>::random(20, 60, 60, false, 11);
    let vocab = case.vocab;
    case.weight = (0..vocab * vocab).map(|i| if i / vocab == i % vocab { 1.0 } else { 0.0 }).collect();
    let reference = vec![-4.0f32; case.rows];
    let mut of_hidden = loss();
    let (hidden, head) = (case.hidden(), case.head());
    let step = of_hidden
        .forward_linear(hidden, &head, &case.targets, &batch(), Reference::PerToken(&reference), &REWARDS)
        .expect("forward");
    let (mut grad_hidden, mut grad_weight) = (vec![f32::NAN; 20 * vocab], vec![f32::NAN; vocab * vocab]);
    of_hidden.set_loss_scale(0.5);
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(&mut grad_hidden, vocab).expect("rows")),
        Some(MatrixMut::new(&mut grad_weight, vocab).expect("rows")),
    );
    of_hidden.backward_linear(&step, hidden, &head, gradients).expect("backward");

    let mut of_logits = loss();
    let logits = Logits::new(&case.hidden, vocab).expect("rows");
    let reference = Reference::PerToken(&reference);
    let step = of_logits.forward(logits, &case.targets, &batch(), reference, &REWARDS).expect("forward");
    of_logits.set_loss_scale(0.5);
    let mut gradient = vec![f32::NAN; 20 * vocab];
    of_logits.backward(&step, logits, LogitsMut::new(&mut gradient, vocab).expect("rows")).expect("backward");
    assert_eq!(of_hidden.report().expect("a report"), of_logits.report().expect("a report"));
    assert_eq!(grad_hidden, gradient);

    // And the weight's gradient is the product of the two.
    for column in 0..vocab {
        for i in 0..vocab {
            let rows = (0..20).filter(|row| case.targets[*row] >= 0);
            let (mut sum, mut size) = (0.0, 0.0);
            for row in rows {
                let term = f64::from(gradient[row * vocab + column]) * f64::from(case.hidden[row * vocab + i]);
                sum += term;
                size += term.abs();
            }
            let error = (f64::from(grad_weight[column * vocab + i]) - sum).abs();
            assert!(error <= size * 20.0 * f32::UNIT_ROUNDOFF, "weight {column} {i}");
        }
    }
}

fn gradients(gradient: &mut [f32]) -> LinearGradients<'_, f32, f32> {
    LinearGradients::new(Some(MatrixMut::new(gradient, 6).expect("rows")), None)
}

#[test]
fn what_is_refused_leaves_the_loss_as_it_was() {
    let case = Case::<f32, f32>::random(20, 6, 30, true, 12);
    let (hidden, head) = (case.hidden(), case.head());
    let mut loss = loss();
    let mut gradient = vec![5.0f32; case.rows * 6];
    let step = loss.forward_linear(hidden, &head, &case.targets, &batch(), Reference::None, &REWARDS).expect("forward");
    let report = loss.report().expect("a report").clone();
    let other = Case::<f32, f32>::random(20, 5, 30, true, 13);
    let refused = loss.forward_linear(other.hidden(), &head, &case.targets, &batch(), Reference::None, &REWARDS);
    assert!(matches!(refused, Err(Error::Length { what: "hidden size", given: 5, expected: 6 })));
    let short = Case::<f32, f32>::random(19, 6, 30, true, 13);
    let refused = loss.backward_linear(&step, short.hidden(), &head, gradients(&mut gradient));
    assert!(matches!(refused, Err(Error::Length { given: 19, expected: 20, .. })));
    let same_shape = Case::<f32, f32>::random(20, 6, 30, true, 14);
    let differs = |refused: Result<(), Error>, operand: &str| match refused {
        Err(Error::OtherInputs { forward: Some(forward), backward: Some(backward) }) => {
            assert_eq!((forward.what, backward.what), (operand, operand));
            assert_ne!(forward.address, backward.address);
        }
        other => panic!("{operand}: {other:?}"),
    };
    differs(loss.backward_linear(&step, same_shape.hidden(), &head, gradients(&mut gradient)), "hidden states");
    differs(loss.backward_linear(&step, hidden, &same_shape.head(), gradients(&mut gradient)), "weight");
    let logits = vec![0.0; 20 * 30];
    let mut of_logits = vec![5.0; 20 * 30];
    let mixed = loss.backward(
        &step,
        Logits::new(&logits, 30).expect("rows"),
        LogitsMut::new(&mut of_logits, 30).expect("rows"),
    );
    assert!(matches!(mixed, Err(Error::OtherInputs { .. })), "{mixed:?}");
    assert!(of_logits.iter().all(|x| *x == 5.0));
    assert_eq!(loss.report().expect("a report"), &report);
    assert!(gradient.iter().all(|x| *x == 5.0));
    loss.backward_linear(&step, hidden, &head, gradients(&mut gradient)).expect("backward");
    assert!(gradient.iter().any(|x| *x != 5.0));
}
