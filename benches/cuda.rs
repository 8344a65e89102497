//! The CUDA backend on a GPU, timed by CUDA events: `cargo bench --features cuda --bench cuda`.
//!
//! For each shape the forward pass, the backward pass out of place and in place, and a device-to-device copy of the
//! logits, in the same run, as criterion's benchmarks `cuda/<pass>/<type>/<shape>`: over buffers that together are larger
//! than any second-level cache, one after the other. GB/s count the logits read and the gradients written; "of copy" is
//! that as a share of what the copy moves per second, read and written. Both are of the medians of criterion's samples,
//! and go to the file that `EXO_KERNELS_BENCH_JSON` names, if it does.
//!
//! Without a GPU it says that it did not run: softcuda has no speed. `--test` runs a tiny shape once, on whatever device
//! there is, and prints no times; so does, as with any benchmark of criterion's, a call without `--bench`, which is what
//! `cargo bench` adds.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaContext, CudaSlice, DeviceRepr, ValidAsZeroBits};
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use serde_json::json;
use softcuda::Installed;
use std::process::ExitCode;
use std::time::Duration;

const SAMPLES: usize = 30;
/// Bytes over which the buffers of one measurement are rotated: several times the second-level cache of any GPU.
const ROTATED_BYTES: usize = 512 << 20;
/// The file for the results.
const JSON: &str = "EXO_KERNELS_BENCH_JSON";

type Failure = Box<dyn std::error::Error>;

struct Bench {
    cuda: Cuda,
    criterion: Criterion,
    timed: bool,
    results: Vec<serde_json::Value>,
}

impl Bench {
    /// Median milliseconds of a launch, over the buffers in turn; `None` where the command line's filter leaves the
    /// benchmark out.
    fn time(
        &mut self,
        (pass, dtype, shape): (&str, &str, &str),
        (bytes, buffers): (usize, usize),
        mut run: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Option<f64>, Failure> {
        let stream = self.cuda.stream().clone();
        let mut launches = 0;
        let mut launch = || -> Result<f64, Failure> {
            let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            run(launches % buffers)?;
            launches += 1;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            Ok(f64::from(start.elapsed_ms(&end)?))
        };
        let mut samples: Vec<f64> = Vec::new();
        let mut failure = None;
        let mut group = self.criterion.benchmark_group("cuda");
        group.sampling_mode(SamplingMode::Flat).sample_size(SAMPLES).throughput(Throughput::Bytes(bytes as u64));
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(600));
        group.bench_function(BenchmarkId::new(format!("{pass}/{dtype}"), shape), |bencher| {
            bencher.iter_custom(|calls| match (0..calls).map(|_| launch()).sum::<Result<f64, Failure>>() {
                Ok(milliseconds) => {
                    samples.push(milliseconds / calls as f64);
                    Duration::from_secs_f64(milliseconds * 1e-3)
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    // Criterion wants a time; what is wrong is said below.
                    Duration::from_millis(1)
                }
            });
        });
        group.finish();
        if let Some(failure) = failure {
            return Err(failure);
        }
        // The last ones are the samples; what comes before them is the warm-up.
        let mut samples = samples.split_off(samples.len().saturating_sub(SAMPLES));
        samples.sort_by(f64::total_cmp);
        Ok(samples.get(samples.len() / 2).copied())
    }

    fn shape<T: Element + DeviceRepr + ValidAsZeroBits>(&mut self, rows: usize, vocab: usize) -> Result<(), Failure> {
        let stream = self.cuda.stream().clone();
        let bytes = rows * vocab * size_of::<T>();
        let buffers = if self.timed { (ROTATED_BYTES / bytes).clamp(1, 64) + 1 } else { 1 };
        let values: Vec<T> = (0..rows * vocab).map(|i| T::from_f32(((i * 7919) % 1013) as f32 * 0.02)).collect();
        let mut logits: Vec<CudaSlice<T>> = Vec::new();
        for _ in 0..buffers {
            logits.push(stream.clone_htod(&values)?);
        }
        let mut gradients = stream.alloc_zeros::<T>(rows * vocab)?;
        let ids: Vec<i64> = (0..rows).map(|row| ((row * 31) % vocab) as i64).collect();
        let targets = stream.clone_htod(&ids)?;
        let mut log_probs = stream.alloc_zeros::<f32>(rows)?;
        let mut states = stream.alloc_zeros::<SoftmaxState>(rows)?;
        let upstream = stream.clone_htod(&vec![0.25_f32; rows])?;
        let (cuda, options) = (self.cuda.clone(), LogitOptions::default());
        let dtype = format!("{:?}", T::DTYPE).to_lowercase();
        let shape = format!("{rows}x{vocab}");
        let id = |pass| (pass, dtype.as_str(), shape.as_str());

        let forward = self.time(id("forward"), (bytes, buffers), |buffer| {
            let view = Matrix::new(logits[buffer].as_view().into(), vocab)?;
            let outputs = TokenLogProbs {
                log_probs: log_probs.as_view_mut().into(),
                states: states.as_view_mut().into(),
                entropies: None,
            };
            Ok(cuda.token_log_probs(&view, &targets, &options, outputs)?)
        })?;
        let backward = self.time(id("backward"), (2 * bytes, buffers), |buffer| {
            let view = Matrix::new(logits[buffer].as_view().into(), vocab)?;
            let saved = SavedRows { states: states.as_view().into(), entropies: None };
            let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
            let out = MatrixMut::new(gradients.as_view_mut().into(), vocab)?;
            Ok(cuda.token_log_probs_backward(&view, &targets, &options, &saved, &upstream, out)?)
        })?;
        let copy = self.time(id("copy"), (2 * bytes, buffers), |buffer| {
            Ok(stream.memcpy_dtod(&logits[buffer], &mut gradients)?)
        })?;
        // Last: it puts gradients where the logits were.
        let in_place = self.time(id("backward_in_place"), (2 * bytes, buffers), |buffer| {
            let saved = SavedRows { states: states.as_view().into(), entropies: None };
            let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
            let view = MatrixMut::new(logits[buffer].as_view_mut().into(), vocab)?;
            Ok(cuda.token_log_probs_backward_in_place(view, &targets, &options, &saved, &upstream)?)
        })?;

        if !self.timed {
            return Ok(());
        }
        let rate = |bytes: usize, milliseconds: f64| bytes as f64 / milliseconds * 1e-6;
        let limit = copy.map(|copy| rate(2 * bytes, copy));
        for (pass, moved, milliseconds) in [
            ("forward", bytes, forward),
            ("backward", 2 * bytes, backward),
            ("backward in place", 2 * bytes, in_place),
            ("copy", 2 * bytes, copy),
        ] {
            let Some(milliseconds) = milliseconds else { continue };
            let rate = rate(moved, milliseconds);
            let share = limit.map(|limit| rate / limit);
            let of_copy = share.map_or(String::new(), |share| format!("{:>5.1} % of copy", 100.0 * share));
            println!("{rows:>6} x {vocab:<7} {dtype:<5} {pass:<18} {milliseconds:>9.4} ms {rate:>8.0} GB/s {of_copy}");
            self.results.push(json!({
                "rows": rows, "vocabulary": vocab, "dtype": dtype, "pass": pass, "milliseconds": milliseconds,
                "gigabytes_per_second": rate, "share_of_copy": share,
            }));
        }
        Ok(())
    }
}

fn run() -> Result<(), Failure> {
    let is_given = |option: &str| std::env::args().any(|argument| argument == option);
    // As criterion takes its command line.
    let test = is_given("--test") || !is_given("--bench");
    let installed = softcuda::install()?;
    if !test && matches!(installed, Installed::Software(_)) {
        println!("NOT RUN: there is no GPU here, and the software device has no speed");
        return Ok(());
    }
    let context = CudaContext::new(0)?;
    let name = context.name()?;
    let cuda = Cuda::new(&context.new_stream()?)?;
    let criterion = Criterion::default().configure_from_args();
    let mut bench = Bench { cuda, criterion, timed: !test, results: Vec::new() };
    if test {
        return bench.shape::<bf16>(3, 1000);
    }
    println!("{name}");
    for vocab in [128_256, 32_000] {
        bench.shape::<bf16>(8192, vocab)?;
        bench.shape::<f16>(8192, vocab)?;
        bench.shape::<f32>(4096, vocab)?;
    }
    for rows in [1, 64, 512] {
        bench.shape::<bf16>(rows, 128_256)?;
    }
    // Rows that are not aligned to 16 bytes.
    bench.shape::<bf16>(8192, 50_257)?;
    if let Some(file) = std::env::var_os(JSON) {
        let results = json!({ "device": name, "samples": SAMPLES, "results": bench.results });
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
