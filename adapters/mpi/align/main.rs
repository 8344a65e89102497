//! The candle adapter's example `align`, data parallel: `scripts/align --ranks 2` runs this under mpirun. Each rank draws its share of the
//! completions and goes through its share of every step's groups; gradients are added up over ranks.

// As in the example's main.rs.
#![allow(unreachable_pub)]

#[path = "../../candle/examples/align/device.rs"]
mod device;
#[path = "../../candle/examples/align/evaluation.rs"]
mod evaluation;
#[path = "../../candle/examples/align/gguf.rs"]
mod gguf;
#[path = "../../candle/examples/align/grammar.rs"]
mod grammar;
#[path = "../../candle/examples/align/groups.rs"]
mod groups;
#[path = "../../candle/examples/align/llama.rs"]
mod llama;
#[path = "../../candle/examples/align/log.rs"]
mod log;
#[path = "../../candle/examples/align/options.rs"]
mod options;
#[path = "../../candle/examples/align/picture.rs"]
mod picture;
#[path = "../../candle/examples/align/progress.rs"]
mod progress;
#[path = "../../candle/examples/align/prompts.rs"]
mod prompts;
#[path = "../../candle/examples/align/reward.rs"]
mod reward;
#[path = "../../candle/examples/align/run.rs"]
mod run;
#[path = "../../candle/examples/align/sampling.rs"]
mod sampling;
#[path = "../../candle/examples/align/scoring.rs"]
mod scoring;
#[path = "../../candle/examples/align/table.rs"]
mod table;
#[path = "../../candle/examples/align/team.rs"]
mod team;
#[path = "../../candle/examples/align/tiny_model.rs"]
mod tiny_model;
#[path = "../../candle/examples/align/tokenizer.rs"]
mod tokenizer;
#[path = "../../candle/examples/align/training.rs"]
mod training;

use std::process::ExitCode;

use anyhow::Context;
use exo_kernels_mpi::{Mpi, mpi};

use crate::team::Team;

fn main() -> ExitCode {
    run::main(|align| {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).context("MPI runs already")?;
        let communicator = Mpi::new(&universe.world())?;
        align(Team::of(&communicator))
    })
}
