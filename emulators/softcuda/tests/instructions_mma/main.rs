//! `mma.sync` against a plain product of matrices.

mod layouts;

use half::{bf16, f16};
use layouts::{BYTE_8_16, BYTE_16, BYTE_32, DOUBLE, HALF_8, HALF_16, Layout, Place, WORD_4, WORD_8};
use softcuda::machine::execute::matrix::execute;
use softcuda::machine::registers::{LANES, Reg, Registers};
use softcuda::ptx::decode::matrix::{Matrix, decode};
use softcuda::ptx::decode::modifiers::Modifiers;
use softcuda::ptx::decode::scope::{Binding, Scope};
use softcuda::ptx::parser::parse_statements;
use softcuda::ptx::syntax::{Error, Statement};
use std::collections::HashMap;

/// A decoded instruction with the registers that its text declares.
struct Program {
    scope: Scope,
    matrix: Matrix,
    registers: Registers,
}

impl Program {
    fn new(text: &str) -> Result<Self, Error> {
        let mut scope = Scope::new(HashMap::new());
        let mut matrix = None;
        for statement in parse_statements(text)? {
            match statement {
                Statement::Register { ty, name, count } => scope.declare(ty, &name, count)?,
                Statement::Instruction(instruction) => {
                    let mut modifiers = Modifiers::new(&instruction);
                    matrix = Some(decode(&instruction, &mut modifiers, &mut scope)?);
                    modifiers.finish()?;
                }
                other => panic!("{other:?}"),
            }
        }
        let mut registers = Registers::default();
        registers.enter((0, 0), scope.frame.rows as usize, scope.frame.predicates as usize);
        for (reg, bits) in &scope.frame.constants {
            registers.set_extended(*reg, u32::MAX, &[*bits; LANES]);
        }
        Ok(Self { scope, matrix: matrix.unwrap(), registers })
    }

    fn register(&self, name: &str) -> Reg {
        match self.scope.find(name) {
            Some(Binding::Register(reg, _)) => reg,
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A matrix as bits, row after row.
type Bits = Vec<Vec<u64>>;

fn filled(rows: usize, columns: usize, mut next: impl FnMut() -> u64) -> Bits {
    (0..rows).map(|_| (0..columns).map(|_| next()).collect()).collect()
}

/// Names of the registers of a fragment, the declaration, and the operand.
fn operand(letter: char, elements: usize, bits: u32, ty: &str) -> (Vec<String>, String, String) {
    let register = if matches!(ty, "f32" | "f64" | "s32") { ty } else { "b32" };
    let count = if bits == 64 { elements } else { elements * bits as usize / 32 };
    let names: Vec<String> = (0..count).map(|index| format!("%{letter}{index}")).collect();
    let list = names.join(", ");
    (names, format!(".reg .{register} {list};"), format!("{{{list}}}"))
}

/// The bits of a fragment's registers in a lane, elements from the low bits up.
fn fragment_word(matrix: &Bits, place: Place, lane: usize, register: usize, bits: u32) -> u64 {
    let per_register = if bits == 64 { 1 } else { 32 / bits as usize };
    (0..per_register).fold(0, |word, index| {
        let (row, column) = place(lane, register * per_register + index);
        word | matrix[row][column] << (index as u32 * bits)
    })
}

/// Runs one instruction on full matrices: A, B, C to D, all as bits.
fn multiply(layout: &Layout, words: &str, types: [(&str, u32); 4], (a, b, c): (&Bits, &Bits, &Bits)) -> Bits {
    let [(d_type, d_bits), (a_type, a_bits), (b_type, b_bits), _] = types;
    let (d_names, d_declared, d_operand) = operand('d', layout.c_elements, d_bits, d_type);
    let (a_names, a_declared, a_operand) = operand('a', layout.a_elements, a_bits, a_type);
    let (b_names, b_declared, b_operand) = operand('b', layout.b_elements, b_bits, b_type);
    let (c_names, c_declared, c_operand) = operand('c', layout.c_elements, d_bits, d_type);
    let shape = layout.shape;
    let opcode = format!("mma.sync.aligned.{shape}.row.col{words}.{d_type}.{a_type}.{b_type}.{d_type}");
    let declared = [d_declared, a_declared, b_declared, c_declared].join(" ");
    let text = format!("{declared} {opcode} {d_operand}, {a_operand}, {b_operand}, {c_operand};");
    let mut program = Program::new(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    for (names, matrix, place, bits) in
        [(a_names, a, layout.a, a_bits), (b_names, b, layout.b, b_bits), (c_names, c, layout.c, d_bits)]
    {
        for (register, name) in names.iter().enumerate() {
            let reg = program.register(name);
            let row = std::array::from_fn(|lane| fragment_word(matrix, place, lane, register, bits));
            program.registers.set_extended(reg, u32::MAX, &row);
        }
    }
    execute(&program.matrix, &mut program.registers);
    let mut result = vec![vec![0; 8]; layout.rows];
    let per_register = if d_bits == 64 { 1 } else { 32 / d_bits as usize };
    for (register, name) in d_names.iter().enumerate() {
        let lanes = program.registers.extended(program.register(name));
        for (lane, word) in lanes.iter().enumerate() {
            for index in 0..per_register {
                let (row, column) = (layout.c)(lane, register * per_register + index);
                let kept = u64::MAX >> (64 - d_bits);
                result[row][column] = word >> (index as u32 * d_bits) & kept;
            }
        }
    }
    result
}

/// Numbers without a pattern.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x9876_5432_1234_5678_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// A small multiple of 1/16 between -8 and 8: sums of products of these are exact in f32, whatever the order.
fn small(bits: u64) -> f64 {
    (bits % 255) as f64 / 16.0 - 127.0 / 16.0
}

/// The product of A and B, each read by a function of its bits, added to C.
fn plain(
    layout: &Layout,
    (a, b, c): (&Bits, &Bits, &Bits),
    read: impl Fn(u64) -> f64,
    read_c: impl Fn(u64) -> f64,
) -> Vec<Vec<f64>> {
    (0..layout.rows)
        .map(|m| {
            (0..8)
                .map(|n| (0..layout.depth).map(|k| read(a[m][k]) * read(b[k][n])).sum::<f64>() + read_c(c[m][n]))
                .collect()
        })
        .collect()
}

fn f32_bits(number: f64) -> u64 {
    u64::from((number as f32).to_bits())
}

fn f32_of(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// A factor type: name, bits, to bits, from bits.
type Factor = (&'static str, u32, fn(f64) -> u64, fn(u64) -> f64);

const F16: Factor =
    ("f16", 16, |number| f16::from_f64(number).to_bits().into(), |bits| f16::from_bits(bits as u16).to_f64());
const BF16: Factor =
    ("bf16", 16, |number| bf16::from_f64(number).to_bits().into(), |bits| bf16::from_bits(bits as u16).to_f64());
const TF32: Factor = ("tf32", 32, |number| f32_bits(number) >> 13 << 13, f32_of);

fn check_f32(layout: &Layout, (name, bits, encode, decode): Factor, mut value: impl FnMut() -> f64) {
    let a = filled(layout.rows, layout.depth, || encode(value()));
    let b = filled(layout.depth, 8, || encode(value()));
    let c = filled(layout.rows, 8, || f32_bits(value()));
    let found = multiply(layout, "", [("f32", 32), (name, bits), (name, bits), ("f32", 32)], (&a, &b, &c));
    let wanted = plain(layout, (&a, &b, &c), decode, f32_of);
    for (row, line) in wanted.iter().enumerate() {
        for (column, number) in line.iter().enumerate() {
            let shape = layout.shape;
            assert_eq!(found[row][column], f32_bits(*number), "{shape} {name} at {row}, {column}: {number}");
        }
    }
}

#[test]
fn floating_point_products_that_are_exact() {
    for (layout, factor) in
        [(&HALF_8, F16), (&HALF_16, F16), (&HALF_8, BF16), (&HALF_16, BF16), (&WORD_4, TF32), (&WORD_8, TF32)]
    {
        let mut next = random();
        for _ in 0..20 {
            check_f32(layout, factor, || small(next()));
        }
    }
}

#[test]
fn sums_are_rounded_once_to_f32() {
    // Numbers of one magnitude: the sum is exact in f64 and is not in f32.
    for (layout, factor) in [(&HALF_16, F16), (&HALF_16, BF16), (&WORD_8, TF32)] {
        let mut next = random();
        for _ in 0..20 {
            check_f32(layout, factor, || ((next() % 2048) as f64 - 1024.0) / 512.0 * 1.25);
        }
    }
}

#[test]
fn tf32_factors_are_cut() {
    let layout = &WORD_8;
    let mut next = random();
    let mut any = || u64::from((small(next()) as f32 * 1.000_123).to_bits());
    let (a, b) = (filled(16, 8, &mut any), filled(8, 8, &mut any));
    let c = filled(16, 8, || 0);
    let found = multiply(layout, "", [("f32", 32), ("tf32", 32), ("tf32", 32), ("f32", 32)], (&a, &b, &c));
    let wanted = plain(layout, (&a, &b, &c), |bits| f32_of(bits >> 13 << 13), f32_of);
    assert!(a.iter().flatten().any(|bits| bits & 0x1fff != 0));
    for (row, line) in wanted.iter().enumerate() {
        for (column, number) in line.iter().enumerate() {
            assert_eq!(found[row][column], f32_bits(*number));
        }
    }
}

#[test]
fn f16_sums_are_rounded_to_f16() {
    let half = |bits: u64| f16::from_bits(bits as u16).to_f64();
    for layout in [&HALF_8, &HALF_16] {
        let mut next = random();
        let mut any = || u64::from(f16::from_f64(small(next())).to_bits());
        let (a, b) = (filled(16, layout.depth, &mut any), filled(layout.depth, 8, &mut any));
        let c = filled(16, 8, &mut any);
        let found = multiply(layout, "", [("f16", 16), ("f16", 16), ("f16", 16), ("f16", 16)], (&a, &b, &c));
        for (row, line) in plain(layout, (&a, &b, &c), half, half).iter().enumerate() {
            for (column, number) in line.iter().enumerate() {
                assert_eq!(found[row][column], u64::from(f16::from_f64(*number).to_bits()));
            }
        }
    }
}

#[test]
fn products_of_8_bit_floating_point_numbers() {
    // Every value of the formats is a multiple of a power of two with few bits: read from the bits by the definition.
    let e5m2: fn(u64) -> f64 = |bits| f16::from_bits((bits as u16) << 8).to_f64();
    let e4m3: fn(u64) -> f64 = |bits| {
        let (exponent, fraction) = ((bits >> 3 & 15) as i32, (bits & 7) as f64);
        let number = if exponent == 0 { fraction / 512.0 } else { (1.0 + fraction / 8.0) * 2.0_f64.powi(exponent - 7) };
        if bits & 0x80 == 0 { number } else { -number }
    };
    for layout in [&BYTE_16, &BYTE_32] {
        for (a_type, read_a) in [("e4m3", e4m3), ("e5m2", e5m2)] {
            for (b_type, read_b) in [("e4m3", e4m3), ("e5m2", e5m2)] {
                let mut next = random();
                // Exponents around that of 1, both signs.
                let mut any = |ty: &str| {
                    let low = if ty == "e4m3" { 5 << 3 } else { 13 << 2 };
                    (low + next() % 24) | (next() & 0x80)
                };
                let a = filled(16, layout.depth, || any(a_type));
                let b = filled(layout.depth, 8, || any(b_type));
                let c = filled(16, 8, || f32_bits(small(any(a_type))));
                let types = [("f32", 32), (a_type, 8), (b_type, 8), ("f32", 32)];
                let found = multiply(layout, "", types, (&a, &b, &c));
                for m in 0..16 {
                    for n in 0..8 {
                        let sum: f64 = (0..layout.depth).map(|k| read_a(a[m][k]) * read_b(b[k][n])).sum();
                        assert_eq!(found[m][n], f32_bits(sum + f32_of(c[m][n])), "{a_type} {b_type}");
                    }
                }
            }
        }
    }
}

#[test]
fn double_precision() {
    for layout in [&DOUBLE, &WORD_4, &WORD_8] {
        let mut next = random();
        let mut any = || small(next()).to_bits();
        let (a, b) = (filled(layout.rows, layout.depth, &mut any), filled(layout.depth, 8, &mut any));
        let c = filled(layout.rows, 8, &mut any);
        let found = multiply(layout, "", [("f64", 64), ("f64", 64), ("f64", 64), ("f64", 64)], (&a, &b, &c));
        for (row, line) in plain(layout, (&a, &b, &c), f64::from_bits, f64::from_bits).iter().enumerate() {
            for (column, number) in line.iter().enumerate() {
                assert_eq!(f64::from_bits(found[row][column]), *number);
            }
        }
    }
}

#[test]
fn integers_wrap_or_saturate() {
    for layout in [&BYTE_8_16, &BYTE_16, &BYTE_32] {
        for (a_type, b_type) in [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")] {
            for saturates in [false, true] {
                let mut next = random();
                let a = filled(layout.rows, layout.depth, || next() & 0xff);
                let b = filled(layout.depth, 8, || next() & 0xff);
                // Near both ends of s32, so that sums leave it, and anywhere.
                let c = filled(layout.rows, 8, || match next() % 3 {
                    0 => 0x7fff_ffff - next() % 1000,
                    1 => 0x8000_0000 + next() % 1000,
                    _ => next() & 0xffff_ffff,
                });
                let words = if saturates { ".satfinite" } else { "" };
                let types = [("s32", 32), (a_type, 8), (b_type, 8), ("s32", 32)];
                let found = multiply(layout, words, types, (&a, &b, &c));
                let read = |ty: &str, bits: u64| if ty == "s8" { i128::from(bits as i8) } else { i128::from(bits) };
                let mut left = 0;
                for m in 0..layout.rows {
                    for n in 0..8 {
                        let sum: i128 = (0..layout.depth).map(|k| read(a_type, a[m][k]) * read(b_type, b[k][n])).sum();
                        let sum = sum + i128::from(c[m][n] as u32 as i32);
                        left += u32::from(i32::try_from(sum).is_err());
                        let wanted = if saturates { sum.max(i32::MIN.into()).min(i32::MAX.into()) } else { sum };
                        assert_eq!(found[m][n], wanted.rem_euclid(1 << 32) as u64, "{a_type} {b_type} {words}");
                    }
                }
                assert!(left > 0, "no sum left s32: the test says nothing about its ends");
            }
        }
    }
}

#[test]
fn infinities_and_nan_go_through() {
    let layout = &HALF_16;
    let mut a = filled(16, 16, || u64::from(f16::ONE.to_bits()));
    let b = filled(16, 8, || u64::from(f16::ONE.to_bits()));
    let c = filled(16, 8, || 0);
    a[3][5] = 0x7c00;
    a[9][0] = 0xfe01;
    a[12][2] = 0x7c00;
    a[12][9] = 0xfc00;
    let found = multiply(layout, "", [("f32", 32), ("f16", 16), ("f16", 16), ("f32", 32)], (&a, &b, &c));
    for (row, line) in found.iter().enumerate() {
        let wanted = match row {
            3 => 0x7f80_0000,
            9 | 12 => 0x7fff_ffff,
            _ => u64::from(16.0_f32.to_bits()),
        };
        assert!(line.iter().all(|bits| *bits == wanted), "row {row}: {line:x?}");
    }
}

#[test]
fn the_destination_may_be_the_accumulator_and_sources_may_be_constants() {
    let text = ".reg .f32 f<4>; .reg .b32 a<4>, b<2>; mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 \
                {f0, f1, f2, _}, {a0, a1, a2, a3}, {b0, b1}, {f0, f1, 0f3F800000, f3};";
    let mut program = Program::new(text).unwrap();
    for name in ["a0", "a1", "a2", "a3", "b0", "b1"] {
        let reg = program.register(name);
        program.registers.set_extended(reg, u32::MAX, &[u64::from(2.0_f32.to_bits()); LANES]);
    }
    for (name, number) in [("f0", 5.0_f32), ("f1", 6.0), ("f3", 7.0)] {
        let reg = program.register(name);
        program.registers.set_extended(reg, u32::MAX, &[u64::from(number.to_bits()); LANES]);
    }
    execute(&program.matrix, &mut program.registers);
    for (name, number) in [("f0", 37.0_f32), ("f1", 38.0), ("f2", 33.0), ("f3", 7.0)] {
        assert_eq!(program.registers.extended(program.register(name)), [u64::from(number.to_bits()); LANES], "{name}");
    }
}

#[test]
fn other_matrix_instructions_are_refused() {
    let f = "{f0, f1, f2, f3}";
    for (opcode, operands, word) in [
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", format!("{f}, {f}, {f}, {f}"), "wmma"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16", format!("{f}, {f}"), "wgmma"),
        ("tcgen05.mma.cta_group::1.kind::f16", format!("{f}, {f}"), "tcgen05"),
        (
            "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            format!("{f}, {{r0, r1}}, {{r0, r1}}, {f}, r0, 0"),
            "sparse",
        ),
        (
            "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            format!("{f}, {{r0, r1}}, {{r0, r1}}, {f}, r0, 0"),
            "sparse",
        ),
        (
            "mma.sync.aligned.m16n8k8.row.row.f32.tf32.tf32.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"),
            "col",
        ),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.f32.f32.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"),
            "f32",
        ),
        ("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"), "s4"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"),
            "bf16",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
            "{r0, r1}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1}".to_owned(),
            "f16",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f16",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {{r0, r1}}"),
            "f16",
        ),
        ("mma.sync.aligned.m16n8k4.row.col.f32.f16.f16.f32", format!("{f}, {{r0, r1}}, {{r0}}, {f}"), "m16n8k4"),
        (
            "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"),
            "satfinite",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            format!("{f}, {{r0, r1, r2}}, {{r0, r1}}, {f}"),
            "3 registers",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}"),
            "operands",
        ),
        ("mma.aligned.m16n8k16.row.col.f32.f16.f16.f32", format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"), "sync"),
        (
            "mma.sync.aligned.kind::mxf8f6f4.m16n8k32.row.col.f32.e4m3.e4m3.f32",
            format!("{f}, {{r0, r1, r2, r3}}, {{r0, r1}}, {f}"),
            "kind::mxf8f6f4",
        ),
    ] {
        let text = format!(".reg .f32 f<4>; .reg .b32 r<4>; {opcode} {operands};");
        match Program::new(&text) {
            Ok(_) => panic!("{opcode} is accepted"),
            Err(error) => assert!(error.message.contains(word), "{opcode}: {error} does not name {word}"),
        }
    }
}
