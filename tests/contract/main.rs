//! Contracts that backends share, and the oracles that these are held to. A test of a function that takes a backend runs on
//! each: `module::cpu::name`, `module::cuda::name`.

mod bad_input;
mod determinism;
mod edge_cases;
mod gather_by_sum;
mod golden;
mod gradients;
mod linear;
mod log_ratio;
mod mode_seeking;
mod objective_golden;
mod objective_invariance;
mod objective_precision;
mod objective_statistics;
mod other_devices;
mod parameter_ranges;
mod preference_loss;
mod ranks;
mod ranks_linear;
mod ranks_loss;
mod ranks_traffic;
mod reference_precision;
mod rlhf_limit;
mod shards;
mod softcap;
mod strides;
mod token_log_prob_precision;
mod token_log_prob_properties;
