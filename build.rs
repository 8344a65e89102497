//! Compiles every `.cu` below `kernels/` to a fatbin, when the feature `cuda` is on and there is an nvcc, and writes the
//! table of them that `src/cuda/kernels.rs` looks kernels up in. Standard library only.
//!
//! `build/nvcc.rs` says where nvcc is looked for. A fatbin holds machine code for every architecture of
//! `EXO_KERNELS_CUDA_ARCHS` (such as `8.0,9.0`; empty is the default list, less what this nvcc does not support), PTX of
//! the lowest, which every later device can compile and the software device of the tests runs, and PTX of the highest, for
//! devices that are newer than all of them. What lies in a folder such as `sm90a` is compiled for that architecture alone, if
//! the list has one that its code runs on and this nvcc can. Without nvcc, and on docs.rs, the crate builds without kernels, and opening a
//! device says so.
//!
//! Cargo hides the warnings of packages that are not of the workspace: what a user must know is in
//! `Error::KernelsNotBuilt` too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, exit};

#[path = "build/architectures.rs"]
pub mod architectures;
#[path = "build/nvcc.rs"]
pub mod nvcc;

use architectures::Architecture;

/// nvcc processes at once.
const PARALLEL: usize = 2;

fn main() {
    watch("build.rs");
    println!("cargo:rustc-check-cfg=cfg(has_kernels)");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() || std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    watch("build/nvcc.rs");
    watch("build/architectures.rs");
    for variable in nvcc::VARIABLES.iter().chain(&[architectures::VARIABLE]) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // New files too; what a file includes from elsewhere is added below.
    watch("kernels");
    // Cargo runs this in the package's folder.
    let root = std::env::current_dir().unwrap_or_default();
    let found = nvcc::find(&root, |name| std::env::var_os(name));
    if let Some(named) = std::env::var_os("NVCC").filter(|named| !named.is_empty() && !Path::new(named).is_file())
        && found.as_ref().is_none_or(|nvcc| nvcc.with_extension("") != Path::new(&named).with_extension(""))
    {
        let instead = found.as_ref().map_or("nothing instead".to_owned(), |nvcc| format!("{} instead", nvcc.display()));
        println!("cargo:warning=NVCC names {}, where there is no file: using {instead}", Path::new(&named).display());
    }
    let Some(nvcc) = found else {
        // Not in a published package.
        let script = if root.join("scripts/install-nvcc").is_file() { " (scripts/install-nvcc does so)" } else { "" };
        println!(
            "cargo:warning=no CUDA compiler (nvcc) was found: exo-kernels is built without its CUDA kernels. Install the CUDA toolkit, \
             put nvcc into PATH or name it in NVCC (or its toolkit in CUDA_HOME), and run `cargo clean -p exo-kernels` before \
             the next build{script}"
        );
        return;
    };
    watch(&nvcc);
    let architectures = choose(&nvcc);
    let options = architectures::code_options(&architectures);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let mut dependencies = BTreeSet::new();
    let mut sources = sources(Path::new("kernels"));
    sources.retain(|source| only(source).is_none_or(|only| is_built(only, &architectures, &nvcc, source)));
    write_table(&sources, &out);
    let mut waiting = sources.into_iter();
    let mut running: Vec<(PathBuf, Child)> = Vec::new();
    loop {
        while running.len() < PARALLEL {
            let Some(source) = waiting.next() else { break };
            let options = only(&source).map_or(options.clone(), Architecture::code_options);
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
        watch(file);
    }
    // What an older driver's error says. Of a compiler that does not say which it is, nothing.
    let printed = Command::new(&nvcc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    if let Some((major, minor)) = nvcc::release(&String::from_utf8_lossy(&printed)) {
        println!("cargo:rustc-env=EXO_KERNELS_NVCC_RELEASE={major}.{minor}");
    }
    println!("cargo:rustc-cfg=has_kernels");
}

/// Runs this script again when a file changes. One that is not there would make cargo run it in every build.
fn watch(file: impl AsRef<Path>) {
    if file.as_ref().exists() {
        println!("cargo:rerun-if-changed={}", file.as_ref().display());
    }
}

/// The one architecture that a source is for, if its folder names one.
fn only(source: &Path) -> Option<Architecture> {
    let folder = source.parent()?.file_name()?.to_str()?;
    Some(Architecture::of_folder(folder)?.unwrap_or_else(|why| refuse(&format!("{}: {why}", source.display()))))
}

/// Whether a source for one architecture is compiled; says so where the list has it and nvcc cannot. `--list-gpu-arch` does
/// not name architectures with a suffix, so nvcc is asked by a dry run.
fn is_built(only: Architecture, architectures: &[Architecture], nvcc: &Path, source: &Path) -> bool {
    if !only.is_among(architectures) {
        return false;
    }
    let dry_run = Command::new(nvcc).arg("--dryrun").args(only.code_options()).arg("--fatbin").arg(source).output();
    let can = dry_run.is_ok_and(|output| output.status.success());
    if !can {
        println!(
            "cargo:warning={} does not compile for sm_{only}: {} is left out, and the kernels for all architectures do its work",
            nvcc.display(),
            source.display()
        );
    }
    can
}

/// What is compiled for; says what is left out.
fn choose(nvcc: &Path) -> Vec<Architecture> {
    let printed = match Command::new(nvcc).arg("--list-gpu-arch").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => refuse(&format!("{} could not be started: {error}", nvcc.display())),
    };
    let supported = architectures::supported(&printed);
    if supported.is_none() {
        println!("cargo:warning={} does not say which architectures it supports", nvcc.display());
    }
    let named = std::env::var_os(architectures::VARIABLE).unwrap_or_default();
    let chosen = architectures::choose(&named.to_string_lossy(), supported.as_deref())
        .unwrap_or_else(|why| refuse(&format!("{why} ({})", nvcc.display())));
    if !chosen.left_out.is_empty() {
        println!(
            "cargo:warning=the CUDA kernels of exo-kernels are built without machine code for compute capability {}, which {} does not \
             support: a GPU that is newer than the others compiles the kernels itself when a program starts, an older one cannot run them",
            architectures::list(&chosen.left_out),
            nvcc.display()
        );
    }
    chosen.architectures
}

/// Ends the build with an error.
fn refuse(why: &str) -> ! {
    eprintln!("error: the CUDA kernels of exo-kernels cannot be built: {why}");
    exit(1)
}

fn fail(nvcc: &Path, source: &Path, why: &str) -> ! {
    refuse(&format!("{} could not compile {}: {why}", nvcc.display(), source.display()))
}

/// The `.cu` files of a folder and of those in it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|name| name == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    sources
}

/// What a source is called: its path in `kernels/` without the ending, such as `linear/rows`.
fn name(source: &Path) -> String {
    let parts = source.with_extension("");
    let parts = parts.components().skip(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
    parts.collect::<Vec<_>>().join("/")
}

fn output(source: &Path, out: &Path, extension: &str) -> PathBuf {
    out.join(format!("{}.{extension}", name(source).replace('/', "-")))
}

/// The table of fatbins, as Rust: name, compute capabilities and bytes of each.
fn write_table(sources: &[PathBuf], out: &Path) {
    let rows = sources.iter().map(|source| {
        let (name, only) = (name(source), only(source).map(Architecture::capabilities));
        let fatbin = output(source, out, "fatbin").display().to_string();
        format!("Image {{ file: {name:?}, only: {only:?}, bytes: include_bytes!({fatbin:?}) }},\n")
    });
    let file = out.join("images.rs");
    if let Err(error) = std::fs::write(&file, format!("&[\n{}]\n", rows.collect::<String>())) {
        refuse(&format!("{} could not be written: {error}", file.display()));
    }
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
