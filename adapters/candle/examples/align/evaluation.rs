//! What the policy does on prompts that training never saw: mean reward, and KL(policy ‖ reference).
//!
//! The KL is the Monte-Carlo mean over the policy's own completions of `Σ_t log π − log π_ref`, both at the sampling
//! temperature, as the paper measures it. It is in nats per completion.

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::llama::Llama;
use crate::reward::Reward;
use crate::sampling::{self, Prompt, Sampling};
use crate::scoring;
use crate::tokenizer::Tokenizer;

#[derive(Clone, Serialize)]
pub struct Sample {
    pub prompt: String,
    pub completion: String,
    pub reward: f32,
    /// `Σ_t log π − log π_ref`, in nats.
    pub log_ratio: f64,
}

#[derive(Clone, Serialize)]
pub struct Evaluation {
    /// Gradient steps taken before it.
    pub step: usize,
    pub mean_reward: f64,
    /// Standard error of the mean over the completions.
    pub reward_error: f64,
    pub kl: f64,
    pub kl_error: f64,
    /// Mean number of tokens of a completion.
    pub mean_length: f64,
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

pub struct Evaluator<'a> {
    pub prompts: &'a [Prompt],
    pub per_prompt: usize,
    pub sampling: &'a Sampling<'a>,
    pub tokenizer: &'a Tokenizer,
    pub reward: &'a Reward,
    pub reference: &'a Llama,
}

impl Evaluator<'_> {
    /// Completions that one evaluation draws.
    pub fn count(&self) -> usize {
        self.prompts.len() * self.per_prompt
    }

    /// `policy` none stands for the reference itself, whose log-ratios are 0 and need no second forward pass.
    pub fn evaluate(&self, policy: Option<&Llama>, step: usize, progress: &ProgressBar) -> Result<Evaluation> {
        let prompts = self.prompts.iter().collect::<Vec<_>>();
        let model = policy.unwrap_or(self.reference);
        let drawn = sampling::draw(model, &prompts, self.per_prompt, self.sampling, progress)?;
        let sequences = drawn
            .iter()
            .map(|drawn| (self.prompts[drawn.prompt].tokens.as_slice(), drawn.tokens.as_slice()))
            .collect::<Vec<_>>();
        let log_ratios = if policy.is_some() {
            let options = &self.sampling.logit_options;
            let team = self.sampling.team;
            let own = scoring::log_probs(self.reference, &sequences[team.share(sequences.len())], options)?;
            let bits = own.into_iter().map(|list| list.into_iter().map(f32::to_bits).collect());
            let all = team.all_lists(bits.collect())?;
            let reference = all.iter().map(|list| list.iter().copied().map(f32::from_bits));
            reference.zip(&drawn).map(|(reference, drawn)| log_ratio(&drawn.log_probs, reference)).collect()
        } else {
            vec![0.0; drawn.len()]
        };
        let mut samples = Vec::with_capacity(drawn.len());
        for (drawn, &log_ratio) in drawn.iter().zip(&log_ratios) {
            let completion = self.tokenizer.decode(&drawn.tokens)?;
            samples.push(Sample {
                prompt: self.prompts[drawn.prompt].text.clone(),
                reward: self.reward.score(&completion),
                completion,
                log_ratio,
            });
        }
        let rewards = samples.iter().map(|sample| f64::from(sample.reward));
        let (mean_reward, reward_error) = mean_and_error(&rewards.collect::<Vec<_>>());
        let (kl, kl_error) = mean_and_error(&log_ratios);
        let lengths = drawn.iter().map(|drawn| drawn.tokens.len() as f64);
        let (mean_length, _) = mean_and_error(&lengths.collect::<Vec<_>>());
        Ok(Evaluation { step, mean_reward, reward_error, kl, kl_error, mean_length, samples })
    }
}

/// Differences first, then the sum: what the two models share is gone before anything is added up.
fn log_ratio(policy: &[f32], reference: impl Iterator<Item = f32>) -> f64 {
    policy.iter().zip(reference).map(|(&policy, reference)| f64::from(policy) - f64::from(reference)).sum()
}

/// The mean and its standard error.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let error = if values.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { f64::NAN };
    (mean, error)
}
