//! Token log-probs from hidden states against the f64 reference, forward and backward, within bounds derived from rounding.

mod cpu;
mod cuda;
