// The operations, on tensors of the `candle_core` of the module that includes this file.

#[cfg(feature = "cuda")]
mod device;
mod host;
mod linear;
mod operands;
mod preference_loss;
mod row_layout;
mod token_log_prob;

pub use linear::{linear_preference_loss, linear_token_log_probs, linear_token_log_probs_and_entropies};
pub use preference_loss::preference_loss;
pub use token_log_prob::{token_log_probs, token_log_probs_and_entropies};
