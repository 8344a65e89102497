//! The token log-prob stage, and a whole step of the loss, in a CUDA graph: captured once, replayed over other inputs,
//! with the bits of direct calls.

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut, Reference, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Batch, Betas, Error, LogitOptions, Objective, PreferenceLoss, Report, SoftmaxState};
use support::backend::TestBackend;
use support::device::{self, download, upload};
use support::host_rows::Rows;

/// A stream that can be captured.
fn cuda() -> Cuda {
    let cuda = device::cuda();
    // cudarc's events of earlier uses lie outside of a capture, which may not wait for them.
    // SAFETY: everything of a test is on one stream.
    unsafe { cuda.stream().context().disable_event_tracking() };
    cuda
}

/// What `step` puts into the stream, as a graph.
fn captured(cuda: &Cuda, step: impl FnOnce()) -> CudaGraph {
    cuda.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    cuda.stream().end_capture(flags).expect("end of capture").expect("a graph")
}

/// Two rows, shared by several blocks: their tickets must be back at zero for the next replay.
fn rows(seed: usize) -> Rows<f32> {
    let vocab = 40_000;
    let logits = (0..2 * vocab).map(|i| ((i * 7919 + seed * 31) % 1013) as f32 * 0.02).collect();
    Rows::new(logits, vec![39_999, 7], vocab)
}

#[test]
fn a_captured_step_is_replayed_over_new_logits() {
    let cuda = cuda();
    let (options, vocab) = (LogitOptions::default(), 40_000);
    let mut logits = upload(&cuda, &rows(0).logits);
    let targets = upload(&cuda, &rows(0).targets);
    let mut log_probs = upload(&cuda, &[0.0_f32; 2]);
    let mut states = upload(&cuda, &[SoftmaxState::default(); 2]);
    let upstream = upload(&cuda, &[1.0_f32, -0.5]);
    let mut step = || {
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: None,
        };
        let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
        cuda.token_log_probs(&view, &targets, &options, outputs).expect("forward");
        let saved = SavedRows { states: states.as_view().into(), entropies: None };
        let gradients = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
        let view = MatrixMut::new(logits.as_view_mut().into(), vocab).expect("rows");
        cuda.token_log_probs_backward_in_place(view, &targets, &options, &saved, &gradients).expect("backward");
    };
    // The first call loads the kernels and makes the scratch memory, which a capture cannot.
    step();
    let graph = captured(&cuda, &mut step);

    for seed in 1..4 {
        let packed = rows(seed);
        cuda.stream().memcpy_htod(&packed.logits, &mut logits).expect("upload");
        graph.launch().expect("replay");
        let direct = cuda.forward(&packed, &options, false);
        assert_eq!(download(&cuda, &log_probs), direct.log_probs, "seed {seed}");
        assert_eq!(download(&cuda, &states), direct.states, "seed {seed}");
        let gradient = cuda.backward(&packed, &options, &direct, (&[1.0, -0.5], None), true);
        assert_eq!(download(&cuda, &logits), gradient, "seed {seed}");
    }
}

const VOCAB: usize = 40_000;

/// What a trainer's step reads: four sequences of one row each in two groups.
#[derive(Clone)]
struct Step {
    logits: Vec<f32>,
    reference: Vec<f32>,
    rewards: Vec<f64>,
}

impl Step {
    fn new(seed: usize) -> Self {
        let numbers = |count: usize| (0..count).map(move |i| ((i * 7919 + seed * 31) % 1013) as f32 * 0.01);
        Self {
            logits: numbers(4 * VOCAB).collect(),
            reference: numbers(4).map(|number| -9.0 - 0.1 * number).collect(),
            rewards: (0..4).map(|i| ((i * 5 + seed * 3) % 7) as f64 * 0.4).collect(),
        }
    }
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("betas")
}

fn batch() -> Batch {
    Batch::new(&[0u32, 1, 2, 3, 4], &[0u32, 2, 4]).expect("offsets")
}

const TARGETS: [i64; 4] = [5, 39_999, 77, 0];

/// A loss of its own, called directly, with the rewards on the host: its report, or what it has found, and the gradient.
fn eager(cuda: &Cuda, step: &Step) -> (Result<Report, Error>, Vec<u32>) {
    let (logits, targets) = (upload(cuda, &step.logits), upload(cuda, &TARGETS));
    let reference = upload(cuda, &step.reference);
    let mut gradients = upload(cuda, &vec![f32::MAX; 4 * VOCAB]);
    let mut loss = PreferenceLoss::new(cuda.clone(), objective());
    let view = Matrix::new(logits.as_view().into(), VOCAB).expect("rows");
    let reference = Reference::PerToken(reference.as_view().into());
    let step = loss.forward(&view, &targets, &batch(), &reference, &step.rewards).expect("forward");
    loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), VOCAB).expect("rows"))
        .expect("backward");
    (loss.report().cloned(), bits(&download(cuda, &gradients)))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Other logits, references and rewards through one graph; a step that has found something does not stain the next.
#[test]
fn a_captured_loss_is_replayed_over_new_inputs() {
    let cuda = cuda();
    let stream = cuda.stream().clone();
    let mut poisoned = Step::new(2);
    poisoned.logits[VOCAB + 3] = f32::NAN;
    let mut refused = Step::new(4);
    refused.rewards[2] = f64::INFINITY;

    let first = Step::new(0);
    let (mut logits, targets) = (upload(&cuda, &first.logits), upload(&cuda, &TARGETS));
    let (mut reference, mut rewards) = (upload(&cuda, &first.reference), upload(&cuda, &first.rewards));
    let mut gradients = upload(&cuda, &vec![f32::MAX; 4 * VOCAB]);
    let mut loss = PreferenceLoss::new(cuda.clone(), objective());
    let batch = batch();
    let mut step = || {
        let view = Matrix::new(logits.as_view().into(), VOCAB).expect("rows");
        let reference = Reference::PerToken(reference.as_view().into());
        let step = loss.forward(&view, &targets, &batch, &reference, &rewards).expect("forward");
        loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), VOCAB).expect("rows"))
            .expect("backward");
    };
    step();
    let graph = captured(&cuda, step);

    for (index, inputs) in [Step::new(1), poisoned, Step::new(3), refused, Step::new(5)].into_iter().enumerate() {
        stream.memcpy_htod(&inputs.logits, &mut logits).expect("upload");
        stream.memcpy_htod(&inputs.reference, &mut reference).expect("upload");
        stream.memcpy_htod(&inputs.rewards, &mut rewards).expect("upload");
        graph.launch().expect("replay");
        loss.discard_report();
        let replayed = (loss.report().cloned(), bits(&download(&cuda, &gradients)));
        match index {
            1 => assert_eq!(replayed.0, Err(Error::NonFiniteRow { row: 1, count: 1 })),
            3 => {
                let found = replayed.0.expect_err("an infinite reward");
                assert!(matches!(found, Error::NotFinite { what: "reward", sequence: 2, .. }), "{found}");
                continue;
            }
            _ => assert!(replayed.0.as_ref().is_ok_and(|report| report.loss > 0.0), "{:?}", replayed.0),
        }
        let direct = eager(&cuda, &inputs);
        assert!(replayed.1 == direct.1, "replay {index}: the gradient has other bits");
        assert_eq!(replayed.0, direct.0, "replay {index}");
    }
}

/// A graph would read the host's memory again at each launch: such a step is refused, and leaves the loss as it was.
#[test]
fn a_capture_that_would_copy_from_the_host_is_refused() {
    let cuda = cuda();
    let first = Step::new(0);
    let (logits, targets) = (upload(&cuda, &first.logits), upload(&cuda, &TARGETS));
    let rewards = upload(&cuda, &first.rewards);
    let mut loss = PreferenceLoss::new(cuda.clone(), objective());
    let (batch, other) = (batch(), Batch::new(&[0u32, 2, 4], &[0u32, 2]).expect("offsets"));
    let (view, none) = (Matrix::new(logits.as_view().into(), VOCAB).expect("rows"), Reference::None);
    loss.forward(&view, &targets, &batch, &none, &rewards).expect("forward");
    let of_first = loss.report().expect("report").clone();
    let graph = captured(&cuda, || {
        let refused = loss.forward(&view, &targets, &batch, &none, &first.rewards).expect_err("host rewards");
        assert!(matches!(refused, Error::Cuda { call: "cuMemcpyHtoDAsync", .. }), "{refused}");
        let two = rewards.slice(..2);
        let refused = loss.forward(&view, &targets, &other, &none, two).expect_err("another batch");
        assert!(matches!(refused, Error::Cuda { call: "cuMemcpyHtoDAsync", .. }), "{refused}");
    });
    drop(graph);
    assert_eq!(loss.report().expect("the report of the step before"), &of_first);
}
