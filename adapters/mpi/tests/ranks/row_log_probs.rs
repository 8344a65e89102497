//! Log-probs of rows whose columns lie on several processes.

use crate::Calls;
use exo_kernels::backend::{Backend, Host, SLICE};
use exo_kernels::ranks::token_log_probs;
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::{ReferenceBackend, token_log_prob};
use exo_kernels::{Cpu, Element, Error, LogitOptions, Matrix, Result, Shard, SoftmaxState, TokenLogProbs};
use exo_kernels_mpi::Mpi;
use half::bf16;
use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator as _;

const UNTOUCHED: f32 = 77.0;

/// What a call gives: log-probs, states, entropies.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    log_probs: Vec<f32>,
    states: Vec<SoftmaxState>,
    entropies: Vec<f32>,
}

impl Found {
    /// What is there where nothing has been written.
    fn untouched(rows: usize) -> Self {
        let state = SoftmaxState { r: UNTOUCHED, s: UNTOUCHED };
        Self { log_probs: vec![UNTOUCHED; rows], states: vec![state; rows], entropies: vec![UNTOUCHED; rows] }
    }

    fn outputs(&mut self) -> TokenLogProbs<'_> {
        let Self { log_probs, states, entropies } = self;
        TokenLogProbs { log_probs, states, entropies: Some(entropies) }
    }
}

/// Rows whose logits share an offset, one of them masked.
struct Rows<T> {
    logits: Vec<T>,
    targets: Vec<i64>,
    vocab: usize,
}

impl<T: Element> Rows<T> {
    fn new(vocab: usize) -> Self {
        let logits = (0..4 * vocab).map(|i| T::from_f32(300.0 + ((i * 7919) % 1013) as f32 * 0.01)).collect();
        Self { logits, targets: vec![0, -100, vocab as i64 - 1, vocab as i64 / 2], vocab }
    }

    fn row(&self, row: usize) -> &[T] {
        &self.logits[row * self.vocab..][..self.vocab]
    }

    /// The columns of one rank, of all rows.
    fn columns(&self, start: usize, columns: usize) -> Vec<T> {
        (0..self.targets.len()).flat_map(|row| self.row(row)[start..start + columns].iter().copied()).collect()
    }

    fn of_one_call<B: Backend<Memory = Host>>(&self, backend: &B, options: &LogitOptions) -> Found {
        let mut found = Found::untouched(self.targets.len());
        let logits = Matrix::new(&self.logits, self.vocab).expect("rows");
        backend.token_log_probs(&logits, &self.targets, options, found.outputs()).expect("one call");
        found
    }

    /// Twice: with what is kept of the first.
    fn of_ranks<B: Backend<Memory = Host>>(
        &self,
        backend: &B,
        mpi: &Mpi,
        options: &LogitOptions,
        (start, columns): (usize, usize),
    ) -> Found {
        let (mut found, mut parts) = (Found::untouched(self.targets.len()), B::Buffer::default());
        let own = self.columns(start, columns);
        let logits = Matrix::new(&own, columns).expect("rows");
        let options = options.with_shard(Shard::new(start, self.vocab).expect("a shard"));
        for _ in 0..2 {
            token_log_probs(backend, mpi, &logits, &self.targets, &options, found.outputs(), &mut parts)
                .expect("all fit");
        }
        found
    }
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).expect("valid")
}

/// That every rank has the same bits.
fn assert_same_bits(mpi: &Mpi, found: &Found) {
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    let states: Vec<_> = found.states.iter().flat_map(|state| [state.r, state.s]).collect();
    let own = [bits(&found.log_probs), bits(&states), bits(&found.entropies)].concat();
    let all = mpi.exchange(&own).expect("exchanged");
    assert!(all.chunks(own.len()).all(|of_rank| of_rank == own), "ranks have the same bits");
}

pub(crate) fn slices_have_the_bits_of_one_call(world: &SimpleCommunicator) {
    fn check<T: Element>(mpi: &Mpi) {
        let (rank, ranks) = (mpi.rank(), mpi.ranks());
        let rows = Rows::<T>::new((ranks + 1) * SLICE - 100);
        let (shard, columns) = Shard::of_slices(rows.vocab, rank, ranks).expect("slices enough");
        let found = rows.of_ranks(&Cpu::default(), mpi, &options(), (shard.start(), columns));
        assert_eq!(format!("{found:?}"), format!("{:?}", rows.of_one_call(&Cpu::default(), &options())));
    }
    let mpi = Mpi::new(world).expect("a duplicate");
    check::<f32>(&mpi);
    check::<bf16>(&mpi);
    // A buffer that is cut into many messages is the same buffer.
    check::<f32>(&mpi.with_largest_message(5).expect("valid"));
}

pub(crate) fn columns_of_any_ranks_are_within_the_bounds(world: &SimpleCommunicator) {
    fn check<B: Backend<Memory = Host>>(mpi: &Mpi, backend: &B) {
        let (rank, ranks) = (mpi.rank(), mpi.ranks());
        let rows = Rows::<f32>::new(1031 + ranks * ranks);
        // Each has more columns than the one before; the last has what is left.
        let start = rank * rank;
        let columns = if rank + 1 == ranks { rows.vocab - start } else { 2 * rank + 1 };
        let found = rows.of_ranks(backend, mpi, &options(), (start, columns));
        assert_same_bits(mpi, &found);
        for (row, target) in rows.targets.iter().enumerate() {
            let Ok(target) = usize::try_from(*target) else {
                assert_eq!(found.log_probs[row], 0.0);
                continue;
            };
            let exact = token_log_prob::forward(rows.row(row), target, &options());
            let bound = bounds::row(Arithmetic::BACKEND, &exact, &options());
            let near = |found: f32, exact: f64, bound: f64| {
                assert!((f64::from(found) - exact).abs() <= bound, "row {row}: {found}, {exact} ± {bound} expected");
            };
            near(found.log_probs[row], exact.log_prob, bound.log_prob);
            near(found.entropies[row], exact.entropy, bound.entropy);
        }
    }
    let mpi = Mpi::new(world).expect("a duplicate");
    check(&mpi, &Cpu::default());
    check(&mpi, &ReferenceBackend);
}

/// One call of a rank that has some columns of 100 for each rank, and what it left.
fn call(mpi: &Mpi, targets: &[i64], options: &LogitOptions, columns: usize) -> (Result<()>, Found) {
    let (logits, mut found) = (vec![0.5_f32; targets.len() * columns], Found::untouched(targets.len()));
    let logits = Matrix::new(&logits, columns).expect("rows");
    let result = token_log_probs(&Cpu::default(), mpi, &logits, targets, options, found.outputs(), &mut Vec::new());
    (result, found)
}

fn of_hundred(mpi: &Mpi) -> LogitOptions {
    let (rank, ranks) = (mpi.rank(), mpi.ranks());
    LogitOptions::default().with_shard(Shard::new(100 * rank, 100 * ranks).expect("a shard"))
}

pub(crate) fn what_one_rank_refuses_all_are_told(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let (options, ranks) = (of_hundred(&mpi), world.size() as usize);
    for refusing in 0..ranks {
        let own = mpi.rank() == refusing;
        let targets = [0, 1, if own { 100 * ranks as i64 } else { 2 }];
        let (result, found) = call(&mpi, &targets, &options, 100);
        let error = Error::Target { row: 2, target: 100 * ranks as i64, vocab: 100 * ranks };
        let expected = if own { error } else { Error::Rank { rank: refusing, reason: error.to_string() } };
        assert_eq!((result, found), (Err(expected), Found::untouched(3)));
        // The ranks are together still.
        assert_eq!(call(&mpi, &[0, 1, 2], &options, 100).0, Ok(()));
    }
}

pub(crate) fn ranks_that_disagree_are_all_told_so(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let last = mpi.ranks() - 1;
    let is_last = mpi.rank() == last;
    let options = of_hundred(&mpi);
    let hotter = options.with_temperature(0.5).expect("valid");
    let cases = [
        (if is_last { &[0, 1][..] } else { &[0] }, options, ("rows", 2.0, 1.0)),
        (&[0], if is_last { hotter } else { options }, ("temperature", 0.5, 1.0)),
    ];
    for (targets, options, (what, given, expected)) in cases {
        let (result, found) = call(&mpi, targets, &options, 100);
        assert_eq!(result, Err(Error::RanksDisagree { what, rank: last, given, other: 0, expected }));
        assert_eq!(found, Found::untouched(targets.len()));
        assert_eq!(call(&mpi, &[0], &of_hundred(&mpi), 100).0, Ok(()), "together still");
    }
}
