//! The specification: every stage in f64, in plain loops, to be read beside the paper. It is what the backends are
//! tested against.
//!
//! It allocates freely and runs on one thread; it is for tests, not for training. [`ReferenceBackend`] makes a
//! [`Backend`](crate::Backend) of it, with every check that a backend makes.
//!
//! Sources: *EXO* is Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", ICML 2024 (arXiv
//! 2402.00856); *f-PO* is Han et al., "f-PO: Generalizing Preference Optimization with f-divergence Minimization"
//! (arXiv 2410.21662). A formula without a source is derived where it stands.

mod backend;
pub mod bounds;
pub mod linear_log_prob;
mod linear_results;
mod linear_shard;
pub mod log_ratio;
pub mod objective;
pub mod partial_row;
pub mod preference_loss;
pub mod row_loss;
pub mod statistics;
pub mod token_log_prob;

pub use crate::reference::backend::ReferenceBackend;
