//! The parser on texts that are not PTX, or nearly: it answers, whatever it is given.

use proptest::prelude::*;
use softcuda::ptx::parse;
use softcuda::ptx::parser::parse_statements;

const HEAD: &str = ".version 9.0\n.target sm_90\n.address_size 64\n";
const REAL: &str = include_str!("kernels/triton_softmax.ptx");

/// Everything that takes part in the grammar, and some things that do not.
const SOUP: &[&str] = &[
    ".visible",
    ".extern",
    ".entry",
    ".func",
    ".global",
    ".shared",
    ".const",
    ".param",
    ".reg",
    ".align",
    ".b8",
    ".b32",
    ".u64",
    ".f32",
    ".f64",
    ".pred",
    ".v4",
    ".ptr",
    ".attribute",
    ".maxntid",
    ".reqntid",
    ".pragma",
    ".loc",
    ".file",
    ".section",
    ".alias",
    ".branchtargets",
    ".callprototype",
    ".noreturn",
    ".unified",
    ".version",
    ".target",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ",",
    ";",
    ":",
    "@",
    "!",
    "|",
    "=",
    "+",
    "-",
    "*",
    "&",
    "%",
    "_",
    "generic",
    "name",
    "%r1",
    "%tid.x",
    "$L",
    "ld.global.b32",
    "call",
    "0",
    "1",
    "16",
    "0x",
    "0f3F800000",
    "0d",
    "1.5",
    "1e",
    "18446744073709551615",
    "4294967295",
    "9999999999999999999999",
    "\"text\"",
    "\"",
    "//",
    "/*",
    "*/",
    "::",
    ".",
    "\n",
    "function_name",
    "inlined_at",
    "ä",
    "\0",
];

/// Every reader of text, on a text as it is and inside a body.
fn read(text: &str) {
    let _ = parse(text);
    let _ = parse_statements(text);
    let _ = parse(&format!("{HEAD}{text}"));
    let _ = parse(&format!("{HEAD}.entry k() {{ {text} }}"));
}

fn settings(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings(2000))]

    #[test]
    fn random_text(text in any::<String>()) {
        read(&text);
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_tokens(
        tokens in prop::collection::vec((prop::sample::select(SOUP), any::<bool>()), 0..80),
    ) {
        let text: String = tokens.iter().flat_map(|(token, space)| [*token, if *space { " " } else { "" }]).collect();
        read(&text);
    }
}

proptest! {
    #![proptest_config(settings(500))]

    /// A real kernel with parts of it moved, doubled, dropped or replaced by tokens.
    #[test]
    fn changed_kernels(
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..40_usize, any::<prop::sample::Index>(), prop::sample::select(SOUP), 0..4),
            1..6,
        ),
    ) {
        let mut characters: Vec<char> = REAL.chars().collect();
        for (place, length, from, token, kind) in changes {
            let place = place.index(characters.len());
            let end = characters.len().min(place + length);
            let replacement: Vec<char> = match kind {
                0 => Vec::new(),
                1 => token.chars().collect(),
                2 => characters[place..end].repeat(2),
                _ => {
                    let from = from.index(characters.len());
                    characters[from..characters.len().min(from + length)].to_vec()
                }
            };
            characters.splice(place..end, replacement);
        }
        let text: String = characters.into_iter().collect();
        if let Err(error) = parse(&text) {
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() as u32 + 1;
            prop_assert!((1..=lines).contains(&error.line), "{error}");
            prop_assert!(!error.message.is_empty() && error.message.chars().count() < 400, "{error}");
        }
    }
}

#[test]
fn every_beginning_of_a_kernel_is_answered() {
    // A text of n lines cut at every line and in the middle of every line.
    let mut place = 0;
    for line in REAL.lines() {
        for end in [place, place + line.len() / 2] {
            if REAL.is_char_boundary(end) {
                let _ = parse(&REAL[..end]);
            }
        }
        place += line.len() + 1;
    }
}

/// Repetitions of everything that opens, nests or continues: an answer without a stack overflow, and in time that grows
/// with the text (a quadratic reader would not come back from these for minutes).
#[test]
fn long_repetitions_are_answered() {
    const REPEATED: &[&str] = &[
        "{",
        "(",
        "[",
        "}",
        "{}",
        "{{}",
        "<",
        "-",
        "+",
        "+-",
        "!",
        "|",
        "a|",
        "@",
        ":",
        ".",
        ".x",
        "::",
        ".a::",
        ",",
        ";",
        "/*",
        "*/",
        "/",
        "//\n",
        "\n",
        "\"",
        "\"\\",
        "\\",
        "0",
        "0x",
        "1e+",
        "_",
        "%",
        "$",
        "a",
        "a:",
        "a b;",
        "a {b},",
        "[a",
        "[a,",
        ".loc 1 1 1",
        ".loc 1 1 1,",
        ".file 1 \"a\"",
        ".section a {",
        ".reg .b32 a<4294967295>;",
        ".global .b8 a[1]",
        ".extern .visible",
        ".param .b8 a[",
    ];
    let extents = "[1]".repeat(100_000);
    read(&format!(".global .b8 a{extents} = {};", "{".repeat(100_000)));
    read(&format!(".global .b8 a{extents} = {{{}}};", "{},".repeat(100_000)));
    let sixteen = "[1]".repeat(16);
    read(&format!(".global .b8 a{sixteen} = {{{}}};", "{},".repeat(100_000)));
    read(&format!(".global .b8 a[1048576][8] = {{{}}};", "{},".repeat(200_000)));
    read(&format!(".global .b8 a[] = {{{}}};", "1,".repeat(200_000)));
    read(&format!("mov.u32 a, [b{}];", "+1".repeat(200_000)));
    read(&format!("mov.u32 a{}", ", [b, {c}]".repeat(100_000)));
    for unit in REPEATED {
        let text = unit.repeat(300_000 / unit.len());
        read(&text);
        for prefix in [
            "mov.b32 ",
            "mov.b32 a, {",
            "call (",
            "ld.b32 a, [b",
            ".global .b8 a = ",
            ".global .b8 a[1][1] = {",
            ".func (",
        ] {
            read(&format!("{prefix}{text}"));
        }
    }
}
