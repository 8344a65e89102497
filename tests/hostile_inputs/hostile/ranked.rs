//! What ranks exchange of their sequences: lengths that fit nothing, indices that are none, parts of any bits.

use super::choices::Choices;
use super::settings::HostBackend;
use exo_kernels::backend::{
    Backend, CountPart, Memory, RewardsMut, RowsOfRanks, SequencePart, Sequences, SequencesMut, Targets,
};
use exo_kernels::ranks::{Communicator, Ranks, Threads, clear_others, gather_by_sum, sum_by_gather};
use exo_kernels::{Batch, Betas, Cpu, Error, LogRatio, Objective, PreferenceLoss, Reference, Result, Shard};
use std::sync::Arc;

const VERBS: [&str; 8] = [
    "put",
    "clear_words",
    "add_ranks",
    "write_sequence_parts",
    "write_count_part",
    "counted",
    "add_sequences",
    "place_sequences",
];

pub(crate) fn of_host<B: HostBackend>(choices: &mut Choices<'_>) {
    let backend = B::choose(choices);
    walk(choices, &backend, "ranks/on_host::host_ranked");
}

pub(crate) fn walk<B: Backend>(choices: &mut Choices<'_>, backend: &B, verbs: &str) {
    choices.calls_of(verbs, &VERBS);
    choices.calls_of(verbs, &["check_counts"]);
    let backend = &backend.clone().counting_apart();
    copies(choices, backend);
    parts(choices, backend);
}

fn uploaded<B: Backend, T: exo_kernels::backend::Number>(backend: &B, numbers: &[T]) -> B::Buffer<T> {
    let mut buffer = B::Buffer::default();
    backend.upload(numbers, &mut buffer).expect("memory");
    buffer
}

/// That a call was refused where it had to be, and has then left the numbers as they were.
fn check<T: Copy + PartialEq + std::fmt::Debug>(result: Result<()>, refused: bool, found: &[T], before: T) {
    match result {
        Ok(()) => assert!(!refused, "accepted"),
        Err(error) => {
            assert!(refused, "refused: {error:?}");
            assert!(found.iter().all(|number| *number == before), "a refused call wrote: {found:?}");
        }
    }
}

fn copies<B: Backend>(choices: &mut Choices<'_>, backend: &B) {
    const BEFORE: f32 = -7.0;
    let (ranks, count) = (choices.of(2, &[0, 1]), choices.of(3, &[0, 1]));
    let numbers: Vec<f32> = (0..choices.length(ranks * count)).map(|_| choices.f32(1.0)).collect();
    let placed = uploaded(backend, &numbers);
    let view = backend.view(&placed, numbers.len());
    let mut sums = uploaded(backend, &[BEFORE; 64]);
    let result = backend.add_ranks(&view, backend.view_mut(&mut sums, count));
    let refused = if count == 0 { !numbers.is_empty() } else { !numbers.len().is_multiple_of(count) };
    let found = backend.read(&backend.view(&sums, count)).expect("no fault").into_owned();
    check(result, refused, &found, BEFORE);
    let mut copied = uploaded(backend, &[BEFORE; 64]);
    let room = choices.length(numbers.len()).min(64);
    let result = backend.put(&view, backend.view_mut(&mut copied, room));
    let found = backend.read(&backend.view(&copied, room)).expect("no fault").into_owned();
    let is_copied = found.iter().zip(&numbers).all(|(found, number)| found.to_bits() == number.to_bits());
    assert!(result.is_err() || is_copied);
    check(result, room != numbers.len(), &found, BEFORE);
    let mut words = backend.view_mut(&mut copied, room);
    backend.clear_words(B::Memory::words_mut(&mut words)).expect("any number of words");
    drop(words);
    assert!(backend.read(&backend.view(&copied, room)).expect("no fault").iter().all(|number| *number == 0.0));
}

/// A rank's sequences, laid out and taken apart.
fn parts<B: Backend>(choices: &mut Choices<'_>, backend: &B) {
    let before = SequencePart { index: 77, reserved: -3.0, ..SequencePart::default() };
    let sequences = choices.of(3, &[0, 1]);
    let mut length = || choices.length(sequences).min(64);
    let lengths = [length(), length(), length(), length(), length()];
    let numbers = uploaded(backend, &(0..64).map(|_| 0.5).collect::<Vec<f64>>());
    let scored = uploaded(backend, &[2_i32; 64]);
    let own = Sequences {
        log_ratios: backend.view(&numbers, sequences),
        log_prob_sums: backend.view(&numbers, lengths[0]),
        entropy_sums: choices.yes().then(|| backend.view(&numbers, lengths[1])),
        scored_rows: backend.view(&scored, lengths[2]),
    };
    let refused =
        lengths[0] != sequences || own.entropy_sums.is_some() && lengths[1] != sequences || lengths[2] != sequences;
    let room = choices.of(sequences + 1, &[0, sequences, sequences + 5]);
    let mut placed = uploaded(backend, &[before; 64]);
    let first = choices.size(7) % (1 << 40);
    let result = backend.write_sequence_parts(&own, None, first, backend.view_mut(&mut placed, room));
    let found = backend.read(&backend.view(&placed, room)).expect("no fault").into_owned();
    let written = result.is_ok();
    check(result, refused || room < sequences, &found, before);
    if written {
        for (i, part) in found.iter().enumerate() {
            assert_eq!(part.index, if i < sequences { (first + i) as i64 } else { -1 });
        }
    }

    let rows = choices.of(4, &[0, 1]);
    let log_probs = uploaded(backend, &[f32::NEG_INFINITY; 64]);
    let ids = uploaded(backend, &[0_i64; 64]);
    let (given, places) = (choices.length(rows).min(64), choices.of(1, &[0, 2]));
    let mut placed = uploaded(backend, &[before; 2]);
    let result = backend.write_count_part(
        &backend.view(&log_probs, rows),
        &Targets::I64(backend.view(&ids, given)),
        first,
        backend.view_mut(&mut placed, places),
    );
    let found = backend.read(&backend.view(&placed, places)).expect("no fault").into_owned();
    check(result, given != rows || places != 1, &found, before);
    let mut counts = [0_u32; 14];
    counts.fill_with(|| choices.size(0) as u32);
    // Any bits are counts of something.
    let _ = B::counted(&CountPart { index: -1, counts }, choices.size(5));
    backend.check_counts(5).expect("nothing was counted");

    let ranks = choices.of(2, &[0, 1, usize::MAX]);
    let room = choices.of(2 * (sequences + 1), &[0, sequences + 1, 63]).min(64);
    // Each sequence once, in another order, among indices that are none.
    let index = [2, 0, 1, -1, i64::MAX, i64::MIN, 63];
    let any: Vec<SequencePart> = (0..64)
        .map(|i| SequencePart {
            index: index.get(i).copied().unwrap_or(-1),
            scored_rows: i as i64,
            log_ratio: 1.0,
            ..SequencePart::default()
        })
        .collect();
    let placed = uploaded(backend, &any);
    let view = backend.view(&placed, room);
    let (mut to, mut to_scored) = (Vec::new(), uploaded(backend, &[-7_i32; 64]));
    to.extend((0..5).map(|_| uploaded(backend, &[-7.0_f64; 64])));
    for is_placing in [false, true] {
        let [a, b, c, d, e] = &mut to[..] else { unreachable!("five") };
        let with_entropies = choices.yes();
        let out = SequencesMut {
            log_ratios: backend.view_mut(a, sequences),
            log_prob_sums: backend.view_mut(b, lengths[0]),
            entropy_sums: with_entropies.then(|| backend.view_mut(c, lengths[1])),
            scored_rows: backend.view_mut(&mut to_scored, lengths[2]),
        };
        let misfit = lengths[0] != sequences || with_entropies && lengths[1] != sequences || lengths[2] != sequences;
        let (result, refused) = if is_placing {
            let rewards = RewardsMut {
                values: backend.view_mut(d, lengths[3]),
                proposal_offsets: Some(backend.view_mut(e, lengths[4])),
            };
            (backend.place_sequences(&view, out, rewards), misfit || lengths[3] != sequences || lengths[4] != sequences)
        } else {
            let reference = choices.yes().then(|| backend.view(&numbers, lengths[3]));
            let fits = reference.is_none() || lengths[3] == sequences;
            let rows = RowsOfRanks { ranks, log_ratio: LogRatio::Mean, reference };
            let expected = ranks.checked_mul(sequences + 1);
            (backend.add_sequences(&view, &rows, out), misfit || !fits || expected != Some(room))
        };
        let found = backend.read(&backend.view(&to[0], 64)).expect("no fault").into_owned();
        assert!(found[sequences..].iter().all(|number| *number == -7.0), "beyond the sequences");
        check(result, refused, &found, -7.0);
        to[0] = uploaded(backend, &[-7.0_f64; 64]);
    }
}

/// One rank of an engine that only sums, or only gathers; and a loss of one rank.
pub(crate) fn sums(choices: &mut Choices<'_>) {
    choices.calls(&["ranks/mod::total"]);
    choices.calls(&["ranks/sums::gather_by_sum", "ranks/sums::sum_by_gather", "ranks/sums::clear_others"]);
    let (rank, ranks) = (choices.of(0, &[1, 2, usize::MAX]), choices.of(2, &[0, 1, usize::MAX]));
    let count: usize = choices.of(4, &[0, 1, 3]);
    let before: Vec<u32> = (0..count).map(|i| 0xffc0_0001 + i as u32).collect();
    let refused = rank >= ranks || !count.is_multiple_of(ranks);
    let (mut words, mut numbers) = (before.clone(), Vec::new());
    let result = gather_by_sum(&mut words, (rank, ranks), &mut numbers, |_| Ok(()));
    assert_eq!(result.is_err(), refused, "{result:?}");
    let own = if refused { 0..count } else { rank * (count / ranks)..(rank + 1) * (count / ranks) };
    assert_eq!(words[own.clone()], before[own.clone()]);
    let mut words = before.clone();
    let result = clear_others(&Cpu::default(), (rank, ranks), &mut words.as_mut_slice());
    assert_eq!(result.is_err(), refused, "{result:?}");
    assert_eq!(words[own.clone()], before[own.clone()]);
    assert!(refused || words.iter().enumerate().all(|(i, word)| own.contains(&i) || *word == 0));

    let alone = Threads::new(1).expect("few").pop().expect("one rank");
    let many = choices.size(7) as u64;
    assert_eq!(exo_kernels::ranks::total::<Cpu>(&alone, many), Ok(Some(many)));
    let mut numbers: Vec<f32> = (0..count).map(|_| choices.f32(1.0)).collect();
    let before = numbers.clone();
    sum_by_gather::<Cpu>(&alone, &Cpu::default(), &mut numbers, &mut || Ok(())).expect("one rank");
    let same = |(found, before): (&f32, &f32)| found.to_bits() == before.to_bits() || found.is_nan() || *found == 0.0;
    assert!(numbers.iter().zip(&before).all(same), "{numbers:?} {before:?}");
    // What is said while it is summed is said after it.
    let result = sum_by_gather::<Cpu>(&alone, &Cpu::default(), &mut numbers, &mut || Err(Error::NoForward));
    assert_eq!(result, Err(Error::NoForward));
    assert_eq!(Communicator::<Cpu>::rank(&alone), 0);
}

/// A loss whose only rank of groups is told that they go on.
pub(crate) fn open_groups(choices: &mut Choices<'_>) {
    choices.calls(&[
        "data/batch::Batch::with_open_ends",
        "loss::PreferenceLoss::with_ranks",
        "loss::PreferenceLoss::with_shard",
    ]);
    let groups = choices.of(1, &[0, 2]);
    let (begins, ends) = (choices.yes(), choices.yes());
    let batch = Batch::padded(2 * groups, 1, 2).expect("pairs").with_open_ends(!begins, !ends);
    assert_eq!(batch.open_ends(), (!begins && groups > 0, !ends && groups > 0));
    let vocab = choices.of(3, &[2, 4]);
    let alone = Threads::new(1).expect("few").pop().expect("one rank");
    let ranks = match choices.of(1, &[0, 2, 3]) {
        0 => Ranks::default(),
        1 => Ranks { groups: Some(Arc::new(alone)), ..Ranks::default() },
        2 => Ranks { rows: Some(Arc::new(alone)), ..Ranks::default() },
        _ => Ranks { vocab: Some(Arc::new(alone)), ..Ranks::default() },
    };
    let has_groups = ranks.groups.is_some();
    // Padding is a rank's of the vocabulary alone.
    let columns_fit = vocab == 3 || ranks.vocab.is_some() && vocab < 3;
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let shard = Shard::new(0, vocab).expect("a shard");
    let mut loss = PreferenceLoss::new(Cpu::default(), objective).with_ranks(ranks).with_shard(shard);
    let logits = vec![0.25_f32; 6 * groups];
    let logits = exo_kernels::Matrix::new(&logits, 3).expect("rows");
    let (targets, rewards) = (vec![1_i64; 2 * groups], vec![1.0_f64; 2 * groups]);
    let result = loss.forward(&logits, &targets, &batch, &Reference::None, &rewards);
    let is_open = batch.open_ends() != (false, false);
    let refused = is_open || !columns_fit;
    match result {
        Ok(_) => {
            assert!(!refused, "accepted");
            assert_eq!(loss.report().expect("a report").group_losses.len(), groups);
        }
        Err(Error::OpenGroup { group }) => assert!(is_open && !has_groups && group < groups),
        Err(Error::RanksDisagree { .. }) => assert!(is_open && has_groups || !columns_fit),
        Err(Error::PartOfVocabulary { .. }) => assert!(!columns_fit),
        Err(error) => panic!("{error:?}"),
    }
}
