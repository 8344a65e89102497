#![doc = include_str!("../README.md")]

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod batched;
mod install;
#[allow(unreachable_pub, reason = "a copy of a file that softcuda exports")]
mod product;
#[cfg(target_os = "linux")]
mod unsupported;

pub use install::{InstallError, Installed, install};
