//! The command line, and the settings that it comes to with or without a model file.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use exo_kernels::{Betas, Objective};
use serde::Serialize;

use crate::device::DeviceName;

/// Aligns a causal language model with EXO (or DPO) towards positive film reviews, on the CPU or a CUDA device.
///
/// Completions are sampled from the frozen model, rewarded by a sentiment lexicon, and the policy is trained on them
/// with the loss of `exo-kernels`. Held-out prompts are evaluated before, during and after. Without --model a tiny
/// byte-level model is made on the spot, so the program needs no file and no network.
#[derive(Debug, Parser)]
#[command(name = "align", version, allow_negative_numbers = true)]
pub struct Options {
    /// GGUF file of a small Llama with the tokenizer `smollm`, say the one that scripts/align fetches [default: a tiny
    /// embedded model]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Where the model and the loss live
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,

    /// What to minimise
    #[arg(long, value_enum, default_value = "exo")]
    pub objective: ObjectiveName,

    /// Run exo and dpo-rw on the same samples and draw both frontiers of reward against KL
    #[arg(long, conflicts_with = "objective")]
    pub compare: bool,

    /// Completions per prompt, K
    #[arg(long, value_name = "K", default_value_t = 8)]
    pub k: usize,

    /// Inverse temperature of the policy's distribution: f = beta-pi * (log policy - log reference)
    #[arg(long, value_name = "BETA", default_value_t = 0.5)]
    pub beta_pi: f64,

    /// Temperature of the reward's distribution, q = softmax(reward / beta-r); exo and dpo-rw only
    #[arg(long, value_name = "BETA", default_value_t = 0.5)]
    pub beta_r: f64,

    /// Mass of the target that the losers share; exo-pref and dpo-pref only
    #[arg(long, value_name = "EPSILON", default_value_t = 1e-3)]
    pub label_smoothing: f64,

    /// Temperature of the sampling, and so of the loss
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temperature: f64,

    /// Gradient steps [default: 24 with --model, 60 without]
    #[arg(long)]
    pub steps: Option<usize>,

    /// Groups per gradient step [default: 8 with --model, 4 without]
    #[arg(long, value_name = "N")]
    pub prompts_per_step: Option<usize>,

    /// How often each sampled group is trained on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub passes: usize,

    /// Learning rate of the optimiser, decayed by a cosine [default: 5e-5 with --model, 2e-4 without]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,

    /// Gradients longer than this norm are scaled down to it
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f64,

    /// Longest completion in tokens [default: 8 with --model, 48 without]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,

    /// Sequences that are sampled side by side
    #[arg(long, value_name = "N", default_value_t = 192)]
    pub batch: usize,

    /// Gradient steps between evaluations on held-out prompts; 0 evaluates only before and after [default: a third of
    /// the steps with --model, a sixth without]
    #[arg(long, value_name = "N")]
    pub evaluate_every: Option<usize>,

    /// Completions per held-out prompt in an evaluation
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub evaluation_samples: usize,

    /// Steps that fit the embedded model to its sentences; without --model only
    #[arg(long, value_name = "N", default_value_t = 250)]
    pub fit_steps: usize,

    /// Make the logits as a tensor, for comparison, instead of going from hidden states to the loss without them
    #[arg(long)]
    pub materialize_logits: bool,

    /// Threads, unless the environment says it; 0 takes all cores [default: 0 with --model, 1 without]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Seed of everything random
    #[arg(long, default_value_t = 1234)]
    pub seed: u64,

    /// Folder for the picture and the log, made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/align")]
    pub out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveName {
    /// Reverse KL from the policy's distribution to softmax(reward / beta-r)
    Exo,
    /// Reverse KL to a smoothed preference for the completion with the largest reward
    ExoPref,
    /// Forward KL from softmax(reward / beta-r)
    DpoRw,
    /// Forward KL from a preference for the completion with the largest reward
    DpoPref,
}

impl ObjectiveName {
    pub fn label(self) -> &'static str {
        match self {
            Self::Exo => "exo",
            Self::ExoPref => "exo-pref",
            Self::DpoRw => "dpo-rw",
            Self::DpoPref => "dpo-pref",
        }
    }
}

/// The options with every default filled in.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    pub model: Option<PathBuf>,
    pub device: DeviceName,
    pub objectives: Vec<ObjectiveName>,
    pub k: usize,
    pub beta_pi: f64,
    pub beta_r: f64,
    pub label_smoothing: f64,
    pub temperature: f64,
    pub steps: usize,
    pub prompts_per_step: usize,
    pub passes: usize,
    pub learning_rate: f64,
    pub clip: f64,
    pub max_new_tokens: usize,
    pub batch: usize,
    pub evaluate_every: usize,
    pub evaluation_samples: usize,
    pub fit_steps: usize,
    pub materialize_logits: bool,
    pub threads: usize,
    pub seed: u64,
    #[serde(skip)]
    pub out: PathBuf,
}

impl Options {
    pub fn settings(self) -> Result<Settings> {
        let real = self.model.is_some();
        let steps = self.steps.unwrap_or(if real { 24 } else { 60 });
        let settings = Settings {
            device: self.device,
            objectives: if self.compare {
                vec![ObjectiveName::Exo, ObjectiveName::DpoRw]
            } else {
                vec![self.objective]
            },
            k: self.k,
            beta_pi: self.beta_pi,
            beta_r: self.beta_r,
            label_smoothing: self.label_smoothing,
            temperature: self.temperature,
            steps,
            prompts_per_step: self.prompts_per_step.unwrap_or(if real { 8 } else { 4 }),
            passes: self.passes,
            learning_rate: self.learning_rate.unwrap_or(if real { 5e-5 } else { 2e-4 }),
            clip: self.clip,
            max_new_tokens: self.max_new_tokens.unwrap_or(if real { 8 } else { 48 }),
            batch: self.batch,
            evaluate_every: self.evaluate_every.unwrap_or(steps.div_ceil(if real { 3 } else { 6 })),
            evaluation_samples: self.evaluation_samples,
            fit_steps: self.fit_steps,
            materialize_logits: self.materialize_logits,
            threads: self.threads.unwrap_or(usize::from(!real)),
            seed: self.seed,
            out: self.out,
            model: self.model,
        };
        settings.validate()?;
        Ok(settings)
    }
}

impl Settings {
    fn validate(&self) -> Result<()> {
        let counts = [
            ("--k", self.k, 2),
            ("--steps", self.steps, 1),
            ("--prompts-per-step", self.prompts_per_step, 1),
            ("--passes", self.passes, 1),
            ("--max-new-tokens", self.max_new_tokens, 1),
            ("--batch", self.batch, 1),
            ("--evaluation-samples", self.evaluation_samples, 1),
            ("--fit-steps", self.fit_steps, 1),
        ];
        for (option, given, least) in counts {
            ensure!(given >= least, "{option} should be at least {least}, but {given} was given");
        }
        let positive =
            [("--learning-rate", self.learning_rate), ("--clip", self.clip), ("--temperature", self.temperature)];
        for (option, given) in positive {
            ensure!(given.is_finite() && given > 0.0, "{option} should be a number above 0, but {given} was given");
        }
        for &objective in &self.objectives {
            self.objective(objective)?;
        }
        Ok(())
    }

    /// The library checks the betas and the smoothing itself.
    pub fn objective(&self, name: ObjectiveName) -> Result<Objective> {
        let betas = Betas { policy: self.beta_pi, reward: self.beta_r };
        Ok(match name {
            ObjectiveName::Exo => Objective::exo(betas)?,
            ObjectiveName::DpoRw => Objective::dpo_rw(betas)?,
            ObjectiveName::ExoPref => Objective::exo_pref(self.beta_pi, self.label_smoothing)?,
            ObjectiveName::DpoPref => Objective::dpo_pref(self.beta_pi, self.label_smoothing)?,
        })
    }

    /// Groups to sample, so that `passes` rounds over them make all the steps.
    pub fn groups(&self) -> usize {
        (self.steps * self.prompts_per_step).div_ceil(self.passes)
    }
}
