//! What bad input gets: each row of the error table of the README, on the whole loss and on the stages.

// One sequence, one range.
#![allow(clippy::single_range_in_vec_init)]

use exo_kernels::{
    Batch, Betas, Cpu, Divergence, Error, IGNORE_INDEX, LogitOptions, Logits, LogitsMut, LossOptions, Objective,
    PreferenceLoss, Reduction, Reference, Report, RowGradients, SavedRows, SoftmaxState, Target, TokenId,
    TokenLogProbs, shifted_targets,
};

const VOCAB: usize = 5;

/// Two prompts, two completions each, two rows per completion.
struct Step {
    logits: Vec<f32>,
    targets: Vec<i64>,
    batch: Batch,
    reference: Vec<f32>,
    rewards: Vec<f32>,
}

impl Step {
    fn new() -> Self {
        Step {
            logits: (0..8 * VOCAB).map(|i| ((i * 37) % 11) as f32 * 0.3 - 1.0).collect(),
            targets: vec![0, 1, 2, 3, 4, 0, 1, 2],
            batch: Batch::new(&[0, 2, 4, 6, 8], &[0, 2, 4]).expect("valid"),
            reference: vec![-1.5; 8],
            rewards: vec![1.0, 0.0, 0.2, 0.9],
        }
    }

    fn run(&self, loss: &mut PreferenceLoss<Cpu>) -> Result<Vec<f32>, Error> {
        let logits = Logits::new(&self.logits, VOCAB)?;
        loss.forward(logits, &self.targets, &self.batch, Reference::PerToken(&self.reference), &self.rewards)?;
        let mut grad = vec![f32::MAX; self.logits.len()];
        loss.backward(logits, LogitsMut::new(&mut grad, VOCAB)?)?;
        Ok(grad)
    }
}

fn exo() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn dpo() -> Objective {
    Objective::dpo_rw(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

fn run(step: &Step, objective: Objective) -> (Vec<f32>, Report) {
    let mut loss = PreferenceLoss::new(Cpu::default(), objective);
    let grad = step.run(&mut loss).expect("not refused");
    (grad, loss.unchecked_report().expect("a report").clone())
}

fn rows_of(grad: &[f32], rows: std::ops::Range<usize>) -> &[f32] {
    &grad[rows.start * VOCAB..rows.end * VOCAB]
}

#[test]
fn lengths_and_strides_that_do_not_fit() {
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
    let logits = Logits::new(&step.logits, VOCAB).expect("valid");
    let mut loss = PreferenceLoss::new(Cpu::default(), exo());
    let per_token = Reference::PerToken(&step.reference);
    assert_eq!(
        loss.forward(logits, &step.targets[..7], &step.batch, per_token, &step.rewards),
        Err(Error::Length { what: "targets", given: 7, expected: 8 })
    );
    let short = Batch::new(&[0, 2, 4, 7], &[0, 3]).expect("valid");
    assert_eq!(
        loss.forward(logits, &step.targets, &short, per_token, &step.rewards),
        Err(Error::OffsetsEnd { what: "sequence offsets", last: 7, expected: 8 })
    );
    assert_eq!(
        loss.forward(logits, &step.targets, &step.batch, Reference::PerToken(&step.reference[1..]), &step.rewards),
        Err(Error::Length { what: "reference log-probs per token", given: 7, expected: 8 })
    );
    assert_eq!(
        loss.forward(logits, &step.targets, &step.batch, Reference::PerSequence(&[0.0; 3]), &step.rewards),
        Err(Error::Length { what: "reference log-probs per sequence", given: 3, expected: 4 })
    );
    assert_eq!(
        loss.forward(logits, &step.targets, &step.batch, per_token, &step.rewards[..3]),
        Err(Error::Length { what: "rewards", given: 3, expected: 4 })
    );
    assert_eq!(loss.report().unwrap_err(), Error::NoForward);
    let mut grad = vec![7.0f32; 40];
    let view = LogitsMut::new(&mut grad, VOCAB).expect("valid");
    assert_eq!(loss.backward(logits, view), Err(Error::NoForward));

    step.run(&mut loss).expect("valid");
    let mut fewer = vec![7.0f32; 35];
    let view = LogitsMut::new(&mut fewer, VOCAB).expect("valid");
    let refused = loss.backward(logits, view).unwrap_err();
    assert_eq!(refused, Error::Length { what: "rows of the gradient", given: 7, expected: 8 });
    assert!(fewer.iter().all(|&value| value == 7.0), "a refused call has written");
    let view = Logits::new(&step.logits, 8).expect("valid");
    let refused = loss.backward(view, LogitsMut::new(&mut grad, 8).expect("valid")).unwrap_err();
    assert_eq!(refused, Error::Length { what: "rows of the backward pass", given: 5, expected: 8 });
}

/// The gradient taken for logits: a second backward pass that goes wrong without a word (OpenRLHF #857, Unsloth #5002).
#[test]
fn a_second_backward_pass_after_one_in_place() {
    let mut step = Step::new();
    let mut loss = PreferenceLoss::new(Cpu::default(), exo());
    let expected = step.run(&mut loss).expect("valid");
    loss.backward_in_place(LogitsMut::new(&mut step.logits, VOCAB).expect("valid")).expect("the first");
    assert_eq!(step.logits, expected);
    let refused = loss.backward_in_place(LogitsMut::new(&mut step.logits, VOCAB).expect("valid"));
    assert_eq!(refused, Err(Error::LogitsOverwritten));
    assert_eq!(step.logits, expected, "a refused call has written");
    assert!(loss.report().is_ok());
    step.run(&mut loss).expect("a forward pass starts afresh");
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
    assert_eq!(Batch::padded(4, 3, 2), Batch::new(&[0, 3, 6, 9, 12], &[0, 2, 4]));

    assert_eq!(
        shifted_targets(&[1, 2, 3], 2, &[1..2]).unwrap_err(),
        Error::Length { what: "token ids", given: 3, expected: 2 }
    );
    let range = |start, end| Error::TokenRange { sequence: 0, start, end, length: 3 };
    assert_eq!(shifted_targets(&[1, 2, 3], 3, &[0..2]).unwrap_err(), range(0, 2));
    assert_eq!(shifted_targets(&[1, 2, 3], 3, &[1..4]).unwrap_err(), range(1, 4));
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

#[test]
fn target_that_is_no_column() {
    let mut step = Step::new();
    let mut loss = PreferenceLoss::new(Cpu::default(), exo());
    let before = step.run(&mut loss).expect("valid");
    let report = loss.report().expect("finite").clone();
    for bad in [VOCAB as i64, i64::MAX] {
        step.targets[5] = bad;
        assert_eq!(step.run(&mut loss).unwrap_err(), Error::Target { row: 5, target: bad, vocab: VOCAB });
    }
    // A refused call has changed nothing: report and backward pass are those of the pass before.
    assert_eq!(loss.report().expect("finite"), &report);
    let mut grad = vec![0.0f32; step.logits.len()];
    let (logits, view) = (Logits::new(&step.logits, VOCAB), LogitsMut::new(&mut grad, VOCAB));
    loss.backward(logits.expect("valid"), view.expect("valid")).expect("valid");
    assert_eq!(grad, before);

    let mut log_probs = [7.0f32; 8];
    let mut states = [SoftmaxState { r: 7.0, s: 7.0 }; 8];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
    let logits = Logits::new(&step.logits, VOCAB).expect("valid");
    let refused =
        Cpu::default().token_log_probs(logits, &[0u32, 1, 2, 3, 4, 5, 6, 7], &LogitOptions::default(), outputs);
    assert_eq!(refused, Err(Error::Target { row: 5, target: 5, vocab: VOCAB }));
    assert!(log_probs == [7.0; 8] && states == [SoftmaxState { r: 7.0, s: 7.0 }; 8], "a refused call has written");
}

#[test]
fn negative_targets_mask_in_both_id_types() {
    assert_eq!((u32::IGNORE.id(), i64::IGNORE.id()), (-100, -100));
    let logits = [f32::NAN; 2 * VOCAB];
    for (log_probs, refused) in [stage(&logits, &[-1i64, i64::MIN]), stage(&logits, &[u32::MAX, -100i32 as u32])] {
        assert_eq!(refused, Ok(()));
        assert_eq!(log_probs, [0.0, 0.0]);
    }
}

fn stage<I: TokenId>(logits: &[f32], targets: &[I]) -> (Vec<f32>, Result<(), Error>) {
    let mut log_probs = vec![f32::MAX; targets.len()];
    let mut states = vec![SoftmaxState::default(); targets.len()];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
    let logits = Logits::new(logits, VOCAB).expect("valid");
    let result = Cpu::default().token_log_probs(logits, targets, &LogitOptions::default(), outputs);
    (log_probs, result)
}

#[test]
fn rows_without_a_softmax_poison_their_group_and_no_other() {
    type Spoil = fn(&mut [f32]);
    let spoilers: [(&str, Spoil); 4] = [
        ("NaN", |row| row[1] = f32::NAN),
        ("NaN with a payload", |row| row[4] = f32::from_bits(0xff80_1001)),
        ("+inf", |row| row[3] = f32::INFINITY),
        ("only -inf", |row| row.fill(f32::NEG_INFINITY)),
    ];
    let clean = run(&Step::new(), exo()).0;
    for softcap in [0.0, 20.0] {
        for (name, spoil) in spoilers {
            let mut step = Step::new();
            spoil(&mut step.logits[6 * VOCAB..7 * VOCAB]);
            let mut loss = PreferenceLoss::new(Cpu::default(), exo()).with_softcap(softcap).expect("valid");
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

#[test]
fn target_of_minus_infinity_takes_the_limit() {
    let mut step = Step::new();
    step.logits[VOCAB + 1] = f32::NEG_INFINITY;
    for (objective, loss_is_finite) in [(exo(), true), (dpo(), false)] {
        let (grad, report) = run(&step, objective);
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
    step.logits[2 * VOCAB + 2] = f32::NEG_INFINITY;
    let (grad, report) = run(&step, exo());
    assert_eq!((report.group_losses[0], report.oddities.impossible_targets), (f64::INFINITY, 2));
    assert!(rows_of(&grad, 0..4).iter().all(|&value| value == 0.0));
    assert!(rows_of(&grad, 4..8).iter().any(|&value| value != 0.0));
}

#[test]
fn excluded_columns_have_no_gradient_and_stay_excluded_under_a_softcap() {
    let mut step = Step::new();
    for row in 0..8 {
        step.logits[row * VOCAB + (step.targets[row] as usize + 2) % VOCAB] = f32::NEG_INFINITY;
    }
    for softcap in [0.0, 3.0] {
        let mut loss =
            PreferenceLoss::new(Cpu::default(), exo()).with_entropy(true).with_softcap(softcap).expect("valid");
        let grad = step.run(&mut loss).expect("valid");
        let report = loss.report().expect("finite");
        assert!(report.entropy.is_some_and(|entropy| entropy > 0.0 && entropy < 4f64.ln()));
        for row in 0..8 {
            assert_eq!(grad[row * VOCAB + (step.targets[row] as usize + 2) % VOCAB], 0.0);
        }
    }
}

#[test]
fn masked_rows_are_never_read() {
    let mut step = Step::new();
    step.targets[3] = IGNORE_INDEX;
    let (clean, clean_report) = run(&step, exo());
    step.logits[3 * VOCAB..4 * VOCAB].fill(f32::NAN);
    step.reference[3] = f32::NAN;
    let (grad, report) = run(&step, exo());
    assert_eq!((&grad, &report), (&clean, &clean_report));
    assert!(rows_of(&grad, 3..4).iter().all(|&value| value == 0.0));
    assert_eq!(report.scored_rows, 7);
}

#[test]
fn rewards_and_references_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut step = Step::new();
        step.rewards[2] = bad;
        for objective in [
            exo(),
            dpo(),
            Objective::exo_pref(1.0, 1e-3).expect("valid"),
            Objective::exo_pref_official(1.0).expect("valid"),
        ] {
            let refused = step.run(&mut PreferenceLoss::new(Cpu::default(), objective)).unwrap_err();
            assert!(matches!(refused, Error::NotFinite { what: "reward", sequence: 2, .. }), "{refused:?}");
        }
        let mut step = Step::new();
        step.reference[7] = bad;
        let refused = step.run(&mut PreferenceLoss::new(Cpu::default(), exo())).unwrap_err();
        assert!(matches!(refused, Error::NotFinite { what: "reference log-prob", sequence: 3, .. }), "{refused:?}");
        let step = Step::new();
        let mut loss = PreferenceLoss::new(Cpu::default(), exo());
        let logits = Logits::new(&step.logits, VOCAB).expect("valid");
        let sums = [0.0, f64::from(bad), 0.0, 0.0];
        let refused = loss.forward(logits, &step.targets, &step.batch, Reference::PerSequence(&sums), &step.rewards);
        assert!(
            matches!(refused, Err(Error::NotFinite { what: "reference log-prob", sequence: 1, .. })),
            "{refused:?}"
        );
        let offsets = [0.0, 0.0, 0.0, f64::from(bad)];
        let rewards = exo_kernels::Rewards::from(&step.rewards).with_proposal(&offsets);
        let refused = loss.forward(logits, &step.targets, &step.batch, Reference::None, rewards);
        assert!(matches!(refused, Err(Error::NotFinite { what: "proposal offset", sequence: 3, .. })), "{refused:?}");
    }
}

#[test]
fn target_distributions_with_zeros() {
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
        let result = step.run(&mut PreferenceLoss::new(Cpu::default(), objective));
        match (result, allowed) {
            (Ok(grad), true) => assert!(grad.iter().all(|value| value.is_finite())),
            (Err(error), false) => assert_eq!(error, Error::ZeroTarget { sequence: 1 }),
            (other, _) => panic!("{divergence:?}: {other:?}"),
        }
    }
    step.rewards[0] = f32::NEG_INFINITY;
    let objective = Objective::distribution(Divergence::ForwardKl, 0.5).expect("valid");
    let refused = step.run(&mut PreferenceLoss::new(Cpu::default(), objective)).unwrap_err();
    assert_eq!(refused, Error::ZeroTarget { sequence: 0 });
}

#[test]
fn official_preferences_are_for_pairs() {
    let mut step = Step::new();
    step.batch = Batch::new(&[0, 2, 4, 6, 8], &[0, 1, 4]).expect("valid");
    let objective = Objective::exo_pref_official(1.0).expect("valid");
    let refused = step.run(&mut PreferenceLoss::new(Cpu::default(), objective)).unwrap_err();
    assert_eq!(refused, Error::PairsOnly { group: 1, size: 3 });
}

#[test]
fn sequences_without_a_scored_row_stay_in_their_group() {
    let mut step = Step::new();
    step.targets[2] = IGNORE_INDEX;
    step.targets[3] = IGNORE_INDEX;
    let (_, report) = run(&step, exo());
    assert_eq!((report.oddities.empty_sequences, report.implicit_rewards[1]), (1, 0.0));
    assert!(report.group_losses[0] > 0.0);
    // Its reference sum says nothing about it either.
    let mut loss = PreferenceLoss::new(Cpu::default(), exo());
    let logits = Logits::new(&step.logits, VOCAB).expect("valid");
    let sums = Reference::PerSequence(&[-1.0, -55.0, -1.0, -1.0]);
    loss.forward(logits, &step.targets, &step.batch, sums, &step.rewards).expect("valid");
    assert_eq!(loss.report().expect("finite").implicit_rewards[1], 0.0);
}

#[test]
fn groups_of_one_have_no_loss_and_no_gradient() {
    let mut step = Step::new();
    step.batch = Batch::new(&[0, 2, 4, 6, 8], &[0, 1, 4]).expect("valid");
    for objective in
        [exo(), dpo(), Objective::exo_pref(1.0, 1e-3).expect("valid"), Objective::dpo_pref(1.0, 0.0).expect("valid")]
    {
        let (grad, report) = run(&step, objective);
        assert_eq!((report.group_losses[0], report.oddities.single_groups), (0.0, 1));
        assert!(rows_of(&grad, 0..2).iter().all(|&value| value == 0.0));
        assert!(rows_of(&grad, 2..8).iter().any(|&value| value != 0.0));
    }
}

#[test]
fn tied_winners_share_and_are_counted() {
    let mut step = Step::new();
    step.rewards = vec![0.5, 0.5, 0.1, 0.2];
    let (_, report) = run(&step, Objective::dpo_pref(1.0, 0.0).expect("valid"));
    assert_eq!(report.oddities.tied_groups, 1);
    // q = (1/2, 1/2): the forward KL is at least log 2, and does not care which of the two comes first.
    assert!(report.group_losses[0] >= std::f64::consts::LN_2);
}

#[test]
fn nothing_at_all() {
    let batch = Batch::new::<usize, usize>(&[0], &[0]).expect("valid");
    let mut loss = PreferenceLoss::new(Cpu::default(), exo());
    let empty: [f32; 0] = [];
    let no_targets: [u32; 0] = [];
    let logits = Logits::new(&empty, VOCAB).expect("valid");
    loss.forward(logits, &no_targets, &batch, Reference::PerToken(&empty), &empty).expect("valid");
    let report = loss.report().expect("finite");
    assert_eq!((report.loss, report.scored_rows, report.accuracy), (0.0, 0, 0.0));
    loss.backward_in_place(LogitsMut::new(&mut [0f32; 0], VOCAB).expect("valid")).expect("valid");

    // Rows, but none scored; sequences of no rows.
    let batch = Batch::new(&[0, 0, 2], &[0, 2]).expect("valid");
    let logits = [f32::NAN; 2 * VOCAB];
    let logits = Logits::new(&logits, VOCAB).expect("valid");
    loss.forward(logits, &[IGNORE_INDEX; 2], &batch, Reference::None, &[0.0f32, 1.0]).expect("valid");
    assert_eq!(loss.report().expect("finite").oddities.empty_sequences, 2);
}

#[test]
fn entropy_gradient_needs_the_entropies() {
    let logits = [0.0f32; VOCAB];
    let mut grad = [7.0f32; VOCAB];
    let saved = SavedRows { states: &[SoftmaxState { r: 0.0, s: 5.0 }], entropies: None };
    let gradients = RowGradients { log_probs: &[1.0], entropies: Some(&[1.0]) };
    let refused = Cpu::default().token_log_probs_backward(
        Logits::new(&logits, VOCAB).expect("valid"),
        &[0u32],
        &LogitOptions::default(),
        saved,
        gradients,
        LogitsMut::new(&mut grad, VOCAB).expect("valid"),
    );
    assert_eq!(refused, Err(Error::EntropiesNotKept));
    assert_eq!(grad, [7.0; VOCAB]);
}

#[test]
fn messages_name_both_numbers() {
    let error = Error::Length { what: "rewards", given: 3, expected: 4 };
    assert_eq!(error.to_string(), "rewards: 3 elements given, 4 expected");
    let error = Error::Target { row: 5, target: 50_300, vocab: 50_257 };
    assert_eq!(error.to_string(), "target of row 5: 50300 given, 0 to 50256 or a negative id (not scored) expected");
}
