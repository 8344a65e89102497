//! The CUDA backend on a GPU, timed by CUDA events: `cargo bench --features cuda --bench cuda`.
//!
//! From logits: for each shape the forward pass, the backward pass out of place and in place, and a device-to-device copy of
//! the logits, in turns, over buffers that together are larger than any second-level cache. GB/s count the logits read and the
//! gradients written; "of copy" is that as a share of what the copy moves per second, read and written. From hidden states:
//! every way to a loss and its gradients, and the bare product hidden · weightᵀ by cuBLAS, in turns; "of products" is the time
//! of the products that a way makes, at the bare one's speed, as a share of its own.
//!
//! Names are `logits/<type>/<N>x<V>` and `linear/bf16/<N>x<H>x<V>`; an argument chooses those that it is part of. All times
//! are medians in milliseconds. They go to the file that `EXO_KERNELS_BENCH_JSON` names, one JSON object a line, each as soon
//! as it is known. A whole run ends within [`LIMIT`] and what is being measured then.
//!
//! Without a GPU it says that it did not run: softcuda has no speed. `--test` runs a tiny shape once, on whatever device
//! there is, and prints no times; so does a call without `--bench`, which is what `cargo bench` adds. `--check` runs nothing: it
//! says which device and driver there are, and whether the driver takes the kernels. `--shapes` prints the names, for
//! `scripts/compare-gpu`.

#[path = "support/device.rs"]
mod device;
#[path = "support/device_linear.rs"]
mod device_linear;

use cudarc::driver::{CudaContext, CudaSlice, DeviceRepr, ValidAsZeroBits};
use device::{Bench, Failure, Run, driver_version, rate};
use device_linear::{DeviceLinear, Product};
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs, cublas_present};
use exo_kernels::{Backend, Dtype, Element, LinearKept, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use serde_json::json;
use softcuda::Installed;
use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

/// For everything.
const LIMIT: Duration = Duration::from_secs(150);
/// For the rounds of one shape.
const OF_SHAPE: Duration = Duration::from_secs(4);
/// Bytes over which the buffers of one measurement are rotated: several times the second-level cache of any GPU.
const ROTATED_BYTES: usize = 512 << 20;

/// Type, N, V. The last one's rows are not aligned to 16 bytes.
const LOGIT_SHAPES: [(Dtype, usize, usize); 10] = [
    (Dtype::Bf16, 8192, 128_256),
    (Dtype::F16, 8192, 128_256),
    (Dtype::F32, 4096, 128_256),
    (Dtype::Bf16, 8192, 32_000),
    (Dtype::F16, 8192, 32_000),
    (Dtype::F32, 4096, 32_000),
    (Dtype::Bf16, 1, 128_256),
    (Dtype::Bf16, 64, 128_256),
    (Dtype::Bf16, 512, 128_256),
    (Dtype::Bf16, 8192, 50_257),
];
/// N, H, V.
const LINEAR_SHAPES: [(usize, usize, usize); 4] =
    [(8192, 4096, 128_256), (2048, 2048, 151_936), (256, 4096, 128_256), (8192, 1024, 32_000)];

fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

fn logits_name(dtype: Dtype, rows: usize, vocab: usize) -> String {
    format!("logits/{}/{rows}x{vocab}", dtype_name(dtype))
}

fn linear_name((rows, size, vocab): (usize, usize, usize)) -> String {
    format!("linear/bf16/{rows}x{size}x{vocab}")
}

/// From logits.
fn logits<T: Element + DeviceRepr + ValidAsZeroBits>(
    bench: &mut Bench,
    rows: usize,
    vocab: usize,
) -> Result<(), Failure> {
    let (name, dtype) = (logits_name(T::DTYPE, rows, vocab), dtype_name(T::DTYPE));
    if !bench.begins(&name) {
        return Ok(());
    }
    let stream = bench.stream();
    let bytes = rows * vocab * size_of::<T>();
    let buffers = if bench.timed { (ROTATED_BYTES / bytes).clamp(1, 64) + 1 } else { 1 };
    let logits: Vec<CudaSlice<T>> =
        (0..buffers).map(|_| bench.numbers(rows * vocab, 10.0)).collect::<Result<_, _>>()?;
    // Each is borrowed by one run at a time.
    let logits: Vec<_> = logits.into_iter().map(RefCell::new).collect();
    let gradients = RefCell::new(stream.alloc_zeros::<T>(rows * vocab)?);
    let ids: Vec<i64> = (0..rows).map(|row| ((row * 31) % vocab) as i64).collect();
    let targets = stream.clone_htod(&ids)?;
    let mut log_probs = stream.alloc_zeros::<f32>(rows)?;
    let states = RefCell::new(stream.alloc_zeros::<SoftmaxState>(rows)?);
    let upstream = stream.clone_htod(&vec![0.25_f32; rows])?;
    let (cuda, options) = (bench.cuda.clone(), LogitOptions::default());

    let mut runs: [Run<'_>; 3] = [
        Box::new(|index| {
            let (logits, mut states) = (logits[index % buffers].borrow(), states.borrow_mut());
            let view = Matrix::new(logits.as_view().into(), vocab)?;
            let outputs = TokenLogProbs {
                log_probs: log_probs.as_view_mut().into(),
                states: states.as_view_mut().into(),
                entropies: None,
            };
            Ok(cuda.token_log_probs(&view, &targets, &options, outputs)?)
        }),
        Box::new(|index| {
            let (logits, states, mut out) = (logits[index % buffers].borrow(), states.borrow(), gradients.borrow_mut());
            let view = Matrix::new(logits.as_view().into(), vocab)?;
            let saved = SavedRows { states: states.as_view().into(), entropies: None };
            let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
            let out = MatrixMut::new(out.as_view_mut().into(), vocab)?;
            Ok(cuda.token_log_probs_backward(&view, &targets, &options, &saved, &upstream, out)?)
        }),
        Box::new(|index| Ok(stream.memcpy_dtod(&*logits[index % buffers].borrow(), &mut *gradients.borrow_mut())?)),
    ];
    let mut times = bench.time(OF_SHAPE, &mut runs)?;
    // On its own, since it puts gradients where the logits were.
    let mut in_place: [Run<'_>; 1] = [Box::new(|index| {
        let (mut logits, states) = (logits[index % buffers].borrow_mut(), states.borrow());
        let saved = SavedRows { states: states.as_view().into(), entropies: None };
        let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
        let view = MatrixMut::new(logits.as_view_mut().into(), vocab)?;
        Ok(cuda.token_log_probs_backward_in_place(view, &targets, &options, &saved, &upstream)?)
    })];
    times.extend(bench.time(OF_SHAPE / 4, &mut in_place)?);

    let copied = times[2].map(|copy| rate(2 * bytes, copy));
    let moved = [("forward", bytes), ("backward", 2 * bytes), ("copy", 2 * bytes), ("backward in place", 2 * bytes)];
    for ((pass, moved), milliseconds) in moved.into_iter().zip(times) {
        let rate = milliseconds.map(|milliseconds| rate(moved, milliseconds));
        let share = rate.zip(copied).map(|(rate, copied)| rate / copied);
        if let (Some(milliseconds), Some(rate), Some(share)) = (milliseconds, rate, share) {
            println!("{name:<28} {pass:<18} {milliseconds:>9.4} ms {rate:>6.0} GB/s {:>5.1} % of copy", 100.0 * share);
        }
        bench.write(&json!({
            "name": name, "rows": rows, "vocabulary": vocab, "dtype": dtype, "pass": pass, "milliseconds": milliseconds,
            "gigabytes_per_second": rate, "share_of_copy": share,
        }))?;
    }
    Ok(())
}

/// From hidden states.
fn linear(bench: &mut Bench, shape: (usize, usize, usize)) -> Result<(), Failure> {
    let ((rows, size, vocab), name) = (shape, linear_name(shape));
    if !bench.begins(&name) {
        return Ok(());
    }
    let stage = RefCell::new(DeviceLinear::new(bench, shape)?);
    let operations = stage.borrow().operations();
    let mut product = Product::new(bench, shape)?;
    let both = |kept: LinearKept, trains_head: bool| -> Result<(), Failure> {
        let mut stage = stage.borrow_mut();
        stage.forward(kept)?;
        stage.backward(kept, trains_head)
    };
    // With the products that each makes.
    let ways: Vec<(&str, usize, Run<'_>)> = vec![
        ("product", 1, Box::new(|_| product.run())),
        ("forward", 1, Box::new(|_| stage.borrow_mut().forward(LinearKept::Nothing))),
        ("forward + backward, frozen head", 3, Box::new(|_| both(LinearKept::Nothing, false))),
        ("forward + backward", 4, Box::new(|_| both(LinearKept::Nothing, true))),
        ("the same, unit gradients kept, frozen head", 2, Box::new(|_| both(LinearKept::UnitGradients, false))),
        ("the same, logit gradients kept", 3, Box::new(|_| both(LinearKept::LogitGradients, true))),
        ("row loss, frozen head", 2, Box::new(|_| stage.borrow_mut().row_loss(false))),
        ("row loss", 3, Box::new(|_| stage.borrow_mut().row_loss(true))),
    ];
    let mut described = Vec::new();
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (pass, products, run) in ways {
        described.push((pass, products));
        runs.push(run);
    }
    let times = bench.time(2 * OF_SHAPE, &mut runs)?;
    drop(runs);
    let bare = times[0];
    for ((pass, products), milliseconds) in described.into_iter().zip(times) {
        let share = milliseconds.zip(bare).map(|(milliseconds, bare)| products as f64 * bare / milliseconds);
        let speed = milliseconds.map(|milliseconds| (products * operations) as f64 / milliseconds * 1e-9);
        if let (Some(milliseconds), Some(share), Some(speed)) = (milliseconds, share, speed) {
            let share = 100.0 * share;
            println!(
                "{name:<28} {pass:<44} {milliseconds:>9.3} ms {speed:>6.1} Tflop/s {share:>5.1} % of {products} products"
            );
        }
        bench.write(&json!({
            "name": name, "rows": rows, "hidden_size": size, "vocabulary": vocab, "dtype": "bf16", "pass": pass,
            "milliseconds": milliseconds, "products": products, "teraflops": speed, "share_of_products": share,
        }))?;
    }
    Ok(())
}

/// Which device and driver there are, and whether the driver takes the kernels.
fn check() -> Result<(), Failure> {
    if matches!(softcuda::install()?, Installed::Software(_)) {
        return Err("there is no GPU here, or no driver (libcuda.so.1)".into());
    }
    let context = CudaContext::new(0)?;
    let ((major, minor), driver) = (context.compute_capability()?, driver_version());
    println!("{}, compute capability {major}.{minor}, driver for CUDA {}.{}", context.name()?, driver.0, driver.1);
    Cuda::new(&context.default_stream())?;
    println!("the driver takes the kernels; cuBLAS: {}", if cublas_present() { "found" } else { "NOT FOUND" });
    Ok(())
}

fn run() -> Result<bool, Failure> {
    let is_given = |option: &str| std::env::args().any(|argument| argument == option);
    if is_given("--check") {
        return check().map(|()| true);
    }
    if is_given("--shapes") {
        let of_logits = LOGIT_SHAPES.into_iter().map(|(dtype, rows, vocab)| logits_name(dtype, rows, vocab));
        of_logits.chain(LINEAR_SHAPES.map(linear_name)).for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let Some(mut bench) = Bench::open("cuda", LIMIT)? else { return Ok(true) };
    let bench = &mut bench;
    if !bench.timed {
        logits::<bf16>(bench, 3, 1000)?;
        linear(bench, (5, 16, 600))?;
        return Ok(true);
    }
    // One that fails, of a device with little memory perhaps, does not take the others along.
    let mut failed = 0;
    let mut note = |name: String, result: Result<(), Failure>| {
        if let Err(error) = result {
            println!("FAILED: {name}: {error}");
            failed += 1;
        }
    };
    for (dtype, rows, vocab) in LOGIT_SHAPES {
        let result = match dtype {
            Dtype::F32 => logits::<f32>(bench, rows, vocab),
            Dtype::F16 => logits::<f16>(bench, rows, vocab),
            Dtype::Bf16 => logits::<bf16>(bench, rows, vocab),
        };
        note(logits_name(dtype, rows, vocab), result);
    }
    if cublas_present() {
        for shape in LINEAR_SHAPES {
            note(linear_name(shape), linear(bench, shape));
        }
    } else {
        println!("NOT RUN: from hidden states: cuBLAS (libcublas.so) was not found");
    }
    Ok(failed == 0)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
