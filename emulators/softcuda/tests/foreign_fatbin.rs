//! A module from a fatbin: its PTX entry is found and runs as the text does.

mod support;

use cudarc::driver::PushKernelArg;
use cudarc::nvrtc::Ptx;
use support::compile::compile_fatbin;
use support::device::{Device, function, shape};

#[test]
fn uncompressed_ptx_entry() {
    let device = Device::new();
    let module = device.module_of(Ptx::from_binary(compile_fatbin("reduction", &[])));
    let kernel = function(&module, "sum_tree");
    let values: Vec<i32> = (0..512).collect();
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(2);
    let count = 512u32;
    device.run(&kernel, shape(2, 256).with_shared(1024), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&count);
    });
    assert_eq!(device.download(&out), [(0..256).sum::<i32>(), (256..512).sum()]);
}
