//! What callers hand over: logits and matrices, heads, batches, targets, references and rewards.

pub(crate) mod batch;
pub(crate) mod head;
pub(crate) mod logits;
pub(crate) mod matrix;
pub(crate) mod reference;
pub(crate) mod rewards;
pub(crate) mod targets;
