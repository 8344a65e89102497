//! cuBLAS for softcuda.
//!
//! Tests call [`install`] after `softcuda::install()`: where that put the software driver in place, the library that is
//! built from this crate becomes `libcublas.so`. Its products are pieces of work of softcuda's streams: run in the
//! stream's order (delayed and captured as kernels are), checked for bounds and for uninitialised reads, and reported
//! among the launches under the name `cublasGemmEx`, with the grid (m, n, k) and the bytes of the operands and of the
//! result.
//!
//! An element's k products are added in ascending order in f32. So its bits depend neither on m nor on n: cuBLAS does
//! not promise that.

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod batched;
mod install;
#[path = "../../softcuda/src/product.rs"]
#[allow(unreachable_pub, reason = "softcuda exports it")]
mod product;
#[cfg(target_os = "linux")]
mod unsupported;

pub use install::{InstallError, Installed, install};
