//! Text to token ids and back: byte-level pair merges from a GGUF file's metadata, or plain bytes for the tiny model.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

pub enum Tokenizer {
    /// One token per byte; a line feed ends a text.
    Bytes,
    /// Boxed, because the merges' tables make the value itself large.
    PairMerges { inner: Box<tokenizers::Tokenizer>, end: u32 },
}

impl Tokenizer {
    pub fn from_gguf(content: &Content) -> Result<Self> {
        let model = text(content, "tokenizer.ggml.model")?;
        let split = text(content, "tokenizer.ggml.pre")?;
        ensure!(
            model == "gpt2" && split == "smollm",
            "this example reads the byte-level tokenizer of SmolLM (`gpt2` with pre-tokenizer `smollm`), \
             but the file has `{model}` with `{split}`"
        );
        let vocabulary = texts(content, "tokenizer.ggml.tokens")?.into_iter().zip(0u32..).collect::<Vocab>();
        let merges = texts(content, "tokenizer.ggml.merges")?
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => bail!("a merge should be two tokens with a space between them, but one is `{merge}`"),
            })
            .collect::<Result<Vec<_>>>()?;
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .build()
            .map_err(|error| anyhow!("the file's merges do not fit its tokens: {error}"))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        // `smollm`: each digit stands alone, then GPT-2's split; no space is put before the text.
        let byte_level = ByteLevel::new(false, false, true);
        inner.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(byte_level),
        ]))));
        inner.with_decoder(Some(byte_level));
        let end = content
            .metadata
            .get("tokenizer.ggml.eos_token_id")
            .context("the file's metadata has no `tokenizer.ggml.eos_token_id`")?
            .to_u32()?;
        Ok(Self::PairMerges { inner: Box::new(inner), end })
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::PairMerges { inner, .. } => {
                let encoding =
                    inner.encode(text, false).map_err(|error| anyhow!("cannot tokenize `{text}`: {error}"))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of `tokens` without the end token. A character cut in half becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let end = self.end();
        let tokens = tokens.iter().copied().filter(|&token| token != end).collect::<Vec<_>>();
        match self {
            Self::Bytes => {
                let bytes = tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect::<Vec<_>>();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::PairMerges { inner, .. } => {
                inner.decode(&tokens, false).map_err(|error| anyhow!("cannot turn tokens into text: {error}"))
            }
        }
    }

    /// The token that ends a completion. It is scored like any other.
    pub fn end(&self) -> u32 {
        match self {
            Self::Bytes => u32::from(b'\n'),
            Self::PairMerges { end, .. } => *end,
        }
    }
}

fn text<'a>(content: &'a Content, key: &str) -> Result<&'a str> {
    let value = content.metadata.get(key).with_context(|| format!("the file's metadata has no `{key}`"))?;
    Ok(value.to_string()?)
}

fn texts(content: &Content, key: &str) -> Result<Vec<String>> {
    let value = content.metadata.get(key).with_context(|| format!("the file's metadata has no `{key}`"))?;
    let Value::Array(values) = value else {
        bail!("`{key}` in the file's metadata should be a list of texts");
    };
    values.iter().map(|value| Ok(value.to_string()?.clone())).collect()
}
