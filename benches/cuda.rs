//! The CUDA backend on a GPU, timed by CUDA events: `cargo bench --features cuda --bench cuda [-- --json FILE]`.
//!
//! For each shape the forward pass, the backward pass out of place and in place, and a device-to-device copy of the
//! logits, in the same run: medians of 30, over buffers that together are larger than any second-level cache. GB/s count
//! the logits read and the gradients written; "of copy" is that as a share of what the copy moves per second, read and
//! written. Without a GPU it says that it did not run: softcuda has no speed. `--test` runs a tiny shape once, on
//! whatever device there is, and prints no times.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaContext, CudaSlice, DeviceRepr, ValidAsZeroBits};
use exo_kernels::cuda::{Cuda, Logits, LogitsMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use serde_json::json;
use softcuda::Installed;
use std::process::ExitCode;

const REPETITIONS: usize = 30;
const WARM_UP: usize = 3;
/// Bytes over which the buffers of one measurement are rotated: several times the second-level cache of any GPU.
const ROTATED_BYTES: usize = 512 << 20;

type Failure = Box<dyn std::error::Error>;

struct Bench {
    cuda: Cuda,
    timed: bool,
    results: Vec<serde_json::Value>,
}

impl Bench {
    /// Median milliseconds of a launch, over the buffers in turn.
    fn time(&self, buffers: usize, mut run: impl FnMut(usize) -> Result<(), Failure>) -> Result<f64, Failure> {
        let stream = self.cuda.stream();
        let mut times = Vec::new();
        let repetitions = if self.timed { WARM_UP + REPETITIONS } else { 1 };
        for repetition in 0..repetitions {
            let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            run(repetition % buffers)?;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            let milliseconds = f64::from(start.elapsed_ms(&end)?);
            if repetition >= WARM_UP || !self.timed {
                times.push(milliseconds);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
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

        let forward = self.time(buffers, |buffer| {
            let view = Logits::new(logits[buffer].as_view(), vocab)?;
            let mut outputs =
                TokenLogProbs { log_probs: log_probs.as_view_mut(), states: states.as_view_mut(), entropies: None };
            Ok(cuda.token_log_probs(&view, &targets.as_view(), &options, &mut outputs)?)
        })?;
        let backward = self.time(buffers, |buffer| {
            let view = Logits::new(logits[buffer].as_view(), vocab)?;
            let saved = SavedRows { states: states.as_view(), entropies: None };
            let upstream = RowGradients { log_probs: upstream.as_view(), entropies: None };
            let mut out = LogitsMut::new(gradients.as_view_mut(), vocab)?;
            Ok(cuda.token_log_probs_backward(&view, &targets.as_view(), &options, &saved, &upstream, &mut out)?)
        })?;
        let copy = self.time(buffers, |buffer| Ok(stream.memcpy_dtod(&logits[buffer], &mut gradients)?))?;
        // Last: it puts gradients where the logits were.
        let in_place = self.time(buffers, |buffer| {
            let saved = SavedRows { states: states.as_view(), entropies: None };
            let upstream = RowGradients { log_probs: upstream.as_view(), entropies: None };
            let mut view = LogitsMut::new(logits[buffer].as_view_mut(), vocab)?;
            Ok(cuda.token_log_probs_backward_in_place(&mut view, &targets.as_view(), &options, &saved, &upstream)?)
        })?;

        let rate = |bytes: usize, milliseconds: f64| bytes as f64 / milliseconds * 1e-6;
        let limit = rate(2 * bytes, copy);
        for (pass, moved, milliseconds) in [
            ("forward", bytes, forward),
            ("backward", 2 * bytes, backward),
            ("backward in place", 2 * bytes, in_place),
            ("copy", 2 * bytes, copy),
        ] {
            let dtype = format!("{:?}", T::DTYPE).to_lowercase();
            if self.timed {
                let (rate, share) = (rate(moved, milliseconds), rate(moved, milliseconds) / limit);
                println!(
                    "{rows:>6} x {vocab:<7} {dtype:<5} {pass:<18} {milliseconds:>9.4} ms {rate:>8.0} GB/s {:>5.1} % of copy",
                    100.0 * share
                );
                self.results.push(json!({
                    "rows": rows, "vocabulary": vocab, "dtype": dtype, "pass": pass, "milliseconds": milliseconds,
                    "gigabytes_per_second": rate, "share_of_copy": share,
                }));
            }
        }
        Ok(())
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let test = arguments.iter().any(|argument| argument == "--test");
    let installed = softcuda::install()?;
    if !test && matches!(installed, Installed::Software(_)) {
        println!("NOT RUN: there is no GPU here, and the software device has no speed");
        return Ok(());
    }
    let context = CudaContext::new(0)?;
    let name = context.name()?;
    let cuda = Cuda::new(&context.new_stream()?)?;
    let mut bench = Bench { cuda, timed: !test, results: Vec::new() };
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
    if let Some(place) = arguments.iter().position(|argument| argument == "--json") {
        let file = arguments.get(place + 1).ok_or("--json needs a file")?;
        let text = serde_json::to_string_pretty(
            &json!({ "device": name, "repetitions": REPETITIONS, "results": bench.results }),
        )?;
        std::fs::write(file, text)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
