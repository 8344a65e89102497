//! Device memory of the adapter: what is kept for a stream goes with it, and no logits are copied.
//!
//! All memory of the process is counted, so the tests of this file run one after the other.

use exo_kernels::{Batch, Betas, LogitOptions, Objective, Reference};
use exo_kernels_candle::candle_core::cuda_backend::cudarc::driver::result::mem_get_info;
use exo_kernels_candle::candle_core::{self, Device, Tensor, Var};
use exo_kernels_candle::{linear_preference_loss, linear_token_log_probs, preference_loss, token_log_probs};
use std::sync::{Mutex, PoisonError};

/// The first device, opened anew.
fn cuda_device() -> Device {
    Device::new_cuda(0).expect("device 0")
}

static ALONE: Mutex<()> = Mutex::new(());

/// What cuBLAS gets to work with, and the least that a stream cost.
const WORKSPACE: usize = 32 << 20;

/// Bytes of device memory in use. A context must be current to the thread: that of a device that it has used.
fn in_use() -> usize {
    let (free, total) = mem_get_info().expect("a context");
    total - free
}

fn variable(shape: &[usize], device: &Device) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 512) as f32 / 256.0 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, device).expect("a tensor")).expect("a variable")
}

fn objective() -> Objective {
    Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid")
}

/// Forward and backward of both losses, of rows that several blocks share.
fn step(device: &Device) {
    let targets = Tensor::new(&[1i64, 5, 3, 2], device).expect("targets");
    let batch = Batch::padded(4, 1, 4).expect("valid");
    let rewards = [0.5f32, -0.5, 1.0, 0.0];
    let (hidden, weight) = (variable(&[4, 8], device), variable(&[600, 8], device));
    let (hidden, weight) = (hidden.as_tensor(), weight.as_tensor());
    let options = LogitOptions::default();
    let log_probs = linear_token_log_probs(hidden, weight, None, &targets, &options).expect("forward");
    log_probs.backward().expect("backward");
    let loss = linear_preference_loss(hidden, weight, None, &targets, &batch, Reference::None, &rewards, objective());
    loss.expect("forward").0.backward().expect("backward");
    let logits = variable(&[4, 40_000], device);
    let log_probs = token_log_probs(logits.as_tensor(), &targets, &options).expect("forward");
    log_probs.backward().expect("backward");
    let loss = preference_loss(logits.as_tensor(), &targets, &batch, Reference::None, &rewards, objective());
    loss.expect("forward").0.backward().expect("backward");
}

fn new_stream() -> Device {
    Device::new_cuda_with_stream(0).expect("device 0")
}

#[test]
fn what_is_kept_for_a_stream_goes_with_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lasting = cuda_device();
    step(&lasting);
    let before = in_use();
    let mut after = Vec::new();
    for _ in 0..6 {
        let device = new_stream();
        step(&device);
        assert!(in_use() >= before + WORKSPACE, "the memory of a stream is seen");
        drop(device);
        // The next operation of this thread, on whatever device, lets go of it.
        step(&lasting);
        after.push(in_use());
    }
    assert_eq!(after, [before; 6], "bytes in use");
}

/// As long as there is a user, nothing is made anew.
#[test]
fn what_is_kept_for_a_stream_stays_while_it_has_a_user() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (lasting, device) = (cuda_device(), new_stream());
    step(&device);
    step(&lasting);
    let before = in_use();
    // A tensor is one too, though the device is gone.
    let tensor = variable(&[2, 3], &device);
    drop(device);
    step(&lasting);
    assert!(in_use() >= before, "{} bytes, {before} before", in_use());
    step(&tensor.device().clone());
    let again = in_use();
    step(&lasting);
    assert_eq!(in_use(), again);
    drop(tensor);
    step(&lasting);
    assert!(in_use() + WORKSPACE <= before, "{} bytes, {before} before", in_use());
}

/// candle's default stream is one per thread: what is kept for it is too, also where another thread has gone forward.
#[test]
fn a_thread_goes_backward_with_what_it_keeps_itself() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = cuda_device();
    step(&device);
    let targets = Tensor::new(&[1i64, 5, 3, 2], &device).expect("targets");
    let batch = Batch::padded(4, 1, 4).expect("valid");
    let (hidden, weight) = (variable(&[4, 8], &device), variable(&[600, 8], &device));
    let (hidden, weight, rewards) = (hidden.as_tensor(), weight.as_tensor(), [0.5f32, -0.5, 1.0, 0.0]);
    let loss = linear_preference_loss(hidden, weight, None, &targets, &batch, Reference::None, &rewards, objective());
    let values = [
        loss.expect("forward").0,
        linear_token_log_probs(hidden, weight, None, &targets, &LogitOptions::default()).expect("forward"),
    ];
    for value in values {
        device.synchronize().expect("another thread's stream goes on from here");
        let before = in_use();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                value.backward().expect("backward");
                assert!(in_use() >= before + WORKSPACE, "{} bytes, {before} before", in_use());
            });
        });
    }
}

/// `[B, T, V]` and `[B, T, H]`, narrowed: the graph holds no copy of them. The linear loss keeps as many bytes, of the unit
/// gradients of the rows.
#[test]
fn rows_at_one_stride_are_not_copied() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = cuda_device();
    step(&device);
    let (width, bytes) = (10_000, 4 * 10_000 * size_of::<f32>());
    let logits = variable(&[2, 2, width + 16], &device);
    let narrowed = logits.narrow(2, 0, width).expect("narrow");
    let targets = Tensor::new(&[[1i64, 5], [3, 2]], &device).expect("targets");
    let weight = variable(&[7, width], &device);
    let batch = Batch::padded(2, 2, 2).expect("valid");
    let (options, rewards) = (LogitOptions::default(), [1.0f32, 0.0]);
    let linear_loss = || {
        let (weight, none) = (weight.as_tensor(), Reference::None);
        let loss = linear_preference_loss(&narrowed, weight, None, &targets, &batch, none, &rewards, objective());
        Ok(loss?.0)
    };
    let operations: [(&dyn Fn() -> candle_core::Result<Tensor>, usize); 4] = [
        (&|| token_log_probs(&narrowed, &targets, &options), 0),
        (&|| Ok(preference_loss(&narrowed, &targets, &batch, Reference::None, &rewards, objective())?.0), 0),
        (&|| linear_token_log_probs(&narrowed, weight.as_tensor(), None, &targets, &options), 0),
        (&linear_loss, bytes),
    ];
    for (index, (operation, kept)) in operations.into_iter().enumerate() {
        drop(operation().expect("a first time, for what is kept"));
        let before = in_use();
        let value = operation().expect("forward");
        assert!(in_use() - before < kept + bytes / 8, "operation {index}: {} bytes", in_use() - before);
        let gradients = value.backward().expect("backward");
        assert_eq!(gradients.get(&logits).expect("a gradient").dims(), logits.dims());
    }
}
