//! Histograms by shared and global atomics, by lanes that match, and the other atomics.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, shape};
use support::random::Random;

fn bytes(count: usize) -> Vec<u8> {
    let mut random = Random::new(6);
    // Skewed, so that lanes contend; bytes above 199 never occur.
    (0..count).map(|_| (random.integer(0, 199).min(random.integer(0, 199))) as u8).collect()
}

fn counted(bytes: &[u8]) -> Vec<u32> {
    let mut counts = vec![0; 256];
    for &byte in bytes {
        counts[usize::from(byte)] += 1;
    }
    counts
}

#[test]
fn shared_then_global() {
    let device = Device::new();
    let kernel = device.kernel("histogram", "histogram");
    let values = bytes(4 * 5000);
    let (blocks, threads, fours) = (4u32, 160u32, 5000u32);
    let on_device = device.upload(&values);
    let mut counts = device.zeros::<u32>(256);
    let report = device.run(&kernel, shape(blocks, threads), |arguments| {
        arguments.arg(&on_device).arg(&mut counts).arg(&fours);
    });
    assert_eq!(device.download(&counts), counted(&values));
    if let Some(report) = report {
        // One per byte in shared memory, one per block and occupied bin in global memory.
        let mut of_block = vec![Vec::new(); blocks as usize];
        for (index, four) in values.chunks(4).enumerate() {
            of_block[index / threads as usize % blocks as usize].extend_from_slice(four);
        }
        let occupied: usize =
            of_block.iter().map(|bytes| counted(bytes).iter().filter(|&&count| count > 0).count()).sum();
        assert_eq!(report.counters.atomics, (values.len() + occupied) as u64);
        assert_eq!(report.counters.global.bytes_atomic, 4 * occupied as u64);
        assert_eq!(report.counters.global.bytes_loaded, values.len() as u64);
    }
}

#[test]
fn lanes_with_the_same_byte() {
    let device = Device::new();
    let kernel = device.kernel("histogram", "histogram_matched");
    let values = bytes(1000);
    let on_device = device.upload(&values);
    let mut counts = device.zeros::<u32>(256);
    let count = 1000u32;
    let report = device.run(&kernel, shape(4, 256), |arguments| {
        arguments.arg(&on_device).arg(&mut counts).arg(&count);
    });
    assert_eq!(device.download(&counts), counted(&values));
    if let Some(report) = report {
        // One per warp and different byte in it.
        let different: usize =
            values.chunks(32).map(|warp| counted(warp).iter().filter(|&&count| count > 0).count()).sum();
        assert_eq!(report.counters.atomics, different as u64);
    }
}

#[test]
fn extremes() {
    let device = Device::new();
    let kernel = device.kernel("histogram", "extremes");
    let values = Random::new(7).integers(3000, -1_000_000, 1_000_000);
    let on_device = device.upload(&values);
    let mut least = device.upload(&[i32::MAX]);
    let mut greatest = device.upload(&[i32::MIN]);
    let mut sum = device.zeros::<u64>(1);
    let mut greatest_float = device.zeros::<f32>(1);
    let count = 3000u32;
    device.run(&kernel, shape(3, 192), |arguments| {
        arguments.arg(&on_device).arg(&mut least).arg(&mut greatest).arg(&mut sum).arg(&mut greatest_float).arg(&count);
    });
    assert_eq!(device.download(&least)[0], *values.iter().min().unwrap());
    assert_eq!(device.download(&greatest)[0], *values.iter().max().unwrap());
    assert_eq!(device.download(&sum)[0] as i64, values.iter().map(|&value| i64::from(value)).sum::<i64>());
    // Below 2^24: the conversion to f32 is exact.
    assert_eq!(device.download(&greatest_float)[0], *values.iter().max().unwrap() as f32);
}
