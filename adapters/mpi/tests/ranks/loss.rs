//! A preference loss over processes: every one of them reports the whole batch, and has the gradient of what it has.

use exo_kernels::ranks::{Communicator, Ranks};
use exo_kernels::{
    Batch, Betas, Cpu, Head, LinearGradients, Matrix, MatrixMut, Objective, PreferenceLoss, Reference, Report, Shard,
};
use exo_kernels_mpi::Mpi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator as _;
use std::sync::Arc;

const VOCAB: usize = 7;

fn loss() -> PreferenceLoss<Cpu> {
    PreferenceLoss::new(Cpu::default(), Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid"))
}

/// What a rank can have of any batch: so many rows, numbered from `first` on.
fn logits(first: usize, rows: usize) -> Vec<f32> {
    (first * VOCAB..(first + rows) * VOCAB).map(|i| ((i * 7919) % 1013) as f32 * 0.004).collect()
}

fn targets(first: usize, rows: usize) -> Vec<i64> {
    (first..first + rows).map(|row| (row % VOCAB) as i64).collect()
}

fn rewards(first: usize, sequences: usize) -> Vec<f64> {
    (first..first + sequences).map(|sequence| (sequence * 5 % 4) as f64 * 0.25).collect()
}

/// The report and the gradient of rows from `first` on, the rewards of as many sequences as the batch has.
fn step(mut loss: PreferenceLoss<Cpu>, batch: &Batch, first: usize, rewards: &[f64]) -> (Report, Vec<f32>) {
    let own = logits(first, batch.rows());
    let view = Matrix::new(&own, VOCAB).expect("rows");
    let targets = targets(first, batch.rows());
    let step = loss.forward(&view, &targets, batch, &Reference::None, rewards).expect("all fit");
    let mut gradient = vec![0.0; own.len()];
    loss.backward(&step, &view, MatrixMut::new(&mut gradient, VOCAB).expect("rows")).expect("all fit");
    (loss.report().expect("a report").clone(), gradient)
}

/// One group of two completions from each process, two rows each.
pub(crate) fn a_group_on_all_processes_is_that_of_one(world: &SimpleCommunicator) {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let groups: Arc<dyn Communicator<Cpu>> = Arc::new(Mpi::new(world).expect("a communicator"));
    let own = Batch::padded(2, 2, 2).expect("a pair").with_open_ends(rank > 0, rank + 1 < ranks);
    let divided = loss().with_ranks(Ranks { groups: Some(groups), ..Ranks::default() });
    let (report, gradient) = step(divided, &own, 4 * rank, &rewards(2 * rank, 2));
    let whole = Batch::padded(2 * ranks, 2, 2 * ranks).expect("one group");
    let (expected, of_all) = step(loss(), &whole, 0, &rewards(0, 2 * ranks));
    assert_eq!(report, expected);
    assert_eq!(gradient, of_all[4 * rank * VOCAB..][..4 * VOCAB]);
}

/// Two completions, of which each process has one row each.
pub(crate) fn rows_on_all_processes_are_those_of_one(world: &SimpleCommunicator) {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let rows: Arc<dyn Communicator<Cpu>> = Arc::new(Mpi::new(world).expect("a communicator"));
    let mut divided = loss().with_ranks(Ranks { rows: Some(rows), ..Ranks::default() });
    let own: Vec<f32> = [rank, ranks + rank].iter().flat_map(|row| logits(*row, 1)).collect();
    let ids: Vec<i64> = [rank, ranks + rank].iter().flat_map(|row| targets(*row, 1)).collect();
    let batch = Batch::padded(2, 1, 2).expect("a pair");
    let view = Matrix::new(&own, VOCAB).expect("rows");
    divided.forward(&view, &ids, &batch, &Reference::None, &rewards(0, 2)).expect("all fit");
    let whole = Batch::padded(2, ranks, 2).expect("a pair");
    let (expected, _) = step(loss(), &whole, 0, &rewards(0, 2));
    // A few f32 have an exact sum in f64.
    assert_eq!(*divided.report().expect("a report"), expected);
}

/// Rows of a head on each process: the gradient of the hidden states is the same on all.
pub(crate) fn a_head_on_all_processes_has_one_hidden_gradient(world: &SimpleCommunicator) {
    const SIZE: usize = 3;
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let line: Arc<dyn Communicator<Cpu>> = Arc::new(Mpi::new(world).expect("a communicator"));
    let shard = Shard::new(VOCAB * rank, VOCAB * ranks).expect("a shard");
    let mut divided = loss().with_shard(shard).with_ranks(Ranks { vocab: Some(Arc::clone(&line)), ..Ranks::default() });
    let batch = Batch::padded(4, 1, 2).expect("pairs");
    let weight: Vec<f32> = (0..VOCAB * ranks * SIZE).map(|i| ((i * 31) % 17) as f32 * 0.1 - 0.8).collect();
    let hidden: Vec<f32> = (0..4 * SIZE).map(|i| ((i * 13) % 7) as f32 * 0.2 - 0.6).collect();
    let hidden = Matrix::new(&hidden, SIZE).expect("rows");
    let ids: Vec<i64> = (0..4).map(|row| (row * 5 % (VOCAB * ranks)) as i64).collect();
    let gradient = |loss: &mut PreferenceLoss<Cpu>, weight: &[f32]| -> Vec<f32> {
        let head = Head::new(Matrix::new(weight, SIZE).expect("rows")).expect("a vocabulary");
        let step =
            loss.forward_linear(&hidden, &head, &ids, &batch, &Reference::None, &rewards(0, 4)).expect("all fit");
        let mut gradient = vec![0.0_f32; 4 * SIZE];
        let to = MatrixMut::new(&mut gradient, SIZE).expect("rows");
        loss.backward_linear(&step, &hidden, &head, LinearGradients::<f32, f32>::new(Some(to), None)).expect("all fit");
        gradient
    };
    let found = gradient(&mut divided, &weight[VOCAB * rank * SIZE..][..VOCAB * SIZE]);
    let words: Vec<u32> = found.iter().map(|number| number.to_bits()).collect();
    let of_all = line.exchange(&words).expect("all are there").expect("words");
    assert!(of_all.chunks(words.len()).all(|of_rank| *of_rank == words), "the same bits on every process");
    // Sums of V terms p·W in f32, in any order; |g| is at most 2·β_π·K, and |W| at most 0.8.
    let bound = (VOCAB * ranks + 64) as f32 * f32::EPSILON * 2.0 * 0.8 * 2.0;
    for (found, expected) in found.iter().zip(gradient(&mut loss(), &weight)) {
        assert!((found - expected).abs() <= bound, "{found} {expected}");
    }
}
