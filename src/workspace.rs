//! What a loss keeps between steps.

use crate::backend::Backend;
use crate::error::Result;
use crate::kept_rows::KeptRows;
use crate::options::LossOptions;
use crate::ranks::sequences::RankBuffers;
use crate::step_buffers::StepBuffers;

/// Buffers that are kept between steps: per row (N), per sequence (S) and per group (G), never anything of the size of the
/// logits.
#[derive(Debug)]
pub(crate) struct Workspace<B: Backend> {
    /// The batch of the last forward pass.
    pub(crate) batch: B::Batch,
    pub(crate) step: StepBuffers<B>,
    pub(crate) kept: KeptRows<B>,
    pub(crate) log_probs: B::Buffer<f32>,
    pub(crate) entropies: B::Buffer<f32>,
    pub(crate) log_prob_sums: B::Buffer<f64>,
    pub(crate) coefficients: B::Buffer<f64>,
    pub(crate) ranks: RankBuffers<B>,
    /// V of the last forward pass.
    pub(crate) vocab: usize,
    /// The options of the last forward pass.
    pub(crate) options: Option<LossOptions>,
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self {
            batch: B::Batch::default(),
            step: StepBuffers::default(),
            kept: KeptRows::default(),
            log_probs: B::Buffer::default(),
            entropies: B::Buffer::default(),
            log_prob_sums: B::Buffer::default(),
            coefficients: B::Buffer::default(),
            ranks: RankBuffers::default(),
            vocab: 0,
            options: None,
        }
    }
}

impl<B: Backend> Workspace<B> {
    /// Makes room for so many rows, and so many sequences and groups of all ranks.
    pub(crate) fn reserve(
        &mut self,
        backend: &B,
        rows: usize,
        sequences: usize,
        groups: usize,
        entropy: bool,
    ) -> Result<()> {
        backend.reserve(&mut self.log_probs, rows)?;
        backend.reserve(&mut self.kept.states, rows)?;
        backend.reserve(&mut self.kept.row_sequences, rows)?;
        backend.reserve(&mut self.kept.targets, rows)?;
        for buffer in [&mut self.log_prob_sums, &mut self.coefficients, &mut self.kept.sequence_weights] {
            backend.reserve(buffer, sequences)?;
        }
        if entropy {
            backend.reserve(&mut self.entropies, rows)?;
        }
        backend.reserve_step(&mut self.step, sequences, groups, entropy)
    }
}
