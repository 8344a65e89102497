//! The body of the fuzz target `fuzz/fuzz_targets/calls.rs`, run as a plain test: over its corpus, over mutations of
//! that, and over random bytes. For longer runs: `cargo +nightly fuzz run calls`.

use crate::hostile::{WALKS, interpret};
use crate::trials::Trials;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Sequences of calls that are tried: some seconds.
const SEQUENCES: usize = 30_000;

fn corpus() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/calls");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= WALKS.len(), "a seed for every walk");
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

/// A seed with some bytes changed, cut, repeated, or followed by another.
fn mutated(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 => bytes.extend_from_slice(&corpus[random.random_range(0..corpus.len())]),
            _ if at < bytes.len() => bytes[at] = random.random(),
            _ => bytes.push(random.random()),
        }
    }
    bytes
}

/// Of any density: with few bytes that are not 0 most calls are accepted, with many most are refused.
fn random_bytes(random: &mut StdRng) -> Vec<u8> {
    let density = random.random_range(0.0..0.3);
    (0..random.random_range(0..400)).map(|_| if random.random_bool(density) { random.random() } else { 0 }).collect()
}

#[test]
fn bytes_as_calls() {
    Trials::run("bytes", |trials| {
        let (corpus, mut random) = (corpus(), StdRng::seed_from_u64(10));
        for seed in &corpus {
            trials.bytes(seed, interpret);
        }
        for _ in 0..SEQUENCES / 2 {
            trials.bytes(&mutated(&corpus, &mut random), interpret);
            trials.bytes(&random_bytes(&mut random), interpret);
        }
    });
}
