//! Compiles `kernels/*.cu` to one fatbin each, when the feature `cuda` is on and there is an nvcc. Standard library
//! only.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME/bin`, `CUDA_PATH/bin`, `PATH`, and where `scripts/install-nvcc` puts it. A
//! fatbin holds machine code for every architecture of `EXO_KERNELS_CUDA_ARCHS` (comma-separated, such as `80,90`), PTX
//! of the lowest, which every later device can compile and the software device of the tests runs, and PTX of the
//! highest, for devices that are newer than all of them. Without nvcc, and on docs.rs, the crate builds without
//! kernels, and opening a device says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, exit};

/// Architectures by default: A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50.
const ARCHITECTURES: &str = "80,86,89,90,100,120";
/// nvcc processes at once.
const PARALLEL: usize = 2;
/// Where `scripts/install-nvcc` puts it.
const INSTALLED: &str = ".cache/nvcc/nvidia/cu13/bin/nvcc";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(has_kernels)");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() || std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "EXO_KERNELS_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // New files too; what a file includes from elsewhere is added below.
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed={INSTALLED}");
    let Some(nvcc) = find_nvcc() else {
        println!(
            "cargo:warning=no nvcc was found: exo-kernels is built without its CUDA kernels (scripts/install-nvcc fetches one)"
        );
        return;
    };
    let architectures = std::env::var("EXO_KERNELS_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let options = code_options(&architectures);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // Cargo runs this in the package's folder.
    let root = std::env::current_dir().unwrap_or_default();
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

/// `-gencode` options of a comma-separated list of architectures, in any order.
fn code_options(architectures: &str) -> Vec<String> {
    let mut list: Vec<&str> = architectures.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let number = |name: &str| name.trim_end_matches(char::is_alphabetic).parse::<u32>().unwrap_or(u32::MAX);
    list.sort_by_key(|name| number(name));
    list.dedup();
    let mut options: Vec<String> =
        list.iter().map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}")).collect();
    let mut ends: Vec<&&str> = list.first().into_iter().chain(list.last()).collect();
    ends.dedup();
    options.extend(ends.iter().map(|name| format!("-gencode=arch=compute_{name},code=compute_{name}")));
    options
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

fn find_nvcc() -> Option<PathBuf> {
    let named = std::env::var_os("NVCC").map(PathBuf::from);
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let toolkits = toolkits.map(|folder| Path::new(&folder).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("nvcc")).collect();
    named.into_iter().chain(toolkits).chain(in_path).chain([PathBuf::from(INSTALLED)]).find(|nvcc| nvcc.is_file())
}
