//! How many calls of the driver a step on CUDA makes, counted by softcuda by name, on a stream of the caller's with cudarc's
//! event tracking on, as it is by default. On a real device nothing counts: then this says so and stops.
//!
//! cudarc asks for the thread's context before each of its waits, which nothing here can save: a view to read is three calls
//! (that, `cuStreamWaitEvent` for the writes before, `cuEventRecord` for those after), one to write five.

use cudarc::driver::CudaSlice;
use exo_kernels::cuda::{Cuda, Head, LinearChunks, LinearGradients, Matrix, MatrixMut, Reference, Rewards};
use exo_kernels::{Batch, Betas, LinearKept, Objective, PreferenceLoss};
use softcuda::Control;
use std::collections::BTreeMap;
use support::device::upload;
use support::turn::{self, Turn};

/// Calls by the name of the function.
type Calls = BTreeMap<String, u64>;

/// softcuda, and a backend on a stream of its own; `None` on a real device.
fn counted() -> Option<(Turn, Control, Cuda)> {
    let turn = turn::take();
    let cuda = support::backend::cuda();
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: this device does not count");
        return None;
    };
    assert!(cuda.stream().context().is_managing_stream_synchronization(), "events are tracked");
    cuda.stream().context().bind_to_thread().expect("a context");
    Some((turn, control, cuda))
}

/// What a call that reads and writes so many tracked views makes besides its launches and copies.
#[derive(Clone, Copy)]
struct Tracked {
    read: u64,
    written: u64,
}

/// The calls that are planned: `own`, one question for the context, and what cudarc makes of the tracked views.
fn planned(tracked: Tracked, own: &[(&str, u64)]) -> Calls {
    let Tracked { read, written } = tracked;
    let waits = read + 2 * written;
    let of_views = [("cuCtxGetCurrent", 1 + waits), ("cuStreamWaitEvent", waits), ("cuEventRecord", read + written)];
    let all = of_views.iter().chain(own).filter(|(_, calls)| *calls > 0);
    all.map(|&(name, calls)| (name.to_owned(), calls)).collect()
}

fn sum(calls: &Calls) -> u64 {
    calls.values().sum()
}

const VOCAB: usize = 40_000;
const ON_HOST: [f64; 4] = [1.0, 0.0, -1.0, 0.5];

fn batch() -> Batch {
    Batch::new(&[0u32, 1, 2, 3, 4], &[0u32, 2, 4]).expect("offsets")
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas")
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1013) as f32 * 0.004 - 2.0).collect()
}

/// How a step is made.
#[derive(Clone, Copy, Debug)]
struct Kind {
    rewards_on_host: bool,
    reference: bool,
    in_place: bool,
}

/// What the steps read and write.
struct Buffers {
    logits: CudaSlice<f32>,
    gradients: CudaSlice<f32>,
    targets: CudaSlice<i64>,
    reference: CudaSlice<f32>,
    rewards: CudaSlice<f64>,
}

/// The calls of a step: its forward pass, its backward pass, its report.
fn step(control: Control, loss: &mut PreferenceLoss<Cuda>, buffers: &mut Buffers, kind: Kind) -> [Calls; 3] {
    let Buffers { logits, gradients, targets, reference, rewards } = buffers;
    let rewards = if kind.rewards_on_host { Rewards::from(&ON_HOST) } else { Rewards::from(&*rewards) };
    let reference = if kind.reference { Reference::PerToken(reference.as_view().into()) } else { Reference::None };
    control.take_calls();
    let view = Matrix::new(logits.as_view().into(), VOCAB).expect("rows");
    let step = loss.forward(&view, &*targets, &batch(), &reference, rewards).expect("forward");
    let forward = control.take_calls();
    let done = if kind.in_place {
        loss.backward_in_place(step, MatrixMut::new(logits.as_view_mut().into(), VOCAB).expect("rows"))
    } else {
        loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), VOCAB).expect("rows"))
    };
    done.expect("backward");
    let backward = control.take_calls();
    assert!(loss.report().expect("report").loss > 0.0);
    [forward, backward, control.take_calls()]
}

#[test]
fn a_step_is_a_few_calls_of_the_driver() {
    let Some((_turn, control, cuda)) = counted() else { return };
    let mut buffers = Buffers {
        logits: upload(&cuda, &numbers(4 * VOCAB)),
        gradients: upload(&cuda, &vec![f32::MAX; 4 * VOCAB]),
        targets: upload(&cuda, &[5_i64, 499, -1, 0]),
        reference: upload(&cuda, &[-9.0_f32; 4]),
        rewards: upload(&cuda, &ON_HOST),
    };
    for case in 0..16 {
        let [rewards_on_host, reference, in_place, entropy] = [1, 2, 4, 8].map(|bit| case & bit == 0);
        let kind = Kind { rewards_on_host, reference, in_place };
        let mut loss = PreferenceLoss::new(cuda.clone(), objective()).with_entropy(entropy);
        // The first one loads the kernels and allocates.
        step(control, &mut loss, &mut buffers, kind);
        let [forward, backward, report] = step(control, &mut loss, &mut buffers, kind);

        let on_host = u64::from(rewards_on_host);
        let read = 2 + u64::from(reference) + (1 - on_host);
        let own = [
            ("cuLaunchKernel", 3),
            // Rewards of the host bring the cleared status word with them.
            ("cuMemcpyHtoDAsync_v2", on_host),
            ("cuStreamIsCapturing", on_host),
            ("cuMemsetD8Async", 1 - on_host),
        ];
        assert_eq!(forward, planned(Tracked { read, written: 0 }, &own), "forward, {kind:?}");
        let read = u64::from(!in_place);
        assert_eq!(backward, planned(Tracked { read, written: 1 }, &[("cuLaunchKernel", 1)]), "backward, {kind:?}");
        let own = [("cuMemcpyDtoHAsync_v2", 1), ("cuStreamSynchronize", 1)];
        assert_eq!(report, planned(Tracked { read: 0, written: 0 }, &own), "report, {kind:?}");

        let all = [&forward, &backward, &report].map(sum).iter().sum::<u64>();
        println!("{kind:?}: {all} calls");
        // Host rewards and no reference are what a step has at least; each tracked view more is three calls.
        let views = u64::from(reference) + (1 - on_host);
        assert!(all <= 25 + 3 * views, "{kind:?}: {all} calls");
    }
}

/// Another context around the calls: it is put back by two calls more for each.
#[test]
fn another_current_context_costs_two_calls() {
    let Some((_turn, control, cuda)) = counted() else { return };
    let mut buffers = Buffers {
        logits: upload(&cuda, &numbers(4 * VOCAB)),
        gradients: upload(&cuda, &vec![f32::MAX; 4 * VOCAB]),
        targets: upload(&cuda, &[5_i64, 499, -1, 0]),
        reference: upload(&cuda, &[-9.0_f32; 4]),
        rewards: upload(&cuda, &ON_HOST),
    };
    let kind = Kind { rewards_on_host: true, reference: true, in_place: false };
    let mut loss = PreferenceLoss::new(cuda.clone(), objective());
    step(control, &mut loss, &mut buffers, kind);
    let usual = step(control, &mut loss, &mut buffers, kind);
    // SAFETY: none is always allowed.
    unsafe { cudarc::driver::result::ctx::set_current(std::ptr::null_mut()) }.expect("no context");
    let other = step(control, &mut loss, &mut buffers, kind);
    for (usual, mut other) in usual.into_iter().zip(other) {
        assert_eq!(other.remove("cuCtxSetCurrent"), Some(2));
        assert_eq!(other, usual);
    }
    cuda.stream().context().bind_to_thread().expect("a context");
}

/// Of the linear stage that keeps unit gradients, by chunks of whole rows: gather, product, fold, exponentials, product, unit
/// gradients. Its backward pass under a frozen head finds the scored rows and multiplies by a number, whatever the chunks.
#[test]
fn a_chunk_that_keeps_unit_gradients_is_six_calls() {
    let Some((_turn, control, cuda)) = counted() else { return };
    let (rows, size, vocab) = (4, 8, 600);
    let (hidden, weight) = (upload(&cuda, &numbers(rows * size)), upload(&cuda, &numbers(vocab * size)));
    let targets = upload(&cuda, &[5_i64, 39, -1, 0]);
    let mut of_hidden = upload(&cuda, &[f32::MAX; 32]);
    let hidden = Matrix::new(hidden.as_view().into(), size).expect("rows");
    let head = Head::new(Matrix::new(weight.as_view().into(), size).expect("rows")).expect("head");
    for chunks in [1, 2, 4] {
        cuda.set_linear_chunks(LinearChunks::default().with_logits(rows / chunks * vocab));
        let mut loss = PreferenceLoss::new(cuda.clone(), objective());
        let mut calls = [Calls::new(), Calls::new()];
        for _ in 0..2 {
            control.take_calls();
            let step = loss.forward_linear(&hidden, &head, &targets, &batch(), &Reference::None, &ON_HOST);
            let step = step.expect("forward");
            let forward = control.take_calls();
            let of_hidden = MatrixMut::new(of_hidden.as_view_mut().into(), size).expect("rows");
            let gradients = LinearGradients::<f32, f32>::new(Some(of_hidden), None);
            loss.backward_linear(&step, &hidden, &head, gradients).expect("backward");
            calls = [forward, control.take_calls()];
        }
        // Rows are found; log-ratios and objective.
        let own = [
            ("cuLaunchKernel", (1 + 4 * chunks + 2) as u64),
            ("softcuda_product", 2 * chunks as u64),
            ("cuMemcpyHtoDAsync_v2", 1),
            ("cuStreamIsCapturing", 1),
        ];
        assert_eq!(calls[0], planned(Tracked { read: 3, written: 0 }, &own), "{chunks} chunks");
        let own = [("cuLaunchKernel", 2)];
        assert_eq!(calls[1], planned(Tracked { read: 2, written: 1 }, &own), "{chunks} chunks");
    }
}

/// Of the linear stage that keeps nothing: two calls a chunk forward (a product and a launch), four backward (three products and a launch).
#[test]
fn a_chunk_of_the_linear_stage_is_its_products_and_a_launch() {
    let Some((_turn, control, cuda)) = counted() else { return };
    let (rows, size, columns) = (4, 8, 512);
    cuda.set_linear_chunks(LinearChunks::default().with_columns(columns).expect("columns"));
    let of_chunks = |chunks: usize| {
        let vocab = chunks * columns;
        let (hidden, weight) = (upload(&cuda, &numbers(rows * size)), upload(&cuda, &numbers(vocab * size)));
        let targets = upload(&cuda, &[5_i64, 39, -1, 0]);
        let (mut of_hidden, mut of_weight) = (upload(&cuda, &[f32::MAX; 32]), upload(&cuda, &numbers(vocab * size)));
        let mut loss = PreferenceLoss::new(cuda.clone(), objective()).with_linear_kept(LinearKept::Nothing);
        let hidden = Matrix::new(hidden.as_view().into(), size).expect("rows");
        let head = Head::new(Matrix::new(weight.as_view().into(), size).expect("rows")).expect("head");
        let mut calls = [Calls::new(), Calls::new()];
        for _ in 0..2 {
            control.take_calls();
            let step = loss.forward_linear(&hidden, &head, &targets, &batch(), &Reference::None, &ON_HOST);
            let step = step.expect("forward");
            let forward = control.take_calls();
            let gradients = LinearGradients::new(
                Some(MatrixMut::new(of_hidden.as_view_mut().into(), size).expect("rows")),
                Some(MatrixMut::new(of_weight.as_view_mut().into(), size).expect("rows")),
            );
            loss.backward_linear(&step, &hidden, &head, gradients).expect("backward");
            calls = [forward, control.take_calls()];
        }
        calls
    };
    let [few, many] = [2, 16].map(of_chunks);
    for ((few, many), products) in few.iter().zip(&many).zip([1, 3]) {
        let mut expected = few.clone();
        *expected.entry("cuLaunchKernel".to_owned()).or_default() += 14;
        *expected.entry("softcuda_product".to_owned()).or_default() += 14 * products;
        assert_eq!(*many, expected);
        println!("{} calls of 2 chunks, {} of 16: {many:?}", sum(few), sum(many));
    }
    // Rows are found and gathered; hidden states, weight and targets are read.
    let own = [
        ("cuLaunchKernel", 2 + 16 + 2),
        ("softcuda_product", 16),
        ("cuMemcpyHtoDAsync_v2", 1),
        ("cuStreamIsCapturing", 1),
    ];
    assert_eq!(many[0], planned(Tracked { read: 3, written: 0 }, &own));
    let own = [("cuLaunchKernel", 2 + 16 + 1), ("softcuda_product", 3 * 16)];
    assert_eq!(many[1], planned(Tracked { read: 2, written: 2 }, &own));
}
