//! Lanes of one warp on their own ways: locks, flags, recursion, calls through a table, loops of different lengths.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn lock_between_lanes() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "spin_lock");
    let mut lock = device.zeros::<u32>(1);
    let mut counter = device.zeros::<u32>(1);
    let (blocks, threads, rounds) = (2u32, 64u32, 3u32);
    device.run(&kernel, shape(blocks, threads), |arguments| {
        arguments.arg(&mut lock).arg(&mut counter).arg(&rounds);
    });
    assert_eq!(device.download(&counter), [blocks * threads * rounds]);
    assert_eq!(device.download(&lock), [0]);
}

#[test]
fn lanes_wait_for_lanes() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "lane_waits");
    let mut out = device.zeros::<u32>(32);
    device.run(&kernel, shape(1, 32), |arguments| {
        arguments.arg(&mut out);
    });
    assert_eq!(
        device.download(&out),
        (0..32).map(|lane| if lane % 2 == 1 { 100 + lane } else { lane }).collect::<Vec<u32>>()
    );
}

#[test]
fn recursion_of_different_depths() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "recursion");
    let depths: Vec<u32> = Random::new(31).integers(2 * 64, 0, 11).iter().map(|&depth| depth as u32).collect();
    let on_device = device.upload(&depths);
    let mut out = device.zeros::<u32>(depths.len());
    device.run(&kernel, shape(2, 64), |arguments| {
        arguments.arg(&on_device).arg(&mut out);
    });
    let fibonacci = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89];
    assert_eq!(device.download(&out), depths.iter().map(|&depth| fibonacci[depth as usize]).collect::<Vec<u32>>());
}

#[test]
fn calls_through_a_table() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "calls_through_table");
    let mut random = Random::new(32);
    let (a, b) = (random.integers(128, -1_000_000, 1_000_000), random.integers(128, -9, 9));
    let which: Vec<u32> = (0..128).map(|_| random.integer(0, 3) as u32).collect();
    let (on_a, on_b, on_which) = (device.upload(&a), device.upload(&b), device.upload(&which));
    let mut out = device.zeros::<i32>(128);
    device.run(&kernel, shape(2, 64), |arguments| {
        arguments.arg(&on_a).arg(&on_b).arg(&on_which).arg(&mut out);
    });
    let expected: Vec<i32> = (0..128)
        .map(|index| match which[index] {
            0 => a[index] + b[index],
            1 => a[index] - b[index],
            2 => a[index] * b[index],
            _ => a[index].checked_div(b[index]).unwrap_or(0),
        })
        .collect();
    assert_eq!(device.download(&out), expected);
}

#[test]
fn local_and_constant_memory() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "local_memory");
    let values = Random::new(33).integers(96, -10_000, 10_000);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(96);
    device.run(&kernel, shape(1, 96), |arguments| {
        arguments.arg(&on_device).arg(&mut out);
    });
    assert_eq!(device.download(&out), values.iter().map(|&value| walk(value)).collect::<Vec<i32>>());
}

/// The kernel `local_memory` for one thread.
fn walk(value: i32) -> i32 {
    let weights = [3, 1, 4, 1, 5, 9, 2, 6];
    let mut kept: [i32; 16] = std::array::from_fn(|i| value * weights[i % 8] + i as i32);
    let mut at = (value & 15) as usize;
    let mut sum = 0i32;
    for step in 0..20 {
        match kept[at] & 7 {
            0 => sum = sum.wrapping_add(kept[at]),
            1 => sum ^= kept[at] << 1,
            2 => sum = sum.wrapping_sub(7),
            3 => kept[at] += 5,
            4 => sum = sum.wrapping_mul(3).wrapping_add(1),
            5 => sum = (sum >> 1) ^ at as i32,
            6 => kept[(at + 3) & 15] ^= sum,
            _ => sum = sum.wrapping_add(step),
        }
        at = (at + (kept[at] & 15) as usize + 1) & 15;
    }
    sum
}

#[test]
fn loops_of_different_lengths() {
    let device = Device::new();
    let kernel = device.kernel("lanes", "collatz");
    let starts: Vec<u32> = Random::new(34).integers(128, 1, 1_000_000).iter().map(|&start| start as u32).collect();
    let on_device = device.upload(&starts);
    let mut steps = device.zeros::<u32>(128);
    let mut most = device.zeros::<u32>(4);
    let report = device.run(&kernel, shape(2, 64), |arguments| {
        arguments.arg(&on_device).arg(&mut steps).arg(&mut most);
    });
    let expected: Vec<u32> = starts
        .iter()
        .map(|&start| {
            let (mut value, mut count) = (u64::from(start), 0);
            while value != 1 && count < 100 {
                value = if value % 2 == 0 { value / 2 } else { 3 * value + 1 };
                count += 1;
            }
            count
        })
        .collect();
    assert_eq!(device.download(&steps), expected);
    assert_eq!(
        device.download(&most),
        expected.chunks(32).map(|warp| *warp.iter().max().unwrap()).collect::<Vec<u32>>()
    );
    if let Some(report) = report {
        assert!(report.counters.divergent_branches > 0);
        let (fewest, most) = report.counters.instructions_per_thread;
        assert!(fewest < most, "lanes that leave the loop early execute fewer instructions");
    }
}
