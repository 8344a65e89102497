//! A stopwatch on a leash for the linear stage, as `time_token_log_prob` is for logits: `scripts/compare-pytorch` takes
//! turns with it. By hand:
//!
//!     echo forward f32 512 576 49152 3 | cargo run --release --example time_linear_log_prob
//!
//! Option: `--threads T` (default: all cores). Commands, one a line; each is answered by one line of JSON:
//!
//! - `PASS DTYPE N H V REPEATS` times PASS over N hidden states of H under a head of V rows and answers `{"seconds":
//!   [...], "peak": P}`: one number per repeat, and the most memory in bytes that a pass held beside its inputs and
//!   outputs. DTYPE is f32 or bf16; PASS `forward`, `backward`, `forward_backward`, with unit gradients kept between them
//!   `frozen` and `trained`, with the gradients of the logits too `trained_logits`, in one call `row_loss` and
//!   `row_loss_frozen`, or `product`, the bare matrix product in f32. The buffers are kept until another DTYPE or shape is asked for.
//! - `check DTYPE N H V FOLDER` reads FOLDER/hidden (`[N, H]`), weight (`[V, H]`), targets (`[N]` i64) and upstream
//!   (`[N]` f32), and writes FOLDER/log_probs (`[N]` f32), grad_hidden and grad_weight: raw, in the machine's byte order.

#[path = "../benches/support/linear_stage.rs"]
mod linear_stage;
#[path = "../benches/support/raw_numbers.rs"]
mod raw_numbers;

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use exo_kernels::{Cpu, Dtype, Element, LinearKept};
use half::bf16;
use limits::peak_memory::{self, peak};
use linear_stage::{LinearStage, Product};
use raw_numbers::read;

#[global_allocator]
static ALLOCATOR: peak_memory::Counting = peak_memory::Counting;

/// Forward and backward with what is kept between them, and whether the head is trained.
const KEEPING: [(&str, LinearKept, bool); 3] = [
    ("frozen", LinearKept::UnitGradients, false),
    ("trained", LinearKept::UnitGradients, true),
    ("trained_logits", LinearKept::LogitGradients, true),
];

/// What is timed, of any type: one command's buffers, kept for the next.
trait Timed {
    fn is_of(&self, dtype: &str, shape: (usize, usize, usize)) -> bool;
    fn run(&mut self, pass: &str) -> Result<()>;

    /// Of one run.
    fn seconds(&mut self, pass: &str) -> Result<f64> {
        let start = Instant::now();
        self.run(pass)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl<T: Element> Timed for LinearStage<T> {
    fn is_of(&self, dtype: &str, shape: (usize, usize, usize)) -> bool {
        dtype == (if T::DTYPE == Dtype::F32 { "f32" } else { "bf16" }) && self.shape() == shape
    }

    fn run(&mut self, pass: &str) -> Result<()> {
        match pass {
            "forward" => self.forward(),
            "backward" => self.backward(),
            "forward_backward" => {
                self.forward();
                self.backward();
            }
            "row_loss" => self.row_loss(true),
            "row_loss_frozen" => self.row_loss(false),
            _ => {
                let Some((_, kept, is_trained)) = KEEPING.iter().find(|row| row.0 == pass) else {
                    bail!("no such pass: {pass}")
                };
                self.forward_keeping(*kept);
                self.backward_from(*kept, *is_trained);
            }
        }
        Ok(())
    }
}

struct BareProduct((usize, usize, usize), Product);

impl Timed for BareProduct {
    fn is_of(&self, dtype: &str, shape: (usize, usize, usize)) -> bool {
        dtype == "product" && self.0 == shape
    }

    fn run(&mut self, _: &str) -> Result<()> {
        self.1.run();
        Ok(())
    }
}

fn make(kind: &str, (rows, size, vocab): (usize, usize, usize)) -> Result<Box<dyn Timed>> {
    match kind {
        "product" => Ok(Box::new(BareProduct((rows, size, vocab), Product::new(rows, size, vocab)))),
        "f32" => {
            let mut stage = LinearStage::<f32>::random(Cpu::default(), rows, size, vocab);
            stage.forward();
            Ok(Box::new(stage))
        }
        "bf16" => {
            let mut stage = LinearStage::<bf16>::random(Cpu::default(), rows, size, vocab);
            stage.forward();
            Ok(Box::new(stage))
        }
        _ => bail!("no such type: {kind}"),
    }
}

fn check<T: Element>((rows, size, vocab): (usize, usize, usize), folder: &Path) -> Result<()> {
    let inputs = (read::<T>(&folder.join("hidden"), rows * size)?, read::<T>(&folder.join("weight"), vocab * size)?);
    let (targets, upstream) = (read(&folder.join("targets"), rows)?, read(&folder.join("upstream"), rows)?);
    let mut stage = LinearStage::new(Cpu::default(), inputs, size, targets, upstream);
    stage.forward();
    stage.backward();
    std::fs::write(folder.join("log_probs"), bytemuck::cast_slice(&stage.log_probs))?;
    std::fs::write(folder.join("grad_hidden"), bytemuck::cast_slice(&stage.grad_hidden))?;
    std::fs::write(folder.join("grad_weight"), bytemuck::cast_slice(&stage.grad_weight))?;
    Ok(())
}

/// Answers one command. `kept` is what the command before it timed.
fn answer(line: &str, kept: &mut Option<Box<dyn Timed>>) -> Result<serde_json::Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [command, dtype, rows, size, vocab, last] = words[..] else { bail!("not a command: {line}") };
    let shape = (rows.parse()?, size.parse()?, vocab.parse()?);
    if command == "check" {
        match dtype {
            "f32" => check::<f32>(shape, Path::new(last))?,
            "bf16" => check::<bf16>(shape, Path::new(last))?,
            _ => bail!("no such type: {dtype}"),
        }
        return Ok(serde_json::json!({ "written": last }));
    }
    let kind = if command == "product" { "product" } else { dtype };
    if !kept.as_ref().is_some_and(|timed| timed.is_of(kind, shape)) {
        // The old buffers go before the new ones come.
        *kept = None;
        *kept = Some(make(kind, shape)?);
    }
    let timed = kept.as_mut().context("a stage")?;
    timed.run(command)?;
    let repeats = last.parse()?;
    let (seconds, peak) = peak(|| (0..repeats).map(|_| timed.seconds(command)).collect::<Result<Vec<f64>>>());
    Ok(serde_json::json!({ "seconds": seconds?, "peak": peak }))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--threads" => rayon::ThreadPoolBuilder::new().num_threads(value.parse()?).build_global()?,
            _ => bail!("no such option: {option}"),
        }
    }
    let mut kept = None;
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?, &mut kept)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
