//! What the stages take and give, the same on every backend, and the checks that every backend makes first.

pub(crate) mod linear;
pub(crate) mod linear_shard;
pub(crate) mod log_ratio;
pub(crate) mod objective;
pub(crate) mod partial_row;
pub(crate) mod row_loss;
pub(crate) mod sequence_part;
pub(crate) mod token_log_prob;
