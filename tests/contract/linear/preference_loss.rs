//! The preference loss from hidden states: bit for bit its stages, one after the other; and what is refused.

use exo_kernels::{
    Batch, Betas, Cpu, Element, Error, LinearGradients, LinearKept, LogRatio, LogitOptions, LossOptions, Matrix,
    MatrixMut, Objective, PreferenceLoss, Reduction, Reference, Rewards, Step,
};
use half::{bf16, f16};
use support::backend::{HostLoss, Placed, Rows, TestBackend, on_every_backend};
use support::linear::{ALL, Case, Gradients, Wanted};

on_every_backend!(
    it_is_its_stages,
    what_is_refused_leaves_the_loss_as_it_was,
    too_few_scored_rows_said_is_an_error_of_the_report,
);

const ROWS: usize = 20;
const SIZE: usize = 6;
const VOCAB: usize = 700;
const REWARDS: [f64; 5] = [0.3, -0.2, 0.9, 0.0, 0.4];
const TEMPERATURE: f64 = 0.8;

/// Two groups, of three and of two completions.
fn batch() -> Batch {
    Batch::new(&[0u32, 4, 7, 11, 14, 20], &[0u32, 3, 5]).expect("a batch")
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid")
}

fn logit_options() -> LogitOptions {
    LogitOptions::default().with_temperature(TEMPERATURE).expect("valid")
}

fn loss<B: TestBackend>(backend: &B) -> HostLoss<B> {
    backend.loss(LossOptions::from(objective()).with_logits(logit_options()))
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

/// Loss per group and coefficients per sequence, from log-probs, by the stages.
fn stages(backend: &impl TestBackend, targets: &[i64], log_probs: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let batch = batch();
    let ratios = backend.host_log_ratios(log_probs, targets, Reference::None, &batch, LogRatio::Sum);
    let groups = backend.host_objective(&objective(), &ratios, &batch, Rewards::from(&REWARDS), Reduction::Mean);
    (groups.losses, groups.coefficients)
}

/// Whatever is kept between the two passes.
fn it_is_its_stages(backend: &impl TestBackend) {
    fn check<T: Element, G: Element>(backend: &impl TestBackend, kept: LinearKept) {
        backend.set_chunks(512, 1 << 30);
        let case = Case::<T, T>::random(ROWS, SIZE, VOCAB, false, 11);
        let scored = case.targets.iter().filter(|target| **target >= 0).count();
        let mut placed = Placed::new(backend, &case);
        placed.scored_rows = Some(scored);
        placed.kept = kept;
        let options = LossOptions::from(objective()).with_logits(logit_options()).with_linear_kept(kept);
        let mut loss: HostLoss<_> = backend.loss(options);
        let step =
            loss.forward_linear(&placed, &placed, &batch(), Reference::None, Rewards::from(&REWARDS)).expect("forward");
        loss.set_loss_scale(0.5);
        let wanted = Wanted { bias: false, ..ALL };
        let (gradients, done): (Gradients<T, G>, _) = loss.backward_linear(&step, &placed, &placed, wanted);
        done.expect("backward");

        let options = logit_options();
        let forward = placed.forward(&options, false);
        let (losses, coefficients) = stages(backend, &case.targets, &forward.log_probs);
        assert_eq!(loss.report().expect("a report").group_losses, losses);
        let batch = batch();
        let sequence = |row: usize| batch.sequence_offsets().iter().filter(|offset| **offset <= row).count() - 1;
        let g: Vec<f32> = (0..ROWS).map(|row| (coefficients[sequence(row)] * 0.5) as f32).collect();
        let expected: Gradients<T, G> = placed.backward(&options, &forward, (&g, None), wanted);
        assert!(bits(&gradients.hidden) == bits(&expected.hidden));
        assert!(bits(&gradients.weight) == bits(&expected.weight));
        assert!(expected.weight.iter().any(|value| value.to_f32() != 0.0));
    }
    for kept in [LinearKept::Nothing, LinearKept::UnitGradients, LinearKept::LogitGradients] {
        check::<f32, f32>(backend, kept);
        check::<bf16, f32>(backend, kept);
        check::<f16, f16>(backend, kept);
    }
}

fn what_is_refused_leaves_the_loss_as_it_was(backend: &impl TestBackend) {
    fn check<T: Element, B: TestBackend>(backend: &B) {
        let place = |rows: usize, size: usize, seed: u64| {
            Placed::new(backend, &Case::<T, T>::random(rows, size, VOCAB, true, seed))
        };
        let (batch, rewards) = (batch(), Rewards::from(&REWARDS));
        let placed = place(ROWS, SIZE, 12);
        let mut loss = loss(backend);
        let step = loss.forward_linear(&placed, &placed, &batch, Reference::None, rewards).expect("forward");
        let report = loss.report().expect("a report");
        let backward = |loss: &mut HostLoss<B>, step: &Step, of_hidden: &Placed<B, T, T>, of_head: &Placed<B, T, T>| {
            let wanted = Wanted { accumulate: Some(1.0), ..ALL };
            let (gradients, result) = loss.backward_linear::<T, T, f32>(step, of_hidden, of_head, wanted);
            if result.is_err() {
                assert!(gradients.hidden.iter().all(|number| number.to_f32().is_nan()), "written");
                assert!(gradients.weight.iter().chain(&gradients.bias).all(|number| *number == 1.0), "written");
            }
            (result, gradients)
        };

        let narrow = place(ROWS, 5, 13);
        let refused = loss.forward_linear(&narrow, &placed, &batch, Reference::None, rewards);
        assert!(matches!(refused, Err(Error::Length { what: "hidden size", given: 5, expected: SIZE })));
        let (refused, _) = backward(&mut loss, &step, &place(19, SIZE, 13), &placed);
        assert!(matches!(refused, Err(Error::Length { given: 19, expected: ROWS, .. })));
        let same_shape = place(ROWS, SIZE, 14);
        for (of_hidden, of_head, operand) in [(&same_shape, &placed, "hidden states"), (&placed, &same_shape, "weight")]
        {
            match backward(&mut loss, &step, of_hidden, of_head).0 {
                Err(Error::OtherInputs { forward: Some(forward), backward: Some(backward) }) => {
                    assert_eq!((forward.what, backward.what), (operand, operand));
                    assert_ne!(forward.address, backward.address);
                }
                other => panic!("{operand}: {other:?}"),
            }
        }
        let logits = Rows::new(vec![0.0f32; ROWS * VOCAB], vec![0; ROWS], VOCAB);
        let mut of_logits = Rows { logits: vec![5.0; ROWS * VOCAB], ..logits.clone() };
        let mixed = loss.backward_into(&step, &logits, &mut of_logits);
        assert!(matches!(mixed, Err(Error::OtherInputs { .. })), "{mixed:?}");
        assert!(of_logits.logits.iter().all(|x| *x == 5.0));
        assert_eq!(loss.report().expect("a report"), report);
        let (done, gradients) = backward(&mut loss, &step, &placed, &placed);
        done.expect("backward");
        assert!(gradients.hidden.iter().any(|number| number.to_f32() != 0.0));
        assert!(gradients.hidden.iter().all(|number| number.to_f32().is_finite()));
        assert!(gradients.weight.iter().any(|number| *number != 1.0));
    }
    check::<f32, _>(backend);
    check::<bf16, _>(backend);
}

/// More scored rows than were said: refused where the ids are seen, and an error when the report is read on a device.
fn too_few_scored_rows_said_is_an_error_of_the_report<B: TestBackend>(backend: &B) {
    let case = Case::<bf16, bf16>::random(ROWS, SIZE, VOCAB, false, 13);
    let scored = case.targets.iter().filter(|target| **target >= 0).count();
    let mut placed = Placed::new(backend, &case);
    let mut loss = loss(backend);
    let mut report_of = |said: usize| {
        placed.scored_rows = Some(said);
        let step = loss.forward_linear(&placed, &placed, &batch(), Reference::None, Rewards::from(&REWARDS));
        assert_eq!(step.is_err(), B::SEES_NUMBERS && said < scored);
        step.and_then(|_| loss.report())
    };
    assert_eq!(report_of(scored - 2), Err(Error::ScoredRows { beyond: 2 }));
    assert!(report_of(scored).is_ok());
}

fn gradients(buffer: &mut [f32]) -> LinearGradients<'_, f32, f32> {
    LinearGradients::new(Some(MatrixMut::new(buffer, SIZE).expect("rows")), None)
}

/// Moved inputs are the same numbers elsewhere: not logits for hidden states, nor the other way round.
#[test]
fn a_step_is_of_its_kind_of_pass_wherever_its_inputs_have_moved() {
    let case = Case::<f32, f32>::random(ROWS, SIZE, VOCAB, false, 15);
    let (hidden, head, batch, none) = (case.hidden(), case.head(), batch(), Reference::None);
    let values: Vec<f32> = (0..ROWS * VOCAB).map(|i| (i % 13) as f32 * 0.25).collect();
    let logits = Matrix::new(&values, VOCAB).expect("rows");
    let new = || PreferenceLoss::new(Cpu::default(), objective());
    let (mut of_logits, mut of_hidden) = (vec![7.0f32; ROWS * VOCAB], vec![7.0f32; ROWS * SIZE]);
    let is_other = |refused| matches!(refused, Err(Error::OtherInputs { .. }));

    let mut loss = new();
    let step = loss.forward(&logits, &case.targets, &batch, &none, &REWARDS).expect("forward").with_moved_inputs();
    assert!(is_other(loss.backward_linear(&step, &hidden, &head, gradients(&mut of_hidden))));
    let pass = loss.into_forward_pass(step).expect("the last pass");
    assert!(is_other(pass.backward_linear(1.0, &hidden, &head, gradients(&mut of_hidden))));

    let mut loss = new();
    let step = loss.forward_linear(&hidden, &head, &case.targets, &batch, &none, &REWARDS).expect("forward");
    let step = step.with_moved_inputs();
    let out = MatrixMut::new(&mut of_logits, VOCAB).expect("rows");
    assert!(is_other(loss.backward(&step, &logits, out)));
    let pass = loss.into_forward_pass(step).expect("the last pass");
    let out = MatrixMut::new(&mut of_logits, VOCAB).expect("rows");
    assert!(is_other(pass.backward(1.0, &logits, out)));
    assert!(of_logits.iter().chain(&of_hidden).all(|number| *number == 7.0), "a refused call has written");
}
