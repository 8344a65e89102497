//! Calls are work of their streams: held back, captured, replayed, checked.

use crate::failures::Raw;
use crate::{alone, on_ranks};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::nccl::{ReduceOp, sys};
use limits::watchdog::within;
use softcuda::Settings;
use softcuda::report::FaultKind;
use std::time::Duration;

fn delayed() -> Settings {
    Settings { delay_streams: true, ..Settings::default() }
}

/// Nothing runs before something orders it, and then in order: each sum sees what was copied before it.
#[test]
fn a_call_waits_for_its_stream() {
    let Some(_alone) = alone(&delayed()) else { return };
    let control = softnccl::control().expect("the software NCCL");
    let meet = std::sync::Barrier::new(2);
    let results = on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        let mut numbers = stream.alloc_zeros::<f32>(3).expect("memory");
        stream.memcpy_htod(&[1.0 + rank as f32; 3], &mut numbers).expect("numbers");
        comm.all_reduce_in_place(&mut numbers, &ReduceOp::Sum).expect("a sum");
        let mut copy = stream.alloc_zeros::<f32>(3).expect("memory");
        stream.memcpy_dtod(&numbers, &mut copy).expect("a copy");
        stream.memset_zeros(&mut numbers).expect("zeros");
        comm.all_reduce_in_place(&mut copy, &ReduceOp::Prod).expect("a product");
        meet.wait();
        if rank == 0 {
            assert_eq!(control.take_counts().all_reduce.calls, 0, "a call has run, and nothing has asked for it");
        }
        meet.wait();
        stream.clone_dtoh(&copy).expect("read")
    });
    assert_eq!(results, [[9.0; 3]; 2]);
}

#[test]
fn a_captured_call_is_replayed_over_new_numbers() {
    for settings in [Settings::default(), delayed()] {
        let Some(_alone) = alone(&settings) else { return };
        let results = on_ranks(2, |rank, comm| {
            let stream = comm.stream();
            let mut numbers = stream.alloc_zeros::<f32>(2).expect("memory");
            let mut all = stream.alloc_zeros::<f32>(4).expect("memory");
            stream.synchronize().expect("done");
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
            comm.all_reduce_in_place(&mut numbers, &ReduceOp::Sum).expect("a sum");
            comm.all_gather(&numbers, &mut all).expect("a gather");
            let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("the end").expect("a graph");
            [1.0_f32, 10.0].map(|number| {
                stream.memcpy_htod(&[number, number * (1.0 + rank as f32)], &mut numbers).expect("numbers");
                graph.launch().expect("a replay");
                stream.clone_dtoh(&all).expect("read")
            })
        });
        for result in results {
            assert_eq!(result, [[2.0, 3.0, 2.0, 3.0], [20.0, 30.0, 20.0, 30.0]]);
        }
    }
}

/// A communicator is destroyed when what is in its streams is done, on all ranks.
#[test]
fn the_end_of_a_communicator_waits_for_its_streams() {
    let Some(_alone) = alone(&delayed()) else { return };
    let id = crate::failures::id();
    let sums = within(Duration::from_secs(60), || {
        std::thread::scope(|scope| {
            let rank = |rank| {
                scope.spawn(move || {
                    let raw = Raw::new(id, 2, rank).expect("a communicator");
                    raw.sum(8);
                    // SAFETY: it is not used afterwards.
                    assert_eq!(unsafe { sys::ncclCommDestroy(raw.comm) }, sys::ncclResult_t::ncclSuccess);
                    raw.stream.clone_dtoh(&raw.buffer).expect("read")[0]
                })
            };
            [rank(0), rank(1)].map(|thread| thread.join().expect("no panic"))
        })
    });
    assert_eq!(sums, [2.0; 2]);
}

/// A graph keeps its communicator; what it replays after that has left fails, and nobody waits.
#[test]
fn a_graph_may_outlive_its_communicator() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let meet = std::sync::Barrier::new(2);
    on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        let mut numbers = stream.clone_htod(&[1.0_f32 + rank as f32]).expect("numbers");
        stream.synchronize().expect("done");
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
        comm.all_reduce_in_place(&mut numbers, &ReduceOp::Sum).expect("a sum");
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("the end").expect("a graph");
        meet.wait();
        drop(comm);
        graph.launch().expect("a replay");
        assert_eq!(stream.clone_dtoh(&numbers).expect("read"), [1.0 + rank as f32], "what has failed writes nothing");
    });
}

/// Bytes that nobody wrote are a fault where they are sent, and beyond the end of a buffer too; the other rank does not wait.
#[test]
fn memory_is_checked() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let control = softcuda::control().expect("softcuda");
    let meet = std::sync::Barrier::new(2);
    on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        // SAFETY: that nobody has written it is what the test is about.
        let mut numbers = unsafe { stream.alloc::<f32>(4) }.expect("memory");
        if rank == 1 {
            stream.memset_zeros(&mut numbers).expect("zeros");
        }
        // A fault is the whole context's.
        meet.wait();
        let _ = comm.all_reduce_in_place(&mut numbers, &ReduceOp::Sum);
    });
    assert_eq!(control.take_fault().map(|fault| fault.kind), Some(FaultKind::Uninitialized));
    control.clear_fault();
    on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        let own = stream.clone_htod(&[0.0_f32; 4]).expect("numbers");
        let mut all = stream.alloc_zeros::<f32>(if rank == 0 { 7 } else { 8 }).expect("memory");
        meet.wait();
        let _ = comm.all_gather(&own, &mut all);
        let _ = stream.synchronize();
    });
    assert_eq!(control.take_fault().map(|fault| fault.kind), Some(FaultKind::OutOfBounds));
    control.clear_fault();
}
