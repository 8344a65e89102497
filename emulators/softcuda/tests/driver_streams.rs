//! Streams, events and graphs; and the mode that delays work until something orders it.

mod driver_support;

use cudarc::driver::sys::{
    self, CUevent_flags, CUgraphInstantiate_flags, CUresult::*, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, result};
use driver_support::{alone, assert_error};
use softcuda::Settings;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn delayed() -> Settings {
    Settings { delay_streams: true, ..Settings::default() }
}

/// A context in which cudarc orders nothing by itself, so that the test says what is ordered.
fn unordered() -> Arc<CudaContext> {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests below keep their memory until the streams are done.
    unsafe { context.disable_event_tracking() };
    context
}

const TIMED: CUevent_flags = CUevent_flags::CU_EVENT_DEFAULT;

#[test]
fn events_measure_time_forward() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let start = stream.record_event(Some(TIMED)).unwrap();
    let _data = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    let end = stream.record_event(Some(TIMED)).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    assert!(end.is_complete());
}

#[test]
fn only_recorded_and_timed_events_measure() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let recorded = stream.record_event(Some(TIMED)).unwrap();
    let never = context.new_event(Some(TIMED)).unwrap();
    let untimed = stream.record_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING)).unwrap();
    let elapsed = |from: &cudarc::driver::CudaEvent, to: &cudarc::driver::CudaEvent| {
        let mut milliseconds = 0.0;
        // SAFETY: live events and a place for the result.
        unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, from.cu_event(), to.cu_event()) }
    };
    assert_eq!(elapsed(&recorded, &never), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(elapsed(&never, &recorded), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(elapsed(&recorded, &untimed), CUDA_ERROR_INVALID_HANDLE);
    assert!(never.is_complete());
}

#[test]
fn a_delayed_event_is_not_ready_to_measure() {
    let _alone = alone(&delayed());
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let start = stream.record_event(Some(TIMED)).unwrap();
    let end = stream.record_event(Some(TIMED)).unwrap();
    let mut milliseconds = 0.0;
    // SAFETY: live events and a place for the result.
    let early = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, start.cu_event(), end.cu_event()) };
    assert_eq!(early, CUDA_ERROR_NOT_READY);
    end.synchronize().unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
}

/// Fills pinned memory from the device, and reads it with or without waiting.
fn read_back(synchronise: bool) -> Vec<u32> {
    let context = unordered();
    let stream = context.new_stream().unwrap();
    let device = stream.clone_htod(&[5u32; 100]).unwrap();
    // SAFETY: zero at first, by the driver.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(100).unwrap() };
    let pointer = pinned.as_mut_ptr().unwrap();
    let (address, _guard) = device.device_ptr(&stream);
    // SAFETY: 400 bytes each; the memory lives until the stream is done.
    let seen = unsafe {
        sys::cuMemcpyDtoHAsync_v2(pointer.cast(), address, 400, stream.cu_stream()).result().unwrap();
        if synchronise {
            stream.synchronize().unwrap();
        }
        std::slice::from_raw_parts(pointer, 100).to_vec()
    };
    stream.synchronize().unwrap();
    seen
}

#[test]
fn a_forgotten_synchronisation_of_the_host_shows() {
    {
        let _alone = alone(&Settings::default());
        assert_eq!(read_back(false), [5; 100]);
    }
    let _alone = alone(&delayed());
    assert_eq!(read_back(false), [0; 100]);
    assert_eq!(read_back(true), [5; 100]);
}

/// One stream writes, another copies, with or without waiting for an event of the first.
fn hand_over(wait: bool) -> Vec<u32> {
    let context = unordered();
    let (producer, consumer) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut source = producer.alloc_zeros::<u32>(100).unwrap();
    let mut target = consumer.alloc_zeros::<u32>(100).unwrap();
    context.synchronize().unwrap();
    producer.memcpy_htod(&[9u32; 100], &mut source).unwrap();
    let event = producer.record_event(None).unwrap();
    if wait {
        consumer.wait(&event).unwrap();
    }
    let (from, first) = source.device_ptr(&producer);
    let (to, second) = target.device_ptr_mut(&consumer);
    // SAFETY: 400 bytes each.
    unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, 400, consumer.cu_stream()).result().unwrap() };
    drop((first, second));
    consumer.synchronize().unwrap();
    let seen = consumer.clone_dtoh(&target).unwrap();
    context.synchronize().unwrap();
    seen
}

#[test]
fn a_forgotten_wait_between_streams_shows() {
    {
        let _alone = alone(&Settings::default());
        assert_eq!(hand_over(false), [9; 100]);
    }
    let _alone = alone(&delayed());
    assert_eq!(hand_over(false), [0; 100]);
    assert_eq!(hand_over(true), [9; 100]);
}

#[test]
fn a_context_runs_delayed_streams_youngest_first() {
    let _alone = alone(&delayed());
    let context = unordered();
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut data = first.alloc_zeros::<u32>(1).unwrap();
    context.synchronize().unwrap();
    let (address, _guard) = data.device_ptr_mut(&first);
    // SAFETY: 4 bytes.
    unsafe {
        sys::cuMemsetD32Async(address, 1, 1, first.cu_stream()).result().unwrap();
        sys::cuMemsetD32Async(address, 2, 1, second.cu_stream()).result().unwrap();
    }
    context.synchronize().unwrap();
    let mut seen = [0u32];
    // SAFETY: 4 bytes.
    unsafe { result::memcpy_dtoh_sync(&mut seen, address).unwrap() };
    assert_eq!(seen, [1]);
}

#[test]
fn blocking_streams_and_the_null_stream_wait_for_each_other() {
    let _alone = alone(&delayed());
    let context = unordered();
    let null_stream = context.default_stream();
    let mut data = null_stream.alloc_zeros::<u32>(1).unwrap();
    let (address, _guard) = data.device_ptr_mut(&null_stream);
    let read = || {
        let mut seen = [0u32];
        // SAFETY: 4 bytes; a blocking copy is in the null stream.
        unsafe { result::memcpy_dtoh_sync(&mut seen, address).unwrap() };
        seen[0]
    };
    for (flags, expected) in
        [(sys::CUstream_flags::CU_STREAM_DEFAULT, 7), (sys::CUstream_flags::CU_STREAM_NON_BLOCKING, 0)]
    {
        let mut stream = null_mut();
        // SAFETY: a place for the result; 4 bytes; the stream is live.
        unsafe {
            sys::cuMemsetD32_v2(address, 0, 1).result().unwrap();
            context.synchronize().unwrap();
            sys::cuStreamCreate(&raw mut stream, flags as u32).result().unwrap();
            sys::cuMemsetD32Async(address, 7, 1, stream).result().unwrap();
            assert_eq!(read(), expected, "{flags:?}");
            sys::cuStreamDestroy_v2(stream).result().unwrap();
        }
    }
    // The last stream's work was not forgotten when the stream was destroyed.
    context.synchronize().unwrap();
    assert_eq!(read(), 7);
}

#[test]
fn pageable_memory_is_read_at_the_call_and_pinned_memory_later() {
    let _alone = alone(&delayed());
    let context = unordered();
    let stream = context.new_stream().unwrap();
    let mut device = stream.alloc_zeros::<u32>(2).unwrap();
    let (address, guard) = device.device_ptr_mut(&stream);
    let mut pageable = [1u32];
    // SAFETY: zero at first, by the driver.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(1).unwrap() };
    let pointer = pinned.as_mut_ptr().unwrap();
    // SAFETY: 4 bytes each; `pinned` lives until the stream is done.
    unsafe {
        pointer.write(1);
        sys::cuMemcpyHtoDAsync_v2(address, pageable.as_ptr().cast(), 4, stream.cu_stream()).result().unwrap();
        sys::cuMemcpyHtoDAsync_v2(address + 4, pointer.cast(), 4, stream.cu_stream()).result().unwrap();
        pageable[0] = 2;
        pointer.write(2);
    }
    drop(guard);
    assert_eq!(pageable, [2]);
    assert_eq!(stream.clone_dtoh(&device).unwrap(), [1, 2]);
}

extern "C" fn count(counter: *mut c_void) {
    // SAFETY: the tests give a counter that outlives the stream's work.
    unsafe { &*counter.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn call_the_driver(place: *mut c_void) {
    let mut bytes = 0;
    // SAFETY: a place for the result; the test gives a counter that outlives the stream's work.
    unsafe {
        let result = sys::cuMemGetInfo_v2(&raw mut bytes, &raw mut bytes);
        (*place.cast::<AtomicU32>()).store(result as u32, Ordering::Relaxed);
    }
}

fn launch_host(stream: &CudaStream, function: extern "C" fn(*mut c_void), counter: &AtomicU32) {
    let place = std::ptr::from_ref(counter).cast_mut().cast();
    // SAFETY: the counter outlives the stream's work: the tests synchronise before they end.
    unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(function), place).result().unwrap() };
}

#[test]
fn host_functions_run_in_their_streams_turn_and_may_not_call_the_driver() {
    let _alone = alone(&delayed());
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let (calls, answer) = (AtomicU32::new(0), AtomicU32::new(0));
    launch_host(&stream, count, &calls);
    launch_host(&stream, call_the_driver, &answer);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    stream.synchronize().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(answer.load(Ordering::Relaxed), CUDA_ERROR_NOT_PERMITTED as u32);
}

/// Two threads meet in a host function: one runs it, the other calls the driver before it lets it return.
struct Meeting {
    begun: (Sender<()>, Mutex<Receiver<()>>),
    may_return: (Sender<()>, Mutex<Receiver<()>>),
    returned_in_time: AtomicU32,
}

impl Meeting {
    fn new() -> Self {
        let channel = || {
            let (sender, receiver) = channel();
            (sender, Mutex::new(receiver))
        };
        Self { begun: channel(), may_return: channel(), returned_in_time: AtomicU32::new(0) }
    }
}

fn comes(receiver: &Mutex<Receiver<()>>) -> bool {
    receiver.lock().unwrap().recv_timeout(Duration::from_secs(20)).is_ok()
}

extern "C" fn meet(meeting: *mut c_void) {
    // SAFETY: the test gives a meeting that outlives the stream's work.
    let meeting = unsafe { &*meeting.cast::<Meeting>() };
    meeting.begun.0.send(()).unwrap();
    meeting.returned_in_time.store(u32::from(comes(&meeting.may_return.1)), Ordering::SeqCst);
}

/// A host function may wait for a thread that launches, copies and waits in another stream.
#[test]
fn other_streams_go_on_while_a_host_function_waits() {
    for settings in [Settings::default(), delayed()] {
        for in_graph in [false, true] {
            let _alone = alone(&settings);
            let context = unordered();
            let (waiting, busy) = (context.new_stream().unwrap(), context.new_stream().unwrap());
            let mut data = waiting.alloc_zeros::<u8>(4).unwrap();
            waiting.synchronize().unwrap();
            let meeting = Meeting::new();
            let launch = || {
                let place = std::ptr::from_ref(&meeting).cast_mut().cast();
                // SAFETY: the meeting outlives the stream's work.
                unsafe { sys::cuLaunchHostFunc(waiting.cu_stream(), Some(meet), place).result().unwrap() };
            };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    context.bind_to_thread().unwrap();
                    if in_graph {
                        waiting.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
                        launch();
                        let graph = waiting.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
                        graph.launch().unwrap();
                    } else {
                        launch();
                    }
                    waiting.memset_zeros(&mut data).unwrap();
                    waiting.synchronize().unwrap();
                });
                assert!(comes(&meeting.begun.1));
                assert_eq!(busy.clone_htod(&[7u32; 3]).and_then(|seven| busy.clone_dtoh(&seven)).unwrap(), [7; 3]);
                busy.synchronize().unwrap();
                meeting.may_return.0.send(()).unwrap();
                // What is in that stream, and in all of the context, is complete when the function has returned.
                waiting.synchronize().unwrap();
                context.synchronize().unwrap();
                assert_eq!(meeting.returned_in_time.load(Ordering::SeqCst), 1, "{settings:?}, in a graph: {in_graph}");
            });
        }
    }
}

const CAPTURE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;

#[test]
fn a_graph_repeats_what_was_captured() {
    for settings in [Settings::default(), delayed()] {
        let _alone = alone(&settings);
        let context = unordered();
        let stream = context.new_stream().unwrap();
        let calls = AtomicU32::new(0);
        let source = stream.clone_htod(&[3u32; 10]).unwrap();
        let mut target = stream.alloc_zeros::<u32>(20).unwrap();
        stream.synchronize().unwrap();
        stream.begin_capture(CAPTURE).unwrap();
        assert_eq!(stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        stream.memcpy_dtod(&source, &mut target.slice_mut(..10)).unwrap();
        launch_host(&stream, count, &calls);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        let mut nodes = 0;
        // SAFETY: a place for the number.
        unsafe { sys::cuGraphGetNodes(graph.cu_graph(), null_mut(), &raw mut nodes).result().unwrap() };
        assert_eq!(nodes, 2);
        assert_eq!(stream.clone_dtoh(&target).unwrap(), [0; 20]);
        for round in 1..=3 {
            stream.memset_zeros(&mut target).unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.clone_dtoh(&target).unwrap()[..10], [3; 10]);
            assert_eq!(calls.load(Ordering::Relaxed), round);
        }
    }
}

#[test]
fn a_capture_spreads_by_events_and_must_join_again() {
    let _alone = alone(&Settings::default());
    let context = unordered();
    let (origin, branch) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let calls = AtomicU32::new(0);
    for join in [true, false] {
        origin.begin_capture(CAPTURE).unwrap();
        let fork = origin.record_event(None).unwrap();
        branch.wait(&fork).unwrap();
        launch_host(&branch, count, &calls);
        if join {
            let joined = branch.record_event(None).unwrap();
            origin.wait(&joined).unwrap();
        }
        let graph = origin.end_capture(CUgraphInstantiate_flags(0));
        if join {
            graph.unwrap().unwrap().launch().unwrap();
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        } else {
            assert_error(graph, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        }
        let idle = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        assert_eq!((origin.capture_status().unwrap(), branch.capture_status().unwrap()), (idle, idle));
    }
}

#[test]
fn captures_refuse_what_would_wait() {
    let _alone = alone(&Settings::default());
    let context = unordered();
    let stream = context.new_stream().unwrap();
    let before = stream.record_event(None).unwrap();
    let spoilt = |action: &dyn Fn(), status| {
        stream.begin_capture(CAPTURE).unwrap();
        action();
        assert_error(stream.end_capture(CUgraphInstantiate_flags(0)), status);
    };
    spoilt(
        &|| assert_error(stream.synchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    );
    spoilt(
        &|| assert_error(context.synchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    );
    spoilt(
        &|| assert_error(stream.wait(&before), CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    );
    let mut address = 0;
    let place = &raw mut address;
    // SAFETY: a place for the result.
    spoilt(
        &|| assert_eq!(unsafe { sys::cuMemAlloc_v2(place, 16) }, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    );
    // The null stream would have to wait for a blocking stream that is being captured.
    let mut blocking = null_mut();
    // SAFETY: places for the results; live objects.
    unsafe {
        sys::cuStreamCreate(&raw mut blocking, 0).result().unwrap();
        sys::cuStreamBeginCapture_v2(blocking, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).result().unwrap();
        assert_eq!(sys::cuEventRecord(before.cu_event(), null_mut()), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        let mut graph = null_mut();
        assert_eq!(sys::cuStreamEndCapture(blocking, &raw mut graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert!(graph.is_null());
        sys::cuStreamDestroy_v2(blocking).result().unwrap();
    }
    // Out of balance.
    assert_error(stream.end_capture(CUgraphInstantiate_flags(0)), CUDA_ERROR_ILLEGAL_STATE);
    stream.begin_capture(CAPTURE).unwrap();
    assert_error(stream.begin_capture(CAPTURE), CUDA_ERROR_ILLEGAL_STATE);
    stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
    assert_error(context.default_stream().begin_capture(CAPTURE), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    // Of another thread.
    stream.begin_capture(CAPTURE).unwrap();
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| stream.end_capture(CUgraphInstantiate_flags(0)).map(drop)).join().unwrap();
        assert_error(ended, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    });
    stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
}

#[test]
fn a_graph_keeps_the_memory_of_its_capture() {
    let alone = alone(&Settings::default());
    let context = unordered();
    let stream = context.new_stream().unwrap();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    stream.begin_capture(mode).unwrap();
    let held = stream.alloc_zeros::<u8>(1000).unwrap();
    drop(held);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();
    assert_eq!(alone.control.memory_in_use(), 1000);
    drop(graph);
    assert_eq!(alone.control.memory_in_use(), 0);
}

#[test]
fn a_priority_beyond_the_range_is_the_nearest_in_it() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let (mut least, mut greatest) = (0, 0);
    // SAFETY: places for the results.
    unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest).result().unwrap() };
    for (asked, expected) in [(least + 100, least), (greatest - 100, greatest), (greatest, greatest)] {
        let (mut stream, mut found) = (null_mut(), 99);
        // SAFETY: places for the results; the stream is live.
        unsafe {
            sys::cuStreamCreateWithPriority(&raw mut stream, 0, asked).result().unwrap();
            sys::cuStreamGetPriority(stream, &raw mut found).result().unwrap();
            sys::cuStreamDestroy_v2(stream).result().unwrap();
        }
        assert_eq!(found, expected);
    }
}
