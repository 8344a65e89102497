//! What the stages after the token log-probs leave for a report, and the rewards that they read.

use crate::backend::Backend;
use crate::stage::objective::GroupStatistics;

/// Buffers of a step that a backend may lay together, so that it brings the rewards in one copy and a report in another: per
/// sequence (S) and per group (G). [`Backend::reserve_step`] makes room.
#[derive(Debug)]
pub struct StepBuffers<B: Backend> {
    pub(crate) rewards: B::RewardBuffers,
    /// `[G]`
    pub(crate) group_losses: B::Buffer<f64>,
    /// `[S]`
    pub(crate) log_ratios: B::Buffer<f64>,
    /// `[G]`
    pub(crate) statistics: B::Buffer<GroupStatistics>,
    /// `[S]`, if entropies were asked for.
    pub(crate) entropy_sums: B::Buffer<f64>,
    /// `[S]`
    pub(crate) scored_rows: B::Buffer<i32>,
}

impl<B: Backend> Default for StepBuffers<B> {
    fn default() -> Self {
        Self {
            rewards: B::RewardBuffers::default(),
            group_losses: B::Buffer::default(),
            log_ratios: B::Buffer::default(),
            statistics: B::Buffer::default(),
            entropy_sums: B::Buffer::default(),
            scored_rows: B::Buffer::default(),
        }
    }
}
