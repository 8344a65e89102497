//! Holds the walks to the sources: a public function that takes anything is walked, or stands in a table with a reason.

use crate::hostile::WALKS;
use crate::trials::Trials;
use std::collections::BTreeMap;
use std::path::Path;

const ORACLE: &str = "the oracle, in plain loops: for inputs that a test has found valid; its backend is walked";

/// What is not walked, and why. A name that ends in `*` stands for all that begin so.
const EXCEPTIONS: [(&str, &str); 10] = [
    ("ranks/traffic::Traffic::of_step", "multiplies sizes that somebody plans with"),
    ("reference/bounds/*", ORACLE),
    ("reference/linear_log_prob::*", ORACLE),
    ("reference/log_ratio::*", ORACLE),
    ("reference/objective::*", ORACLE),
    ("reference/partial_row::*", ORACLE),
    ("reference/preference_loss::*", ORACLE),
    ("reference/row_loss::*", ORACLE),
    ("reference/statistics::*", ORACLE),
    ("reference/token_log_prob::*", ORACLE),
];

/// The same of the CUDA backend.
const CUDA_EXCEPTIONS: [(&str, &str); 5] = [
    (
        "cuda/nccl/mod::Nccl::*",
        "what ranks exchange by, which takes a library and other ranks: tests/nccl has what is refused",
    ),
    ("cuda/alternatives::*", "there with the feature `tuning` only, for a bench; any number is one"),
    ("cuda/row_sharing::*", "the same"),
    (
        "cuda/mod::Cuda::from_raw",
        "takes the driver's handles, by promise: tests/cuda_control/from_raw.rs has those that are refused",
    ),
    ("cuda/mod::Cuda::new", "takes a stream of cudarc's, which is one or cannot be made"),
];

#[test]
fn every_public_function_is_walked() {
    let mut declared = BTreeMap::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../src"), "", &mut declared);
    assert!(declared.len() > 80, "the sources are not where they were: {declared:?}");
    // An exception that nothing needs is out of date; one without a reason is none.
    let mut exceptions = EXCEPTIONS.to_vec();
    exceptions.extend(CUDA_EXCEPTIONS);
    let stands_for = |exception: &str, name: &str| match exception.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == exception,
    };
    for (exception, reason) in &exceptions {
        assert!(declared.keys().any(|name| stands_for(exception, name)) && !reason.is_empty(), "{exception}: {reason}");
    }

    let called = Trials::collect_calls(|trials| {
        for (name, walk) in WALKS {
            trials.single_deviations(name, walk);
        }
        for (name, walk) in crate::cuda::WALKS {
            trials.usual(name, walk);
        }
    });
    let excepted = |name: &str| exceptions.iter().any(|(exception, _)| stands_for(exception, name));
    let walked = |name: &String| called.contains(name) || excepted(name);
    let forgotten: Vec<_> = declared.iter().filter(|(name, takes)| **takes && !walked(name)).collect();
    assert!(forgotten.is_empty(), "walk these with hostile arguments, or say here why not: {forgotten:#?}");
    let gone: Vec<&String> = called.iter().filter(|name| !declared.contains_key(*name)).collect();
    assert!(gone.is_empty(), "not in the sources under these names: {gone:#?}");
}

/// Public functions below `folder`, as `file::Type::function`, and whether they take more than themselves.
fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, bool>) {
    for entry in std::fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path()) {
        let stem = entry.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        if entry.is_dir() {
            collect(&entry, &format!("{prefix}{stem}/"), found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&entry).expect("a source");
            functions(&text, &format!("{prefix}{stem}"), found);
        }
    }
}

/// Traits whose implementations are public functions.
const TRAITS: [&str; 4] = [" Backend for ", " Memory for ", " Place for ", " Ranked for "];

/// Relies on rustfmt: an implementation begins and ends at the margin.
fn functions(text: &str, file: &str, found: &mut BTreeMap<String, bool>) {
    let mut of_type = String::new();
    // How the functions of a trait's implementation begin: without `pub`.
    let mut of_trait: Option<&str> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") {
            // The unit tests stand at the end.
            return;
        }
        if line.starts_with("impl") {
            of_type = format!("{}::", implemented(line));
            of_trait = TRAITS.iter().any(|name| line.contains(name)).then_some("    fn ");
        } else if line.starts_with("pub trait Backend") {
            // What it does itself.
            (of_type, of_trait) = ("Backend::".to_owned(), Some("    fn "));
        } else if line.starts_with("macro_rules! host_place") {
            (of_type, of_trait) = ("host_memory::".to_owned(), Some("            fn "));
        } else if line.starts_with("macro_rules! host_ranked") {
            (of_type, of_trait) = ("host_ranked::".to_owned(), Some("            fn "));
        } else if line.starts_with("macro_rules! host_memory") {
            // What the backends of the host have in common.
            (of_type, of_trait) = ("host_memory::".to_owned(), Some("        fn "));
        } else if line.starts_with('}') {
            of_type.clear();
            of_trait = None;
        }
        let function = ["pub fn ", "pub unsafe fn ", "pub const fn "]
            .iter()
            .find_map(|start| line.trim_start().strip_prefix(start))
            .or_else(|| line.strip_prefix(of_trait?));
        let Some(function) = function else { continue };
        let name: String = function.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let mut signature = function[name.len()..].to_owned();
        while !signature.contains('{') && !signature.contains(';') {
            signature.push_str(lines.next().expect("the rest of a signature").trim());
        }
        if signature.contains(';') {
            // A trait's, for its implementations.
            continue;
        }
        let arguments = arguments(&signature);
        let takes = !["", "self", "&self", "mut self", "&mut self"].contains(&arguments);
        found.insert(format!("{file}::{of_type}{name}"), takes);
    }
}

/// The name of the type in `impl<..> Name<..> {` or `impl<..> Trait for Name<..> {`.
fn implemented(line: &str) -> String {
    let rest = after_generics(line.strip_prefix("impl").expect("an implementation"));
    let rest = rest.split_once(" for ").map_or(rest, |(_, rest)| rest);
    rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn after_generics(text: &str) -> &str {
    if !text.starts_with('<') {
        return text;
    }
    let mut depth = 0;
    for (index, character) in text.char_indices() {
        depth += match character {
            '<' => 1,
            '>' if !text[..index].ends_with('-') => -1,
            _ => 0,
        };
        if depth == 0 {
            return &text[index + 1..];
        }
    }
    text
}

/// What stands between the parentheses.
fn arguments(signature: &str) -> &str {
    let rest = after_generics(signature);
    let rest = rest.strip_prefix('(').expect("arguments");
    let mut depth = 1;
    for (index, character) in rest.char_indices() {
        depth += match character {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 {
            return rest[..index].trim().trim_end_matches(',');
        }
    }
    rest
}
