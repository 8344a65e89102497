//! Clusters: blocks that read, and add to, each other's shared memory.

mod support;

use cudarc::driver::{DevicePtr, DevicePtrMut, PushKernelArg};
use support::device::{Device, shape};
use support::random::Random;

#[test]
fn sum_over_a_cluster_of_four() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "cluster_sum");
    let (blocks, threads) = (12u32, 96u32);
    let values = Random::new(20).integers((blocks * threads) as usize, -1_000_000, 1_000_000);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<i32>(3);
    let mut ranks = device.zeros::<i32>(blocks as usize);
    let report = device.run(&kernel, shape(blocks, threads), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&mut ranks);
    });
    let expected: Vec<i32> = values.chunks(4 * threads as usize).map(|cluster| cluster.iter().sum()).collect();
    assert_eq!(device.download(&out), expected);
    assert_eq!(device.download(&ranks), (0..blocks as i32).map(|block| block % 4).collect::<Vec<i32>>());
    if let Some(report) = report {
        assert_eq!(report.cluster, [4, 1, 1]);
        // Two in each of three clusters.
        assert_eq!(report.counters.cluster_barriers, 6);
    }
}

/// The cluster's size comes from the launch; each size must give the same histogram.
#[test]
fn histogram_over_clusters_of_any_size() {
    let device = Device::new();
    let kernel = device.kernel("cooperative", "cluster_histogram");
    let (blocks, threads, bins) = (8u32, 64u32, 256u32);
    let count = 3000u32;
    let mut random = Random::new(21);
    let values: Vec<u32> = (0..count).map(|_| random.bits() as u32 % bins).collect();
    let mut expected = vec![0u32; bins as usize];
    for &value in &values {
        expected[value as usize] += 1;
    }
    let on_device = device.upload(&values);
    for cluster in [1u32, 2, 4, 8] {
        let mut counts = device.zeros::<u32>(bins as usize);
        let bins_of_block = bins / cluster;
        {
            let (values, _read) = on_device.device_ptr(&device.stream);
            let (counts, _written) = counts.device_ptr_mut(&device.stream);
            let mut arguments = [
                (&raw const values).cast_mut().cast(),
                (&raw const counts).cast_mut().cast(),
                (&raw const count).cast_mut().cast(),
                (&raw const bins_of_block).cast_mut().cast(),
            ];
            let report = device.run_clusters(
                &kernel,
                shape(blocks, threads).with_shared(4 * bins_of_block),
                cluster,
                &mut arguments,
            );
            if let Some(report) = report {
                assert_eq!(report.cluster, [cluster, 1, 1]);
                // Cluster barriers: two in each cluster. Atomics: one a value, one a bin and cluster.
                assert_eq!(report.counters.cluster_barriers, u64::from(2 * blocks / cluster));
                assert_eq!(report.counters.atomics, u64::from(count + bins * blocks / cluster));
            }
        }
        assert_eq!(device.download(&counts), expected, "clusters of {cluster}");
    }
}
