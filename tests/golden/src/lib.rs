//! The golden fixtures of this folder, and how a backend is held to them. The tests and `examples/evaluate` share it.

mod backends;
mod comparison;
mod fixture;

pub use backends::{Specification, Stages, TokenStage};
pub use comparison::{Computed, Computes, Groups, OutputError, compare};
pub use fixture::{ExpectedGradient, Fixture, Result, StoredLogits, golden_folder};
