//! Video instructions against their definition, part by part, and what is refused of them.

use softcuda::machine::registers::LANES;
use softcuda::machine::snippet::Snippet;

/// Numbers in the corners of bytes, halves and words.
const CORNERS: &[u32] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x80ff_7f01,
    0x0180_fe7f,
    0xdead_beef,
    0x1234_5678,
    0x00ff_00ff,
];

/// Results of an instruction for pairs of corners, with a third source.
fn run(opcode: &str, third: bool) -> Vec<([u32; 3], u32)> {
    let operands = if third { "%r0, %r1, %r2, %r3" } else { "%r0, %r1, %r2" };
    let mut snippet = Snippet::new(&format!(".reg .b32 %r<4>; {opcode} {operands};"))
        .unwrap_or_else(|error| panic!("{opcode}: {error}"));
    let pairs: Vec<[u32; 3]> = CORNERS
        .iter()
        .enumerate()
        .flat_map(|(index, a)| CORNERS.iter().map(move |b| [*a, *b, CORNERS[(index * 7 + 3) % CORNERS.len()]]))
        .collect();
    let mut found = Vec::new();
    for chunk in pairs.chunks(LANES) {
        for (place, name) in ["%r1", "%r2", "%r3"].into_iter().enumerate() {
            snippet.set(name, &std::array::from_fn(|lane| u64::from(chunk.get(lane).map_or(0, |row| row[place]))));
        }
        snippet.run();
        let results = snippet.get("%r0");
        found.extend(chunk.iter().zip(results).map(|(row, result)| (*row, result as u32)));
    }
    found
}

/// Part `place` of a word in `bits` bits.
fn part(word: u32, place: usize, bits: u32, signed: bool) -> i64 {
    let mask = (1_i64 << bits) - 1;
    let value = i64::from(word) >> (place as u32 * bits) & mask;
    if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
}

/// Name, and the operation on two numbers.
type Primary = (&'static str, fn(i64, i64) -> i64);

const PRIMARY: &[Primary] = &[
    ("vadd", |a, b| a + b),
    ("vsub", |a, b| a - b),
    ("vabsdiff", |a, b| if a > b { a - b } else { b - a }),
    ("vmin", |a, b| if a < b { a } else { b }),
    ("vmax", |a, b| if a > b { a } else { b }),
];

#[test]
fn every_operation_type_and_number_of_parts() {
    for (name, primary) in PRIMARY {
        for (suffix, parts) in [("", 1), ("2", 2), ("4", 4)] {
            let bits = 32 / parts as u32;
            for types in 0..8 {
                let signed = [types & 1 == 1, types & 2 == 2, types & 4 == 4];
                let words = signed.map(|signed| if signed { "s32" } else { "u32" }).join(".");
                for saturate in [false, true] {
                    let word = if saturate { ".sat" } else { "" };
                    let limit = |value: i64| {
                        let (low, high) = if signed[0] {
                            (-(1_i64 << (bits - 1)), (1 << (bits - 1)) - 1)
                        } else {
                            (0, (1 << bits) - 1)
                        };
                        if saturate { value.max(low).min(high) } else { value }
                    };
                    let results = |a: u32, b: u32| {
                        (0..parts).map(move |at| (part(a, at, bits, signed[1]), part(b, at, bits, signed[2])))
                    };
                    for ([a, b, _], found) in run(&format!("{name}{suffix}.{words}{word}"), parts > 1) {
                        let parts = results(a, b).map(|(a, b)| limit(primary(a, b)) as u64 & ((1 << bits) - 1));
                        let expected = parts.enumerate().fold(0, |word, (at, part)| word | part << (at as u32 * bits));
                        assert_eq!(u64::from(found), expected, "{name}{suffix}.{words}{word} {a:#x} {b:#x}");
                    }
                    for ([a, b, c], found) in run(&format!("{name}{suffix}.{words}{word}.add"), true) {
                        let sum: i64 = results(a, b).map(|(a, b)| limit(primary(a, b))).sum();
                        assert_eq!(
                            found,
                            (sum + i64::from(c)) as u32,
                            "{name}{suffix}.{words}{word}.add {a:#x} {b:#x}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn averages_are_rounded_up() {
    for (name, parts) in [("vavrg2", 2), ("vavrg4", 4)] {
        let bits = 32 / parts as u32;
        for ([a, b, _], found) in run(&format!("{name}.u32.u32.u32"), true) {
            for at in 0..parts {
                let (a, b) = (part(a, at, bits, false), part(b, at, bits, false));
                assert_eq!(part(found, at, bits, false), (a + b + 1) / 2, "{name} {a:#x} {b:#x}");
            }
        }
    }
}

#[test]
fn the_lesser_or_greater_of_the_result_and_a_third_number() {
    for ([a, b, c], found) in run("vadd.u32.u32.u32.sat.min", true) {
        assert_eq!(found, a.saturating_add(b).min(c));
    }
    for ([a, b, c], found) in run("vsub.s32.s32.s32.sat.max", true) {
        assert_eq!(found as i32, (a as i32).saturating_sub(b as i32).max(c as i32));
    }
}

#[test]
fn the_rest_is_refused_by_name() {
    for (statement, part) in [
        ("vavrg4.s32.s32.s32 %r0, %r1, %r2, %r3;", "averages of signed numbers are not supported"),
        ("vadd.u32.u32.u32 %r0, %r1.b0, %r2;", "%r1.b0"),
        ("vadd4.u32.u32.u32.min %r0, %r1, %r2, %r3;", "modifier .min is not supported"),
        ("vadd.u32.u16.u32 %r0, %r1, %r2;", "takes .u32 and .s32"),
        ("vmad.u32.u32.u32 %r0, %r1, %r2, %r3;", "vmad"),
        ("vset4.u32.u32.lt %r0, %r1, %r2, %r3;", "vset4"),
        ("vshl.u32.u32.u32.clamp %r0, %r1, %r2;", "vshl"),
    ] {
        let refused = Snippet::new(&format!(".reg .b32 %r<4>; {statement}")).err();
        let message = refused.unwrap_or_else(|| panic!("{statement} is not refused")).message;
        assert!(message.contains(part), "{statement}: {message}");
    }
}
