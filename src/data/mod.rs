//! What callers hand over: logits and matrices, heads, batches, targets, references and rewards.

pub(crate) mod batch;
pub(crate) mod head;
pub(crate) mod host_memory;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod reference;
pub(crate) mod rewards;
pub(crate) mod shard;
pub(crate) mod targets;
