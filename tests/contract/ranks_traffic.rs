//! What a step over ranks brings to its exchanges is what `ranks::Traffic` says, for any number of ranks.

use exo_kernels::backend::{Backend, Host};
use exo_kernels::ranks::{Communicator, Ranks, StepShape, Threads, Traffic, total};
use exo_kernels::reference::ReferenceBackend;
use exo_kernels::{
    Batch, Betas, Cpu, Head, LinearGradients, Matrix, MatrixMut, Objective, PreferenceLoss, Reference, Result, Rewards,
    Shard,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Counts what its rank brings.
#[derive(Debug)]
struct Counting {
    inner: Threads,
    gathered: Arc<Mutex<Vec<usize>>>,
    summed: Arc<AtomicUsize>,
}

impl<B: Backend<Memory = Host>> Communicator<B> for Counting {
    fn rank(&self) -> usize {
        Communicator::<B>::rank(&self.inner)
    }

    fn ranks(&self) -> usize {
        Communicator::<B>::ranks(&self.inner)
    }

    fn all_gather(&self, backend: &B, words: &mut [u32]) -> Result<()> {
        let bytes = size_of_val(words) / Communicator::<B>::ranks(&self.inner);
        self.gathered.lock().expect("counts").push(bytes);
        self.inner.all_gather(backend, words)
    }

    fn sum(&self, backend: &B, numbers: &mut [f32], meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.summed.fetch_add(size_of_val(numbers), Ordering::Relaxed);
        self.inner.sum(backend, numbers, meanwhile)
    }

    fn exchange(&self, words: &[u32]) -> Result<Option<Vec<u32>>> {
        Communicator::<B>::exchange(&self.inner, words)
    }
}

/// Bytes that each rank of one line has gathered in a step, and summed; and what was said of it.
fn check<B: Backend<Memory = Host> + Default>(line: &str, ranks: usize) {
    let found: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = Threads::new(ranks)
            .expect("few")
            .into_iter()
            .enumerate()
            .map(|(rank, inner)| {
                scope.spawn(move || -> Result<_> {
                    let (gathered, summed) = (Arc::<Mutex<Vec<usize>>>::default(), Arc::<AtomicUsize>::default());
                    let counting: Arc<dyn Communicator<B>> =
                        Arc::new(Counting { inner, gathered: Arc::clone(&gathered), summed: Arc::clone(&summed) });
                    let mut lines = Ranks::default();
                    *(match line {
                        "vocab" => &mut lines.vocab,
                        "rows" => &mut lines.rows,
                        _ => &mut lines.groups,
                    }) = Some(counting);
                    // 40 columns for each rank of the vocabulary; of the groups rank 0 has one more.
                    let columns = if line == "vocab" { (40, 40 * rank, 40 * ranks) } else { (40, 0, 40) };
                    let sequences = if line == "groups" && rank == 0 { 4 } else { 2 };
                    let batch = Batch::padded(sequences, 3, 2)?;
                    let (rows, size) = (batch.rows(), 5);
                    let (hidden, weight) = (vec![0.25_f32; rows * size], vec![0.5_f32; columns.0 * size]);
                    let (hidden, weight) = (Matrix::new(&hidden, size)?, Matrix::new(&weight, size)?);
                    let head = Head::new(weight)?;
                    let (targets, rewards) = (vec![1_i64; rows], vec![1.0_f64; sequences]);
                    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 })?;
                    let mut loss = PreferenceLoss::new(B::default(), objective)
                        .with_ranks(lines)
                        .with_shard(Shard::new(columns.1, columns.2)?);
                    let step = loss.forward_linear(
                        &hidden,
                        &head,
                        &targets,
                        &batch,
                        &Reference::None,
                        Rewards::from(&rewards),
                    )?;
                    let mut gradient = vec![0.0_f32; rows * size];
                    for _ in 0..2 {
                        let to = MatrixMut::new(&mut gradient, size)?;
                        let gradients = LinearGradients::<f32, f32>::new(Some(to), None);
                        loss.backward_linear(&step, &hidden, &head, gradients)?;
                    }
                    let shape = StepShape {
                        rows,
                        most_columns: if line == "vocab" { columns.0 } else { 0 },
                        hidden_numbers: if line == "vocab" { rows * size } else { 0 },
                        sequences,
                        most_sequences: if line == "groups" { 4 } else { 2 },
                        ranks_of_rows: if line == "rows" { ranks } else { 0 },
                        groups: line == "groups",
                    };
                    let gathered = gathered.lock().expect("counts").clone();
                    Ok((gathered, summed.load(Ordering::Relaxed), Traffic::of_step::<B>(&shape)))
                })
            })
            .collect();
        threads.into_iter().map(|rank| rank.join().expect("a rank").expect("all fit")).collect()
    });
    for (gathered, summed, said) in found {
        let gathers = [said.partial_rows, said.of_rows, said.of_groups];
        assert_eq!(gathered, gathers.into_iter().filter(|bytes| *bytes > 0).collect::<Vec<_>>(), "{line}, {ranks}");
        assert_eq!(summed, said.hidden_sum, "{line}, {ranks}: once for a forward pass");
    }
}

#[test]
fn a_step_brings_what_is_said_of_it() {
    for ranks in 1..=8 {
        for line in ["vocab", "rows", "groups"] {
            check::<Cpu>(line, ranks);
            check::<ReferenceBackend>(line, ranks);
        }
    }
}

#[test]
fn counts_of_ranks_are_added_up() {
    let counts = [3, 1 << 40, u64::MAX];
    for most in 1..=3 {
        let threads = Threads::new(most).expect("few");
        let found: Vec<_> = thread::scope(|scope| {
            let ranks: Vec<_> = threads
                .into_iter()
                .zip(counts)
                .map(|(own, count)| scope.spawn(move || total::<Cpu>(&own, count)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
        });
        let expected = counts[..most].iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        assert!(found.iter().all(|found| *found == Ok(Some(expected))), "{found:?}");
    }
}
