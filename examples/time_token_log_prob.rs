//! A stopwatch on a leash: times the token log-prob stage when told to on standard input, so that another program can
//! take turns with it on one machine. `scripts/compare-pytorch` is that program; by hand:
//!
//!     echo forward f32 256 128256 5 | cargo run --release --example time_token_log_prob
//!
//! Options: `--threads T` (default: all cores), `--instructions avx512bf16|avx512|avx2|portable` (default: the widest there is).
//! Commands, one a line; each is answered by one line of JSON:
//!
//! - `PASS DTYPE N V REPEATS` times PASS over N rows of V logits and answers `{"seconds": [...]}`, one number per
//!   repeat. DTYPE is f32, f16 or bf16. PASS is `forward`, `backward`, `forward_backward`, each also with `_entropy` or, under
//!   a softcap of 30, `_softcap`; `backward_in_place`, `forward_backward_in_place`; and over the same bytes a plain `read`, `copy` or `change` (in
//!   place). The buffers are kept until another DTYPE, N or V is asked for.
//! - `check DTYPE N V FOLDER` reads FOLDER/logits (`[N, V]` of DTYPE), targets (`[N]` i64) and upstream (`[N]` f32),
//!   and writes FOLDER/log_probs (`[N]` f32) and gradient (`[N, V]` of DTYPE): raw, in the machine's byte order.
//! - `about` answers with the threads and the instruction set.

#[path = "../benches/support/inputs.rs"]
mod inputs;
#[path = "../benches/support/memory.rs"]
mod memory;
#[path = "../benches/support/raw_numbers.rs"]
mod raw_numbers;
#[path = "../benches/support/stage.rs"]
mod stage;

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use exo_kernels::cpu::InstructionSet;
use exo_kernels::{Cpu, Element, LogitOptions};
use half::{bf16, f16};

use raw_numbers::read;
use stage::Stage;

/// A stage of any logits' type.
trait Timed {
    /// DTYPE, N, V.
    fn is_of(&self, dtype: &str, rows: usize, vocab: usize) -> bool;
    /// Seconds of each repeat.
    fn time(&mut self, pass: &str, repeats: usize) -> Result<Vec<f64>>;
}

impl<T: Element> Timed for Stage<T> {
    fn is_of(&self, dtype: &str, rows: usize, vocab: usize) -> bool {
        inputs::dtype::<T>() == dtype && self.log_probs.len() == rows && self.logits.len() == rows * vocab
    }

    fn time(&mut self, pass: &str, repeats: usize) -> Result<Vec<f64>> {
        let without = pass.strip_suffix("_softcap");
        self.options = LogitOptions::default();
        if without.is_some() {
            self.options = self.options.with_softcap(30.0)?;
        }
        let run: fn(&mut Self) = match without.unwrap_or(pass) {
            "forward" => |stage| stage.forward(false),
            "forward_entropy" => |stage| stage.forward(true),
            "backward" => |stage| stage.backward(false),
            "backward_entropy" => |stage| stage.backward(true),
            "backward_in_place" => Stage::backward_in_place,
            "forward_backward" => |stage| {
                stage.forward(false);
                stage.backward(false);
            },
            "forward_backward_entropy" => |stage| {
                stage.forward(true);
                stage.backward(true);
            },
            "forward_backward_in_place" => |stage| {
                stage.forward(false);
                stage.backward_in_place();
            },
            "read" => |stage| {
                black_box(memory::read(bytemuck::cast_slice(&stage.logits)));
            },
            "copy" => |stage| {
                let (from, to) = (bytemuck::cast_slice(&stage.logits), bytemuck::cast_slice_mut(&mut stage.grad));
                memory::copy(from, to, black_box(1));
            },
            "change" => |stage| memory::change(bytemuck::cast_slice_mut(&mut stage.logits), black_box(1)),
            _ => bail!("no such pass: {pass}"),
        };
        // Pages and caches in the state that later repeats find. A pass in place leaves other logits for the next:
        // putting the first ones back in between disturbs what is timed, and the time does not depend on the values.
        run(self);
        let seconds = (0..repeats).map(|_| {
            let start = Instant::now();
            run(self);
            start.elapsed().as_secs_f64()
        });
        Ok(seconds.collect())
    }
}

fn stage<T: Element>(cpu: Cpu, rows: usize, vocab: usize) -> Box<dyn Timed> {
    let targets = inputs::targets(rows, vocab);
    let mut stage = Stage::new(cpu, inputs::logits::<T>(rows, vocab), vocab, targets, vec![1.0; rows]);
    stage.forward(true);
    Box::new(stage)
}

fn check<T: Element>(cpu: Cpu, rows: usize, vocab: usize, folder: &Path) -> Result<()> {
    let logits = read::<T>(&folder.join("logits"), rows * vocab)?;
    let targets = read(&folder.join("targets"), rows)?;
    let upstream = read(&folder.join("upstream"), rows)?;
    let mut stage = Stage::new(cpu, logits, vocab, targets, upstream);
    stage.forward(false);
    stage.backward(false);
    std::fs::write(folder.join("log_probs"), bytemuck::cast_slice(&stage.log_probs))?;
    std::fs::write(folder.join("gradient"), bytemuck::cast_slice(&stage.grad))?;
    Ok(())
}

/// Answers one command. `kept` is the stage of the command before it.
fn answer(line: &str, cpu: Cpu, kept: &mut Option<Box<dyn Timed>>) -> Result<serde_json::Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["about"] => {
            let (threads, instructions) = (rayon::current_num_threads(), cpu.instruction_set().name());
            Ok(serde_json::json!({ "threads": threads, "instructions": instructions }))
        }
        ["check", dtype, rows, vocab, folder] => {
            let check = match dtype {
                "f32" => check::<f32>,
                "f16" => check::<f16>,
                "bf16" => check::<bf16>,
                _ => bail!("no such type: {dtype}"),
            };
            check(cpu, rows.parse()?, vocab.parse()?, Path::new(folder))?;
            Ok(serde_json::json!({ "written": folder }))
        }
        [pass, dtype, rows, vocab, repeats] => {
            let (rows, vocab) = (rows.parse()?, vocab.parse()?);
            if !kept.as_ref().is_some_and(|stage| stage.is_of(dtype, rows, vocab)) {
                let make = match dtype {
                    "f32" => stage::<f32>,
                    "f16" => stage::<f16>,
                    "bf16" => stage::<bf16>,
                    _ => bail!("no such type: {dtype}"),
                };
                // The old buffers go before the new ones come.
                *kept = None;
                *kept = Some(make(cpu, rows, vocab));
            }
            let stage = kept.as_mut().context("a stage")?;
            Ok(serde_json::json!({ "seconds": stage.time(pass, repeats.parse()?)? }))
        }
        _ => bail!("not a command: {line}"),
    }
}

fn main() -> Result<()> {
    let mut cpu = Cpu::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--threads" => rayon::ThreadPoolBuilder::new().num_threads(value.parse()?).build_global()?,
            "--instructions" => {
                let set = InstructionSet::ALL.into_iter().find(|set| set.name() == value);
                cpu = Cpu::with_instruction_set(set.with_context(|| format!("no such instruction set: {value}"))?)?;
            }
            _ => bail!("no such option: {option}"),
        }
    }
    let mut kept = None;
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?, cpu, &mut kept)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
