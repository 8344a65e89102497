//! Events.

use super::entry::{Out, Outcome, entry_points, same_as};
use super::error::Code;
use super::state::{Event, Handle, Record, State, state};
use super::work::{node, run_to};
use std::sync::Arc;
use std::time::Instant;

/// `CU_EVENT_*` flags: blocking synchronisation, no timing, between processes.
const ALL_FLAGS: u32 = 0b111;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

impl State {
    fn event(&self, event: Handle) -> Outcome<&Event> {
        self.check_initialised()?;
        self.events.get(&event).ok_or(Code::INVALID_HANDLE)
    }

    /// Records an event in a stream; where it must run to, in eager mode.
    fn record(&mut self, event: Handle, stream: Handle) -> Outcome<Option<(Handle, u64)>> {
        let context = self.event(event)?.context;
        let stream = self.stream(stream)?;
        if self.streams[&stream].context != context {
            return Err(Code::INVALID_HANDLE);
        }
        if let Some(capture) = self.streams[&stream].capture {
            self.capture_record(event, capture, stream)?;
            return Ok(None);
        }
        let position = self.streams[&stream].submitted + 1;
        let reach = move || {
            let mut state = state();
            let record = state.events.get_mut(&event).and_then(|event| event.record.as_mut());
            // The event may have been recorded again since.
            if let Some(record) = record.filter(|record| record.stream == stream && record.position == position) {
                record.reached = Some(Instant::now());
            }
            Ok(())
        };
        let submitted = self.enqueue(stream, node::EMPTY, Vec::new(), Arc::new(reach))?;
        if let Some(event) = self.events.get_mut(&event) {
            event.record = Some(Record { stream, position, reached: None });
            event.captured = None;
        }
        Ok(submitted)
    }

    /// What to run so that an event is reached.
    fn target(&self, event: Handle) -> Outcome<Option<(Handle, u64)>> {
        let event = self.event(event)?;
        self.check_fault(event.context)?;
        if event.captured.is_some() {
            return Err(Code::CAPTURED_EVENT);
        }
        Ok(event.record.map(|record| (record.stream, record.position)))
    }

    /// Makes a stream wait for an event.
    fn wait(&mut self, stream: Handle, event: Handle) -> Outcome<Option<(Handle, u64)>> {
        let stream = self.stream(stream)?;
        let event = self.event(event)?;
        if let Some((capture, clock)) = event.captured.clone() {
            self.capture_wait(stream, capture, &clock)?;
            return Ok(None);
        }
        let Some(record) = event.record else { return Ok(None) };
        if let Some(capture) = self.streams[&stream].capture {
            self.invalidate(capture);
            return Err(Code::STREAM_CAPTURE_ISOLATION);
        }
        let after = vec![(record.stream, record.position)];
        self.enqueue(stream, node::EMPTY, after, Arc::new(|| Ok(())))
    }
}

/// Runs submitted work now, unless streams are delayed.
fn run_if_eager(submitted: Option<(Handle, u64)>) {
    let delayed = state().settings.delay_streams;
    if let (Some(target), false) = (submitted, delayed) {
        run_to(&[target]);
    }
}

/// Runs what an event waits for.
fn finish(event: Handle) -> Outcome {
    let target = state().target(event)?;
    if let Some(target) = target {
        run_to(&[target]);
    }
    let state = state();
    // The event may be gone when another thread destroyed it meanwhile.
    state.events.get(&event).map_or(Ok(()), |event| state.check_fault(event.context))
}

/// Milliseconds between two events.
fn elapsed(start: Handle, end: Handle) -> Outcome<f32> {
    let state = state();
    let (start, end) = (state.event(start)?, state.event(end)?);
    state.check_fault(start.context)?;
    if start.captured.is_some() || end.captured.is_some() {
        return Err(Code::CAPTURED_EVENT);
    }
    if (start.flags | end.flags) & DISABLE_TIMING != 0 || start.context != end.context {
        return Err(Code::INVALID_HANDLE);
    }
    let (Some(start), Some(end)) = (start.record, end.record) else { return Err(Code::INVALID_HANDLE) };
    let (Some(start), Some(end)) = (start.reached, end.reached) else { return Err(Code::NOT_READY) };
    let seconds = if end >= start { (end - start).as_secs_f64() } else { -(start - end).as_secs_f64() };
    Ok((seconds * 1e3) as f32)
}

entry_points! {
    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        event.check()?;
        let mut state = state();
        let context = state.current()?;
        if flags & !ALL_FLAGS != 0 || flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.handle();
        state.events.insert(handle, Event { context, flags, record: None, captured: None });
        event.put(handle)
    }
    fn cuEventRecord(event: Handle, stream: Handle) {
        let submitted = state().record(event, stream)?;
        run_if_eager(submitted);
        Ok(())
    }
    fn cuEventQuery(event: Handle) {
        finish(event)
    }
    fn cuEventSynchronize(event: Handle) {
        finish(event)
    }
    fn cuEventDestroy_v2(event: Handle) {
        let mut state = state();
        let context = state.event(event)?.context;
        state.events.remove(&event);
        state.check_fault(context)
    }
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        milliseconds.check()?;
        milliseconds.put(elapsed(start, end)?)
    }
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let submitted = state().wait(stream, event)?;
        run_if_eager(submitted);
        Ok(())
    }
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let submitted = state().record(event, stream)?;
        run_if_eager(submitted);
        Ok(())
    }
}

same_as! {
    cuEventDestroy = cuEventDestroy_v2(event: Handle);
    cuEventElapsedTime_v2 = cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle);
}
