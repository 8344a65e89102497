//! Compiles the kernels of `tests/kernels` with nvcc, once for each text and set of options.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// PTX of `tests/kernels/<name>.cu` for compute capability 9.0.
///
/// `options` come after the standard ones and so win over them. Fails the test when there is no nvcc or it refuses the
/// text.
pub(crate) fn compile(name: &str, options: &[&str]) -> String {
    let ptx = cached(name, "ptx", &[&["-ptx", "-arch=compute_90"], options].concat());
    String::from_utf8(ptx).expect("PTX is text")
}

/// A fatbin of `tests/kernels/<name>.cu` that holds the PTX for compute capability 9.0, uncompressed, and no machine
/// code.
pub(crate) fn compile_fatbin(name: &str, options: &[&str]) -> Vec<u8> {
    let kind = ["--fatbin", "--no-compress", "-gencode", "arch=compute_90,code=compute_90"];
    cached(name, "fatbin", &[&kind, options].concat())
}

/// A file of `tests/kernels` as it is.
pub(crate) fn data(file: &str) -> String {
    let path = kernels().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tests of one binary that want the same file wait for the one that makes it.
static COMPILING: Mutex<()> = Mutex::new(());

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

fn cached(name: &str, extension: &str, options: &[&str]) -> Vec<u8> {
    let source = kernels().join(format!("{name}.cu"));
    let text = std::fs::read(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let nvcc = nvcc();
    let mut hasher = DefaultHasher::new();
    (&text, options, &nvcc).hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvcc");
    let output = folder.join(format!("{name}-{:016x}.{extension}", hasher.finish()));
    let _one_at_a_time = COMPILING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Ok(found) = std::fs::read(&output) {
        return found;
    }
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    // Renamed when complete: other processes see all of it or nothing.
    let partial = folder.join(format!("{name}-{:016x}.{}.partial", hasher.finish(), std::process::id()));
    let run = Command::new(&nvcc)
        .args(["-std=c++17", "-O3"])
        .args(options)
        .arg("-o")
        .args([&partial, &source])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    assert!(
        run.status.success(),
        "{} {options:?} {}:\n{}{}",
        nvcc.display(),
        source.display(),
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    let made = std::fs::read(&partial).expect("nvcc wrote its output");
    std::fs::rename(&partial, &output).expect("the target folder can be written");
    made
}

fn nvcc() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    kernel_build::nvcc::find(&root, |name| std::env::var_os(name))
        .expect("no nvcc at NVCC, in CUDA_HOME, CUDA_PATH or PATH, and none installed: run scripts/install-nvcc")
}
