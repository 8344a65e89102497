//! The memory verbs of a backend: lengths, ranges and batches that fit nothing.

use super::choices::Choices;
use super::rows;
use super::settings::HostBackend;
use exo_kernels::backend::{Backend, Memory, Reference, ScoredLogProbs, StageResults, StepBuffers, Targets};
use exo_kernels::{Batch, Betas, GroupStatistics, Objective, Rewards};
use std::ops::Range;

/// What tells one backend's memory from another's.
pub(crate) struct Kind {
    /// Where the verbs are, as `tests/hostile_inputs/inventory.rs` names it.
    pub(crate) verbs: &'static str,
    /// The same of its [`Memory`].
    pub(crate) memory: &'static str,
    /// Whether it looks at numbers before it takes them.
    pub(crate) sees_numbers: bool,
}

const HOST: Kind = Kind { verbs: "data/host_memory::host_memory", memory: "data/memory::Host", sees_numbers: true };

pub(crate) fn of_host<B: HostBackend>(choices: &mut Choices<'_>) {
    let backend = B::choose(choices);
    walk(choices, &backend, &HOST);
}

pub(crate) fn walk<B: Backend>(choices: &mut Choices<'_>, backend: &B, kind: &Kind) {
    let _entered = backend.enter().expect("a device");
    let backend = &backend.clone().counting_apart();
    buffers(choices, backend, kind);
    checks(choices, backend, kind);
    rewards(choices, backend, kind);
    summaries(choices, backend, kind);
}

fn uploaded<B: Backend, T: exo_kernels::backend::Number>(backend: &B, numbers: &[T]) -> B::Buffer<T> {
    let mut buffer = B::Buffer::default();
    backend.upload(numbers, &mut buffer).expect("memory");
    buffer
}

/// Buffers that grow, views of more than there is, parts that are none.
fn buffers<B: Backend>(choices: &mut Choices<'_>, backend: &B, kind: &Kind) {
    let verbs = ["reserve", "view", "view_mut", "upload", "copy", "read", "check_place", "check_place_mut"];
    choices.calls_of(kind.verbs, &verbs);
    choices.calls_of(kind.verbs, &["check_memory_of", "ordered", "ordered_mut"]);
    backend.check_memory_of("numbers", backend).expect("its own");
    let of_memory = ["length", "length_mut", "part", "part_mut", "words_mut", "as_view", "address"];
    choices.calls_of(kind.memory, &of_memory);
    let mut buffer = B::Buffer::<f64>::default();
    assert_eq!(B::Memory::length(&backend.view(&buffer, usize::MAX)), 0);
    let reserved = choices.size(4);
    // The last one's bytes wrap to a few.
    let reserved = choices.of(reserved, &[usize::MAX / 8 + 2]);
    // What may or may not be there to be had is not asked for.
    if reserved > isize::MAX as usize / 8 {
        assert!(backend.reserve(&mut buffer, reserved).is_err(), "{reserved} numbers");
    } else if reserved <= 1 << 16 {
        backend.reserve(&mut buffer, reserved).expect("memory");
        assert_eq!(B::Memory::length(&backend.view(&buffer, reserved)), reserved);
    }
    let numbers: Vec<f64> = (0..choices.of(5, &[0, 1, 8])).map(f64::from).collect();
    backend.upload(&numbers, &mut buffer).expect("memory");

    let asked = choices.size(numbers.len());
    let (start, end) = (choices.size(1), choices.size(numbers.len()));
    let found = read_parts(backend, &buffer, asked, &numbers, start..end);
    let mut view = backend.view_mut(&mut buffer, asked);
    backend.check_place_mut("numbers", &view).expect("its own");
    {
        let (ordered, _until_read) = backend.ordered_mut(&mut view);
        let as_view = B::Memory::as_view(&ordered);
        let (again, _until_read_again) = backend.ordered(&as_view);
        assert_eq!(*backend.read(&again).expect("no fault"), found);
    }
    assert_eq!(B::Memory::length_mut(&view), found.len());
    assert_eq!(*backend.read(&B::Memory::as_view(&view)).expect("no fault"), found);
    let found_words = {
        let words = B::Memory::words_mut(&mut view);
        backend.read(&B::Memory::as_view(&words)).expect("no fault").into_owned()
    };
    assert_eq!(bytemuck::cast_slice::<_, u8>(&found_words), bytemuck::cast_slice::<_, u8>(&found));
    let part = B::Memory::part_mut(&mut view, start..end);
    let expected = found.get(start..end);
    assert_eq!(part.is_some(), expected.is_some(), "{start}..{end} of {}", found.len());
    if let (Some(part), Some(expected)) = (part, expected) {
        assert_eq!(*backend.read(&B::Memory::as_view(&part)).expect("no fault"), *expected);
    }
}

/// The first numbers of a buffer, `asked` or as many as there are: `numbers`, and whatever it held before. A part of them too.
fn read_parts<B: Backend>(
    backend: &B,
    buffer: &B::Buffer<f64>,
    asked: usize,
    numbers: &[f64],
    range: Range<usize>,
) -> Vec<f64> {
    let view = backend.view(buffer, asked);
    backend.check_place("numbers", &view).expect("its own");
    let length = B::Memory::length(&view);
    assert!(length <= asked && length >= asked.min(numbers.len()), "{length} of {asked}");
    let found = backend.read(&view).expect("no fault");
    let there = length.min(numbers.len());
    assert_eq!((found.len(), &found[..there]), (length, &numbers[..there]));

    let part = B::Memory::part(&view, range.clone());
    let expected = found.get(range.clone());
    assert_eq!(part.is_some(), expected.is_some(), "{range:?} of {length}");
    if let (Some(part), Some(expected)) = (part, expected) {
        assert_eq!(*backend.read(&part).expect("no fault"), *expected);
        assert!(part_is_later::<B>(&view, &part));
        let mut copy = uploaded(backend, &[0.5; 3]);
        backend.copy(&part, &mut copy).expect("memory");
        assert_eq!(*backend.read(&backend.view(&copy, range.len())).expect("no fault"), *expected);
    }
    found.into_owned()
}

type View<'a, B> = exo_kernels::backend::View<'a, B, f64>;

fn part_is_later<B: Backend>(whole: &View<'_, B>, part: &View<'_, B>) -> bool {
    B::Memory::length(part) == 0 || B::Memory::address(part) >= B::Memory::address(whole)
}

/// Ids and references that do not fit, and batches that take one another's place.
fn checks<B: Backend>(choices: &mut Choices<'_>, backend: &B, kind: &Kind) {
    choices.calls_of(kind.verbs, &["check_targets", "check_reference", "place_batch"]);
    choices.calls(&["backend::Backend::upload_batch"]);
    let (one, other) = (rows::batch(choices), rows::batch(choices));
    let mut placed = backend.upload_batch(&one).expect("memory");
    assert_eq!(placed.as_ref(), &one);
    backend.place_batch(&other, &mut placed).expect("memory");
    assert_eq!(placed.as_ref(), &other);

    let batch = other;
    let ids = rows::targets(choices, batch.rows());
    let held = uploaded(backend, &ids);
    let given = choices.length(ids.len()).min(ids.len());
    let targets = Targets::I64(backend.view(&held, given));
    let (expected, vocab) = (choices.size(given), choices.size(3));
    let columns = || ids[..given].iter().all(|id| usize::try_from(*id).is_ok_and(|id| id < vocab) || *id < 0);
    let fit = expected == given && (!kind.sees_numbers || columns());
    let result = backend.check_targets(&targets, expected, vocab);
    assert_eq!(result.is_ok(), fit, "{given} of {ids:?} as {expected} below {vocab}: {result:?}");

    let mut numbers = vec![-1.0f32; choices.length(batch.rows())];
    if let Some(number) = numbers.first_mut() {
        *number = choices.f32(-1.0);
    }
    let of_tokens = uploaded(backend, &numbers);
    let reference = Reference::PerToken(backend.view(&of_tokens, numbers.len()));
    let finite = || numbers.iter().zip(&ids).all(|(number, id)| number.is_finite() || *id < 0);
    let seen = !kind.sees_numbers || (given == batch.rows() && finite());
    let result = backend.check_reference(&reference, &targets, &batch);
    assert_eq!(result.is_ok(), numbers.len() == batch.rows() && seen, "{numbers:?}, {given} of {ids:?}: {result:?}");
}

/// Rewards that do not fit the batch, or their proposal's offsets do not.
fn rewards<B: Backend>(choices: &mut Choices<'_>, backend: &B, kind: &Kind) {
    choices.calls_of(kind.verbs, &["has_proposal"]);
    choices.calls_of(kind.verbs, &["check_rewards", "check_step", "bring_rewards", "reserve_step", "begin_step"]);
    let batch = rows::batch(choices);
    let sequences = batch.sequences();
    let values = vec![0.5; choices.length(sequences)];
    let offsets = vec![0.25; choices.length(sequences)];
    let of_host = Rewards::from(&values);
    let with_proposal = !choices.yes();
    let of_host = if with_proposal { of_host.with_proposal(&offsets) } else { of_host };
    let rewards = B::Rewards::from(of_host);
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("usual betas");
    let fit = values.len() == sequences && (!with_proposal || offsets.len() == sequences);
    assert_eq!(B::has_proposal(&rewards), with_proposal);
    assert_eq!(backend.check_rewards(&objective, &rewards, &batch).is_ok(), fit);
    backend.check_step(&rewards, choices.yes()).expect("no capture");
    let mut buffers = B::RewardBuffers::default();
    backend.bring_rewards(&rewards, &mut buffers).expect("whatever they are");
    backend.begin_step(&rewards, &mut buffers).expect("whatever they are");

    // The last one's bytes wrap to a few.
    let reserved = choices.of(sequences, &[0, usize::MAX, usize::MAX / 8 + 2]);
    let result = backend.reserve_step(&mut StepBuffers::default(), reserved, batch.groups(), choices.yes());
    assert_eq!(result.is_ok(), reserved <= sequences, "{reserved} sequences: {result:?}");
    let result = backend.reserve_step(&mut StepBuffers::default(), sequences, usize::MAX / 2, choices.yes());
    assert!(result.is_err(), "so many groups");
}

/// What a report is made of, of lengths that are not the batch's and numbers that no forward pass leaves.
fn summaries<B: Backend>(choices: &mut Choices<'_>, backend: &B, kind: &Kind) {
    choices.calls_of(kind.verbs, &["read_results"]);
    let batch: Batch = rows::batch(choices);
    let (rows, sequences) = (batch.rows(), batch.sequences());
    let lengths: [usize; 5] = [rows, rows, sequences, sequences, rows].map(|length| choices.length(length));
    let mut scored = vec![1i32; lengths[3]];
    if let Some(scored) = scored.first_mut() {
        *scored = choices.of(1, &[0, -1, i32::MIN, i32::MAX]);
    }
    let mut log_probs = vec![-1.0f32; lengths[0]];
    if let Some(log_prob) = log_probs.first_mut() {
        *log_prob = choices.f32(-1.0);
    }
    let (log_probs, entropies) = (uploaded(backend, &log_probs), uploaded(backend, &vec![0.5f32; lengths[1]]));
    let (sums, scored_rows) = (uploaded(backend, &vec![0.5f64; lengths[2]]), uploaded(backend, &scored));
    let targets = uploaded(backend, &vec![0u32; lengths[4]]);
    let with_entropies = choices.yes();
    let of_stages: [usize; 3] = [sequences, batch.groups(), batch.groups()].map(|length| choices.length(length));
    let (ratios, losses) = (uploaded(backend, &vec![0.25; of_stages[0]]), uploaded(backend, &vec![0.5; of_stages[1]]));
    let statistics = uploaded(backend, &vec![GroupStatistics::default(); of_stages[2]]);
    let found = ScoredLogProbs {
        log_probs: backend.view(&log_probs, lengths[0]),
        entropies: with_entropies.then(|| backend.view(&entropies, lengths[1])),
        entropy_sums: with_entropies.then(|| backend.view(&sums, lengths[2])),
        scored_rows: backend.view(&scored_rows, lengths[3]),
        targets: Targets::U32(backend.view(&targets, lengths[4])),
        vocab: choices.size(3),
    };
    let results = StageResults {
        log_ratios: backend.view(&ratios, of_stages[0]),
        group_losses: backend.view(&losses, of_stages[1]),
        statistics: backend.view(&statistics, of_stages[2]),
    };
    let stages_fit = of_stages == [sequences, batch.groups(), batch.groups()];
    let fit = lengths[0] == rows && lengths[3] == sequences && lengths[4] == rows && stages_fit;
    let of_entropies = !with_entropies || (lengths[1] == rows && lengths[2] == sequences);
    backend.clear_counts().expect("no fault");
    match backend.read_results(&found, &results, &batch) {
        Ok(read) => {
            assert!(fit && of_entropies, "accepted: {lengths:?}, {of_stages:?}");
            assert_eq!((read.log_ratios.len(), read.group_losses.len()), (of_stages[0], of_stages[1]));
            assert!(read.log_ratios.iter().all(|ratio| *ratio == 0.25) && read.group_losses.iter().all(|l| *l == 0.5));
            assert_eq!(*read.statistics, vec![GroupStatistics::default(); of_stages[2]]);
        }
        Err(error) => assert!(!(fit && of_entropies), "{lengths:?}, {of_stages:?} refused: {error:?}"),
    }
}
