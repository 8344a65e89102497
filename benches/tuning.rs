//! The alternatives to what `src/cuda/tuning.rs` chooses, timed on a GPU: `cargo bench --features tuning --bench tuning`.
//!
//! Of each table and constant every alternative runs in turns with the others and with a device-to-device copy, over several
//! numbers of rows. The best is the one whose times, as multiples of the best at each number of rows, have the least geometric
//! mean; of constants that are also memory, the smallest within [`CLOSE`] of it. It is printed as it stands in `tuning.rs`, to be
//! pasted there: no shape of a launch changes a bit of the results. Of a table with an architecture's own file, that file and the
//! one for every architecture are both tried. All times are medians in milliseconds, and go to the file that
//! `EXO_KERNELS_BENCH_JSON` names, one JSON object a line. A whole run ends within [`LIMIT`] and what is being measured then.
//!
//! `--test` runs every alternative once over tiny shapes, on whatever device there is: what it prints then is no measurement.

#[path = "support/device.rs"]
mod device;
// The bare product is benches/cuda.rs's.
#[path = "support/device_linear.rs"]
#[allow(dead_code)]
mod device_linear;

use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use device::{Bench, Failure, Run, rate};
use device_linear::DeviceLinear;
use exo_kernels::cuda::{LinearChunks, Matrix, RowSharing, SLICE, TokenLogProbs, cublas_present};
use exo_kernels::{Backend, Element, LinearKept, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use serde_json::json;
use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

/// For everything.
const LIMIT: Duration = Duration::from_secs(150);
/// For the rounds of one number of rows, from logits and from hidden states.
const OF_ROWS: Duration = Duration::from_secs(1);
const OF_LINEAR: Duration = Duration::from_secs(4);
/// How much slower than the best a smaller chunk may be.
const CLOSE: f64 = 1.01;

/// Logits over which a measurement is rotated, in bytes: several times the second-level cache of any GPU.
const ROTATED_BYTES: usize = 512 << 20;

/// Slices that a block walks where not all.
const SHARED: [usize; 3] = [1, 2, 4];
/// From how many waves on a block walks all slices.
const WAVES: [usize; 6] = [0, 1, 2, 3, 4, usize::MAX];
/// And before that from how full a last wave on, in hundredths of a multiprocessor's block.
const FILLING_PERCENT: [usize; 8] = [0, 50, 75, 110, 150, 175, 200, usize::MAX];

/// At one number of rows: the milliseconds of one file's kernels with each alternative of [`SHARED`] and with whole rows, and the
/// least of all files.
struct AtRows {
    rows: usize,
    shared: [Option<f64>; SHARED.len()],
    whole: f64,
    best: f64,
}

impl AtRows {
    /// What a rule of the table would take. `device`: its multiprocessors, and the blocks that each holds.
    fn of_rule(&self, rule: &RowSharing, device: (usize, usize)) -> f64 {
        let whole = rule.walks_whole_rows(self.rows, device.0, device.1);
        let place = SHARED.iter().position(|&slices| slices == rule.shared_slices);
        let shared = place.and_then(|place| self.shared[place]);
        if whole { self.whole } else { shared.unwrap_or(self.whole) }
    }
}

/// A rule's geometric mean, as a multiple of the best.
fn of_best(found: &[AtRows], rule: &RowSharing, device: (usize, usize)) -> f64 {
    let logs = found.iter().map(|at| (at.of_rule(rule, device) / at.best).ln());
    (logs.sum::<f64>() / found.len().max(1) as f64).exp()
}

/// The best rule, and its mean.
fn best_rule(found: &[AtRows], device: (usize, usize)) -> (RowSharing, f64) {
    let rules = WAVES.iter().flat_map(|&waves| {
        FILLING_PERCENT.iter().flat_map(move |&filling_percent| {
            SHARED.iter().map(move |&shared_slices| RowSharing { waves, filling_percent, shared_slices })
        })
    });
    let all = rules.map(|rule| (rule, of_best(found, &rule, device)));
    all.min_by(|one, other| one.1.total_cmp(&other.1)).expect("there are rules")
}

/// Rows of `tuning.rs` for logits of one type.
fn token_log_probs<T: Element + DeviceRepr + ValidAsZeroBits>(bench: &mut Bench) -> Result<(), Failure> {
    let (vocabularies, counts): (&[usize], &[usize]) = if bench.timed {
        (&[128_256, 262_144], &[1, 8, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 4096])
    } else {
        (&[SLICE + 1000], &[1, 3])
    };
    let dtype = format!("{:?}", T::DTYPE);
    let files = bench.cuda.token_log_prob_files();
    let mut found: Vec<Vec<AtRows>> = files.iter().map(|_| Vec::new()).collect();
    for &vocab in vocabularies {
        let largest = counts[counts.len() - 1] * vocab;
        let all = if bench.timed { largest.max(ROTATED_BYTES / size_of::<T>()) } else { largest };
        let logits = bench.numbers::<T>(all, 10.0)?;
        for &rows in counts {
            let name = format!("token_log_prob/{}/{rows}x{vocab}", dtype.to_lowercase());
            if bench.begins(&name) {
                let of_files = at_rows(bench, &name, &files, &logits, rows, vocab)?;
                found.iter_mut().zip(of_files).for_each(|(found, at)| found.push(at));
            }
        }
    }
    if found[0].is_empty() {
        return Ok(());
    }
    let device = bench.cuda.resident_blocks();
    let best_of_file = |(index, found): (usize, &Vec<AtRows>)| (files[index], best_rule(found, device));
    let of_files = found.iter().enumerate().map(best_of_file);
    let best = of_files.min_by(|one, other| one.1.1.total_cmp(&other.1.1)).expect("the file for all");
    let (file, (RowSharing { waves, filling_percent, shared_slices }, mean)) = best;
    let (file_now, now) = bench.cuda.row_sharing(T::DTYPE, vocabularies[0]);
    let place = files.iter().position(|&file| file == file_now).expect("a file of this device");
    let of_now = SHARED.contains(&now.shared_slices).then(|| of_best(&found[place], &now, device));
    let (major, minor) = bench.cuda.stream().context().compute_capability()?;
    let [shown_waves, shown_filling] = [waves, filling_percent]
        .map(|number| if number == usize::MAX { "usize::MAX".to_owned() } else { number.to_string() });
    println!("\n        // {}", comment(bench, Some(mean), of_now));
    println!(
        "        Row {{\n            file: {file:?},\n            dtypes: &[Dtype::{dtype}],\n            vocab: 2 * SLICE + 1..=usize::MAX,\n            \
         capability: ({major}, {minor})..=({major}, {minor}),\n            entry: with_sharing({shown_waves}, {shown_filling}, \
         {shared_slices}),\n        }},\n"
    );
    let bounded = |number: usize| (number != usize::MAX).then_some(number);
    bench.write(&json!({
        "best": "token_log_prob", "file": file, "dtype": dtype.to_lowercase(), "waves": bounded(waves),
        "filling_percent": bounded(filling_percent), "shared_slices": shared_slices, "of_best": mean, "now_of_best": of_now,
    }))
}

/// What stands above a row or a constant.
fn comment(bench: &Bench, of_best: Option<f64>, of_now: Option<f64>) -> String {
    if !bench.timed {
        return "NOT MEASURED: not to be pasted.".to_owned();
    }
    let device = bench.cuda.stream().context().name().unwrap_or_default();
    format!("{device}: {} above the best of each number of rows; what was here: {}.", percent(of_best), percent(of_now))
}

fn percent(multiple: Option<f64>) -> String {
    multiple.map_or("not among the alternatives".to_owned(), |multiple| format!("{:.1} %", 100.0 * (multiple - 1.0)))
}

/// Every alternative of every file at one number of rows, and the copy.
fn at_rows<T: Element + DeviceRepr + ValidAsZeroBits>(
    bench: &mut Bench,
    name: &str,
    files: &[&'static str],
    logits: &CudaSlice<T>,
    rows: usize,
    vocab: usize,
) -> Result<Vec<AtRows>, Failure> {
    let (stream, slices) = (bench.stream(), vocab.div_ceil(SLICE));
    let (elements, windows) = (rows * vocab, (logits.len() / (rows * vocab)).max(1));
    let bytes = elements * size_of::<T>();
    let ids: Vec<i64> = (0..rows).map(|row| ((row * 31) % vocab) as i64).collect();
    let targets = stream.clone_htod(&ids)?;
    let log_probs = RefCell::new(stream.alloc_zeros::<f32>(rows)?);
    let states = RefCell::new(stream.alloc_zeros::<SoftmaxState>(rows)?);
    let mut copied = stream.alloc_zeros::<T>(elements)?;
    let options = LogitOptions::default();
    let window = |index: usize| logits.slice(index % windows * elements..(index % windows + 1) * elements);
    let forward = |cuda: exo_kernels::cuda::Cuda| -> Run<'_> {
        let (log_probs, states, targets, options, window) = (&log_probs, &states, &targets, &options, &window);
        Box::new(move |index| {
            let (mut log_probs, mut states) = (log_probs.borrow_mut(), states.borrow_mut());
            let view = Matrix::new(window(index).into(), vocab)?;
            let outputs = TokenLogProbs {
                log_probs: log_probs.as_view_mut().into(),
                states: states.as_view_mut().into(),
                entropies: None,
            };
            Ok(cuda.token_log_probs(&view, targets, options, outputs)?)
        })
    };
    let tried: Vec<usize> = SHARED.into_iter().filter(|&shared| shared < slices).collect();
    // Rules and what they are called; whole rows last.
    let shared = tried.iter().map(|&shared_slices| {
        (RowSharing { shared_slices, ..RowSharing::ALWAYS }, format!("{shared_slices} slices a block"))
    });
    let launches: Vec<_> = shared.chain([(RowSharing::NEVER, "whole rows".to_owned())]).collect();
    let alternatives: Vec<_> =
        files.iter().flat_map(|&file| launches.iter().map(move |launch| (file, launch))).collect();
    let mut runs: Vec<Run<'_>> =
        alternatives.iter().map(|&(file, &(rule, _))| forward(bench.cuda.with_row_sharing(file, rule))).collect();
    runs.push(Box::new(|index| Ok(stream.memcpy_dtod(&window(index), &mut copied)?)));
    let times = bench.time(OF_ROWS, &mut runs)?;
    drop(runs);
    let copy = times[times.len() - 1];
    for ((file, (_, alternative)), milliseconds) in alternatives.iter().zip(&times) {
        let share = milliseconds.zip(copy).map(|(time, copy)| rate(bytes, time) / rate(2 * bytes, copy));
        if let (Some(time), Some(share)) = (milliseconds, share) {
            println!("{name:<36} {file:<20} {alternative:<18} {time:>9.4} ms {:>5.1} % of copy", 100.0 * share);
        }
        bench.write(&json!({
            "name": name, "rows": rows, "vocabulary": vocab, "file": file, "alternative": alternative,
            "milliseconds": milliseconds, "copy_milliseconds": copy, "share_of_copy": share,
        }))?;
    }
    // No measurement: all the same.
    let times: Vec<f64> = times[..alternatives.len()].iter().map(|time| time.unwrap_or(1.0)).collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    let of_file = |times: &[f64]| {
        let of = |slices| tried.iter().position(|&tried| tried == slices).map(|index| times[index]);
        AtRows { rows, shared: SHARED.map(of), whole: times[tried.len()], best }
    };
    Ok(times.chunks(launches.len()).map(of_file).collect())
}

/// A constant of the linear stage, and what is timed of it.
struct Constant {
    name: &'static str,
    /// Its place in `LinearChunks::constants`.
    index: usize,
    alternatives: &'static [usize],
    counts: &'static [usize],
    with: fn(LinearChunks, usize) -> LinearChunks,
    run: fn(&mut DeviceLinear) -> Result<(), Failure>,
}

fn both_passes(stage: &mut DeviceLinear) -> Result<(), Failure> {
    stage.forward(LinearKept::Nothing)?;
    stage.backward(LinearKept::Nothing, true)
}

const CONSTANTS: [Constant; 4] = [
    Constant {
        name: "LINEAR_LOGITS",
        index: 0,
        alternatives: &[1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28],
        counts: &[256, 2048, 8192],
        with: LinearChunks::with_logits,
        run: both_passes,
    },
    Constant {
        name: "LINEAR_ROWS",
        index: 1,
        alternatives: &[2048, 4096, 8192, 16_384],
        counts: &[16_384],
        with: LinearChunks::with_rows,
        run: both_passes,
    },
    Constant {
        name: "LINEAR_ROW_BYTES",
        index: 2,
        alternatives: &[1 << 28, 1 << 29, 1 << 30, 1 << 31],
        counts: &[2048, 8192],
        with: LinearChunks::with_row_bytes,
        run: |stage| stage.row_loss(true),
    },
    Constant {
        name: "LINEAR_INVARIANT_ROWS",
        index: 3,
        alternatives: &[64, 128, 256, 512],
        counts: &[1, 256, 4096],
        with: |chunks, rows| chunks.with_invariant_rows(rows).batch_invariant(),
        run: |stage| stage.forward(LinearKept::Nothing),
    },
];

/// The index of the alternative that is taken: the first within [`CLOSE`] of the least geometric mean. `times`: by number of
/// rows, then by alternative.
fn best_alternative(times: &[Vec<f64>]) -> (usize, Vec<f64>) {
    let alternatives = times.first().map_or(0, Vec::len);
    let mut means = vec![0.0; alternatives];
    for at_rows in times {
        let best = at_rows.iter().copied().fold(f64::INFINITY, f64::min);
        for (mean, time) in means.iter_mut().zip(at_rows) {
            *mean += (time / best).ln() / times.len() as f64;
        }
    }
    let means: Vec<f64> = means.into_iter().map(f64::exp).collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    (means.iter().position(|&mean| mean <= least * CLOSE).unwrap_or(0), means)
}

/// `1 << 26` of a large power of two.
fn shown(number: usize) -> String {
    if number >= 1 << 20 { format!("1 << {}", number.trailing_zeros()) } else { number.to_string() }
}

fn constant(bench: &mut Bench, constant: &Constant) -> Result<(), Failure> {
    let Constant { name, index, alternatives, with, run, .. } = *constant;
    let (size, vocab, counts) = if bench.timed { (2048, 128_256, constant.counts) } else { (16, 600, [5].as_slice()) };
    let usual = LinearChunks::default();
    let mut found = Vec::new();
    for &rows in counts {
        let measured = format!("{}/bf16/{rows}x{size}x{vocab}", name.to_lowercase());
        if !bench.begins(&measured) {
            continue;
        }
        let stage = RefCell::new(DeviceLinear::new(bench, (rows, size, vocab))?);
        let (cuda, stream) = (bench.cuda.clone(), bench.stream());
        let from = bench.numbers::<bf16>(vocab * size, 1.0)?;
        let mut to = stream.alloc_zeros::<bf16>(vocab * size)?;
        let (stage, cuda) = (&stage, &cuda);
        let mut runs: Vec<Run<'_>> = alternatives
            .iter()
            .map(|&number| -> Run<'_> {
                Box::new(move |_| {
                    cuda.set_linear_chunks(with(usual, number));
                    run(&mut stage.borrow_mut())
                })
            })
            .collect();
        runs.push(Box::new(|_| Ok(stream.memcpy_dtod(&from, &mut to)?)));
        let times = bench.time(OF_LINEAR, &mut runs);
        drop(runs);
        bench.cuda.set_linear_chunks(usual);
        let times = times?;
        let copy = times[alternatives.len()];
        for (&number, milliseconds) in alternatives.iter().zip(&times) {
            if let (Some(time), Some(copy)) = (milliseconds, copy) {
                println!(
                    "{measured:<44} {:>8} {time:>9.3} ms {:>6.1} copies of the weight",
                    shown(number),
                    time / copy
                );
            }
            bench.write(&json!({
                "name": measured, "rows": rows, "hidden_size": size, "vocabulary": vocab, "alternative": number,
                "milliseconds": milliseconds, "copy_milliseconds": copy,
            }))?;
        }
        found.push(times[..alternatives.len()].iter().map(|time| time.unwrap_or(1.0)).collect());
    }
    if found.is_empty() {
        return Ok(());
    }
    let (best, means) = best_alternative(&found);
    let now = alternatives.iter().position(|&number| number == usual.constants()[index]);
    let of_now = now.map(|now| means[now]);
    println!("\n// {}", comment(bench, Some(means[best]), of_now));
    println!("pub(super) const {name}: usize = {};\n", shown(alternatives[best]));
    bench.write(&json!({
        "best": name, "alternative": alternatives[best], "of_best": means[best], "now": usual.constants()[index],
        "now_of_best": of_now,
    }))
}

/// What is chosen of times that are made up.
fn check_choices() {
    let at = |rows, one: f64, two: f64, whole: f64| AtRows {
        rows,
        shared: [Some(one), Some(two), None],
        whole,
        best: one.min(two).min(whole),
    };
    // One slice for few rows, whole rows for many: on 10 multiprocessors of 10 blocks from two waves on.
    let device = (10, 10);
    let found = [at(1, 1.0, 2.0, 3.0), at(190, 1.0, 1.5, 2.0), at(200, 2.0, 1.5, 1.0), at(1001, 2.0, 1.5, 1.0)];
    let (rule, mean) = best_rule(&found, device);
    assert_eq!((rule.waves, rule.shared_slices, mean), (2, 1, 1.0));
    // A last wave of 15 rows is too few, one of 20 is not.
    let found = [at(15, 1.0, 2.0, 3.0), at(115, 1.0, 2.0, 3.0), at(20, 2.0, 2.0, 1.0), at(120, 2.0, 2.0, 1.0)];
    let (rule, mean) = best_rule(&found, device);
    assert_eq!((rule.filling_percent, mean), (175, 1.0));
    assert_eq!(best_rule(&[at(1, 3.0, 3.0, 1.0), at(500, 3.0, 3.0, 1.0)], device).0.waves, 0);
    let (rule, _) = best_rule(&[at(1, 3.0, 1.0, 2.0), at(5000, 3.0, 1.0, 2.0)], device);
    assert_eq!((rule.waves, rule.filling_percent, rule.shared_slices), (usize::MAX, usize::MAX, 2));
    // The smallest that is close, over all numbers of rows.
    assert_eq!(best_alternative(&[vec![3.0, 1.005, 1.0], vec![1.5, 1.005, 1.0]]).0, 1);
    assert_eq!(best_alternative(&[vec![1.0, 1.1], vec![2.0, 1.0]]).0, 1);
    assert_eq!([shown(1 << 26), shown(8192)], ["1 << 26", "8192"]);
}

fn run() -> Result<(), Failure> {
    check_choices();
    let Some(mut bench) = Bench::open("tuning", LIMIT)? else { return Ok(()) };
    token_log_probs::<bf16>(&mut bench)?;
    token_log_probs::<f16>(&mut bench)?;
    token_log_probs::<f32>(&mut bench)?;
    if !cublas_present() {
        println!("NOT RUN: the constants of the linear stage: cuBLAS (libcublas.so) was not found");
        return Ok(());
    }
    for of_stage in &CONSTANTS {
        constant(&mut bench, of_stage)?;
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
