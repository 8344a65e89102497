//! Bytes as a sequence of calls with hostile arguments; what must hold stands in `tests/hostile_inputs/hostile`.
//!
//! `cargo +nightly fuzz run calls`. `tests/hostile_inputs/bytes.rs` runs the same body for some seconds in every test run.

#![no_main]

#[path = "../../tests/hostile_inputs/hostile/mod.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::interpret(bytes));
