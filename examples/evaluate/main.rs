//! Computes golden fixtures and prints how far each output is from the file's expected values.
//!
//! ```text
//! cargo run --release --example evaluate -- FILE.safetensors... [--backend cpu|reference|cuda] [--check] [--json]
//! ```
//!
//! For every file and output: the largest absolute error, and the largest error as a share of its bound
//! (`exo_kernels::reference::bounds`; above 1 is over). "Stage alone" is the K-sample stage fed with the file's
//! expected log-ratios. With `--check` the exit status is 1 when an output is over its bound. A file that cannot be
//! read, or whose inputs a loss refuses, is exit status 2. The backend `cuda` needs the feature of that name; where there is no CUDA driver it runs on
//! the software device of `emulators/softcuda`, and says so.

#[cfg(feature = "cuda")]
mod cuda;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use exo_kernels::Cpu;
use exo_kernels::reference::bounds::Arithmetic;
use golden::{Fixture, OutputError, Specification, Stages, compare};
use serde_json::json;

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    Cpu,
    Reference,
    #[cfg(feature = "cuda")]
    Cuda,
}

/// Computes golden fixtures and prints how far each output is from the expected values.
#[derive(Parser)]
struct Arguments {
    /// Fixtures in the format exo-golden-1.
    #[arg(required = true, value_name = "FILE.safetensors")]
    files: Vec<PathBuf>,
    /// Who computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Exit with status 1 if an output is over its bound.
    #[arg(long)]
    check: bool,
    /// Print JSON, one object per file, instead of tables.
    #[arg(long)]
    json: bool,
}

/// Computes a fixture and compares.
type Compare = Box<dyn Fn(&Fixture) -> exo_kernels::Result<Vec<OutputError>>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let compare: Compare = match arguments.backend {
        BackendName::Cpu => {
            let stages = Stages::new(Cpu::default(), Arithmetic::BACKEND);
            Box::new(move |fixture| compare(fixture, &stages))
        }
        BackendName::Reference => Box::new(|fixture| compare(fixture, &Specification)),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            let stages = Stages::new(cuda::device(), Arithmetic::CUDA);
            Box::new(move |fixture| compare(fixture, &stages))
        }
    };
    let (mut over, mut unreadable) = (0, 0);
    for file in &arguments.files {
        let name = file.file_name().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into());
        let errors = Fixture::read(file)
            .and_then(|fixture| compare(&fixture).map_err(|error| format!("{}: {error}", file.display())));
        match errors {
            Ok(errors) => {
                over += usize::from(!errors.iter().all(OutputError::is_within));
                if arguments.json { print_json(&name, &errors) } else { print_table(&name, &errors) }
            }
            Err(error) => {
                eprintln!("{error}");
                unreadable += 1;
            }
        }
    }
    if !arguments.json {
        let files = arguments.files.len();
        println!(
            "{} of {files} files within bounds, {over} over, {unreadable} unreadable or refused",
            files - over - unreadable
        );
    }
    match (unreadable, over) {
        (1.., _) => ExitCode::from(2),
        (_, 1..) if arguments.check => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn print_table(name: &str, errors: &[OutputError]) {
    println!("{name}\n  {:<32} {:>13} {:>15}", "output", "largest error", "share of bound");
    for error in errors {
        let verdict = if error.is_within() { "" } else { "  OVER" };
        println!("  {:<32} {:>13.3e} {:>15.3}{verdict}", error.output, error.largest, error.share);
    }
}

fn print_json(name: &str, errors: &[OutputError]) {
    // JSON has no infinity: null stands for it.
    let outputs: serde_json::Map<_, _> = errors
        .iter()
        .map(|error| {
            let numbers = json!({
                "largest_error": error.largest,
                "share_of_bound": error.share,
                "within_bound": error.is_within(),
            });
            (error.output.to_owned(), numbers)
        })
        .collect();
    println!("{}", json!({ "file": name, "outputs": outputs }));
}
