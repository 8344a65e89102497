//! Kernels with what needs the system: `printf`, `malloc`, the shared memory in which groups of warps meet; and wmma as
//! `mma.h` has it.

mod support;

use cudarc::driver::PushKernelArg;
use half::f16;
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn printf_as_the_compiler_calls_it() {
    let device = Device::new();
    let kernel = device.kernel("system", "prints");
    let (value, name) = (2.5_f32, 0_u64);
    let report = device.run(&kernel, shape(2, 64), |arguments| {
        arguments.arg(&value).arg(&name);
    });
    // A real device has printed, but tells nobody.
    let Some(report) = report else { return };
    assert_eq!(
        report.printed,
        "block 0 of grid:  2.50 1099511627776 x\ndone\nblock 1 of grid:  2.50 1099511627776 x\n"
    );
}

#[test]
fn lists_on_the_heap() {
    let device = Device::new();
    let kernel = device.kernel("system", "lists");
    let (mut sums, count) = (device.zeros::<i32>(96), 20_i32);
    device.run(&kernel, shape(3, 32), |arguments| {
        arguments.arg(&mut sums).arg(&count);
    });
    let expected: Vec<i32> = (0..96).map(|index| (1..=count).map(|value| value + index % 32).sum()).collect();
    assert_eq!(device.download(&sums), expected);
}

#[test]
fn wmma_as_mma_h_has_it() {
    let device = Device::new();
    let kernel = device.kernel("system", "product");
    let mut random = Random::new(5);
    let mut matrix = || -> Vec<f16> { (0..256).map(|_| f16::from_f32(random.integer(-8, 8) as f32)).collect() };
    let (a, b) = (matrix(), matrix());
    let (a_device, b_device, mut d) = (device.upload(&a), device.upload(&b), device.zeros::<f32>(256));
    let bias = 3_f32;
    device.run(&kernel, shape(1, 32), |arguments| {
        arguments.arg(&a_device).arg(&b_device).arg(&mut d).arg(&bias);
    });
    let expected: Vec<f32> = (0..256)
        .map(|element| {
            let (row, column) = (element / 16, element % 16);
            let sum: f32 = (0..16).map(|k| a[16 * row + k].to_f32() * b[16 * column + k].to_f32()).sum();
            (sum + bias).max(0.0)
        })
        .collect();
    assert_eq!(device.download(&d), expected);
}

#[test]
fn groups_of_several_warps() {
    let device = Device::new();
    let kernel = device.kernel("system", "tiles");
    let mut random = Random::new(6);
    let values: Vec<i32> = (0..512).map(|_| random.integer(-1000, 1000)).collect();
    let (values_device, mut sums) = (device.upload(&values), device.zeros::<i32>(512));
    device.run(&kernel, shape(2, 256), |arguments| {
        arguments.arg(&values_device).arg(&mut sums);
    });
    // Each thread of a quad has a pair's sum: 64 times both.
    let expected: Vec<i32> = values.chunks(128).flat_map(|quad| vec![64 * quad.iter().sum::<i32>(); 128]).collect();
    assert_eq!(device.download(&sums), expected);
}
