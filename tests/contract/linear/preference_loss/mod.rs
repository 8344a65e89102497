//! The preference loss from hidden states.

mod cpu;
mod cuda;
