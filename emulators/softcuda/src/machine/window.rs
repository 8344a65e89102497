//! The windows of the generic address space.
//!
//! A generic address in a window is an address of that state space; every other one is global. Addresses of `.shared`
//! are 32 bits wide: 0 to 2^24 is the thread's own block, and `(rank + 1) << 24` upwards the block of that rank in its
//! cluster, so that an address of `.shared::cta` is one of `.shared::cluster` too, as PTX has it.

use crate::ptx::types::Space;

/// First generic address of shared memory.
pub const SHARED: u64 = 0x0100_0000_0000;
/// First generic address of a thread's local memory.
pub const LOCAL: u64 = 0x0200_0000_0000;
/// First generic address of the kernel's parameters.
pub const PARAMETERS: u64 = 0x0280_0000_0000;
/// First address of functions.
pub const FUNCTIONS: u64 = 0x0290_0000_0000;
/// Bytes of a window.
pub const SIZE: u64 = 1 << 32;
/// Bytes at the start of a block's shared memory that belong to the system, as on sm_90: a null pointer is none of the
/// block's addresses.
pub const RESERVED_SHARED: u32 = 1024;

/// Bytes of a block's shared memory in which cooperative groups meet (`%reserved_smem_offset_begin` to `_end`). They lie
/// after the kernel's own, as on sm_86, and only where a module asks for them.
pub const MEETING_SHARED: u32 = 1024;

/// Shared memory is allocated in units of so many bytes, since sm_80.
pub const SHARED_UNIT: u32 = 128;

/// The window of a space that has one.
pub fn of(space: Space) -> Option<u64> {
    match space {
        Space::Shared | Space::SharedCluster => Some(SHARED),
        Space::Local => Some(LOCAL),
        Space::Param => Some(PARAMETERS),
        Space::Generic | Space::Global | Space::Const => None,
    }
}

/// The space and the address within it of a generic address.
pub fn resolve(address: u64) -> (Space, u64) {
    for (window, space) in [(SHARED, Space::SharedCluster), (LOCAL, Space::Local), (PARAMETERS, Space::Param)] {
        if address.wrapping_sub(window) < SIZE {
            return (space, address - window);
        }
    }
    (Space::Global, address)
}

/// The address of a function, for calls through a register.
pub fn function_address(index: u32) -> u64 {
    FUNCTIONS + u64::from(index) * 16
}

/// The function at an address.
pub fn function_at(address: u64) -> Option<u32> {
    let offset = address.checked_sub(FUNCTIONS)?;
    (offset.is_multiple_of(16) && offset < SIZE).then_some((offset / 16) as u32)
}

/// The block's rank (`None`: the thread's own) and the offset of a shared address.
pub fn shared_place(address: u32) -> (Option<u32>, u32) {
    ((address >> 24).checked_sub(1), address & 0xff_ffff)
}

/// The address of `.shared::cluster` of a place in the block of that rank.
pub fn shared_address(rank: u32, offset: u32) -> u32 {
    (rank + 1) << 24 | offset & 0xff_ffff
}
