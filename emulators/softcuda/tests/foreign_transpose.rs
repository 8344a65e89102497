//! Transposes and strided copies: the values, and sectors and bank conflicts as counted by hand.

mod support;

use cudarc::driver::PushKernelArg;
use softcuda::count::Counters;
use support::device::{Device, Shape, function, shape};
use support::random::Random;

/// Rows and columns.
const SIZE: u32 = 128;
/// Warps of the whole launch: 32 elements each.
const WARPS: u64 = SIZE as u64 * SIZE as u64 / 32;
/// Sectors of 32 bytes in a warp's 128 contiguous and aligned bytes.
const CONTIGUOUS: u64 = 4;
/// Sectors of a warp's 32 floats in a column of the matrix.
const SCATTERED: u64 = 32;

/// Transposes, checks the values, and gives the counters.
fn transposed(name: &str) -> Option<Counters> {
    let device = Device::new();
    let kernel = device.kernel("transpose", name);
    let values = Random::new(8).reals((SIZE * SIZE) as usize, -1.0, 1.0);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<f32>(values.len());
    let whole = Shape { grid: (SIZE / 32, SIZE / 32), block: (32, 32), shared: 0 };
    let report = device.run(&kernel, whole, |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&SIZE);
    });
    let out = device.download(&out);
    for row in 0..SIZE as usize {
        for column in 0..SIZE as usize {
            assert_eq!(
                out[column * SIZE as usize + row],
                values[row * SIZE as usize + column],
                "{name}: {row}, {column}"
            );
        }
    }
    let counters = report?.counters;
    let bytes = u64::from(SIZE * SIZE * 4);
    assert_eq!(counters.global.bytes_loaded, bytes);
    assert_eq!(counters.global.bytes_stored, bytes);
    assert_eq!(counters.global.distinct_bytes_read, bytes);
    assert_eq!(counters.global.distinct_bytes_written, bytes);
    assert_eq!(counters.divergent_branches, 0);
    Some(counters)
}

#[test]
fn naive_scatters_its_stores() {
    let Some(counters) = transposed("transpose_naive") else { return };
    assert_eq!(counters.global.sectors_loaded, WARPS * CONTIGUOUS);
    assert_eq!(counters.global.sectors_stored, WARPS * SCATTERED);
    assert_eq!(counters.shared.wavefronts, 0);
    assert_eq!(counters.shared.bank_conflicts, 0);
}

#[test]
fn unpadded_column_hits_one_bank_32_times() {
    let Some(counters) = transposed("transpose_shared") else { return };
    assert_eq!(counters.global.sectors_loaded, WARPS * CONTIGUOUS);
    assert_eq!(counters.global.sectors_stored, WARPS * CONTIGUOUS);
    // A row is written in one pass; a column is read in 32, of which 31 are conflicts.
    assert_eq!(counters.shared.wavefronts, WARPS * (1 + 32));
    assert_eq!(counters.shared.bank_conflicts, WARPS * 31);
    assert_eq!(counters.shared.bytes_loaded, u64::from(SIZE * SIZE * 4));
    assert_eq!(counters.shared.bytes_stored, u64::from(SIZE * SIZE * 4));
    assert_eq!(counters.block_barriers, u64::from(SIZE / 32 * SIZE / 32));
}

#[test]
fn padding_takes_the_conflicts_away() {
    let Some(counters) = transposed("transpose_padded") else { return };
    assert_eq!(counters.global.sectors_loaded, WARPS * CONTIGUOUS);
    assert_eq!(counters.global.sectors_stored, WARPS * CONTIGUOUS);
    assert_eq!(counters.shared.wavefronts, WARPS * 2);
    assert_eq!(counters.shared.bank_conflicts, 0);
}

#[test]
fn sectors_follow_from_the_stride() {
    let device = Device::new();
    let kernel = device.kernel("transpose", "copy_strided");
    // Stride and offset in floats; sectors per warp, by hand: 128 bytes aligned, the same shifted by one float or by
    // one sector, 256 bytes, 384 bytes, one sector a lane (8 floats are a sector), and again.
    let cases = [(1u32, 0u32, 4u64), (1, 1, 5), (1, 8, 4), (2, 0, 8), (3, 0, 12), (4, 0, 16), (8, 0, 32), (33, 0, 32)];
    let (blocks, threads) = (2u32, 64u32);
    for (stride, offset, sectors) in cases {
        let length = (blocks * threads * stride + offset) as usize;
        let values = Random::new(9).reals(length, -1.0, 1.0);
        let on_device = device.upload(&values);
        let mut out = device.zeros::<f32>(length);
        let report = device.run(&kernel, shape(blocks, threads), |arguments| {
            arguments.arg(&on_device).arg(&mut out).arg(&stride).arg(&offset);
        });
        for (index, (&copied, &value)) in device.download(&out).iter().zip(&values).enumerate() {
            let chosen = index >= offset as usize && (index - offset as usize).is_multiple_of(stride as usize);
            assert_eq!(copied, if chosen { value } else { 0.0 }, "stride {stride}, offset {offset}, index {index}");
        }
        let Some(report) = report else { continue };
        // Warps start 32 * stride floats apart, a multiple of a sector for every stride: all warps alike.
        let warps = u64::from(blocks * threads / 32);
        assert_eq!(report.counters.global.sectors_loaded, warps * sectors, "stride {stride}, offset {offset}");
        assert_eq!(report.counters.global.sectors_stored, warps * sectors, "stride {stride}, offset {offset}");
        assert_eq!(report.counters.global.distinct_bytes_read, u64::from(blocks * threads) * 4);
    }
}

#[test]
fn sixteen_bytes_a_lane() {
    let device = Device::new();
    let kernel = device.kernel("transpose", "copy_wide");
    let values = Random::new(10).reals(4 * 96, -1.0, 1.0);
    let on_device = device.upload(&values);
    let mut out = device.zeros::<f32>(values.len());
    let report = device.run(&kernel, shape(1, 96), |arguments| {
        arguments.arg(&on_device).arg(&mut out);
    });
    assert_eq!(device.download(&out), values);
    if let Some(report) = report {
        assert_eq!(report.counters.global.bytes_loaded, 96 * 16);
        assert_eq!(report.counters.global.sectors_loaded, 3 * 16);
        assert_eq!(report.counters.global.sectors_stored, 3 * 16);
    }
}

#[test]
fn conflicts_are_the_common_divisor_with_32() {
    let device = Device::new();
    let module = device.module("transpose");
    let kernel = function(&module, "stride_shared");
    for (stride, ways) in [(1u32, 1u64), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8), (12, 4), (16, 16), (31, 1), (32, 32)] {
        let mut out = device.zeros::<u32>(32);
        let report = device.run(&kernel, shape(1, 32), |arguments| {
            arguments.arg(&mut out).arg(&stride);
        });
        assert_eq!(device.download(&out), (0..32).collect::<Vec<u32>>());
        if let Some(report) = report {
            // A store and a load.
            assert_eq!(report.counters.shared.wavefronts, 2 * ways, "stride {stride}");
            assert_eq!(report.counters.shared.bank_conflicts, 2 * (ways - 1), "stride {stride}");
        }
    }
}
