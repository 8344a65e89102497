//! Prefix sums by shuffles and by Blelloch's tree.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn inclusive_by_shuffles() {
    let device = Device::new();
    let kernel = device.kernel("scan", "inclusive_scan");
    for threads in [32u32, 96, 1024] {
        let count = 3 * threads - 7;
        let values = Random::new(u64::from(threads)).integers(count as usize, -1000, 1000);
        let on_device = device.upload(&values);
        let mut out = device.zeros::<i32>(count as usize);
        device.run(&kernel, shape(3, threads), |arguments| {
            arguments.arg(&on_device).arg(&mut out).arg(&count);
        });
        let expected: Vec<i32> = values
            .chunks(threads as usize)
            .flat_map(|block| {
                block.iter().scan(0, |sum, &value| {
                    *sum += value;
                    Some(*sum)
                })
            })
            .collect();
        assert_eq!(device.download(&out), expected, "{threads} threads");
    }
}

#[test]
fn exclusive_by_a_tree() {
    let device = Device::new();
    let kernel = device.kernel("scan", "exclusive_scan");
    let threads = 128u32;
    let values: Vec<u32> = (0..2 * 2 * threads).scan(Random::new(5), |random, _| Some(random.bits() as u32)).collect();
    let on_device = device.upload(&values);
    let mut out = device.zeros::<u32>(values.len());
    let mut total = device.zeros::<u32>(2);
    let report = device.run(&kernel, shape(2, threads).with_shared(8 * threads), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&mut total);
    });
    let mut expected = Vec::new();
    let mut totals = Vec::new();
    for block in values.chunks(2 * threads as usize) {
        let mut sum = 0u32;
        for &value in block {
            expected.push(sum);
            sum = sum.wrapping_add(value);
        }
        totals.push(sum);
    }
    assert_eq!(device.download(&out), expected);
    assert_eq!(device.download(&total), totals);
    if let Some(report) = report {
        // log2(256) steps up, log2(256) down, one barrier before each; one before the root is cleared and one before
        // the end.
        assert_eq!(report.counters.block_barriers, 2 * (8 + 8 + 2));
    }
}
