//! Aligns a real causal language model, on the CPU or a CUDA device, as the paper's controlled-generation experiment does: openings of
//! film reviews, K completions each from the frozen model, a sentiment reward, the EXO loss of this crate, `AdamW`.
//!
//! ```text
//! cargo run --release -p exo-kernels-candle --example align -- --help
//! ```
//!
//! One file per step of that sentence: `prompts` → `sampling` (of `llama`) → `reward` → `groups` → `training` →
//! `evaluation` → `table`, `picture`, `log`. The only use of the library is in `training`, `scoring` and `sampling`.

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
mod sampling;
mod scoring;
mod table;
mod tiny_model;
mod tokenizer;
mod training;

use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result};
use clap::Parser;
use exo_kernels::LogitOptions;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::evaluation::{Evaluation, Evaluator};
use crate::groups::Group;
use crate::llama::Llama;
use crate::log::Run;
use crate::options::{ObjectiveName, Options, Settings};
use crate::reward::Reward;
use crate::sampling::{Prompt, Sampling};
use crate::tokenizer::Tokenizer;
use crate::training::{Policy, Trainer};

/// Keeps the evaluation's random streams apart from the training samples'.
const EVALUATION_STREAM: u64 = 0x5EED;

fn main() -> ExitCode {
    match Options::parse().settings().and_then(|settings| with_threads(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// candle's matrix products read their number of threads from the environment, and their threads spin while they wait.
/// The tiny model's products are so small that a second thread does little else.
fn with_threads(settings: &Settings) -> Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if settings.threads > 0 && env::var_os(VARIABLE).is_none() {
        // SAFETY: this is the program's start, no other thread is there that could read the environment meanwhile.
        unsafe { env::set_var(VARIABLE, settings.threads.to_string()) };
    }
    align(settings)
}

fn align(settings: &Settings) -> Result<()> {
    let started = Instant::now();
    fs::create_dir_all(&settings.out).with_context(|| format!("cannot make the folder {}", settings.out.display()))?;
    // Everything that follows lives where the model's tensors are.
    let (reference, tokenizer) = model(settings)?;
    let (training, held_out) = prompts(settings, &tokenizer)?;
    let reward = Reward::new();
    let logit_options = LogitOptions::default().with_temperature(settings.temperature)?;
    let sampling = |seed| Sampling {
        logit_options,
        max_new_tokens: settings.max_new_tokens,
        batch: settings.batch,
        end: tokenizer.end(),
        seed,
    };
    let evaluation_sampling = sampling(settings.seed ^ EVALUATION_STREAM);
    let evaluator = Evaluator {
        prompts: &held_out,
        per_prompt: settings.evaluation_samples,
        sampling: &evaluation_sampling,
        tokenizer: &tokenizer,
        reward: &reward,
        reference: &reference,
    };
    let before = evaluate(&evaluator, None, 0, "evaluating before")?;

    let bar = progress::bar("sampling", settings.groups() * settings.k)?;
    let groups = groups::draw(
        &reference,
        &training,
        (settings.groups(), settings.k),
        &sampling(settings.seed),
        (&tokenizer, &reward),
        &bar,
    )?;
    progress::finish(&bar, format!("{} groups of {}", groups.len(), settings.k));

    let mut runs = Vec::new();
    for &objective in &settings.objectives {
        runs.push(train(settings, objective, &groups, &evaluator, &before)?);
    }

    for run in &runs {
        println!("\n{}:\n{}", run.objective.label(), table::samples(run));
    }
    println!("\n{}", table::numbers(&runs));
    let picture = settings.out.join("align.svg");
    picture::draw(&picture, &runs, &title(settings))?;
    let log = settings.out.join("align.json");
    let counts = (training.len(), held_out.len());
    log::write(&log, settings, counts, &runs, started.elapsed().as_secs_f64())?;
    println!("picture: {}\nlog:     {}", picture.display(), log.display());
    Ok(())
}

/// The frozen model: from the file, or the tiny one made now.
fn model(settings: &Settings) -> Result<(Llama, Tokenizer)> {
    let device = settings.device.open()?;
    if let Some(path) = &settings.model {
        let bar = progress::bar("loading", 1)?;
        let loaded = gguf::load(path, &device)?;
        progress::finish(&bar, path.display().to_string());
        return Ok(loaded);
    }
    let bar = progress::bar("fitting the tiny model", settings.fit_steps)?;
    let (model, loss) = tiny_model::fit(settings.fit_steps, settings.seed, &device, &bar)?;
    progress::finish(&bar, format!("{loss:.3} nats per byte"));
    Ok((model, Tokenizer::Bytes))
}

/// Prompts for training and held-out prompts.
fn prompts(settings: &Settings, tokenizer: &Tokenizer) -> Result<(Vec<Prompt>, Vec<Prompt>)> {
    let (training, held_out) = if settings.model.is_some() {
        let own = |texts: &[&str]| texts.iter().copied().map(str::to_owned).collect();
        (own(&prompts::TRAINING), own(&prompts::HELD_OUT))
    } else {
        grammar::openings()
    };
    let tokenized = |texts: Vec<String>| {
        texts
            .into_iter()
            .map(|text| {
                let tokens = tokenizer.encode(&text)?;
                Ok(Prompt { text, tokens })
            })
            .collect::<Result<Vec<_>>>()
    };
    Ok((tokenized(training)?, tokenized(held_out)?))
}

fn evaluate(evaluator: &Evaluator<'_>, policy: Option<&Llama>, step: usize, stage: &str) -> Result<Evaluation> {
    let bar = progress::bar(stage, evaluator.count())?;
    let evaluation = evaluator.evaluate(policy, step, &bar)?;
    let message = format!("reward {:+.3}, KL {:.2}", evaluation.mean_reward, evaluation.kl);
    progress::finish(&bar, message);
    Ok(evaluation)
}

/// One objective, from a copy of the frozen model to the last evaluation.
fn train(
    settings: &Settings,
    objective: ObjectiveName,
    groups: &[Group],
    evaluator: &Evaluator<'_>,
    before: &Evaluation,
) -> Result<Run> {
    let started = Instant::now();
    let policy = Policy::copy_of(evaluator.reference)?;
    let mut trainer = Trainer {
        policy: &policy,
        optimizer: policy.optimizer(settings.learning_rate)?,
        objective: settings.objective(objective)?,
        logit_options: evaluator.sampling.logit_options,
        learning_rate: settings.learning_rate,
        largest_gradient: settings.clip,
        materialize_logits: settings.materialize_logits,
        steps: settings.steps,
    };
    let mut run = Run { objective, steps: Vec::new(), evaluations: vec![before.clone()], seconds: 0.0 };
    let mut order = Vec::new();
    let mut random = StdRng::seed_from_u64(settings.seed);
    let stage = format!("training, {}", objective.label());
    let bar = progress::bar(&stage, settings.steps)?;
    for step in 0..settings.steps {
        let batch = (0..settings.prompts_per_step)
            .filter_map(|_| {
                if order.is_empty() {
                    order = groups.iter().collect::<Vec<_>>();
                    order.shuffle(&mut random);
                }
                order.pop()
            })
            .collect::<Vec<_>>();
        let taken = trainer.step(step, &batch)?;
        bar.set_message(format!("loss {:.3}, ESS {:.1}", taken.loss, taken.effective_sample_size));
        bar.inc(1);
        run.steps.push(taken);
        let done = step + 1;
        let due = settings.evaluate_every > 0 && done % settings.evaluate_every == 0;
        if due || done == settings.steps {
            let stage = format!("evaluating, step {done}");
            let evaluation = bar.suspend(|| evaluate(evaluator, Some(&policy.model), done, &stage))?;
            run.evaluations.push(evaluation);
        }
    }
    run.seconds = started.elapsed().as_secs_f64();
    let last = &run.steps[run.steps.len() - 1];
    progress::finish(&bar, format!("loss {:.3}", last.loss));
    Ok(run)
}

fn title(settings: &Settings) -> String {
    let model = match &settings.model {
        Some(path) => {
            path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
        }
        None => "tiny byte-level model".to_owned(),
    };
    format!(
        "{model}: K = {}, beta_pi = {}, beta_r = {}, {} steps",
        settings.k, settings.beta_pi, settings.beta_r, settings.steps
    )
}
