//! A GGUF file of the `llama` architecture: configuration, weights as f32, and the tokenizer.
//!
//! Quantised weights are expanded once, at loading: training needs f32 anyway. A matrix is `[out, in]`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};

use crate::llama::{Config, Llama};
use crate::tokenizer::Tokenizer;

pub fn load(path: &Path, device: &Device) -> Result<(Llama, Tokenizer)> {
    let mut file = File::open(path).with_context(|| format!("cannot open the model file {}", path.display()))?;
    let content =
        Content::read(&mut file).with_context(|| format!("{} is not a readable GGUF file", path.display()))?;
    let config = config(&content).with_context(|| format!("in {}", path.display()))?;
    ensure!(
        !content.tensor_infos.contains_key("output.weight"),
        "{} has its own head matrix; this example expects the head to be tied to the embedding",
        path.display()
    );
    let tokenizer = Tokenizer::from_gguf(&content)?;
    let model = Llama::new(&config, |name, _| {
        let stored = stored_name(name);
        let tensor = content
            .tensor(&mut file, &stored, device)
            .with_context(|| format!("cannot read the tensor `{stored}`"))?
            .dequantize(device)?;
        if stored.ends_with("attn_q.weight") || stored.ends_with("attn_k.weight") {
            return split_planes(&tensor, config.head_width());
        }
        Ok(tensor)
    })?;
    Ok((model, tokenizer))
}

fn config(content: &Content) -> Result<Config> {
    let value = |key: &str| content.metadata.get(key).with_context(|| format!("the file's metadata has no `{key}`"));
    let architecture = value("general.architecture")?.to_string()?;
    ensure!(architecture == "llama", "the architecture should be `llama`, but it is `{architecture}`");
    let size = |key: &str| -> Result<usize> {
        let size = value(key)?.to_u32()?;
        Ok(usize::try_from(size)?)
    };
    let number = |key: &str| -> Result<f64> { Ok(f64::from(value(key)?.to_f32()?)) };
    let config = Config {
        vocabulary: size("llama.vocab_size")?,
        hidden: size("llama.embedding_length")?,
        layers: size("llama.block_count")?,
        heads: size("llama.attention.head_count")?,
        key_value_heads: size("llama.attention.head_count_kv")?,
        feed_forward: size("llama.feed_forward_length")?,
        rope_base: number("llama.rope.freq_base")?,
        norm_epsilon: number("llama.attention.layer_norm_rms_epsilon")?,
    };
    config.validate()?;
    let rotated = size("llama.rope.dimension_count")?;
    ensure!(
        rotated == config.head_width(),
        "the whole head of {} should be rotated, but the file rotates {rotated}",
        config.head_width()
    );
    Ok(config)
}

/// GGUF's name of one of [`Config::parameters`].
fn stored_name(name: &str) -> String {
    match name {
        "embedding" => return "token_embd.weight".to_owned(),
        "final_norm" => return "output_norm.weight".to_owned(),
        _ => {}
    }
    let mut words = name.split(' ').skip(1);
    let layer = words.next().unwrap_or_default();
    let part = match words.next().unwrap_or_default() {
        "attention_norm" => "attn_norm",
        "query" => "attn_q",
        "key" => "attn_k",
        "value" => "attn_v",
        "output" => "attn_output",
        "feed_forward_norm" => "ffn_norm",
        "gate" => "ffn_gate",
        "up" => "ffn_up",
        "down" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{part}.weight")
}

/// Rows of one head stand in the file as (first, second) coordinate of plane 0, of plane 1, ...; the forward pass wants
/// all first coordinates and then all second ones.
fn split_planes(weight: &Tensor, head_width: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let planes = weight.reshape((rows / head_width, head_width / 2, 2, columns))?;
    let split = planes.transpose(1, 2)?.contiguous()?;
    Ok(split.reshape((rows, columns))?)
}
