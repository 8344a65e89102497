//! Logic of bits and of predicates, `lop3`, `prmt`: against bit-by-bit definitions.

mod samples;

use samples::{Random, all, check, refused, run, samples, taken};

#[test]
fn logic_of_all_widths() {
    for (ty, mask) in [("b16", 0xffff), ("b32", 0xffff_ffff), ("b64", u64::MAX)] {
        let bits = mask.count_ones();
        let rows = all(&[samples(bits, 12), samples(bits, 12)]);
        check(&format!("and.{ty}"), ty, &[ty, ty], &rows, |row| row[0] & row[1]);
        check(&format!("or.{ty}"), ty, &[ty, ty], &rows, |row| row[0] | row[1]);
        check(&format!("xor.{ty}"), ty, &[ty, ty], &rows, |row| row[0] ^ row[1]);
        check(&format!("not.{ty}"), ty, &[ty], &rows, |row| !row[0] & mask);
        check(&format!("cnot.{ty}"), ty, &[ty], &rows, |row| u64::from(row[0] == 0));
    }
}

/// Bit `a << 2 | b << 1 | c` of the table, place by place.
fn looked_up(table: u64, row: &[u64]) -> u64 {
    (0..32).fold(0, |word, place| {
        let index = (row[0] >> place & 1) << 2 | (row[1] >> place & 1) << 1 | row[2] >> place & 1;
        word | (table >> index & 1) << place
    })
}

#[test]
fn lookup_with_every_table() {
    let mut random = Random(3);
    let mut rows: Vec<Vec<u64>> = (0..61).map(|_| (0..3).map(|_| random.next() & 0xffff_ffff).collect()).collect();
    rows.extend([vec![0; 3], vec![0xffff_ffff; 3], vec![0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa]]);
    let names = ["%a", "%b", "%c"];
    for table in 0..256 {
        let text = format!(".reg .b32 %d; .reg .b32 %a; .reg .b32 %b; .reg .b32 %c; lop3.b32 %d, %a, %b, %c, {table};");
        for (row, found) in rows.iter().zip(run(&text, &names, &rows, &["%d"])) {
            assert_eq!(found[0], looked_up(table, row), "table {table:x} of {row:x?}");
        }
    }
}

#[test]
fn lookup_with_a_predicate() {
    let small = vec![0, 1, 0xffff_ffff, 0x8000_0000];
    let rows = all(&[small.clone(), small.clone(), small, vec![0, 1]]);
    for (connective, and) in [("and", true), ("or", false)] {
        for not in ["", "!"] {
            for table in [0x00, 0x80, 0x96, 0xe8, 0xff] {
                // The destination is a source as well.
                let text = format!(
                    ".reg .b32 %a; .reg .b32 %b; .reg .b32 %c; .reg .pred p; .reg .pred q; .reg .pred s; \
                     lop3.{connective}.b32 %a|p, %a, %b, %c, {table}, {not}q; \
                     lop3.{connective}.b32 _|s, %a, %a, %a, 0xc0, {not}q;"
                );
                let found = run(&text, &["%a", "%b", "%c", "q"], &rows, &["%a", "p", "s"]);
                for (row, found) in rows.iter().zip(found) {
                    let word = looked_up(table, row);
                    let other = (row[3] == 1) == not.is_empty();
                    let predicate = if and { word != 0 && other } else { word != 0 || other };
                    let same = u64::from(predicate);
                    assert_eq!(found, [word, same, same], "{text} of {row:x?}");
                }
            }
        }
    }
}

/// Byte `selector & 7` of `b:a`, or eight times its sign.
fn selected(row: &[u64], selector: u64) -> u64 {
    let bytes = row[0] | row[1] << 32;
    let byte = bytes >> (8 * (selector & 7)) & 0xff;
    if selector & 8 == 0 { byte } else { 0xff * (byte >> 7) }
}

const BYTES: [[u64; 2]; 4] =
    [[0x7b6a_5948, 0xf0e1_d2c3], [0x8001_7fff, 0x00ff_8080], [0, 0xffff_ffff], [0x0123_4567, 0x89ab_cdef]];

#[test]
fn permutation_by_every_control() {
    for bytes in BYTES {
        let rows: Vec<Vec<u64>> = (0..65536).map(|control| vec![bytes[0], bytes[1], control]).collect();
        check("prmt.b32", "b32", &["b32"; 3], &rows, |row| {
            (0..4).fold(0, |word, place| word | selected(row, row[2] >> (4 * place) & 15) << (8 * place))
        });
    }
    // Bits above the sixteenth say nothing.
    let rows: Vec<Vec<u64>> = [0xffff_3210, 0x0001_7654].iter().map(|control| vec![1, 2, *control]).collect();
    check("prmt.b32", "b32", &["b32"; 3], &rows, |row| if row[2] % 16 == 0 { row[0] } else { row[1] });
}

/// The manual's table: mode, then for the control's low two bits the source bytes from the highest place down.
const MODES: [(&str, [[u64; 4]; 4]); 6] = [
    ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
    ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
    ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
    ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
    ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
    ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
];

#[test]
fn permutation_by_mode() {
    for (mode, lists) in MODES {
        let mut rows = Vec::new();
        for bytes in BYTES {
            rows.extend((0..16).map(|control| vec![bytes[0], bytes[1], control]));
        }
        check(&format!("prmt.b32.{mode}"), "b32", &["b32"; 3], &rows, |row| {
            lists[row[2] as usize & 3].iter().fold(0, |word, byte| word << 8 | selected(row, *byte))
        });
    }
}

#[test]
fn logic_of_predicates() {
    let text = ".reg .pred p; .reg .pred q; .reg .pred d<8>; \
        and.pred d0, p, q; or.pred d1, p, q; xor.pred d2, p, q; not.pred d3, p; mov.pred d4, q; \
        and.pred d5, !p, q; xor.pred d6, p, 1; or.pred d7, q, 0;";
    let rows = all(&[vec![0, 1], vec![0, 1]]);
    let names: Vec<String> = (0..8).map(|place| format!("d{place}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (row, found) in rows.iter().zip(run(text, &["p", "q"], &rows, &names)) {
        let [p, q] = [row[0], row[1]];
        assert_eq!(found, [p & q, p | q, p ^ q, 1 - p, q, (1 - p) & q, 1 - p, q], "{row:?}");
    }
}

#[test]
fn a_guarded_predicate_keeps_the_other_lanes() {
    let text = ".reg .pred p; .reg .pred q; .reg .pred d; mov.pred d, q; @p not.pred d, d;";
    let rows = all(&[vec![0, 1], vec![0, 1]]);
    for (row, found) in rows.iter().zip(run(text, &["p", "q"], &rows, &["d"])) {
        assert_eq!(found[0], row[0] ^ row[1], "{row:?}");
    }
}

#[test]
fn what_the_manual_does_not_have_is_refused() {
    for instruction in [
        "and.u32 r0, r1, r2;",
        "and.b8 c0, c1, c2;",
        "and.b32 r0, r1, d2;",
        "and.b64 d0, d1, r2;",
        "and.b16 h0, h1, r2;",
        "not.s32 r0, r1;",
        "cnot.u32 r0, r1;",
        "cnot.pred p0, p1;",
        "and.pred p0, p1, r2;",
        "and.pred p0, p1;",
        "not.pred p0, p1, p2;",
        "lop3.b32 r0, r1, r2, r3, r4;",
        "lop3.b32 r0, r1, r2, r3, 256;",
        "lop3.b32 r0, r1, r2, r3, -1;",
        "lop3.b64 d0, d1, d2, d3, 1;",
        "lop3.xor.b32 r0|p0, r1, r2, r3, 0x3f, p1;",
        "lop3.or.b32 r0, r1, r2, r3, 0x3f, p1;",
        "lop3.b32 r0|p0, r1, r2, r3, 0x3f;",
        "lop3.or.b32 r0|p0, r1, r2, r3, 0x3f;",
        "prmt.b64 d0, d1, d2, r3;",
        "prmt.b32.f4e.b4e r0, r1, r2, r3;",
        "prmt.b32.xyz r0, r1, r2, r3;",
        "prmt.b32 r0, r1, r2;",
    ] {
        refused(instruction);
    }
    taken("and.b32 r0, f1, r2;");
    taken("prmt.f4e.b32 r0, r1, r2, r3;");
}
