//! Sums by a tree in shared memory, by shuffles, and over the whole grid.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, function, shape};
use support::random::Random;

#[test]
fn tree_in_shared_memory() {
    let device = Device::new();
    let kernel = device.kernel("reduction", "sum_tree");
    let (blocks, threads) = (7u32, 256u32);
    // The last block is ragged.
    let count = blocks * threads - 100;
    let values = Random::new(1).integers(count as usize, i32::MIN, i32::MAX);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(blocks as usize);
    let report = device.run(&kernel, shape(blocks, threads).with_shared(4 * threads), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&count);
    });
    let expected: Vec<i32> = values
        .chunks(threads as usize)
        .map(|block| block.iter().fold(0, |sum: i32, &value| sum.wrapping_add(value)))
        .collect();
    assert_eq!(device.download(&out), expected);
    if let Some(report) = report {
        // One barrier after the load and one after each of the log2(256) steps.
        assert_eq!(report.counters.block_barriers, u64::from(blocks) * 9);
        assert_eq!(report.counters.global.distinct_bytes_read, u64::from(count) * 4);
        assert_eq!(report.counters.global.bytes_loaded, u64::from(count) * 4);
        assert_eq!(report.counters.global.bytes_stored, u64::from(blocks) * 4);
        assert_eq!(report.counters.threads, u64::from(blocks * threads));
    }
}

#[test]
fn warps() {
    let device = Device::new();
    let kernel = device.kernel("reduction", "sum_warp");
    let values = Random::new(2).integers(3 * 96, i32::MIN, i32::MAX);
    let warps = values.len() / 32;
    let on_device = device.upload(&values);
    let (mut down, mut butterfly, mut hardware) =
        (device.zeros::<i32>(warps), device.zeros::<i32>(warps), device.zeros::<i32>(warps));
    let mut extremes = device.zeros::<u32>(5 * warps);
    device.run(&kernel, shape(3, 96), |arguments| {
        arguments.arg(&on_device).arg(&mut down).arg(&mut butterfly).arg(&mut hardware).arg(&mut extremes);
    });
    let of_warps = values.chunks(32);
    let sums: Vec<i32> =
        of_warps.clone().map(|warp| warp.iter().fold(0, |sum: i32, &value| sum.wrapping_add(value))).collect();
    assert_eq!(device.download(&down), sums);
    assert_eq!(device.download(&butterfly), sums);
    assert_eq!(device.download(&hardware), sums);
    let expected: Vec<u32> = of_warps
        .flat_map(|warp| {
            [
                *warp.iter().min().unwrap() as u32,
                *warp.iter().max().unwrap() as u32,
                warp.iter().fold(!0, |all, &value| all & value as u32),
                warp.iter().fold(0, |any, &value| any | value as u32),
                warp.iter().fold(0, |parity, &value| parity ^ value as u32),
            ]
        })
        .collect();
    assert_eq!(device.download(&extremes), expected);
}

#[test]
fn last_block_of_the_grid() {
    let device = Device::new();
    let kernel = device.kernel("reduction", "sum_grid");
    let (blocks, threads, count) = (37u32, 256u32, 100_003u32);
    // Integers below 2^7 in magnitude: every partial sum is below 2^24, so f32 holds it exactly in any order.
    let values: Vec<f32> =
        Random::new(3).integers(count as usize, -127, 127).iter().map(|&value| value as f32).collect();
    let exact: f64 = values.iter().map(|&value| f64::from(value)).sum();
    let on_device = device.upload(&values);
    let mut partial = device.zeros::<f32>(blocks as usize);
    let mut ticket = device.zeros::<u32>(1);
    // Twice: the ticket counter has to be back at zero.
    for _ in 0..2 {
        let mut out = device.zeros::<f32>(1);
        let report = device.run(&kernel, shape(blocks, threads), |arguments| {
            arguments.arg(&on_device).arg(&mut partial).arg(&mut ticket).arg(&mut out).arg(&count);
        });
        assert_eq!(f64::from(device.download(&out)[0]), exact);
        assert_eq!(device.download(&ticket), [0]);
        if let Some(report) = report {
            assert_eq!(report.counters.atomics, u64::from(blocks));
            // Each value once, and each partial sum once by the last block.
            assert_eq!(report.counters.global.bytes_loaded, u64::from(count + blocks) * 4);
        }
    }
}

#[test]
fn dot_product_of_doubles() {
    let device = Device::new();
    let module = device.module("reduction");
    let kernel = function(&module, "dot_atomic");
    let count = 5_000u32;
    let mut random = Random::new(4);
    let integers = |random: &mut Random| -> Vec<f64> {
        random.integers(count as usize, -1_000_000, 1_000_000).iter().map(|&value| f64::from(value)).collect()
    };
    let (left, right) = (integers(&mut random), integers(&mut random));
    // Products below 2^40, their sums below 2^53: exact.
    let exact: i128 = left.iter().zip(&right).map(|(&a, &b)| a as i128 * b as i128).sum();
    let (left, right) = (device.upload(&left), device.upload(&right));
    let mut out = device.zeros::<f64>(1);
    device.run(&kernel, shape(5, 128), |arguments| {
        arguments.arg(&left).arg(&right).arg(&mut out).arg(&count);
    });
    assert_eq!(device.download(&out)[0], exact as f64);
}
