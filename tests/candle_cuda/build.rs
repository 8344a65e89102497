//! Libraries to link candle's CUDA against, on a machine that has none of them.
//!
//! `libcuda.so` and `libcublas.so` are links to the libraries of softcuda and softcublas, which cargo puts into `deps`
//! before it links a program. (No program may use the two crates otherwise: it would hold a driver of its own beside
//! the one that cuBLAS finds.) `libcurand.so` is made of `libraries/curand.rs`. Of the others nothing is called.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Linked by cudarc's feature `dynamic-linking` and by candle-kernels.
const EMPTY: [&str; 3] = ["cublasLt", "cudart", "nvrtc"];
/// An archive without a member.
const NOTHING: &str = "!<arch>\n";
/// Made by cargo, and what it is linked as.
const SOFTWARE: [(&str, &str); 2] = [("libsoftcuda.so", "libcuda.so"), ("libsoftcublas.so", "libcublas.so")];
const CURAND: &str = "libraries/curand.rs";

fn main() -> io::Result<()> {
    for file in ["build.rs", CURAND] {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in EMPTY {
        fs::write(out.join(format!("lib{name}.a")), NOTHING)?;
    }
    compile(&out.join("libcurand.so"))?;
    // OUT_DIR is <profile>/build/<package>/out.
    let profile = out.ancestors().nth(3).expect("a folder per profile");
    for (made, name) in SOFTWARE {
        link(&profile.join("deps").join(made), &out.join(name))?;
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    // Found before any other, whatever LD_LIBRARY_PATH says.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{}", out.display());
    Ok(())
}

fn compile(library: &Path) -> io::Result<()> {
    let compiler = env::var_os("RUSTC").expect("cargo sets it");
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "curand", "-O", "--deny", "warnings"]);
    command.arg("-Clink-arg=-Wl,-soname,libcurand.so").arg("-o").arg(library).arg(CURAND);
    if command.status()?.success() { Ok(()) } else { Err(io::Error::other(format!("{CURAND} does not compile"))) }
}

fn link(to: &Path, from: &Path) -> io::Result<()> {
    match fs::remove_file(from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(to, from),
    }
}
