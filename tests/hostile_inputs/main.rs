//! No input, however hostile, makes a call panic, hang, or write where it was refused; and what is accepted gives finite
//! numbers, or those that docs/bad_input.md promises. `hostile` says how a call is made and judged; here is
//! what is tried:
//! - every single deviation from the usual, of every argument of every public constructor and call;
//! - pairs of deviations, as many as there is time for, and random scripts;
//! - bytes, as the fuzz target in `fuzz/` does, from its corpus and mutations of it (`bytes`);
//! - the CUDA backend's own (`cuda`).
//!
//! `inventory` holds the list of what is tried to the sources.

mod bytes;
mod cuda;
mod hostile;
mod inventory;
mod trials;

use hostile::WALKS;
use proptest::prelude::*;
use trials::Trials;

#[test]
fn every_single_deviation() {
    Trials::run("every single deviation", |trials| {
        for (name, walk) in WALKS {
            trials.single_deviations(name, walk);
        }
    });
}

/// Of the walks that `walks` names.
fn pairs(what: &'static str, walks: impl Fn(&str) -> bool + Send + 'static) {
    Trials::run(what, move |trials| {
        let of_cpu = |name: &str| !name.starts_with("reference ");
        for (name, walk) in WALKS.into_iter().filter(|(name, _)| walks(name) && of_cpu(name)) {
            trials.pairs_of_deviations(name, walk, 40_000);
        }
    });
}

#[test]
fn pairs_of_deviations_in_one_call() {
    pairs("pairs of deviations in one call", |name| !name.contains("preference_loss"));
}

#[test]
fn pairs_of_deviations_in_a_preference_loss() {
    pairs("pairs of deviations in a preference loss", |name| name.contains("preference_loss"));
}

/// Scripts of which most choices are usual, so that calls are accepted with several odd arguments at once.
#[test]
fn random_scripts() {
    Trials::run("random scripts", |trials| {
        let byte = prop_oneof![12 => Just(0u8), 1 => any::<u8>()];
        let scripts = (0..WALKS.len(), proptest::collection::vec(byte, 0..160));
        let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(
            config,
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::default()),
        );
        let trials = std::cell::RefCell::new(trials);
        runner
            .run(&scripts, |(walk, bytes)| {
                let (name, walk) = WALKS[walk];
                trials.borrow_mut().script(name, walk, &bytes);
                Ok(())
            })
            .expect("the trials keep the failures");
    });
}
