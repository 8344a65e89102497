//! What tests give to the token log-prob stage of any backend, and what they get back, in the host's memory.

use exo_kernels::SoftmaxState;

/// What the forward pass gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    pub log_probs: Vec<f32>,
    pub states: Vec<SoftmaxState>,
    /// Empty where they were not asked for.
    pub entropies: Vec<f32>,
}

/// Rows of logits with their targets: `[N, V]`, row stride ≥ V.
#[derive(Debug, Clone)]
pub struct Rows<T> {
    pub logits: Vec<T>,
    pub targets: Vec<i64>,
    pub vocab: usize,
    pub row_stride: usize,
    /// Elements before the first row: another alignment.
    pub offset: usize,
    /// The ids are given as `u32`.
    pub targets_in_32_bits: bool,
}

impl<T: Copy> Rows<T> {
    /// Contiguous rows.
    pub fn new(logits: Vec<T>, targets: Vec<i64>, vocab: usize) -> Self {
        Self { logits, targets, vocab, row_stride: vocab, offset: 0, targets_in_32_bits: false }
    }

    /// One row.
    pub fn one(logits: &[T], target: usize) -> Self {
        Self::new(logits.to_vec(), vec![target as i64], logits.len())
    }

    /// How many rows the buffer of logits has room for: N, if nothing is amiss.
    pub fn rows_of_logits(&self) -> usize {
        (self.logits.len() - self.offset + self.row_stride - self.vocab) / self.row_stride
    }

    /// N.
    pub fn count(&self) -> usize {
        self.targets.len()
    }

    /// The same rows `offset` elements into a buffer, with `padding` elements behind each; both filled with `fill`.
    #[must_use]
    pub fn moved(&self, offset: usize, padding: usize, fill: T) -> Self {
        let row_stride = self.vocab + padding;
        let mut logits = vec![fill; offset + self.count() * row_stride];
        for (row, place) in logits[offset..].chunks_mut(row_stride).enumerate() {
            place[..self.vocab].copy_from_slice(self.row(&self.logits, row));
        }
        Self { logits, row_stride, offset, ..self.clone() }
    }

    /// Row `row` in a buffer that is laid out as the logits are.
    pub fn row<'a, V>(&self, buffer: &'a [V], row: usize) -> &'a [V] {
        &buffer[self.offset + row * self.row_stride..][..self.vocab]
    }

    /// The ids as `u32`.
    pub fn narrow_targets(&self) -> Vec<u32> {
        self.targets.iter().map(|&target| target as u32).collect()
    }
}
