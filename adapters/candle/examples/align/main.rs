//! Aligns a real causal language model, on the CPU or a CUDA device, as the paper's controlled-generation experiment does: openings of
//! film reviews, K completions each from the frozen model, a sentiment reward, the EXO loss of this crate, `AdamW`.
//!
//! ```text
//! cargo run --release -p exo-kernels-candle --example align -- --help
//! ```
//!
//! One file per step of that sentence: `prompts` → `sampling` (of `llama`) → `reward` → `groups` → `training` →
//! `evaluation` → `table`, `picture`, `log`. The only use of the library is in `training`, `scoring` and `sampling`;
//! and in `team`, for several processes: adapters/mpi/align is this program over MPI.

// A program exports nothing: `pub` says here that another file uses it.
#![allow(unreachable_pub)]

mod device;
mod evaluation;
mod gguf;
mod gradient_check;
mod grammar;
mod groups;
mod llama;
mod log;
mod options;
mod picture;
mod progress;
mod prompts;
mod reward;
mod run;
mod sampling;
mod scoring;
mod table;
mod team;
mod tiny_model;
mod tokenizer;
mod training;

use std::process::ExitCode;

use crate::team::Team;

fn main() -> ExitCode {
    run::main(|align| align(Team::default()))
}
