//! What only CUDA has, on a real device where there is a driver, on softcuda elsewhere.

mod batch_invariant;
mod graph;
mod kernels;
mod linear;
mod preference_loss;
mod residues;
mod token_log_prob;
