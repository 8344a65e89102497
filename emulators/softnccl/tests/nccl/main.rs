//! Ranks as threads and as processes, through cudarc, on softcuda. One test at a time has the settings and the counters. With a real
//! driver nothing of this runs: its NCCL wants a device for each rank.

mod collectives;
mod failures;
mod processes;
mod streams;

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::{Comm, Id};
use limits::watchdog::within;
use softcuda::Settings;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

static ALONE: Mutex<()> = Mutex::new(());

/// Whoever has this has settings and counters for itself; `None` where there is a real device.
pub(crate) fn alone(settings: &Settings) -> Option<MutexGuard<'static, ()>> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    softcuda::install().expect("softcuda");
    softnccl::install().expect("softnccl");
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: this machine has a device");
        return None;
    };
    control.reset();
    control.configure(settings);
    let nccl = softnccl::control().expect("the software NCCL");
    nccl.take_counts();
    nccl.be_patient(Duration::from_secs(60));
    Some(alone)
}

/// A stream whose order with others is the test's.
pub(crate) fn stream(device: usize) -> Arc<CudaStream> {
    let context = CudaContext::new(device).expect("a device");
    // SAFETY: every buffer is used on one stream.
    unsafe { context.disable_event_tracking() };
    context.new_stream().expect("a stream")
}

/// What each rank does, on a thread and a stream of its own; the test fails if that takes longer than a minute.
pub(crate) fn on_ranks<R: Send>(ranks: usize, run: impl Fn(usize, Comm) -> R + Sync) -> Vec<R> {
    let id = Id::new().expect("an id");
    within(Duration::from_secs(60), || {
        std::thread::scope(|scope| {
            let run = &run;
            let rank = |rank| {
                let id = Id::uninit(*id.internal());
                move || run(rank, Comm::from_rank(stream(0), rank, ranks, id).expect("a communicator"))
            };
            let threads: Vec<_> = (0..ranks).map(|number| scope.spawn(rank(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    })
}
