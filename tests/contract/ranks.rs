//! Rows whose columns lie on several ranks, from end to end: ranks that are threads of this process.

use exo_kernels::backend::{Backend, Host, SLICE};
use exo_kernels::ranks::{Communicator, Threads, token_log_probs};
use exo_kernels::{Cpu, Element, Error, LogitOptions, Matrix, Result, Shard, SoftmaxState, TokenLogProbs};
use half::bf16;
use support::backend::{Layout, Rows, TestBackend, of_rank, on_every_host};
use support::ranks::{Dying, on_ranks};

on_every_host!(
    every_rank_gets_the_bits_of_one_call,
    what_one_rank_refuses_all_are_told,
    ranks_that_disagree_are_all_told_so,
    a_rank_that_is_gone_leaves_nobody_waiting,
);

const UNTOUCHED: f32 = 77.0;

/// What a rank gets: log-probs, states, entropies.
type Found = (Vec<f32>, Vec<SoftmaxState>, Vec<f32>);

/// One call of one rank, and what was there before wherever nothing has been written.
fn call<B: TestBackend + Backend<Memory = Host>, T: Element>(
    backend: &B,
    communicator: &impl Communicator<B>,
    rows: &Rows<T>,
    options: &LogitOptions,
    parts: &mut B::Buffer<B::PartialRow>,
) -> (Result<()>, Found) {
    let count = rows.count();
    let (mut log_probs, mut entropies) = (vec![UNTOUCHED; count], vec![UNTOUCHED; count]);
    let mut states = vec![SoftmaxState { r: UNTOUCHED, s: UNTOUCHED }; count];
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    let logits = Matrix::new(&rows.logits, rows.vocab).expect("rows");
    let result = token_log_probs(backend, communicator, &logits, &rows.targets, options, outputs, parts);
    (result, (log_probs, states, entropies))
}

fn rows<T: Element>(vocab: usize) -> Rows<T> {
    let logits = (0..4 * vocab).map(|i| T::from_f32(3000.0 + ((i * 7919) % 1013) as f32 * 0.01)).collect();
    Rows::new(logits, vec![0, -100, vocab as i64 - 1, vocab as i64 / 2], vocab)
}

fn every_rank_gets_the_bits_of_one_call<B: TestBackend + Backend<Memory = Host>>(backend: &B) {
    fn check<B: TestBackend + Backend<Memory = Host>, T: Element>(backend: &B, vocab: usize, starts: &[usize]) {
        let (rows, layout) = (rows::<T>(vocab), Layout { padding: 3, ..Layout::new(starts) });
        let options = LogitOptions::default().with_temperature(0.8).expect("valid");
        let expected = backend.forward(&rows, &options, true);
        let found = on_ranks(starts.len(), |rank, communicator| {
            let (own, options) = (layout.of_rank(&rows, rank), of_rank(&options, &layout, rank, vocab));
            let mut parts = B::Buffer::default();
            // Twice: with what is kept of the first.
            call(backend, &communicator, &own, &options, &mut parts).0.expect("all ranks fit");
            call(backend, &communicator, &own, &options, &mut parts)
        });
        let slices = starts.iter().all(|start| start.is_multiple_of(SLICE)) && B::KEEPS_BITS_OF_RANKS;
        for (result, of_rank) in &found {
            assert_eq!(*result, Ok(()));
            assert_eq!(format!("{of_rank:?}"), format!("{:?}", found[0].1), "ranks have the same bits");
            if slices {
                assert_eq!(of_rank.0, expected.log_probs, "{starts:?}");
                assert_eq!(of_rank.1, expected.states);
                assert_eq!(of_rank.2, expected.entropies);
            }
        }
    }
    check::<B, f32>(backend, 1000, &[0]);
    check::<B, f32>(backend, 1000, &[0, 1, 700]);
    check::<B, bf16>(backend, 2 * SLICE + 100, &[0, SLICE, 2 * SLICE]);
    check::<B, bf16>(backend, SLICE + 100, &[0, 5]);
}

/// Asserts that a rank was refused and has written nothing.
fn refused(found: &(Result<()>, Found)) -> &Error {
    let (result, (log_probs, states, entropies)) = found;
    assert!(log_probs.iter().chain(entropies).all(|value| *value == UNTOUCHED), "a refused call wrote");
    assert!(states.iter().all(|state| state.s == UNTOUCHED), "a refused call wrote");
    result.as_ref().expect_err("refused")
}

fn what_one_rank_refuses_all_are_told<B: TestBackend + Backend<Memory = Host>>(backend: &B) {
    let (rows, layout) = (rows::<f32>(100), Layout::new(&[0, 30, 60]));
    let found = on_ranks(3, |rank, communicator| {
        let (mut own, options) = (layout.of_rank(&rows, rank), of_rank(&LogitOptions::default(), &layout, rank, 100));
        if rank == 1 {
            own.targets[2] = 100;
        }
        let mut parts = B::Buffer::default();
        let first = call(backend, &communicator, &own, &options, &mut parts);
        // The ranks are together still.
        let second = call(backend, &communicator, &layout.of_rank(&rows, rank), &options, &mut parts);
        (first, second)
    });
    let own = Error::Target { row: 2, target: 100, vocab: 100 };
    for (rank, (first, second)) in found.iter().enumerate() {
        let expected = if rank == 1 { own.clone() } else { Error::Rank { rank: 1, reason: own.to_string() } };
        assert_eq!(*refused(first), expected);
        assert_eq!(second.0, Ok(()));
    }
}

fn ranks_that_disagree_are_all_told_so<B: TestBackend + Backend<Memory = Host>>(backend: &B) {
    let rows = rows::<f32>(100);
    let shard = |start, vocab| Shard::new(start, vocab).expect("a shard");
    // Of rank 1: where its columns begin, how many there are, of what vocabulary, at which temperature, of how many rows.
    let cases = [
        (30, 70, 100, 1.0, 3, ("rows", 3.0, 4.0)),
        (30, 70, 101, 1.0, 4, ("vocabulary", 101.0, 100.0)),
        (30, 70, 100, 0.5, 4, ("temperature", 0.5, 1.0)),
        (29, 71, 100, 1.0, 4, ("first column of the shard", 29.0, 30.0)),
        (31, 69, 100, 1.0, 4, ("first column of the shard", 31.0, 30.0)),
        (30, 69, 100, 1.0, 4, ("end of the shard", 99.0, 100.0)),
    ];
    for (start, columns, vocab, temperature, count, (what, given, expected)) in cases {
        let found = on_ranks(2, |rank, communicator| {
            let options = LogitOptions::default();
            let (columns, count, options) = if rank == 0 {
                (30, 4, options.with_shard(shard(0, 100)))
            } else {
                (columns, count, options.with_temperature(temperature).expect("valid").with_shard(shard(start, vocab)))
            };
            let own = Rows::new(vec![0.5_f32; count * columns], rows.targets[..count].to_vec(), columns);
            call(backend, &communicator, &own, &options, &mut B::Buffer::default())
        });
        for of_rank in &found {
            assert_eq!(*refused(of_rank), Error::RanksDisagree { what, rank: 1, given, other: 0, expected });
        }
    }
}

fn a_rank_that_is_gone_leaves_nobody_waiting<B: TestBackend + Backend<Memory = Host>>(backend: &B) {
    let (rows, layout) = (rows::<f32>(100), Layout::new(&[0, 30, 60]));
    // Before its note; before its rows, when the others have its note and wait for them; before the note of a second call.
    for exchanges in 0..3 {
        let found = on_ranks(3, |rank, communicator| {
            let (own, options) = (layout.of_rank(&rows, rank), of_rank(&LogitOptions::default(), &layout, rank, 100));
            let mut parts = B::Buffer::default();
            let communicator = Dying::new(communicator, if rank == 2 { exchanges } else { usize::MAX });
            let first = call(backend, &communicator, &own, &options, &mut parts);
            if exchanges < 2 { first } else { call(backend, &communicator, &own, &options, &mut parts) }
        });
        for (result, _) in &found[..2] {
            assert_eq!(*result, Err(Error::Rank { rank: 2, reason: "it is gone".to_owned() }), "{exchanges} exchanges");
        }
        assert_eq!(found[2].0, Err(Error::NoForward));
    }
}

/// A vocabulary that is a processor's: what threads hand over is what one backend made.
#[test]
fn threads_are_for_any_number_of_ranks() {
    assert!(Threads::new(0).expect("few").is_empty());
    assert!(Threads::new(usize::MAX).is_err());
    let [alone] = Threads::new(1).expect("few").try_into().expect("one rank");
    let mut words = [1, 2, 3];
    Communicator::<Cpu>::all_gather(&alone, &Cpu::default(), &mut words).expect("nobody to wait for");
    assert_eq!(words, [1, 2, 3]);
    let mut pair = Threads::new(2).expect("few");
    let result = Communicator::<Cpu>::all_gather(&pair.remove(0), &Cpu::default(), &mut words);
    assert_eq!(result, Err(Error::Length { what: "words of an exchange", given: 3, expected: 2 }));
}
