#![doc = include_str!("../README.md")]

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod call;
#[cfg(target_os = "linux")]
mod collective;
#[cfg(target_os = "linux")]
mod communicator;
mod control;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod group;
mod install;
#[cfg(target_os = "linux")]
mod point_to_point;
#[cfg(target_os = "linux")]
mod reduction;
#[cfg(target_os = "linux")]
mod segment;
#[cfg(target_os = "linux")]
mod unsupported;

pub use control::{Control, Count, Counts, control};
pub use install::{InstallError, Installed, install};
