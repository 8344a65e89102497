//! Blocks and warps in shuffled orders: kernels that do not depend on the order give the same results and the same
//! counters.

mod support;

use cudarc::driver::PushKernelArg;
use softcuda::Settings;
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn shuffled_orders_change_nothing() {
    let device = Device::new();
    let sum = device.kernel("reduction", "sum_grid");
    let ring = device.kernel("async_copy", "ring_of_stages");
    let values: Vec<f32> = Random::new(43).integers(20_000, -255, 255).iter().map(|&value| value as f32).collect();
    let exact: f64 = values.iter().map(|&value| f64::from(value)).sum();
    let integers = Random::new(44).integers(2 * 6 * 128, -1000, 1000);
    let (on_device, count) = (device.upload(&values), values.len() as u32);
    let (integers_on_device, tiles) = (device.upload(&integers), 6u32);
    let mut first = None;
    for seed in [None, Some(1), Some(2), Some(3)] {
        // A real device has its own order, and one is enough.
        if let Some(control) = softcuda::control() {
            control.configure(&Settings { shuffle: seed, ..Settings::default() });
        }
        let mut partial = device.zeros::<f32>(20);
        let mut ticket = device.zeros::<u32>(1);
        let mut out = device.zeros::<f32>(1);
        let report = device.run(&sum, shape(20, 128), |arguments| {
            arguments.arg(&on_device).arg(&mut partial).arg(&mut ticket).arg(&mut out).arg(&count);
        });
        assert_eq!(f64::from(device.download(&out)[0]), exact, "seed {seed:?}");
        let mut sums = device.zeros::<i32>(2);
        device.run(&ring, shape(2, 96), |arguments| {
            arguments.arg(&integers_on_device).arg(&mut sums).arg(&tiles);
        });
        let expected: Vec<i32> = integers.chunks(6 * 128).map(|slice| slice.iter().sum()).collect();
        assert_eq!(device.download(&sums), expected, "seed {seed:?}");
        // Which block adds up the partial sums depends on the order; what is done in all does not.
        let Some(report) = report else { continue };
        let first = first.get_or_insert_with(|| report.counters.clone());
        assert_eq!(report.counters.instructions, first.instructions, "seed {seed:?}");
        assert_eq!(report.counters.global, first.global, "seed {seed:?}");
        assert_eq!(report.counters.shared, first.shared, "seed {seed:?}");
    }
}
