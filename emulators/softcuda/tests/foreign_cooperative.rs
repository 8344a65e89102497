//! Cooperative groups within a warp and over a grid.

mod support;

use cudarc::driver::{CudaFunction, PushKernelArg};
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn tiles_of_eight() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "tile_reduce");
    let values = Random::new(16).integers(2 * 96, -1_000_000, 1_000_000);
    let on_device = device.upload(&values);
    let mut sums = device.zeros::<i32>(values.len() / 8);
    let mut greatest = device.zeros::<i32>(values.len() / 8);
    let mut running = device.zeros::<i32>(values.len());
    device.run(&kernel, shape(2, 96), |arguments| {
        arguments.arg(&on_device).arg(&mut sums).arg(&mut greatest).arg(&mut running);
    });
    let tiles = values.chunks(8);
    assert_eq!(device.download(&sums), tiles.clone().map(|tile| tile.iter().sum()).collect::<Vec<i32>>());
    assert_eq!(device.download(&greatest), tiles.clone().map(|tile| *tile.iter().max().unwrap()).collect::<Vec<i32>>());
    let expected: Vec<i32> = tiles
        .flat_map(|tile| {
            tile.iter().scan(0, |sum, value| {
                *sum += value;
                Some(*sum)
            })
        })
        .collect();
    assert_eq!(device.download(&running), expected);
}

#[test]
fn coalesced_threads_share_an_atomic() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "keep_positive");
    let values = Random::new(17).integers(1000, -100, 100);
    let on_device = device.upload(&values);
    let mut kept = device.zeros::<i32>(values.len());
    let mut length = device.zeros::<u32>(1);
    let count = values.len() as u32;
    let report = device.run(&kernel, shape(4, 256), |arguments| {
        arguments.arg(&on_device).arg(&mut kept).arg(&mut length).arg(&count);
    });
    let mut expected: Vec<i32> = values.iter().copied().filter(|&value| value > 0).collect();
    let length = device.download(&length)[0] as usize;
    let mut kept = device.download(&kept);
    kept.truncate(length);
    kept.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kept, expected);
    if let Some(report) = report {
        // The lanes of a warp that took the branch are together, and share one.
        let warps = values.chunks(32).filter(|warp| warp.iter().any(|&value| value > 0)).count();
        assert_eq!(report.counters.atomics, warps as u64);
    }
}

#[test]
fn lanes_grouped_by_label() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "group_by_remainder");
    let values = Random::new(18).integers(4 * 64, 0, 1_000_000);
    let on_device = device.upload(&values);
    let mut sums = device.zeros::<i32>(values.len() / 32 * 3);
    device.run(&kernel, shape(4, 64), |arguments| {
        arguments.arg(&on_device).arg(&mut sums);
    });
    let expected: Vec<i32> = values
        .chunks(32)
        .flat_map(|warp| (0..3).map(|label| warp.iter().filter(|&&value| value % 3 == label).sum::<i32>()))
        .collect();
    assert_eq!(device.download(&sums), expected);
}

#[test]
fn whole_grid_in_rounds() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "ring_rounds");
    // Few blocks; and more than two of them for each multiprocessor, which all must be resident.
    for blocks in [6, 300] {
        ring_rounds(&device, &kernel, blocks);
    }
}

fn ring_rounds(device: &Device, kernel: &CudaFunction, blocks: u32) {
    let (threads, rounds) = (64u32, 5u32);
    let size = (blocks * threads) as usize;
    let mut random = Random::new(19);
    let mut values: Vec<u32> = (0..size).map(|_| random.bits() as u32).collect();
    let mut even = device.upload(&values);
    let mut odd = device.zeros::<u32>(size);
    device.run_cooperative(kernel, shape(blocks, threads), |arguments| {
        arguments.arg(&mut even).arg(&mut odd).arg(&rounds);
    });
    for _ in 0..rounds {
        values = (0..size)
            .map(|index| {
                let (next, before) = (values[(index + 1) % size], values[(index + size - 1) % size]);
                next.wrapping_add(before.wrapping_mul(3)).wrapping_add(values[index])
            })
            .collect();
    }
    // Five rounds: the last went into odd.
    assert_eq!(device.download(&odd), values);
}
