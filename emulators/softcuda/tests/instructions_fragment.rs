//! `ldmatrix`, `stmatrix` and `movmatrix` against plain indexing: lane l holds the elements (l / 4, 2 (l mod 4)) and
//! the next one of each 8 x 8 matrix.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, noise, per_thread, words};
use softcuda::Settings;
use softcuda::report::FaultKind;

/// Rows of the region in shared memory, 16 bytes each.
const ROWS: usize = 64;

/// The elements of the region, row by row.
fn elements(words: &[u32]) -> Vec<[u16; 8]> {
    words.chunks(4).map(|row| std::array::from_fn(|column| (row[column / 2] >> (16 * (column % 2))) as u16)).collect()
}

/// The lane's word of a matrix that is given by (row, column).
fn word_of(lane: usize, transposed: bool, matrix: impl Fn(usize, usize) -> u16) -> u32 {
    let at = |row, column| u32::from(if transposed { matrix(column, row) } else { matrix(row, column) });
    let (row, column) = (lane / 4, 2 * (lane % 4));
    at(row, column) | at(row, column + 1) << 16
}

/// Rows in an order without a pattern: which row of the region lane l names.
fn row_numbers(seed: u32) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..ROWS as u32).collect();
    let mut noise = noise(seed);
    for end in (1..ROWS).rev() {
        rows.swap(end, noise.next().expect("endless") as usize % (end + 1));
    }
    rows.truncate(32);
    rows
}

/// A kernel whose region holds `in` before `operation`, and is copied to `out` after it; `%r1` is the address of the
/// lane's row, `%i0` to `%i3` the lane's words of `values`, and `%o0` to `%o3` go to `results`.
fn kernel(operation: &str, region: &[u32], rows: &[u32], values: &[u32]) -> Kernel {
    let body = format!(
        "    .shared .align 16 .b8 region[{}];
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [rows];
    ld.param.u64 %rd3, [values];
    ld.param.u64 %rd4, [out];
    ld.param.u64 %rd5, [results];
    mov.u32 %r20, %tid.x;
    mad.wide.u32 %rd6, %r20, 32, %rd1;
    ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd6];
    ld.global.v4.u32 {{%r8, %r9, %r10, %r11}}, [%rd6+16];
    mov.u32 %r2, region;
    mad.lo.u32 %r3, %r20, 32, %r2;
    st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}};
    st.shared.v4.u32 [%r3+16], {{%r8, %r9, %r10, %r11}};
    mad.wide.u32 %rd6, %r20, 4, %rd2;
    ld.global.u32 %r1, [%rd6];
    mad.lo.u32 %r1, %r1, 16, %r2;
    cvt.u64.u32 %rd7, %r1;
    cvta.shared.u64 %rd7, %rd7;
    mad.wide.u32 %rd6, %r20, 16, %rd3;
    ld.global.v4.u32 {{%i0, %i1, %i2, %i3}}, [%rd6];
    bar.sync 0;
    {operation}
    bar.sync 0;
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3];
    ld.shared.v4.u32 {{%r8, %r9, %r10, %r11}}, [%r3+16];
    mad.wide.u32 %rd6, %r20, 32, %rd4;
    st.global.v4.u32 [%rd6], {{%r4, %r5, %r6, %r7}};
    st.global.v4.u32 [%rd6+16], {{%r8, %r9, %r10, %r11}};
    mad.wide.u32 %rd6, %r20, 16, %rd5;
    st.global.v4.u32 [%rd6], {{%o0, %o1, %o2, %o3}};",
        16 * ROWS
    );
    let arguments = vec![
        Argument::Bytes(bytes(region.iter().copied())),
        Argument::Bytes(bytes(rows.iter().copied())),
        Argument::Bytes(bytes(values.iter().copied())),
        Argument::Fresh(16 * ROWS),
        Argument::Fresh(512),
    ];
    let parameters = ".param .u64 in, .param .u64 rows, .param .u64 values, .param .u64 out, .param .u64 results";
    Kernel::with_body("", parameters, &body, arguments)
}

/// (as written, matrices)
const COUNTS: &[(&str, usize)] = &[(".x1", 1), (".x2", 2), (".x4", 4)];
/// What comes before the operand, and the operand.
const ADDRESSES: &[(&str, &str)] = &[(".shared", "%r1"), (".shared::cta", "%r1"), ("", "%rd7"), (".shared", "%rd7")];

fn list(stem: &str, count: usize) -> String {
    let names: Vec<_> = (0..count).map(|index| format!("{stem}{index}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// Addresses of `.shared` are 32 bits wide: those of a 64-bit register are those of the space, not generic ones.
fn operand(space: &str, register: &str) -> String {
    match (space, register) {
        (".shared", "%rd7") => "%rd8".to_owned(),
        _ => register.to_owned(),
    }
}

#[test]
fn matrices_are_loaded_row_by_row_or_transposed() {
    let region: Vec<u32> = noise(21).take(4 * ROWS).collect();
    let memory = elements(&region);
    for (seed, (count_word, count)) in COUNTS.iter().enumerate() {
        for transposed in [false, true] {
            for (space, register) in ADDRESSES {
                let rows = row_numbers(seed as u32 + 3);
                let trans = if transposed { ".trans" } else { "" };
                let operation = format!(
                    "cvt.u64.u32 %rd8, %r1;\n    ldmatrix.sync.aligned.m8n8{count_word}{trans}{space}.b16 {}, [{}];",
                    list("%o", *count),
                    operand(space, register)
                );
                let ended = kernel(&operation, &region, &rows, &[0; 128]).run();
                let found = words(&ended.buffers[4]);
                for lane in 0..32 {
                    for matrix in 0..4 {
                        let element = |row: usize, column: usize| memory[rows[8 * matrix + row] as usize][column];
                        let expected = if matrix < *count { word_of(lane, transposed, element) } else { 0 };
                        assert_eq!(found[4 * lane + matrix], expected, "{operation} lane {lane} matrix {matrix}");
                    }
                }
                assert_eq!(words(&ended.buffers[3]), region, "the region is as it was");
            }
        }
    }
}

#[test]
fn matrices_are_stored_row_by_row_or_transposed() {
    let region: Vec<u32> = noise(22).take(4 * ROWS).collect();
    let values: Vec<u32> = noise(23).take(128).collect();
    for (seed, (count_word, count)) in COUNTS.iter().enumerate() {
        for transposed in [false, true] {
            for (space, register) in ADDRESSES {
                let rows = row_numbers(seed as u32 + 30);
                let trans = if transposed { ".trans" } else { "" };
                let operation = format!(
                    "cvt.u64.u32 %rd8, %r1;\n    stmatrix.sync.aligned.m8n8{count_word}{trans}{space}.b16 [{}], {};",
                    operand(space, register),
                    list("%i", *count)
                );
                let found = words(&kernel(&operation, &region, &rows, &values).run().buffers[3]);
                let mut expected = elements(&region);
                for matrix in 0..*count {
                    for row in 0..8 {
                        for column in 0..8 {
                            // The register element that belongs at this place of the memory's row.
                            let (r, c) = if transposed { (column, row) } else { (row, column) };
                            let word = values[4 * (4 * r + c / 2) + matrix];
                            expected[rows[8 * matrix + row] as usize][column] = (word >> (16 * (c % 2))) as u16;
                        }
                    }
                }
                assert_eq!(elements(&found), expected, "{operation}");
            }
        }
    }
}

#[test]
fn what_is_stored_is_what_is_loaded() {
    let region = vec![0; 4 * ROWS];
    let values: Vec<u32> = noise(24).take(128).collect();
    let rows = row_numbers(5);
    for trans in ["", ".trans"] {
        let operation = format!(
            "stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r1], {{%i0, %i1, %i2, %i3}};\n    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%o0, %o1, %o2, %o3}}, [%r1];"
        );
        assert_eq!(words(&kernel(&operation, &region, &rows, &values).run().buffers[4]), values);
    }
}

#[test]
fn a_matrix_in_registers_is_transposed() {
    let values: Vec<u32> = noise(25).take(32).collect();
    let body =
        "    movmatrix.sync.aligned.m8n8.trans.b16 %o0, %i0;\n    movmatrix.sync.aligned.m8n8.trans.b16 %o1, %o0;";
    let found = per_thread(body, std::slice::from_ref(&values), 2, 32);
    let element = |row: usize, column: usize| (values[4 * row + column / 2] >> (16 * (column % 2))) as u16;
    for lane in 0..32 {
        assert_eq!(found[0][lane], word_of(lane, true, element), "lane {lane}");
    }
    assert_eq!(found[1], values, "twice is as before");
}

#[test]
fn banks_are_counted_per_matrix() {
    // 8 rows that follow one another fill all banks once; 8 rows 128 bytes apart lie in the same four banks.
    let values = [0; 128];
    let region = vec![7; 4 * ROWS];
    let operation = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%o0, %o1, %o2, %o3}, [%r1];";
    let wavefronts = |rows: Vec<u32>| {
        let with = kernel(operation, &region, &rows, &values).run().report.counters.shared;
        let without = kernel("", &region, &rows, &values).run().report.counters.shared;
        (with.wavefronts - without.wavefronts, with.bank_conflicts - without.bank_conflicts)
    };
    assert_eq!(wavefronts((0..32).collect()), (4, 0));
    assert_eq!(wavefronts((0..32).map(|lane| lane % 8 * 8).collect()), (32, 28));
    // Rows padded to 144 bytes, as kernels do against just that: 9 rows of 16 bytes apart.
    assert_eq!(wavefronts((0..32).map(|lane| lane % 7 * 9).collect()), (4, 0));
}

#[test]
fn rows_must_be_aligned_initialised_and_inside() {
    let region = vec![7; 4 * ROWS];
    let rows: Vec<u32> = (0..32).collect();
    let fault = |operation: &str| {
        let ended = kernel(operation, &region, &rows, &[0; 128]).launch(&Settings::default());
        let fault = ended.report.fault.expect("a fault");
        (fault.kind, fault.thread)
    };
    let load = "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%o0, %o1}, [%r1];";
    assert_eq!(fault(&format!("add.u32 %r1, %r1, 8;\n    {load}")), (FaultKind::Misaligned, [0; 3]));
    let beyond = format!("setp.eq.u32 %p1, %r20, 15;\n    @%p1 add.u32 %r1, %r1, 784;\n    {load}");
    assert_eq!(fault(&beyond), (FaultKind::OutOfBounds, [15, 0, 0]));
    // The addresses of lanes that no row belongs to are not looked at.
    let unused = format!("setp.ge.u32 %p1, %r20, 16;\n    @%p1 mov.u32 %r1, 3;\n    {load}");
    kernel(&unused, &region, &rows, &[0; 128]).run();
    let global = "ldmatrix.sync.aligned.m8n8.x1.b16 {%o0}, [%rd1];";
    assert_eq!(fault(global), (FaultKind::InvalidOperation, [0; 3]));
}
