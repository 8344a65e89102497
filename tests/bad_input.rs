//! What bad input gets: each row of the table of docs/bad_input.md, on the whole loss and on the stages.

// One sequence, one range.
#![allow(clippy::single_range_in_vec_init)]

#[path = "support/backend.rs"]
mod backend;

use backend::{Forward, Rows, TestBackend, TestLoss, on_every_backend};
use exo_kernels::{
    Batch, Betas, Cpu, Divergence, Error, IGNORE_INDEX, LogitOptions, Logits, LossOptions, Objective, Reduction,
    Reference, Report, Rewards, SoftmaxState, Target, TokenId, TokenLogProbs, shifted_targets,
};

on_every_backend!(
    lengths_and_strides_that_do_not_fit,
    a_step_is_of_one_forward_pass,
    target_that_is_no_column,
    a_refused_call_leaves_the_pass_before,
    negative_targets_mask_in_both_id_types,
    rows_without_a_softmax_poison_their_group_and_no_other,
    target_of_minus_infinity_takes_the_limit,
    excluded_columns_have_no_gradient_and_stay_excluded_under_a_softcap,
    masked_rows_are_never_read,
    rewards_and_references_that_are_not_finite,
    target_distributions_with_zeros,
    official_preferences_are_for_pairs,
    sequences_without_a_scored_row_stay_in_their_group,
    groups_of_one_have_no_loss_and_no_gradient,
    tied_winners_share_and_are_counted,
    nothing_at_all,
    entropy_gradient_needs_the_entropies,
);

const VOCAB: usize = 5;

/// Two prompts, two completions each, two rows per completion.
struct Step {
    rows: Rows<f32>,
    batch: Batch,
    reference: Vec<f32>,
    rewards: Vec<f32>,
}

impl Step {
    fn new() -> Self {
        let logits = (0..8 * VOCAB).map(|i| ((i * 37) % 11) as f32 * 0.3 - 1.0).collect();
        Step {
            rows: Rows::new(logits, vec![0, 1, 2, 3, 4, 0, 1, 2], VOCAB),
            batch: Batch::new(&[0, 2, 4, 6, 8], &[0, 2, 4]).expect("valid"),
            reference: vec![-1.5; 8],
            rewards: vec![1.0, 0.0, 0.2, 0.9],
        }
    }

    fn forward(&self, loss: &mut impl TestLoss) -> Result<exo_kernels::Step, Error> {
        let reference = Reference::PerToken(&self.reference);
        loss.forward(&self.rows, &self.batch, reference, Rewards::from(&self.rewards))
    }

    fn run(&self, loss: &mut impl TestLoss) -> Result<Vec<f32>, Error> {
        let forward = self.forward(loss)?;
        loss.backward(&forward, &self.rows)
    }

    /// What is wrong with it: said at once, or by the report where only the device can see it.
    fn refused(&self, loss: &mut impl TestLoss) -> Error {
        match self.run(loss) {
            Err(error) => error,
            Ok(_) => loss.report().expect_err("not refused"),
        }
    }
}

fn exo() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn dpo() -> Objective {
    Objective::dpo_rw(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn with_softcap(softcap: f64) -> LossOptions {
    LossOptions::from(exo()).with_logits(LogitOptions::default().with_softcap(softcap).expect("valid"))
}

fn run(backend: &impl TestBackend, step: &Step, objective: Objective) -> (Vec<f32>, Report) {
    let mut loss = backend.loss(objective);
    let grad = step.run(&mut loss).expect("not refused");
    (grad, loss.unchecked_report().expect("a report"))
}

fn rows_of(grad: &[f32], rows: std::ops::Range<usize>) -> &[f32] {
    &grad[rows.start * VOCAB..rows.end * VOCAB]
}

fn lengths_and_strides_that_do_not_fit(backend: &impl TestBackend) {
    let data = [0.0f32; 20];
    assert_eq!(Logits::new(&data, 3).unwrap_err(), Error::Shape { elements: 20, rows: None, vocab: 3, row_stride: 3 });
    assert_eq!(Logits::new(&data, 0).unwrap_err(), Error::Vocabulary { vocab: 0 });
    let too_many = i32::MAX as usize + 1;
    assert_eq!(Logits::new(&data, too_many).unwrap_err(), Error::Vocabulary { vocab: too_many });
    let shape = |rows, vocab, row_stride| Error::Shape { elements: 20, rows: Some(rows), vocab, row_stride };
    assert_eq!(Logits::strided(&data, 4, 5, 6).unwrap_err(), shape(4, 5, 6));
    assert_eq!(Logits::strided(&data, 4, 5, 4).unwrap_err(), shape(4, 5, 4));
    assert_eq!(Logits::strided(&data, usize::MAX, 5, usize::MAX).unwrap_err(), shape(usize::MAX, 5, usize::MAX));
    assert!(Logits::strided(&data, 3, 5, 7).is_ok(), "the last row needs no padding");

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
    let logits = Logits::new(&step.rows.logits, VOCAB).expect("valid");
    let refused =
        Cpu::default().token_log_probs(logits, &[0u32, 1, 2, 3, 4, 5, 6, 7], &LogitOptions::default(), outputs);
    assert_eq!(refused, Err(Error::Target { row: 5, target: 5, vocab: VOCAB }));
    assert!(log_probs == [7.0; 8] && states == [SoftmaxState { r: 7.0, s: 7.0 }; 8], "a refused call has written");
}

fn negative_targets_mask_in_both_id_types(backend: &impl TestBackend) {
    assert_eq!((u32::IGNORE.id(), i64::IGNORE.id()), (-100, -100));
    // As u32: the highest bit is set in each.
    for (targets, targets_in_32_bits) in [([-1, i64::MIN], false), ([-1, -100], true)] {
        let rows = Rows { targets_in_32_bits, ..Rows::new(vec![f32::NAN; 2 * VOCAB], targets.to_vec(), VOCAB) };
        let found = backend.forward(&rows, &LogitOptions::default(), false);
        assert_eq!(found.log_probs, [0.0, 0.0]);
    }
}

fn rows_without_a_softmax_poison_their_group_and_no_other(backend: &impl TestBackend) {
    type Spoil = fn(&mut [f32]);
    let spoilers: [(&str, Spoil); 4] = [
        ("NaN", |row| row[1] = f32::NAN),
        ("NaN with a payload", |row| row[4] = f32::from_bits(0xff80_1001)),
        ("+inf", |row| row[3] = f32::INFINITY),
        ("only -inf", |row| row.fill(f32::NEG_INFINITY)),
    ];
    let clean = run(backend, &Step::new(), exo()).0;
    for softcap in [0.0, 20.0] {
        for (name, spoil) in spoilers {
            let mut step = Step::new();
            spoil(&mut step.rows.logits[6 * VOCAB..7 * VOCAB]);
            let mut loss = backend.loss(with_softcap(softcap));
            let grad = step.run(&mut loss).expect("not refused: loss scaling looks for the NaN");
            assert!(rows_of(&grad, 4..8).iter().all(|value| value.is_nan()), "{name}: {grad:?}");
            assert!(rows_of(&grad, 0..4).iter().all(|value| value.is_finite()), "{name}");
            if softcap == 0.0 {
                assert_eq!(rows_of(&grad, 0..4), rows_of(&clean, 0..4), "{name}: the other group's bits");
            }
            assert_eq!(loss.report().unwrap_err(), Error::NonFiniteRow { row: 6, count: 1 }, "{name}");
            let report = loss.unchecked_report().expect("a report");
            assert!(report.loss.is_nan() && report.group_losses[1].is_nan() && report.group_losses[0].is_finite());
        }
    }
}

fn target_of_minus_infinity_takes_the_limit(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.rows.logits[VOCAB + 1] = f32::NEG_INFINITY;
    for (objective, loss_is_finite) in [(exo(), true), (dpo(), false)] {
        let (grad, report) = run(backend, &step, objective);
        assert_eq!(report.oddities.impossible_targets, 1);
        assert!(report.check().is_ok(), "not an error");
        assert_eq!(report.implicit_rewards[0], f64::NEG_INFINITY);
        assert_eq!(report.group_losses[0].is_finite(), loss_is_finite);
        assert!(report.group_losses[0] > 0.0 && grad.iter().all(|value| !value.is_nan()));
        if loss_is_finite {
            assert!(rows_of(&grad, 0..2).iter().all(|&value| value == 0.0), "coefficient 0 for the reverse KL");
        }
    }
    // Both completions impossible: no p, nothing to pull.
    step.rows.logits[2 * VOCAB + 2] = f32::NEG_INFINITY;
    let (grad, report) = run(backend, &step, exo());
    assert_eq!((report.group_losses[0], report.oddities.impossible_targets), (f64::INFINITY, 2));
    assert!(rows_of(&grad, 0..4).iter().all(|&value| value == 0.0));
    assert!(rows_of(&grad, 4..8).iter().any(|&value| value != 0.0));
}

fn excluded_columns_have_no_gradient_and_stay_excluded_under_a_softcap(backend: &impl TestBackend) {
    let mut step = Step::new();
    for row in 0..8 {
        step.rows.logits[row * VOCAB + (step.rows.targets[row] as usize + 2) % VOCAB] = f32::NEG_INFINITY;
    }
    for softcap in [0.0, 3.0] {
        let mut loss = backend.loss(with_softcap(softcap).with_entropy(true));
        let grad = step.run(&mut loss).expect("valid");
        let report = loss.report().expect("finite");
        assert!(report.entropy.is_some_and(|entropy| entropy > 0.0 && entropy < 4f64.ln()));
        for row in 0..8 {
            assert_eq!(grad[row * VOCAB + (step.rows.targets[row] as usize + 2) % VOCAB], 0.0);
        }
    }
}

fn masked_rows_are_never_read(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.rows.targets[3] = IGNORE_INDEX;
    let (clean, clean_report) = run(backend, &step, exo());
    step.rows.logits[3 * VOCAB..4 * VOCAB].fill(f32::NAN);
    step.reference[3] = f32::NAN;
    let (grad, report) = run(backend, &step, exo());
    assert_eq!((&grad, &report), (&clean, &clean_report));
    assert!(rows_of(&grad, 3..4).iter().all(|&value| value == 0.0));
    assert_eq!(report.scored_rows, 7);
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

fn sequences_without_a_scored_row_stay_in_their_group(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.rows.targets[2] = IGNORE_INDEX;
    step.rows.targets[3] = IGNORE_INDEX;
    let (_, report) = run(backend, &step, exo());
    assert_eq!((report.oddities.empty_sequences, report.implicit_rewards[1]), (1, 0.0));
    assert!(report.group_losses[0] > 0.0);
    // Its reference sum says nothing about it either.
    let mut loss = backend.loss(exo());
    let sums = Reference::PerSequence(&[-1.0, -55.0, -1.0, -1.0]);
    loss.forward(&step.rows, &step.batch, sums, Rewards::from(&step.rewards)).expect("valid");
    assert_eq!(loss.report().expect("finite").implicit_rewards[1], 0.0);
}

fn groups_of_one_have_no_loss_and_no_gradient(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.batch = Batch::new(&[0, 2, 4, 6, 8], &[0, 1, 4]).expect("valid");
    for objective in
        [exo(), dpo(), Objective::exo_pref(1.0, 1e-3).expect("valid"), Objective::dpo_pref(1.0, 0.0).expect("valid")]
    {
        let (grad, report) = run(backend, &step, objective);
        assert_eq!((report.group_losses[0], report.oddities.single_groups), (0.0, 1));
        assert!(rows_of(&grad, 0..2).iter().all(|&value| value == 0.0));
        assert!(rows_of(&grad, 2..8).iter().any(|&value| value != 0.0));
    }
}

fn tied_winners_share_and_are_counted(backend: &impl TestBackend) {
    let mut step = Step::new();
    step.rewards = vec![0.5, 0.5, 0.1, 0.2];
    let (_, report) = run(backend, &step, Objective::dpo_pref(1.0, 0.0).expect("valid"));
    assert_eq!(report.oddities.tied_groups, 1);
    // q = (1/2, 1/2): the forward KL is at least log 2, and does not care which of the two comes first.
    assert!(report.group_losses[0] >= std::f64::consts::LN_2);
}

fn nothing_at_all(backend: &impl TestBackend) {
    let batch = Batch::new::<usize, usize>(&[0], &[0]).expect("valid");
    let mut loss = backend.loss(exo());
    let empty: [f32; 0] = [];
    let mut rows = Rows::new(empty.to_vec(), Vec::new(), VOCAB);
    let forward = loss.forward(&rows, &batch, Reference::PerToken(&empty), Rewards::from(&empty)).expect("valid");
    let report = loss.report().expect("finite");
    assert_eq!((report.loss.to_bits(), report.scored_rows, report.accuracy), (0, 0, 0.0));
    loss.backward_in_place(forward, &mut rows).expect("valid");

    // Rows, but none scored; sequences of no rows.
    let batch = Batch::new(&[0, 0, 2], &[0, 2]).expect("valid");
    let rows = Rows::new(vec![f32::NAN; 2 * VOCAB], vec![IGNORE_INDEX; 2], VOCAB);
    loss.forward(&rows, &batch, Reference::None, Rewards::from(&[0.0f32, 1.0])).expect("valid");
    assert_eq!(loss.report().expect("finite").oddities.empty_sequences, 2);
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
