//! The whole loss, and its K-sample stage alone: `cargo bench --bench preference_loss`.
//!
//! - `preference_loss/direction/dtype/NxV`: EXO over groups of four completions of 16 rows each. Throughput is in bytes
//!   of logits: read once by the forward pass; read once and a gradient written once by the backward pass. `memory/...`
//!   reads and copies the same bytes on the same threads, and a table gives every result as a share of that.
//! - `objective/name/f64/GxK`: log-ratios and rewards of G groups of K to losses and coefficients, on one thread.
//!   Throughput is in bytes read and written: a few dozen a sequence.
//!
//! A whole run takes less than a minute. Nothing is asserted of times.

mod support;

use criterion::Criterion;
use exo_kernels::{
    Backend, Batch, Betas, Cpu, Element, GroupStatistics, Matrix, MatrixMut, Objective, ObjectiveOutputs,
    PreferenceLoss, Reduction, Reference, Rewards, Step,
};
use half::bf16;
use rayon::{ThreadPool, ThreadPoolBuilder};

use support::limit::{self, Limit, Line};
use support::{inputs, stopwatch};

const BETAS: Betas = Betas { policy: 0.5, reward: 0.5 };

/// Completions of a prompt.
const K: usize = 4;
/// Rows of a completion.
const LENGTH: usize = 16;

fn rewards(sequences: usize) -> Vec<f64> {
    (0..sequences).map(|i| (i * 37 % 101) as f64 / 50.0 - 1.0).collect()
}

fn loss<T: Element>(criterion: &mut Criterion, pool: &ThreadPool, (rows, vocab): (usize, usize)) {
    let (dtype, shape) = (inputs::dtype::<T>(), format!("{rows}x{vocab}"));
    let mut logits = inputs::logits::<T>(rows, vocab);
    let mut grad = vec![T::from_f32(0.0); rows * vocab];
    let bytes = size_of_val(logits.as_slice());
    let sequences = rows / LENGTH;
    let targets = inputs::targets(rows, vocab);
    let batch = Batch::padded(sequences, LENGTH, K).expect("whole groups");
    let reference = vec![-9.0f32; rows];
    let rewards = rewards(sequences);
    let mut loss = PreferenceLoss::new(Cpu::default(), Objective::exo(BETAS).expect("valid betas"));

    let view = Matrix::new(&logits, vocab).expect("whole rows");
    let forward = |loss: &mut PreferenceLoss<Cpu>| {
        loss.forward(&view, &targets, &batch, &Reference::PerToken(&reference), &rewards).expect("inputs that fit")
    };
    let mut backward = |loss: &mut PreferenceLoss<Cpu>, step: &Step| {
        loss.backward(step, &view, MatrixMut::new(&mut grad, vocab).expect("whole rows"))
            .expect("after a forward pass");
    };
    forward(&mut loss);

    let mut group = stopwatch::group(criterion, "preference_loss");
    let forward_seconds =
        stopwatch::time(&mut group, pool, ("forward", dtype, &shape), bytes, || _ = forward(&mut loss));
    let step = forward(&mut loss);
    let backward_seconds =
        stopwatch::time(&mut group, pool, ("backward", dtype, &shape), 2 * bytes, || backward(&mut loss, &step));
    let both_seconds = stopwatch::time(&mut group, pool, ("forward_and_backward", dtype, &shape), 3 * bytes, || {
        let step = forward(&mut loss);
        backward(&mut loss, &step);
    });
    // Last, since each pass takes the gradient of the one before for its logits.
    let name = ("forward_and_backward_in_place", dtype, shape.as_str());
    let in_place_seconds = stopwatch::time(&mut group, pool, name, 3 * bytes, || {
        let view = Matrix::new(&logits, vocab).expect("whole rows");
        let step = loss.forward(&view, &targets, &batch, &Reference::PerToken(&reference), &rewards);
        let logits = MatrixMut::new(&mut logits, vocab).expect("whole rows");
        loss.backward_in_place(step.expect("inputs that fit"), logits).expect("after a forward pass");
    });
    group.finish();

    let (words, other) = (bytemuck::cast_slice(&logits), bytemuck::cast_slice_mut(&mut grad));
    let limit = Limit::measure(criterion, pool, "", (dtype, &shape), words, other);
    let both_limit = limit.read.zip(limit.copy).map(|(read, copy)| read + copy);
    let in_place_limit = limit.read.zip(limit.change).map(|(read, change)| read + change);
    let line = |name, bytes, seconds, limit, limit_name| Line { name, bytes, seconds, limit, limit_name };
    limit::print(
        &format!("preference_loss, {dtype}, {shape}, threads: {}", pool.current_num_threads()),
        &[
            line("forward", bytes, forward_seconds, limit.read, "read"),
            line("backward", 2 * bytes, backward_seconds, limit.copy, "copy"),
            line("forward_and_backward", 3 * bytes, both_seconds, both_limit, "read and a copy"),
            line(
                "forward_and_backward_in_place",
                3 * bytes,
                in_place_seconds,
                in_place_limit,
                "read and a change in place",
            ),
        ],
    );
}

fn objective(criterion: &mut Criterion, pool: &ThreadPool, name: &str, objective: Objective, groups: usize, k: usize) {
    let sequences = groups * k;
    let batch = Batch::padded(sequences, 1, k).expect("whole groups");
    let log_ratios: Vec<f64> = (0..sequences).map(|i| (i * 61 % 127) as f64 / 40.0 - 1.5).collect();
    let rewards = rewards(sequences);
    let (mut group_losses, mut coefficients) = (vec![0.0; groups], vec![0.0; sequences]);
    let mut statistics = vec![GroupStatistics::default(); groups];
    let bytes = size_of_val(log_ratios.as_slice())
        + size_of_val(rewards.as_slice())
        + size_of_val(group_losses.as_slice())
        + size_of_val(coefficients.as_slice())
        + size_of_val(statistics.as_slice());
    let mut group = stopwatch::group(criterion, "objective");
    stopwatch::time(&mut group, pool, (name, "f64", &format!("{groups}x{k}")), bytes, || {
        Cpu::default()
            .objective(
                &objective,
                &log_ratios.as_slice(),
                &batch,
                &Rewards::from(&rewards),
                Reduction::Mean,
                ObjectiveOutputs {
                    group_losses: &mut group_losses,
                    coefficients: &mut coefficients,
                    statistics: &mut statistics,
                    row_weights: None,
                },
            )
            .expect("inputs that fit");
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let criterion = &mut criterion;
    // 0: as many threads as rayon's global pool would have.
    let pool = ThreadPoolBuilder::new().num_threads(0).build().expect("threads");
    println!("instruction set: {}", Cpu::default().instruction_set().name());
    for shape in [(256, 128_256), (1024, 32_000)] {
        loss::<f32>(criterion, &pool, shape);
        loss::<bf16>(criterion, &pool, shape);
    }
    let exo = Objective::exo(BETAS).expect("valid betas");
    for groups in [1, 64, 4096] {
        for k in [2, 8, 64] {
            objective(criterion, &pool, "exo", exo, groups, k);
        }
    }
    for (name, other) in [
        ("exo_pref", Objective::exo_pref(BETAS.policy, 1e-3)),
        ("dpo_rw", Objective::dpo_rw(BETAS)),
        ("alpha", Objective::alpha(0.5, BETAS)),
        ("jensen_shannon", Objective::jensen_shannon(BETAS)),
    ] {
        objective(criterion, &pool, name, other.expect("valid parameters"), 4096, 8);
    }
    criterion.final_summary();
}
