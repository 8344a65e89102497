//! Ranks over a trainer's own communicator, which can do nothing but add up f32: `ranks::gather_by_sum` makes a gather of it, bit for bit.
//! Two threads stand in for the trainer's processes, and the results are those of `ranks::Threads`.
//!
//! ```text
//! cargo run --example sum_only_communicator
//! ```

use exo_kernels::backend::{Backend, Host};
use exo_kernels::ranks::{Communicator, Threads, gather_by_sum, token_log_probs};
use exo_kernels::{Cpu, LogitOptions, Matrix, Result, Shard, SoftmaxState, TokenLogProbs};
use std::fmt::Debug;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;

/// What the trainer has.
trait AllReduce: Debug + Send + Sync {
    fn rank(&self) -> usize;
    fn ranks(&self) -> usize;
    /// Adds up over ranks, in place.
    fn all_reduce_sum(&self, numbers: &mut [f32]);
}

/// What exo-kernels takes.
#[derive(Debug)]
struct OfSums<A>(A);

impl<A: AllReduce, B: Backend<Memory = Host>> Communicator<B> for OfSums<A> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn all_gather(&self, _: &B, words: &mut [u32]) -> Result<()> {
        let mut numbers = Vec::new(); // kept between calls where they are many
        gather_by_sum(words, (self.0.rank(), self.0.ranks()), &mut numbers, |numbers| {
            self.0.all_reduce_sum(numbers);
            Ok(())
        })
    }

    fn sum(&self, _: &B, numbers: &mut [f32], meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.0.all_reduce_sum(numbers);
        meanwhile()
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        let (rank, ranks) = (self.0.rank(), self.0.ranks());
        let mut all = vec![0; ranks * words.len()];
        all[rank * words.len()..][..words.len()].copy_from_slice(words);
        gather_by_sum(&mut all, (rank, ranks), &mut Vec::new(), |numbers| {
            self.0.all_reduce_sum(numbers);
            Ok(())
        })?;
        Ok(Some(all))
    }
}

/// The trainer's, for this example: threads that add to one buffer.
#[derive(Debug)]
struct OneBuffer {
    rank: usize,
    ranks: usize,
    shared: Arc<(Barrier, Mutex<Vec<f32>>)>,
}

impl AllReduce for OneBuffer {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_reduce_sum(&self, numbers: &mut [f32]) {
        let (barrier, sums) = &*self.shared;
        let lock = || sums.lock().unwrap_or_else(PoisonError::into_inner);
        if self.rank == 0 {
            *lock() = vec![0.0; numbers.len()];
        }
        barrier.wait();
        for (sum, number) in lock().iter_mut().zip(&*numbers) {
            *sum += number;
        }
        barrier.wait();
        numbers.copy_from_slice(&lock());
        barrier.wait();
    }
}

/// Two rows of five columns, of which rank 0 has two and rank 1 three.
const COLUMNS: [&[f32]; 2] = [&[0.5, 1.0, -0.3, 0.2], &[0.1, 0.0, 2.0, 0.7, 0.4, -1.0]];

/// The log-probs that each rank gets.
fn on_ranks(ranks: Vec<impl Communicator<Cpu>>) -> Result<Vec<[f32; 2]>> {
    let of_rank = |communicator: &dyn Communicator<Cpu>| -> Result<[f32; 2]> {
        let (columns, start) = (COLUMNS[communicator.rank()], [0, 2][communicator.rank()]);
        let options = LogitOptions::default().with_shard(Shard::new(start, 5)?);
        let logits = Matrix::new(columns, columns.len() / 2)?;
        let (mut log_probs, mut states) = ([0.0; 2], [SoftmaxState::default(); 2]);
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
        token_log_probs(&Cpu::default(), communicator, &logits, &[4u32, 1], &options, outputs, &mut Vec::new())?;
        Ok(log_probs)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || of_rank(&rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn main() -> Result<()> {
    let shared = Arc::new((Barrier::new(2), Mutex::default()));
    let of_sums = (0..2).map(|rank| OfSums(OneBuffer { rank, ranks: 2, shared: Arc::clone(&shared) })).collect();
    let (found, expected) = (on_ranks(of_sums)?, on_ranks(Threads::new(2)?)?);
    println!("by sums alone {found:?}, by ranks::Threads {expected:?}");
    let bits = |log_probs: &[[f32; 2]]| log_probs.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found), bits(&expected));
    Ok(())
}

#[test]
fn sums_alone_give_the_bits_of_threads() -> Result<()> {
    main()
}
