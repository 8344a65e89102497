//! What is particular to the adapter on a device: its results are the backend's, bit for bit, from any thread; nothing
//! waits; targets on the device are looked at there.

use crate::cuda_device;
use exo_kernels::cuda::{self, Cuda, Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{
    Backend, Batch, Betas, LogitOptions, LossOptions, Objective, PreferenceLoss, Reference, SoftmaxState,
};
use exo_kernels_candle::candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use exo_kernels_candle::candle_core::{Device, Tensor, Var};
use exo_kernels_candle::{preference_loss, token_log_probs, token_log_probs_and_entropies};

/// Rows that several blocks share, so that scratch memory is used.
const VOCAB: usize = 40_000;
const ROWS: usize = 3;
const TARGETS: [i64; ROWS] = [39_999, -100, 7];
/// Upstream gradients of log-probs and entropies.
const UPSTREAM: [[f32; ROWS]; 2] = [[1.0, 5.0, -0.5], [0.25, 5.0, 2.0]];

fn values(seed: usize) -> Vec<f32> {
    (0..ROWS * VOCAB).map(|i| ((i * 7919 + seed * 31) % 1013) as f32 * 0.02).collect()
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).expect("valid")
}

fn variable(values: &[f32], device: &Device) -> Var {
    let tensor = Tensor::from_slice(values, (values.len() / VOCAB, VOCAB), device).expect("logits");
    Var::from_tensor(&tensor).expect("a variable")
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    let host = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.flatten_all());
    host.and_then(|host| host.to_vec1()).expect("numbers")
}

/// Log-probs, entropies and the gradient of the logits by the adapter.
fn adapted(values: &[f32], device: &Device) -> [Vec<f32>; 3] {
    let logits = variable(values, device);
    let targets = Tensor::new(&TARGETS, device).expect("targets");
    let (log_probs, entropies) =
        token_log_probs_and_entropies(logits.as_tensor(), &targets, &options()).expect("forward");
    let [of_log_probs, of_entropies] = UPSTREAM.map(|row| Tensor::new(&row, device).expect("upstream"));
    let weighted = ((&log_probs * of_log_probs).expect("product") + (&entropies * of_entropies).expect("product"))
        .and_then(|both| both.sum_all());
    let gradients = weighted.and_then(|sum| sum.backward()).expect("backward");
    [numbers(&log_probs), numbers(&entropies), numbers(gradients.get(&logits).expect("a gradient"))]
}

/// The backend on a stream of its own.
fn backend() -> Cuda {
    let device = Device::new_cuda_with_stream(0).expect("device 0");
    Cuda::new(&device.as_cuda_device().expect("CUDA").cuda_stream()).expect("the kernels load")
}

/// The same as [`adapted`] by the backend.
fn direct(values: &[f32], cuda: &Cuda) -> [Vec<f32>; 3] {
    let stream = cuda.stream();
    let (logits, targets) = (stream.clone_htod(values).expect("logits"), stream.clone_htod(&TARGETS).expect("targets"));
    let mut states = stream.alloc_zeros::<SoftmaxState>(ROWS).expect("memory");
    let [mut log_probs, mut entropies] = [(), ()].map(|()| stream.alloc_zeros::<f32>(ROWS).expect("memory"));
    let outputs = TokenLogProbs {
        log_probs: (&mut log_probs).into(),
        states: (&mut states).into(),
        entropies: Some((&mut entropies).into()),
    };
    let view = Matrix::new((&logits).into(), VOCAB).expect("rows");
    cuda.token_log_probs(&view, &targets, &options(), outputs).expect("forward");
    let upstream = UPSTREAM.map(|row| stream.clone_htod(&row).expect("upstream"));
    let saved = SavedRows { states: (&states).into(), entropies: Some((&entropies).into()) };
    let upstream = RowGradients::PerRow { log_probs: (&upstream[0]).into(), entropies: Some((&upstream[1]).into()) };
    let mut gradient = stream.clone_htod(values).expect("memory");
    let out = MatrixMut::new((&mut gradient).into(), VOCAB).expect("rows");
    cuda.token_log_probs_backward(&view, &targets, &options(), &saved, &upstream, out).expect("backward");
    [&log_probs, &entropies, &gradient].map(|slice| stream.clone_dtoh(slice).expect("numbers"))
}

#[test]
fn token_log_probs_are_the_backends() {
    let device = cuda_device();
    let cuda = backend();
    // Twice, because the second call uses the first one's scratch memory.
    for seed in 0..2 {
        assert_eq!(adapted(&values(seed), &device), direct(&values(seed), &cuda), "seed {seed}");
    }
}

/// candle's stream is one per thread. (That scratch memory is too, cannot be seen here: softcuda runs one launch at a
/// time.)
#[test]
fn any_thread_may_compute() {
    let cuda = backend();
    let expected = [0, 1].map(|seed| direct(&values(seed), &cuda));
    std::thread::scope(|scope| {
        for (seed, expected) in expected.iter().enumerate() {
            scope.spawn(move || {
                let device = cuda_device();
                for _ in 0..3 {
                    assert_eq!(&adapted(&values(seed), &device), expected, "seed {seed}");
                }
            });
        }
    });
}

/// What a loss keeps for its backward pass is not locked, and each thread has a backend of its own.
#[test]
fn one_loss_goes_backward_on_several_threads() {
    let device = cuda_device();
    let logits = variable(&values(7), &device);
    let targets = Tensor::new(&TARGETS, &device).expect("targets");
    let batch = Batch::new(&[0, 2, 3], &[0, 2]).expect("valid");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let (loss, _) = preference_loss(logits.as_tensor(), &targets, &batch, Reference::None, &[0.5f32, -0.5], objective)
        .expect("forward");
    let gradient = || {
        let gradients = loss.backward().expect("backward");
        numbers(gradients.get(&logits).expect("a gradient"))
    };
    let expected = gradient();
    assert!(expected.iter().any(|value| *value != 0.0));
    device.synchronize().expect("the other threads' streams go on from here");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..3).for_each(|_| assert!(gradient() == expected)));
        }
    });
}

#[test]
fn the_preference_loss_is_the_backends() {
    let device = cuda_device();
    let cuda = backend();
    let stream = cuda.stream();
    let values = values(3);
    let batch = Batch::new(&[0, 2, 3], &[0, 2]).expect("valid");
    let (per_token, per_sequence) = ([-9.0f32, 0.0, -11.0], [-9.5f64, -10.5]);
    let rewards = [0.5f32, -0.5];
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let options = LossOptions::from(objective).with_logits(options()).with_entropy(true);
    let (logits, targets) =
        (stream.clone_htod(&values).expect("logits"), stream.clone_htod(&TARGETS).expect("targets"));
    let tokens = stream.clone_htod(&per_token).expect("reference");
    let sequences = stream.clone_htod(&per_sequence).expect("reference");
    let references = [
        (Reference::PerToken(&per_token), cuda::Reference::PerToken((&tokens).into())),
        (Reference::PerSequence(&per_sequence), cuda::Reference::PerSequence((&sequences).into())),
        (Reference::None, cuda::Reference::None),
    ];
    for (on_host, on_device) in references {
        let mut loss = PreferenceLoss::new(cuda.clone(), options);
        loss.set_loss_scale(3.0);
        let view = Matrix::new((&logits).into(), VOCAB).expect("rows");
        let step = loss.forward(&view, &targets, &batch, &on_device, &rewards).expect("forward");
        let mut gradient = stream.clone_htod(&values).expect("memory");
        let out = MatrixMut::new((&mut gradient).into(), VOCAB).expect("rows");
        loss.backward(&step, &view, out).expect("backward");

        let variable = variable(&values, &device);
        let targets = Tensor::new(&TARGETS, &device).expect("targets");
        let (value, report) =
            preference_loss(variable.as_tensor(), &targets, &batch, on_host, &rewards, options).expect("forward");
        assert_eq!(&report, loss.report().expect("report"), "{on_host:?}");
        assert!(report.loss > 0.0);
        assert!(value.device().same_device(&device));
        assert_eq!(numbers(&value), [report.loss as f32], "{on_host:?}");
        let gradients = (value * 3.0).and_then(|value| value.backward()).expect("backward");
        let adapted = numbers(gradients.get(&variable).expect("a gradient"));
        assert!(adapted.iter().any(|value| *value != 0.0));
        assert_eq!(adapted, stream.clone_dtoh(&gradient).expect("numbers"), "{on_host:?}");
    }
}

/// A stream that is being captured refuses everything that waits for it; with the guard, candle refuses to bring a
/// number to the host meanwhile.
#[test]
fn token_log_probs_wait_for_nothing() {
    let device = cuda_device();
    let on_cuda = device.as_cuda_device().expect("CUDA");
    let stream = on_cuda.cuda_stream();
    let values = values(4);
    let logits = variable(&values, &device);
    let targets = Tensor::new(&TARGETS, &device).expect("targets");
    // Upstream of ones. A sum would bring candle's sizes and strides from host memory, which is gone at the replay.
    let step = || token_log_probs(logits.as_tensor(), &targets, &options())?.backward();
    // The first call loads kernels and makes scratch memory, which a capture cannot.
    let before = step().expect("a step");
    stream.synchronize().expect("the first step's end");
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
    let guard = on_cuda.enable_cuda_graph_htod_cache();
    let captured = step().expect("a step that waits for nothing");
    drop(guard);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("end of capture").expect("a graph");
    graph.launch().expect("replay");
    let [before, captured] = [before, captured].map(|gradients| numbers(gradients.get(&logits).expect("a gradient")));
    assert_eq!(before, captured);
}

#[test]
fn targets_on_the_device_are_looked_at_there() {
    let device = cuda_device();
    let values = values(5);
    let logits = variable(&values, &device);
    let beyond = Tensor::new(&[0i64, 40_000, 1], &device).expect("targets");
    let log_probs = numbers(&token_log_probs(logits.as_tensor(), &beyond, &options()).expect("forward"));
    assert_eq!([0, 1, 2].map(|row: usize| log_probs[row].is_nan()), [false, true, false]);
    let batch = Batch::new(&[0, 2, 3], &[0, 2]).expect("valid");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let refused = preference_loss(logits.as_tensor(), &beyond, &batch, Reference::None, &[0.0f32, 1.0], objective);
    assert!(refused.expect_err("refused").to_string().contains("target of row 1: 0 to 39999"));
}

#[test]
fn targets_on_another_device_are_refused() {
    let (device, other) = (cuda_device(), cuda_device());
    let logits = variable(&values(6), &device);
    let targets = Tensor::new(&TARGETS, &other).expect("targets");
    let refused = token_log_probs(logits.as_tensor(), &targets, &options()).expect_err("refused").to_string();
    assert!(refused.contains("the device of the logits"), "{refused}");
    let on_host = variable(&values(6), &Device::Cpu);
    let refused = token_log_probs(on_host.as_tensor(), &targets, &options()).expect_err("refused").to_string();
    assert!(refused.contains("the CPU expected"), "{refused}");
}
