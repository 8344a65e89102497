//! What the tests of exo-kernels share: backends behind one interface, devices, cases, oracles.

#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "test equipment: it panics where a test would, and fields are what their names say"
)]

pub mod adversarial;
pub mod backend;
pub mod device;
pub mod fifty_digits;
pub mod host_rows;
pub mod linear;
pub mod mesh;
pub mod objective_bounds;
pub mod objective_cases;
pub mod ranks;
pub mod turn;
