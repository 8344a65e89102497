//! What sets softcuda's settings or reads its counters. Both are the process's, so every test here takes its turn
//! (`support::turn`), and is the only one that runs until its end. On a real device, what nothing can set or count says so.

mod batch_invariant;
mod contexts;
mod determinism;
mod driver_calls;
mod driver_floor;
mod from_raw;
mod linear_counts;
mod linear_order;
mod linear_shards;
mod packed_terms;
mod stream_order;
mod threads;
mod traffic;
mod unaligned_rows;
