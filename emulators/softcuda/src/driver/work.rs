//! Streams' queues: how work is submitted, what orders it, and how it is run.
//!
//! Work runs one piece at a time, on the thread that submits it (eager) or on the one that synchronises (delayed). An
//! operation names what must be complete before it, so that running one stream's work runs what it needs of the others'
//! and nothing else.
//!
//! Functions of the caller's (`cuLaunchHostFunc`) run without any lock, and while other streams' work goes on: such a
//! function may wait for another thread, and that thread may call the driver.

use super::entry::Outcome;
use super::error::Code;
use super::state::{Clock, Handle, Node, Operation, State, Stream, state};
use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What an operation does. Graphs run theirs many times.
pub(super) type Work = Arc<dyn Fn() -> Outcome + Send + Sync>;

/// `CU_STREAM_NON_BLOCKING`.
pub(super) const NON_BLOCKING: u32 = 1;

/// Kinds of graph nodes (`CUgraphNodeType`).
pub(super) mod node {
    pub(crate) const KERNEL: u32 = 0;
    pub(crate) const COPY: u32 = 1;
    pub(crate) const SET: u32 = 2;
    pub(crate) const HOST: u32 = 3;
    pub(crate) const EMPTY: u32 = 5;
    pub(crate) const ALLOCATE: u32 = 10;
    pub(crate) const FREE: u32 = 11;
}

/// Submitted work: the stream and its position in it; `None` when it was captured instead.
pub(super) type Submitted = Option<(Handle, u64)>;

/// Submits work to a stream; in eager mode it has run when this returns. Its failure becomes the context's sticky
/// error.
pub(super) fn submit(stream: Handle, kind: u32, work: Work) -> Outcome<Submitted> {
    let (submitted, delayed) = {
        let mut state = state();
        let submitted = state.enqueue(stream, kind, Vec::new(), work)?;
        (submitted, state.settings.delay_streams)
    };
    if let (Some(target), false) = (submitted, delayed) {
        run_to(&[target]);
    }
    Ok(submitted)
}

/// Submits work and waits for it; then the context's sticky error, if it has one.
pub(super) fn submit_and_wait(stream: Handle, kind: u32, work: Work) -> Outcome {
    if let Some(target) = submit(stream, kind, work)? {
        run_to(&[target]);
        check_stream(target.0)?;
    }
    Ok(())
}

/// The sticky error of a stream's context.
pub(super) fn check_stream(stream: Handle) -> Outcome {
    let state = state();
    state.streams.get(&stream).map_or(Ok(()), |entry| state.check_fault(entry.context))
}

/// Waits for all work of a stream, and for the legacy stream for that of the blocking streams too.
pub(super) fn synchronise_stream(stream: Handle) -> Outcome {
    let targets = {
        let mut state = state();
        state.check_not_capturing(stream)?;
        let mut targets = vec![(stream, state.streams.get(&stream).map_or(0, |entry| entry.submitted))];
        targets.extend(state.ordered_before(stream));
        targets
    };
    run_to(&targets);
    check_stream(stream)
}

/// Waits for all work of a context. Delayed work of different streams runs youngest first: a missing dependency then
/// shows.
pub(super) fn synchronise_context(context: Handle) -> Outcome {
    run_to(&pending_of(context));
    state().check_fault(context)
}

/// The ends of a context's streams that have work waiting, the stream whose work was submitted last first.
fn pending_of(context: Handle) -> Vec<(Handle, u64)> {
    let state = state();
    let waiting = state.streams.iter().filter(|(_, stream)| stream.context == context && !stream.is_idle());
    let mut ends: Vec<_> = waiting
        .map(|(&handle, stream)| (stream.pending.back().map_or(0, |last| last.number), handle, stream.submitted))
        .collect();
    ends.sort_unstable_by_key(|end| std::cmp::Reverse(end.0));
    ends.into_iter().map(|(_, handle, submitted)| (handle, submitted)).collect()
}

thread_local! {
    /// Whether this thread is running work already.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// One piece of work at a time in the whole process, host functions apart.
static RUNNER: Mutex<()> = Mutex::new(());
/// A host function has returned.
static RETURNED: Condvar = Condvar::new();

fn runner() -> MutexGuard<'static, ()> {
    RUNNER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work until these positions are complete, and with it all that they depend on.
pub(super) fn run_to(targets: &[(Handle, u64)]) {
    if RUNNING.get() {
        return;
    }
    let mut turn = runner();
    RUNNING.set(true);
    let mut wanted: Vec<_> = targets.iter().rev().copied().collect();
    while let Some(&(stream, position)) = wanted.last() {
        match next_step(stream, position) {
            Step::Done => {
                wanted.pop();
            }
            Step::First(dependency) => wanted.push(dependency),
            // Another thread runs it.
            Step::Wait => turn = RETURNED.wait(turn).unwrap_or_else(PoisonError::into_inner),
            Step::Run(operation, true) if operation.is_host_function => {
                drop(turn);
                let outcome = guarded(&operation.work);
                turn = runner();
                complete(stream, outcome);
                RETURNED.notify_all();
            }
            Step::Run(operation, healthy) => {
                let outcome = if healthy { guarded(&operation.work) } else { Ok(()) };
                complete(stream, outcome);
            }
        }
    }
    RUNNING.set(false);
}

/// Runs a piece of work; a panic in it is a fault of softcuda, and must not leave the runner's lock in an odd state.
fn guarded(work: &Work) -> Outcome {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work())).unwrap_or_else(|_| {
        eprintln!("softcuda: work of a stream panicked; this is a fault of softcuda");
        Err(Code::UNKNOWN)
    })
}

/// What is to be done next for a position.
enum Step {
    Done,
    First((Handle, u64)),
    Wait,
    Run(Operation, bool),
}

fn next_step(stream: Handle, position: u64) -> Step {
    let mut state = state();
    let Some(entry) = state.streams.get(&stream) else { return Step::Done };
    if entry.completed >= position {
        return Step::Done;
    }
    if entry.in_host_function {
        return Step::Wait;
    }
    let Some(front) = entry.pending.front() else { return Step::Done };
    if let Some(dependency) = front.after.iter().find(|dependency| !state.is_complete(**dependency)) {
        return Step::First(*dependency);
    }
    let healthy = state.check_fault(entry.context).is_ok();
    let Some(entry) = state.streams.get_mut(&stream) else { return Step::Done };
    let Some(operation) = entry.pending.pop_front() else { return Step::Done };
    entry.in_host_function = operation.is_host_function;
    Step::Run(operation, healthy)
}

fn complete(stream: Handle, outcome: Outcome) {
    let mut state = state();
    let Some(entry) = state.streams.get_mut(&stream) else { return };
    entry.completed += 1;
    entry.in_host_function = false;
    let context = entry.context;
    if entry.destroyed && entry.is_idle() {
        state.streams.remove(&stream);
    }
    if let (Err(code), Some(context)) = (outcome, state.contexts.get_mut(&context)) {
        context.fault.get_or_insert(code);
    }
}

impl Stream {
    /// Whether it waits for the legacy stream and the legacy stream for it.
    fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    /// Whether all that was submitted is complete.
    pub(super) fn is_idle(&self) -> bool {
        self.completed == self.submitted
    }
}

impl State {
    /// Whether all operations of a stream up to a position are complete.
    pub(super) fn is_complete(&self, (stream, position): (Handle, u64)) -> bool {
        self.streams.get(&stream).is_none_or(|entry| entry.completed >= position)
    }

    /// What the next operation of a stream waits for by the legacy stream's rule.
    fn ordered_before(&self, stream: Handle) -> Vec<(Handle, u64)> {
        let Some(entry) = self.streams.get(&stream) else { return Vec::new() };
        let Some(context) = self.contexts.get(&entry.context) else { return Vec::new() };
        if stream == context.legacy {
            let others = self.streams.iter().filter(|(handle, other)| {
                **handle != stream && other.context == entry.context && other.is_blocking() && !other.is_idle()
            });
            return others.map(|(&handle, other)| (handle, other.submitted)).collect();
        }
        match self.streams.get(&context.legacy) {
            Some(legacy) if entry.is_blocking() => vec![(context.legacy, legacy.submitted)],
            _ => Vec::new(),
        }
    }

    /// Puts work in a stream's queue, or in the graph that is being captured from it.
    pub(super) fn enqueue(
        &mut self,
        stream: Handle,
        kind: u32,
        mut after: Vec<(Handle, u64)>,
        work: Work,
    ) -> Outcome<Submitted> {
        if let Some(capture) = self.streams.get(&stream).and_then(|entry| entry.capture) {
            self.record_node(capture, stream, kind, work)?;
            return Ok(None);
        }
        self.check_implicit(stream)?;
        after.extend(self.ordered_before(stream));
        self.submissions += 1;
        let number = self.submissions;
        let entry = self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?;
        after.retain(|dependency| dependency.0 != stream);
        entry.pending.push_back(Operation { after, work, is_host_function: kind == node::HOST, number });
        entry.submitted += 1;
        Ok(Some((stream, entry.submitted)))
    }

    /// Work in the legacy stream would have to wait for streams that are being captured: refused, and the captures are
    /// spoilt.
    fn check_implicit(&mut self, stream: Handle) -> Outcome {
        let Some(entry) = self.streams.get(&stream) else { return Ok(()) };
        let context = entry.context;
        if self.contexts.get(&context).is_none_or(|context| context.legacy != stream) {
            return Ok(());
        }
        let blocking = self.streams.values().filter(|other| other.context == context && other.is_blocking());
        let captures: Vec<_> = blocking.filter_map(|other| other.capture).collect();
        if captures.is_empty() {
            return Ok(());
        }
        for capture in captures {
            self.invalidate(capture);
        }
        Err(Code::STREAM_CAPTURE_IMPLICIT)
    }

    /// Spoils a capture.
    pub(super) fn invalidate(&mut self, capture: Handle) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.invalidated = true;
        }
    }

    /// A stream that is being captured cannot be waited for: refused, and the capture is spoilt.
    pub(super) fn check_not_capturing(&mut self, stream: Handle) -> Outcome {
        let Some(capture) = self.streams.get(&stream).and_then(|entry| entry.capture) else { return Ok(()) };
        self.invalidate(capture);
        Err(Code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Calls that may synchronise are refused while this thread's captures forbid them, or another's of global mode
    /// does.
    pub(super) fn check_capture_allows(&mut self) -> Outcome {
        let thread = std::thread::current().id();
        let own_mode = super::graph::thread_mode();
        let mut forbidden = false;
        for capture in self.captures.values_mut() {
            let own = capture.thread == thread && capture.mode != super::graph::RELAXED;
            let applies = match own_mode {
                super::graph::GLOBAL => own || capture.mode == super::graph::GLOBAL,
                super::graph::RELAXED => false,
                _ => own,
            };
            if applies {
                capture.invalidated = true;
                forbidden = true;
            }
        }
        if forbidden { Err(Code::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Adds a node to a capture.
    fn record_node(&mut self, capture: Handle, stream: Handle, kind: u32, work: Work) -> Outcome {
        let handle = self.handle();
        let capture = self.captures.get_mut(&capture).ok_or(Code::ILLEGAL_STATE)?;
        if capture.invalidated {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        capture.nodes.push(Node { kind, handle, work });
        let clock: &mut Clock = capture.clocks.entry(stream).or_default();
        *clock.entry(stream).or_default() += 1;
        Ok(())
    }
}
