//! CUB built for a debugger: a megabyte of PTX with everything in local memory.

mod support;

use cudarc::driver::PushKernelArg;
use cudarc::nvrtc::Ptx;
use support::compile::compile;
use support::device::{Device, function, shape};
use support::random::Random;

#[test]
fn block_scan() {
    let device = Device::new();
    // Unoptimised code copies empty objects as the byte that they occupy and nobody writes: not a fault of the program.
    let values = Random::new(42).integers(512, -1000, 1000);
    let on_device = device.upload(&values);
    let module = device.module_of(Ptx::from_src(compile("cub_block", &["-G"])));
    let kernel = function(&module, "cub_block_scan");
    let mut inclusive = device.zeros::<i32>(512);
    let mut exclusive = device.zeros::<i32>(512);
    device.run(&kernel, shape(1, 128), |arguments| {
        arguments.arg(&on_device).arg(&mut inclusive).arg(&mut exclusive);
    });
    let mut sum = 0;
    let expected: Vec<i32> = values
        .iter()
        .map(|value| {
            sum += value;
            sum
        })
        .collect();
    assert_eq!(device.download(&inclusive), expected);
}
