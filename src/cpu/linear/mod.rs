//! The linear stage on the CPU: the logits of hidden states and a head, a tile at a time.

pub(super) mod log_prob;
pub(super) mod log_prob_backward;
mod product;
pub(super) mod row_loss;
mod tiles;
