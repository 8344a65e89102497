//! What only CUDA has, on a real device where there is a driver, on softcuda elsewhere.

mod batch_invariant;
mod graph;
mod kernels;
mod linear;
mod preference_loss;
mod token_log_prob;
