//! `wmma` against a plain product of matrices, and what it refuses.

#[path = "support/kernel.rs"]
mod kernel;

use half::{bf16, f16};
use kernel::{Argument, HEADER, Kernel, noise};
use softcuda::Settings;
use softcuda::machine::device::Device;
use softcuda::report::FaultKind;

/// A type of factors: name, bytes, registers of A and of B for the shape, bits of a small integer.
struct Case {
    shape: (&'static str, usize, usize, usize),
    factor: &'static str,
    registers: (usize, usize),
    /// Types of D and C.
    sums: (&'static str, &'static str),
}

const fn case(
    shape: (&'static str, usize, usize, usize),
    factor: &'static str,
    registers: (usize, usize),
    sums: (&'static str, &'static str),
) -> Case {
    Case { shape, factor, registers, sums }
}

const SQUARE: (&str, usize, usize, usize) = ("m16n16k16", 16, 16, 16);
const WIDE: (&str, usize, usize, usize) = ("m8n32k16", 8, 32, 16);
const TALL: (&str, usize, usize, usize) = ("m32n8k16", 32, 8, 16);

/// The numbers of registers are those of the manual's table of fragments.
const CASES: &[Case] = &[
    case(SQUARE, "f16", (8, 8), ("f32", "f32")),
    case(SQUARE, "f16", (8, 8), ("f16", "f16")),
    case(SQUARE, "f16", (8, 8), ("f16", "f32")),
    case(SQUARE, "f16", (8, 8), ("f32", "f16")),
    case(WIDE, "f16", (8, 8), ("f32", "f32")),
    case(TALL, "f16", (8, 8), ("f32", "f32")),
    case(SQUARE, "bf16", (4, 4), ("f32", "f32")),
    case(WIDE, "bf16", (2, 8), ("f32", "f32")),
    case(TALL, "bf16", (8, 2), ("f32", "f32")),
    case(SQUARE, "s8", (2, 2), ("s32", "s32")),
    case(WIDE, "u8", (1, 4), ("s32", "s32")),
    case(TALL, "s8", (4, 1), ("s32", "s32")),
    case(("m16n16k8", 16, 16, 8), "tf32", (4, 4), ("f32", "f32")),
    case(("m8n8k4", 8, 8, 4), "f64", (1, 1), ("f64", "f64")),
];

/// The bytes of a small integer in a type.
fn encode(ty: &str, value: i32) -> Vec<u8> {
    match ty {
        "f16" => f16::from_f32(value as f32).to_le_bytes().to_vec(),
        "bf16" => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        "f32" | "tf32" => (value as f32).to_le_bytes().to_vec(),
        "f64" => f64::from(value).to_le_bytes().to_vec(),
        "s32" => value.to_le_bytes().to_vec(),
        _ => vec![value as u8],
    }
}

/// Registers of C or D: their declaration and their list.
fn sums(ty: &str, elements: usize, letter: char) -> (String, String) {
    let count = if ty == "f16" { elements / 64 } else { elements / 32 };
    let register = if ty == "f16" { "b32" } else { ty };
    registers(register, count, letter)
}

fn registers(ty: &str, count: usize, letter: char) -> (String, String) {
    let names: Vec<String> = (0..count).map(|index| format!("%{letter}{index}")).collect();
    (format!(".reg .{ty} {};\n", names.join(", ")), format!("{{{}}}", names.join(", ")))
}

/// Element (row, column) of a matrix in memory with that many elements from one row (or column) to the next.
fn place(by_rows: bool, stride: usize, row: usize, column: usize) -> usize {
    if by_rows { row * stride + column } else { column * stride + row }
}

/// A matrix of small integers with padding between its rows (or columns); its bytes.
fn matrix(ty: &str, values: &[Vec<i32>], by_rows: bool, stride: usize) -> Vec<u8> {
    let (rows, columns) = (values.len(), values[0].len());
    let width = encode(ty, 0).len();
    let mut bytes = vec![0xa5; width * stride * if by_rows { rows } else { columns }];
    for (row, line) in values.iter().enumerate() {
        for (column, value) in line.iter().enumerate() {
            let at = width * place(by_rows, stride, row, column);
            bytes[at..at + width].copy_from_slice(&encode(ty, *value));
        }
    }
    bytes
}

fn product(case: &Case, layouts: [bool; 4], seed: u32) {
    let ((shape, m, n, k), (d_type, c_type)) = (case.shape, case.sums);
    let mut numbers = noise(seed);
    // Exact in every type, and so are all sums: at most 16 * 7 * 7 + 15 < 2048.
    let unsigned = case.factor == "u8";
    let mut filled = |rows: usize, columns: usize| -> Vec<Vec<i32>> {
        let mut next = || (numbers.next().unwrap_or(0) % 15) as i32 - if unsigned { 0 } else { 7 };
        (0..rows).map(|_| (0..columns).map(|_| next()).collect()).collect()
    };
    let (a, b, c) = (filled(m, k), filled(k, n), filled(m, n));
    let length = |by_rows: bool, rows: usize, columns: usize| if by_rows { columns } else { rows };
    let padding = 16;
    let strides = [
        length(layouts[0], m, k) + padding,
        length(layouts[1], k, n) + padding,
        length(layouts[2], m, n) + padding,
        length(layouts[3], m, n) + padding,
    ];
    let word = |by_rows: bool| if by_rows { "row" } else { "col" };
    let register = if case.factor == "f64" { "f64" } else { "b32" };
    let (a_declared, a_list) = registers(register, case.registers.0, 'a');
    let (b_declared, b_list) = registers(register, case.registers.1, 'b');
    let (c_declared, c_list) = sums(c_type, m * n, 'c');
    let (d_declared, d_list) = sums(d_type, m * n, 'd');
    let [la, lb, lc, ld] = layouts.map(word);
    let [sa, sb, sc, sd] = strides;
    let ty = case.factor;
    let types = if ty == "f16" { format!("{d_type}.{c_type}") } else { format!("{d_type}.{ty}.{ty}.{c_type}") };
    let body = format!(
        "{a_declared}{b_declared}{c_declared}{d_declared}
         ld.param.u64 %rd0, [pa]; ld.param.u64 %rd1, [pb]; ld.param.u64 %rd2, [pc]; ld.param.u64 %rd3, [pd];
         wmma.load.a.sync.aligned.{la}.{shape}.global.{ty} {a_list}, [%rd0], {sa};
         wmma.load.b.sync.aligned.{lb}.{shape}.{ty} {b_list}, [%rd1], {sb};
         mov.u32 %r0, {sc};
         wmma.load.c.sync.aligned.{lc}.{shape}.global.{c_type} {c_list}, [%rd2], %r0;
         wmma.mma.sync.aligned.{la}.{lb}.{shape}.{types} {d_list}, {a_list}, {b_list}, {c_list};
         wmma.store.d.sync.aligned.{ld}.{shape}.global.{d_type} [%rd3], {d_list}, {sd};"
    );
    let parameters = ".param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd";
    let d_bytes = encode(d_type, 0).len() * sd * if layouts[3] { m } else { n };
    let arguments = vec![
        Argument::Bytes(matrix(ty, &a, layouts[0], sa)),
        Argument::Bytes(matrix(ty, &b, layouts[1], sb)),
        Argument::Bytes(matrix(c_type, &c, layouts[2], sc)),
        Argument::Fresh(d_bytes),
    ];
    let found = Kernel::with_body("", parameters, &body, arguments).run().buffers.swap_remove(3);
    let width = encode(d_type, 0).len();
    for row in 0..m {
        for column in 0..n {
            let sum = (0..k).map(|at| a[row][at] * b[at][column]).sum::<i32>() + c[row][column];
            let at = width * place(layouts[3], sd, row, column);
            assert_eq!(
                found[at..at + width],
                encode(d_type, sum),
                "{shape} {ty} {layouts:?}: ({row}, {column}) = {sum}"
            );
        }
    }
}

#[test]
fn products_of_every_shape_type_and_layout() {
    for (index, case) in CASES.iter().enumerate() {
        for layouts in [[true; 4], [false; 4], [true, false, true, false], [false, true, false, true]] {
            product(case, layouts, index as u32 + 1);
        }
    }
}

/// A statement for each of eight registers.
fn eight(statement: impl Fn(usize) -> String) -> String {
    (0..8).map(statement).collect::<Vec<_>>().join("\n")
}

/// Elements may be changed one by one, wherever they lie: all of a fragment are scaled alike.
#[test]
fn a_fragment_is_scaled_by_its_registers() {
    let (_, list) = registers("b32", 8, 'a');
    let (declared, sums) = sums("f32", 256, 'c');
    let twice = eight(|index| format!("add.f16x2 %a{index}, %a{index}, %a{index};"));
    let one = eight(|index| format!("mov.f32 %c{index}, 0f3F800000;"));
    let body = format!(
        ".reg .b32 %a<8>; {declared} ld.param.u64 %rd0, [pa]; ld.param.u64 %rd1, [pd];
         wmma.load.a.sync.aligned.row.m16n16k16.f16 {list}, [%rd0];
         {twice}{one}
         wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {sums}, {list}, {list}, {sums};
         wmma.store.d.sync.aligned.row.m16n16k16.f32 [%rd1], {sums};"
    );
    let ones = matrix("f16", &vec![vec![1; 16]; 16], true, 16);
    let arguments = vec![Argument::Bytes(ones), Argument::Fresh(1024)];
    let found = Kernel::with_body("", ".param .u64 pa, .param .u64 pd", &body, arguments).run().buffers.swap_remove(1);
    assert_eq!(found, [65_f32; 256].map(f32::to_le_bytes).concat());
}

#[test]
fn integer_sums_saturate_if_asked() {
    for (word, expected) in [(".satfinite", i32::MAX), ("", i32::MIN + 127 * 127 * 16 - 1)] {
        let (declared, sums) = sums("s32", 256, 'c');
        let most = eight(|index| format!("mov.b32 %c{index}, 2147483647;"));
        let body = format!(
            ".reg .b32 %a<2>; {declared} {most} mov.b32 %a0, 0x7f7f7f7f; mov.b32 %a1, 0x7f7f7f7f;
             wmma.mma.sync.aligned.row.col.m16n16k16{word}.s32.s8.s8.s32 {sums}, {{%a0, %a1}}, {{%a0, %a1}}, {sums};
             ld.param.u64 %rd1, [pd]; wmma.store.d.sync.aligned.row.m16n16k16.s32 [%rd1], {sums};"
        );
        let ended = Kernel::with_body("", ".param .u64 pd", &body, vec![Argument::Fresh(1024)]).run();
        assert_eq!(ended.buffers[0], [expected; 256].map(i32::to_le_bytes).concat(), "{word}");
    }
}

/// A load is checked like any other, element by element.
#[test]
fn a_load_beyond_the_matrix_is_a_fault() {
    let body = ".reg .b32 %a<8>; ld.param.u64 %rd0, [pa];
        wmma.load.a.sync.aligned.row.m16n16k16.f16 {%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}, [%rd0], 17;";
    let kernel = Kernel::with_body("", ".param .u64 pa", body, vec![Argument::Bytes(vec![0; 512])]);
    let fault = kernel.launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
}

#[test]
fn refusals_say_what_is_wrong() {
    for (statement, part) in [
        ("wmma.load.a.sync.aligned.row.m8n8k32.s4 {%r0}, [%rd0];", "factors of type .s4 are not supported"),
        ("wmma.load.a.sync.aligned.row.m8n8k128.b1 {%r0}, [%rd0];", "factors of type .b1 are not supported"),
        ("wmma.load.a.sync.aligned.row.m16n16k8.f16 {%r0}, [%rd0];", "shape .m16n16k8 does not go with this type"),
        (
            "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r0}, [%rd0];",
            "1 registers for a fragment of .f16, which has 8",
        ),
        ("wmma.load.a.row.m16n16k16.f16 {%r0}, [%rd0];", "needs .sync.aligned"),
        (
            "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.f16.f32 {%r0}, {%r0}, {%r0}, {%r0};",
            "the types of D, A, B and C do not go together",
        ),
    ] {
        let text = format!("{HEADER}.entry k() {{ .reg .b32 %r<4>; .reg .b64 %rd<2>;\n{statement}\nret; }}");
        let error = Device::new(&Settings::default()).load(&text).err().expect("it is refused");
        assert!(error.message.contains(part) && error.line == 5, "{statement}: {error}");
    }
}
