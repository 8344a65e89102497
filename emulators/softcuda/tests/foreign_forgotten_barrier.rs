//! The tree reduction with its barrier forgotten is found: by its instructions and threads.

mod support;

use cudarc::driver::PushKernelArg;
use softcuda::report::FaultKind;
use support::device::{Device, shape};

#[test]
fn race_is_named() {
    let device = Device::new();
    let kernel = device.kernel("reduction", "sum_tree_without_barrier");
    let values = device.upload(&[1i32; 256]);
    let mut out = device.zeros::<i32>(1);
    let count = 256u32;
    let fault = device.run_faulty(&kernel, shape(1, 256).with_shared(1024), |arguments| {
        arguments.arg(&values).arg(&mut out).arg(&count);
    });
    let Some(fault) = fault else { return };
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    assert_eq!(fault.kernel, "sum_tree_without_barrier");
    assert_eq!(fault.block, [0, 0, 0]);
    assert!(fault.instruction.contains(".shared."), "{fault}");
    let address = fault.address.expect("a race is at an address");
    assert!(address % 4 == 0, "{fault}");
    let other = fault.other.as_ref().expect("a race is between two accesses");
    assert!(other.instruction.contains(".shared."), "{fault}");
    // Thread i < 64 reads what thread i + 64 writes in the step before; within a warp, lanes read what others have
    // written.
    assert!(other.wrote || fault.instruction.contains("st.shared"), "{fault}");
    assert_ne!(fault.thread, other.thread, "{fault}");
}
