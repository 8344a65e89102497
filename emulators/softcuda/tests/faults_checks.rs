//! Checks that can be switched off one by one: the fault names the switch, and the others stay.

#[path = "support/planted.rs"]
mod planted;

use planted::{Argument, Planted};
use softcuda::report::FaultKind;
use softcuda::{Checks, Settings};

/// Clean without the check in every order, and otherwise a race whose message names the field.
fn is_switched_by(field: &str, without: Checks, planted: &Planted) {
    let fault = planted.has(FaultKind::Race);
    assert!(fault.message.contains(&format!("Checks::{field}")), "{fault}");
    for shuffle in [None, Some(1), Some(2), Some(3)] {
        let report = planted.run(&Settings { checks: without, shuffle, ..Settings::default() }).0;
        assert_eq!(report.fault, None, "shuffle {shuffle:?}");
    }
}

/// Two warps store a word for each lane: the lane's number, or with `%r3` the thread's.
fn replicated(value: &str) -> String {
    format!(
        r".visible .entry replicated(.param .u64 out)
{{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r3, %tid.x;
    and.b32 %r1, %r3, 31;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], {value}; // FAULT
    ret;
}}
"
    )
}

#[test]
fn equal_bytes_stored_twice() {
    let without = Checks { equal_stores: false, ..Checks::default() };
    let text = replicated("%r1");
    is_switched_by("equal_stores", without, &Planted { block: 64, ..Planted::new(&text, vec![Argument::Fresh(128)]) });
    // Other bytes stay a race, and the message says nothing of the switch.
    let text = replicated("%r3");
    let planted = Planted { block: 64, ..Planted::new(&text, vec![Argument::Fresh(128)]) };
    let fault = planted.run(&Settings { checks: without, ..Settings::default() }).0.fault.expect("a race");
    assert!(fault.kind == FaultKind::Race && !fault.message.contains("Checks::"), "{fault}");
}

/// `atomicAdd` of doubles as the CUDA programming guide has it, here of words: a plain read, then compare-and-swap until
/// nobody came between.
fn swap_loop(last: &str) -> String {
    format!(
        r".visible .entry swap_loop(.param .u64 sum)
{{
    .reg .b32 %r<5>;
    .reg .b64 %rd<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [sum];
    ld.global.u32 %r1, [%rd1]; // FAULT
AGAIN:
    mov.u32 %r2, %r1;
    add.u32 %r3, %r2, 1;
    atom.global.cas.b32 %r1, [%rd1], %r2, %r3; // OTHER
    setp.ne.u32 %p, %r1, %r2;
    @%p bra AGAIN;
    {last}
    ret;
}}
"
    )
}

#[test]
fn the_first_read_of_a_compare_and_swap_loop() {
    let without = Checks { compare_and_swap_reads: false, ..Checks::default() };
    let text = swap_loop("");
    let planted = Planted { grid: 4, block: 1, ..Planted::new(&text, vec![Argument::Bytes(vec![0; 4])]) };
    is_switched_by("compare_and_swap_reads", without, &planted);
    let (_, addresses, device) = planted.run(&Settings { checks: without, ..Settings::default() });
    let mut sum = [0; 4];
    device.memory.read(addresses[0], &mut sum).expect("read");
    assert_eq!(u32::from_le_bytes(sum), 4);
    // A plain store into it stays a race.
    let text = swap_loop("st.global.u32 [%rd1], 0;");
    let planted = Planted { grid: 4, block: 1, ..Planted::new(&text, vec![Argument::Bytes(vec![0; 4])]) };
    let fault = planted.run(&Settings { checks: without, ..Settings::default() }).0.fault.expect("a race");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}
