//! What the tests of floating-point instructions share: an oracle of integers, and a way to run one instruction on
//! many operands.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod exact;
pub(crate) mod oracle;
pub(crate) mod samples;

use softcuda::machine::snippet::Snippet;

/// The results of one instruction (`fma.rn.f32`) for columns of operands of equal length. `types` are those of the
/// registers, the result's first; the operands are bits.
pub(crate) fn apply(instruction: &str, types: &[&str], columns: &[&[u64]]) -> Vec<u64> {
    let names = ["%d", "%a", "%b", "%c"];
    assert_eq!(types.len(), columns.len() + 1, "{instruction}");
    let mut text = String::new();
    for (ty, name) in types.iter().zip(names) {
        text.extend([".reg .", ty, " ", name, ";\n"]);
    }
    text.extend([instruction, " ", &names[..types.len()].join(", "), ";\n"]);
    let mut snippet = Snippet::new(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let length = columns[0].len();
    let mut results = Vec::with_capacity(length);
    for start in (0..length).step_by(32) {
        for (column, name) in columns.iter().zip(&names[1..]) {
            assert_eq!(column.len(), length);
            snippet.set(name, &std::array::from_fn(|lane| column[(start + lane).min(length - 1)]));
        }
        snippet.run();
        let lanes = snippet.get(names[0]);
        results.extend_from_slice(&lanes[..(length - start).min(32)]);
    }
    results
}

/// Registers of every width, for single statements.
pub(crate) const REGISTERS: &str =
    ".reg .f32 %f<4>; .reg .f64 %d<4>; .reg .b16 %h<4>; .reg .b32 %r<4>; .reg .b64 %l<4>; .reg .pred %p;";

/// The message with which a statement is refused; it stands on line 3.
pub(crate) fn refusal(statement: &str) -> String {
    let text = format!("{REGISTERS}\n\n{statement}");
    match Snippet::new(&text) {
        Ok(_) => panic!("{statement} was accepted"),
        Err(error) => {
            assert_eq!(error.line, 3, "{error}");
            error.message
        }
    }
}

/// Every statement is refused, with a message that has the words after it.
pub(crate) fn assert_refused(rows: &[(&str, &str)]) {
    for (statement, words) in rows {
        let message = refusal(statement);
        assert!(message.contains(words), "{statement}: {message}");
    }
}
