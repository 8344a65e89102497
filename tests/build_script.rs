//! Where the build script finds nvcc, and what it asks of it.

#[path = "../build/nvcc.rs"]
mod nvcc;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// An empty folder of this test's.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

fn touch(file: &Path) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("the target folder can be written");
    fs::write(file, "").expect("the target folder can be written");
}

/// All of them are there; then, one after the other, the first is taken away.
#[test]
fn nvcc_is_found_in_this_order() {
    let root = folder("nvcc-order");
    let path = std::env::join_paths([root.join("empty"), root.join("bin"), root.join("later")]).expect("a PATH");
    let variables: [(&str, OsString); 4] = [
        ("NVCC", root.join("named/my-nvcc").into()),
        ("CUDA_HOME", root.join("home").into()),
        ("CUDA_PATH", root.join("path").into()),
        ("PATH", path),
    ];
    assert_eq!(variables.each_ref().map(|variable| variable.0), nvcc::VARIABLES, "what a change of causes a new build");
    let variable = |name: &str| variables.iter().find(|variable| variable.0 == name).map(|variable| variable.1.clone());
    let order = ["named/my-nvcc", "home/bin/nvcc", "path/bin/nvcc", "bin/nvcc", "later/nvcc", nvcc::INSTALLED]
        .map(|file| root.join(file));
    for file in &order {
        touch(file);
    }
    for expected in &order {
        assert_eq!(nvcc::find(&root, variable).as_ref(), Some(expected));
        fs::remove_file(expected).expect("it was made above");
    }
    // A folder is no compiler.
    fs::create_dir_all(root.join("bin/nvcc")).expect("the target folder can be written");
    assert_eq!(nvcc::find(&root, variable), None);
    touch(&root.join(nvcc::INSTALLED));
    assert_eq!(nvcc::find(&root, |_| None), Some(root.join(nvcc::INSTALLED)), "no variables");
    fs::remove_dir_all(root).expect("it was made above");
}

/// The `-gencode` options without what is the same in all.
fn codes(list: Option<&str>) -> Vec<String> {
    let codes = nvcc::code_options(list).into_iter();
    codes.map(|option| option.strip_prefix("-gencode=arch=compute_").expect("an architecture").to_owned()).collect()
}

#[test]
fn architectures_become_machine_code_and_ptx_of_both_ends() {
    assert_eq!(codes(Some("80")), ["80,code=sm_80", "80,code=compute_80"]);
    let three = ["80,code=sm_80", "90a,code=sm_90a", "100,code=sm_100", "80,code=compute_80", "100,code=compute_100"];
    // In numerical order, whatever the list's.
    assert_eq!(codes(Some("100, 80,90a")), three);
    assert_eq!(codes(Some("90a,,100,80,100,")), three);
}

/// An empty variable is how many tools unset one.
#[test]
fn an_empty_list_is_the_default_list() {
    let default = codes(None);
    assert!(default.len() > 2 && default[0] == "80,code=sm_80", "{default:?}");
    for empty in ["", " ", ",", " , ,"] {
        assert_eq!(codes(Some(empty)), default, "{empty:?}");
    }
}
