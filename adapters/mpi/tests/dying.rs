//! A rank whose process dies before its exchange of a given number: `dying EXCHANGE HOW`, HOW being `abort`, `kill` or `exit`. The others wait
//! for it, and `mpirun` ends them: `scripts/mpi-test` sees to it that it does, in time, and with an exit code that is not 0.
//!
//! Without arguments, as `cargo test` starts it, nobody dies.

use exo_kernels::backend::{Backend, Host};
use exo_kernels::ranks::{Communicator, token_log_probs};
use exo_kernels::{Cpu, LogitOptions, Matrix, Result, Shard, SoftmaxState, TokenLogProbs};
use exo_kernels_mpi::Mpi;
use mpi::Threading;
use std::process::{Command, abort, exit, id};
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
struct Dying {
    inner: Mpi,
    how: String,
    /// Exchanges that are left.
    left: AtomicUsize,
}

impl Dying {
    fn next(&self) {
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return;
        }
        match self.how.as_str() {
            "abort" => abort(),
            "exit" => exit(0),
            // The signal that no process can catch.
            _ => loop {
                Command::new("kill").args(["-9", &id().to_string()]).status().expect("kill is there");
            },
        }
    }
}

impl<B: Backend<Memory = Host>> Communicator<B> for Dying {
    fn rank(&self) -> usize {
        Communicator::<B>::rank(&self.inner)
    }

    fn ranks(&self) -> usize {
        Communicator::<B>::ranks(&self.inner)
    }

    fn all_gather(&self, backend: &B, words: &mut [u32]) -> Result<()> {
        self.next();
        self.inner.all_gather(backend, words)
    }

    fn sum(&self, backend: &B, numbers: &mut [f32], meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.next();
        self.inner.sum(backend, numbers, meanwhile)
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        self.next();
        Communicator::<B>::exchange(&self.inner, words)
    }
}

/// Two calls of two exchanges each, and a sum.
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dies_at = arguments.next().map_or(usize::MAX, |number| number.parse().expect("the number of an exchange"));
    let how = arguments.next().unwrap_or_default();
    let (universe, _) = mpi::initialize_with_threading(Threading::Funneled).expect("the first");
    let inner = Mpi::new(&universe.world())?;
    let backend = Cpu::default();
    let (rank, ranks) = (Communicator::<Cpu>::rank(&inner), Communicator::<Cpu>::ranks(&inner));
    let left = AtomicUsize::new(if rank + 1 == ranks { dies_at } else { usize::MAX });
    let communicator = Dying { inner, how, left };

    let options = LogitOptions::default().with_shard(Shard::new(10 * rank, 10 * ranks)?);
    let logits = [0.5_f32; 20];
    let (mut log_probs, mut states, mut parts) = ([0.0; 2], [SoftmaxState::default(); 2], Vec::new());
    for _ in 0..2 {
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
        token_log_probs(
            &backend,
            &communicator,
            &Matrix::new(&logits, 10)?,
            &[0_u32, 1],
            &options,
            outputs,
            &mut parts,
        )?;
    }
    communicator.sum(&backend, &mut log_probs, &mut || Ok(()))?;
    drop(communicator);
    drop(universe);
    Ok(())
}
