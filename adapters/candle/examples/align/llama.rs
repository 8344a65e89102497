//! A small Llama: token ids `[B, T]` in, hidden states `[B, T, H]` out, and logits only for the rows that are asked
//! for.
//!
//! Everything is made of candle's elementary operations. The fused ones (rms norm, rotary embedding, softmax) are
//! faster but have no backward pass on every device, and some of them return no gradient without saying so. The tests
//! at the end hold each parameter's gradient to a finite difference.
//!
//! Shapes: B sequences, T positions, H hidden width, A query heads, C key/value heads, D head width, V vocabulary.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};

/// The sizes of a model; all of them stand in a GGUF file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    pub feed_forward: usize,
    pub rope_base: f64,
    pub norm_epsilon: f64,
}

impl Config {
    pub fn head_width(&self) -> usize {
        self.hidden / self.heads
    }

    pub fn validate(&self) -> Result<()> {
        ensure!(
            self.heads > 0 && self.hidden.is_multiple_of(self.heads),
            "the hidden width must be a multiple of the number of heads, but it is {} with {} heads",
            self.hidden,
            self.heads
        );
        ensure!(
            self.key_value_heads > 0 && self.heads.is_multiple_of(self.key_value_heads),
            "the number of heads must be a multiple of the number of key/value heads, but they are {} and {}",
            self.heads,
            self.key_value_heads
        );
        ensure!(
            self.head_width().is_multiple_of(2),
            "rotary embedding needs an even head width, but it is {}",
            self.head_width()
        );
        Ok(())
    }

    /// Name and shape of every parameter. Matrices are `[out, in]`.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, wide) = (self.hidden, self.feed_forward);
        let narrow = self.key_value_heads * self.head_width();
        let mut all = vec![("embedding".to_owned(), vec![self.vocabulary, hidden])];
        for layer in 0..self.layers {
            let shapes = [
                ("attention_norm", vec![hidden]),
                ("query", vec![hidden, hidden]),
                ("key", vec![narrow, hidden]),
                ("value", vec![narrow, hidden]),
                ("output", vec![hidden, hidden]),
                ("feed_forward_norm", vec![hidden]),
                ("gate", vec![wide, hidden]),
                ("up", vec![wide, hidden]),
                ("down", vec![hidden, wide]),
            ];
            all.extend(shapes.into_iter().map(|(name, shape)| (format!("layer {layer} {name}"), shape)));
        }
        all.push(("final_norm".to_owned(), vec![hidden]));
        all
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    feed_forward_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// The weights with the forward pass. The language-model head is the embedding (tied).
pub struct Llama {
    pub config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    quarter_turn: Tensor,
}

/// Keys and values of the positions seen so far, one pair `[B, C, T, D]` per layer.
#[derive(Default)]
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
}

impl Cache {
    /// Positions held.
    pub fn length(&self) -> Result<usize> {
        Ok(match self.layers.first() {
            Some((key, _)) => key.dim(2)?,
            None => 0,
        })
    }
}

impl Llama {
    /// Asks `parameter` for each tensor of [`Config::parameters`], in that order.
    pub fn new(config: &Config, mut parameter: impl FnMut(&str, &[usize]) -> Result<Tensor>) -> Result<Self> {
        config.validate()?;
        let mut tensors = Vec::new();
        for (name, shape) in config.parameters() {
            let tensor = parameter(&name, &shape)?;
            ensure!(
                tensor.dims() == shape,
                "parameter `{name}` should have the shape {shape:?}, but it has {:?}",
                tensor.dims()
            );
            tensors.push(tensor);
        }
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("one tensor per listed parameter");
        let embedding = next();
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            layers.push(Layer {
                attention_norm: next(),
                query: next(),
                key: next(),
                value: next(),
                output: next(),
                feed_forward_norm: next(),
                gate: next(),
                up: next(),
                down: next(),
            });
        }
        Ok(Self {
            quarter_turn: quarter_turn(config.head_width(), embedding.device())?,
            config: config.clone(),
            embedding,
            layers,
            final_norm: next(),
        })
    }

    /// Where the parameters are, and where everything that meets them must be.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Every parameter with its name, in the order of [`Config::parameters`].
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut tensors = vec![&self.embedding];
        for layer in &self.layers {
            tensors.extend([
                &layer.attention_norm,
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.output,
                &layer.feed_forward_norm,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]);
        }
        tensors.push(&self.final_norm);
        let names = self.config.parameters();
        names.into_iter().map(|(name, _)| name).zip(tensors).collect()
    }

    /// The same storage without a graph: what sampling and scoring run on. It follows the optimiser's steps.
    pub fn detached(&self) -> Result<Self> {
        let mut tensors = self.parameters().into_iter();
        Self::new(&self.config, |_, _| Ok(tensors.next().expect("the same configuration").1.detach()))
    }

    /// Hidden states `[B, T, H]` of `tokens` `[B, T]`, before the final norm. With a cache, `tokens` continue what it
    /// holds.
    pub fn hidden(&self, tokens: &Tensor, mut cache: Option<&mut Cache>) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let start = match &cache {
            Some(cache) => cache.length()?,
            None => 0,
        };
        let device = tokens.device();
        let rotation = self.rotation(start, length, device)?;
        let spread = |heads: usize| -> Result<(Tensor, Tensor)> {
            let shape = (batch, heads, length, self.config.head_width());
            let (cos, sin) = &rotation;
            Ok((cos.broadcast_as(shape)?.contiguous()?, sin.broadcast_as(shape)?.contiguous()?))
        };
        // Spread once for all layers: products of equal shapes need no sums over the broadcast in the backward pass.
        let rotations = [spread(self.config.heads)?, spread(self.config.key_value_heads)?];
        let mask = causal_mask(start, length, device)?;
        let mut rows = self.embedding.index_select(&tokens.flatten_all()?, 0)?.contiguous()?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = self.norm(&rows, &layer.attention_norm)?;
            let attended = self.attention(
                layer,
                &normed,
                (batch, length),
                &rotations,
                mask.as_ref(),
                cache.as_deref_mut().map(|cache| (cache, index)),
            )?;
            rows = (rows + attended)?;
            let normed = self.norm(&rows, &layer.feed_forward_norm)?;
            let gate = linear(&normed, &layer.gate)?.silu()?;
            let up = linear(&normed, &layer.up)?;
            rows = (rows + linear(&(gate * up)?, &layer.down)?)?;
        }
        Ok(rows.reshape((batch, length, self.config.hidden))?)
    }

    /// Logits `[N, V]` of hidden rows `[N, H]`.
    pub fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        linear(&self.before_head(rows)?, self.head())
    }

    /// What the head is multiplied with, `[N, H]`, of hidden rows `[N, H]`.
    pub fn before_head(&self, rows: &Tensor) -> Result<Tensor> {
        self.norm(rows, &self.final_norm)
    }

    /// The weight of the head, `[V, H]`: the embedding's.
    pub fn head(&self) -> &Tensor {
        &self.embedding
    }

    fn norm(&self, rows: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean_square = rows.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (mean_square + self.config.norm_epsilon)?.sqrt()?;
        Ok(rows.broadcast_div(&scale)?.broadcast_mul(weight)?)
    }

    fn attention(
        &self,
        layer: &Layer,
        rows: &Tensor,
        (batch, length): (usize, usize),
        [query_rotation, key_rotation]: &[(Tensor, Tensor); 2],
        mask: Option<&Tensor>,
        cache: Option<(&mut Cache, usize)>,
    ) -> Result<Tensor> {
        let (heads, shared, width) = (self.config.heads, self.config.key_value_heads, self.config.head_width());
        let split = |tensor: Tensor, heads: usize| -> Result<Tensor> {
            let tensor = tensor.reshape((batch, length, heads, width))?;
            Ok(tensor.transpose(1, 2)?.contiguous()?)
        };
        let query = split(linear(rows, &layer.query)?, heads)?;
        let query = self.rotate(&query, query_rotation)?;
        let key = split(linear(rows, &layer.key)?, shared)?;
        let key = self.rotate(&key, key_rotation)?;
        let value = split(linear(rows, &layer.value)?, shared)?;
        let (key, value) = match cache {
            None => (key, value),
            Some((cache, index)) => cache.extend(index, &key, &value)?,
        };
        let seen = key.dim(2)?;

        // The A / C query heads of one key head are stacked as rows of one product, so no key is ever repeated.
        let stacked = heads / shared * length;
        let query = query.reshape((batch, shared, stacked, width))?;
        let scale = 1.0 / (width as f64).sqrt();
        let scores = (query.matmul(&key.transpose(2, 3)?)? * scale)?;
        let scores = scores.reshape((batch, heads, length, seen))?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = softmax(&scores)?.reshape((batch, shared, stacked, seen))?;
        let mixed = weights.matmul(&value)?;
        let mixed = mixed.reshape((batch, heads, length, width))?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?;
        linear(&mixed.reshape((batch * length, heads * width))?, &layer.output)
    }

    /// Cosines and sines `[T, D]` of the angles by which positions `start..start + length` turn a head.
    fn rotation(&self, start: usize, length: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let width = self.config.head_width();
        let mut angles = Vec::with_capacity(length * width);
        for position in start..start + length {
            for column in 0..width {
                let pair = column % (width / 2);
                let (position, exponent) = (position as f64, 2.0 * pair as f64 / width as f64);
                angles.push((position / self.config.rope_base.powf(exponent)) as f32);
            }
        }
        let angles = Tensor::from_vec(angles, (length, width), device)?;
        Ok((angles.cos()?, angles.sin()?))
    }

    /// Rotary embedding of `[B, heads, T, D]`; the two halves of a head are the two coordinates of its D / 2 planes.
    ///
    /// The quarter turn (a, b) → (−b, a) is a product with a constant matrix: slicing and joining halves walks
    /// strided memory in both passes, which costs candle more than these few multiplications.
    fn rotate(&self, heads: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let width = self.config.head_width();
        let turned = heads.reshape(((), width))?.matmul(&self.quarter_turn)?.reshape(heads.shape())?;
        Ok(((heads * cos)? + (turned * sin)?)?)
    }
}

impl Cache {
    /// Makes sequence i what sequence `rows[i]` was.
    pub fn select(&mut self, rows: &Tensor) -> Result<()> {
        for (key, value) in &mut self.layers {
            *key = key.index_select(rows, 0)?;
            *value = value.index_select(rows, 0)?;
        }
        Ok(())
    }

    fn extend(&mut self, index: usize, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor)> {
        let joined = match self.layers.get(index) {
            Some((old_key, old_value)) => (Tensor::cat(&[old_key, key], 2)?, Tensor::cat(&[old_value, value], 2)?),
            None => (key.clone(), value.clone()),
        };
        if index < self.layers.len() {
            self.layers[index] = joined.clone();
        } else {
            self.layers.push(joined.clone());
        }
        Ok(joined)
    }
}

/// `rows` `[N, in]` times the transpose of `weight` `[out, in]`.
fn linear(rows: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(rows.matmul(&weight.t()?)?)
}

/// Softmax of the last dimension. The maximum is a constant shift, so no gradient has to pass through it.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let exponentials = shifted.exp()?;
    let total = exponentials.sum_keepdim(D::Minus1)?;
    Ok(exponentials.broadcast_div(&total)?)
}

/// `[T, start + T]`: 0 where a position may look, minus infinity where it may not; none when every position may.
fn causal_mask(start: usize, length: usize, device: &Device) -> Result<Option<Tensor>> {
    if length == 1 {
        return Ok(None);
    }
    let seen = start + length;
    let mut mask = vec![0f32; length * seen];
    for row in 0..length {
        mask[row * seen + start + row + 1..(row + 1) * seen].fill(f32::NEG_INFINITY);
    }
    Ok(Some(Tensor::from_vec(mask, (length, seen), device)?))
}

/// The `[D, D]` matrix that takes a head (a, b) to (−b, a).
fn quarter_turn(width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let mut matrix = vec![0f32; width * width];
    for plane in 0..half {
        matrix[(half + plane) * width + plane] = -1.0;
        matrix[plane * width + half + plane] = 1.0;
    }
    Ok(Tensor::from_vec(matrix, (width, width), device)?.to_dtype(DType::F32)?)
}
