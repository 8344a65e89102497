//! The JSON log: settings, every step, every evaluation, and the samples before and after.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::evaluation::{Evaluation, Sample};
use crate::options::{ObjectiveName, Settings};
use crate::training::Step;

/// What one objective did, from the frozen model on.
#[derive(Serialize)]
pub struct Run {
    pub objective: ObjectiveName,
    pub steps: Vec<Step>,
    /// The first is of the frozen model, the last of the finished policy.
    pub evaluations: Vec<Evaluation>,
    pub seconds: f64,
}

impl Run {
    pub fn before(&self) -> &Evaluation {
        &self.evaluations[0]
    }

    pub fn after(&self) -> &Evaluation {
        &self.evaluations[self.evaluations.len() - 1]
    }
}

#[derive(Serialize)]
struct Log<'a> {
    settings: &'a Settings,
    training_prompts: usize,
    held_out_prompts: usize,
    seconds: f64,
    samples_before: &'a [Sample],
    runs: Vec<LoggedRun<'a>>,
}

#[derive(Serialize)]
struct LoggedRun<'a> {
    #[serde(flatten)]
    run: &'a Run,
    samples_after: &'a [Sample],
}

pub fn write(
    path: &Path,
    settings: &Settings,
    (training_prompts, held_out_prompts): (usize, usize),
    runs: &[Run],
    seconds: f64,
) -> Result<()> {
    let log = Log {
        settings,
        training_prompts,
        held_out_prompts,
        seconds,
        samples_before: runs.first().map_or(&[], |run| &run.before().samples),
        runs: runs.iter().map(|run| LoggedRun { run, samples_after: &run.after().samples }).collect(),
    };
    let text = serde_json::to_string_pretty(&log)?;
    fs::write(path, text).with_context(|| format!("cannot write the log {}", path.display()))
}
