//! Compiles `kernels/*.cu` to one fatbin each, when the feature `cuda` is on and there is an nvcc. Standard library
//! only.
//!
//! `build/nvcc.rs` says where nvcc is looked for. A fatbin holds machine code for every architecture of
//! `EXO_KERNELS_CUDA_ARCHS` (comma-separated, such as `80,90`; empty is the default list), PTX of the lowest, which every
//! later device can compile and the software device of the tests runs, and PTX of the highest, for devices that are newer
//! than all of them. Without nvcc, and on docs.rs, the crate builds without kernels, and opening a device says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, exit};

#[path = "build/nvcc.rs"]
mod nvcc;

/// nvcc processes at once.
const PARALLEL: usize = 2;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(has_kernels)");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() || std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    println!("cargo:rerun-if-changed=build/nvcc.rs");
    for variable in nvcc::VARIABLES.iter().chain(&["EXO_KERNELS_CUDA_ARCHS"]) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // New files too; what a file includes from elsewhere is added below.
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed={}", nvcc::INSTALLED);
    // Cargo runs this in the package's folder.
    let root = std::env::current_dir().unwrap_or_default();
    let Some(nvcc) = nvcc::find(&root, |name| std::env::var_os(name)) else {
        println!(
            "cargo:warning=no nvcc was found: exo-kernels is built without its CUDA kernels (scripts/install-nvcc fetches one)"
        );
        return;
    };
    let options = nvcc::code_options(std::env::var("EXO_KERNELS_CUDA_ARCHS").ok().as_deref());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let mut dependencies = BTreeSet::new();
    let mut waiting = sources().into_iter();
    let mut running: Vec<(PathBuf, Child)> = Vec::new();
    loop {
        while running.len() < PARALLEL {
            let Some(source) = waiting.next() else { break };
            match command(&nvcc, &source, &out, &options).spawn() {
                Ok(child) => running.push((source, child)),
                Err(error) => fail(&nvcc, &source, &error.to_string()),
            }
        }
        if running.is_empty() {
            break;
        }
        let (source, mut child) = running.remove(0);
        match child.wait() {
            Ok(status) if status.success() => {}
            // Kernels that do not compile are an error, not a build without kernels.
            Ok(status) => fail(&nvcc, &source, &status.to_string()),
            Err(error) => fail(&nvcc, &source, &error.to_string()),
        }
        let listed = std::fs::read_to_string(output(&source, &out, "d")).unwrap_or_default();
        // "target : file file \": the toolkit's own headers follow the compiler, which is watched already.
        let files = listed.split_whitespace().skip_while(|word| !word.ends_with(':')).skip(1);
        dependencies.extend(files.map(|file| root.join(file)).filter(|file| file.starts_with(&root) && file.is_file()));
    }
    for file in dependencies.iter().filter(|file| !file.starts_with(root.join(".cache"))) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    println!("cargo:rustc-cfg=has_kernels");
}

fn fail(nvcc: &Path, source: &Path, why: &str) -> ! {
    eprintln!("{} could not compile {}: {why}", nvcc.display(), source.display());
    exit(1)
}

fn sources() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("kernels").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sources: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|name| name == "cu")).collect();
    sources.sort();
    sources
}

fn output(source: &Path, out: &Path, extension: &str) -> PathBuf {
    out.join(source.file_stem().unwrap_or_default()).with_extension(extension)
}

fn command(nvcc: &Path, source: &Path, out: &Path, options: &[String]) -> Command {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings"]).args(options);
    // Compressed machine code too: a third of the size.
    command.args(["--fatbin", "-Xfatbin=-compress-all"]);
    command.arg("-MD").arg("-MF").arg(output(source, out, "d"));
    command.arg("-o").arg(output(source, out, "fatbin")).arg(source);
    command
}
