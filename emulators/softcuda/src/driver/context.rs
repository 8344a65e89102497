//! Initialisation and contexts.

use super::entry::{In, Out, Outcome, entry_points, same_as};
use super::error::Code;
use super::state::{Handle, Primary, State, state, with_current};
use super::stream::PRIORITIES;
use super::work::synchronise_context;

/// The API version that the driver reports: 13.0.
pub(super) const VERSION: i32 = 13000;

/// `CU_CTX_*` flags that exist.
const ALL_FLAGS: u32 = 0xff;
/// Scheduling flags: automatic, spin, yield, block; at most one of them.
const SCHEDULING: u32 = 7;

/// Limits that can be asked for and set, and their first values (`CUlimit`).
const LIMITS: &[(u32, usize)] = &[
    (0, 1024),      // stack of a thread
    (1, 7_340_032), // buffer of printf
    (2, 8_388_608), // heap of malloc
    (4, 2048),      // launches that a device may have pending
    (5, 128),       // fetch of the L2 cache
    (6, 0),         // persisting L2 cache
];

fn check_flags(flags: u32) -> Outcome {
    let scheduling = flags & SCHEDULING;
    let one = scheduling == 0 || scheduling.is_power_of_two();
    if flags & !ALL_FLAGS == 0 && one { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

impl State {
    fn primary(&mut self, ordinal: u32) -> &mut Primary {
        if !self.primaries.contains_key(&ordinal) {
            let handle = self.handle();
            self.primaries.insert(ordinal, Primary { handle, ..Primary::default() });
        }
        self.primaries.entry(ordinal).or_default()
    }

    fn retain_primary(&mut self, device: i32) -> Outcome<Handle> {
        let ordinal = self.ordinal(device)?;
        let primary = self.primary(ordinal);
        primary.retained += 1;
        let Primary { handle, flags, .. } = *primary;
        if !self.contexts.contains_key(&handle) {
            self.new_context(handle, ordinal, flags);
        }
        Ok(handle)
    }

    /// Counts a release; the context to destroy if it was the last.
    fn release_primary(&mut self, device: i32) -> Outcome<Option<Handle>> {
        let ordinal = self.ordinal(device)?;
        let primary = self.primary(ordinal);
        if primary.retained == 0 {
            return Err(Code::INVALID_CONTEXT);
        }
        primary.retained -= 1;
        Ok((primary.retained == 0).then_some(primary.handle))
    }

    /// Takes a context and all that belongs to it out of the tables.
    fn remove_context(&mut self, context: Handle) {
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.functions.retain(|_, function| function.context != context);
        let modules: Vec<_> =
            self.modules.iter().filter(|(_, entry)| entry.context == context).map(|(&key, _)| key).collect();
        for module in modules {
            self.unload(module);
        }
        let modules = &self.modules;
        self.libraries.retain(|_, library| modules.contains_key(&library.module));
        let owned: Vec<_> =
            self.allocations.iter().filter(|(_, entry)| entry.context == context).map(|(&base, _)| base).collect();
        for base in owned {
            self.release(base);
        }
        let streams = &self.streams;
        self.captures.retain(|_, capture| streams.contains_key(&capture.origin));
    }
}

/// Finishes a context's work and destroys it.
fn destroy(context: Handle) {
    // Its sticky error is no matter any more.
    let _ = synchronise_context(context);
    state().remove_context(context);
}

fn create(context: Out<Handle>, flags: u32, device: i32) -> Outcome {
    context.check()?;
    let handle = {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        check_flags(flags)?;
        let handle = state.handle();
        state.new_context(handle, ordinal, flags);
        handle
    };
    with_current(|stack| stack.push(handle));
    context.put(handle)
}

fn reset_primary(device: i32) -> Outcome {
    let handle = {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        state.primary(ordinal).handle
    };
    let retained = {
        let state = state();
        state.contexts.get(&handle).map(|context| (context.ordinal, context.flags))
    };
    if let Some((ordinal, flags)) = retained {
        destroy(handle);
        let mut state = state();
        // Those who retained it go on with an empty one.
        if state.primary(ordinal).retained > 0 {
            state.new_context(handle, ordinal, flags);
        }
    }
    Ok(())
}

fn peer(context: Handle, flags: u32) -> Outcome {
    let state = state();
    let own = state.current()?;
    let other = state.context(context)?.ordinal;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if other == state.context(own)?.ordinal { Err(Code::INVALID_DEVICE) } else { Ok(()) }
}

entry_points! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = state();
        state.initialised = true;
        if state.settings.devices == 0 { Err(Code::NO_DEVICE) } else { Ok(()) }
    }
    fn cuDriverGetVersion(version: Out<i32>) {
        let (major, minor) = state().settings.driver_version;
        version.put((1000 * major + 10 * minor) as i32)
    }
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) {
        context.check()?;
        let handle = state().retain_primary(device)?;
        context.put(handle)
    }
    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        let last = state().release_primary(device)?;
        if let Some(context) = last {
            // Its sticky error is no matter any more.
            let _ = synchronise_context(context);
            // Not if another thread has retained it meanwhile: what it was given must stay.
            let mut state = state();
            let ordinal = state.ordinal(device)?;
            if state.primary(ordinal).retained == 0 {
                state.remove_context(context);
            }
        }
        Ok(())
    }
    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        reset_primary(device)
    }
    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        check_flags(flags)?;
        state.primary(ordinal).flags = flags;
        Ok(())
    }
    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let mut state = state();
        let ordinal = state.ordinal(device)?;
        let primary = *state.primary(ordinal);
        flags.put(primary.flags)?;
        active.put(i32::from(state.contexts.contains_key(&primary.handle)))
    }
    fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32) {
        create(context, flags, device)
    }
    fn cuCtxCreate_v3(context: Out<Handle>, affinity: In<u8>, count: i32, flags: u32, device: i32) {
        if !affinity.is_null() || count != 0 {
            return Err(Code::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(context, flags, device)
    }
    fn cuCtxCreate_v4(context: Out<Handle>, parameters: In<u8>, flags: u32, device: i32) {
        if !parameters.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }
    fn cuCtxDestroy_v2(context: Handle) {
        {
            let state = state();
            state.check_initialised()?;
            state.context(context)?;
            if state.primaries.values().any(|primary| primary.handle == context) {
                return Err(Code::INVALID_CONTEXT);
            }
        }
        destroy(context);
        with_current(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        Ok(())
    }
    fn cuCtxPushCurrent_v2(context: Handle) {
        let state = state();
        state.check_initialised()?;
        state.context(context)?;
        with_current(|stack| stack.push(context));
        Ok(())
    }
    fn cuCtxPopCurrent_v2(context: Out<Handle>) {
        state().check_initialised()?;
        let popped = with_current(Vec::pop).ok_or(Code::INVALID_CONTEXT)?;
        context.put_if_wanted(popped);
        Ok(())
    }
    fn cuCtxSetCurrent(context: Handle) {
        let state = state();
        state.check_initialised()?;
        if context != 0 {
            state.context(context)?;
        }
        with_current(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }
    fn cuCtxGetCurrent(context: Out<Handle>) {
        state().check_initialised()?;
        context.put(with_current(|stack| stack.last().copied().unwrap_or(0)))
    }
    fn cuCtxGetDevice(device: Out<i32>) {
        let state = state();
        let context = state.current_with_fault()?;
        device.put(state.context(context)?.ordinal as i32)
    }
    fn cuCtxGetFlags(flags: Out<u32>) {
        let state = state();
        let context = state.current()?;
        flags.put(state.context(context)?.flags)
    }
    fn cuCtxSetFlags(flags: u32) {
        let mut state = state();
        let handle = state.current()?;
        check_flags(flags)?;
        if let Some(context) = state.contexts.get_mut(&handle) {
            context.flags = flags;
        }
        Ok(())
    }
    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        let state = state();
        let context = if context == 0 { state.current()? } else { context };
        state.context(context)?;
        id.put(context)
    }
    fn cuCtxSynchronize() {
        let context = {
            let mut state = state();
            let context = state.current()?;
            let mut streams = state.streams.values().filter(|stream| stream.context == context);
            let capturing = streams.find_map(|stream| stream.capture);
            if let Some(capture) = capturing {
                state.invalidate(capture);
                return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
            }
            context
        };
        synchronise_context(context)
    }
    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let state = state();
        let context = state.current()?;
        let first = LIMITS.iter().find(|entry| entry.0 == limit).ok_or(Code::UNSUPPORTED_LIMIT)?.1;
        value.put(state.context(context)?.limits.get(&limit).copied().unwrap_or(first))
    }
    fn cuCtxSetLimit(limit: u32, value: usize) {
        let mut state = state();
        let handle = state.current()?;
        if !LIMITS.iter().any(|entry| entry.0 == limit) {
            return Err(Code::UNSUPPORTED_LIMIT);
        }
        if let Some(context) = state.contexts.get_mut(&handle) {
            context.limits.insert(limit, value);
        }
        Ok(())
    }
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        let state = state();
        let context = state.current()?;
        config.put(state.context(context)?.cache_config)
    }
    fn cuCtxSetCacheConfig(config: u32) {
        let mut state = state();
        let handle = state.current()?;
        if config > 3 {
            return Err(Code::INVALID_VALUE);
        }
        if let Some(context) = state.contexts.get_mut(&handle) {
            context.cache_config = config;
        }
        Ok(())
    }
    fn cuCtxGetSharedMemConfig(config: Out<u32>) {
        let state = state();
        let context = state.current()?;
        config.put(state.context(context)?.shared_config)
    }
    fn cuCtxSetSharedMemConfig(config: u32) {
        let mut state = state();
        let handle = state.current()?;
        if config > 2 {
            return Err(Code::INVALID_VALUE);
        }
        if let Some(context) = state.contexts.get_mut(&handle) {
            context.shared_config = config;
        }
        Ok(())
    }
    fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        let state = state();
        let context = if context == 0 { state.current()? } else { context };
        state.context(context)?;
        version.put(VERSION as u32)
    }
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        state().current()?;
        least.put_if_wanted(PRIORITIES.0);
        greatest.put_if_wanted(PRIORITIES.1);
        Ok(())
    }
    fn cuCtxResetPersistingL2Cache() {
        state().current().map(drop)
    }
    fn cuCtxEnablePeerAccess(context: Handle, flags: u32) {
        peer(context, flags)
    }
    fn cuCtxDisablePeerAccess(context: Handle) {
        peer(context, 0)
    }
    fn cuProfilerStart() {
        state().current().map(drop)
    }
    fn cuProfilerStop() {
        state().current().map(drop)
    }
}

same_as! {
    cuCtxCreate = cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32);
    cuCtxDestroy = cuCtxDestroy_v2(context: Handle);
    cuCtxPushCurrent = cuCtxPushCurrent_v2(context: Handle);
    cuCtxPopCurrent = cuCtxPopCurrent_v2(context: Out<Handle>);
    cuDevicePrimaryCtxRelease = cuDevicePrimaryCtxRelease_v2(device: i32);
    cuDevicePrimaryCtxReset = cuDevicePrimaryCtxReset_v2(device: i32);
    cuDevicePrimaryCtxSetFlags = cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32);
}
