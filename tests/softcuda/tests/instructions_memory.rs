//! Loads and stores of every width in every space, addresses, the layout of variables and parameters, and the counters
//! of traffic.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, longs, noise, per_thread, per_thread_in, words};
use softcuda::Settings;
use softcuda::report::FaultKind;

/// Bytes without a pattern.
fn random_bytes(seed: u32, number: usize) -> Vec<u8> {
    bytes(noise(seed).take(number.div_ceil(4)))[..number].to_vec()
}

/// Register stem for elements of so many bits.
fn stem(bits: u32) -> &'static str {
    match bits {
        8 | 16 => "%h",
        32 => "%r",
        64 => "%rd",
        _ => "%q",
    }
}

/// Stores of `%o0` and so on to `%rd21`.
fn stores(outputs: usize) -> String {
    let store = |index| format!("    st.global.u32 [%rd21+{}], %o{index};\n", 4 * index);
    (0..outputs).map(store).collect()
}

/// `%r4`, or `{%r4, %r5}` and so on.
fn registers(bits: u32, count: u32) -> String {
    let names: Vec<_> = (0..count).map(|index| format!("{}{}", stem(bits), 4 + index)).collect();
    if count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
}

#[test]
fn every_width_goes_through_every_space_unchanged() {
    // Spaces with what makes an address of the thread's 32 bytes in %rd1 (and %r1).
    let spaces = [
        (".global", "ld.param.u64 %rd1, [room];\n    mad.wide.u32 %rd1, %r0, 32, %rd1;", "%rd1"),
        ("", "ld.param.u64 %rd1, [room];\n    mad.wide.u32 %rd1, %r0, 32, %rd1;", "%rd1"),
        (".shared", "mov.u32 %r1, tile;\n    mad.lo.u32 %r1, %r0, 32, %r1;", "%r1"),
        (".shared::cta", "mov.u32 %r1, tile;\n    mad.lo.u32 %r1, %r0, 32, %r1;", "%r1"),
        (".shared", "mov.u64 %rd1, tile;\n    mad.wide.u32 %rd1, %r0, 32, %rd1;", "%rd1"),
        ("", "mov.u64 %rd1, tile;\n    mad.wide.u32 %rd1, %r0, 32, %rd1;\n    cvta.shared.u64 %rd1, %rd1;", "%rd1"),
        (".local", "mov.u64 %rd1, stack;", "%rd1"),
        ("", "mov.u64 %rd2, stack;\n    cvta.local.u64 %rd1, %rd2;", "%rd1"),
    ];
    let input = random_bytes(1, 32 * 32);
    for bits in [8, 16, 32, 64, 128] {
        for count in [1, 2, 4, 8] {
            let width = (bits / 8 * count) as usize;
            // Vectors of eight are of 32-bit elements; more than 16 bytes at once only go to global memory.
            if width > 32 || count == 8 && bits != 32 {
                continue;
            }
            for (space, address, register) in spaces {
                if width == 32 && space != ".global" {
                    continue;
                }
                let vector = if count == 1 { String::new() } else { format!(".v{count}") };
                let list = registers(bits, count);
                let clear: String = if bits == 128 {
                    "    mov.b128 %q4, {%rd15, %rd15};\n    mov.b128 %q5, {%rd15, %rd15};".to_owned()
                } else {
                    let width = bits.max(16);
                    let zero = |index| format!("    mov.b{width} {}{}, 0;\n", stem(bits), 4 + index);
                    (0..count).map(zero).collect()
                };
                let body = format!(
                    "    .shared .align 32 .b8 tile[1024];
    .local .align 32 .b8 stack[32];
    mov.u32 %r0, %tid.x;
    ld.param.u64 %rd2, [in];
    ld.param.u64 %rd3, [out];
    mad.wide.u32 %rd2, %r0, 32, %rd2;
    mad.wide.u32 %rd3, %r0, 32, %rd3;
    ld.global{vector}.b{bits} {list}, [%rd2];
    mov.u64 %rd16, %rd3;
    {address}
    st{space}{vector}.b{bits} [{register}], {list};
{clear}
    ld{space}{vector}.b{bits} {list}, [{register}];
    st.global{vector}.b{bits} [%rd16], {list};"
                );
                // `%rd2` is free once the input is loaded.
                let arguments = vec![Argument::Bytes(input.clone()), Argument::Fresh(1024), Argument::Fresh(1024)];
                let ended =
                    Kernel::with_body("", ".param .u64 in, .param .u64 room, .param .u64 out", &body, arguments).run();
                for (thread, (found, expected)) in ended.buffers[2].chunks(32).zip(input.chunks(32)).enumerate() {
                    assert_eq!(found[..width], expected[..width], "{space}{vector}.b{bits}, thread {thread}");
                    assert!(found[width..].iter().all(|byte| *byte == 0), "beyond {space}{vector}.b{bits}");
                }
            }
        }
    }
}

#[test]
fn loads_extend_to_wider_registers_and_stores_cut() {
    // (type, bits, signed)
    let types = [("u8", 8, false), ("s8", 8, true), ("b8", 8, false), ("u16", 16, false), ("s16", 16, true)];
    let types = types.into_iter().chain([("u32", 32, false), ("s32", 32, true), ("b32", 32, false), ("s64", 64, true)]);
    let inputs: Vec<u32> = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX]
        .into_iter()
        .chain(noise(2).take(21))
        .collect();
    for (ty, bits, signed) in types {
        let narrow = if bits <= 16 {
            format!(
                "    ld.global.{ty} %h1, [%rd20];\n    cvt.u32.u16 %o4, %h1;\n    ld.global.v2.{ty} {{%h2, %h3}}, [%rd20];
    mov.b32 %o5, {{%h2, %h3}};\n    st.global.{ty} [%rd21+24], %h1;\n"
            )
        } else {
            String::new()
        };
        let word = if bits <= 32 {
            format!("    ld.global.{ty} %o0, [%rd20];\n    ld.global.{ty} %o1, [%rd20+{}];\n", bits / 8)
        } else {
            String::new()
        };
        let body = format!(
            "{word}    ld.global.{ty} %rd1, [%rd20];
    mov.b64 {{%o2, %o3}}, %rd1;
{narrow}    mov.u32 %o6, 0;
    st.global.u32 [%rd21+28], %o6;
    st.global.{ty} [%rd21+28], %rd1;
    ld.global.u32 %o7, [%rd21+28];"
        );
        let body = if bits == 64 {
            body.replace("[%rd21+28], %rd1;\n    ld.global.u32 %o7", "[%rd21+24], %rd1;\n    ld.global.u32 %o7")
        } else {
            body
        };
        let found = per_thread(&body, &[inputs.clone(), inputs.clone()], 8, 32);
        for (lane, low) in inputs.iter().enumerate() {
            let memory = u64::from(*low) << 32 | u64::from(*low);
            let element = |place: u32| {
                let raw = memory >> (bits * place) << (64 - bits);
                if signed { (raw as i64 >> (64 - bits)) as u64 } else { raw >> (64 - bits) }
            };
            let context = format!("{ty} of {low:#x}");
            if bits <= 32 {
                assert_eq!(found[0][lane], element(0) as u32, "{context}");
                assert_eq!(found[1][lane], element(1) as u32, "{context}");
            }
            let long = u64::from(found[3][lane]) << 32 | u64::from(found[2][lane]);
            assert_eq!(long, element(0), "{context}");
            if bits <= 16 {
                assert_eq!(found[4][lane], element(0) as u32 & 0xffff, "{context}");
                assert_eq!(found[5][lane], element(0) as u32 & 0xffff | (element(1) as u32) << 16, "{context}");
            }
            let cut = if bits == 64 { u32::MAX } else { ((1_u64 << bits) - 1) as u32 };
            assert_eq!(found[7][lane], low & cut, "{context}");
        }
    }
}

#[test]
fn addresses_are_told_apart_by_their_space() {
    let module = ".global .align 4 .u32 variable;\n.const .align 4 .u32 constant = 9;";
    let spaces = ["global", "shared", "shared::cta", "shared::cluster", "local", "param", "const"];
    let ask = |register: &str, output: usize| -> String {
        let each = |(bit, space): (usize, &&str)| {
            format!(
                "    isspacep.{space} %p1, {register};\n    selp.u32 %r1, {}, 0, %p1;\n    or.b32 %o{output}, %o{output}, %r1;\n",
                1 << bit
            )
        };
        spaces.iter().enumerate().map(each).collect()
    };
    let body = format!(
        "    .shared .align 4 .u32 word;
    .local .align 4 .u32 own;
    mov.u64 %rd1, variable;
    cvta.global.u64 %rd1, %rd1;
    mov.u64 %rd2, word;
    cvta.shared.u64 %rd2, %rd2;
    mov.u64 %rd3, own;
    cvta.local.u64 %rd3, %rd3;
    mov.u64 %rd4, out;
    cvta.param.u64 %rd4, %rd4;
{}{}{}{}
    ld.u64 %rd5, [%rd4];
    ld.param.u64 %rd6, [out];
    setp.eq.u64 %p1, %rd5, %rd6;
    selp.u32 %o4, 1, 0, %p1;
    cvta.to.shared.u64 %rd7, %rd2;
    mov.u32 %r2, word;
    cvt.u32.u64 %r3, %rd7;
    setp.eq.u32 %p2, %r2, %r3;
    selp.u32 %o5, 1, 0, %p2;
    st.shared.u32 [word], 77;
    bar.warp.sync -1;
    ld.u32 %o6, [%rd2];
    st.u32 [%rd3], 78;
    ld.local.u32 %o7, [own];
    mov.u64 %rd8, constant;
    cvta.const.u64 %rd8, %rd8;
    ld.u32 %o8, [%rd8];
    cvta.to.global.u64 %rd9, %rd6;
    setp.eq.u64 %p3, %rd9, %rd6;
    selp.u32 %o9, 1, 0, %p3;",
        ask("%rd1", 0),
        ask("%rd2", 1),
        ask("%rd3", 2),
        ask("%rd4", 3)
    );
    let found = per_thread_in(module, &body, &[], 10, 32);
    for lane in 0..32 {
        let row: Vec<u32> = found.iter().map(|output| output[lane]).collect();
        assert_eq!(row, [1, 0b1110, 0b1_0000, 0b10_0000, 1, 1, 77, 78, 9, 1], "lane {lane}");
    }
}

#[test]
fn cache_operators_and_hints_change_nothing() {
    let loads = [
        "ld.global.ca.u32 %r1, [%rd20];",
        "ld.global.cg.u32 %r1, [%rd20];",
        "ld.global.cs.u32 %r1, [%rd20];",
        "ld.global.lu.u32 %r1, [%rd20];",
        "ld.global.cv.u32 %r1, [%rd20];",
        "ld.global.nc.u32 %r1, [%rd20];",
        "ld.global.ca.nc.u32 %r1, [%rd20];",
        "ld.global.nc.L1::no_allocate.u32 %r1, [%rd20];",
        "ld.global.L1::evict_last.L2::128B.u32 %r1, [%rd20];",
        "ld.global.L2::cache_hint.u32 %r1, [%rd20], %rd1;",
        "ld.global.nc.L1::evict_first.L2::cache_hint.L2::256B.u32 %r1, [%rd20], %rd1;",
        "ldu.global.u32 %r1, [%rd20];",
        "ld.weak.global.u32 %r1, [%rd20];",
        "ld.volatile.global.u32 %r1, [%rd20];",
        "ld.relaxed.cta.global.u32 %r1, [%rd20];",
        "ld.relaxed.sys.global.L1::no_allocate.u32 %r1, [%rd20];",
        "ld.acquire.cluster.global.u32 %r1, [%rd20];",
        "ld.acquire.gpu.u32 %r1, [%rd20];",
        "ld.mmio.relaxed.sys.global.u32 %r1, [%rd20];",
        "ld.volatile.u32 %r1, [%rd20];",
    ];
    let stores = [
        "st.global.wb.u32 [%rd2], %r1;",
        "st.global.cg.u32 [%rd2], %r1;",
        "st.global.cs.u32 [%rd2], %r1;",
        "st.global.wt.u32 [%rd2], %r1;",
        "st.global.L1::no_allocate.u32 [%rd2], %r1;",
        "st.global.L2::cache_hint.u32 [%rd2], %r1, %rd1;",
        "st.weak.global.u32 [%rd2], %r1;",
        "st.volatile.global.u32 [%rd2], %r1;",
        "st.relaxed.gpu.global.u32 [%rd2], %r1;",
        "st.release.sys.global.u32 [%rd2], %r1;",
        "st.release.cta.u32 [%rd2], %r1;",
        "st.mmio.relaxed.sys.global.u32 [%rd2], %r1;",
        "st.volatile.u32 [%rd2], %r1;",
    ];
    let values: Vec<u32> = noise(4).take(32).collect();
    for (index, load) in loads.iter().enumerate() {
        let store = stores[index % stores.len()];
        let body = format!(
            "    createpolicy.fractional.L2::evict_last.b64 %rd1, 1.0;
    add.s64 %rd2, %rd21, 4;
    prefetch.global.L2 [%rd20];
    prefetchu.L1 [%rd20];
    {load}
    mov.u32 %o0, %r1;
    {store}
    ld.global.u32 %o1, [%rd2];"
        );
        let found = per_thread(&body, std::slice::from_ref(&values), 2, 32);
        assert_eq!(found, [values.clone(), values.clone()], "{load} {store}");
    }
}

#[test]
fn shared_variables_and_dynamic_memory_do_not_overlap() {
    let module = ".shared .align 2 .b8 first[3];
.shared .align 16 .b8 second[20];
.extern .shared .align 32 .b8 dynamic[];
.extern .shared .align 4 .b32 words[];";
    let body = "    .shared .align 8 .b64 third;
    .shared .b16 fourth[5];
    mov.u32 %o0, first;
    mov.u32 %o1, second;
    mov.u32 %o2, third;
    mov.u32 %o3, fourth;
    mov.u32 %o4, dynamic;
    mov.u32 %o5, words;
    mov.u32 %o6, second+4;
    setp.ne.u32 %p1, %r20, 0;
    @%p1 bra DONE;
    st.shared.u8 [first+2], 1;
    st.shared.u32 [second+16], 2;
    st.shared.u64 [third], 3;
    st.shared.u16 [fourth+8], 4;
    st.shared.u8 [dynamic+63], 5;
    ld.shared.u8 %r1, [first+2];
    ld.shared.u32 %r2, [second+16];
    ld.shared.u32 %r3, [third];
    ld.shared.u16 %r4, [fourth+8];
    ld.shared.u8 %r5, [words+63];
    mad.lo.u32 %o7, %r1, 10, %r2;
    mad.lo.u32 %o7, %o7, 10, %r3;
    mad.lo.u32 %o7, %o7, 10, %r4;
    mad.lo.u32 %o7, %o7, 10, %r5;
DONE:";
    let stores = stores(8);
    let body = format!(
        "    ld.param.u64 %rd21, [out];\n    mov.u32 %r20, %tid.x;\n    mad.wide.u32 %rd21, %r20, 32, %rd21;\n{body}\n{stores}"
    );
    let mut kernel = Kernel::with_body(module, ".param .u64 out", &body, vec![Argument::Fresh(1024)]);
    kernel.shared = 64;
    let found = words(&kernel.run().buffers[0]);
    // (first byte, bytes, alignment)
    let placed = [(found[0], 3, 2), (found[1], 20, 16), (found[2], 8, 8), (found[3], 10, 2), (found[4], 64, 32)];
    for (index, (start, size, align)) in placed.iter().enumerate() {
        assert_eq!(start % align, 0, "variable {index}");
        for (other, (begin, length, _)) in placed.iter().enumerate() {
            assert!(index == other || start + size <= *begin || begin + length <= *start, "variables {index}, {other}");
        }
        assert!(index == 4 || start + size <= found[4], "dynamic memory comes last");
    }
    assert_eq!(found[5], found[4], "all dynamic arrays begin at one place");
    assert_eq!(found[6], found[1] + 4);
    assert_eq!(found[7], 12345);
    kernel.shared = 63;
    let fault = kernel.launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!(fault.kind, FaultKind::OutOfBounds, "{fault}");
}

#[test]
fn variables_begin_with_their_initial_values() {
    let module = ".global .align 4 .u32 table[2][3] = {{1, 2}, {4, 5, 6}};
.global .align 1 .b8 text[6] = {104, 105, 0xff, -1};
.global .align 2 .s16 halves[2] = {-2, 0x7fff};
.global .align 4 .f32 singles[3] = {0f3F800000, 2.5, -1};
.global .align 8 .f64 double = 0d4000000000000000;
.global .align 8 .u64 pointer = table+12;
.global .align 8 .u64 pointers[2] = {generic(constants)+4, text};
.global .v2 .u32 pair = {7, 8};
.global .align 4 .u32 empty[2];
.const .align 4 .u32 constants[3] = {10, 20, 30};
.const .align 8 .s64 negative = -5;";
    let body = "    ld.global.u32 %o0, [table+4];
    ld.global.u32 %o1, [table+8];
    ld.global.u32 %o2, [table+20];
    ld.global.u32 %o3, [text];
    ld.global.u16 %o4, [text+4];
    ld.global.s16 %o5, [halves];
    ld.global.u32 %o6, [singles];
    ld.global.u32 %o7, [singles+4];
    ld.global.u32 %o8, [singles+8];
    ld.global.u32 %o9, [double+4];
    ld.global.u64 %rd1, [pointer];
    ld.global.u32 %o10, [%rd1];
    ld.global.u64 %rd2, [pointers];
    ld.u32 %o11, [%rd2];
    ld.global.u64 %rd3, [pointers+8];
    ld.global.u8 %o12, [%rd3+1];
    ld.global.v2.u32 {%r1, %r2}, [pair];
    mad.lo.u32 %o13, %r1, 10, %r2;
    ld.global.u32 %o14, [empty+4];
    ld.const.u32 %o15, [constants+8];
    mov.u64 %rd4, constants;
    ld.const.v2.u32 {%r3, %r4}, [negative];
    and.b32 %o16, %r3, %r4;
    rem.u32 %r5, %r20, 3;
    mad.wide.u32 %rd4, %r5, 4, %rd4;
    ld.const.u32 %o17, [%rd4];
    setp.eq.u32 %p1, %r20, 0;
    @%p1 st.global.u32 [empty], 3;";
    let found = per_thread_in(module, body, &[], 18, 32);
    let double = 2.0_f64.to_bits();
    for lane in 0..32 {
        let row: Vec<u32> = found.iter().map(|output| output[lane]).collect();
        let float = f32::to_bits;
        let expected = [
            2,
            0,
            6,
            0xffff_6968,
            0,
            -2_i32 as u32,
            float(1.0),
            float(2.5),
            float(-1.0),
            (double >> 32) as u32,
            4,
            20,
            105,
            78,
            0,
            30,
            -5_i32 as u32,
            [10, 20, 30][lane % 3],
        ];
        assert_eq!(row, expected, "lane {lane}");
    }
}

#[test]
fn constants_and_parameters_cannot_be_written() {
    let module = ".const .align 4 .u32 constant = 1;";
    for (body, parameters) in [
        ("    mov.u64 %rd1, constant;\n    st.u32 [%rd1], 2;", ""),
        ("    mov.u64 %rd1, a;\n    cvta.param.u64 %rd1, %rd1;\n    st.u32 [%rd1], 2;", ".param .u32 a"),
    ] {
        let arguments = if parameters.is_empty() { vec![] } else { vec![Argument::Value(vec![0; 4])] };
        let report = Kernel::with_body(module, parameters, body, arguments).launch(&Settings::default()).report;
        assert_eq!(report.fault.expect("a fault").kind, FaultKind::ReadOnlyWrite, "{body}");
    }
}

#[test]
fn parameters_of_every_type_arrive() {
    let parameters = ".param .u8 a, .param .s16 b, .param .u32 c, .param .s8 d, .param .f64 e, .param .f32 f,
    .param .align 16 .b8 structure[44], .param .b16 g, .param .u64 .ptr .global .align 4 out, .param .align 1 .b8 tail[3]";
    let body = "    ld.param.u64 %rd21, [out];
    mov.u32 %r20, %tid.x;
    mad.wide.u32 %rd21, %r20, 128, %rd21;
    ld.param.u8 %o0, [a];
    ld.param.s16 %o1, [b];
    ld.param.u32 %o2, [c];
    ld.param.s8 %rd1, [d];
    mov.b64 {%o3, %o4}, %rd1;
    ld.param.f64 %fd1, [e];
    mov.b64 {%o5, %o6}, %fd1;
    ld.param.f32 %f1, [f];
    mov.b32 %o7, %f1;
    ld.param.v4.u32 {%o8, %o9, %o10, %o11}, [structure];
    ld.param.v2.u64 {%rd2, %rd3}, [structure+16];
    mov.b64 {%o12, %o13}, %rd2;
    mov.b64 {%o14, %o15}, %rd3;
    ld.param.u8 %o16, [structure+35];
    ld.param.s8 %o17, [structure+36];
    ld.param.u16 %o18, [structure+38];
    ld.param.u32 %o19, [structure+40];
    ld.param.b16 %h1, [g];
    cvt.u32.u16 %o20, %h1;
    ld.param.u8 %o21, [tail+2];
    mov.b64 %rd4, structure;
    and.b32 %r1, %r20, 7;
    mad.wide.u32 %rd4, %r1, 4, %rd4;
    ld.param.u32 %o22, [%rd4+8];
    mov.b64 %rd5, structure;
    cvta.param.u64 %rd5, %rd5;
    ld.u32 %o23, [%rd5+40];";
    let stores = stores(24);
    let structure = random_bytes(9, 44);
    let value = |bytes: &[u8]| Argument::Value(bytes.to_vec());
    let arguments = vec![
        value(&[200]),
        value(&(-3000_i16).to_le_bytes()),
        value(&0xdead_beef_u32.to_le_bytes()),
        value(&(-7_i8).to_le_bytes()),
        value(&(-1.5_f64).to_le_bytes()),
        value(&0.1_f32.to_le_bytes()),
        value(&structure),
        value(&0x8001_u16.to_le_bytes()),
        Argument::Fresh(32 * 128),
        value(&[1, 2, 3]),
    ];
    let kernel = Kernel::with_body("", parameters, &format!("{body}\n{stores}"), arguments);
    let found = words(&kernel.run().buffers[0]);
    let word = |at: usize| u32::from_le_bytes(structure[at..at + 4].try_into().expect("four bytes"));
    let double = (-1.5_f64).to_bits();
    for (thread, row) in found.chunks(32).enumerate() {
        let mut expected = vec![200, -3000_i32 as u32, 0xdead_beef, -7_i32 as u32, u32::MAX];
        expected.extend([double as u32, (double >> 32) as u32, 0.1_f32.to_bits()]);
        expected.extend((0..8).map(|index| word(4 * index)));
        let half = u32::from(structure[38]) | u32::from(structure[39]) << 8;
        expected.extend([u32::from(structure[35]), structure[36] as i8 as u32, half, word(40), 0x8001, 3]);
        expected.extend([word(8 + 4 * (thread % 8)), word(40)]);
        assert_eq!(row[..24], expected, "thread {thread}");
    }
}

#[test]
fn each_thread_has_its_own_local_arrays() {
    // A permutation by swaps in local memory, and an array of another element size beside it.
    let body = "    .local .align 4 .b32 cards[8];
    .local .align 1 .b8 small[8];
    mov.u64 %rd1, cards;
    mov.u64 %rd2, small;
    mov.u32 %r1, 0;
FILL:
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    st.local.u32 [%rd3], %r1;
    cvt.u64.u32 %rd4, %r1;
    add.s64 %rd5, %rd2, %rd4;
    xor.b32 %r2, %r1, %r20;
    st.local.u8 [%rd5], %r2;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra FILL;
    mov.u32 %r1, 0;
SWAP:
    add.u32 %r2, %r1, %r20;
    mul.lo.u32 %r2, %r2, 5;
    and.b32 %r2, %r2, 7;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    mad.wide.u32 %rd4, %r2, 4, %rd1;
    ld.local.u32 %r3, [%rd3];
    ld.local.u32 %r4, [%rd4];
    st.local.u32 [%rd3], %r4;
    st.local.u32 [%rd4], %r3;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra SWAP;
    ld.local.v4.u32 {%o0, %o1, %o2, %o3}, [cards];"
        .replace(".local .align 4 .b32", ".local .align 16 .b32");
    let body = format!(
        "{body}\n    ld.local.u32 %o4, [cards+16];\n    ld.local.u32 %o5, [cards+20];\n    ld.local.u32 %o6, [cards+24];
    ld.local.u32 %o7, [cards+28];\n    ld.local.u8 %o8, [small+3];"
    );
    let found = per_thread(&body, &[], 9, 40);
    for thread in 0..40_u32 {
        let mut cards: Vec<u32> = (0..8).collect();
        (0..8_u32).for_each(|place| cards.swap(place as usize, ((place + thread) * 5 % 8) as usize));
        let row: Vec<u32> = found.iter().map(|output| output[thread as usize]).collect();
        assert_eq!(row[..8], cards, "thread {thread}");
        assert_eq!(row[8], 3 ^ thread);
    }
}

#[test]
fn blocks_of_a_cluster_reach_each_others_shared_memory() {
    let body = "    .shared .align 8 .b64 mine;
    ld.param.u64 %rd20, [out];
    mov.u32 %r1, %cluster_ctarank;
    mov.u32 %r2, %cluster_nctarank;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r20, %tid.x;
    setp.eq.u32 %p1, %r20, 0;
    add.u32 %r4, %r3, 100;
    mov.u32 %r5, mine;
    @%p1 st.shared.u32 [mine], %r4;
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    rem.u32 %r6, %r20, %r2;
    mapa.shared::cluster.u32 %r7, %r5, %r6;
    ld.shared::cluster.u32 %r8, [%r7];
    getctarank.shared::cluster.u32 %r9, %r7;
    mov.u64 %rd1, mine;
    cvta.shared.u64 %rd2, %rd1;
    mapa.u64 %rd3, %rd2, %r6;
    ld.u32 %r10, [%rd3];
    getctarank.u32 %r11, %rd3;
    mapa.shared::cluster.u64 %rd4, %rd1, %r6;
    ld.shared::cluster.u32 %r12, [%rd4];
    getctarank.shared::cluster.u64 %r13, %rd1;
    isspacep.shared::cluster %p2, %rd3;
    isspacep.shared::cta %p3, %rd3;
    selp.u32 %r14, 1, 0, %p2;
    selp.u32 %r15, 2, 0, %p3;
    add.u32 %r14, %r14, %r15;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @%p1 st.shared.u32 [mine+4], 0;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    add.u32 %r6, %r1, 1;
    rem.u32 %r6, %r6, %r2;
    mapa.shared::cluster.u32 %r7, %r5, %r6;
    @%p1 st.shared::cluster.u32 [%r7+4], %r3;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ld.shared.u32 %r16, [mine+4];
    mad.lo.u32 %r17, %r3, 32, %r20;
    mad.wide.u32 %rd20, %r17, 32, %rd20;
    st.global.v4.u32 [%rd20], {%r8, %r9, %r10, %r11};
    st.global.v4.u32 [%rd20+16], {%r12, %r13, %r14, %r15};
    st.global.u32 [%rd20+28], %r16;"
        .replace("getctarank.u32 %r11", "getctarank.u64 %r11");
    let mut kernel = Kernel::with_body("", ".param .u64 out", &body, vec![Argument::Fresh(8 * 32 * 32)]);
    (kernel.grid, kernel.cluster) = ([8, 1, 1], Some([4, 1, 1]));
    for (thread, row) in words(&kernel.run().buffers[0]).chunks(8).enumerate() {
        let (block, lane) = (thread as u32 / 32, thread as u32 % 32);
        let (first, rank, other) = (block / 4 * 4, block % 4, lane % 4);
        let value = 100 + first + other;
        let before = first + (rank + 3) % 4;
        // In the cluster's window always, in the thread's own block only if it is that one.
        let windows = 1 + 2 * u32::from(other == rank);
        assert_eq!(row, [value, other, value, other, value, rank, windows, before], "block {block}, thread {lane}");
    }
}

#[test]
fn sectors_are_counted_per_warp_access() {
    // (bytes a lane, distance of lanes in bytes, offset, lanes, sectors of 32 bytes) by hand.
    let table = [
        (1, 1, 0, 32, 1),
        (2, 2, 0, 32, 2),
        (4, 4, 0, 32, 4),
        (8, 8, 0, 32, 8),
        (16, 16, 0, 32, 16),
        (32, 32, 0, 32, 32),
        (4, 0, 0, 32, 1),
        (4, 4, 4, 32, 5),
        (4, 4, 32, 32, 4),
        (1, 1, 31, 32, 2),
        (4, 8, 0, 32, 8),
        (4, 16, 0, 32, 16),
        (4, 32, 0, 32, 32),
        (4, 128, 0, 32, 32),
        (8, 16, 8, 32, 16),
        (16, 32, 0, 32, 32),
        (16, 48, 0, 32, 32),
        (4, 4, 0, 8, 1),
        (4, 4, 0, 9, 2),
        (4, 36, 0, 8, 8),
        (4, 12, 0, 32, 12),
        (2, 34, 0, 16, 16),
    ];
    for (width, stride, offset, lanes, sectors) in table {
        let (bits, count) = if width > 16 { (32, width / 4) } else { (width * 8, 1) };
        let vector = if count == 1 { String::new() } else { format!(".v{count}") };
        let list = registers(bits, count);
        let body = format!(
            "    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, {lanes};
    mad.wide.u32 %rd1, %r1, {stride}, %rd1;
    mad.wide.u32 %rd2, %r1, {stride}, %rd2;
    @%p1 ld.global{vector}.b{bits} {list}, [%rd1+{offset}];
    @%p1 st.global{vector}.b{bits} [%rd2+{offset}], {list};"
        );
        let mut kernel = Kernel::with_body(
            "",
            ".param .u64 in, .param .u64 out",
            &body,
            vec![Argument::Bytes(vec![3; 8192]), Argument::Fresh(8192)],
        );
        // Two warps in two blocks make the same accesses to the same places; that they write the same is not looked at
        // here.
        kernel.grid = [2, 1, 1];
        let checks = softcuda::Checks { races: false, ..softcuda::Checks::default() };
        let counters = kernel.run_with(&Settings { checks, ..Settings::default() }).report.counters;
        let global = counters.global;
        let context = format!("{width} bytes every {stride} from {offset} by {lanes}");
        assert_eq!((global.sectors_loaded, global.sectors_stored), (2 * sectors, 2 * sectors), "{context}");
        let asked = 2 * u64::from(width * lanes);
        assert_eq!((global.bytes_loaded, global.bytes_stored), (asked, asked), "{context}");
        let distinct = if stride < width { width + stride * (lanes - 1) } else { width * lanes };
        let distinct = u64::from(distinct);
        assert_eq!((global.distinct_bytes_read, global.distinct_bytes_written), (distinct, distinct), "{context}");
    }
}

#[test]
fn bank_conflicts_are_counted_per_warp_access() {
    // (bytes a lane, distance of lanes in bytes, passes over the banks, fewest) by hand: up to 4 bytes the warp goes as
    // one, 8 bytes by halves, 16 by quarters.
    let table = [
        (4, 4, 1, 1),
        (4, 0, 1, 1),
        (4, 8, 2, 1),
        (4, 12, 1, 1),
        (4, 16, 4, 1),
        (4, 64, 16, 1),
        (4, 128, 32, 1),
        (4, 132, 1, 1),
        (4, 260, 1, 1),
        (4, 136, 2, 1),
        (1, 1, 1, 1),
        (2, 2, 1, 1),
        (1, 4, 1, 1),
        (1, 128, 32, 1),
        (8, 8, 2, 2),
        (8, 16, 4, 2),
        (8, 128, 32, 2),
        (8, 136, 2, 2),
        (16, 16, 4, 4),
        (16, 32, 8, 4),
        (16, 128, 32, 4),
        (16, 144, 4, 4),
        (16, 0, 4, 4),
    ];
    for (width, stride, passes, fewest) in table {
        let (bits, list) = (width * 8, registers(width * 8, 1));
        let fill = if width == 16 { "    mov.b128 %q4, {%rd15, %rd15};" } else { "" };
        let body = format!(
            "    .shared .align 16 .b8 tile[16384];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    mad.lo.u32 %r1, %r1, {stride}, %r2;
{fill}
    st.shared.b{bits} [%r1], {list};
    bar.warp.sync -1;
    ld.shared.b{bits} {list}, [%r1];"
        );
        let kernel = Kernel::with_body("", "", &body, vec![]);
        let shared = kernel.run().report.counters.shared;
        let context = format!("{width} bytes every {stride}");
        assert_eq!(shared.wavefronts, 2 * passes, "{context}");
        assert_eq!(shared.bank_conflicts, 2 * (passes - fewest), "{context}");
        assert_eq!(
            (shared.bytes_loaded, shared.bytes_stored),
            (32 * u64::from(width), 32 * u64::from(width)),
            "{context}"
        );
    }
}

#[test]
fn distinct_bytes_are_counted_once() {
    // 64 threads of two blocks read the same 128 bytes and 4 bytes each of their own, and write every other byte of
    // 128.
    let body = "    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    ld.global.u32 %r3, [%rd3];
    ld.global.u32 %r3, [%rd3];
    mad.lo.u32 %r4, %r2, 32, %r1;
    mad.wide.u32 %rd4, %r4, 4, %rd1;
    ld.global.u32 %r5, [%rd4+128];
    mad.wide.u32 %rd5, %r4, 2, %rd2;
    st.global.u8 [%rd5], %r3;
    st.global.u8 [%rd5], %r5;
    red.global.add.u32 [%rd2+256], 1;";
    let mut out = vec![0; 512];
    out[0] = 1;
    let arguments = vec![Argument::Bytes(vec![1; 512]), Argument::Bytes(out)];
    let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", body, arguments);
    kernel.grid = [2, 1, 1];
    let ended = kernel.run();
    let global = ended.report.counters.global;
    assert_eq!(global.bytes_loaded, 64 * 12);
    assert_eq!(global.bytes_stored, 64 * 2);
    assert_eq!(global.bytes_atomic, 64 * 4);
    // What an atomic does to 4 bytes is a read and a write of them.
    assert_eq!(global.distinct_bytes_read, 128 + 256 + 4);
    assert_eq!(global.distinct_bytes_written, 64 + 4);
    assert_eq!(longs(&ended.buffers[1])[32], 64);
}

#[test]
fn addresses_that_are_not_multiples_of_the_width_are_faults() {
    for (instruction, offset) in [
        ("ld.global.u16 %h1, [%rd1+{}];", 1),
        ("ld.global.u32 %r1, [%rd1+{}];", 2),
        ("ld.global.u64 %rd2, [%rd1+{}];", 4),
        ("ld.global.v2.u32 {%r1, %r2}, [%rd1+{}];", 4),
        ("ld.global.v4.u8 {%r1, %r2, %r3, %r4}, [%rd1+{}];", 2),
        ("st.global.v4.u32 [%rd1+{}], {%r1, %r2, %r3, %r4};", 8),
        ("ld.global.v4.u64 {%rd2, %rd3, %rd4, %rd5}, [%rd1+{}];", 16),
        ("ld.global.b128 %q1, [%rd1+{}];", 8),
    ] {
        let at = |offset: u32| {
            let body = format!("    ld.param.u64 %rd1, [in];\n    {}", instruction.replace("{}", &offset.to_string()));
            let kernel = Kernel::with_body("", ".param .u64 in", &body, vec![Argument::Bytes(vec![0; 64])]);
            kernel.launch(&Settings::default()).report.fault
        };
        let fault = at(offset).expect("a fault");
        assert_eq!(fault.kind, FaultKind::Misaligned, "{fault}");
        assert_eq!(at(0).map(|fault| fault.to_string()), None);
    }
}
