//! From prompts and completions to the packed hidden states that the loss takes.
//!
//! Sequences go through the model side by side, padded at the end, where a causal model cannot see the padding. Then
//! the hidden states that predict a completion's tokens are gathered, and only those N rows meet the head: prompt
//! positions and padding cost nothing of it.

use anyhow::Result;
use candle_core::{DType, Tensor};
use exo_kernels::LogitOptions;
use exo_kernels_candle::linear_token_log_probs;

use crate::llama::Llama;

/// Sequences of one forward pass when only log-probabilities are wanted.
const SCORED_AT_ONCE: usize = 32;

/// What the head is multiplied with, `[N, H]`, at the scored rows, their targets `[N]`, and the S + 1 offsets of the
/// sequences among the rows.
pub struct Scored {
    pub hidden: Tensor,
    pub targets: Tensor,
    pub offsets: Vec<usize>,
}

/// `sequences` are pairs of prompt tokens and completion tokens; neither may be empty.
pub fn score(model: &Llama, sequences: &[(&[u32], &[u32])]) -> Result<Scored> {
    let device = model.device();
    // The last token of a completion is predicted but predicts nothing, so it is not fed.
    let longest = sequences.iter().map(|(prompt, completion)| prompt.len() + completion.len() - 1).max().unwrap_or(0);
    let mut tokens = Vec::with_capacity(sequences.len() * longest);
    let mut rows = Vec::new();
    let mut targets = Vec::new();
    let mut offsets = vec![0];
    for (index, (prompt, completion)) in sequences.iter().enumerate() {
        let start = index * longest;
        tokens.extend_from_slice(prompt);
        tokens.extend_from_slice(&completion[..completion.len() - 1]);
        tokens.resize(start + longest, 0);
        let first = u32::try_from(start + prompt.len() - 1)?;
        rows.extend((first..).take(completion.len()));
        targets.extend_from_slice(completion);
        offsets.push(targets.len());
    }
    let tokens = Tensor::from_vec(tokens, (sequences.len(), longest), device)?;
    let hidden = model.hidden(&tokens, None)?.flatten_to(1)?;
    let hidden = hidden.index_select(&Tensor::new(rows, device)?, 0)?;
    Ok(Scored { hidden: model.before_head(&hidden)?, targets: Tensor::new(targets, device)?, offsets })
}

/// log-probability of every completion token, one list per sequence, without a graph.
pub fn log_probs(model: &Llama, sequences: &[(&[u32], &[u32])], options: &LogitOptions) -> Result<Vec<Vec<f32>>> {
    let model = model.detached()?;
    let mut all = Vec::with_capacity(sequences.len());
    for sequences in sequences.chunks(SCORED_AT_ONCE) {
        let scored = score(&model, sequences)?;
        let values = linear_token_log_probs(&scored.hidden, model.head(), None, &scored.targets, options)?;
        let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        all.extend(scored.offsets.windows(2).map(|bounds| values[bounds[0]..bounds[1]].to_vec()));
    }
    Ok(all)
}
