//! `atom` and `red`: what one thread's operation does to memory, for every operation, type and space.

#[path = "support/kernel.rs"]
mod kernel;

use half::{bf16, f16};
use kernel::{Argument, Kernel, noise};
use softcuda::Settings;

/// New value of (old, operand, second operand of `cas`).
type Reference = fn(u128, u128, u128) -> u128;

/// An operation on a type.
struct Operation {
    /// As written between the space and the operands.
    words: &'static str,
    /// Bits of the type.
    bits: u32,
    reference: Reference,
}

const fn row(words: &'static str, bits: u32, reference: Reference) -> Operation {
    Operation { words, bits, reference }
}

fn low(value: u128) -> u32 {
    value as u32
}

fn signed_32(choose: fn(i32, i32) -> i32) -> impl Fn(u128, u128) -> u128 {
    move |old, operand| u128::from(choose(old as i32, operand as i32) as u32)
}

fn signed_64(choose: fn(i64, i64) -> i64) -> impl Fn(u128, u128) -> u128 {
    move |old, operand| u128::from(choose(old as i64, operand as i64) as u64)
}

const OPERATIONS: &[Operation] = &[
    row("and.b32", 32, |old, operand, _| old & operand),
    row("or.b32", 32, |old, operand, _| old | operand),
    row("xor.b32", 32, |old, operand, _| old ^ operand),
    row("and.b64", 64, |old, operand, _| old & operand),
    row("or.b64", 64, |old, operand, _| old | operand),
    row("xor.b64", 64, |old, operand, _| old ^ operand),
    row("add.u32", 32, |old, operand, _| u128::from(low(old).wrapping_add(low(operand)))),
    row("add.s32", 32, |old, operand, _| u128::from((old as i32).wrapping_add(operand as i32) as u32)),
    row("add.u64", 64, |old, operand, _| u128::from((old as u64).wrapping_add(operand as u64))),
    row("min.u32", 32, |old, operand, _| old.min(operand)),
    row("max.u32", 32, |old, operand, _| old.max(operand)),
    row("min.s32", 32, |old, operand, _| signed_32(i32::min)(old, operand)),
    row("max.s32", 32, |old, operand, _| signed_32(i32::max)(old, operand)),
    row("min.u64", 64, |old, operand, _| old.min(operand)),
    row("max.u64", 64, |old, operand, _| old.max(operand)),
    row("min.s64", 64, |old, operand, _| signed_64(i64::min)(old, operand)),
    row("max.s64", 64, |old, operand, _| signed_64(i64::max)(old, operand)),
    // The manual: ((r >= s) ? 0 : r + 1) and ((r == 0) || (r > s)) ? s : r - 1.
    row("inc.u32", 32, |old, operand, _| if old >= operand { 0 } else { old + 1 }),
    row("dec.u32", 32, |old, operand, _| if old == 0 || old > operand { operand } else { old - 1 }),
];

/// Those that `red` does not have.
const SWAPS: &[Operation] = &[
    row("exch.b32", 32, |_, operand, _| operand),
    row("exch.b64", 64, |_, operand, _| operand),
    row("exch.b128", 128, |_, operand, _| operand),
    row("cas.b16", 16, |old, compare, new| if old == compare { new } else { old }),
    row("cas.b32", 32, |old, compare, new| if old == compare { new } else { old }),
    row("cas.b64", 64, |old, compare, new| if old == compare { new } else { old }),
    row("cas.b128", 128, |old, compare, new| if old == compare { new } else { old }),
];

/// Spaces, and what turns the shared address `%r1` and the global one `%rd4` into the operand's address.
const SPACES: &[(&str, &str, bool)] = &[
    (".global", "%rd4", false),
    ("", "%rd4", false),
    (".shared", "%r1", true),
    (".shared::cta", "%r1", true),
    (".shared::cluster", "%r1", true),
    ("", "%rd5", true),
];

/// Orders and scopes, which change nothing for one thread.
const ORDERS: &[&str] = &["", ".relaxed.gpu", ".acquire.cta", ".release.sys", ".acq_rel.cluster"];

/// Values of so many bits at which something can go wrong, in all pairs.
fn pairs(bits: u32) -> Vec<(u128, u128)> {
    let mask = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    let top = 1_u128 << (bits - 1);
    let middle = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321 & mask;
    let values = [0, 1, 2, 7, mask, mask - 1, top, top - 1, top + 1, middle];
    values.iter().flat_map(|old| values.iter().map(move |operand| (*old, *operand))).collect()
}

/// One operation per thread on a cell of its own, 32 bytes apart; `[thread]` of (new value of the cell, old value
/// returned), each 32 bytes.
#[track_caller]
fn run(instruction: &str, register: &str, in_shared: bool, cases: &[[Vec<u8>; 3]]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let threads = cases.len() as u32;
    let bits: u32 = match register {
        "%h" => 16,
        "%r" => 32,
        "%rd" => 64,
        _ => 128,
    };
    let (to_cell, from_cell) = if in_shared {
        (
            "    ld.global.v4.b64 {%rd10, %rd11, %rd12, %rd13}, [%rd4];\n    st.shared.v2.b64 [%r1], {%rd10, %rd11};\n    \
             st.shared.v2.b64 [%r1+16], {%rd12, %rd13};",
            "    ld.shared.v2.b64 {%rd10, %rd11}, [%r1];\n    ld.shared.v2.b64 {%rd12, %rd13}, [%r1+16];\n    \
             st.global.v4.b64 [%rd4], {%rd10, %rd11, %rd12, %rd13};",
        )
    } else {
        ("", "")
    };
    let body = format!(
        "    .shared .align 32 .b8 cells[32768];
    ld.param.u64 %rd1, [cells_out];
    ld.param.u64 %rd2, [operands];
    ld.param.u64 %rd3, [old];
    mov.u32 %r2, %tid.x;
    mad.wide.u32 %rd4, %r2, 32, %rd1;
    mad.wide.u32 %rd2, %r2, 64, %rd2;
    mad.wide.u32 %rd3, %r2, 32, %rd3;
    mov.u32 %r1, cells;
    mad.lo.u32 %r1, %r2, 32, %r1;
    cvt.u64.u32 %rd5, %r1;
    cvta.shared.u64 %rd5, %rd5;
    ld.global.b{bits} {register}6, [%rd2];
    ld.global.b{bits} {register}7, [%rd2+32];
{to_cell}
{instruction}
{from_cell}"
    );
    let join = |place: usize| cases.iter().flat_map(|case| case[place].iter().copied()).collect::<Vec<u8>>();
    let operands = cases.iter().flat_map(|case| case[1].iter().chain(&case[2]).copied()).collect();
    let arguments =
        vec![Argument::Bytes(join(0)), Argument::Bytes(operands), Argument::Bytes(vec![0; 32 * cases.len()])];
    let parameters = ".param .u64 cells_out, .param .u64 operands, .param .u64 old";
    let mut kernel = Kernel::with_body("", parameters, &body, arguments);
    kernel.block = [threads, 1, 1];
    let ended = kernel.run_with(&Settings::default());
    assert!(ended.report.counters.atomics > 0);
    ended.buffers[0]
        .chunks(32)
        .zip(ended.buffers[2].chunks(32))
        .map(|(new, old)| (new.to_vec(), old.to_vec()))
        .collect()
}

/// 32 bytes that begin with this value.
fn cell(value: u128) -> Vec<u8> {
    let mut cell = value.to_le_bytes().to_vec();
    cell.resize(32, 0xa5);
    cell
}

fn value(cell: &[u8], bits: u32) -> u128 {
    let whole = u128::from_le_bytes(cell[..16].try_into().expect("16 bytes"));
    if bits == 128 { whole } else { whole & ((1 << bits) - 1) }
}

fn register(bits: u32) -> &'static str {
    match bits {
        16 => "%h",
        32 => "%r",
        64 => "%rd",
        _ => "%q",
    }
}

fn check(operation: &Operation, space: (&str, &str, bool), order: &str, returns: bool) {
    let &Operation { words, bits, reference } = operation;
    let (space, address, in_shared) = space;
    let register = register(bits);
    let opcode = if returns { "atom" } else { "red" };
    let destination = if returns { format!("{register}9, ") } else { String::new() };
    let store = if returns { format!("    st.global.b{bits} [%rd3], {register}9;") } else { String::new() };
    let second = if words.starts_with("cas") { format!(", {register}7") } else { String::new() };
    let instruction =
        format!("    {opcode}{order}{space}.{words} {destination}[{address}], {register}6{second};\n{store}");
    let new = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
    let pairs = pairs(bits);
    let cases: Vec<_> = pairs.iter().map(|(old, operand)| [cell(*old), cell(*operand), cell(new)]).collect();
    let found = run(&instruction, register, in_shared, &cases);
    for ((old, operand), (after, returned)) in pairs.iter().zip(found) {
        let swap = value(&cell(new), bits);
        let context = format!("{instruction}: {old:#x} and {operand:#x}");
        assert_eq!(value(&after, bits), reference(*old, *operand, swap), "{context}");
        if returns {
            assert_eq!(value(&returned, bits), *old, "{context}");
        }
        let width = bits as usize / 8;
        assert_eq!(after[width..], cell(*old)[width..], "{context}: beyond the operand");
    }
}

#[test]
fn integers_in_every_space() {
    for operation in OPERATIONS {
        for (index, space) in SPACES.iter().enumerate() {
            check(operation, *space, ORDERS[index % ORDERS.len()], true);
            check(operation, *space, ["", ".relaxed.gpu", ".release.cta"][index % 3], false);
        }
    }
    for operation in SWAPS {
        for (index, space) in SPACES.iter().enumerate() {
            check(operation, *space, ORDERS[(index + 1) % ORDERS.len()], true);
        }
    }
}

/// A floating-point sum: type, bits, and the sum rounded once to the type.
type Sum = (&'static str, u32, fn(u64, u64) -> u64);

/// Every sum of two f16 is exact in f64; of two bf16 it is not, but 53 bits are enough that the second rounding does no
/// harm (53 >= 2 x 8 + 2).
const SUMS: &[Sum] = &[
    ("add.f32", 32, |a, b| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits())),
    ("add.f64", 64, |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
    ("add.noftz.f16", 16, |a, b| {
        let sum = f16::from_bits(a as u16).to_f64() + f16::from_bits(b as u16).to_f64();
        u64::from(f16::from_f64(sum).to_bits())
    }),
    ("add.noftz.bf16", 16, |a, b| {
        let sum = bf16::from_bits(a as u16).to_f64() + bf16::from_bits(b as u16).to_f64();
        u64::from(bf16::from_f64(sum).to_bits())
    }),
];

/// Zeros, ones, the smallest and largest numbers, infinities, a NaN, and numbers whose sums must be rounded.
fn floats(ty: &str) -> Vec<u64> {
    let singles =
        [0.0, -0.0, 1.0, -1.0, 1.000_000_1, 16_777_216.0, f32::MAX, -f32::MAX, f32::INFINITY, -f32::INFINITY, f32::NAN];
    let doubles = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.0 + f64::EPSILON,
        5e-324,
        -5e-324,
        f64::MAX,
        f64::INFINITY,
        -f64::INFINITY,
        f64::NAN,
        9e15,
    ];
    let words = |words: &[u64]| words.to_vec();
    match ty {
        "add.f32" => singles.iter().map(|value| u64::from(value.to_bits())).collect(),
        "add.f64" => doubles.iter().map(|value: &f64| value.to_bits()).collect(),
        // The smallest subnormal, the largest one, the smallest normal, 1, 1 + 2^-10, 2048, the largest, infinities, a
        // NaN.
        "add.noftz.f16" => words(&[
            0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x3c01, 0x6800, 0x7bff, 0xfbff, 0x7c00, 0xfc00,
            0x7e00,
        ]),
        _ => words(&[
            0, 0x8000, 1, 0x8001, 0x007f, 0x0080, 0x3f80, 0xbf80, 0x3f81, 0x4380, 0x7f7f, 0xff7f, 0x7f80, 0xff80,
            0x7fc0,
        ]),
    }
}

fn is_nan(bits: u64, ty: &str) -> bool {
    match ty {
        "add.f32" => f32::from_bits(bits as u32).is_nan(),
        "add.f64" => f64::from_bits(bits).is_nan(),
        "add.noftz.f16" => f16::from_bits(bits as u16).is_nan(),
        _ => bf16::from_bits(bits as u16).is_nan(),
    }
}

#[test]
fn sums_of_floats_in_every_space() {
    for (words, bits, reference) in SUMS {
        let values = floats(words);
        let pairs: Vec<_> = values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))).collect();
        let cases: Vec<_> = pairs.iter().map(|(a, b)| [cell(u128::from(*a)), cell(u128::from(*b)), cell(0)]).collect();
        for (space, address, in_shared) in SPACES {
            let register = register(*bits);
            let instruction = format!(
                "    atom{space}.{words} {register}9, [{address}], {register}6;\n    st.global.b{bits} [%rd3], {register}9;"
            );
            let found = run(&instruction, register, *in_shared, &cases);
            for ((a, b), (after, returned)) in pairs.iter().zip(found) {
                let context = format!("{instruction}: {a:#x} + {b:#x}");
                let (new, expected) = (value(&after, *bits) as u64, reference(*a, *b));
                let both_nan = is_nan(new, words) && is_nan(expected, words);
                assert!(both_nan || new == expected, "{context}: {new:#x}, not {expected:#x}");
                assert_eq!(value(&returned, *bits) as u64, *a, "{context}");
            }
        }
    }
}

#[test]
fn f32_sums_flush_subnormals_in_global_memory_only() {
    // PTX ISA, atom: "on global memory flushes subnormal inputs and results to sign-preserving zero; whereas
    // atom.add.f32 on shared memory supports subnormal inputs and results".
    let tiny = f32::from_bits(1);
    let smallest = f32::MIN_POSITIVE;
    let pairs = [(tiny, tiny), (-tiny, -0.0), (smallest, -smallest * 1.5), (tiny, 1.0)];
    let cases: Vec<_> =
        pairs.iter().map(|(a, b)| [cell(u128::from(a.to_bits())), cell(u128::from(b.to_bits())), cell(0)]).collect();
    let sums = |space: &str, address: &str, in_shared: bool| -> Vec<u32> {
        let instruction = format!("    red{space}.add.f32 [{address}], %r6;");
        run(&instruction, "%r", in_shared, &cases).iter().map(|(after, _)| value(after, 32) as u32).collect()
    };
    let bits = |values: [f32; 4]| values.map(f32::to_bits).to_vec();
    assert_eq!(sums(".global", "%rd4", false), bits([0.0, -0.0, -0.0, 1.0]));
    assert_eq!(sums("", "%rd4", false), bits([0.0, -0.0, -0.0, 1.0]));
    assert_eq!(sums(".shared", "%r1", true), bits([tiny + tiny, -tiny, smallest * -0.5, 1.0]));
}

#[test]
fn packed_and_vector_forms_work_element_by_element() {
    // (instruction after the space, element bits, elements, sum of one element)
    let table: &[(&str, u32, usize, Sum)] = &[
        ("add.noftz.f16x2", 16, 2, SUMS[2]),
        ("add.noftz.bf16x2", 16, 2, SUMS[3]),
        ("add.v2.f32", 32, 2, SUMS[0]),
        ("add.v4.f32", 32, 4, SUMS[0]),
        ("add.noftz.v2.f16", 16, 2, SUMS[2]),
        ("add.noftz.v8.f16", 16, 8, SUMS[2]),
        ("add.noftz.v4.bf16", 16, 4, SUMS[3]),
        ("add.noftz.v2.f16x2", 16, 4, SUMS[2]),
        ("add.noftz.v4.bf16x2", 16, 8, SUMS[3]),
    ];
    for (words, bits, elements, (ty, _, reference)) in table {
        let width = *bits as usize / 8;
        let values: Vec<u64> = floats(ty).into_iter().filter(|bits| !is_nan(*bits, ty)).collect();
        let pick = |seed: u32| -> Vec<Vec<u64>> {
            let mut noise = noise(seed);
            let mut draw = || values[noise.next().expect("endless") as usize % values.len()];
            (0..64).map(|_| (0..*elements).map(|_| draw()).collect()).collect()
        };
        let (olds, operands) = (pick(5), pick(6));
        let bytes = |elements: &[u64]| -> Vec<u8> {
            let mut bytes: Vec<u8> = elements.iter().flat_map(|value| value.to_le_bytes()[..width].to_vec()).collect();
            bytes.resize(32, 0xa5);
            bytes
        };
        let cases: Vec<_> = olds.iter().zip(&operands).map(|(a, b)| [bytes(a), bytes(b), cell(0)]).collect();
        // The registers of the instruction hold 2 or 4 bytes each.
        let per_register = if words.ends_with("x2") || *bits == 32 { 4 } else { 2 };
        let registers = width * elements / per_register;
        let (stem, kind) = if per_register == 4 { ("%r", "b32") } else { ("%h", "b16") };
        let list = |first: usize| {
            let names: Vec<_> = (first..first + registers).map(|index| format!("{stem}{index}")).collect();
            if registers == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
        };
        let load =
            |index: usize| format!("    ld.global.{kind} {stem}{}, [%rd2+{}];\n", 4 + index, per_register * index);
        let loads: String = (0..registers).map(load).collect();
        let wide_registers = "    .reg .b16 %h<32>;\n    .reg .b32 %r<32>;\n";
        let store =
            |index: usize| format!("    st.global.{kind} [%rd3+{}], {stem}{};\n", per_register * index, 12 + index);
        let stores: String = (0..registers).map(store).collect();
        let forms = [
            format!("    red.global.{words} [%rd4], {};\n", list(4)),
            format!("    atom.global.{words} {}, [%rd4], {};\n{stores}", list(12), list(4)),
        ];
        for (returns, form) in forms.iter().enumerate() {
            let instruction = format!("    {{\n{wide_registers}{loads}{form}    }}");
            for (index, (after, returned)) in run(&instruction, "%q", false, &cases).iter().enumerate() {
                let element = |cell: &[u8], place: usize| value(&cell_at(cell, place * width), *bits) as u64;
                for place in 0..*elements {
                    let (a, b) = (olds[index][place], operands[index][place]);
                    let (new, mut expected) = (element(after, place), reference(a, b));
                    if is_nan(expected, ty) && is_nan(new, ty) {
                        expected = new;
                    }
                    assert_eq!(new, expected, "{form}: element {place}: {a:#x} + {b:#x}");
                    if returns == 1 {
                        assert_eq!(element(returned, place), a, "{form}: element {place}");
                    }
                }
                assert_eq!(after[width * elements..], bytes(&[])[width * elements..], "{form}: beyond");
            }
        }
    }
}

/// The cell's bytes from a place on, padded.
fn cell_at(cell: &[u8], from: usize) -> Vec<u8> {
    let mut rest = cell[from..].to_vec();
    rest.resize(32, 0);
    rest
}

#[test]
fn minima_and_maxima_of_halves() {
    for (ty, to_f64) in [
        ("f16", (|bits| f16::from_bits(bits).to_f64()) as fn(u16) -> f64),
        ("bf16", |bits| bf16::from_bits(bits).to_f64()),
    ] {
        let values: Vec<u16> = floats(if ty == "f16" { "add.noftz.f16" } else { "add.noftz.bf16" })
            .into_iter()
            .map(|bits| bits as u16)
            .filter(|bits| !to_f64(*bits).is_nan())
            .collect();
        let pairs: Vec<_> = values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))).collect();
        let double = |value: u16| cell(u128::from(value) | u128::from(value) << 16);
        let cases: Vec<_> = pairs.iter().map(|(a, b)| [double(*a), double(*b), cell(0)]).collect();
        for minimum in [true, false] {
            let name = if minimum { "min" } else { "max" };
            let instruction = format!(
                "    mov.b32 {{%h1, %h2}}, %r6;\n    atom.global.{name}.noftz.v2.{ty} {{%h3, %h4}}, [%rd4], {{%h1, %h2}};"
            );
            for ((a, b), (after, _)) in pairs.iter().zip(run(&instruction, "%r", false, &cases)) {
                let expected = if minimum { to_f64(*a).min(to_f64(*b)) } else { to_f64(*a).max(to_f64(*b)) };
                for half in 0..2 {
                    let found = to_f64(value(&cell_at(&after, 2 * half), 16) as u16);
                    assert_eq!(found, expected, "{name} of {a:#x} and {b:#x}");
                }
            }
        }
    }
}
