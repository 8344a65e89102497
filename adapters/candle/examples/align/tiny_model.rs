//! The embedded default: a byte-level transformer of the same Llama code, fitted to the grammar in a few seconds.
//!
//! It stands in for the model that supervised fine-tuning would give, so that the whole example runs offline.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_nn::optim::Optimizer;
use exo_kernels::LogitOptions;
use exo_kernels_candle::linear_token_log_probs;
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::grammar;
use crate::llama::{Config, Llama};
use crate::scoring;
use crate::training::Policy;

const SENTENCES_PER_STEP: usize = 32;
const LEARNING_RATE: f64 = 4e-3;

pub fn config() -> Config {
    Config {
        vocabulary: 128,
        hidden: 64,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        feed_forward: 128,
        rope_base: 10_000.0,
        norm_epsilon: 1e-5,
    }
}

/// Uniform weights with the variance 1 / in, norms at 1; the same on every device.
pub fn random(config: &Config, seed: u64, device: &Device) -> Result<Llama> {
    let mut random = StdRng::seed_from_u64(seed);
    Llama::new(config, |_, shape| {
        let values = match shape {
            [count] => vec![1f32; *count],
            shape => {
                let largest = (3.0 / shape[1] as f32).sqrt();
                (0..shape.iter().product()).map(|_| random.random_range(-largest..largest)).collect()
            }
        };
        Ok(Tensor::from_vec(values, shape, device)?)
    })
}

/// Fits a random model to `steps` batches of sentences; also gives the last mean loss, in nats per byte.
pub fn fit(steps: usize, seed: u64, device: &Device, progress: &ProgressBar) -> Result<(Llama, f64)> {
    let policy = Policy::copy_of(&random(&config(), seed, device)?)?;
    let mut optimizer = policy.optimizer(LEARNING_RATE)?;
    let mut random = StdRng::seed_from_u64(seed ^ 1);
    let (openings, _) = grammar::openings();
    let mut last = f64::NAN;
    for step in 0..steps {
        let sentences = (0..SENTENCES_PER_STEP)
            .map(|_| {
                let opening = openings.choose(&mut random).context("no openings")?;
                Ok((bytes(opening), bytes(&grammar::completion(&mut random))))
            })
            .collect::<Result<Vec<_>>>()?;
        let sequences = sentences
            .iter()
            .map(|(opening, completion)| (opening.as_slice(), completion.as_slice()))
            .collect::<Vec<_>>();
        let scored = scoring::score(&policy.model, &sequences)?;
        let log_probs = linear_token_log_probs(
            &scored.hidden,
            policy.model.head(),
            None,
            &scored.targets,
            &LogitOptions::default(),
        )?;
        let loss = log_probs.mean_all()?.neg()?;
        let mut gradients = loss.backward()?;
        let norm = policy.gradient_norm(&gradients)?;
        policy.clip(&mut gradients, norm, 1.0)?;
        let left = 1.0 - step as f64 / steps as f64;
        optimizer.set_learning_rate(LEARNING_RATE * left);
        optimizer.step(&gradients)?;
        last = f64::from(loss.to_scalar::<f32>()?);
        progress.set_message(format!("loss {last:.3}"));
        progress.inc(1);
    }
    Ok((policy.model.detached()?, last))
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}
