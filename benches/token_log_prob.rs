//! Token log-probs, forward and backward: `cargo bench --bench token_log_prob`.
//!
//! Ids are `token_log_prob/direction/dtype/NxV`. Throughput is in bytes of logits: read once by the forward pass; read
//! once and a gradient written once by the backward pass. `memory/...` reads, copies, or changes in place the same
//! bytes on the same threads, and a table after each group gives every result as a share of that. `_1_thread`: in a
//! pool of one thread. A whole run takes about a minute and a half. Nothing is asserted of times.

#[path = "support/stage.rs"]
mod stage;
mod support;

use criterion::Criterion;
use exo_kernels::{Cpu, Element, LogitOptions};
use half::{bf16, f16};
use rayon::{ThreadPool, ThreadPoolBuilder};

use stage::Stage;
use support::limit::{self, Limit, Line};
use support::{inputs, stopwatch};

/// Which of the variants beside plain forward and backward to time.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    Plain,
    Everything,
}

/// Times the stage in `pool`; every id's direction gets `suffix`.
fn bench<T: Element>(
    criterion: &mut Criterion,
    pool: &ThreadPool,
    suffix: &str,
    (rows, vocab): (usize, usize),
    extent: Extent,
) {
    let (dtype, shape) = (inputs::dtype::<T>(), format!("{rows}x{vocab}"));
    let upstream = (0..rows).map(|row| 0.5 + row as f32 / rows as f32).collect();
    let logits = inputs::logits::<T>(rows, vocab);
    let mut stage = Stage::new(Cpu::default(), logits, vocab, inputs::targets(rows, vocab), upstream);
    let bytes = size_of_val(stage.logits.as_slice());
    stage.forward(true);

    let mut results: Vec<(String, usize, Option<f64>)> = Vec::new();
    let mut group = stopwatch::group(criterion, "token_log_prob");
    let mut time = |direction: &str, bytes: usize, stage: &mut Stage<T>, routine: fn(&mut Stage<T>)| {
        let direction = format!("{direction}{suffix}");
        let id = (direction.as_str(), dtype, shape.as_str());
        let seconds = stopwatch::time(&mut group, pool, id, bytes, || routine(stage));
        results.push((direction, bytes, seconds));
    };
    time("forward", bytes, &mut stage, |stage| stage.forward(false));
    time("backward", 2 * bytes, &mut stage, |stage| stage.backward(false));
    if extent == Extent::Everything {
        time("forward_entropy", bytes, &mut stage, |stage| stage.forward(true));
        time("backward_entropy", 2 * bytes, &mut stage, |stage| stage.backward(true));
        stage.options = stage.options.with_softcap(30.0).expect("a valid softcap");
        time("forward_softcap", bytes, &mut stage, |stage| stage.forward(false));
        time("backward_softcap", 2 * bytes, &mut stage, |stage| stage.backward(false));
        stage.options = LogitOptions::default();
    }
    // Last, since it spoils the logits.
    time("backward_in_place", 2 * bytes, &mut stage, Stage::backward_in_place);
    group.finish();

    let (words, other) = (bytemuck::cast_slice(&stage.logits), bytemuck::cast_slice_mut(&mut stage.grad));
    let limit = Limit::measure(criterion, pool, suffix, (dtype, &shape), words, other);
    let lines: Vec<Line<'_>> = results
        .iter()
        .map(|(name, bytes, seconds)| {
            let (limit, limit_name) = match name.as_str() {
                name if name.starts_with("forward") => (limit.read, "read"),
                name if name.starts_with("backward_in_place") => (limit.change, "change in place"),
                _ => (limit.copy, "copy"),
            };
            Line { name, bytes: *bytes, seconds: *seconds, limit, limit_name }
        })
        .collect();
    limit::print(&format!("token_log_prob, {dtype}, {shape}, threads: {}", pool.current_num_threads()), &lines);
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let criterion = &mut criterion;
    let pool = |threads: usize| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    // 0: as many threads as rayon's global pool would have.
    let (all, one) = (pool(0), pool(1));
    let (long_rows, many_rows) = ((256, 128_256), (1024, 32_000));
    println!("instruction set: {}", Cpu::default().instruction_set().name());
    bench::<f32>(criterion, &all, "", long_rows, Extent::Everything);
    bench::<bf16>(criterion, &all, "", long_rows, Extent::Everything);
    bench::<f32>(criterion, &all, "", many_rows, Extent::Plain);
    bench::<bf16>(criterion, &all, "", many_rows, Extent::Plain);
    bench::<f16>(criterion, &all, "", many_rows, Extent::Plain);
    bench::<f32>(criterion, &one, "_1_thread", long_rows, Extent::Plain);
    bench::<bf16>(criterion, &one, "_1_thread", long_rows, Extent::Plain);
    criterion.final_summary();
}
