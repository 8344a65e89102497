//! `cvt` against exact arithmetic: tables of all values of a format, midpoints, and integers of 128 bits.

mod floats;
mod integers;
mod limits;
mod oracle;
mod packed;
mod refused;

use softcuda::machine::registers::LANES;
use softcuda::machine::snippet::Snippet;

/// Runs `operation d, s;` on every input; the registers are declared with these types.
fn convert(operation: &str, destination: &str, source: &str, inputs: &[u64]) -> Vec<u64> {
    let text = format!(".reg .{destination} d; .reg .{source} s; {operation} d, s;");
    let mut snippet = Snippet::new(&text).unwrap_or_else(|error| panic!("{operation}: {error}"));
    let mut results = Vec::with_capacity(inputs.len());
    for chunk in inputs.chunks(LANES) {
        snippet.set("s", &std::array::from_fn(|lane| chunk.get(lane).copied().unwrap_or(0)));
        snippet.run();
        results.extend_from_slice(&snippet.get("d")[..chunk.len()]);
    }
    results
}

/// Checks every input against a function of its bits.
fn check(operation: &str, destination: &str, source: &str, inputs: &[u64], expected: impl Fn(u64) -> u64) {
    let results = convert(operation, destination, source, inputs);
    for (input, found) in inputs.iter().zip(results) {
        let wanted = expected(*input);
        assert!(found == wanted, "{operation} of {input:#x} to .{destination}: {found:#x}, and {wanted:#x} is right");
    }
}

/// The bits of f32 values.
fn singles(values: &[f32]) -> Vec<u64> {
    values.iter().map(|value| u64::from(value.to_bits())).collect()
}

/// Numbers without a pattern: splitmix64 from a fixed start.
fn random(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x1234_5678_9abc_def0_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
    .take(count)
}
