//! The same kernels from differently set compilers: debugging code, line information, an older architecture, fast
//! mathematics.

mod support;

use cudarc::driver::PushKernelArg;
use cudarc::nvrtc::Ptx;
use support::compile::compile;
use support::device::{Device, function, shape};
use support::random::Random;

const BUILDS: [&[&str]; 5] = [&[], &["-G"], &["-lineinfo"], &["-arch=compute_80"], &["--use_fast_math"]];

#[test]
fn sums() {
    let device = Device::new();
    let values: Vec<f32> = Random::new(41).integers(5000, -255, 255).iter().map(|&value| value as f32).collect();
    let exact: f64 = values.iter().map(|&value| f64::from(value)).sum();
    let (on_device, count) = (device.upload(&values), values.len() as u32);
    for options in BUILDS {
        let module = device.module_of(Ptx::from_src(compile("reduction", options)));
        let kernel = function(&module, "sum_grid");
        let mut partial = device.zeros::<f32>(6);
        let mut ticket = device.zeros::<u32>(1);
        let mut out = device.zeros::<f32>(1);
        device.run(&kernel, shape(6, 128), |arguments| {
            arguments.arg(&on_device).arg(&mut partial).arg(&mut ticket).arg(&mut out).arg(&count);
        });
        assert_eq!(f64::from(device.download(&out)[0]), exact, "{options:?}");
    }
}

#[test]
fn recursion_and_tables() {
    let device = Device::new();
    let n: Vec<u32> = (0..32).map(|lane| lane % 9).collect();
    let (a, b): (Vec<i32>, Vec<i32>) = ((-16..16).collect(), (1..33).collect());
    let (on_n, on_a, on_b) = (device.upload(&n), device.upload(&a), device.upload(&b));
    let which = device.upload(&(0..32).map(|lane| lane % 4).collect::<Vec<u32>>());
    for options in BUILDS {
        let module = device.module_of(Ptx::from_src(compile("lanes", options)));
        let (recursion, table) = (function(&module, "recursion"), function(&module, "calls_through_table"));
        let mut numbers = device.zeros::<u32>(32);
        device.run(&recursion, shape(1, 32), |arguments| {
            arguments.arg(&on_n).arg(&mut numbers);
        });
        let fibonacci = [0u32, 1, 1, 2, 3, 5, 8, 13, 21];
        assert_eq!(
            device.download(&numbers),
            n.iter().map(|&n| fibonacci[n as usize]).collect::<Vec<u32>>(),
            "{options:?}"
        );
        let mut results = device.zeros::<i32>(32);
        device.run(&table, shape(1, 32), |arguments| {
            arguments.arg(&on_a).arg(&on_b).arg(&which).arg(&mut results);
        });
        let expected: Vec<i32> = (0..32)
            .map(|lane| match lane % 4 {
                0 => a[lane] + b[lane],
                1 => a[lane] - b[lane],
                2 => a[lane] * b[lane],
                _ => a[lane] / b[lane],
            })
            .collect();
        assert_eq!(device.download(&results), expected, "{options:?}");
    }
}
