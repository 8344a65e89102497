//! Where the build script finds nvcc, and what it asks of it.

#[cfg(unix)]
mod script;

use kernel_build::{architectures, nvcc};
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

/// On a machine with its toolkits in `local`, whose programs' names end with nothing.
fn find(root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    nvcc::find_on(root, &root.join("local"), "", variable)
}

/// All of them are there; then, one after the other, the first is taken away.
#[test]
fn nvcc_is_found_in_this_order() {
    let root = folder("nvcc-order");
    let path = std::env::join_paths([root.join("empty"), root.join("bin"), root.join("later")]).expect("a PATH");
    let variables: [(&str, OsString); 5] = [
        ("NVCC", root.join("named/my-nvcc").into()),
        ("CUDA_HOME", root.join("home").into()),
        ("CUDA_PATH", root.join("path").into()),
        ("PATH", path),
        ("CONDA_PREFIX", root.join("conda").into()),
    ];
    assert_eq!(variables.each_ref().map(|variable| variable.0), nvcc::VARIABLES, "what a change of causes a new build");
    let variable = |name: &str| variables.iter().find(|variable| variable.0 == name).map(|variable| variable.1.clone());
    let order = [
        "named/my-nvcc",
        "home/bin/nvcc",
        "path/bin/nvcc",
        "bin/nvcc",
        "later/nvcc",
        "conda/bin/nvcc",
        nvcc::INSTALLED,
        "local/cuda/bin/nvcc",
        "local/cuda-13.0/bin/nvcc",
        "local/cuda-12.4/bin/nvcc",
        "local/cuda-9.2/bin/nvcc",
    ]
    .map(|file| root.join(file));
    // Not a toolkit.
    touch(&root.join("local/cuda-samples/bin/nvcc"));
    for file in &order {
        touch(file);
    }
    for expected in &order {
        assert_eq!(find(&root, variable).as_ref(), Some(expected));
        fs::remove_file(expected).expect("it was made above");
    }
    // A folder is no compiler.
    fs::create_dir_all(root.join("bin/nvcc")).expect("the target folder can be written");
    assert_eq!(find(&root, variable), None);
    touch(&root.join(nvcc::INSTALLED));
    assert_eq!(find(&root, |_| None), Some(root.join(nvcc::INSTALLED)), "no variables");
    assert_eq!(nvcc::find(&root, |_| None), Some(root.join(nvcc::INSTALLED)), "before this machine's toolkits");
    fs::remove_dir_all(root).expect("it was made above");
}

/// Windows: in PATH, in the toolkits, and named with the suffix or without.
#[test]
fn nvcc_exe_is_found() {
    let root = folder("nvcc-exe");
    let program = root.join("toolkit/bin/nvcc.exe");
    touch(&program);
    let places = [
        ("PATH", "toolkit/bin"),
        ("CUDA_HOME", "toolkit"),
        ("CUDA_PATH", "toolkit"),
        ("NVCC", "toolkit/bin/nvcc"),
        ("NVCC", "toolkit/bin/nvcc.exe"),
    ];
    for (name, place) in places {
        let variable = |asked: &str| (asked == name).then(|| root.join(place).into_os_string());
        assert_eq!(nvcc::find_on(&root, &root, ".exe", variable).as_ref(), Some(&program), "{name}={place}");
    }
    fs::remove_dir_all(root).expect("it was made above");
}

/// What `nvcc --list-gpu-arch` prints, by version, and what it leaves of the default list.
const COMPILERS: [(&str, &[u32], &str); 5] = [
    ("11.8", &[35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90], "10.0, 12.0"),
    ("12.4", &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90], "10.0, 12.0"),
    ("12.9", &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121], ""),
    ("13.0", &[75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121], ""),
    ("13.5", &[75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121], ""),
];

fn listing(version: &str) -> String {
    let numbers = COMPILERS.iter().find(|compiler| compiler.0 == version).expect("a version").1;
    numbers.iter().map(|number| format!("compute_{number}")).collect::<Vec<_>>().join("\n") + "\n"
}

fn choose(list: &str, version: &str) -> Result<architectures::Chosen, String> {
    architectures::choose(list, architectures::supported(&listing(version)).as_deref())
}

/// The `-gencode` options without what is the same in all.
fn codes(list: &str) -> Vec<String> {
    let chosen = choose(list, "13.0").expect("understood");
    assert_eq!(chosen.left_out, [], "nothing of a list that was given is left out");
    let codes = architectures::code_options(&chosen.architectures).into_iter();
    codes.map(|option| option.strip_prefix("-gencode=arch=compute_").expect("an architecture").to_owned()).collect()
}

#[test]
fn architectures_become_machine_code_and_ptx_of_both_ends() {
    assert_eq!(codes("80"), ["80,code=sm_80", "80,code=compute_80"]);
    let three = ["80,code=sm_80", "90a,code=sm_90a", "100,code=sm_100", "80,code=compute_80", "100,code=compute_100"];
    // In numerical order, whatever the list's.
    assert_eq!(codes("100, 80,90a"), three);
    assert_eq!(codes("90a,,100,80,100,"), three);
    // PTX with a suffix is for that one device: no later one could compile it.
    assert_eq!(codes("9.0a"), ["90a,code=sm_90a", "90,code=compute_90"]);
    let both = ["90,code=sm_90", "120f,code=sm_120f", "90,code=compute_90", "120,code=compute_120"];
    assert_eq!(codes("90 12.0f"), both);
}

/// However CMake, PyTorch and nvcc write one.
#[test]
fn an_architecture_is_understood_in_every_spelling() {
    let ninety = codes("90");
    for spelling in ["sm_90", "compute_90", "9.0", "SM_90", " 90 ", "9.0;90", "9.0,sm_90 compute_90;;"] {
        assert_eq!(codes(spelling), ninety, "{spelling:?}");
    }
    for spelling in ["90a", "9.0a", "sm_90a", "compute_90a"] {
        assert_eq!(codes(spelling), codes("90a"), "{spelling:?}");
    }
    assert_eq!(codes("9.0;8.6"), codes("86,90"));
    assert_eq!(codes("12.1"), codes("121"));
}

/// An empty variable is how many tools unset one.
#[test]
fn an_empty_list_is_the_default_list() {
    let default = codes("");
    assert!(default.len() > 2 && default[0] == "80,code=sm_80", "{default:?}");
    assert_eq!(codes(architectures::DEFAULT), default);
    for empty in [" ", ",", " , ,", ";"] {
        assert_eq!(codes(empty), default, "{empty:?}");
    }
}

#[test]
fn what_is_no_architecture_is_refused_by_name() {
    let refused = |list: &str, version: &str, entry: &str| {
        let why = choose(list, version).expect_err(list);
        assert!(why.starts_with(&format!("EXO_KERNELS_CUDA_ARCHS: \"{entry}\": ")), "{list:?}: {why}");
        why
    };
    let words = [
        "native",
        "all",
        "all-major",
        "9.0+PTX",
        "90-real",
        "hopper",
        "sm_",
        "sm_9.0",
        "9",
        "9.",
        ".9",
        "9.0.0",
        "9000",
        "090",
        "a",
        "90b",
        "90aa",
        "-90",
        "+90",
        "9.a",
        "0x5a",
        "\u{fffd}",
        "٩٠",
        "90:80",
    ];
    for entry in words {
        assert!(refused(entry, "13.0", entry).contains("9.0"), "says what to write instead");
        refused(&format!("8.0;{entry}"), "13.0", entry);
    }
    for entry in ["70", "sm_75", "5.2"] {
        assert!(refused(entry, "12.4", entry).contains("8.0 or later"));
    }
    // What the kernels could run on, but this nvcc does not know.
    assert!(refused("90,10.0", "12.4", "10.0").ends_with("it supports 8.0, 8.6, 8.7, 8.9, 9.0"));
    refused("100f", "12.4", "100f");
    refused("88", "12.9", "88");
    refused("101", "13.0", "101");
    // Suffixes where there are none.
    refused("80a", "13.0", "80a");
    refused("90f", "13.0", "90f");
    // An nvcc that does not say what it supports decides for itself.
    assert!(architectures::choose("101", None).is_ok());
}

#[test]
fn a_folder_names_one_architecture() {
    let read = |name| {
        architectures::Architecture::of_folder(name).map(|read| read.map(|one| (one.capabilities(), one.to_string())))
    };
    assert_eq!(read("sm90a"), Some(Ok((((9, 0), (9, 0)), "90a".to_owned()))));
    assert_eq!(read("sm120"), Some(Ok((((12, 0), (12, 9)), "120".to_owned()))));
    for all in ["linear", "include", "sm", "small", "kernels", "90a"] {
        assert_eq!(read(all), None, "{all}");
    }
    for wrong in ["sm9", "sm90x", "sm75", "sm80a", "sm100f", "sm9.0a.1"] {
        assert!(matches!(read(wrong), Some(Err(why)) if why.contains(wrong)), "{wrong}");
    }
    let own = choose("9.0a", "13.0").expect("understood").architectures[0];
    assert!(own.is_among(&choose("8.0 9.0", "13.0").expect("understood").architectures));
    assert!(!own.is_among(&choose("8.0 10.0", "13.0").expect("understood").architectures));
    // Machine code without a suffix runs on later devices of its major number, and on no others.
    let own = choose("10.0", "13.0").expect("understood").architectures[0];
    for (list, among) in [("10.0", true), ("8.0 10.3f", true), ("9.0", false), ("12.0", false)] {
        assert_eq!(own.is_among(&choose(list, "13.0").expect("understood").architectures), among, "{list}");
    }
    let own = choose("9.0a", "13.0").expect("understood").architectures[0];
    let options = ["-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_90a,code=compute_90a"];
    assert_eq!(own.code_options(), options);
}

#[test]
fn the_default_list_is_cut_to_what_nvcc_supports() {
    for (version, _, left_out) in COMPILERS {
        let chosen = choose("", version).expect("something is left");
        assert_eq!(architectures::list(&chosen.left_out), left_out, "nvcc {version}");
        let all = [chosen.architectures, chosen.left_out].concat();
        assert_eq!(architectures::list(&all), "8.0, 8.6, 8.9, 9.0, 10.0, 12.0");
    }
    let too_old = architectures::supported("compute_52\ncompute_75\n");
    let why = architectures::choose("", too_old.as_deref()).expect_err("none is left");
    assert!(why.contains("newer CUDA toolkit"), "{why}");
    assert_eq!(architectures::supported("nvcc fatal: Unknown option"), None);
}

/// What nvcc prints of itself.
#[test]
fn the_release_is_read_from_what_nvcc_prints() {
    let printed = "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2025 NVIDIA Corporation\n\
                   Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0\n";
    assert_eq!(nvcc::release(printed), Some((13, 0)));
    assert_eq!(nvcc::release("Cuda compilation tools, release 12.4, V12.4.131"), Some((12, 4)));
    for other in ["", "clang version 20.1.0", "release", "release 13, V13", "release a.b, "] {
        assert_eq!(nvcc::release(other), None, "{other}");
    }
}
