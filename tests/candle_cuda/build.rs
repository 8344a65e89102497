//! Libraries to link candle's CUDA against, on a machine that has none of them.
//!
//! `libcuda.so` is a link to softcuda's library, which cargo puts into `deps` before it links a test. The others hold
//! nothing: what candle calls of them is in `tests/libraries/`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Linked by cudarc's feature `dynamic-linking` and by candle-kernels.
const EMPTY: [&str; 5] = ["cublas", "cublasLt", "cudart", "curand", "nvrtc"];
/// An archive without a member.
const NOTHING: &str = "!<arch>\n";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in EMPTY {
        fs::write(out.join(format!("lib{name}.a")), NOTHING)?;
    }
    // OUT_DIR is <profile>/build/<package>/out.
    let profile = out.ancestors().nth(3).expect("a folder per profile");
    link(&profile.join("deps/libsoftcuda.so"), &out.join("libcuda.so"))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-arg-tests=-Wl,-rpath,{}", out.display());
    Ok(())
}

fn link(to: &Path, from: &Path) -> io::Result<()> {
    match fs::remove_file(from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(to, from),
    }
}
