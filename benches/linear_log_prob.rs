//! Token log-probs straight from hidden states: `cargo bench --bench linear_log_prob`.
//!
//! Ids are `linear_log_prob/pass/dtype/NxHxV`. A table after each group gives every pass as a multiple of what it must
//! do of bare matrix products: one forward, three backward (the logits again, grad hidden, grad weight), where something is
//! kept between the passes two for both under a frozen head, and four or three under a trained one; the product is `product`, by the same library on the same threads in the same
//! run. A whole run takes about four minutes. Nothing is asserted of times. Under `--test` the shapes are small.

#[path = "support/linear_stage.rs"]
mod linear_stage;
#[path = "support/stopwatch.rs"]
mod stopwatch;

use std::time::Duration;

use criterion::Criterion;
use exo_kernels::{Cpu, Dtype, Element, LinearKept};
use half::bf16;
use linear_stage::{LinearStage, Product};
use rayon::ThreadPool;

/// N, H, V: SmolLM2's head, and one of 2048 × 128256.
const SHAPES: [(usize, usize, usize); 2] = [(512, 576, 49_152), (256, 2048, 128_256)];
const SMALL: [(usize, usize, usize); 1] = [(40, 64, 1500)];

fn bench<T: Element>(criterion: &mut Criterion, pool: &ThreadPool, (rows, size, vocab): (usize, usize, usize)) {
    let dtype = if T::DTYPE == Dtype::F32 { "f32" } else { "bf16" };
    let flops = 2 * rows * size * vocab;
    let mut group = stopwatch::group(criterion, "linear_log_prob");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let mut stage = LinearStage::<T>::random(Cpu::default(), rows, size, vocab);
    stage.forward();
    let (rows, size, vocab) = stage.shape();
    let shape = format!("{rows}x{size}x{vocab}");
    let mut product = Product::new(rows, size, vocab);
    // Bytes stand for operations: criterion's throughput is then the products' speed.
    let mut time = |pass: &str, products: usize, routine: &mut (dyn FnMut() + Send)| {
        stopwatch::time(&mut group, pool, (pass, dtype, &shape), products * flops, routine)
    };
    let bare = time("product", 1, &mut || product.run());
    let forward = time("forward", 1, &mut || stage.forward());
    let backward = time("backward", 3, &mut || stage.backward());
    let row_loss = time("row_loss", 4, &mut || stage.row_loss(true));
    let mut keeping = |pass: &str, kept: LinearKept, is_trained: bool, products: usize| {
        time(pass, products, &mut || {
            stage.forward_keeping(kept);
            stage.backward_from(kept, is_trained);
        })
    };
    let frozen = keeping("frozen", LinearKept::UnitGradients, false, 2);
    let trained = keeping("trained", LinearKept::UnitGradients, true, 4);
    let trained_logits = keeping("trained_logits", LinearKept::LogitGradients, true, 3);
    group.finish();
    let Some(bare) = bare else { return };
    println!("\nlinear_log_prob, {dtype}, {shape}, threads: {}", pool.current_num_threads());
    println!("  {:<20} {:>9.1} ms  {:>6.0} Gflop/s", "product", bare * 1e3, flops as f64 / bare / 1e9);
    let both = forward.zip(backward).map(|(forward, backward)| forward + backward);
    let lines = [
        ("forward", 1, forward),
        ("backward", 3, backward),
        ("forward + backward", 4, both),
        ("row loss", 4, row_loss),
        ("frozen head", 2, frozen),
        ("trained head", 4, trained),
        ("logit gradients kept", 3, trained_logits),
    ];
    for (name, products, seconds) in lines {
        if let Some(seconds) = seconds {
            let multiple = seconds / (products as f64 * bare);
            println!("  {name:<20} {:>9.1} ms  {multiple:.2} of {products} products", seconds * 1e3);
        }
    }
    println!();
}

fn main() {
    let small = std::env::args().any(|argument| argument == "--test");
    let mut criterion = Criterion::default().configure_from_args();
    // 0: as many threads as rayon's global pool would have.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(0).build().expect("threads");
    let shapes: &[_] = if small { &SMALL } else { &SHAPES };
    for shape in shapes {
        bench::<f32>(&mut criterion, &pool, *shape);
        bench::<bf16>(&mut criterion, &pool, *shape);
    }
    criterion.final_summary();
}
