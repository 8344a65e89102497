//! What tests and examples hold a program to: the memory that it takes at its peak, and the time that it may run.

pub mod peak_memory;
pub mod watchdog;
