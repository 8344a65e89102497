//! Loads and stores of every width in every space, addresses, and the counters of traffic.

#[path = "../support/kernel.rs"]
mod kernel;
mod traffic;

use kernel::{Argument, Kernel, bytes, noise, per_thread, per_thread_in, words};
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
            // Vectors of eight are of 32-bit elements; more than 16 bytes at once only go to global memory, and 128-bit
            // elements only one by one.
            if width > 32 || count == 8 && bits != 32 || count > 1 && bits == 128 {
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
