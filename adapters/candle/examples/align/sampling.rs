//! Completions drawn from a model, many at once, with the log-probability that each token was drawn with.
//!
//! All sequences of a batch march in step, one position per forward pass. Where a prompt is longer than the shortest of
//! the batch, its next token is given instead of drawn. So no position is padding, and one causal mask serves all.
//!
//! Pure sampling at one temperature, nothing truncated: the groups' weights p and q are importance weights under
//! exactly this distribution, and a top-k or top-p cut would have no density to put into them.

use anyhow::Result;
use candle_core::{Device, Tensor};
use exo_kernels::LogitOptions;
use exo_kernels_candle::token_log_probs;
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::llama::{Cache, Llama};
use crate::team::Team;

/// What a model continues: its place in the list of prompts, its text and its tokens.
#[derive(Clone)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// One drawn continuation of a prompt.
#[derive(Clone)]
pub struct Completion {
    /// Place of the prompt in the list that was given to [`draw`].
    pub prompt: usize,
    /// The drawn tokens, the end token included when it was drawn.
    pub tokens: Vec<u32>,
    /// log of the probability of each token at the sampling temperature, natural base.
    pub log_probs: Vec<f32>,
}

pub struct Sampling<'c> {
    /// The loss is given the same options: its importance weights hold only for the temperature of the draw.
    pub logit_options: LogitOptions,
    pub max_new_tokens: usize,
    /// Sequences per forward pass.
    pub batch: usize,
    pub end: u32,
    pub seed: u64,
    /// Who shares the work: each rank draws the completions of some prompts.
    pub team: Team<'c>,
}

/// The cache is thinned out when at most this share of its sequences is still open.
const WORTH_THINNING: (usize, usize) = (7, 8);

/// `per_prompt` completions of every prompt, those of one prompt consecutive.
///
/// Each sequence has its own random stream, so that what is drawn does not depend on the size of a batch.
pub fn draw(
    model: &Llama,
    prompts: &[&Prompt],
    per_prompt: usize,
    sampling: &Sampling<'_>,
    progress: &ProgressBar,
) -> Result<Vec<Completion>> {
    let model = model.detached()?;
    let owners = (0..prompts.len()).flat_map(|prompt| std::iter::repeat_n(prompt, per_prompt)).collect::<Vec<_>>();
    let own = sampling.team.share(prompts.len());
    let own = own.start * per_prompt..own.end * per_prompt;
    let mut completions = Vec::with_capacity(own.len());
    for (batch, batch_owners) in owners[own.clone()].chunks(sampling.batch).enumerate() {
        let first = own.start + batch * sampling.batch;
        completions.extend(draw_batch(&model, prompts, batch_owners, first, sampling, progress)?);
    }
    // Each as its tokens and the bits of their log-probs, one after the other.
    let lists = completions.into_iter().map(|Completion { tokens, log_probs, .. }| {
        tokens.into_iter().chain(log_probs.into_iter().map(f32::to_bits)).collect()
    });
    let completion = |(list, prompt): (Vec<u32>, usize)| {
        let (tokens, log_probs) = list.split_at(list.len() / 2);
        let log_probs = log_probs.iter().copied().map(f32::from_bits).collect();
        Completion { prompt, tokens: tokens.to_vec(), log_probs }
    };
    Ok(sampling.team.all_lists(lists.collect())?.into_iter().zip(owners).map(completion).collect())
}

fn draw_batch(
    model: &Llama,
    prompts: &[&Prompt],
    owners: &[usize],
    first: usize,
    sampling: &Sampling<'_>,
    progress: &ProgressBar,
) -> Result<Vec<Completion>> {
    let device = model.device();
    let mut streams = (0..owners.len()).map(|index| stream(sampling.seed, first + index)).collect::<Vec<_>>();
    let mut completions = owners
        .iter()
        .map(|&prompt| Completion { prompt, tokens: Vec::new(), log_probs: Vec::new() })
        .collect::<Vec<_>>();
    let given = |row: usize| &prompts[owners[row]].tokens;
    let shortest = (0..owners.len()).map(|row| given(row).len()).min();
    let mut position = shortest.unwrap_or(0);
    let (mut cache, mut hidden) = read_prompts(model, prompts, owners, position)?;
    // The sequences in the cache, and so in `hidden`: those that were not complete when it was last thinned out.
    let mut live = (0..owners.len()).collect::<Vec<_>>();
    loop {
        let drawing = (0..live.len())
            .filter(|&row| position >= given(live[row]).len() && !is_complete(&completions[live[row]], sampling))
            .collect::<Vec<_>>();
        if !drawing.is_empty() {
            let logits = model.logits(&hidden.index_select(&indices(&drawing, device)?, 0)?)?;
            let sequences = drawing.iter().map(|&row| live[row]).collect::<Vec<_>>();
            let drawn = draw_tokens(&logits, &sequences, &mut streams, sampling.logit_options.temperature())?;
            let targets = Tensor::new(drawn.as_slice(), device)?;
            let log_probs = token_log_probs(&logits, &targets, &sampling.logit_options)?.to_vec1::<f32>()?;
            for ((sequence, token), log_prob) in sequences.into_iter().zip(drawn).zip(log_probs) {
                completions[sequence].tokens.push(token);
                completions[sequence].log_probs.push(log_prob);
                progress.inc(u64::from(is_complete(&completions[sequence], sampling)));
            }
        }
        let open = (0..live.len()).filter(|&row| !is_complete(&completions[live[row]], sampling)).collect::<Vec<_>>();
        if open.is_empty() {
            return Ok(completions);
        }
        // Complete sequences cost a full forward pass each, thinning out a copy of the cache.
        if open.len() * WORTH_THINNING.1 <= live.len() * WORTH_THINNING.0 {
            cache.select(&indices(&open, device)?)?;
            live = open.into_iter().map(|row| live[row]).collect();
        }
        let next = live
            .iter()
            .map(|&sequence| match given(sequence).get(position) {
                Some(&token) => token,
                None => completions[sequence].tokens.last().copied().unwrap_or(sampling.end),
            })
            .collect::<Vec<_>>();
        let next = Tensor::from_vec(next, (live.len(), 1), device)?;
        hidden = model.hidden(&next, Some(&mut cache))?.squeeze(1)?;
        position += 1;
    }
}

/// Reads the first `length` tokens of each owner's prompt. Gives the cache and the last hidden states `[B, H]`.
///
/// The completions of one prompt share its reading: it goes through the model once and is repeated in the cache.
fn read_prompts(model: &Llama, prompts: &[&Prompt], owners: &[usize], length: usize) -> Result<(Cache, Tensor)> {
    let device = model.device();
    let mut distinct = owners.to_vec();
    distinct.dedup();
    let tokens = distinct.iter().flat_map(|&prompt| &prompts[prompt].tokens[..length]).copied().collect::<Vec<_>>();
    let tokens = Tensor::from_vec(tokens, (distinct.len(), length), device)?;
    let mut cache = Cache::default();
    let hidden = model.hidden(&tokens, Some(&mut cache))?;
    let last = hidden.narrow(1, length - 1, 1)?.squeeze(1)?.contiguous()?;
    // Owners ascend, so a prompt's place among the distinct ones is its distance from the first.
    let places = owners.iter().map(|owner| owner - owners[0]).collect::<Vec<_>>();
    let places = indices(&places, device)?;
    cache.select(&places)?;
    Ok((cache, last.index_select(&places, 0)?))
}

/// Row numbers as candle selects by them.
fn indices(rows: &[usize], device: &Device) -> Result<Tensor> {
    let rows = rows.iter().map(|&row| u32::try_from(row)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::new(rows, device)?)
}

fn is_complete(completion: &Completion, sampling: &Sampling<'_>) -> bool {
    completion.tokens.len() == sampling.max_new_tokens || completion.tokens.last() == Some(&sampling.end)
}

/// The random stream of one sequence. The multiplier spreads neighbouring seeds over all bits.
fn stream(seed: u64, sequence: usize) -> StdRng {
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    StdRng::seed_from_u64(seed.wrapping_mul(SPREAD) ^ sequence as u64)
}

/// One token per row of `logits` `[N, V]`, by inverting the cumulative distribution of softmax(logits / temperature).
fn draw_tokens(logits: &Tensor, drawing: &[usize], streams: &mut [StdRng], temperature: f64) -> Result<Vec<u32>> {
    let vocabulary = logits.dim(1)?;
    let inverse = (1.0 / temperature) as f32;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let mut drawn = Vec::with_capacity(drawing.len());
    for (row, &sequence) in logits.chunks(vocabulary).zip(drawing) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights = row.iter().map(|logit| ((logit - largest) * inverse).exp()).collect::<Vec<_>>();
        let total = weights.iter().copied().map(f64::from).sum::<f64>();
        let mut remaining = streams[sequence].random::<f64>() * total;
        // Rounding may leave a remainder after the last column; the likeliest token is then as good as any.
        let mut token = row.iter().position(|&logit| logit == largest).unwrap_or(0);
        for (column, &weight) in weights.iter().enumerate() {
            remaining -= f64::from(weight);
            if remaining < 0.0 {
                token = column;
                break;
            }
        }
        drawn.push(u32::try_from(token)?);
    }
    Ok(drawn)
}
