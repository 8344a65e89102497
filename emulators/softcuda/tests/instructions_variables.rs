//! Where variables and parameters lie, and what is in them at first.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, bytes, noise, per_thread, per_thread_in, words};
use softcuda::Settings;
use softcuda::report::FaultKind;

/// Stores of `%o0` and so on to `%rd21`.
fn stores(outputs: usize) -> String {
    let store = |index| format!("    st.global.u32 [%rd21+{}], %o{index};\n", 4 * index);
    (0..outputs).map(store).collect()
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
    let structure = bytes(noise(9).take(11));
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
