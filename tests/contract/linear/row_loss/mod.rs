//! Losses over rows in one pass: bit for bit what the two passes give.

mod cpu;
mod cuda;
