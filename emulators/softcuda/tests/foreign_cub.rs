//! CUB's block and warp algorithms and its device-wide reduction, from the pinned headers.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, function, shape};
use support::random::Random;

const THREADS: usize = 128;
const ITEMS: usize = 4;

fn running(values: &[i32]) -> Vec<i32> {
    let mut sum = 0;
    values
        .iter()
        .map(|value| {
            sum += value;
            sum
        })
        .collect()
}

#[test]
fn block_reduce() {
    let device = Device::new();
    let kernel = device.kernel("cub_block", "cub_block_reduce");
    // Sums of 128 integers below 2^17 stay below 2^24: exact in f32 too.
    let values = Random::new(11).integers(5 * THREADS, -100_000, 100_000);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(10);
    let mut float_out = device.zeros::<f32>(5);
    device.run(&kernel, shape(5, THREADS as u32), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&mut float_out);
    });
    let blocks = values.chunks(THREADS);
    let expected: Vec<i32> =
        blocks.clone().flat_map(|block| [block.iter().sum(), *block.iter().max().unwrap()]).collect();
    assert_eq!(device.download(&out), expected);
    let expected: Vec<f32> = blocks.map(|block| block.iter().sum::<i32>() as f32).collect();
    assert_eq!(device.download(&float_out), expected);
}

#[test]
fn block_scan() {
    let device = Device::new();
    let kernel = device.kernel("cub_block", "cub_block_scan");
    let values = Random::new(12).integers(3 * THREADS * ITEMS, -1_000_000, 1_000_000);
    let on_device = device.upload(&values);
    let mut inclusive = device.zeros::<i32>(values.len());
    let mut exclusive = device.zeros::<i32>(values.len());
    device.run(&kernel, shape(3, THREADS as u32), |arguments| {
        arguments.arg(&on_device).arg(&mut inclusive).arg(&mut exclusive);
    });
    let expected: Vec<i32> = values.chunks(THREADS * ITEMS).flat_map(running).collect();
    assert_eq!(device.download(&inclusive), expected);
    let expected: Vec<i32> = expected.iter().zip(&values).map(|(sum, value)| sum - value).collect();
    assert_eq!(device.download(&exclusive), expected);
}

#[test]
fn block_radix_sort() {
    let device = Device::new();
    let kernel = device.kernel("cub_block", "cub_block_sort");
    let mut random = Random::new(13);
    let mut keys: Vec<u32> = (0..2 * THREADS * ITEMS).map(|_| random.bits() as u32).collect();
    let on_device = device.upload(&keys);
    let mut out = device.zeros::<u32>(keys.len());
    device.run(&kernel, shape(2, THREADS as u32), |arguments| {
        arguments.arg(&on_device).arg(&mut out);
    });
    keys.chunks_mut(THREADS * ITEMS).for_each(<[u32]>::sort_unstable);
    assert_eq!(device.download(&out), keys);
}

#[test]
fn device_reduce_in_two_passes() {
    let device = Device::new();
    let module = device.module("cub_block");
    let (first, second) = (function(&module, "cub_device_reduce_first"), function(&module, "cub_device_reduce_second"));
    // A ragged end after whole tiles; sums below 2^24, exact.
    let (blocks, count) = (9u32, 50_021u32);
    let values: Vec<f32> =
        Random::new(14).integers(count as usize, -255, 255).iter().map(|&value| value as f32).collect();
    let on_device = device.upload(&values);
    let mut partial = device.zeros::<f32>(blocks as usize);
    let mut out = device.zeros::<f32>(1);
    let report = device.run(&first, shape(blocks, THREADS as u32), |arguments| {
        arguments.arg(&on_device).arg(&mut partial).arg(&count);
    });
    device.run(&second, shape(1, THREADS as u32), |arguments| {
        arguments.arg(&partial).arg(&mut out).arg(&blocks);
    });
    assert_eq!(f64::from(device.download(&out)[0]), values.iter().map(|&value| f64::from(value)).sum::<f64>());
    if let Some(report) = report {
        assert_eq!(report.counters.global.bytes_loaded, u64::from(count) * 4);
        assert_eq!(report.counters.global.distinct_bytes_read, u64::from(count) * 4);
        // Every sector of the array is touched by one warp, except where the ragged end's warps of 128 bytes share
        // none.
        assert_eq!(report.counters.global.sectors_loaded, (u64::from(count) * 4).div_ceil(32));
    }
}

#[test]
fn warp_reduce() {
    let device = Device::new();
    let kernel = device.kernel("cub_block", "cub_warp");
    let mut random = Random::new(15);
    let values = random.integers(2 * THREADS, -1000, 1000);
    // Lane 0 of each warp begins a segment; others now and then.
    let heads: Vec<i32> =
        (0..2 * THREADS).map(|index| i32::from(index % 32 == 0 || random.integer(0, 4) == 0)).collect();
    let (on_device, heads_on_device) = (device.upload(&values), device.upload(&heads));
    let mut segmented = device.zeros::<i32>(values.len());
    let mut eights = device.zeros::<i32>(values.len() / 8);
    device.run(&kernel, shape(2, THREADS as u32), |arguments| {
        arguments.arg(&on_device).arg(&heads_on_device).arg(&mut segmented).arg(&mut eights);
    });
    let mut expected = vec![0; values.len()];
    let mut head = 0;
    for index in 0..values.len() {
        if heads[index] == 1 {
            head = index;
        }
        expected[head] += values[index];
    }
    assert_eq!(device.download(&segmented), expected);
    let expected: Vec<i32> = values.chunks(8).map(|eight| eight.iter().sum()).collect();
    assert_eq!(device.download(&eights), expected);
}
