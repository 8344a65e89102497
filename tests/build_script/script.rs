//! The script itself, next to a compiler that does what one of these versions does.

use super::{COMPILERS, folder, fs, listing, touch};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Answers `--list-gpu-arch` and `--version`; refuses what is not in that list, and suffixes if it is older than they are (11.8); notes
/// what it was asked for.
const COMPILER: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$1" = --list-gpu-arch ]; then exec cat "$here/listing"; fi
if [ "$1" = --version ]; then exec cat "$here/version"; fi
asked=$here/asked
if [ "$1" = --dryrun ]; then asked=/dev/null; fi
while [ $# -gt 0 ]; do
case $1 in
    -gencode=*)
        echo "$1" >>"$asked"
        name=${1#-gencode=arch=}
        name=${name%%,*}
        if ! grep -qx compute_35 "$here/listing"; then name=${name%[af]}; fi
        grep -qx "$name" "$here/listing" || { echo "nvcc fatal : Unsupported gpu architecture '$name'" >&2; exit 1; } ;;
    -MF | -o) : >"$2" ;;
esac
shift
done
"#;

/// `build.rs`, compiled once.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let program = folder("script").join("build-script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build.rs");
        let compiled = Command::new("rustc").args(["--edition", "2024", "-o"]).arg(&program).arg(source).output();
        let compiled = compiled.expect("rustc runs");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        program
    })
}

/// A package with one kernel, and a compiler in it.
fn package(name: &str, version: &str) -> PathBuf {
    let root = folder(name);
    for file in ["build.rs", "build/nvcc.rs", "build/architectures.rs", "kernels/one.cu"] {
        touch(&root.join(file));
    }
    fs::write(root.join("listing"), listing(version)).expect("a file");
    let printed =
        format!("nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {version}, V{version}.1\n");
    fs::write(root.join("version"), printed).expect("a file");
    fs::write(root.join("nvcc"), COMPILER).expect("a file");
    fs::set_permissions(root.join("nvcc"), fs::Permissions::from_mode(0o755)).expect("a mode");
    root
}

/// Runs it as cargo does, with the feature `cuda`.
fn run(root: &Path, variables: &[(&str, &OsStr)]) -> Output {
    let mut command = Command::new(script());
    command.current_dir(root).env_clear().env("PATH", "/usr/bin:/bin").env("CARGO_FEATURE_CUDA", "1");
    command.env("OUT_DIR", root).envs(variables.iter().copied()).output().expect("it runs")
}

/// Its lines; every file that cargo is to watch is there.
fn lines(root: &Path, output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    for file in lines.iter().filter_map(|line| line.strip_prefix("cargo:rerun-if-changed=")) {
        assert!(root.join(file).exists(), "{file} is watched and not there: every build would run the script");
    }
    lines
}

fn warnings(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.strip_prefix("cargo:warning=")).collect()
}

#[test]
fn builds_with_every_compiler_and_says_what_is_left_out() {
    for (version, _, left_out) in COMPILERS {
        let root = package(&format!("compiler-{version}"), version);
        let lines = lines(&root, &run(&root, &[("NVCC", root.join("nvcc").as_os_str())]));
        assert!(lines.iter().any(|line| line == "cargo:rustc-cfg=has_kernels"), "nvcc {version}");
        assert!(root.join("one.fatbin").is_file());
        assert!(lines.contains(&format!("cargo:rustc-env=EXO_KERNELS_NVCC_RELEASE={version}")), "{lines:?}");
        assert!(lines.contains(&format!("cargo:rerun-if-changed={}", root.join("nvcc").display())));
        match warnings(&lines)[..] {
            [] => assert_eq!(left_out, ""),
            [warning] => assert!(warning.contains(left_out) && !left_out.is_empty(), "{warning}"),
            _ => panic!("{lines:?}"),
        }
        fs::remove_dir_all(root).expect("it was made above");
    }
}

/// What cargo makes of it: with a compiler and without, where this machine has none.
#[test]
fn a_second_build_has_nothing_to_do() {
    for compiler in [true, false] {
        let root = package(&format!("second-{compiler}"), "13.0");
        for file in ["build.rs", "build/nvcc.rs", "build/architectures.rs"] {
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file), root.join(file)).expect("a copy");
        }
        touch(&root.join("src/lib.rs"));
        let manifest = "[package]\nname = \"package\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                        [features]\ncuda = []\n[workspace]\n";
        fs::write(root.join("Cargo.toml"), manifest).expect("a file");
        let build = || {
            let mut command = Command::new(env!("CARGO"));
            command.args(["build", "--offline", "--verbose", "--features", "cuda"]).current_dir(&root);
            command.env("CARGO_TARGET_DIR", root.join("target")).env_remove("EXO_KERNELS_CUDA_ARCHS");
            if compiler {
                command.env("NVCC", root.join("nvcc"))
            } else {
                command.env_remove("NVCC")
            };
            let output = command.output().expect("cargo runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            said
        };
        assert!(build().contains("Compiling package"));
        let second = build();
        assert!(second.contains("Fresh package") && !second.contains("Running"), "{second}");
        fs::remove_dir_all(root).expect("it was made above");
    }
}

#[test]
fn refuses_before_nvcc_runs() {
    let root = package("refused", "12.4");
    let compiler = root.join("nvcc");
    for (list, name) in [(&b"native"[..], "native"), (b"90;sm_100", "sm_100"), (b"9\xff", "9\u{fffd}")] {
        let output = run(&root, &[("NVCC", compiler.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", OsStr::from_bytes(list))]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(&format!("\"{name}\"")), "{error}");
        assert!(!root.join("asked").exists(), "nvcc was asked to compile");
    }
    let output = run(&root, &[("NVCC", compiler.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", OsStr::new("9.0;sm_86"))]);
    assert_eq!(warnings(&lines(&root, &output)), [""; 0]);
    let asked = fs::read_to_string(root.join("asked")).expect("nvcc was asked");
    assert_eq!(asked.lines().filter(|line| line.contains("code=sm_")).count(), 2, "{asked}");
    fs::remove_dir_all(root).expect("it was made above");
}

#[test]
fn a_compiler_that_is_named_and_not_there_is_said() {
    let root = package("misnamed", "13.0");
    fs::create_dir(root.join("bin")).expect("a folder");
    for file in ["nvcc", "listing"] {
        fs::rename(root.join(file), root.join("bin").join(file)).expect("it is there");
    }
    let named = root.join("none/nvcc");
    let path = std::env::join_paths([root.join("bin"), "/usr/bin".into(), "/bin".into()]).expect("folders");
    let variables =
        [("NVCC", named.as_os_str()), ("PATH", path.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", "9.0".as_ref())];
    let lines = lines(&root, &run(&root, &variables));
    let [warning] = warnings(&lines)[..] else { panic!("{lines:?}") };
    let parts = [named.display().to_string(), root.join("bin/nvcc").display().to_string()];
    assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    fs::remove_dir_all(root).expect("it was made above");
}

#[test]
fn the_table_of_images_follows_the_folders() {
    let root = package("folders", "13.0");
    touch(&root.join("kernels/linear/two.cu"));
    touch(&root.join("kernels/include/no.cuh"));
    let compiler = root.join("nvcc");
    lines(&root, &run(&root, &[("NVCC", compiler.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", "9.0".as_ref())]));
    let table = fs::read_to_string(root.join("images.rs")).expect("a table");
    let names: Vec<&str> = table.split('"').skip(1).step_by(4).collect();
    assert_eq!(names, ["linear/two", "one"], "{table}");
    fs::remove_dir_all(root).expect("it was made above");
}

/// `sm90a`: compiled for that architecture alone, where the list has it; an nvcc that cannot says so, and builds the rest.
#[test]
fn an_architecture_s_folder_is_compiled_for_it_alone() {
    for (version, list, is_built) in [
        ("13.0", "", true),
        ("13.0", "8.0;9.0", true),
        ("12.4", "90a", true),
        ("13.0", "8.0;10.0", false),
        ("11.8", "9.0", false),
    ] {
        let root = package(&format!("architecture-{version}-{}", list.len()), version);
        touch(&root.join("kernels/linear/sm90a/rows.cu"));
        let compiler = root.join("nvcc");
        let variables = [("NVCC", compiler.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", list.as_ref())];
        let lines = lines(&root, &run(&root, &variables));
        let table = fs::read_to_string(root.join("images.rs")).expect("a table");
        let row = "Image { file: \"linear/sm90a/rows\", only: Some(((9, 0), (9, 0))), ";
        assert_eq!(table.contains(row), is_built, "nvcc {version}, {list:?}: {table}");
        assert!(table.contains("Image { file: \"one\", only: None, "), "{table}");
        assert_eq!(root.join("linear-sm90a-rows.fatbin").is_file(), is_built);
        let asked = fs::read_to_string(root.join("asked")).expect("nvcc was asked");
        let own = asked.lines().filter(|line| line.ends_with("arch=compute_90a,code=compute_90a")).count();
        assert_eq!(
            own,
            usize::from(is_built),
            "PTX that no later device can compile is of its own file alone: {asked}"
        );
        let said = warnings(&lines).iter().any(|warning| warning.contains("sm_90a"));
        assert_eq!(said, version == "11.8", "{lines:?}");
        fs::remove_dir_all(root).expect("it was made above");
    }
}

#[test]
fn a_folder_of_no_architecture_is_refused() {
    for folder in ["sm9", "sm90b", "sm100f", "sm70", "sm80a"] {
        let root = package(&format!("folder-{folder}"), "13.0");
        touch(&root.join("kernels").join(folder).join("rows.cu"));
        let output = run(&root, &[("NVCC", root.join("nvcc").as_os_str())]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(folder), "{error}");
        assert!(!root.join("asked").exists(), "nvcc was asked to compile");
        fs::remove_dir_all(root).expect("it was made above");
    }
}

/// The same with a compiler that is one: a kernel that only 9.0 has instructions for.
#[test]
fn a_real_compiler_makes_an_architecture_s_image() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let nvcc = super::nvcc::find(&repository, |name| std::env::var_os(name));
    let nvcc = nvcc.expect("no nvcc: run scripts/install-nvcc");
    let root = package("real", "13.0");
    let source = "extern \"C\" __global__ void __launch_bounds__(256, 1) fence() {\n\
                  asm volatile(\"wgmma.fence.sync.aligned;\");\n}\n";
    fs::create_dir(root.join("kernels/sm90a")).expect("a folder");
    fs::write(root.join("kernels/sm90a/fence.cu"), source).expect("a file");
    lines(&root, &run(&root, &[("NVCC", nvcc.as_os_str()), ("EXO_KERNELS_CUDA_ARCHS", "9.0".as_ref())]));
    let image = fs::read(root.join("sm90a-fence.fatbin")).expect("an image");
    let ptx = softcuda::fatbin::ptx(&image, (9, 0)).expect("PTX for 9.0");
    assert!(ptx.contains(".target sm_90a") && ptx.contains("wgmma.fence"), "{ptx}");
    for other in [(8, 0), (10, 0), (12, 0)] {
        assert!(softcuda::fatbin::ptx(&image, other).is_err(), "{other:?}");
    }
    fs::remove_dir_all(root).expect("it was made above");
}

/// No message sends the reader to what only the repository has.
#[test]
fn a_build_without_nvcc_says_what_to_set() {
    let root = package("without", "13.0");
    fs::rename(root.join("nvcc"), root.join("hidden")).expect("it is there");
    let lines = lines(&root, &run(&root, &[("PATH", OsStr::new(""))]));
    if let Some(toolkit) = super::nvcc::find(&root, |_| None) {
        // This machine has one in /usr/local, which is found.
        assert!(lines.contains(&format!("cargo:rerun-if-changed={}", toolkit.display())), "{lines:?}");
        return;
    }
    assert!(!lines.iter().any(|line| line == "cargo:rustc-cfg=has_kernels"));
    let [warning] = warnings(&lines)[..] else { panic!("{lines:?}") };
    let error = exo_kernels::Error::KernelsNotBuilt.to_string();
    for message in [warning, &error] {
        for part in ["nvcc", "NVCC", "CUDA_HOME", "PATH", "cargo clean -p exo-kernels"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("scripts/"), "{message}");
    }
    fs::remove_dir_all(root).expect("it was made above");
}
