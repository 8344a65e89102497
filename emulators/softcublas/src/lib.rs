#![doc = include_str!("../README.md")]

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod batched;
mod install;
#[cfg(target_os = "linux")]
mod unsupported;

pub use install::{InstallError, Installed, install};
