//! What is refused: at once where the host can see it, by the report where only the device can.

// One sequence, one range.
#![allow(clippy::single_range_in_vec_init)]

use super::{Step, VOCAB, dpo, exo};
use exo_kernels::{
    Backend, Batch, Betas, Cpu, Divergence, Error, IGNORE_INDEX, LogitOptions, LossOptions, Matrix, Objective,
    Reduction, Reference, Rewards, SoftmaxState, Target, TokenLogProbs, shifted_targets,
};
use support::backend::{Forward, Rows, TestBackend, on_every_backend};

on_every_backend!(
    lengths_and_strides_that_do_not_fit,
    a_step_is_of_one_forward_pass,
    target_that_is_no_column,
    a_refused_call_leaves_the_pass_before,
    rewards_and_references_that_are_not_finite,
    target_distributions_with_zeros,
    official_preferences_are_for_pairs,
    entropy_gradient_needs_the_entropies,
);

fn lengths_and_strides_that_do_not_fit(backend: &impl TestBackend) {
    let data = [0.0f32; 20];
    assert_eq!(
        Matrix::new(&data, 3).unwrap_err(),
        Error::Shape { elements: 20, rows: None, columns: 3, row_stride: 3 }
    );
    assert_eq!(
        Matrix::new(&data, 0).unwrap_err(),
        Error::Shape { elements: 20, rows: None, columns: 0, row_stride: 0 }
    );
    let shape = |rows, columns, row_stride| Error::Shape { elements: 20, rows: Some(rows), columns, row_stride };
    assert_eq!(Matrix::strided(&data, 4, 5, 6).unwrap_err(), shape(4, 5, 6));
    assert_eq!(Matrix::strided(&data, 4, 5, 4).unwrap_err(), shape(4, 5, 4));
    assert_eq!(Matrix::strided(&data, usize::MAX, 5, usize::MAX).unwrap_err(), shape(usize::MAX, 5, usize::MAX));
    assert!(Matrix::strided(&data, 3, 5, 7).is_ok(), "the last row needs no padding");

    let step = Step::new();
    let mut loss = backend.loss(exo());
    let refused = |loss: &mut _, step: &Step| step.run(loss).unwrap_err();
    let mut wrong = Step::new();
    wrong.rows.targets.pop();
    assert_eq!(refused(&mut loss, &wrong), Error::Length { what: "targets", given: 7, expected: 8 });
    let wrong = Step { batch: Batch::new(&[0, 2, 4, 7], &[0, 3]).expect("valid"), ..Step::new() };
    let expected = Error::OffsetsEnd { what: "sequence offsets", last: 7, expected: 8 };
    assert_eq!(refused(&mut loss, &wrong), expected);
    let wrong = Step { reference: vec![-1.5; 7], ..Step::new() };
    let expected = Error::Length { what: "reference log-probs per token", given: 7, expected: 8 };
    assert_eq!(refused(&mut loss, &wrong), expected);
    let wrong = Step { rewards: vec![0.0; 3], ..Step::new() };
    assert_eq!(refused(&mut loss, &wrong), Error::Length { what: "rewards", given: 3, expected: 4 });
    let rewards = Rewards::from(&step.rewards);
    assert_eq!(
        loss.forward(&step.rows, &step.batch, Reference::PerSequence(&[0.0; 3]), rewards).unwrap_err(),
        Error::Length { what: "reference log-probs per sequence", given: 3, expected: 4 }
    );
    assert_eq!(
        loss.forward(&step.rows, &step.batch, Reference::None, rewards.with_proposal(&[0.0; 3])).unwrap_err(),
        Error::Length { what: "proposal offsets", given: 3, expected: 4 }
    );
    assert_eq!(loss.report().unwrap_err(), Error::NoForward);

    let forward = step.forward(&mut loss).expect("valid");
    let mut fewer = Rows::new(vec![7.0f32; 35], vec![0; 7], VOCAB);
    let refused = loss.backward_into(&forward, &step.rows, &mut fewer).unwrap_err();
    assert_eq!(refused, Error::Length { what: "rows of the gradient", given: 7, expected: 8 });
    assert!(fewer.logits.iter().all(|&value| value == 7.0), "a refused call has written");
    let wider = Rows { vocab: 8, row_stride: 8, ..step.rows.clone() };
    let refused = loss.backward(&forward, &wider).unwrap_err();
    assert_eq!(refused, Error::Length { what: "rows of the backward pass", given: 5, expected: 8 });
}

/// States that are used with another forward pass's inputs give a gradient that is wrong without a word. (That a backward
/// pass in place is the step's last is a matter of types: see the documentation of `Step`.)
fn a_step_is_of_one_forward_pass(backend: &impl TestBackend) {
    let first = Step::new();
    let mut second = Step::new();
    second.rows.logits.rotate_right(3);
    let (mut loss, mut other) = (backend.loss(exo()), backend.loss(exo()));

    let of_first = first.forward(&mut loss).expect("valid");
    let of_other = first.forward(&mut other).expect("valid");
    let expected = loss.backward(&of_first, &first.rows).expect("its own");
    assert_eq!(loss.backward(&of_first, &first.rows).expect("once more"), expected);
    let of_second = second.forward(&mut loss).expect("valid");

    let stale = Error::OtherStep { given: of_first.number(), last: Some(of_second.number()) };
    let mut gradient = Rows { logits: vec![7.0; first.rows.logits.len()], ..first.rows.clone() };
    assert_eq!(loss.backward_into(&of_first, &first.rows, &mut gradient).unwrap_err(), stale);
    assert!(gradient.logits.iter().all(|&value| value == 7.0), "a refused call has written");
    let mut rows = first.rows.clone();
    assert_eq!(loss.backward_in_place(of_first, &mut rows).unwrap_err(), stale);
    assert_eq!(rows.logits, first.rows.logits, "a refused call has written");
    let stale = Error::OtherStep { given: of_other.number(), last: Some(of_second.number()) };
    assert_eq!(loss.backward(&of_other, &first.rows).unwrap_err(), stale, "another loss's");

    loss.backward_in_place(of_second, &mut second.rows).expect("the last forward pass's");
    assert_eq!(other.backward(&of_other, &first.rows).expect("its own"), expected);
}

#[test]
fn offsets_that_do_not_fit() {
    let batch = |sequences: &[i64], groups: &[i64]| Batch::new(sequences, groups).unwrap_err();
    let (s, g) = ("sequence offsets", "group offsets");
    assert_eq!(batch(&[], &[0]), Error::OffsetsStart { what: s, first: None });
    assert_eq!(batch(&[1, 2], &[0, 1]), Error::OffsetsStart { what: s, first: Some(1) });
    assert_eq!(batch(&[0, 3, 2], &[0, 2]), Error::OffsetsOrder { what: s, index: 2, previous: 3, given: 2 });
    assert_eq!(batch(&[0, -1], &[0, 1]), Error::OffsetRange { what: s, index: 1 });
    assert_eq!(batch(&[0, 1, 2], &[0, 1]), Error::OffsetsEnd { what: g, last: 1, expected: 2 });
    assert_eq!(batch(&[0, 1, 2], &[0, 1, 1, 2]), Error::EmptyGroup { group: 1 });
    assert_eq!(Batch::padded(4, 3, 0).unwrap_err(), Error::EmptyGroup { group: 0 });
    assert_eq!(Batch::padded(4, 3, 3).unwrap_err(), Error::OffsetsEnd { what: g, last: 3, expected: 4 });
    assert!(matches!(Batch::padded(4, usize::MAX, 2).unwrap_err(), Error::OffsetRange { .. }));
    // Without rows nothing else bounds the number of sequences.
    let too_many = |sequences, length, k| match Batch::padded(sequences, length, k).unwrap_err() {
        Error::OffsetRange { index, .. } => index,
        other => panic!("{other:?}"),
    };
    for (sequences, length, k) in [(usize::MAX, 0, 1), (usize::MAX, 1, 1), (usize::MAX - 1, 0, 2), (1 << 60, 0, 1)] {
        assert_eq!(too_many(sequences, length, k), sequences);
    }
    assert_eq!(too_many(usize::MAX, 0, usize::MAX), usize::MAX);
    assert_eq!(Batch::padded(0, usize::MAX, usize::MAX), Batch::new(&[0], &[0]));
    assert_eq!(Batch::padded(4, 3, 2), Batch::new(&[0, 3, 6, 9, 12], &[0, 2, 4]));

    assert_eq!(
        shifted_targets(&[1, 2, 3], 2, &[1..2]).unwrap_err(),
        Error::Length { what: "token ids", given: 3, expected: 2 }
    );
    let range = |start, end| Error::TokenRange { sequence: 0, start, end, length: 3 };
    assert_eq!(shifted_targets(&[1, 2, 3], 3, &[0..2]).unwrap_err(), range(0, 2));
    assert_eq!(shifted_targets(&[1, 2, 3], 3, &[1..4]).unwrap_err(), range(1, 4));
    for (start, end) in [(3, 1), (2, 1), (3, 0), (usize::MAX, 0), (1, usize::MAX), (4, 4), (usize::MAX, usize::MAX)] {
        assert_eq!(shifted_targets(&[1, 2, 3], 3, &[start..end]).unwrap_err(), range(start, end));
    }
    assert!(shifted_targets(&[], 0, &[1..1]).is_err() && shifted_targets(&[], usize::MAX, &[0..0, 0..0]).is_err());
    for nothing in [0, 1, 3] {
        assert_eq!(shifted_targets(&[1, 2, 3], 3, &[nothing..nothing]).expect("empty"), [IGNORE_INDEX; 3]);
    }
    assert_eq!(shifted_targets(&[1, 2, 3], 3, &[2..2]).expect("an empty completion"), [IGNORE_INDEX; 3]);
    // Left padding: tokens 2 and 3 are the completion.
    assert_eq!(shifted_targets(&[0, 7, 8, 9], 4, &[2..4]).expect("valid"), [-100, 8, 9, -100]);
}

#[test]
fn settings_out_of_range() {
    let name = |error: Error| match error {
        Error::Parameter { name, given, .. } => (name, given.to_bits()),
        other => panic!("{other:?}"),
    };
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let bits = bad.to_bits();
        assert_eq!(name(Objective::exo(Betas { policy: bad, reward: 1.0 }).unwrap_err()), ("beta_pi", bits));
        assert_eq!(name(Objective::dpo_rw(Betas { policy: 1.0, reward: bad }).unwrap_err()), ("beta_r", bits));
        assert_eq!(name(LogitOptions::default().with_temperature(bad).unwrap_err()), ("temperature", bits));
        let options = LossOptions::from(exo());
        assert_eq!(name(options.with_reduction(Reduction::Normalizer(bad)).unwrap_err()), ("normalizer", bits));
        if bad != 0.0 {
            assert_eq!(name(LogitOptions::default().with_softcap(bad).unwrap_err()), ("softcap", bits));
        }
    }
    for bad in [0.0, 0.5, -0.1, 1.0, f64::NAN] {
        assert_eq!(name(Objective::exo_pref(1.0, bad).unwrap_err()), ("label_smoothing", bad.to_bits()));
        if bad != 0.0 {
            assert_eq!(name(Objective::dpo_pref(1.0, bad).unwrap_err()), ("label_smoothing", bad.to_bits()));
        }
    }
    let zero = Target::Preference { label_smoothing: 0.0 };
    assert!(Objective::new(zero, Divergence::Alpha(0.0), 1.0).is_err(), "as infinite as the reverse KL");
    assert!(Objective::new(zero, Divergence::JensenShannon, 1.0).is_ok());
    for bad in [-0.1, 1.1, f64::NAN] {
        let error = Objective::alpha(bad, Betas { policy: 1.0, reward: 1.0 }).unwrap_err();
        assert_eq!(name(error), ("alpha", bad.to_bits()));
    }
}

fn target_that_is_no_column(backend: &impl TestBackend) {
    for bad in [VOCAB as i64, i64::MAX] {
        let mut step = Step::new();
        step.rows.targets[5] = bad;
        // The device does not hand the id back.
        match step.refused(&mut backend.loss(exo())) {
            Error::Target { row: 5, target, vocab: VOCAB } => assert_eq!(target, bad),
            Error::DeviceTarget { row: 5, count: 1, vocab: VOCAB } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A refused call has changed nothing: report and backward pass are those of the pass before.
fn a_refused_call_leaves_the_pass_before(backend: &impl TestBackend) {
    let mut loss = backend.loss(exo());
    let step = Step::new();
    let forward = step.forward(&mut loss).expect("valid");
    let before = loss.backward(&forward, &step.rows).expect("valid");
    let report = loss.report().expect("finite");
    let wrong = Step { rewards: vec![f32::NAN; 4], ..Step::new() };
    assert!(wrong.run(&mut loss).is_err());
    assert_eq!(loss.report().expect("finite"), report);
    assert_eq!(loss.backward(&forward, &step.rows).expect("valid"), before);
}

/// The processor's own: it sees the ids before it begins.
#[test]
fn a_target_that_is_no_column_is_refused_before_anything_is_written() {
    let step = Step::new();
    let mut log_probs = [7.0f32; 8];
    let mut states = [SoftmaxState { r: 7.0, s: 7.0 }; 8];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
    let logits = Matrix::new(&step.rows.logits, VOCAB).expect("valid");
    let refused =
        Cpu::default().token_log_probs(&logits, &[0u32, 1, 2, 3, 4, 5, 6, 7], &LogitOptions::default(), outputs);
    assert_eq!(refused, Err(Error::Target { row: 5, target: 5, vocab: VOCAB }));
    assert!(log_probs == [7.0; 8] && states == [SoftmaxState { r: 7.0, s: 7.0 }; 8], "a refused call has written");
}

fn rewards_and_references_that_are_not_finite(backend: &impl TestBackend) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut step = Step::new();
        step.rewards[2] = bad;
        for objective in [
            exo(),
            dpo(),
            Objective::exo_pref(1.0, 1e-3).expect("valid"),
            Objective::exo_pref_official(1.0).expect("valid"),
        ] {
            let refused = step.refused(&mut backend.loss(objective));
            assert!(matches!(refused, Error::NotFinite { what: "reward", sequence: 2, .. }), "{refused:?}");
        }
        let mut step = Step::new();
        step.reference[7] = bad;
        let refused = step.refused(&mut backend.loss(exo()));
        assert!(matches!(refused, Error::NotFinite { what: "reference log-prob", sequence: 3, .. }), "{refused:?}");
        let step = Step::new();
        let mut loss = backend.loss(exo());
        let sums = [0.0, f64::from(bad), 0.0, 0.0];
        let rewards = Rewards::from(&step.rewards);
        let refused = loss.forward(&step.rows, &step.batch, Reference::PerSequence(&sums), rewards);
        let refused = refused.and_then(|_| loss.report());
        assert!(
            matches!(refused, Err(Error::NotFinite { what: "reference log-prob", sequence: 1, .. })),
            "{refused:?}"
        );
        let offsets = [0.0, 0.0, 0.0, f64::from(bad)];
        let refused = loss.forward(&step.rows, &step.batch, Reference::None, rewards.with_proposal(&offsets));
        assert!(matches!(refused, Err(Error::NotFinite { what: "proposal offset", sequence: 3, .. })), "{refused:?}");
    }
}

fn target_distributions_with_zeros(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.rewards = vec![0.0, f32::NEG_INFINITY, -0.5, -1.0];
    for (divergence, allowed) in [
        (Divergence::ReverseKl, false),
        (Divergence::Alpha(0.0), false),
        (Divergence::Alpha(0.5), true),
        (Divergence::ForwardKl, true),
        (Divergence::JensenShannon, true),
    ] {
        let objective = Objective::distribution(divergence, 0.5).expect("valid");
        let result = step.run(&mut backend.loss(objective));
        match (result, allowed) {
            (Ok(grad), true) => assert!(grad.iter().all(|value| value.is_finite())),
            (Err(error), false) => assert_eq!(error, Error::ZeroTarget { sequence: 1 }),
            (other, _) => panic!("{divergence:?}: {other:?}"),
        }
    }
    step.rewards[0] = f32::NEG_INFINITY;
    let objective = Objective::distribution(Divergence::ForwardKl, 0.5).expect("valid");
    let refused = step.refused(&mut backend.loss(objective));
    assert_eq!(refused, Error::ZeroTarget { sequence: 0 });
}

fn official_preferences_are_for_pairs(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.batch = Batch::new(&[0, 2, 4, 6, 8], &[0, 1, 4]).expect("valid");
    let objective = Objective::exo_pref_official(1.0).expect("valid");
    let refused = step.refused(&mut backend.loss(objective));
    assert_eq!(refused, Error::PairsOnly { group: 1, size: 3 });
}

fn entropy_gradient_needs_the_entropies(backend: &impl TestBackend) {
    let row = Rows::one(&[0.0f32; VOCAB], 0);
    let forward =
        Forward { log_probs: vec![0.0], states: vec![SoftmaxState { r: 0.0, s: 5.0 }], entropies: Vec::new() };
    for in_place in [false, true] {
        let upstream = (&[1.0][..], Some(&[1.0][..]));
        let refused = backend.try_backward(&row, &LogitOptions::default(), &forward, upstream, in_place);
        assert_eq!(refused, Err(Error::EntropiesNotKept));
    }
}

#[test]
fn messages_name_both_numbers() {
    let error = Error::Length { what: "rewards", given: 3, expected: 4 };
    assert_eq!(error.to_string(), "rewards: 3 elements given, 4 expected");
    let error = Error::Target { row: 5, target: 50_300, vocab: 50_257 };
    assert_eq!(error.to_string(), "target of row 5: 50300 given, 0 to 50256 or a negative id (not scored) expected");
}
