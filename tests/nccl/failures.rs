//! A rank that is gone leaves nobody waiting.

use crate::{call, delayed, on_ranks, rows, shard, turn_with};
use exo_kernels::cuda::{Cuda, Grown, Nccl, ViewMut};
use exo_kernels::ranks::Communicator;
use exo_kernels::{Error, LogitOptions, Result};
use softcuda::Settings;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use support::backend::Layout;

/// How a rank goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Going {
    Aborted,
    Dropped,
    /// The drop of a thread that panics.
    Panicked,
}

/// A rank that is gone before its exchange of this number, counted from 0.
#[derive(Debug)]
struct Leaving {
    rank: usize,
    ranks: usize,
    inner: Mutex<Option<Nccl>>,
    left: AtomicUsize,
    going: Going,
}

impl Leaving {
    fn next<R>(&self, exchange: impl FnOnce(&Nccl) -> Result<R>) -> Result<R> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            match (self.going, inner.take()) {
                (Going::Aborted, Some(nccl)) => nccl.abort(),
                (Going::Panicked, Some(nccl)) => {
                    let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        let _nccl = nccl;
                        std::panic::resume_unwind(Box::new("a test's"));
                    }));
                    assert!(panicking.is_err());
                }
                _ => {}
            }
        }
        inner.as_ref().map_or(Err(Error::NoForward), exchange)
    }
}

impl Communicator<Cuda> for Leaving {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, backend: &Cuda, words: ViewMut<'_, u32>) -> Result<()> {
        self.next(|nccl| nccl.all_gather(backend, words))
    }

    fn sum(&self, backend: &Cuda, numbers: ViewMut<'_, f32>, meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.next(|nccl| nccl.sum(backend, numbers, meanwhile))
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        self.next(|nccl| nccl.exchange(words))
    }
}

/// Before its note; before its rows, when the others have its note and wait for them; before the note of a second call. The others'
/// call gives an error, or, where it has only put work into a stream, the next question does.
#[test]
fn a_rank_that_is_gone_leaves_nobody_waiting() {
    let (whole, layout) = (rows(100, 0), Layout::new(&[0, 30, 60]));
    for settings in [Settings::default(), delayed()] {
        for going in [Going::Aborted, Going::Dropped, Going::Panicked] {
            for exchanges in 0..3 {
                let Some(_turn) = turn_with(3, settings.clone(), true) else { return };
                let found = on_ranks(3, |rank, cuda, nccl| {
                    let own = layout.of_rank(&whole, rank);
                    let options = shard(&LogitOptions::default(), &layout, rank, 100);
                    let calls = if exchanges < 2 { 1 } else { 2 };
                    if rank == 2 {
                        let (inner, left) = (Mutex::new(Some(nccl)), AtomicUsize::new(exchanges));
                        let leaving = Leaving { rank, ranks: 3, inner, left, going };
                        let last = (0..calls).map(|_| call(&cuda, &leaving, &own, &options, &mut Grown::default()).0);
                        return last.last().expect("a call");
                    }
                    let last = (0..calls).map(|_| call(&cuda, &nccl, &own, &options, &mut Grown::default()).0);
                    let last = last.last().expect("a call").and_then(|()| nccl.status());
                    // And from then on.
                    assert_eq!(nccl.exchange(&[0]).map(drop), last);
                    assert_eq!(nccl.status(), last);
                    let mut words = support::device::upload(&cuda, &[0_u32; 3]);
                    assert_eq!(nccl.all_gather(&cuda, (&mut words).into()), last);
                    last
                });
                for last in &found[..2] {
                    let Err(Error::Engine { engine: "NCCL", reason, .. }) = last else { panic!("{last:?}") };
                    let named = if going == Going::Dropped { "rank 2 has left" } else { "rank 2 has aborted" };
                    // One that has heard of it first has left too, and may be the one that is named.
                    let heard = ["rank 0 has aborted", "rank 1 has aborted"];
                    assert!(
                        reason.contains(named) || heard.iter().any(|text| reason.contains(text)),
                        "{going:?} before exchange {exchanges}: {reason}"
                    );
                }
                assert_eq!(found[2], Err(Error::NoForward));
            }
        }
    }
}

/// A rank that has aborted says so itself.
#[test]
fn a_rank_that_has_aborted_refuses_its_own_calls() {
    let Some(_turn) = turn_with(1, Settings::default(), false) else { return };
    on_ranks(1, |_, cuda, nccl| {
        nccl.abort();
        nccl.abort();
        let expected = Error::Rank { rank: 0, reason: "it has aborted".to_owned() };
        let mut words = support::device::upload(&cuda, &[0_u32]);
        assert_eq!(nccl.all_gather(&cuda, (&mut words).into()), Err(expected.clone()));
        assert_eq!(nccl.exchange(&[1]), Err(expected.clone()));
        assert_eq!(nccl.status(), Err(expected));
    });
}

/// Another thread's abort while a call waits for ranks that do not come: the call ends.
#[test]
fn an_abort_of_another_thread_is_heard() {
    let Some(_turn) = turn_with(2, delayed(), true) else { return };
    let control = softnccl::control().expect("the software NCCL");
    control.be_patient(std::time::Duration::from_secs(2));
    on_ranks(2, |rank, _cuda, nccl| {
        if rank == 0 {
            let result = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| nccl.exchange(&[1]));
                scope.spawn(|| nccl.abort());
                waiting.join().expect("no panic")
            });
            assert!(result.is_err(), "{result:?}");
        } else {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    });
    control.be_patient(std::time::Duration::from_secs(60));
}
