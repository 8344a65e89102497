//! What is taken: its limits, what it leaves alone, and what the report counts.

use super::{Step, VOCAB, dpo, exo, rows_of, run, with_softcap};
use exo_kernels::{Batch, Error, IGNORE_INDEX, LogitOptions, Objective, Reference, Rewards, TokenId};
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    negative_targets_mask_in_both_id_types,
    rows_without_a_softmax_poison_their_group_and_no_other,
    target_of_minus_infinity_takes_the_limit,
    excluded_columns_have_no_gradient_and_stay_excluded_under_a_softcap,
    masked_rows_are_never_read,
    sequences_without_a_scored_row_stay_in_their_group,
    groups_of_one_have_no_loss_and_no_gradient,
    tied_winners_share_and_are_counted,
    nothing_at_all,
);

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
