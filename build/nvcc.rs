//! Where nvcc is, and what it is asked to make: the part of the build script that tests use too. Standard library only.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where `scripts/install-nvcc` puts it, below the root of the repository.
pub(crate) const INSTALLED: &str = ".cache/nvcc/nvidia/cu13/bin/nvcc";
/// What `find` looks at.
pub(crate) const VARIABLES: [&str; 4] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"];
/// Architectures by default: A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50.
const ARCHITECTURES: &str = "80,86,89,90,100,120";

/// The first nvcc of: the variable NVCC, the toolkits at CUDA_HOME and CUDA_PATH, PATH, and what `scripts/install-nvcc`
/// has installed. `variable` gives the environment's variables.
pub(crate) fn find(root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = variable("NVCC").map(PathBuf::from);
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(&variable);
    let toolkits = toolkits.map(|folder| Path::new(&folder).join("bin/nvcc"));
    let path = variable("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("nvcc")).collect();
    named.into_iter().chain(toolkits).chain(in_path).chain([root.join(INSTALLED)]).find(|nvcc| nvcc.is_file())
}

/// `-gencode` options of a comma-separated list of architectures in any order; of the default list if it names none.
/// Machine code for each, PTX of the lowest and of the highest.
pub(crate) fn code_options(architectures: Option<&str>) -> Vec<String> {
    let named = architectures.filter(|list| list.split(',').any(|name| !name.trim().is_empty()));
    let mut list: Vec<&str> = named.unwrap_or(ARCHITECTURES).split(',').map(str::trim).collect();
    list.retain(|name| !name.is_empty());
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
