//! Registers in vectors, parameters in registers, and what the system keeps of shared memory.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Kernel, per_thread, per_thread_in};
use softcuda::Settings;
use softcuda::machine::device::Device;

#[test]
fn vector_registers_are_their_places_and_all_of_them() {
    let inputs: Vec<Vec<u32>> = (0..4).map(|k| (0..32).map(|t| 100 * k + t).collect()).collect();
    let body = "
        .reg .v4 .b32 v; .reg .v2 .b32 w<3>; .reg .v2 .b64 d;
        ld.global.v4.b32 v, [%rd20];
        add.u32 %o0, v.x, v.w;
        add.u32 %o1, v.y, v.z;
        mov.u32 w2.x, v.g; mov.u32 w2.y, 7;
        mov.b64 d.x, w2;
        mov.b64 {%o2, %o3}, d.x;
        mov.u32 w0.r, v.a; mov.u32 w0.g, v.b;
        mov.u32 %o4, w0.x; mov.u32 %o5, w0.y;";
    let found = per_thread(body, &inputs, 6, 32);
    for t in 0..32 {
        let v: Vec<u32> = inputs.iter().map(|row| row[t]).collect();
        let expected = [v[0] + v[3], v[1] + v[2], v[1], 7, v[3], v[2]];
        for (output, expected) in found.iter().zip(expected) {
            assert_eq!(output[t], expected, "thread {t}");
        }
    }
}

#[test]
fn parameters_and_results_in_registers() {
    let module = "
        .func (.reg .b32 sum, .reg .b64 wide) both (.reg .b32 a, .reg .b32 b, .param .b32 c)
        {
            .reg .pred p; .reg .b32 t;
            setp.eq.u32 p, a, 3;
            mov.b32 sum, 1000;
            mov.b64 wide, 5;
            @p ret;
            ld.param.b32 t, [c];
            add.u32 sum, a, b;
            add.u32 sum, sum, t;
            mul.wide.u32 wide, a, b;
            mov.b32 a, 0;
            ret;
        }";
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..32).collect(), (0..32).map(|t| 0x1000_0000 + t).collect());
    let body = "
        .param .b32 third;
        st.param.b32 [third], 9;
        call (%o0, %rd0), both, (%i0, %i1, third);
        mov.b64 {%o1, %o2}, %rd0;
        mov.b32 %o3, %i0;";
    let found = per_thread_in(module, body, &[a.clone(), b.clone()], 4, 32);
    for t in 0..32 {
        let (x, y) = (a[t], b[t]);
        let (sum, wide) = if x == 3 { (1000, 5) } else { (x + y + 9, u64::from(x) * u64::from(y)) };
        assert_eq!([found[0][t], found[1][t], found[2][t], found[3][t]], [sum, wide as u32, (wide >> 32) as u32, x]);
    }
}

/// Calls of calls: each has its own place for what its registers hold.
#[test]
fn register_parameters_of_a_recursion() {
    let module = "
        .func (.reg .b32 result) factorial (.reg .b32 n)
        {
            .reg .pred p; .reg .b32 less;
            mov.b32 result, 1;
            setp.le.u32 p, n, 1;
            @p ret;
            sub.u32 less, n, 1;
            call (result), factorial, (less);
            mul.lo.u32 result, result, n;
            ret;
        }";
    let n: Vec<u32> = (0..32).map(|t| t % 13).collect();
    let found = per_thread_in(module, "call (%o0), factorial, (%i0);", std::slice::from_ref(&n), 1, 32);
    let expected: Vec<u32> = n.iter().map(|n| (1..=*n).product()).collect();
    assert_eq!(found[0], expected);
}

#[test]
fn what_is_passed_otherwise_is_refused() {
    for (text, part) in [
        (".func f(.reg .pred p) { ret; }", "expected a type, found '.pred'"),
        (".entry k(.reg .b32 a) { ret; }", "parameters of a kernel are not in .reg"),
        (
            ".func f(.reg .b32 a) { ret; } .entry k() { call f, (5); ret; }",
            "only variables in .param and .reg are passed",
        ),
        (".entry k() { .reg .v2 .pred p; ret; }", "there are no vectors of predicates"),
    ] {
        let text = format!("{}{text}", kernel::HEADER);
        let error = Device::new(&Settings::default()).load(&text).err().expect("it is refused");
        assert!(error.message.contains(part), "{error}");
    }
}

/// The system's part lies after the kernel's own, is aligned as shared memory is, and can be used: threads of two warps
/// meet there as cooperative groups do.
#[test]
fn the_systems_shared_memory() {
    let module = ".shared .align 4 .b8 own[100];";
    let body = "
        mov.u32 %r0, %tid.x;
        mov.u32 %o0, %reserved_smem_offset_begin;
        mov.u32 %o1, %reserved_smem_offset_end;
        mov.u32 %o2, %reserved_smem_offset_cap;
        mov.u32 %o3, %reserved_smem_offset_0;
        mov.u32 %o4, %reserved_smem_offset_1;
        mov.u32 %o5, own;
        ld.shared.u32 %o6, [%o4];
        bar.sync 0;
        atom.shared.add.u32 %o7, [%o4], 1;
        bar.sync 0;
        ld.shared.u32 %o7, [%o4];";
    let found = per_thread_in(module, body, &[], 8, 64);
    let [begin, end, bytes, first, second, own] = [0, 1, 2, 3, 4, 5].map(|output| found[output][0]);
    assert!(begin >= own + 100 && begin.is_multiple_of(128), "{own} {begin}");
    assert_eq!((end, bytes), (begin + bytes, end - begin));
    // What cooperative groups use: 288 bytes from place 1.
    assert!(begin <= first && first <= end && begin <= second && second + 288 <= end, "{first} {second}");
    assert_eq!((found[6].clone(), found[7].clone()), (vec![0; 64], vec![64; 64]));
}

/// Without those registers the kernel's memory ends where it ends.
#[test]
fn there_is_no_room_after_a_kernel_that_does_not_ask() {
    let text = ".shared .align 4 .b8 own[128]; .entry k() { .reg .b32 %r; st.shared.u32 [own+128], 1; ret; }";
    let fault = Kernel::new(text, Vec::new()).launch(&Settings::default()).report.fault.expect("a fault");
    assert_eq!(fault.kind, softcuda::report::FaultKind::OutOfBounds);
}
