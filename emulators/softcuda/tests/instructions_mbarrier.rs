//! `mbarrier`: how phases follow one another, and what an arrival is told.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::{Argument, Kernel, words};
use softcuda::Settings;
use softcuda::report::FaultKind;
use std::fmt::Write;

/// One thread works on an `mbarrier` at `gate`; each line that asks for a phase puts the answer into the next output
/// word.
fn answers(lines: &[&str]) -> Vec<u32> {
    let mut body =
        String::from("    .shared .align 8 .b64 gate;\n    ld.param.u64 %rd1, [out];\n    mov.u32 %r1, gate;\n");
    let mut outputs = 0;
    for line in lines {
        let _ = writeln!(body, "    {line}");
        let asked = ["test_wait", "try_wait"].iter().any(|word| line.contains(word));
        if asked || line.contains("pending_count") {
            if asked {
                body.push_str("    selp.u32 %r9, 1, 0, %p1;\n");
            }
            let _ = writeln!(body, "    st.global.u32 [%rd1+{}], %r9;", 4 * outputs);
            outputs += 1;
        }
    }
    let mut kernel = Kernel::with_body("", ".param .u64 out", &body, vec![Argument::Fresh(4 * outputs)]);
    kernel.block = [1, 1, 1];
    words(&kernel.run().buffers[0])
}

#[test]
fn phases_follow_one_another() {
    let even = "mbarrier.test_wait.parity.shared.b64 %p1, [gate], 0;";
    let odd = "mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 1;";
    let arrive = "mbarrier.arrive.shared.b64 %rd5, [gate];";
    // The phase before the first counts as complete: its parity is 1.
    let found = answers(&[
        "mbarrier.init.shared.b64 [gate], 2;",
        even,
        odd,
        arrive,
        even,
        odd,
        arrive,
        even,
        odd,
        arrive,
        even,
        odd,
        arrive,
        even,
        odd,
        arrive,
        arrive,
        even,
        odd,
    ]);
    assert_eq!(found, [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0]);
}

#[test]
fn an_arrivals_state_tells_its_phase_and_what_was_pending() {
    let found = answers(&[
        "mbarrier.init.shared.b64 [gate], 3;",
        "mbarrier.arrive.shared.b64 %rd5, [gate];",
        "mbarrier.test_wait.shared.b64 %p1, [gate], %rd5;",
        "mbarrier.pending_count.b64 %r9, %rd5;",
        "mbarrier.arrive.noComplete.shared.b64 %rd6, [gate], 1;",
        "mbarrier.pending_count.b64 %r9, %rd6;",
        "mbarrier.test_wait.acquire.cta.shared::cta.b64 %p1, [gate], %rd6;",
        "mbarrier.arrive.release.cta.shared::cta.b64 %rd7, [gate];",
        "mbarrier.pending_count.b64 %r9, %rd7;",
        "mbarrier.try_wait.shared.b64 %p1, [gate], %rd5;",
        "mbarrier.try_wait.shared.b64 %p1, [gate], %rd7, 1000;",
        "mbarrier.arrive.shared.b64 %rd8, [gate], 3;",
        "mbarrier.pending_count.b64 %r9, %rd8;",
        "mbarrier.test_wait.shared.b64 %p1, [gate], %rd8;",
    ]);
    assert_eq!(found, [0, 3, 2, 0, 1, 1, 1, 3, 1]);
}

#[test]
fn bytes_that_are_expected_hold_a_phase_open() {
    let even = "mbarrier.test_wait.parity.shared.b64 %p1, [gate], 0;";
    let odd = "mbarrier.test_wait.parity.shared.b64 %p1, [gate], 1;";
    let found = answers(&[
        "mbarrier.init.shared.b64 [gate], 1;",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [gate], 100;",
        "mbarrier.arrive.shared.b64 _, [gate];",
        even,
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [gate], 60;",
        even,
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [gate], 40;",
        even,
        // The next phase starts without any.
        "mbarrier.arrive.expect_tx.shared.b64 _, [gate], 8;",
        odd,
        "mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [gate], 8;",
        odd,
        "mbarrier.arrive.shared.b64 _, [gate];",
        even,
    ]);
    assert_eq!(found, [0, 0, 1, 0, 1, 1]);
}

#[test]
fn those_that_drop_out_are_not_expected_again() {
    let even = "mbarrier.test_wait.parity.shared.b64 %p1, [gate], 0;";
    let odd = "mbarrier.test_wait.parity.shared.b64 %p1, [gate], 1;";
    let found = answers(&[
        "mbarrier.init.shared.b64 [gate], 4;",
        "mbarrier.arrive_drop.shared.b64 %rd5, [gate];",
        even,
        "mbarrier.arrive.shared.b64 _, [gate], 3;",
        even,
        // Three are left; two of them go.
        "mbarrier.arrive_drop.shared.b64 _, [gate], 2;",
        odd,
        "mbarrier.arrive.shared.b64 _, [gate];",
        odd,
        // One is left.
        "mbarrier.arrive.shared.b64 _, [gate];",
        even,
        "mbarrier.arrive.shared.b64 _, [gate];",
        odd,
        "mbarrier.arrive_drop.expect_tx.shared.b64 _, [gate], 16;",
        even,
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [gate], 16;",
        even,
    ]);
    assert_eq!(found, [0, 1, 0, 1, 1, 1, 0, 1]);
}

#[test]
fn what_no_mbarrier_takes_is_a_fault() {
    for (lines, kind) in [
        ("mbarrier.arrive.shared.b64 _, [gate];", FaultKind::InvalidOperation),
        ("mbarrier.init.shared.b64 [gate], 0;", FaultKind::InvalidOperation),
        ("mbarrier.init.shared.b64 [gate], 1048576;", FaultKind::InvalidOperation),
        (
            "mbarrier.init.shared.b64 [gate], 1;\n    mbarrier.arrive.shared.b64 _, [gate], 2;",
            FaultKind::InvalidOperation,
        ),
        (
            "mbarrier.init.shared.b64 [gate], 1;\n    mbarrier.inval.shared.b64 [gate];\n    mbarrier.arrive.shared.b64 _, [gate];",
            FaultKind::InvalidOperation,
        ),
        ("mbarrier.init.shared.b64 [gate+4], 1;", FaultKind::Misaligned),
    ] {
        let body = format!("    .shared .align 8 .b64 gate[2];\n    {lines}");
        let mut kernel = Kernel::with_body("", "", &body, vec![]);
        kernel.block = [1, 1, 1];
        let fault = kernel.launch(&Settings::default()).report.fault.expect("a fault");
        assert_eq!(fault.kind, kind, "{fault}");
    }
}
