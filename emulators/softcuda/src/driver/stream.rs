//! Streams.

use super::entry::{In, Out, Outcome, entry_points, same_as};
use super::error::Code;
use super::state::{Handle, state};
use super::work::{NON_BLOCKING, node, submit, synchronise_stream};
use std::ffi::c_void;
use std::sync::Arc;

/// Priorities of streams: the least and the greatest.
pub(super) const PRIORITIES: (i32, i32) = (0, -5);

fn create(stream: Out<Handle>, flags: u32, priority: i32) -> Outcome {
    stream.check()?;
    let mut state = state();
    let context = state.current()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Code::INVALID_VALUE);
    }
    // A priority outside of the range is clamped to it.
    let handle = state.new_stream(context, flags, priority.clamp(PRIORITIES.1, PRIORITIES.0));
    stream.put(handle)
}

fn destroy(stream: Handle) -> Outcome {
    let mut state = state();
    state.check_initialised()?;
    if stream <= 2 {
        return Err(Code::INVALID_HANDLE);
    }
    let handle = state.stream_with_fault(stream)?;
    let entry = &state.streams[&handle];
    let context = entry.context;
    let implicit = state
        .contexts
        .get(&context)
        .is_some_and(|owner| owner.legacy == handle || owner.per_thread.values().any(|&own| own == handle));
    if implicit {
        return Err(Code::INVALID_HANDLE);
    }
    if let Some(capture) = entry.capture {
        state.invalidate(capture);
    }
    let idle = state.streams[&handle].is_idle();
    if idle {
        state.streams.remove(&handle);
    } else if let Some(entry) = state.streams.get_mut(&handle) {
        entry.destroyed = true;
    }
    state.check_fault(context)
}

/// A function of the host that a stream calls, and its argument.
#[derive(Clone, Copy)]
struct HostFunction {
    function: extern "C" fn(*mut c_void),
    argument: *mut c_void,
}

// SAFETY: the caller of `cuLaunchHostFunc` gives function and argument for use on a thread of the driver's choice.
unsafe impl Send for HostFunction {}
// SAFETY: as above; work is run by one thread at a time.
unsafe impl Sync for HostFunction {}

impl HostFunction {
    fn call(&self) {
        super::entry::host_function(|| (self.function)(self.argument));
    }
}

/// A callback of `cuStreamAddCallback`.
#[derive(Clone, Copy)]
struct Callback {
    function: extern "C" fn(Handle, i32, *mut c_void),
    stream: Handle,
    argument: *mut c_void,
}

// SAFETY: the caller of `cuStreamAddCallback` gives function and argument for use on a thread of the driver's choice.
unsafe impl Send for Callback {}
// SAFETY: as above; work is run by one thread at a time.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self) {
        super::entry::host_function(|| (self.function)(self.stream, 0, self.argument));
    }
}

entry_points! {
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags, 0)
    }
    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }
    fn cuStreamDestroy_v2(stream: Handle) {
        destroy(stream)
    }
    fn cuStreamSynchronize(stream: Handle) {
        let handle = state().stream(stream)?;
        synchronise_stream(handle)
    }
    fn cuStreamQuery(stream: Handle) {
        let handle = state().stream(stream)?;
        synchronise_stream(handle)
    }
    fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        let mut state = state();
        let handle = state.stream(stream)?;
        flags.put(state.streams[&handle].flags)
    }
    fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) {
        let mut state = state();
        let handle = state.stream(stream)?;
        priority.put(state.streams[&handle].priority)
    }
    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        let handle = state().stream(stream)?;
        id.put(handle)
    }
    fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) {
        let mut state = state();
        let handle = state.stream(stream)?;
        context.put(state.streams[&handle].context)
    }
    fn cuStreamGetDevice(stream: Handle, device: Out<i32>) {
        let mut state = state();
        let handle = state.stream(stream)?;
        let context = state.streams[&handle].context;
        device.put(state.context(context)?.ordinal as i32)
    }
    fn cuStreamAttachMemAsync(stream: Handle, address: u64, bytes: usize, flags: u32) {
        let mut state = state();
        state.stream(stream)?;
        let (_, allocation) = state.allocation(address).ok_or(Code::INVALID_VALUE)?;
        // 0 stands for the whole allocation.
        let fits = bytes == 0 || bytes as u64 == allocation.bytes;
        let managed = allocation.kind == super::state::Kind::Managed;
        if managed && fits && matches!(flags, 1 | 2 | 4) { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }
    fn cuLaunchHostFunc(stream: Handle, function: Option<extern "C" fn(*mut c_void)>, argument: *mut c_void) {
        let function = HostFunction { function: function.ok_or(Code::INVALID_VALUE)?, argument };
        let stream = state().stream(stream)?;
        submit(stream, node::HOST, Arc::new(move || { function.call(); Ok(()) }))?;
        Ok(())
    }
    fn cuStreamAddCallback(
        stream: Handle,
        function: Option<extern "C" fn(Handle, i32, *mut c_void)>,
        argument: *mut c_void,
        flags: u32,
    ) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let function = Callback { function: function.ok_or(Code::INVALID_VALUE)?, stream, argument };
        let handle = {
            let mut state = state();
            let handle = state.stream(stream)?;
            state.check_not_capturing(handle)?;
            handle
        };
        submit(handle, node::HOST, Arc::new(move || { function.call(); Ok(()) }))?;
        Ok(())
    }
    fn cuStreamCopyAttributes(destination: Handle, source: Handle) {
        let mut state = state();
        state.stream(destination)?;
        state.stream(source)?;
        Ok(())
    }
    fn cuStreamGetAttribute(stream: Handle, attribute: u32, value: Out<[u64; 8]>) {
        state().stream(stream)?;
        let _ = attribute;
        value.put([0; 8])
    }
    fn cuStreamSetAttribute(stream: Handle, attribute: u32, value: In<[u64; 8]>) {
        state().stream(stream)?;
        let _ = attribute;
        value.get().map(drop)
    }
}

same_as! {
    cuStreamDestroy = cuStreamDestroy_v2(stream: Handle);
}
