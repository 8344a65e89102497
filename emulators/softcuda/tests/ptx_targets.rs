//! Which instructions a module's `.target` and `.version` allow: the table against ptxas, and the messages.

use softcuda::Settings;
use softcuda::machine::device::Device;
use softcuda::ptx::parser::parse_statements;
use softcuda::ptx::syntax::{Operand, Statement};
use softcuda::ptx::target::{FORMS, REGISTERS, rows};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One statement a line: at least one for each row of the tables, and many for which there is no row.
const EXAMPLES: &str = include_str!("data/ptx_forms.txt");

/// Targets that ptxas 13.0 reads.
const TARGETS: &[&str] = &[
    "sm_30", "sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_89",
    "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_100f", "sm_103", "sm_103a", "sm_103f", "sm_110", "sm_110a", "sm_110f",
    "sm_120", "sm_120a", "sm_120f", "sm_121a",
];

const REGISTERS_OF_EXAMPLES: &str = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<17>; .reg .b64 %rd<9>; \
                                     .reg .f32 %f<17>; .reg .f64 %d<9>;";

/// A module with the statements, each on a line of its own: the first on line 5.
fn module(target: &str, version: &str, statements: &[&str]) -> String {
    let wide = if statements.iter().any(|line| line.contains("%q")) { ".reg .b128 %q<5>;" } else { "" };
    let body = statements.join("\n");
    format!(
        ".version {version}\n.target {target}\n.address_size 64\n\
         .entry k() {{ {REGISTERS_OF_EXAMPLES} {wide}\n{body}\nret; }}\n"
    )
}

/// What softcuda says of one statement; `None`: it loads.
fn refusal(target: &str, version: &str, statement: &str) -> Option<String> {
    let device = Device::new(&Settings::default());
    device.load(&module(target, version, &[statement])).err().map(|error| error.to_string())
}

fn examples() -> Vec<&'static str> {
    EXAMPLES.lines().filter(|line| !line.is_empty()).collect()
}

/// Batches for ptxas, which stops after a hundred errors; 128-bit registers, which old targets do not have, apart.
fn batches<'a>(statements: &[&'a str], size: usize) -> Vec<Vec<&'a str>> {
    let (wide, rest): (Vec<&str>, Vec<&str>) = statements.iter().partition(|line| line.contains("%q"));
    wide.chunks(size).chain(rest.chunks(size)).map(<[&str]>::to_vec).collect()
}

struct Ptxas(PathBuf);

impl Ptxas {
    /// The one beside nvcc; without it the tests say so.
    fn find(test: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let found =
            kernel_build::nvcc::find(&root, |name| std::env::var_os(name)).map(|nvcc| nvcc.with_file_name("ptxas"));
        let found = found.filter(|ptxas| ptxas.exists());
        if found.is_none() {
            eprintln!("\nNOT RUN: {test} needs ptxas, and there is no nvcc: run scripts/install-nvcc\n");
        }
        found.map(Self)
    }

    /// The messages for each statement that it refuses.
    fn refusals(&self, target: &str, version: &str, statements: &[&str]) -> BTreeMap<usize, Vec<String>> {
        let number: u32 = target[3..].trim_end_matches(['a', 'f']).parse().expect("sm_ and a number");
        // It generates no code for devices before sm_75, but reads PTX for them.
        let device = if number < 75 { "sm_75" } else { target };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptx_targets");
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        let file = folder.join(format!("{target}-{version}-{}.ptx", std::process::id()));
        std::fs::write(&file, module(target, version, statements)).expect("the target folder can be written");
        let run = Command::new(&self.0).arg(format!("-arch={device}")).arg(&file).args(["-o", "/dev/null"]).output();
        let run = run.expect("ptxas runs");
        std::fs::remove_file(&file).expect("it was written");
        let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for text in String::from_utf8_lossy(&run.stderr).lines() {
            let Some((_, rest)) = text.split_once(", line ") else { continue };
            let (line, message) = rest.split_once(';').expect("line; message");
            // Advice is no refusal.
            if !["error", "fatal"].iter().any(|kind| message.trim_start().starts_with(kind)) {
                continue;
            }
            if let Some(index) = line.parse::<usize>().expect("a line's number").checked_sub(5) {
                found.entry(index).or_default().push(message.to_owned());
            }
        }
        found
    }
}

#[test]
fn every_row_has_an_example() {
    let mut met: BTreeSet<&str> = BTreeSet::new();
    for line in examples() {
        for statement in parse_statements(line).unwrap_or_else(|error| panic!("{line}: {error}")) {
            let Statement::Instruction(instruction) = statement else { continue };
            met.extend(rows(&instruction).map(|row| row.0));
            for operand in &instruction.operands {
                let Operand::Name(name) = operand else { continue };
                let stem = name.split('.').next();
                met.extend(REGISTERS.iter().map(|row| row.0).filter(|name| Some(*name) == stem));
            }
        }
    }
    let missing: Vec<_> = FORMS.iter().chain(REGISTERS).map(|row| row.0).filter(|row| !met.contains(row)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn targets_are_those_of_ptxas() {
    let Some(ptxas) = Ptxas::find("targets_are_those_of_ptxas") else { return };
    let mut wrong = Vec::new();
    for target in TARGETS {
        let judged = examples().into_iter().map(|statement| (statement, refusal(target, "9.0", statement)));
        let (loaded, refused): (Vec<_>, Vec<_>) = judged.partition(|(_, refusal)| refusal.is_none());
        // All that loads in a file or two: it should have no errors.
        for (judged, size) in [(loaded, usize::MAX), (refused, 16)] {
            let statements: Vec<&str> = judged.iter().map(|one| one.0).collect();
            for batch in batches(&statements, size) {
                let theirs = ptxas.refusals(target, "9.0", &batch);
                for (index, statement) in batch.iter().enumerate() {
                    let own = judged.iter().find(|one| one.0 == *statement).and_then(|one| one.1.as_ref());
                    if own.is_some() != theirs.contains_key(&index) {
                        wrong.push(format!("{statement} for {target}: {own:?}, ptxas: {:?}", theirs.get(&index)));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn versions_are_those_of_ptxas() {
    let Some(ptxas) = Ptxas::find("versions_are_those_of_ptxas") else { return };
    let number = |text: &str, before: &str| {
        let (_, rest) = text.split_once(before)?;
        rest.split([' ', ',']).next().map(str::to_owned)
    };
    let mut wrong = Vec::new();
    // A result that is not wanted (`_`) is no instruction of old versions: ptxas gives up on the file then.
    let (alone, together): (Vec<_>, Vec<_>) = examples().into_iter().partition(|line| line.contains(" _,"));
    for batch in batches(&alone, 1).into_iter().chain(batches(&together, 8)) {
        let refused = ptxas.refusals("sm_20", "5.0", &batch);
        for (index, statement) in batch.iter().enumerate() {
            let theirs = refused.get(&index).into_iter().flatten();
            let theirs = theirs.filter_map(|message| number(message, "requires PTX ISA .version ")).max();
            // Targets for which ptxas would ask for a version have every instruction, so only the version is missing.
            let own = ["sm_121a", "sm_100a", "sm_90a"].into_iter().find_map(|target| {
                let message = refusal(target, "5.0", statement)?;
                number(&message, "needs .version ")
            });
            if own != theirs {
                wrong.push(format!("{statement}: {own:?}, ptxas: {theirs:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Statement, target and version of the module, the message.
const MESSAGES: &[(&str, &str, &str, &str)] = &[
    (
        "ld.global.v8.b32 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%rd0];",
        "sm_80",
        "9.0",
        "PTX line 5: ld.global.v8.b32 needs .target sm_100 or higher, and the module's is sm_80",
    ),
    (
        "redux.sync.max.f32 %f0, %f1, %r2;",
        "sm_90a",
        "9.0",
        "PTX line 5: redux.sync.max.f32 needs .target sm_100f, and the module's is sm_90a",
    ),
    (
        "setmaxnreg.inc.sync.aligned.u32 64;",
        "sm_90",
        "9.0",
        "PTX line 5: setmaxnreg.inc.sync.aligned.u32 needs .target sm_90a or sm_100f or sm_110f or sm_120f, and the \
         module's is sm_90",
    ),
    (
        "mov.u32 %r0, %cluster_ctarank;",
        "sm_75",
        "9.0",
        "PTX line 5: %cluster_ctarank needs .target sm_90 or higher, and the module's is sm_75",
    ),
    (
        "max.NaN.f32 %f0, %f1, %f2, %f3;",
        "sm_75",
        "9.0",
        "PTX line 5: max.NaN.f32 needs .target sm_100 or higher, and the module's is sm_75",
    ),
    (
        "fma.rn.f32x2 %rd0, %rd1, %rd2, %rd3;",
        "sm_100",
        "8.5",
        "PTX line 5: fma.rn.f32x2 needs .version 8.6 or later, and the module's is 8.5",
    ),
    ("atom.global.add.f16 %h0, [%rd0], %h1;", "sm_90", "9.0", "PTX line 5: atom.global.add.f16: needs .noftz"),
    ("ld.shared.v4.b64 {%rd1,%rd2,%rd3,%rd4}, [%r0];", "sm_100", "9.0", "more than 16 bytes a lane"),
    ("ld.global.v2.b128 {%q0,%q1}, [%rd0];", "sm_100", "9.0", "more than 16 bytes a lane"),
    ("red.shared.add.v2.f32 [%r0], {%f0,%f1};", "sm_100", "9.0", "vectors are for global memory"),
    // What is not supported at all is refused as that, not for the target.
    ("wgmma.fence.sync.aligned;", "sm_80", "9.0", "wgmma is not supported"),
];

#[test]
fn messages_name_the_targets_that_have_it() {
    for (statement, target, version, expected) in MESSAGES {
        let found = refusal(target, version, statement).unwrap_or_else(|| panic!("{statement} loads for {target}"));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn directives_of_clusters_need_sm_90() {
    let device = Device::new(&Settings::default());
    for directive in [".reqnctapercluster 2", ".explicitcluster", ".maxclusterrank 4"] {
        let text = |target: &str| {
            format!(".version 9.0\n.target {target}\n.address_size 64\n.entry k()\n{directive}\n{{ ret; }}\n")
        };
        assert!(device.load(&text("sm_90")).is_ok(), "{directive}");
        let message = device.load(&text("sm_89")).err().map(|error| error.to_string()).unwrap_or_default();
        let name = directive.split(' ').next().unwrap_or_default();
        assert!(message.starts_with(&format!("PTX line 5: {name} needs .target sm_90 or higher")), "{message}");
    }
}

#[test]
fn a_register_named_like_a_special_one_is_just_a_register() {
    let text = ".version 9.0\n.target sm_75\n.address_size 64\n.entry k() { .reg .b32 %clusterid; \
                mov.u32 %clusterid, 1; ret; }\n";
    assert!(Device::new(&Settings::default()).load(text).is_ok());
}

#[test]
fn later_versions_load() {
    for version in ["9.1", "9.4", "9.5", "10.0"] {
        assert_eq!(refusal("sm_90", version, "add.f32 %f0, %f1, %f2;"), None);
        let message = refusal("sm_90", version, "\nfrobnicate.u32 %r0;").unwrap_or_default();
        assert_eq!(message, "PTX line 6: instruction frobnicate (frobnicate.u32) is not supported");
    }
}
