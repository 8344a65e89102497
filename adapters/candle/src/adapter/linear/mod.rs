//! The operations from hidden states in place of logits.

mod op;
mod preference_loss;
mod token_log_prob;

use super::candle_core;
#[cfg(feature = "cuda")]
use super::device;
use super::{host, operands, preference_loss as loss, token_log_prob as token};

pub use preference_loss::linear_preference_loss;
pub use token_log_prob::{linear_token_log_probs, linear_token_log_probs_and_entropies};
