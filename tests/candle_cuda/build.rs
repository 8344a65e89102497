//! Libraries to link candle's CUDA against, on a machine that has none of them.
//!
//! `libcuda.so` is a link to softcuda's library, which cargo puts into `deps` before it links a program.
//! `libcublas.so` is made of `libraries/cublas.rs`, with what is called of cuRAND in it. Of the others nothing is called.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Linked by cudarc's feature `dynamic-linking` and by candle-kernels.
const EMPTY: [&str; 4] = ["cublasLt", "cudart", "curand", "nvrtc"];
/// An archive without a member.
const NOTHING: &str = "!<arch>\n";
const CUBLAS: &str = "libraries/cublas.rs";

fn main() -> io::Result<()> {
    for file in ["build.rs", CUBLAS] {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in EMPTY {
        fs::write(out.join(format!("lib{name}.a")), NOTHING)?;
    }
    compile(&out.join("libcublas.so"))?;
    // OUT_DIR is <profile>/build/<package>/out.
    let profile = out.ancestors().nth(3).expect("a folder per profile");
    link(&profile.join("deps/libsoftcuda.so"), &out.join("libcuda.so"))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", out.display());
    Ok(())
}

fn compile(library: &Path) -> io::Result<()> {
    let compiler = env::var_os("RUSTC").expect("cargo sets it");
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cublas", "-O", "--deny", "warnings"]);
    command.arg("-Clink-arg=-Wl,-soname,libcublas.so").arg("-o").arg(library).arg(CUBLAS);
    if command.status()?.success() { Ok(()) } else { Err(io::Error::other(format!("{CUBLAS} does not compile"))) }
}

fn link(to: &Path, from: &Path) -> io::Result<()> {
    match fs::remove_file(from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(to, from),
    }
}
