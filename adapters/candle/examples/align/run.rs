//! The whole program, for however many processes.

use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
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
use crate::team::Team;
use crate::tokenizer::Tokenizer;
use crate::training::{Policy, Trainer};
use crate::{gguf, grammar, groups, log, picture, progress, prompts, table, tiny_model};

/// Keeps the evaluation's random streams apart from the training samples'.
const EVALUATION_STREAM: u64 = 0x5EED;

/// The program; `with_team` calls what it is given with the ranks that take part.
pub fn main(with_team: impl FnOnce(&dyn Fn(Team<'_>) -> Result<()>) -> Result<()>) -> ExitCode {
    let run = |settings: Settings| {
        set_threads(&settings);
        with_team(&|team| align(&settings, team))
    };
    match Options::parse().settings().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// candle's matrix products read their number of threads from the environment, and their threads spin while they wait.
/// The tiny model's products are so small that a second thread does little else.
fn set_threads(settings: &Settings) {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if settings.threads > 0 && env::var_os(VARIABLE).is_none() {
        // SAFETY: this is the program's start, no other thread is there that could read the environment meanwhile.
        unsafe { env::set_var(VARIABLE, settings.threads.to_string()) };
    }
}

fn align(settings: &Settings, team: Team<'_>) -> Result<()> {
    let started = Instant::now();
    ensure!(
        settings.prompts_per_step >= team.ranks(),
        "--prompts-per-step should be at least {}, the number of ranks, but {} was given",
        team.ranks(),
        settings.prompts_per_step
    );
    // The first rank says what all do; the others' logs lie in folders of their own.
    let first = team.rank() == 0;
    let out = if first { settings.out.clone() } else { settings.out.join(format!("rank-{}", team.rank())) };
    if !first {
        progress::silence();
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    // Everything that follows lives where the model's tensors are.
    let (reference, tokenizer) = model(settings)?;
    team.check_same("model", &reference)?;
    let (training, held_out) = prompts(settings, &tokenizer)?;
    let reward = Reward::new();
    let logit_options = LogitOptions::default().with_temperature(settings.temperature)?;
    let sampling = |seed| Sampling {
        logit_options,
        max_new_tokens: settings.max_new_tokens,
        batch: settings.batch,
        end: tokenizer.end(),
        seed,
        team,
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

    let log = out.join("align.json");
    let counts = (training.len(), held_out.len());
    log::write(&log, settings, counts, &runs, team.largest(started.elapsed().as_secs_f64())?)?;
    if first {
        for run in &runs {
            println!("\n{}:\n{}", run.objective.label(), table::samples(run));
        }
        println!("\n{}", table::numbers(&runs));
        let picture = out.join("align.svg");
        picture::draw(&picture, &runs, &title(settings))?;
        println!("picture: {}\nlog:     {}", picture.display(), log.display());
    }
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
        team: evaluator.sampling.team,
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
    trainer.team.check_same("policy", &policy.model)?;
    run.seconds = trainer.team.largest(started.elapsed().as_secs_f64())?;
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
