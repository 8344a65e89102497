//! Device and managed memory: allocation, release, information.

use super::entry::{Out, Outcome, entry_points};
use super::error::Code;
use super::state::{Allocation, Handle, Kind, State, state};
use super::work::{node, submit, synchronise_context};
use std::sync::{Arc, PoisonError};

/// Rows of pitched memory begin at multiples of this, in bytes.
const PITCH: usize = 512;

/// A location of managed memory (`CUmemLocation`): its type and its number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Location {
    kind: u32,
    id: i32,
}

/// `CUmemLocationType`: a device, the host, a NUMA node, the calling thread's NUMA node.
const LOCATION_DEVICE: u32 = 1;
const LOCATION_LAST: u32 = 4;

impl Location {
    fn check(self, state: &State) -> Outcome {
        match self.kind {
            LOCATION_DEVICE => state.ordinal(self.id).map(drop),
            2..=LOCATION_LAST => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

impl State {
    /// Allocates device memory in a context. The bytes are uninitialised.
    pub(super) fn allocate(&mut self, context: Handle, bytes: u64, pool: Option<Handle>) -> Outcome<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let ordinal = self.context(context)?.ordinal;
        let used = self.used_bytes(ordinal);
        if used.saturating_add(bytes) > self.settings.memory_bytes {
            return Err(Code::OUT_OF_MEMORY);
        }
        let machine = self.machine();
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        let base = machine.memory.allocate(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        self.enter(base, bytes, context, Kind::Device, pool)?;
        self.peak_bytes = self.peak_bytes.max(self.all_used_bytes());
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.used += bytes;
            pool.used_high = pool.used_high.max(pool.used);
        }
        Ok(base)
    }

    /// Writes an allocation into the table.
    pub(super) fn enter(
        &mut self,
        base: u64,
        bytes: u64,
        context: Handle,
        kind: Kind,
        pool: Option<Handle>,
    ) -> Outcome {
        let ordinal = self.context(context)?.ordinal;
        let id = self.handle();
        self.allocations.insert(base, Allocation { bytes, context, ordinal, kind, pool, freeing: false, id });
        Ok(())
    }

    /// Gives an allocation back, whatever its kind.
    pub(super) fn release(&mut self, base: u64) {
        let Some(allocation) = self.allocations.remove(&base) else { return };
        let machine = self.machine();
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        let _ = machine.memory.free(base);
        if let Some(pool) = allocation.pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.used -= allocation.bytes.min(pool.used);
        }
        if matches!(allocation.kind, Kind::Host(_) | Kind::Managed) {
            super::host_memory::give_back(base, allocation.bytes);
        }
    }

    /// An allocation of device or managed memory that begins at an address and is not being freed.
    fn freeable(&self, base: u64) -> Outcome<Allocation> {
        let allocation = self.allocations.get(&base).copied().ok_or(Code::INVALID_VALUE)?;
        let freeable = matches!(allocation.kind, Kind::Device | Kind::Managed) && !allocation.freeing;
        if freeable { Ok(allocation) } else { Err(Code::INVALID_VALUE) }
    }

    /// A managed allocation that holds a range.
    fn managed(&self, address: u64, bytes: usize) -> Outcome {
        let (base, allocation) = self.allocation(address).ok_or(Code::INVALID_VALUE)?;
        let inside = bytes > 0 && (bytes as u64) <= allocation.bytes - (address - base);
        if inside && allocation.kind == Kind::Managed { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }
}

/// Frees memory after all work of its context.
fn free(base: u64) -> Outcome {
    let context = {
        let mut state = state();
        state.current_with_fault()?;
        if base == 0 {
            return Ok(());
        }
        state.check_capture_allows()?;
        state.freeable(base)?.context
    };
    let outcome = synchronise_context(context);
    state().release(base);
    outcome
}

/// Allocates in a stream's order. The memory is there at once; a capture gives it to the graph.
pub(super) fn allocate_in_stream(address: Out<u64>, bytes: usize, stream: Handle, pool: Option<Handle>) -> Outcome {
    address.check()?;
    let (handle, base) = {
        let mut state = state();
        let handle = state.stream(stream)?;
        let context = state.streams[&handle].context;
        let ordinal = state.context(context)?.ordinal;
        let pool = pool.unwrap_or_else(|| state.current_pool(ordinal));
        if state.pools.get(&pool).is_none_or(|pool| pool.ordinal != ordinal) {
            return Err(Code::INVALID_VALUE);
        }
        let base = match state.allocate(context, bytes as u64, Some(pool)) {
            Err(Code::OUT_OF_MEMORY) => None,
            other => Some(other?),
        };
        let capture = state.streams[&handle].capture;
        let capture = capture.and_then(|capture| state.captures.get_mut(&capture));
        if let (Some(base), Some(capture)) = (base, capture) {
            capture.owned.push(base);
        }
        (handle, base.ok_or((context, pool)))
    };
    let base = match base {
        Ok(base) => base,
        Err((context, pool)) => {
            // Frees may be waiting in the streams.
            synchronise_context(context)?;
            state().allocate(context, bytes as u64, Some(pool))?
        }
    };
    submit(handle, node::ALLOCATE, Arc::new(|| Ok(())))?;
    address.put(base)
}

fn free_in_stream(base: u64, stream: Handle) -> Outcome {
    let handle = {
        let mut state = state();
        let handle = state.stream_with_fault(stream)?;
        let context = state.streams[&handle].context;
        state.freeable(base)?;
        if let Some(capture) = state.streams[&handle].capture {
            // What a graph allocated goes with the graph.
            let owned = state.captures.get(&capture).is_some_and(|capture| capture.owned.contains(&base));
            if !owned {
                return Err(Code::INVALID_VALUE);
            }
        } else if let Err(code) = state.check_fault(context) {
            state.release(base);
            return Err(code);
        } else if let Some(allocation) = state.allocations.get_mut(&base) {
            allocation.freeing = true;
        }
        handle
    };
    let capturing = state().streams.get(&handle).is_some_and(|stream| stream.capture.is_some());
    let release = move || {
        if !capturing {
            state().release(base);
        }
        Ok(())
    };
    submit(handle, node::FREE, Arc::new(release)).map(drop)
}

entry_points! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let state = state();
        let context = state.current()?;
        let ordinal = state.context(context)?.ordinal;
        let all = state.settings.memory_bytes;
        free.put(all.saturating_sub(state.used_bytes(ordinal)) as usize)?;
        total.put(all as usize)
    }
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        address.check()?;
        let mut state = state();
        let context = state.current()?;
        state.check_capture_allows()?;
        address.put(state.allocate(context, bytes as u64, None)?)
    }
    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        address.check()?;
        pitch.check()?;
        let mut state = state();
        let context = state.current()?;
        state.check_capture_allows()?;
        if !matches!(element, 4 | 8 | 16) {
            return Err(Code::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(Code::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(Code::OUT_OF_MEMORY)?;
        address.put(state.allocate(context, bytes as u64, None)?)?;
        pitch.put(row)
    }
    fn cuMemFree_v2(address: u64) {
        free(address)
    }
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Handle) {
        allocate_in_stream(address, bytes, stream, None)
    }
    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: Handle, stream: Handle) {
        allocate_in_stream(address, bytes, stream, Some(pool))
    }
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        free_in_stream(address, stream)
    }
    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let state = state();
        state.current()?;
        let (start, allocation) = state.allocation(address).ok_or(Code::NOT_FOUND)?;
        base.put_if_wanted(start);
        bytes.put_if_wanted(allocation.bytes as usize);
        Ok(())
    }
    fn cuMemAdvise_v2(address: u64, bytes: usize, advice: u32, location: Location) {
        let state = state();
        state.check_initialised()?;
        state.managed(address, bytes)?;
        match advice {
            // Read-mostly says nothing of a place; nor does taking back a preferred location.
            1 | 2 | 4 => Ok(()),
            3 | 5 | 6 => location.check(&state),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemAdvise(address: u64, bytes: usize, advice: u32, device: i32) {
        let state = state();
        state.check_initialised()?;
        state.managed(address, bytes)?;
        let place = device == -1 || state.ordinal(device).is_ok();
        match advice {
            1 | 2 | 4 => Ok(()),
            3 | 5 | 6 if place => Ok(()),
            3 | 5 | 6 => Err(Code::INVALID_DEVICE),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemPrefetchAsync_v2(address: u64, bytes: usize, location: Location, flags: u32, stream: Handle) {
        let handle = {
            let mut state = state();
            let handle = state.stream(stream)?;
            state.managed(address, bytes)?;
            location.check(&state)?;
            handle
        };
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        submit(handle, node::EMPTY, Arc::new(|| Ok(()))).map(drop)
    }
    fn cuMemPrefetchAsync(address: u64, bytes: usize, device: i32, stream: Handle) {
        let handle = {
            let mut state = state();
            let handle = state.stream(stream)?;
            state.managed(address, bytes)?;
            if device != -1 {
                state.ordinal(device)?;
            }
            handle
        };
        submit(handle, node::EMPTY, Arc::new(|| Ok(()))).map(drop)
    }
}
