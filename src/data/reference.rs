//! The reference model's log-probs.

use crate::data::memory::Memory;

/// Log-probs of the same tokens under the frozen reference model, at the same temperature and softcap.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a, M: Memory> {
    /// One per row, N. Preferred: the difference is formed per token, before the sum. Not read at masked rows.
    PerToken(M::View<'a, f32>),
    /// One per sequence, S: sums over the scored rows. Keep them in f64; an f32 of 5000 nats is off by up to 2.4e-4.
    PerSequence(M::View<'a, f64>),
    /// None: the log-ratio is the policy's log-prob.
    None,
}
