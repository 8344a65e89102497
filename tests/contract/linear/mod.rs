//! Contracts of the linear stage.

mod accumulation;
mod log_prob;
mod log_prob_precision;
mod preference_accumulation;
mod preference_loss;
mod row_loss;
mod row_loss_inputs;
