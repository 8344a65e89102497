//! The specification: every stage in f64, in plain loops, to be read beside the paper. It is what the backends are
//! tested against.
//!
//! It allocates freely, runs on one thread and checks nothing but lengths; it is for tests, not for training.
//!
//! Sources: *EXO* is Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024 (arXiv
//! 2402.00856); *f-PO* is Han et al., "f-PO: Generalizing Preference Optimization with f-divergence Minimization"
//! (arXiv 2410.21662). A formula without a source is derived where it stands.

pub mod bounds;
pub mod linear_log_prob;
pub mod log_ratio;
pub mod objective;
pub mod preference_loss;
pub mod row_loss;
pub mod token_log_prob;
