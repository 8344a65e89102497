//! What the host and the kernels must agree on, held to one another by reading both sources: the argument structs of
//! `src/cuda/raw` and `kernels/`, member for member, and the constants that stand in both.
//!
//! Every kernel's arguments, and every struct that they hold or point to, has a Rust struct in the table below; every
//! `#[repr(C)]` struct and every integer constant of the launches is in one of the tables. Threads of blocks and the blocks
//! that launch bounds promise are held to the kernels in `src/cuda/kernels.rs` and `src/cuda/tuning.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A name on both sides: file and name in `kernels/`, file and name in `src/cuda/` or, for what backends share, `src/`.
type Pair = (&'static str, &'static str, &'static str, &'static str);

const STRUCTS: &[Pair] = &[
    ("include/objective_arguments.cuh", "GroupStatistics", "stage/objective.rs", "GroupStatistics"),
    ("include/objective_arguments.cuh", "ObjectiveArguments", "raw/objective.rs", "ObjectiveArguments"),
    ("include/row_gradient.cuh", "UpstreamOfRows", "raw/token_log_prob.rs", "UpstreamOfRows"),
    ("include/status.cuh", "Status", "status.rs", "Status"),
    ("linear/fold.cu", "LinearLogProb", "raw/linear/fold.rs", "LinearLogProb"),
    ("linear/fold.cu", "RowSums", "raw/linear/fold.rs", "RowSums"),
    ("linear/gradient.cu", "GradientScale", "raw/linear/gradient.rs", "GradientScale"),
    ("linear/gradient.cu", "LinearLogProbBackward", "raw/linear/gradient.rs", "LinearLogProbBackward"),
    ("linear/gradient.cu", "WithholdRows", "raw/linear/gradient.rs", "WithholdRows"),
    ("linear/head.cu", "BiasGradient", "raw/linear/head.rs", "BiasGradient"),
    ("linear/head.cu", "RoundWeight", "raw/linear/head.rs", "RoundWeight"),
    ("linear/kept_logits.cu", "RowCoefficients", "raw/linear/kept_logits.rs", "RowCoefficients"),
    ("linear/kept_logits.cu", "ScaledRows", "raw/linear/kept_logits.rs", "ScaledRows"),
    ("linear/row_loss.cu", "RowLossArguments", "raw/linear/row_loss.rs", "RowLossArguments"),
    ("linear/rows.cu", "GatherRows", "raw/linear/rows.rs", "GatherRows"),
    ("linear/rows.cu", "ScatterRows", "raw/linear/rows.rs", "ScatterRows"),
    ("linear/rows.cu", "ScoredRows", "raw/linear/rows.rs", "ScoredRows"),
    ("linear/rows.cu", "WidenBias", "raw/linear/rows.rs", "WidenBias"),
    ("linear/shard.cu", "EmptyParts", "raw/linear/shard.rs", "EmptyParts"),
    ("linear/shard.cu", "KeepUnitSums", "raw/linear/shard.rs", "KeepUnitSums"),
    ("linear/shard.cu", "UnitShare", "raw/linear/shard.rs", "UnitShare"),
    ("linear/unit_gradient.cu", "HiddenGradient", "raw/linear/unit_gradient.rs", "HiddenGradient"),
    ("linear/unit_gradient.cu", "LinearExponentials", "raw/linear/unit_gradient.rs", "LinearExponentials"),
    ("linear/unit_gradient.cu", "UnitGradient", "raw/linear/unit_gradient.rs", "UnitGradient"),
    ("log_ratio.cu", "LogRatio", "raw/log_ratio.rs", "LogRatio"),
    ("merge_rows.cu", "MergeRows", "raw/partial_row.rs", "MergeRows"),
    ("sequence_parts.cu", "AddRanks", "raw/sequence_part.rs", "AddRanks"),
    ("sequence_parts.cu", "SequenceParts", "raw/sequence_part.rs", "SequenceParts"),
    ("token_log_prob.cu", "TokenLogProb", "raw/token_log_prob.rs", "TokenLogProb"),
    ("token_log_prob_backward.cu", "TokenLogProbBackward", "raw/token_log_prob.rs", "TokenLogProbBackward"),
];

const CONSTANTS: &[Pair] = &[
    ("include/logits.cuh", "SLICE", "tuning.rs", "SLICE"),
    ("include/objective_arguments.cuh", "TARGET_REWARDS", "raw/objective.rs", "TARGET_REWARDS"),
    ("include/objective_arguments.cuh", "TARGET_PREFERENCE", "raw/objective.rs", "TARGET_PREFERENCE"),
    ("include/objective_arguments.cuh", "TARGET_OFFICIAL_PREFERENCE", "raw/objective.rs", "TARGET_OFFICIAL_PREFERENCE"),
    ("include/objective_arguments.cuh", "TARGET_DISTRIBUTION", "raw/objective.rs", "TARGET_DISTRIBUTION"),
    ("include/objective_arguments.cuh", "REVERSE_KL", "raw/objective.rs", "REVERSE_KL"),
    ("include/objective_arguments.cuh", "FORWARD_KL", "raw/objective.rs", "FORWARD_KL"),
    ("include/objective_arguments.cuh", "ALPHA", "raw/objective.rs", "ALPHA"),
    ("include/objective_arguments.cuh", "JENSEN_SHANNON", "raw/objective.rs", "JENSEN_SHANNON"),
    ("linear/fold.cu", "UNIT", "tuning.rs", "LINEAR_UNIT"),
    ("include/linear_chunk.cuh", "BLOCK_COLUMNS", "tuning.rs", "LINEAR_BLOCK_COLUMNS"),
    ("merge_rows.cu", "THREADS", "raw/partial_row.rs", "THREADS"),
    ("sequence_parts.cu", "THREADS", "raw/sequence_part.rs", "THREADS"),
    ("linear/head.cu", "BIAS_COLUMNS", "raw/linear/head.rs", "BIAS_COLUMNS"),
];

/// Constants of the launches that no kernel knows.
const HOST_ONLY: &[(&str, &str)] = &[
    ("raw/linear/fold.rs", "WORDS_OF_ROW_SUMS"), // the size of a struct of the table above
    ("tuning.rs", "LINEAR_INVARIANT_ROWS"),
    ("tuning.rs", "LINEAR_LOGITS"),
    ("tuning.rs", "LINEAR_ROWS"),
    ("tuning.rs", "LINEAR_ROW_BYTES"),
];

/// A struct's name and its members: name and type each.
type Struct = (String, Vec<(String, String)>);

/// Texts by path, without comments.
type Sources = Vec<(String, String)>;

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(begin) = ["//", "/*"].iter().filter_map(|mark| rest.find(mark)).min() {
        kept.push_str(&rest[..begin]);
        let end = if rest[begin..].starts_with("//") { "\n" } else { "*/" };
        let length = rest[begin..].find(end).unwrap_or(rest.len() - begin);
        rest = rest[begin + length..].strip_prefix("*/").unwrap_or(&rest[begin + length..]);
    }
    kept + rest
}

/// What stands between the brace that `text` begins with and its partner.
fn body(text: &str) -> &str {
    let mut depth = 0;
    for (index, letter) in text.char_indices() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if depth == 0 {
            return &text[1..index];
        }
    }
    panic!("a brace without a partner: {text}");
}

/// The structs of a CUDA source, in its own types. Functions, static members and aliases are no members.
fn cuda_structs(text: &str) -> Vec<Struct> {
    let mut structs = Vec::new();
    for (begin, _) in text.match_indices("struct ") {
        let head = text[begin..].split(['{', ';']).next().unwrap_or_default();
        if !text[begin + head.len()..].starts_with('{') {
            continue;
        }
        let name = head.split_whitespace().last().unwrap_or_default().to_owned();
        let mut members = Vec::new();
        let mut rest = body(&text[begin + head.len()..]);
        while let Some(end) = rest.find(['{', ';']) {
            let statement = rest[..end].trim();
            if rest[end..].starts_with('{') {
                rest = &rest[end + body(&rest[end..]).len() + 2..];
                continue;
            }
            rest = &rest[end + 1..];
            if statement.starts_with("using ") || statement.starts_with("static ") || statement.contains('(') {
                continue;
            }
            let declared = statement.split('=').next().unwrap_or_default().trim();
            let (declared, array) = declared.split_at(declared.find('[').unwrap_or(declared.len()));
            let (type_, member) = declared.rsplit_once(char::is_whitespace).unwrap_or(("", declared));
            let words: Vec<&str> = type_.split_whitespace().filter(|&word| word != "const").collect();
            members.push((member.to_owned(), words.join(" ") + array));
        }
        structs.push((name, members));
    }
    structs
}

/// The `#[repr(C)]` structs of a Rust source.
fn rust_structs(text: &str) -> Vec<Struct> {
    let declarations = text.split("#[repr(C)]").skip(1);
    let read = declarations.map(|declaration| {
        let (head, rest) = declaration.split_once("struct ").expect("a struct");
        assert!(!head.contains('{'), "#[repr(C)] that is no struct's: {head}");
        let (name, _) = rest.split_once(|letter: char| !is_of_name(letter)).expect("a name");
        let members = body(&rest[rest.find('{').expect("members with names")..]).split(',').map(str::trim);
        let members = members.filter(|member| !member.is_empty()).map(|member| {
            let (name, type_) = member.split_once(':').expect("a name and a type");
            (name.split_whitespace().last().expect("a name").to_owned(), type_.trim().to_owned())
        });
        (name.to_owned(), members.collect())
    });
    read.collect()
}

fn is_of_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// A CUDA type as the Rust struct must have it: an address, a number, or a struct of the table.
fn as_rust(type_: &str, structs: &[Pair]) -> Option<String> {
    let numbers = [("int32_t", "i32"), ("uint32_t", "u32"), ("int64_t", "i64"), ("float", "f32"), ("double", "f64")];
    if type_.ends_with('*') {
        return Some("u64".to_owned());
    }
    let number = numbers.iter().find(|number| number.0 == type_).map(|number| number.1);
    number.or_else(|| structs.iter().find(|pair| pair.1 == type_).map(|pair| pair.3)).map(str::to_owned)
}

/// Names of the structs that kernels are given, and of those that these hold or point to.
fn shared_structs(structs: &HashMap<&str, &Struct>, cuda: &Sources) -> Vec<String> {
    let given = cuda.iter().flat_map(|(_, text)| text.split("__grid_constant__ ").skip(1));
    let mut names: Vec<String> =
        given.filter_map(|text| text.split_whitespace().next()?.rsplit("::").next()).map(str::to_owned).collect();
    let mut next = 0;
    while let Some(name) = names.get(next) {
        let members = structs.get(name.as_str()).map(|read| read.1.as_slice()).unwrap_or_default();
        let held: Vec<String> = members.iter().map(|(_, type_)| type_.trim_end_matches('*').to_owned()).collect();
        let held: Vec<String> = held.into_iter().filter(|held| structs.contains_key(held.as_str())).collect();
        names.extend(held);
        next += 1;
    }
    names.sort();
    names.dedup();
    names
}

/// Integer constants, with the text of their values.
fn constants(text: &str, keyword: &str) -> HashMap<String, String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let statements = text.split([';', '{', '}']).filter_map(|statement| {
        let (head, value) = statement.split_once('=')?;
        let (_, declared) = head.rsplit_once(keyword)?;
        let words: Vec<&str> = declared.split(|letter: char| !is_of_name(letter)).filter(|w| !w.is_empty()).collect();
        let integers = ["int", "int32_t", "uint32_t", "int64_t", "i32", "u32", "i64", "u64", "usize"];
        let [a, b] = words[..] else { return None };
        let name = if integers.contains(&a) { b } else { a };
        (integers.contains(&a) || integers.contains(&b)).then(|| (name.to_owned(), value.trim().to_owned()))
    });
    statements.collect()
}

/// The value of a constant: a number, or constants and numbers with `*`, `/` and `<<` between them, from left to right.
fn value(name: &str, of: &HashMap<String, String>) -> Option<i64> {
    let mut words = of.get(name)?.split_whitespace();
    let operand = |words: &mut std::str::SplitWhitespace<'_>| {
        let word = words.next()?;
        let digits = word.replace('_', "");
        let hexadecimal = digits.strip_prefix("0x").map(|digits| i64::from_str_radix(digits.trim_end_matches('u'), 16));
        hexadecimal.unwrap_or_else(|| digits.trim_end_matches('u').parse()).ok().or_else(|| value(word, of))
    };
    let mut result = operand(&mut words)?;
    while let Some(operator) = words.next() {
        let right = operand(&mut words)?;
        result = match operator {
            "*" => result * right,
            "/" => result / right,
            "<<" => result << right,
            _ => return None,
        };
    }
    Some(result)
}

/// Where two structs differ first.
fn difference(cuda: &Struct, rust: &Struct, structs: &[Pair]) -> Option<String> {
    for (index, (name, type_)) in cuda.1.iter().enumerate() {
        let Some((other, of_other)) = rust.1.get(index) else { return Some(format!("`{name}` is missing in Rust")) };
        if name != other {
            return Some(format!("member {index} is `{name}` in CUDA and `{other}` in Rust"));
        }
        if as_rust(type_, structs).as_ref() != Some(of_other) {
            return Some(format!("`{name}` is a {type_} in CUDA and a {of_other} in Rust"));
        }
    }
    rust.1.get(cuda.1.len()).map(|(name, _)| format!("`{name}` is missing in CUDA"))
}

/// Everything that is not as the tables say.
fn faults(cuda: &Sources, rust: &Sources, structs: &[Pair], same: &[Pair], host_only: &[(&str, &str)]) -> Vec<String> {
    let mut faults = Vec::new();
    let of_cuda: Vec<(&str, Struct)> = cuda
        .iter()
        .flat_map(|(file, text)| cuda_structs(text).into_iter().map(move |read| (file.as_str(), read)))
        .collect();
    let of_rust: Vec<(&str, Struct)> = rust
        .iter()
        .flat_map(|(file, text)| rust_structs(text).into_iter().map(move |read| (file.as_str(), read)))
        .collect();
    let find = |list: &'_ [(&str, Struct)], file: &str, name: &str| {
        list.iter().find(|(of, read)| *of == file && read.0 == name).map(|(_, read)| read.clone())
    };
    for &(cuda_file, cuda_name, rust_file, rust_name) in structs {
        let at = format!("{cuda_file} {cuda_name}, {rust_file} {rust_name}");
        match (find(&of_cuda, cuda_file, cuda_name), find(&of_rust, rust_file, rust_name)) {
            (Some(one), Some(other)) => {
                faults.extend(difference(&one, &other, structs).map(|why| format!("{at}: {why}")));
            }
            _ => faults.push(format!("{at}: not found")),
        }
    }
    let by_name: HashMap<&str, &Struct> = of_cuda.iter().map(|(_, read)| (read.0.as_str(), read)).collect();
    let unpaired = shared_structs(&by_name, cuda).into_iter().filter(|name| !structs.iter().any(|pair| pair.1 == name));
    faults.extend(unpaired.map(|name| format!("{name} of a kernel's arguments has no pair")));
    let unpaired =
        of_rust.iter().filter(|(file, read)| !structs.iter().any(|pair| pair.2 == *file && pair.3 == read.0));
    faults.extend(unpaired.map(|(file, read)| format!("{file} {}: #[repr(C)], and has no pair", read.0)));

    let constants_of = |sources: &Sources, keyword| -> HashMap<String, HashMap<String, String>> {
        sources.iter().map(|(file, text)| (file.clone(), constants(text, keyword))).collect()
    };
    let (of_cuda, of_rust) = (constants_of(cuda, "constexpr "), constants_of(rust, "const "));
    for &(cuda_file, cuda_name, rust_file, rust_name) in same {
        let one = of_cuda.get(cuda_file).and_then(|all| value(cuda_name, all));
        let other = of_rust.get(rust_file).and_then(|all| value(rust_name, all));
        if one.is_none() || one != other {
            faults.push(format!("{cuda_file} {cuda_name} is {one:?}, {rust_file} {rust_name} is {other:?}"));
        }
    }
    for (file, name) in of_rust.iter().flat_map(|(file, all)| all.keys().map(move |name| (file, name))) {
        let is_known = same.iter().any(|pair| (pair.2, pair.3) == (file, name))
            || host_only.contains(&(file.as_str(), name.as_str()));
        if !is_known {
            faults.push(format!("{file} {name}: a constant that is in no table"));
        }
    }
    faults.sort();
    faults
}

/// The files below a folder that end like this, by their path in it.
fn read(folder: &Path, endings: &[&str]) -> Sources {
    let mut waiting = vec![folder.to_owned()];
    let mut sources = Sources::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|ending| endings.iter().any(|one| ending == *one)) {
            let name = path.strip_prefix(folder).expect("a file of the folder").to_str().expect("UTF-8").to_owned();
            sources.push((name.replace('\\', "/"), without_comments(&std::fs::read_to_string(path).expect("a file"))));
        }
    }
    sources
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn both_sides_agree() {
    let cuda = read(&root().join("kernels"), &["cu", "cuh"]);
    let mut rust = read(&root().join("src/cuda"), &["rs"]);
    rust.retain(|(file, _)| file.starts_with("raw/") || ["status.rs", "tuning.rs"].contains(&file.as_str()));
    rust.extend(read(&root().join("src"), &["rs"]).into_iter().filter(|(file, _)| file == "stage/objective.rs"));
    assert!(cuda.len() > 10 && rust.len() > 10, "the folders were found");
    let faults = faults(&cuda, &rust, STRUCTS, CONSTANTS, HOST_ONLY);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const CUDA: &str = "
constexpr int LOADS = 4;
constexpr int32_t UNIT = LOADS * 32; // 1 << 7
constexpr uint32_t ALL = 0xffu;
constexpr float LIMIT = 1e7f;
struct Inner {
    const float* values;  // [N]; may be null
    int64_t tied;
    __device__ float first() const { return values[0]; }
};
struct Helper { static constexpr int WIDTH = 2; float r = 0.0f, s; };
struct Arguments {
    const void* logits;
    Inner inner;
    /* int32_t old; */
    double weight;
    int32_t rows;
    uint32_t flags;
    float scale;
};
extern \"C\" __global__ void __launch_bounds__(THREADS) kernel(const __grid_constant__ exo::Arguments arguments) {}
";

const RUST: &str = "
/// Of a chunk.
pub(crate) const UNIT: usize = 1 << 7;
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Inner { pub values: u64, pub(crate) tied: i64 }
#[repr(C)]
struct Arguments {
    logits: u64, // an address
    inner: Inner,
    weight: f64,
    rows: i32,
    flags: u32,
    scale: f32,
}
";

/// What is found in these two texts.
fn found(cuda: &str, rust: &str) -> Vec<String> {
    let cuda = vec![("a.cu".to_owned(), without_comments(cuda))];
    let rust = vec![("a.rs".to_owned(), without_comments(rust))];
    let structs = [("a.cu", "Arguments", "a.rs", "Arguments"), ("a.cu", "Inner", "a.rs", "Inner")];
    faults(&cuda, &rust, &structs, &[("a.cu", "UNIT", "a.rs", "UNIT")], &[("a.rs", "HOST")])
}

/// What one change does.
fn found_after(in_cuda: bool, from: &str, to: &str) -> String {
    let text = if in_cuda { CUDA } else { RUST };
    assert_eq!(text.matches(from).count(), 1, "{from}");
    let changed = text.replace(from, to);
    let found = if in_cuda { found(&changed, RUST) } else { found(CUDA, &changed) };
    found.join("\n")
}

#[test]
fn agreement_is_no_fault() {
    assert_eq!(found(CUDA, RUST), [""; 0]);
    assert_eq!(found_after(false, "pub(crate) const", "const HOST: usize = 3;\npub(crate) const"), "");
    assert_eq!(found_after(true, "    double weight;", "    // The weight.\n    double weight = 1.0;"), "");
}

#[test]
fn every_difference_is_found() {
    let cases = [
        // A member renamed, reordered, of another width or kind, missing, added.
        (true, "int32_t rows;", "int32_t count;", "`count` in CUDA and `rows` in Rust"),
        (false, "rows: i32,", "count: i32,", "`rows` in CUDA and `count` in Rust"),
        (false, "rows: i32,\n    flags: u32,", "flags: u32,\n    rows: i32,", "member 3 is `rows` in CUDA"),
        (true, "int32_t rows;", "int64_t rows;", "`rows` is a int64_t in CUDA and a i32 in Rust"),
        (false, "scale: f32", "scale: u32", "`scale` is a float in CUDA and a u32 in Rust"),
        (true, "float scale;", "float scale[2];", "`scale` is a float[2] in CUDA"),
        (true, "Inner inner;", "const Inner* inner;", "`inner` is a Inner* in CUDA and a Inner in Rust"),
        (true, "    double weight;\n", "", "member 2 is `rows` in CUDA and `weight` in Rust"),
        (false, "    scale: f32,\n", "", "`scale` is missing in Rust"),
        (true, "    float scale;\n", "", "`scale` is missing in CUDA"),
        (false, ", pub(crate) tied: i64", "", "`tied` is missing in Rust"),
        // A struct without a pair.
        (false, "struct Arguments {", "struct Renamed {", "a.cu Arguments, a.rs Arguments: not found"),
        (false, "struct Arguments {", "struct Renamed {", "a.rs Renamed: #[repr(C)], and has no pair"),
        (true, "exo::Arguments", "exo::Helper", "Helper of a kernel's arguments has no pair"),
        (true, "uint32_t flags;", "Helper* flags;", "Helper of a kernel's arguments has no pair"),
        // Constants.
        (true, "LOADS = 4", "LOADS = 8", "a.cu UNIT is Some(256), a.rs UNIT is Some(128)"),
        (false, "1 << 7", "120", "a.cu UNIT is Some(128), a.rs UNIT is Some(120)"),
        (true, "int32_t UNIT", "int32_t WIDTH", "a.cu UNIT is None"),
        (
            false,
            "pub(crate) const UNIT",
            "const WIDTH: u32 = 32;\nconst UNIT",
            "a.rs WIDTH: a constant that is in no table",
        ),
    ];
    for (in_cuda, from, to, expected) in cases {
        let found = found_after(in_cuda, from, to);
        assert!(found.contains(expected), "{from} -> {to}: {found:?} does not say {expected:?}");
    }
}
