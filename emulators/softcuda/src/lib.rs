//! A CUDA device in software.
//!
//! Tests link this crate and call [`install`] in their set-up: where the machine has no CUDA device, the driver library
//! that is built from this crate takes its place, and CUDA host code over cudarc runs unchanged, its kernels
//! interpreted from their PTX. [`control`] gives access to the device's settings, to the counters of each launch and to
//! the faults that the checks found. README.md has an example.

pub mod check;
mod control;
pub mod count;
#[cfg(target_os = "linux")]
mod driver;
pub mod fatbin;
mod install;
pub mod machine;
pub mod ptx;
pub mod report;
pub mod settings;

pub use control::{Control, control};
pub use install::{InstallError, Installed, install, install_always};
pub use settings::{Checks, Settings};
pub use softload::{host_work, product};
