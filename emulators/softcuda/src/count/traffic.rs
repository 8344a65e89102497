//! How a warp's access falls on sectors of global memory and on banks of shared memory.

use crate::machine::registers::LANES;

/// Bytes of a sector.
const SECTOR: u64 = 32;
/// Banks of shared memory, of 4 bytes each.
const BANKS: usize = 32;

/// The number of different 32-byte sectors that the lanes of `active` touch with `bytes` each.
pub fn sectors(addresses: &[u64; LANES], active: u32, bytes: u64) -> u64 {
    let mut touched = [0_u64; 2 * LANES];
    let mut number = 0;
    let mut sorted = true;
    for lane in 0..LANES {
        if active >> lane & 1 == 0 {
            continue;
        }
        let first = addresses[lane] / SECTOR;
        let last = addresses[lane].saturating_add(bytes - 1) / SECTOR;
        for sector in [first, last] {
            // Accesses are at most 32 bytes wide: two sectors. Neighbours mostly share theirs.
            if number == 0 || touched[number - 1] != sector {
                sorted &= number == 0 || touched[number - 1] < sector;
                touched[number] = sector;
                number += 1;
            }
        }
    }
    if sorted {
        return number as u64;
    }
    let touched = &mut touched[..number];
    touched.sort_unstable();
    1 + touched.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}

/// The number of different bytes that the lanes of `active` touch with `bytes` each.
pub fn distinct_bytes(addresses: &[u64; LANES], active: u32, bytes: u64) -> u64 {
    // Lanes mostly ascend; then each adds what lies beyond the one before it.
    let (mut total, mut start, mut end) = (0, 0, 0);
    for lane in 0..LANES {
        if active >> lane & 1 == 0 {
            continue;
        }
        if addresses[lane] < start {
            return distinct_bytes_in_any_order(addresses, active, bytes);
        }
        start = addresses[lane];
        let beyond = start.saturating_add(bytes);
        total += beyond - start.max(end).min(beyond);
        end = beyond;
    }
    total
}

#[cold]
fn distinct_bytes_in_any_order(addresses: &[u64; LANES], active: u32, bytes: u64) -> u64 {
    let mut sorted = *addresses;
    let inactive = (0..LANES).filter(|lane| active >> lane & 1 == 0);
    inactive.for_each(|lane| sorted[lane] = u64::MAX);
    sorted.sort_unstable();
    let count = active.count_ones();
    distinct_bytes(&sorted, u32::MAX >> (LANES as u32 - count), bytes)
}

/// Passes over the banks that an access of `bytes` per lane needs, and the fewest that any access of that width by as
/// many lanes needs.
///
/// Up to 4 bytes a lane all lanes go together; 8 bytes go by half warps, 16 by quarters. Lanes that want the same
/// 4-byte word share it.
pub fn wavefronts(offsets: &[u64; LANES], active: u32, bytes: u64) -> (u64, u64) {
    let together = match bytes {
        0..=4 => LANES,
        5..=8 => LANES / 2,
        9..=16 => LANES / 4,
        _ => LANES / 8,
    };
    let words = bytes.div_ceil(4);
    let (mut needed, mut fewest) = (0, 0);
    for group in (0..LANES).step_by(together) {
        let mut seen = [0_u64; LANES * 2];
        let mut number = 0;
        for lane in group..group + together {
            if active >> lane & 1 == 1 {
                for word in 0..words {
                    seen[number] = offsets[lane] / 4 + word;
                    number += 1;
                }
            }
        }
        if number == 0 {
            continue;
        }
        let seen = &mut seen[..number];
        seen.sort_unstable();
        let mut passes = [0_u64; BANKS];
        for (place, word) in seen.iter().enumerate() {
            if place == 0 || seen[place - 1] != *word {
                passes[*word as usize % BANKS] += 1;
            }
        }
        needed += passes.iter().max().copied().unwrap_or(0);
        fewest += 1;
    }
    (needed, fewest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u64) -> [u64; LANES] {
        std::array::from_fn(|lane| lane as u64 * stride)
    }

    #[test]
    fn sectors_of_well_known_patterns() {
        // (stride in bytes, width in bytes, lanes, sectors)
        for (stride, width, active, expected) in [
            (4, 4, u32::MAX, 4),
            (16, 16, u32::MAX, 16),
            (2, 2, u32::MAX, 2),
            (0, 4, u32::MAX, 1),
            (32, 4, u32::MAX, 32),
            (128, 4, u32::MAX, 32),
            (4, 4, 0xff, 1),
            (32, 32, u32::MAX, 32),
        ] {
            assert_eq!(sectors(&strided(stride), active, width), expected, "stride {stride}, width {width}");
        }
        // Unaligned by one element: one sector more.
        let shifted = strided(4).map(|address| address + 4);
        assert_eq!(sectors(&shifted, u32::MAX, 4), 5);
        // Descending lanes touch as many.
        let mut descending = strided(4);
        descending.reverse();
        assert_eq!(sectors(&descending, u32::MAX, 4), 4);
    }

    #[test]
    fn bytes_that_lanes_share_count_once() {
        // (stride in bytes, width in bytes, lanes, bytes)
        for (stride, width, active, expected) in [
            (4, 4, u32::MAX, 128),
            (0, 4, u32::MAX, 4),
            (0, 16, 1 << 31, 16),
            (2, 4, u32::MAX, 66),
            (16, 16, u32::MAX, 512),
            (64, 8, 0xffff_0000, 128),
            (4, 4, 0, 0),
        ] {
            assert_eq!(distinct_bytes(&strided(stride), active, width), expected, "stride {stride}, width {width}");
            let mut descending = strided(stride);
            descending.reverse();
            assert_eq!(distinct_bytes(&descending, active.reverse_bits(), width), expected, "descending");
        }
        // Two halves of a warp that read the same.
        let halves: [u64; LANES] = std::array::from_fn(|lane| lane as u64 % 16 * 4);
        assert_eq!(distinct_bytes(&halves, u32::MAX, 4), 64);
        assert_eq!(distinct_bytes(&halves, 0xffff_00ff, 4), 64);
    }

    #[test]
    fn wavefronts_of_well_known_patterns() {
        // (stride in bytes, width, wavefronts, fewest)
        for (stride, width, needed, fewest) in [
            (4, 4, 1, 1),
            (8, 4, 2, 1),
            (128, 4, 32, 1),
            (132, 4, 1, 1),
            (0, 4, 1, 1),
            (8, 8, 2, 2),
            (16, 16, 4, 4),
            (2, 2, 1, 1),
            (256, 8, 32, 2),
        ] {
            assert_eq!(
                wavefronts(&strided(stride), u32::MAX, width),
                (needed, fewest),
                "stride {stride}, width {width}"
            );
        }
    }
}
