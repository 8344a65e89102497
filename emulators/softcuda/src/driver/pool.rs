//! Memory pools: bookkeeping over the one allocator.

use super::entry::{In, Out, Outcome, entry_points};
use super::error::Code;
use super::state::{Handle, Pool, State, state};

/// `CUmemPool_attribute`: 1 to 3 reuse (32 bits), 4 the release threshold, 5 and 6 reserved bytes now and at most, 7
/// and 8 used bytes now and at most (64 bits).
const REUSE: std::ops::RangeInclusive<u32> = 1..=3;
const RELEASE_THRESHOLD: u32 = 4;
const RESERVED: u32 = 5;
const RESERVED_HIGH: u32 = 6;
const USED: u32 = 7;
const USED_HIGH: u32 = 8;

/// The part of `CUmemPoolProps` that matters here: kinds of allocation and of handles, and the place.
#[derive(Clone, Copy)]
#[repr(C)]
struct Properties {
    allocation: u32,
    handles: u32,
    location: u32,
    id: i32,
}

impl State {
    fn new_pool(&mut self, ordinal: u32) -> Handle {
        let handle = self.handle();
        let attributes = REUSE.map(|attribute| (attribute, 1)).chain([(RELEASE_THRESHOLD, 0)]);
        self.pools.insert(handle, Pool { ordinal, attributes: attributes.collect(), used: 0, used_high: 0 });
        handle
    }

    /// The default pool of a device, and its current one.
    fn pools_of(&mut self, ordinal: u32) -> (Handle, Handle) {
        if let Some(&pools) = self.device_pools.get(&ordinal) {
            return pools;
        }
        let pool = self.new_pool(ordinal);
        self.device_pools.insert(ordinal, (pool, pool));
        (pool, pool)
    }

    /// The pool that allocations of a device come from.
    pub(super) fn current_pool(&mut self, ordinal: u32) -> Handle {
        self.pools_of(ordinal).1
    }

    fn pool(&mut self, pool: Handle) -> Outcome<&mut Pool> {
        self.check_initialised()?;
        self.pools.get_mut(&pool).ok_or(Code::INVALID_VALUE)
    }
}

impl Pool {
    fn attribute(&self, attribute: u32) -> u64 {
        self.attributes.get(&attribute).copied().unwrap_or(0)
    }
}

/// A place for an attribute: 32 bits for the reuse attributes, else 64.
fn narrow(value: Out<u64>) -> Out<u32> {
    value.cast()
}

entry_points! {
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: i32) {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        pool.put(state.pools_of(ordinal).0)
    }
    fn cuDeviceGetMemPool(pool: Out<Handle>, device: i32) {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        pool.put(state.pools_of(ordinal).1)
    }
    fn cuDeviceSetMemPool(device: i32, pool: Handle) {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        if state.pool(pool)?.ordinal != ordinal {
            return Err(Code::INVALID_VALUE);
        }
        let (default, _) = state.pools_of(ordinal);
        state.device_pools.insert(ordinal, (default, pool));
        Ok(())
    }
    fn cuMemPoolCreate(pool: Out<Handle>, properties: In<Properties>) {
        pool.check()?;
        let properties = properties.get()?;
        let mut state = state();
        state.check_initialised()?;
        // Pinned memory of a device, not for other processes.
        if properties.allocation != 1 || properties.location != 1 {
            return Err(Code::INVALID_VALUE);
        }
        if properties.handles != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let ordinal = state.ordinal(properties.id)?;
        let handle = state.new_pool(ordinal);
        pool.put(handle)
    }
    fn cuMemPoolDestroy(pool: Handle) {
        let mut state = state();
        let ordinal = state.pool(pool)?.ordinal;
        let (default, current) = state.pools_of(ordinal);
        if pool == default {
            return Err(Code::INVALID_VALUE);
        }
        if pool == current {
            state.device_pools.insert(ordinal, (default, default));
        }
        state.pools.remove(&pool);
        Ok(())
    }
    fn cuMemPoolTrimTo(pool: Handle, keep: usize) {
        let _ = keep;
        state().pool(pool).map(drop)
    }
    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: Out<u64>) {
        value.check()?;
        let mut state = state();
        let pool = state.pool(pool)?;
        match attribute {
            _ if REUSE.contains(&attribute) => narrow(value).put(pool.attribute(attribute) as u32),
            RELEASE_THRESHOLD => value.put(pool.attribute(attribute)),
            RESERVED | USED => value.put(pool.used),
            RESERVED_HIGH | USED_HIGH => value.put(pool.used_high),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: Out<u64>) {
        value.check()?;
        let mut state = state();
        let pool = state.pool(pool)?;
        match attribute {
            _ if REUSE.contains(&attribute) => {
                pool.attributes.insert(attribute, u64::from(narrow(value).get()?));
            }
            RELEASE_THRESHOLD => {
                pool.attributes.insert(attribute, value.get()?);
            }
            // A high-water mark can only be taken back.
            RESERVED_HIGH | USED_HIGH if value.get()? == 0 => pool.used_high = pool.used,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }
    fn cuMemPoolSetAccess(pool: Handle, places: In<u8>, count: usize) {
        state().pool(pool)?;
        if count > 0 && places.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }
}
