//! Tests that hold the model's gradients, its cache and its log-probabilities to independent values; on a CUDA device
//! where the build has CUDA.
#![cfg(test)]

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use exo_kernels::LogitOptions;
use indicatif::ProgressBar;

use crate::device::DeviceName;
use crate::llama::{Config, Llama};
use crate::sampling::{self, Prompt, Sampling};
use crate::scoring;
use crate::team::Team;
use crate::tiny_model;
use crate::training::Policy;

fn config() -> Config {
    Config {
        vocabulary: 13,
        hidden: 12,
        layers: 2,
        heads: 6,
        key_value_heads: 2,
        feed_forward: 10,
        rope_base: 100.0,
        norm_epsilon: 1e-5,
    }
}

fn device() -> Result<Device> {
    if candle_core::utils::cuda_is_available() { DeviceName::Cuda.open() } else { DeviceName::Cpu.open() }
}

const SEQUENCES: [(&[u32], &[u32]); 3] = [(&[1, 2, 3], &[4, 5]), (&[7], &[8, 9, 1, 12]), (&[11, 0], &[6])];

/// A scalar with different weights on all scored log-probabilities.
fn objective(model: &Llama) -> Result<Tensor> {
    let scored = scoring::score(model, &SEQUENCES)?;
    let log_probs = exo_kernels_candle::linear_token_log_probs(
        &scored.hidden,
        model.head(),
        None,
        &scored.targets,
        &LogitOptions::default().with_temperature(0.8)?,
    )?;
    let weights = Tensor::new(&[0.5f32, -1.0, 2.0, 0.25, -0.75, 1.5, 1.0], model.device())?;
    Ok((log_probs * weights)?.sum_all()?)
}

#[test]
fn every_parameter_gets_the_gradient_of_a_finite_difference() -> Result<()> {
    let start = tiny_model::random(&config(), 3, &device()?)?;
    let policy = Policy::copy_of(&start)?;
    let gradients = objective(&policy.model)?.backward()?;
    for (name, parameter) in policy.model.parameters() {
        let gradient = gradients.get(parameter).expect("every parameter takes part");
        let length = gradient.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        assert!(length > 1e-3, "`{name}` has no gradient: {length}");
        // Along the gradient itself the slope is its length, and an error in any part of it shortens the slope.
        let direction = (gradient / f64::from(length))?;
        let value = |shift: f64| -> Result<f64> {
            let moved = Llama::new(&config(), {
                let mut tensors = start.parameters().into_iter();
                let (name, direction) = (name.clone(), direction.clone());
                move |_, _| {
                    let (current, tensor) = tensors.next().expect("the same configuration");
                    Ok(if current == name { (tensor + (&direction * shift)?)? } else { tensor.clone() })
                }
            })?;
            Ok(objective(&moved)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
        };
        let step = 4e-3;
        let slope = (value(step)? - value(-step)?) / (2.0 * step);
        let length = f64::from(length);
        assert!((slope - length).abs() < 5e-3 * length + 2e-3, "`{name}`: the slope is {slope}, the gradient {length}");
    }
    Ok(())
}

#[test]
fn a_policy_is_a_copy_of_its_own() -> Result<()> {
    let reference = tiny_model::random(&config(), 4, &device()?)?;
    let policy = Policy::copy_of(&reference)?;
    let before = reference.parameters()[0].1.flatten_all()?.to_vec1::<f32>()?;
    let view = policy.model.detached()?;
    let variable = policy.model.parameters()[0].1.clone();
    Var::from_tensor(&variable)?.set(&variable.zeros_like()?)?;
    let after = reference.parameters()[0].1.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(before, after);
    let seen = view.parameters()[0].1.flatten_all()?.to_vec1::<f32>()?;
    assert!(seen.iter().all(|&value| value == 0.0), "the view follows the policy");
    Ok(())
}

#[test]
fn log_probs_of_sampling_with_a_cache_equal_those_of_one_pass() -> Result<()> {
    let model = tiny_model::random(&config(), 5, &device()?)?;
    let prompts = [vec![1, 2, 3], vec![4], vec![5, 6]].map(|tokens| Prompt { text: String::new(), tokens });
    let logit_options = LogitOptions::default().with_temperature(0.8)?;
    let mut sampling = Sampling { logit_options, max_new_tokens: 6, batch: 4, end: 0, seed: 9, team: Team::default() };
    let prompts = prompts.iter().collect::<Vec<_>>();
    let drawn = sampling::draw(&model, &prompts, 3, &sampling, &ProgressBar::hidden())?;
    let sequences = drawn
        .iter()
        .map(|drawn| (prompts[drawn.prompt].tokens.as_slice(), drawn.tokens.as_slice()))
        .collect::<Vec<_>>();
    let scored = scoring::log_probs(&model, &sequences, &logit_options)?;
    for (drawn, scored) in drawn.iter().zip(&scored) {
        assert_eq!(drawn.log_probs.len(), drawn.tokens.len());
        for (drawn, scored) in drawn.log_probs.iter().zip(scored) {
            assert!((drawn - scored).abs() < 1e-4, "{drawn} is not {scored}");
        }
    }
    // What is drawn is a matter of the sequence, not of its batch.
    sampling.batch = 100;
    let again = sampling::draw(&model, &prompts, 3, &sampling, &ProgressBar::hidden())?;
    for (one, other) in drawn.iter().zip(&again) {
        assert_eq!(one.tokens, other.tokens);
    }
    Ok(())
}
