//! Samples for the tests of single instructions: inputs with their edge values, and runs over tables of inputs.

#![allow(dead_code, reason = "each test file uses a part")]

use softcuda::machine::snippet::Snippet;

/// Names of the source registers in order.
const SOURCES: [&str; 4] = ["%a", "%b", "%c", "%e"];

/// The width in bits that the digits of a type's name say: `s32` is 32 wide, and so is `f16x2`.
pub(crate) fn width(ty: &str) -> u32 {
    if ty == "pred" {
        return 1;
    }
    let digits = ty.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    match digits.split_once('x') {
        Some((one, count)) => one.parse::<u32>().unwrap() * count.parse::<u32>().unwrap(),
        None => digits.parse().unwrap(),
    }
}

/// The low bits.
pub(crate) fn cut(value: i128, bits: u32) -> u64 {
    (value as u128 & ((1u128 << bits) - 1)) as u64
}

/// The number that the low bits are, read as this type.
pub(crate) fn number(value: u64, ty: &str) -> i128 {
    let bits = width(ty);
    let value = cut(i128::from(value), bits) as i128;
    if ty.starts_with('s') && value >> (bits - 1) & 1 == 1 { value - (1 << bits) } else { value }
}

/// Pseudo-random numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// The ends and the middle of a width's range, patterns, and some random numbers.
pub(crate) fn samples(bits: u32, random: usize) -> Vec<u64> {
    let mask = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    let mut values = vec![0, 1, 2, 3, 7, mask, mask - 1, top, top - 1, top + 1, mask / 3, mask / 5, mask >> (bits / 2)];
    let mut generator = Random(u64::from(bits));
    values.extend((0..random).map(|_| generator.next()));
    // Small numbers are rare among random ones.
    values.extend((0..random / 2).map(|_| generator.next() >> (generator.next() % 64)));
    values.iter().map(|value| value & mask).collect()
}

/// Shift amounts, positions and lengths around the edges of a width.
pub(crate) fn amounts(bits: u32) -> Vec<u64> {
    let bits = u64::from(bits);
    vec![0, 1, 2, 7, 15, 16, 31, 32, 33, bits - 1, bits, bits + 1, 63, 64, 65, 255, 256, 257, 1 << 31, 0xffff_ffff]
}

/// Every combination of the columns' values.
pub(crate) fn all(columns: &[Vec<u64>]) -> Vec<Vec<u64>> {
    columns.iter().fold(vec![Vec::new()], |rows, column| {
        rows.iter()
            .flat_map(|row| column.iter().map(move |value| row.iter().copied().chain([*value]).collect()))
            .collect()
    })
}

/// Runs statements over the rows of inputs, 32 at a time; the columns are for the named registers. Gives a row of
/// outputs for each.
pub(crate) fn run(text: &str, inputs: &[&str], rows: &[Vec<u64>], outputs: &[&str]) -> Vec<Vec<u64>> {
    let mut snippet = Snippet::new(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut results = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(32) {
        for (column, name) in inputs.iter().enumerate() {
            snippet.set(name, &std::array::from_fn(|lane| chunk[lane.min(chunk.len() - 1)][column]));
        }
        snippet.run();
        let columns: Vec<[u64; 32]> = outputs.iter().map(|name| snippet.get(name)).collect();
        results.extend((0..chunk.len()).map(|lane| columns.iter().map(|column| column[lane]).collect()));
    }
    results
}

/// Checks `opcode %d, %a, %b ...;` on every row against the reference; `result` and `sources` are the registers' types.
pub(crate) fn check(
    opcode: &str,
    result: &str,
    sources: &[&str],
    rows: &[Vec<u64>],
    reference: impl Fn(&[u64]) -> u64,
) {
    let names = &SOURCES[..sources.len()];
    let declared: Vec<String> = names.iter().zip(sources).map(|(name, ty)| format!(".reg .{ty} {name};")).collect();
    let text = format!(".reg .{result} %d; {} {opcode} %d, {};", declared.join(" "), names.join(", "));
    for (row, found) in rows.iter().zip(run(&text, names, rows, &["%d"])) {
        let expected = reference(row);
        assert_eq!(found[0], expected, "{opcode} of {row:x?}: found {:x}, expected {expected:x}", found[0]);
    }
}

/// The registers of every kind that the refused instructions name.
const REGISTERS: &str = ".reg .pred p<4>; .reg .b8 c<5>; .reg .b16 h<5>; .reg .b32 r<6>; .reg .b64 d<5>; .reg .b128 q<3>; \
                         .reg .f32 f<4>; .reg .f64 g<4>; .reg .u32 u<4>;";

/// The decoder takes the instruction.
pub(crate) fn taken(instruction: &str) {
    if let Err(error) = Snippet::new(&format!("{REGISTERS}\n{instruction}")) {
        panic!("{instruction}: {error}");
    }
}

/// The decoder refuses the instruction, and says on which line it is.
pub(crate) fn refused(instruction: &str) {
    match Snippet::new(&format!("{REGISTERS}\n\n{instruction}")) {
        Ok(_) => panic!("{instruction} was taken"),
        Err(error) => assert_eq!(error.line, 3, "{instruction}: {error}"),
    }
}
