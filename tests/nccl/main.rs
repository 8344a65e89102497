//! Ranks by NCCL: threads of this process and processes, on softcuda and softnccl. Settings and counters are the process's, so every test
//! takes its turn. On a real device what needs more devices than there are, or counts, says so and stops.

mod captures;
mod failures;
mod loss;
mod processes;
mod ranks;
mod sums;

use cudarc::driver::CudaContext;
use exo_kernels::backend::SLICE;
use exo_kernels::cuda::{Cuda, Grown, Matrix, Nccl, PartialRow, TokenLogProbs};
use exo_kernels::ranks::{Communicator, token_log_probs};
use exo_kernels::{LogitOptions, Result, Shard, SoftmaxState};
use limits::watchdog::within;
use softcuda::Settings;
use std::time::Duration;
use support::backend::{Layout, Rows};
use support::device::{download, upload};
use support::turn::{self, Turn};

/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A turn with so many devices; `None` where they are not there, or, if they are to be counted, real.
pub(crate) fn turn_with(devices: usize, settings: Settings, counted: bool) -> Option<Turn> {
    let turn = turn::take();
    softcuda::install().expect("softcuda can be loaded where there is no driver");
    softcublas::install().expect("softcublas can be loaded where softcuda is");
    softnccl::install().expect("softnccl can be loaded where softcuda is");
    let Some(control) = softcuda::control() else {
        let there = CudaContext::device_count().expect("a count") as usize;
        if counted || there < devices || !exo_kernels::cuda::nccl_present() {
            println!("NOT RUN: {there} real devices, or no NCCL");
            return None;
        }
        return Some(turn);
    };
    control.configure(&Settings { devices: devices as u32, ..settings });
    softnccl::control().expect("the software NCCL").take_counts();
    Some(turn)
}

pub(crate) fn delayed() -> Settings {
    Settings { delay_streams: true, ..Settings::default() }
}

/// A backend on a stream of its own of a device.
pub(crate) fn cuda(device: usize) -> Cuda {
    let context = CudaContext::new(device).expect("a device");
    // SAFETY: every buffer of these tests is used on one stream.
    unsafe { context.disable_event_tracking() };
    Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load")
}

/// What each rank does, on a thread and a device of its own. None may hang.
pub(crate) fn on_ranks<R: Send>(ranks: usize, run: impl Fn(usize, Cuda, Nccl) -> R + Sync) -> Vec<R> {
    let id = Nccl::unique_id().expect("an id");
    within(LIMIT, || {
        std::thread::scope(|scope| {
            let (run, id) = (&run, &id);
            let rank = |rank| {
                scope.spawn(move || {
                    let cuda = cuda(rank);
                    let nccl = Nccl::new(&cuda, id, rank, ranks).expect("a communicator");
                    run(rank, cuda, nccl)
                })
            };
            let threads: Vec<_> = (0..ranks).map(rank).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    })
}

/// What is there before a call.
pub(crate) const UNTOUCHED: f32 = 77.0;

/// Bits of log-probs, of states, and of entropies.
pub(crate) type Found = Vec<u32>;

/// One call, and what was there before wherever nothing has been written.
pub(crate) fn call(
    cuda: &Cuda,
    communicator: &dyn Communicator<Cuda>,
    rows: &Rows<f32>,
    options: &LogitOptions,
    parts: &mut Grown<PartialRow>,
) -> (Result<()>, Found) {
    let count = rows.count();
    let (logits, targets) = (upload(cuda, &rows.logits), upload(cuda, &rows.targets));
    let mut log_probs = upload(cuda, &vec![UNTOUCHED; count]);
    let mut entropies = upload(cuda, &vec![UNTOUCHED; count]);
    let mut states = upload(cuda, &vec![SoftmaxState { r: UNTOUCHED, s: UNTOUCHED }; count]);
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: Some(entropies.as_view_mut().into()),
    };
    let view = Matrix::new(logits.as_view().into(), rows.vocab).expect("rows");
    let result = token_log_probs(cuda, communicator, &view, &targets, options, outputs, parts);
    let mut found: Found = download(cuda, &log_probs).iter().map(|number| number.to_bits()).collect();
    found.extend(download(cuda, &states).iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]));
    found.extend(download(cuda, &entropies).iter().map(|number| number.to_bits()));
    (result, found)
}

/// Four rows, one of them masked.
pub(crate) fn rows(vocab: usize, seed: usize) -> Rows<f32> {
    let logits = (0..4 * vocab).map(|i| ((i * 7919 + seed * 31) % 1013) as f32 * 0.02).collect();
    Rows::new(logits, vec![0, -100, vocab as i64 - 1, vocab as i64 / 2], vocab)
}

/// Columns that begin where slices do, for so many ranks, and a vocabulary for them.
pub(crate) fn slices(ranks: usize) -> (usize, Layout) {
    let starts: Vec<usize> = (0..ranks).map(|rank| rank * SLICE).collect();
    (ranks * SLICE - 300, Layout::new(&starts))
}

pub(crate) fn shard(options: &LogitOptions, layout: &Layout, rank: usize, vocab: usize) -> LogitOptions {
    options.with_shard(Shard::new(layout.starts[rank], vocab).expect("a shard"))
}
