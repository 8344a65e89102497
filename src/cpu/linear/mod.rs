//! Log-probs straight from hidden states and a head, in tiles that are never held as a whole.

mod log_prob;
mod log_prob_backward;
mod row_loss;
mod tiles;
