//! What a device is able to do, as tables: the attributes of an H100, and what other compute capabilities change.

/// What the driver itself needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Compute capability.
    pub(super) capability: (u32, u32),
    /// Multiprocessors.
    pub(super) multiprocessors: u32,
    /// Resident threads of a multiprocessor.
    pub(super) threads: u32,
    /// Resident blocks of a multiprocessor.
    pub(super) blocks: u32,
    /// Shared memory of a multiprocessor in bytes.
    pub(super) shared: u32,
    /// The most shared memory that a block may ask for, in bytes.
    pub(super) shared_opt_in: u32,
    /// The L2 cache in bytes.
    pub(super) l2: u32,
    /// Clocks of the multiprocessors and of the memory in kHz, and the memory bus in bits.
    pub(super) clocks: (u32, u32, u32),
}

/// Shared memory of a block without opting in, in bytes.
pub(super) const SHARED_DEFAULT: u32 = 48 << 10;
/// Shared memory that the system keeps of each block's, in bytes.
pub(super) const SHARED_RESERVED: u32 = 1 << 10;
/// 32-bit registers of a multiprocessor, and of a block.
pub(super) const REGISTERS: u32 = 1 << 16;
/// Threads of a block.
pub(super) const BLOCK_THREADS: u32 = 1024;
/// Threads of a block along x, y, z.
pub(super) const BLOCK_SHAPE: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid along x, y, z.
pub(super) const GRID_SHAPE: [u32; 3] = [0x7fff_ffff, 0xffff, 0xffff];
/// Blocks of a cluster: of every device that has clusters, and when the kernel allows more than that.
pub(super) const CLUSTER_BLOCKS: (u32, u32) = (8, 16);
/// Lanes of a warp.
pub(super) const WARP: u32 = 32;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// A row of [`DEVICES`]: compute capability, multiprocessors, of each of these threads and blocks and shared memory in
/// KiB, L2 in MiB, clocks.
const fn row(
    capability: (u32, u32),
    multiprocessors: u32,
    (threads, blocks, shared): (u32, u32, u32),
    l2: u32,
    clocks: (u32, u32, u32),
) -> Limits {
    let shared_opt_in = shared * KIB - SHARED_RESERVED;
    Limits { capability, multiprocessors, threads, blocks, shared: shared * KIB, shared_opt_in, l2: l2 * MIB, clocks }
}

/// By compute capability, ascending. One that is not listed takes the row before it.
const DEVICES: &[Limits] = &[
    row((8, 0), 108, (2048, 32, 164), 40, (1_410_000, 1_593_000, 5120)),
    row((8, 6), 82, (1536, 16, 100), 6, (1_695_000, 9_751_000, 384)),
    row((8, 9), 128, (1536, 24, 100), 72, (2_520_000, 10_501_000, 384)),
    row((9, 0), 132, (2048, 32, 228), 50, (1_980_000, 2_619_000, 5120)),
    row((10, 0), 148, (2048, 32, 228), 126, (1_965_000, 3_996_000, 8192)),
    row((12, 0), 170, (1536, 24, 100), 96, (2_407_000, 14_001_000, 512)),
];

impl Limits {
    /// The limits of a compute capability.
    pub(super) fn of(capability: (u32, u32)) -> Self {
        let row = DEVICES.iter().rev().find(|row| row.capability <= capability).unwrap_or(&DEVICES[0]);
        Self { capability, ..*row }
    }

    /// Whether blocks can form clusters.
    pub(super) fn has_clusters(&self) -> bool {
        self.capability.0 >= 9
    }

    /// A `CUdevice_attribute`; `None` for a number that no attribute has.
    pub(super) fn attribute(&self, attribute: u32) -> Option<i32> {
        let own = match attribute {
            13 => self.clocks.0,
            16 => self.multiprocessors,
            36 => self.clocks.1,
            37 => self.clocks.2,
            38 => self.l2,
            39 => self.threads,
            75 => self.capability.0,
            76 => self.capability.1,
            81 => self.shared,
            97 => self.shared_opt_in,
            106 => self.blocks,
            108 => self.l2 / 8 * 5,
            120 | 127 => u32::from(self.has_clusters()),
            _ => {
                let listed = ATTRIBUTES.iter().find(|entry| entry.0 == attribute).map(|entry| entry.1);
                // The rest are things that softcuda does not have.
                return listed.or((1..=LAST_ATTRIBUTE).contains(&attribute).then_some(0));
            }
        };
        Some(own as i32)
    }
}

/// The last attribute of CUDA 13.0.
const LAST_ATTRIBUTE: u32 = 147;

/// Attributes that are the same for every device here: (`CUdevice_attribute`, value). Those that are neither listed nor
/// in [`Limits`] are 0.
#[rustfmt::skip]
const ATTRIBUTES: &[(u32, i32)] = &[
    // Threads of a block, blocks and grids along each axis.
    (1, BLOCK_THREADS as i32), (2, BLOCK_SHAPE[0] as i32), (3, BLOCK_SHAPE[1] as i32), (4, BLOCK_SHAPE[2] as i32),
    (5, GRID_SHAPE[0] as i32), (6, GRID_SHAPE[1] as i32), (7, GRID_SHAPE[2] as i32),
    // Shared memory of a block, constant memory, lanes, pitch, registers of a block.
    (8, SHARED_DEFAULT as i32), (9, 1 << 16), (10, WARP as i32), (11, i32::MAX), (12, REGISTERS as i32),
    // Textures and surfaces: alignments and extents.
    (14, 512), (30, 512), (51, 32), (21, 131_072), (22, 131_072), (23, 65_536), (24, 16_384), (25, 16_384),
    (26, 16_384), (27, 32_768), (28, 32_768), (29, 2048), (42, 32_768), (43, 2048), (44, 1), (45, 32_768),
    (46, 32_768), (47, 8192), (48, 8192), (49, 32_768), (52, 32_768), (53, 32_768), (54, 2046), (55, 32_768),
    (56, 131_072), (57, 65_536), (58, 16_384), (59, 16_384), (60, 16_384), (61, 32_768), (62, 2048), (63, 32_768),
    (64, 32_768), (65, 2048), (66, 32_768), (67, 32_768), (68, 2046), (69, 268_435_456), (70, 131_072), (71, 65_000),
    (72, 2_097_120), (73, 32_768), (74, 32_768), (77, 32_768),
    // Copies beside kernels, mapping of host memory, kernels beside kernels, ECC, PCI bus, copy engines, unified
    // addresses.
    (15, 1), (19, 1), (31, 1), (32, 1), (33, 1), (40, 3), (41, 1),
    // Stream priorities, L1 caches, registers of a multiprocessor, managed memory, f32 to f64 rate.
    (78, 1), (79, 1), (80, 1), (82, REGISTERS as i32), (83, 1), (87, 2),
    // Managed memory beside the host, preemption, registered host pointers, cooperative launches, registration of host
    // memory.
    (89, 1), (90, 1), (91, 1), (95, 1), (99, 1),
    // Access policy window, shared memory that is kept back, read-only registration, memory pools.
    (109, 134_213_632), (111, SHARED_RESERVED as i32), (113, 1), (115, 1),
    // Memory domains, function pointers, NUMA.
    (126, 4), (129, 1), (131, -1), (134, -1),
];

#[cfg(test)]
mod tests {
    use super::Limits;

    #[test]
    fn a_capability_that_is_not_listed_takes_the_one_before() {
        assert_eq!(Limits::of((8, 7)).blocks, 16);
        assert_eq!(Limits::of((12, 1)).shared_opt_in, 101_376);
        assert_eq!(Limits::of((7, 5)).capability, (7, 5));
    }
}
