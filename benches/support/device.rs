//! A CUDA device, timed by events: several runs in turns for a limited time, next to each other in the same rounds, and results
//! that are in their file as soon as they are known.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, sys};
use exo_kernels::Element;
use exo_kernels::cuda::Cuda;
use serde_json::{Value, json};
use softcuda::Installed;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type Failure = Box<dyn std::error::Error>;

/// The file for the results: JSON, one object a line. What it had is lost.
pub(crate) const RESULTS: &str = "EXO_KERNELS_BENCH_JSON";

/// Rounds at most, and at least, whatever the time.
const ROUNDS: usize = 21;
const FEWEST_ROUNDS: usize = 3;
/// Milliseconds between two events: so many launches that the events' own time does not count. One launch that takes longer is
/// timed alone.
const BETWEEN_EVENTS: f64 = 0.5;

/// A run of one launch or several. It is given a number that counts up: for buffers in turn.
pub(crate) type Run<'a> = Box<dyn FnMut(usize) -> Result<(), Failure> + 'a>;

/// What a command line asks of a bench.
pub(crate) struct Asked {
    /// Tiny shapes once, on whatever device there is: `--test`, or no `--bench`, which `cargo bench` adds.
    pub(crate) test: bool,
    /// Only what has this in its name.
    filter: Option<String>,
}

impl Asked {
    pub(crate) fn read() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let is_given = |option: &str| arguments.iter().any(|argument| argument == option);
        let filter = arguments.iter().find(|argument| !argument.starts_with('-')).cloned();
        Self { test: is_given("--test") || !is_given("--bench"), filter }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// A device, and the file of its results.
pub(crate) struct Bench {
    pub(crate) cuda: Cuda,
    pub(crate) asked: Asked,
    /// No time is measured on the software device, or under `--test`.
    pub(crate) timed: bool,
    results: Option<File>,
    ends: Instant,
}

impl Bench {
    /// The first device; `None`, said, where there is no GPU and the command line wants times. `limit`: for the whole bench;
    /// no measurement begins later.
    pub(crate) fn open(name: &str, limit: Duration) -> Result<Option<Self>, Failure> {
        let asked = Asked::read();
        let software = matches!(softcuda::install()?, Installed::Software(_));
        if software && !asked.test {
            println!("NOT RUN: there is no GPU here, and the software device has no speed");
            return Ok(None);
        }
        softcublas::install()?;
        let context = CudaContext::new(0)?;
        let cuda = Cuda::new(&context.new_stream()?)?;
        let results = std::env::var_os(RESULTS).map(File::create).transpose()?;
        let timed = !asked.test;
        if software {
            println!("softcuda, a device in software: everything runs, and no time means anything");
        }
        let mut bench = Self { cuda, asked, timed, results, ends: Instant::now() + limit };
        let (major, minor) = context.compute_capability()?;
        let driver = driver_version();
        println!("{}, compute capability {major}.{minor}, driver for CUDA {}.{}", context.name()?, driver.0, driver.1);
        bench.write(&json!({
            "bench": name, "device": context.name()?, "compute_capability": format!("{major}.{minor}"),
            "driver_cuda": format!("{}.{}", driver.0, driver.1), "timed": timed,
            "crate": env!("CARGO_PKG_VERSION"),
        }))?;
        Ok(Some(bench))
    }

    pub(crate) fn stream(&self) -> Arc<CudaStream> {
        self.cuda.stream().clone()
    }

    /// A line of the file of results.
    pub(crate) fn write(&mut self, line: &Value) -> Result<(), Failure> {
        if let Some(file) = &mut self.results {
            writeln!(file, "{line}")?;
            file.flush()?;
        }
        Ok(())
    }

    /// Whether there is time for `name`, which the command line wants; says so if there is none.
    pub(crate) fn begins(&self, name: &str) -> bool {
        let in_time = Instant::now() < self.ends;
        if self.asked.wants(name) && !in_time {
            println!("NOT RUN: {name}: the time for this bench is over");
        }
        self.asked.wants(name) && in_time
    }

    /// Milliseconds of each run, the median of rounds in which all take turns, for about `limit`. Where times mean nothing each
    /// runs once, and has none.
    pub(crate) fn time(&self, limit: Duration, runs: &mut [Run<'_>]) -> Result<Vec<Option<f64>>, Failure> {
        let stream = self.cuda.stream();
        let mut counted = 0;
        if !self.timed {
            for run in &mut *runs {
                run(0)?;
            }
            stream.synchronize()?;
            return Ok(vec![None; runs.len()]);
        }
        let mut between_events = |run: &mut Run<'_>, launches: usize| -> Result<f64, Failure> {
            let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            for _ in 0..launches {
                run(counted)?;
                counted += 1;
            }
            let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            Ok(f64::from(start.elapsed_ms(&end)?) / launches as f64)
        };
        let ends = Instant::now() + limit;
        let mut launches = Vec::new();
        for run in &mut *runs {
            // The first allocates and loads.
            between_events(run, 1)?;
            let once = between_events(run, 2)?;
            launches.push(((BETWEEN_EVENTS / once.max(1e-4)).ceil() as usize).clamp(1, 200));
        }
        let mut samples = vec![Vec::new(); runs.len()];
        for round in 0..ROUNDS {
            if round >= FEWEST_ROUNDS && Instant::now() >= ends {
                break;
            }
            for (index, run) in runs.iter_mut().enumerate() {
                samples[index].push(between_events(run, launches[index])?);
            }
        }
        let median = |mut samples: Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            samples.get(samples.len() / 2).copied()
        };
        Ok(samples.into_iter().map(median).collect())
    }

    /// Numbers on the device that look random, made there out of a few of the host's.
    pub(crate) fn numbers<T: Element + DeviceRepr>(&self, count: usize, size: f32) -> Result<CudaSlice<T>, Failure> {
        const BLOCK: usize = 1 << 20;
        let stream = self.stream();
        let block: Vec<T> = (0..count.clamp(1, BLOCK))
            .map(|index| {
                let mixed = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                T::from_f32(((mixed >> 40) as f32 / (1_u32 << 23) as f32 - 1.0) * size)
            })
            .collect();
        let block = stream.clone_htod(&block)?;
        // SAFETY: all of it is written below before it is read.
        let mut numbers = unsafe { stream.alloc::<T>(count.max(1)) }?;
        for begin in (0..count).step_by(BLOCK) {
            let end = count.min(begin + BLOCK);
            stream.memcpy_dtod(&block.slice(..end - begin), &mut numbers.slice_mut(begin..end))?;
        }
        Ok(numbers)
    }
}

/// The version of CUDA that the driver is for.
pub(crate) fn driver_version() -> (i32, i32) {
    let mut version = 0;
    // SAFETY: a place for the answer.
    let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    (version / 1000, version % 1000 / 10)
}

/// GB/s.
pub(crate) fn rate(bytes: usize, milliseconds: f64) -> f64 {
    bytes as f64 / milliseconds * 1e-6
}
