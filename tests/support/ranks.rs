//! Ranks that are threads of a test, and what goes wrong with them.

use exo_kernels::backend::{Backend, Host, Memory, ViewMut};
use exo_kernels::ranks::{Communicator, Threads};
use exo_kernels::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What each rank does, on a thread of its own.
pub fn on_ranks<R: Send>(ranks: usize, run: impl Fn(usize, Threads) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let run = &run;
        let ranks = Threads::new(ranks).expect("few").into_iter().enumerate();
        let ranks: Vec<_> = ranks.map(|(rank, own)| scope.spawn(move || run(rank, own))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    })
}

/// A rank that is gone before its exchange of this number, counted from 0: from then on its calls give [`Error::NoForward`].
#[derive(Debug)]
pub struct Dying {
    rank: usize,
    ranks: usize,
    inner: Mutex<Option<Threads>>,
    left: Arc<AtomicUsize>,
}

impl Dying {
    pub fn new(inner: Threads, exchanges: usize) -> Self {
        Self::with_budget(inner, Arc::new(AtomicUsize::new(exchanges)))
    }

    /// The exchanges that are left, counted together with those of other lines.
    pub fn with_budget(inner: Threads, left: Arc<AtomicUsize>) -> Self {
        let (rank, ranks) = (rank_of(&inner), ranks_of(&inner));
        Self { rank, ranks, inner: Mutex::new(Some(inner)), left }
    }

    /// The engine, while it is there: nobody else has it meanwhile.
    fn next<R>(&self, exchange: impl FnOnce(&Threads) -> Result<R>) -> Result<R> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            *inner = None;
        }
        inner.as_ref().map_or(Err(Error::NoForward), exchange)
    }
}

fn rank_of(threads: &Threads) -> usize {
    Communicator::<exo_kernels::Cpu>::rank(threads)
}

fn ranks_of(threads: &Threads) -> usize {
    Communicator::<exo_kernels::Cpu>::ranks(threads)
}

impl<B: Backend<Memory = Host>> Communicator<B> for Dying {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, backend: &B, words: ViewMut<'_, B, u32>) -> Result<()> {
        self.next(|inner| inner.all_gather(backend, words))
    }

    fn sum(&self, backend: &B, numbers: ViewMut<'_, B, f32>, meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.next(|inner| inner.sum(backend, numbers, meanwhile))
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        self.next(|inner| Communicator::<B>::exchange(inner, words))
    }

    fn abort(&self) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A rank of a backend of any memory: what it exchanges goes by way of the host's.
#[derive(Debug)]
pub struct Staged<E>(pub E);

impl<B: Backend, E: Communicator<exo_kernels::Cpu>> Communicator<B> for Staged<E> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn all_gather(&self, backend: &B, words: ViewMut<'_, B, u32>) -> Result<()> {
        let mut found = backend.read(&B::Memory::as_view(&words))?.into_owned();
        self.0.all_gather(&exo_kernels::Cpu::default(), &mut found)?;
        let mut placed = B::Buffer::default();
        backend.upload(&found, &mut placed)?;
        backend.put(&backend.view(&placed, found.len()), words)
    }

    fn sum(&self, backend: &B, numbers: ViewMut<'_, B, f32>, meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut sums = backend.read(&B::Memory::as_view(&numbers))?.into_owned();
        self.0.sum(&exo_kernels::Cpu::default(), &mut sums, meanwhile)?;
        let mut placed = B::Buffer::default();
        backend.upload(&sums, &mut placed)?;
        backend.put(&backend.view(&placed, sums.len()), numbers)
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        self.0.exchange(words)
    }

    fn abort(&self) {
        self.0.abort();
    }
}
