//! A preference loss that is divided among a mesh of ranks, by columns, rows and groups in any combination.
//!
//! Every rank reports the whole batch in the same bits, and has the gradient of what it has. These are the bits of one rank, where
//! columns begin at slices, and where sums over rows are exact, as those of the numbers here are. Ranks that fail leave nobody
//! waiting.

use exo_kernels::backend::SLICE;
use exo_kernels::{
    Batch, Betas, Divergence, Element, Error, LogRatio, LogitOptions, LossOptions, Objective, Reduction, Result, Target,
};
use half::bf16;
use support::backend::{HostLoss, Rows, TestBackend, on_every_backend};
use support::mesh::{Division, Outcome, Part, Whole, steps_of_ranks};

on_every_backend!(
    a_mesh_has_the_bits_of_one_rank,
    every_rank_has_the_same_bits_wherever_columns_begin,
    lines_of_one_rank_have_the_bits_of_none,
    a_row_without_a_softmax_stays_in_its_group,
    what_one_rank_refuses_all_are_told,
    accumulated_gradients_are_those_of_the_full_batch,
    ranks_that_disagree_are_all_told_so,
    a_rank_that_is_gone_leaves_nobody_waiting,
);

/// By how much an implicit reward moves where columns are divided otherwise: less than 4 units of an f32 log-prob of 8 to 16 nats for each
/// of at most 9 rows, times β_π.
const MOVED: f64 = 9.0 * 4.0 * f32::EPSILON as f64 * 8.0 * 0.3;

/// Six sequences of 0 to 9 rows in groups of 3, 1 and 2, some rows masked.
fn whole<T: Element>(vocab: usize) -> Whole<T> {
    let batch = Batch::new(&[0, 9, 12, 12, 17, 18, 24], &[0, 3, 4, 6]).expect("a batch");
    let rows = batch.rows();
    let value = |i: usize| 2.0 + ((i * 7919 + i / 13) % 1013) as f32 * 0.007;
    let targets = (0..rows).map(|row| if row % 5 == 1 { -100 } else { (row * 7907 % vocab) as i64 });
    Whole {
        rows: Rows::new((0..rows * vocab).map(|i| T::from_f32(value(i))).collect(), targets.collect(), vocab),
        reference: (0..rows).map(|row| -8.0 - row as f32 / 16.0).collect(),
        reference_sums: None,
        rewards: (0..batch.sequences()).map(|sequence| (sequence * 5 % 4) as f64 * 0.25).collect(),
        proposal: None,
        batch,
    }
}

fn options(objective: Objective) -> LossOptions {
    let logits = LogitOptions::default().with_temperature(0.8).expect("valid");
    LossOptions::from(objective).with_logits(logits).with_entropy(true)
}

fn exo() -> LossOptions {
    options(Objective::exo(Betas { policy: 0.3, reward: 0.7 }).expect("valid"))
}

/// What one device finds.
fn alone<B: TestBackend, T: Element>(backend: &B, whole: &Whole<T>, options: &LossOptions) -> Outcome<T> {
    whole.step(&mut HostLoss::new(backend, *options)).expect("one rank")
}

/// Of the gradient of all rows and columns what a rank has.
fn gradient_of<T: Element>(gradient: &[T], part: &Part<T>, vocab: usize) -> Vec<T> {
    part.rows.iter().flat_map(|row| &gradient[row * vocab..][part.columns.clone()]).copied().collect()
}

fn bits<T: Element>(numbers: &[T]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_f32().to_bits()).collect()
}

/// Two steps of all ranks: each has the report and its part of the gradient of one rank.
fn check<B: TestBackend, T: Element>(backend: &B, whole: &Whole<T>, division: &Division, options: &LossOptions) {
    let expected = alone(backend, whole, options);
    let mesh = division.mesh(false, None);
    let found = steps_of_ranks(backend, (whole, division), options, mesh, 2, |_, _, _, _| {});
    for (place, of_rank) in division.places().into_iter().zip(found) {
        let part = division.part(whole, place);
        let context = format!("{} {:?} {place:?} of {division:?}, {options:?}", backend.name(), T::DTYPE);
        for outcome in of_rank {
            let outcome = outcome.unwrap_or_else(|error| panic!("{error}, {context}"));
            assert_eq!(format!("{:?}", outcome.report), format!("{:?}", expected.report), "{context}");
            let of_part = gradient_of(&expected.gradient, &part, whole.rows.vocab);
            assert_eq!(bits(&outcome.gradient), bits(&of_part), "{context}");
        }
    }
}

fn a_mesh_has_the_bits_of_one_rank<B: TestBackend>(backend: &B) {
    let whole_of = whole::<f32>(70);
    let mean = exo().with_log_ratio(LogRatio::Mean);
    let divisions = [
        Division::new(&[0], 2, &[0]),
        Division::new(&[0], 1, &[0, 3]),
        // In the midst of two groups; a rank with nothing; one with the middle of a group alone.
        Division::new(&[0], 1, &[0, 2, 2, 5]),
        Division::new(&[0], 1, &[0, 1, 2]),
        Division::new(&[0], 3, &[0, 4]),
    ];
    for division in &divisions {
        for options in [exo(), mean] {
            check(backend, &whole_of, division, &options);
        }
    }
    // References of whole sequences, one of which begins on a rank without a scored row; proposals; sums and normalisers.
    let sums = [-40.0, -8.5, 0.0, -21.25, -4.0, -32.0];
    let of_sequences = Whole { reference_sums: Some(sums.to_vec()), ..whole_of.clone() };
    let proposal = Some(vec![0.5, -0.25, 0.125, 1.0, 0.0, -2.0]);
    let of_proposal = Whole { proposal, ..of_sequences.clone() };
    for reduction in [Reduction::Sum, Reduction::Normalizer(7.0)] {
        let options = mean.with_reduction(reduction).expect("valid");
        check(backend, &of_sequences, &Division::new(&[0], 2, &[0, 1]), &options);
        check(backend, &of_proposal, &Division::new(&[0], 2, &[0, 4]), &options);
    }
    // log q, with a group that one of its ranks has only impossible sequences of.
    let mut distribution = whole_of.clone();
    distribution.rewards = vec![f64::NEG_INFINITY, -0.5, -1.0, 0.0, f64::NEG_INFINITY, -0.1];
    let objective = Objective::distribution(Divergence::ForwardKl, 0.3).expect("valid");
    check(backend, &distribution, &Division::new(&[0], 1, &[0, 1, 5]), &options(objective));
    // Columns too: of whole slices.
    if B::KEEPS_BITS_OF_RANKS {
        let mut wide = whole::<bf16>(SLICE + 100);
        (wide.batch, wide.rewards) = (Batch::new(&[0, 3, 5], &[0, 2]).expect("a batch"), vec![1.0, 0.0]);
        (wide.rows.logits, wide.rows.targets) =
            (wide.rows.logits[..5 * (SLICE + 100)].to_vec(), vec![0, -100, SLICE as i64 + 99, 5, SLICE as i64]);
        wide.reference.truncate(5);
        check(backend, &wide, &Division::new(&[0, SLICE], 2, &[0, 1]), &exo());
    }
}

fn every_rank_has_the_same_bits_wherever_columns_begin<B: TestBackend>(backend: &B) {
    let (whole, division) = (whole::<f32>(70), Division::new(&[0, 1, 40], 2, &[0, 2]));
    let found = steps_of_ranks(backend, (&whole, &division), &exo(), division.mesh(false, None), 1, |_, _, _, _| {});
    let report =
        |of_rank: &[Result<Outcome<f32>>]| of_rank[0].as_ref().expect("all fit").report.clone().expect("a report");
    let first = report(&found[0]);
    let expected = alone(backend, &whole, &exo()).report.expect("a report");
    for of_rank in &found {
        assert_eq!(format!("{:?}", report(of_rank)), format!("{first:?}"));
    }
    for (found, expected) in first.implicit_rewards.iter().zip(&expected.implicit_rewards) {
        assert!((found - expected).abs() <= MOVED, "{found} {expected}");
    }
}

fn lines_of_one_rank_have_the_bits_of_none<B: TestBackend>(backend: &B) {
    let (whole, division) = (whole::<f32>(70), Division::new(&[0], 1, &[0]));
    let expected = alone(backend, &whole, &exo());
    let found = steps_of_ranks(backend, (&whole, &division), &exo(), division.mesh(true, None), 2, |_, _, _, _| {});
    for outcome in found.into_iter().flatten() {
        let outcome = outcome.expect("one rank");
        assert_eq!(format!("{:?}", outcome.report), format!("{:?}", expected.report));
        assert_eq!(bits(&outcome.gradient), bits(&expected.gradient));
    }
}

fn a_row_without_a_softmax_stays_in_its_group<B: TestBackend>(backend: &B) {
    let mut whole = whole::<f32>(70);
    // Of sequence 3, the only one of group 1; an impossible target in sequence 5.
    whole.rows.logits[14 * 70 + 3] = f32::NAN;
    whole.rows.logits[20 * 70 + 20 * 7907 % 70] = f32::NEG_INFINITY;
    let division = Division::new(&[0, 30], 2, &[0, 3]);
    let found = steps_of_ranks(backend, (&whole, &division), &exo(), division.mesh(false, None), 1, |_, _, _, _| {});
    let expected = alone(backend, &whole, &exo()).report.expect("unchecked");
    for outcome in found.into_iter().flatten() {
        let report = outcome.expect("all fit").report.expect("unchecked");
        let not_numbers = |losses: &[f64]| losses.iter().map(|loss| loss.is_nan()).collect::<Vec<_>>();
        assert_eq!(not_numbers(&report.group_losses), not_numbers(&expected.group_losses));
        let (found, expected) = (report.oddities, expected.oddities);
        assert_eq!((found.non_finite_rows, found.impossible_targets), (1, 1));
        assert_eq!((found.empty_sequences, found.single_groups), (expected.empty_sequences, expected.single_groups));
        // Rows count in the order of the ranks: those of a rank of rows before those of the next. The first rank of groups has
        // 12 rows, and the rank of rows that has this one follows one that has 5 of the other 12.
        assert!(found.first_non_finite_row.is_some_and(|row| (12..24).contains(&row)), "{found:?}");
    }
}

fn what_one_rank_refuses_all_are_told<B: TestBackend>(backend: &B) {
    let (whole, division) = (whole::<f32>(70), Division::new(&[0, 30], 2, &[0, 4]));
    let ranks = division.places().len();
    for refusing in [0, 3, ranks - 1] {
        let found = steps_of_ranks(
            backend,
            (&whole, &division),
            &exo(),
            division.mesh(false, None),
            3,
            |rank, step, part, _| {
                if rank == refusing && step == 1 {
                    part.whole.rewards.pop();
                }
            },
        );
        for (rank, outcomes) in found.iter().enumerate() {
            let error = outcomes[1].as_ref().expect_err("one is refused");
            match error {
                Error::Length { what: "rewards", .. } => assert_eq!(rank, refusing),
                // Directly, or by way of a rank of another line.
                Error::Rank { reason, .. } => assert!(rank != refusing && reason.contains("rewards"), "{reason}"),
                error => panic!("rank {rank}: {error}"),
            }
            assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "the ranks are together still");
        }
    }
}

fn accumulated_gradients_are_those_of_the_full_batch<B: TestBackend>(backend: &B) {
    // Micro-batches of unequal numbers of groups, divided among ranks that have unequal numbers of them too: by the
    // number of all groups each gradient is that of the full batch.
    let whole = whole::<f32>(70);
    let expected = alone(backend, &whole, &exo());
    let options = exo().with_reduction(Reduction::Normalizer(3.0)).expect("valid");
    let loss_of_all = expected.report.as_ref().expect("a report").loss;
    for (cut, division) in [(3, Division::new(&[0], 2, &[0, 1])), (4, Division::new(&[0, 31], 1, &[0, 2]))] {
        let halves = Division::new(&[0], 1, &[0, cut]);
        let mut losses = 0.0;
        for place in halves.places() {
            let micro = halves.part(&whole, place);
            let mesh = division.mesh(false, None);
            let found = steps_of_ranks(backend, (&micro.whole, &division), &options, mesh, 1, |_, _, _, _| {});
            losses += found[0][0].as_ref().expect("all fit").report.as_ref().expect("a report").loss;
            for (place, outcome) in division.places().into_iter().zip(found) {
                let part = division.part(&micro.whole, place);
                let outcome = outcome[0].as_ref().expect("all fit");
                let all = gradient_of(&expected.gradient, &micro, 70);
                let of_part = gradient_of(&all, &part, 70);
                for (found, expected) in outcome.gradient.iter().zip(&of_part) {
                    // 1/3 of the mean and of the normaliser are one number. Coefficients are products of p, which moves by the
                    // factor e^±2m where implicit rewards move by m, and of differences of these.
                    let bound = 8.0 * MOVED as f32 * (expected.abs() + 1e-2);
                    assert!((found - expected).abs() <= bound, "{found} {expected} {place:?}");
                }
            }
        }
        assert!((losses - loss_of_all).abs() <= 8.0 * MOVED * (1.0 + loss_of_all.abs()), "{losses} {loss_of_all}");
    }
}

fn ranks_that_disagree_are_all_told_so<B: TestBackend>(backend: &B) {
    type Change = fn(&mut Part<f32>, &mut LossOptions);
    let cases: &[(&str, Change)] = &[
        ("beta_pi", |_, options| {
            *options = LossOptions::from(Objective::exo(Betas { policy: 0.4, reward: 0.7 }).expect("valid"))
                .with_logits(options.logits())
                .with_entropy(true);
        }),
        ("target of the objective", |_, options| {
            let preference = Target::Preference { label_smoothing: 0.1 };
            let objective = Objective::new(preference, Divergence::ReverseKl, 0.3).expect("valid");
            *options = LossOptions::from(objective).with_logits(options.logits()).with_entropy(true);
        }),
        ("log-ratio (0: sum, 1: mean)", |_, options| *options = options.with_log_ratio(LogRatio::Mean)),
        ("reduction (0: mean, 1: sum, 2: normalizer)", |_, options| {
            *options = options.with_reduction(Reduction::Sum).expect("valid");
        }),
        ("whether entropies are computed", |_, options| *options = options.with_entropy(false)),
        ("temperature", |_, options| {
            *options = options.with_logits(LogitOptions::default().with_temperature(2.0).expect("valid"));
        }),
        ("whether there are proposal offsets", |part, _| {
            part.whole.proposal = Some(vec![0.0; part.whole.batch.sequences()]);
        }),
        ("reference (0: none, 1: per token, 2: per sequence)", |part, _| {
            part.whole.reference_sums = Some(vec![0.0; part.whole.batch.sequences()]);
        }),
        ("whether the first group began on the rank before", |part, _| {
            part.whole.batch = part.whole.batch.clone().with_open_ends(false, false);
        }),
    ];
    // The last rank is changed; its group began on the rank before.
    let whole = whole::<f32>(70);
    for division in [Division::new(&[0], 1, &[0, 2]), Division::new(&[0, 9], 2, &[0, 2])] {
        let last = division.places().len() - 1;
        for (expected, change) in cases {
            let mesh = division.mesh(false, None);
            let found = steps_of_ranks(backend, (&whole, &division), &exo(), mesh, 1, |rank, _, part, options| {
                if rank == last {
                    change(part, options);
                }
            });
            let mut named = 0;
            for outcomes in &found {
                match outcomes[0].as_ref().expect_err("they disagree") {
                    Error::RanksDisagree { what, .. } if *what == *expected => named += 1,
                    Error::RanksDisagree { what: "whether the first group began on another rank", .. } => named += 1,
                    // By way of another line.
                    Error::Rank { .. } => {}
                    error => panic!("{expected}: {error}"),
                }
            }
            assert!(named >= 2, "{expected}: both sides know");
        }
    }
}

fn a_rank_that_is_gone_leaves_nobody_waiting<B: TestBackend>(backend: &B) {
    let whole = whole::<f32>(70);
    for (division, exchanges_of_step) in [
        (Division::new(&[0, 9], 1, &[0]), 2),
        (Division::new(&[0], 2, &[0]), 2),
        // Notes, sizes of groups, sequences.
        (Division::new(&[0], 1, &[0, 2]), 3),
        (Division::new(&[0, 9], 2, &[0, 2]), 7),
    ] {
        let ranks = division.places().len();
        for (dying, exchanges) in
            [0, ranks - 1].into_iter().flat_map(|rank| (0..=exchanges_of_step).map(move |n| (rank, n)))
        {
            let mesh = division.mesh(false, Some((dying, exchanges)));
            let found = steps_of_ranks(backend, (&whole, &division), &exo(), mesh, 2, |_, _, _, _| {});
            for (rank, outcomes) in found.iter().enumerate() {
                // All exchanges of a step come before anything is found. In a mesh some ranks have no more to do with the one that is
                // gone after their notes.
                let is_whole = exchanges == exchanges_of_step;
                let may_be_whole = is_whole || ranks == 8 && exchanges > 4 && rank != dying;
                let context = format!("rank {rank}, {dying} gone at {exchanges} of {division:?}");
                assert!(outcomes[0].is_ok() || !is_whole, "{context}");
                assert!(outcomes[0].is_err() || may_be_whole, "{context}");
                let error = outcomes[1].as_ref().expect_err("a rank is gone");
                assert!(matches!(error, Error::Rank { .. } | Error::NoForward), "{error}");
            }
        }
    }
}
