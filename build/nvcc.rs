//! Where nvcc is: the part of the build script that tests use too. Standard library only.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where `scripts/install-nvcc` puts it, below the root of the repository. (A published package has no such script.)
pub const INSTALLED: &str = ".cache/nvcc/nvidia/cu13/bin/nvcc";
/// What `find` looks at.
pub const VARIABLES: [&str; 5] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "CONDA_PREFIX"];

/// The first nvcc of: the variable NVCC, the toolkits at CUDA_HOME and CUDA_PATH, PATH, the conda environment, what
/// `scripts/install-nvcc` has installed, and the toolkits in /usr/local. `variable` gives the environment's variables.
pub fn find(root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    find_on(root, Path::new("/usr/local"), std::env::consts::EXE_SUFFIX, variable)
}

/// [`find`] on a machine whose toolkits are in `local`, and whose programs' names end with `suffix` (`.exe`).
pub fn find_on(
    root: &Path,
    local: &Path,
    suffix: &str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    // An empty variable is how many tools unset one.
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = variable("PATH").unwrap_or_default();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder).map(|toolkit| toolkit.join("bin"));
    let folders = toolkits.chain(std::env::split_paths(&path));
    let folders = folders.chain(folder("CONDA_PREFIX").map(|environment| environment.join("bin")));
    let found = folder("NVCC").into_iter().chain(folders.map(|folder| folder.join("nvcc")));
    let last = toolkits_in(local).into_iter().map(|toolkit| toolkit.join("bin/nvcc"));
    found.chain([root.join(INSTALLED)]).chain(last).find_map(|nvcc| program(nvcc, suffix))
}

/// The release that `nvcc --version` has printed, as in `release 13.0, V13.0.88`: major and minor.
pub fn release(printed: &str) -> Option<(u32, u32)> {
    let (_, rest) = printed.split_once("release ")?;
    let (major, minor) = rest.split([',', ' ', '\n']).next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A program by its name with or without the suffix of this system's programs.
fn program(named: PathBuf, suffix: &str) -> Option<PathBuf> {
    let mut whole = named.clone().into_os_string();
    whole.push(suffix);
    [PathBuf::from(whole), named].into_iter().find(|file| file.is_file())
}

/// `cuda`, which mostly leads to one of the others, then `cuda-13.0` before `cuda-12.4` and `cuda-9.2`.
fn toolkits_in(local: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(local).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let version = |name: &str| -> Option<Vec<u32>> { name.split('.').map(|part| part.parse().ok()).collect() };
    let mut versions: Vec<(Vec<u32>, PathBuf)> =
        names.filter_map(|name| Some((version(name.to_str()?.strip_prefix("cuda-")?)?, local.join(&name)))).collect();
    versions.sort();
    std::iter::once(local.join("cuda")).chain(versions.into_iter().rev().map(|(_, folder)| folder)).collect()
}
