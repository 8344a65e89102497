//! What the build script knows of nvcc, as a library for tests (`tests/kernel_build`). The build script takes the files
//! themselves.

pub mod architectures;
pub mod nvcc;
