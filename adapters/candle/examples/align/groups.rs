//! What training learns from: for each prompt, K completions of the frozen model with their rewards.

use anyhow::Result;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::llama::Llama;
use crate::reward::Reward;
use crate::sampling::{self, Completion, Prompt, Sampling};
use crate::tokenizer::Tokenizer;

pub struct Group {
    pub prompt: Prompt,
    pub completions: Vec<Completion>,
    pub rewards: Vec<f32>,
}

/// Draws `count` groups of `k`. Prompts come in a random order, each once before any comes again, and a prompt that
/// comes again gets fresh completions.
pub fn draw(
    reference: &Llama,
    prompts: &[Prompt],
    (count, k): (usize, usize),
    sampling: &Sampling<'_>,
    (tokenizer, reward): (&Tokenizer, &Reward),
    progress: &ProgressBar,
) -> Result<Vec<Group>> {
    let mut random = StdRng::seed_from_u64(sampling.seed);
    let mut chosen: Vec<&Prompt> = Vec::with_capacity(count + prompts.len());
    while chosen.len() < count {
        let mut round = prompts.iter().collect::<Vec<_>>();
        round.shuffle(&mut random);
        chosen.extend(round);
    }
    chosen.truncate(count);
    let completions = sampling::draw(reference, &chosen, k, sampling, progress)?;
    completions
        .chunks(k)
        .zip(chosen)
        .map(|(completions, prompt)| {
            let rewards = completions
                .iter()
                .map(|completion| Ok(reward.score(&tokenizer.decode(&completion.tokens)?)))
                .collect::<Result<Vec<_>>>()?;
            Ok(Group { prompt: prompt.clone(), completions: completions.to_vec(), rewards })
        })
        .collect()
}
