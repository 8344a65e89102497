// The operations, on tensors of the `candle_core` of the module that includes this file.

#[cfg(feature = "cuda")]
mod device;
mod host;
mod operands;
mod operation;
mod preference_loss;
mod row_layout;
mod tensor_backend;
mod token_log_prob;

pub use preference_loss::{linear_preference_loss, preference_loss};
pub use token_log_prob::{
    linear_token_log_probs, linear_token_log_probs_and_entropies, token_log_probs, token_log_probs_and_entropies,
};
