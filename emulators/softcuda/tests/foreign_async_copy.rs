//! cp.async in two buffers, cuda::barrier, bulk copies on an mbarrier, and a ring of stages between warps.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn two_buffers() {
    let device = Device::new();
    let kernel = device.kernel("async_copy", "double_buffered");
    let (blocks, threads, tiles) = (3u32, 64u32, 5u32);
    let values = Random::new(22).integers((blocks * threads * tiles * 4) as usize, i32::MIN, i32::MAX);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(values.len());
    let report = device.run(&kernel, shape(blocks, threads).with_shared(2 * 16 * threads), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&tiles);
    });
    assert_eq!(
        device.download(&out),
        values.iter().map(|value| value.wrapping_mul(2).wrapping_add(1)).collect::<Vec<i32>>()
    );
    if let Some(report) = report {
        assert_eq!(report.counters.block_barriers, u64::from(blocks * tiles * 2));
        assert_eq!(report.counters.global.bytes_loaded, 4 * values.len() as u64);
    }
}

#[test]
fn zero_fill_beyond_the_end() {
    let device = Device::new();
    let kernel = device.kernel("async_copy", "reverse_partly");
    let values = Random::new(23).reals(400, -1.0, 1.0);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<f32>(512);
    let count = 400u32;
    device.run(&kernel, shape(4, 128), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&count);
    });
    let mut padded = values;
    padded.resize(512, 0.0);
    let expected: Vec<f32> = padded.chunks(128).flat_map(|block| block.iter().rev().copied()).collect();
    assert_eq!(device.download(&out), expected);
}

#[test]
fn arrival_and_waiting_apart() {
    let device = Device::new();
    let kernel = device.kernel("async_copy", "barrier_rounds");
    let (threads, rounds) = (96usize, 7u32);
    let mut random = Random::new(24);
    let values: Vec<u32> = (0..2 * threads).map(|_| random.bits() as u32).collect();
    let mut on_device = device.upload(&values);
    device.run(&kernel, shape(2, threads as u32), |arguments| {
        arguments.arg(&mut on_device).arg(&rounds);
    });
    let mut expected = values;
    for block in expected.chunks_mut(threads) {
        for _ in 0..rounds {
            let kept = block.to_vec();
            for (index, value) in block.iter_mut().enumerate() {
                *value = value.wrapping_mul(5).wrapping_add(1).wrapping_add(kept[(index + 1) % threads]);
            }
        }
    }
    assert_eq!(device.download(&on_device), expected);
}

#[test]
fn bulk_copies() {
    let device = Device::new();
    let kernel = device.kernel("async_copy", "bulk_increment");
    let (blocks, per_block) = (3u32, 1000u32);
    let values = Random::new(25).integers((blocks * per_block) as usize, i32::MIN, i32::MAX);
    let mut on_device = device.upload(&values);
    device.run(&kernel, shape(blocks, 128).with_shared(4 * per_block), |arguments| {
        arguments.arg(&mut on_device).arg(&per_block);
    });
    assert_eq!(device.download(&on_device), values.iter().map(|value| value.wrapping_add(1)).collect::<Vec<i32>>());
}

#[test]
fn ring_between_warps() {
    let device = Device::new();
    let kernel = device.kernel("async_copy", "ring_of_stages");
    // Eleven tiles through four stages: each stage is used again, the last lap is ragged. Fewer tiles than stages too.
    for tiles in [3u32, 11] {
        let blocks = 2u32;
        let values = Random::new(26).integers((blocks * tiles * 128) as usize, -1_000_000, 1_000_000);
        let on_device = device.upload(&values);
        let mut out = device.zeros::<i32>(blocks as usize);
        device.run(&kernel, shape(blocks, 32 + 64), |arguments| {
            arguments.arg(&on_device).arg(&mut out).arg(&tiles);
        });
        let expected: Vec<i32> = values.chunks(128 * tiles as usize).map(|slice| slice.iter().sum()).collect();
        assert_eq!(device.download(&out), expected, "{tiles} tiles");
    }
}
