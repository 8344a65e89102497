//! Contracts of the linear stage.

mod accumulation;
mod identity_head;
mod kept;
mod kept_precision;
mod log_prob;
mod log_prob_precision;
mod preference_accumulation;
mod preference_loss;
mod refused;
mod row_loss;
mod row_loss_inputs;
mod shards;
mod shards_refused;
