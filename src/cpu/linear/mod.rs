//! The linear stage on the CPU: the logits of hidden states and a head, a tile at a time.

mod kept_logits;
pub(super) mod log_prob;
pub(super) mod log_prob_backward;
mod product;
#[cfg(test)]
mod product_counts;
pub(super) mod row_loss;
pub(super) mod shard;
mod tiles;
mod unit_gradient;
