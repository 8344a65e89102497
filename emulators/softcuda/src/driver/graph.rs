//! Capture of streams into graphs, and graphs.
//!
//! A captured operation is kept as the closure that would have run. The order of capture respects every dependency, so
//! a graph runs its nodes in that order. Which stream has seen what is kept as a clock for each stream, so that a
//! stream that was forked off and never joined again is noticed.

use super::entry::{In, Out, Outcome, entry_points, same_as};
use super::error::Code;
use super::state::{Capture, Clock, Event, Graph, Handle, State, state};
use super::work::{node, run_to};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// `CUstreamCaptureMode`: which threads are kept from calls that might synchronise.
pub(super) const GLOBAL: u32 = 0;
/// No thread is.
pub(super) const RELAXED: u32 = 2;

/// `CUstreamCaptureStatus`.
const NOT_CAPTURING: u32 = 0;
const CAPTURING: u32 = 1;
const INVALIDATED: u32 = 2;

/// `CUgraphInstantiate_flags`: free at launch, upload, for launch by a device, by the nodes' priority.
const INSTANTIATE_FLAGS: u64 = 0b1111;
const AUTO_FREE_ON_LAUNCH: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;

thread_local! {
    /// This thread's own mode (`cuThreadExchangeStreamCaptureMode`).
    static THREAD_MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// This thread's own capture mode.
pub(super) fn thread_mode() -> u32 {
    THREAD_MODE.get()
}

impl State {
    /// Starts a capture at a stream.
    fn begin_capture(&mut self, stream: Handle, mode: u32) -> Outcome {
        if mode > RELAXED {
            return Err(Code::INVALID_VALUE);
        }
        let stream = self.stream(stream)?;
        let entry = &self.streams[&stream];
        if self.contexts.get(&entry.context).is_some_and(|context| context.legacy == stream) {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if entry.capture.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        let handle = self.handle();
        let capture = Capture {
            origin: stream,
            mode,
            thread: std::thread::current().id(),
            invalidated: false,
            nodes: Vec::new(),
            clocks: HashMap::from([(stream, Clock::new())]),
            owned: Vec::new(),
        };
        self.captures.insert(handle, capture);
        self.set_capture(stream, Some(handle));
        Ok(())
    }

    fn set_capture(&mut self, stream: Handle, capture: Option<Handle>) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.capture = capture;
        }
    }

    /// Ends a capture; every stream of it is free again, whether it ends well or not.
    fn end_capture(&mut self, stream: Handle) -> Outcome<Handle> {
        let stream = self.stream(stream)?;
        let handle = self.streams[&stream].capture.ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.get(&handle).ok_or(Code::ILLEGAL_STATE)?;
        if capture.origin != stream {
            self.invalidate(handle);
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        let Some(capture) = self.captures.remove(&handle) else { return Err(Code::ILLEGAL_STATE) };
        for &member in capture.clocks.keys() {
            self.set_capture(member, None);
        }
        if capture.invalidated {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let seen = &capture.clocks[&stream];
        let joined = capture.clocks.iter().all(|(member, clock)| {
            let own = clock.get(member).copied().unwrap_or(0);
            *member == stream || seen.get(member).copied().unwrap_or(0) >= own
        });
        if !joined {
            return Err(Code::STREAM_CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, Graph { nodes: capture.nodes, owned: capture.owned, flags: 0 });
        Ok(graph)
    }

    /// Records an event in a stream that is being captured.
    pub(super) fn capture_record(&mut self, event: Handle, capture: Handle, stream: Handle) -> Outcome {
        let clock = self.captures.get(&capture).and_then(|capture| capture.clocks.get(&stream)).cloned();
        let event: &mut Event = self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        event.record = None;
        event.captured = Some((capture, clock.unwrap_or_default()));
        Ok(())
    }

    /// Makes a stream wait for an event of a capture: the stream joins the capture.
    pub(super) fn capture_wait(&mut self, stream: Handle, capture: Handle, clock: &Clock) -> Outcome {
        if !self.captures.contains_key(&capture) {
            return Err(Code::STREAM_CAPTURE_ISOLATION);
        }
        let entry = self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?;
        if self.contexts.get(&entry.context).is_some_and(|context| context.legacy == stream) {
            self.invalidate(capture);
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        if let Some(other) = entry.capture.filter(|&other| other != capture) {
            self.invalidate(capture);
            self.invalidate(other);
            return Err(Code::STREAM_CAPTURE_MERGE);
        }
        self.set_capture(stream, Some(capture));
        if let Some(capture) = self.captures.get_mut(&capture) {
            let own = capture.clocks.entry(stream).or_default();
            for (&member, &count) in clock {
                let known = own.entry(member).or_default();
                *known = count.max(*known);
            }
        }
        Ok(())
    }

    fn capture_status(&self, stream: Handle) -> u32 {
        let capture = self.streams.get(&stream).and_then(|entry| entry.capture);
        match capture.and_then(|capture| self.captures.get(&capture)) {
            None => NOT_CAPTURING,
            Some(capture) if capture.invalidated => INVALIDATED,
            Some(_) => CAPTURING,
        }
    }

    /// A graph that may be launched.
    fn instantiate(&mut self, graph: Handle, flags: u64) -> Outcome<Handle> {
        let invalid = flags & !INSTANTIATE_FLAGS != 0 || flags & (AUTO_FREE_ON_LAUNCH | DEVICE_LAUNCH) == 5;
        if invalid {
            return Err(Code::INVALID_VALUE);
        }
        let nodes = self.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?.nodes.clone();
        let handle = self.handle();
        // The graph owns the memory that was allocated in its capture.
        self.executables.insert(handle, Graph { nodes, owned: Vec::new(), flags });
        Ok(handle)
    }
}

fn launch(executable: Handle, stream: Handle) -> Outcome {
    let (end, delayed) = {
        let mut state = state();
        let stream = state.stream(stream)?;
        let nodes = state.executables.get(&executable).ok_or(Code::INVALID_VALUE)?.nodes.clone();
        let mut end = None;
        if nodes.is_empty() || state.streams[&stream].capture.is_some() {
            // One node of another graph.
            let run_all = move || nodes.iter().try_for_each(|node| (node.work)());
            end = state.enqueue(stream, node::EMPTY, Vec::new(), Arc::new(run_all))?;
        } else {
            // Apart from one another, because host functions run apart from other work; and with the tables locked, so
            // that nobody's work comes between.
            for node in nodes {
                end = state.enqueue(stream, node.kind, Vec::new(), node.work)?;
            }
        }
        (end, state.settings.delay_streams)
    };
    if let (Some(end), false) = (end, delayed) {
        run_to(&[end]);
    }
    Ok(())
}

fn destroy(graph: Handle) -> Outcome {
    let mut state = state();
    state.check_initialised()?;
    let graph = state.graphs.remove(&graph).ok_or(Code::INVALID_VALUE)?;
    for address in graph.owned {
        state.release(address);
    }
    Ok(())
}

/// What `cuStreamGetCaptureInfo` tells in all its versions: status and an id.
fn capture_info(stream: Handle, status: Out<u32>, id: Out<u64>) -> Outcome {
    let mut state = state();
    let stream = state.stream(stream)?;
    status.put(state.capture_status(stream))?;
    id.put_if_wanted(state.streams[&stream].capture.unwrap_or(0));
    Ok(())
}

entry_points! {
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) {
        state().begin_capture(stream, mode)
    }
    fn cuStreamBeginCapture(stream: Handle) {
        state().begin_capture(stream, GLOBAL)
    }
    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        graph.put(0)?;
        let captured = state().end_capture(stream)?;
        graph.put(captured)
    }
    fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) {
        let mut state = state();
        let stream = state.stream(stream)?;
        status.put(state.capture_status(stream))
    }
    fn cuStreamGetCaptureInfo(stream: Handle, status: Out<u32>, id: Out<u64>) {
        capture_info(stream, status, id)
    }
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let wanted = mode.get()?;
        if wanted > RELAXED {
            return Err(Code::INVALID_VALUE);
        }
        mode.put(THREAD_MODE.replace(wanted))
    }
    fn cuGraphCreate(graph: Out<Handle>, flags: u32) {
        graph.check()?;
        let mut state = state();
        state.current()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.handle();
        state.graphs.insert(handle, Graph::default());
        graph.put(handle)
    }
    fn cuGraphClone(clone: Out<Handle>, original: Handle) {
        clone.check()?;
        let mut state = state();
        let nodes = state.graphs.get(&original).ok_or(Code::INVALID_VALUE)?.nodes.clone();
        let handle = state.handle();
        state.graphs.insert(handle, Graph { nodes, ..Graph::default() });
        clone.put(handle)
    }
    fn cuGraphDestroy(graph: Handle) {
        destroy(graph)
    }
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let state = state();
        let graph = state.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?;
        let room = count.get()?;
        if nodes.is_null() {
            return count.put(graph.nodes.len());
        }
        for (index, node) in graph.nodes.iter().take(room).enumerate() {
            nodes.put_at(index, node.handle)?;
        }
        for index in graph.nodes.len()..room.min(1 << 16) {
            nodes.put_at(index, 0)?;
        }
        count.put(room.min(graph.nodes.len()))
    }
    fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) {
        let state = state();
        let found = state.graphs.values().flat_map(|graph| &graph.nodes).find(|entry| entry.handle == node);
        kind.put(found.ok_or(Code::INVALID_VALUE)?.kind)
    }
    fn cuGraphInstantiateWithFlags(executable: Out<Handle>, graph: Handle, flags: u64) {
        executable.check()?;
        let handle = state().instantiate(graph, flags)?;
        executable.put(handle)
    }
    fn cuGraphInstantiate_v2(executable: Out<Handle>, graph: Handle, error: Out<Handle>, log: Out<u8>, room: usize) {
        executable.check()?;
        let handle = state().instantiate(graph, 0)?;
        error.put_if_wanted(0);
        if room > 0 {
            log.put_if_wanted(0);
        }
        executable.put(handle)
    }
    fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) {
        flags.put(state().executables.get(&executable).ok_or(Code::INVALID_VALUE)?.flags)
    }
    fn cuGraphExecDestroy(executable: Handle) {
        let mut state = state();
        state.check_initialised()?;
        state.executables.remove(&executable).map(drop).ok_or(Code::INVALID_VALUE)
    }
    fn cuGraphUpload(executable: Handle, stream: Handle) {
        let mut state = state();
        state.stream(stream)?;
        if state.executables.contains_key(&executable) { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }
    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        launch(executable, stream)
    }
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, nodes: Out<In<Handle>>, count: Out<usize>,
    ) {
        capture_info(stream, status, id)?;
        graph.put_if_wanted(0);
        let _ = nodes;
        count.put_if_wanted(0);
        Ok(())
    }
}

same_as! {
    cuGraphInstantiate = cuGraphInstantiate_v2(
        executable: Out<Handle>, graph: Handle, error: Out<Handle>, log: Out<u8>, room: usize
    );
}
