#![doc = include_str!("../README.md")]

mod calls;
mod communicator;
mod intent;
mod turns;

pub use crate::communicator::Mpi;
pub use mpi;

/// As errors call it.
const ENGINE: &str = "MPI";
