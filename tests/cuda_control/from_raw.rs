//! A backend on a context and a stream that another framework owns. The framework is played by the driver's API alone:
//! contexts, streams and memory are made, read and destroyed without cudarc's own types.

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUresult, CUstream, cuCtxDestroy_v2, cuCtxGetCurrent, cuCtxSetCurrent,
    cuDeviceGet, cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain, cuInit, cuMemAlloc_v2, cuMemFree_v2,
    cuMemcpyDtoH_v2, cuMemcpyHtoD_v2, cuMemsetD32Async, cuStreamCreate, cuStreamDestroy_v2, cuStreamGetCtx,
    cuStreamSynchronize,
};
use exo_kernels::cuda::raw::{
    self, ForwardOutputs, LinearGradientsAt, LinearInputs, LogRatioInputs, LogRatioOutputs, MatrixAt, ObjectiveInputs,
    ObjectiveOutputs, RowLossesAt, Targets, Upstream,
};
use exo_kernels::cuda::{Cuda, Status};
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::objective::group_loss;
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Betas, Dtype, Error, LogitOptions, Objective, PreferenceLoss, RowLoss, SoftmaxState};
use std::ptr::null_mut;
use support::turn::{self, Turn};

const ROWS: usize = 4;
const SIZE: usize = 8;
/// Two slices: few rows share them out, with scratch memory.
const VOCAB: usize = 33_000;
const TARGETS: [i64; ROWS] = [5, 32_999, -1, 0];

/// A turn with a driver.
fn take_turn() -> Turn {
    let turn = turn::take();
    softcuda::install().expect("softcuda can be loaded where there is no driver");
    softcublas::install().expect("softcublas can be loaded where softcuda is");
    // SAFETY: no pointers.
    succeeded(unsafe { cuInit(0) });
    turn
}

#[track_caller]
fn succeeded(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

fn current() -> CUcontext {
    let mut context = null_mut();
    // SAFETY: a place for the answer.
    succeeded(unsafe { cuCtxGetCurrent(&raw mut context) });
    context
}

fn set_current(context: CUcontext) {
    // A context that is made is put on top of the one before it, which comes back when it is taken away.
    while !current().is_null() {
        // SAFETY: none.
        succeeded(unsafe { cuCtxSetCurrent(null_mut()) });
    }
    // SAFETY: none, or a context of the test's.
    succeeded(unsafe { cuCtxSetCurrent(context) });
}

/// Runs `call` with this context current, and sees that it still is afterwards.
#[track_caller]
fn within<R>(context: CUcontext, call: impl FnOnce() -> R) -> R {
    set_current(context);
    let result = call();
    assert_eq!(current(), context, "the current context has changed");
    result
}

fn device() -> CUdevice {
    let mut device = 0;
    // SAFETY: a place for the answer.
    succeeded(unsafe { cuDeviceGet(&raw mut device, 0) });
    device
}

/// A context, of its own or the device's primary one, and a stream of it.
struct Framework {
    context: CUcontext,
    is_primary: bool,
    stream: CUstream,
}

/// The driver's handles of the legacy and of the per-thread stream.
const LEGACY: CUstream = 1 as CUstream;
const PER_THREAD: CUstream = 2 as CUstream;

impl Framework {
    /// `stream`: a handle, or one that is made.
    fn new(is_primary: bool, stream: Option<CUstream>) -> Self {
        let (mut context, mut made) = (null_mut(), null_mut());
        if is_primary {
            // SAFETY: a place for the answer.
            succeeded(unsafe { cuDevicePrimaryCtxRetain(&raw mut context, device()) });
        } else {
            // cuCtxCreate has another name in every version of CUDA, and cudarc knows which. The rest of its value is given up.
            let own = CudaContext::new_non_primary(0, 0).expect("a context of device 0");
            context = own.cu_ctx();
            std::mem::forget(own);
        }
        set_current(context);
        if stream.is_none() {
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: a place for the answer; a context is current.
            succeeded(unsafe { cuStreamCreate(&raw mut made, flags) });
        }
        Self { context, is_primary, stream: stream.unwrap_or(made) }
    }

    fn backend(&self) -> exo_kernels::Result<Cuda> {
        // SAFETY: the tests drop what they make from it first, on this thread.
        unsafe { Cuda::from_raw(self.context, self.stream) }
    }

    fn upload<T: Copy>(&self, numbers: &[T]) -> CUdeviceptr {
        let mut address = 0;
        set_current(self.context);
        // SAFETY: a place for the address, then memory of this many bytes.
        unsafe {
            succeeded(cuMemAlloc_v2(&raw mut address, size_of_val(numbers)));
            succeeded(cuMemcpyHtoD_v2(address, numbers.as_ptr().cast(), size_of_val(numbers)));
        }
        address
    }

    /// Waits for the stream, and reads numbers.
    fn download<T: Copy + Default>(&self, address: CUdeviceptr, count: usize) -> Vec<T> {
        let mut numbers = vec![T::default(); count];
        set_current(self.context);
        // SAFETY: the stream is this context's; the buffers have this many numbers.
        unsafe {
            succeeded(cuStreamSynchronize(self.stream));
            succeeded(cuMemcpyDtoH_v2(numbers.as_mut_ptr().cast(), address, size_of_val(&numbers[..])));
        }
        numbers
    }

    fn free(&self, addresses: &[CUdeviceptr]) {
        set_current(self.context);
        for &address in addresses {
            // SAFETY: from `upload`.
            succeeded(unsafe { cuMemFree_v2(address) });
        }
    }

    /// The context is alive, and so is the stream, and works.
    fn check_alive(&self) {
        let address = self.upload(&[0_u32; 4]);
        let mut owner = null_mut();
        // SAFETY: four words; a place for the answer.
        unsafe {
            succeeded(cuStreamGetCtx(self.stream, &raw mut owner));
            succeeded(cuMemsetD32Async(address, 7, 4, self.stream));
        }
        assert_eq!(owner, self.context);
        assert_eq!(self.download::<u32>(address, 4), [7; 4]);
        self.free(&[address]);
    }
}

impl Drop for Framework {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        set_current(self.context);
        // SAFETY: made by `new`, and nothing uses them any more.
        unsafe {
            if ![null_mut(), LEGACY, PER_THREAD].contains(&self.stream) {
                succeeded(cuStreamDestroy_v2(self.stream));
            }
            set_current(null_mut());
            succeeded(if self.is_primary {
                cuDevicePrimaryCtxRelease_v2(device())
            } else {
                cuCtxDestroy_v2(self.context)
            });
        }
    }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1013) as f32 * 0.004 - 2.0).collect()
}

/// The stages over so many rows of logits, held to the reference; `around`: the context that is current around every call.
fn check_logits(framework: &Framework, cuda: &Cuda, around: CUcontext, count: usize) {
    let options = LogitOptions::default();
    let (values, upstream) = (numbers(count * VOCAB), [0.5_f32, -1.0, 0.25, 2.0]);
    let logits = framework.upload(&values);
    let gradients = framework.upload(&vec![f32::MAX; count * VOCAB]);
    let ids = framework.upload(&TARGETS[..count]);
    let log_probs = framework.upload(&vec![f32::MAX; count]);
    let states = framework.upload(&vec![SoftmaxState::default(); count]);
    let from = framework.upload(&upstream[..count]);
    let rows = |address| MatrixAt { address, rows: count, columns: VOCAB, row_stride: VOCAB, dtype: Dtype::F32 };
    let targets = Targets::I64(ids);
    let outputs = ForwardOutputs { log_probs, states, entropies: 0 };
    // SAFETY: buffers of these sizes in the framework's context, used on its stream only.
    within(around, || unsafe { raw::token_log_probs(cuda, rows(logits), targets, &options, outputs) })
        .expect("forward");
    let per_row = Upstream::PerRow { log_probs: from, entropies: 0 };
    // SAFETY: as above.
    let backward = || unsafe {
        raw::token_log_probs_backward(cuda, rows(logits), targets, &options, states, 0, per_row, rows(gradients))
    };
    within(around, backward).expect("backward");
    assert_eq!(within(around, || cuda.status()), Ok(Status::CLEAR));
    within(around, || cuda.clear_status()).expect("clear");

    let got = framework.download::<f32>(log_probs, count);
    let of_logits = framework.download::<f32>(gradients, count * VOCAB);
    for (row, (&target, &g)) in TARGETS.iter().zip(&upstream).enumerate().take(count) {
        let (logits, gradient) = (&values[row * VOCAB..][..VOCAB], &of_logits[row * VOCAB..][..VOCAB]);
        if target < 0 {
            assert!(got[row] == 0.0 && gradient.iter().all(|value| *value == 0.0), "a masked row");
            continue;
        }
        let exact = token_log_prob::forward(logits, target as usize, &options);
        let bound = bounds::row(Arithmetic::CUDA, &exact, &options);
        let rounding = f64::from(f32::EPSILON) * exact.log_prob.abs();
        let error = (f64::from(got[row]) - exact.log_prob).abs();
        assert!(error <= bound.log_prob + rounding, "row {row}: {} for {}", got[row], exact.log_prob);
        let exact_gradient = token_log_prob::backward(logits, target as usize, &options, f64::from(g), 0.0);
        for ((value, exact_value), logit) in gradient.iter().zip(exact_gradient).zip(logits) {
            let log_p = f64::from(*logit) - exact.log_sum_exp;
            let bound = bound.grad_logit(exact_value, f64::from(*logit), log_p, f64::from(g), 0.0);
            let error = (f64::from(*value) - exact_value).abs();
            assert!(
                error <= bound + f64::from(f32::EPSILON) * exact_value.abs(),
                "row {row}: {value} for {exact_value}"
            );
        }
    }
    framework.free(&[logits, gradients, ids, log_probs, states, from]);
}

/// Log-ratios and an objective over them, held to the reference.
fn check_sequences(framework: &Framework, cuda: &Cuda, around: CUcontext) {
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas");
    let (of_rows, rewards) = ([-1.0_f32, -2.5, -7.0, -0.25], [1.0_f64, 0.0]);
    let (log_probs, ids) = (framework.upload(&of_rows), framework.upload(&TARGETS));
    let (sequence_offsets, group_offsets) = (framework.upload(&[0_i64, 1, 4]), framework.upload(&[0_i64, 2]));
    let (log_ratios, log_prob_sums) = (framework.upload(&[f64::MAX; 2]), framework.upload(&[f64::MAX; 2]));
    let (scored_rows, row_sequences) = (framework.upload(&[-1_i32; 2]), framework.upload(&[-1_i32; ROWS]));
    let (group_losses, coefficients) = (framework.upload(&[f64::MAX]), framework.upload(&[f64::MAX; 2]));
    let of_rewards = framework.upload(&rewards);
    let inputs = LogRatioInputs {
        log_probs,
        entropies: 0,
        targets: Targets::I64(ids),
        reference_tokens: 0,
        reference_sequences: 0,
        sequence_offsets,
        sequences: 2,
        mean: false,
    };
    let row_targets = framework.upload(&[7_u32; ROWS]);
    let outputs =
        LogRatioOutputs { log_ratios, log_prob_sums, entropy_sums: 0, scored_rows, row_sequences, row_targets };
    // SAFETY: as in `check_logits`.
    within(around, || unsafe { raw::log_ratios(cuda, inputs, outputs) }).expect("log-ratios");
    let inputs = ObjectiveInputs {
        log_ratios,
        rewards: raw::Rewards::F64(of_rewards),
        proposal_offsets: 0,
        group_offsets,
        scored_rows: 0,
        groups: 1,
        mean: false,
        weight: 1.0,
    };
    let outputs = ObjectiveOutputs { group_losses, coefficients, sequence_weights: 0, statistics: 0 };
    // SAFETY: as in `check_logits`.
    within(around, || unsafe { raw::objective(cuda, &objective, inputs, outputs) }).expect("objective");

    assert_eq!(framework.download::<f64>(log_ratios, 2), [-1.0, -2.75], "the third row is masked");
    let kept = framework.download::<u32>(row_targets, ROWS);
    assert!(kept.iter().zip(TARGETS).all(|(kept, id)| i64::from(*kept as i32) == id.max(-1)), "{kept:?}");
    let exact = group_loss(&objective, &[-1.0, -2.75], &rewards, &[0.0; 2]);
    let loss = framework.download::<f64>(group_losses, 1)[0];
    assert!((loss - exact.loss).abs() < 1e-12, "{loss} for {}", exact.loss);
    framework.free(&[log_probs, ids, sequence_offsets, group_offsets, log_ratios, log_prob_sums, scored_rows]);
    framework.free(&[row_sequences, row_targets, group_losses, coefficients, of_rewards]);
}

/// The linear stage, whose products are cuBLAS's, held to the reference.
fn check_linear(framework: &Framework, cuda: &Cuda, around: CUcontext) {
    const VOCAB: usize = 40;
    let options = LogitOptions::default();
    let (of_hidden, of_weight, ids) = (numbers(ROWS * SIZE), numbers(VOCAB * SIZE), [5_u32, 39, 7, 0]);
    let (hidden, weight, targets) =
        (framework.upload(&of_hidden), framework.upload(&of_weight), framework.upload(&ids));
    let (hidden_gradient, weight_gradient) = (framework.upload(&of_hidden), framework.upload(&of_weight));
    let (log_probs, losses) = (framework.upload(&[f32::MAX; ROWS]), framework.upload(&[f32::MAX; ROWS]));
    let states = framework.upload(&[SoftmaxState::default(); ROWS]);
    let weights = framework.upload(&[1.0_f32; ROWS]);
    let matrix = |address, rows| MatrixAt { address, rows, columns: SIZE, row_stride: SIZE, dtype: Dtype::F32 };
    let inputs = LinearInputs {
        hidden: matrix(hidden, ROWS),
        weight: matrix(weight, VOCAB),
        bias: 0,
        targets: Targets::U32(targets),
        scored_rows: None,
    };
    let gradients = LinearGradientsAt {
        hidden: Some(matrix(hidden_gradient, ROWS)),
        weight: Some(matrix(weight_gradient, VOCAB)),
        bias: 0,
        bias_dtype: Dtype::F32,
        accumulate: false,
    };
    let outputs = ForwardOutputs { log_probs, states, entropies: 0 };
    // SAFETY: as in `check_logits`.
    within(around, || unsafe { raw::linear_token_log_probs(cuda, &inputs, &options, outputs) }).expect("forward");
    let per_row = Upstream::PerRow { log_probs: weights, entropies: 0 };
    // SAFETY: as in `check_logits`.
    let backward =
        || unsafe { raw::linear_token_log_probs_backward(cuda, &inputs, &options, (states, 0), per_row, &gradients) };
    within(around, backward).expect("backward");
    let of_backward = framework.download::<f32>(hidden_gradient, ROWS * SIZE);
    // Minus the log-prob: the same gradients with another sign.
    let outputs = RowLossesAt { losses, log_probs };
    let loss = RowLoss::Weighted { weights };
    // SAFETY: as in `check_logits`.
    let row_loss = || unsafe { raw::linear_row_loss(cuda, &inputs, &options, &loss, outputs, &gradients) };
    within(around, row_loss).expect("row loss");

    let (got, of_losses) = (framework.download::<f32>(log_probs, ROWS), framework.download::<f32>(losses, ROWS));
    let of_row_loss = framework.download::<f32>(hidden_gradient, ROWS * SIZE);
    assert!(of_backward.iter().any(|value| *value != 0.0));
    assert!(
        of_backward.iter().zip(&of_row_loss).all(|(a, b)| (a + b).abs() <= 1e-6),
        "{of_backward:?} {of_row_loss:?}"
    );
    for (row, &target) in ids.iter().enumerate() {
        let hidden = &of_hidden[row * SIZE..][..SIZE];
        let product = |weight: &[f32]| hidden.iter().zip(weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let logits: Vec<f64> = of_weight.chunks(SIZE).map(product).collect();
        let exact = token_log_prob::forward_f64(&logits, target as usize, &options).log_prob;
        assert!((f64::from(got[row]) - exact).abs() < 1e-5, "row {row}: {} for {exact}", got[row]);
        assert_eq!(of_losses[row], -got[row]);
    }
    framework.free(&[hidden, weight, targets, hidden_gradient, weight_gradient, log_probs, losses, states, weights]);
}

/// Own and primary contexts, streams of every kind, and every context that may be current around a call: none, the
/// framework's, and another one of the device.
#[test]
fn every_call_leaves_context_and_stream_as_they_were() {
    let _turn = take_turn();
    let other = Framework::new(false, None);
    for is_primary in [false, true] {
        for stream in [None, Some(null_mut()), Some(LEGACY), Some(PER_THREAD)] {
            let framework = Framework::new(is_primary, stream);
            let in_use = || softcuda::control().map(|control| control.memory_in_use());
            let before = in_use();
            for around in [null_mut(), framework.context, other.context] {
                let cuda = within(around, || framework.backend()).expect("the kernels load");
                assert_eq!(cuda.stream().cu_stream(), framework.stream);
                // More rows than before: scratch memory is freed and taken again.
                check_logits(&framework, &cuda, around, 1);
                check_logits(&framework, &cuda, around, ROWS);
                check_sequences(&framework, &cuda, around);
                check_linear(&framework, &cuda, around);
                let clone = within(around, || cuda.clone());
                within(around, || drop(cuda));
                check_sequences(&framework, &clone, around);
                within(around, || drop(clone));
                framework.check_alive();
                assert_eq!(in_use(), before, "bytes on the device: {is_primary}, {stream:?}, {around:?}");
            }
        }
    }
    other.check_alive();
}

/// Two contexts of one device with a backend each, called in turn.
#[test]
fn contexts_of_one_device_do_not_meet() {
    let _turn = take_turn();
    let frameworks = [Framework::new(false, None), Framework::new(false, None)];
    let backends = frameworks.each_ref().map(|framework| framework.backend().expect("the kernels load"));
    for around in [null_mut(), frameworks[0].context, frameworks[1].context] {
        for (framework, cuda) in frameworks.iter().zip(&backends) {
            check_sequences(framework, cuda, around);
            check_linear(framework, cuda, around);
        }
    }
    let [first, second] = backends;
    within(frameworks[1].context, || drop(first));
    check_sequences(&frameworks[1], &second, frameworks[0].context);
    within(null_mut(), || drop(second));
    frameworks.iter().for_each(Framework::check_alive);
}

/// What holds the stream longer than the backend does, or shares the context's kernels, destroys nothing either.
#[test]
fn what_outlives_a_backend_destroys_nothing() {
    let _turn = take_turn();
    let framework = Framework::new(false, None);
    let first = framework.backend().expect("the kernels load");
    // Shares the kernels that the first has loaded.
    let second = framework.backend().expect("the kernels load");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas");
    let loss = PreferenceLoss::new(first.clone(), objective);
    let (stream, same) = (first.stream().clone(), Cuda::new(first.stream()).expect("the kernels load"));
    drop(first);
    check_logits(&framework, &second, null_mut(), 1);
    drop(second);
    framework.check_alive();
    check_sequences(&framework, &same, null_mut());
    drop((loss, same));
    framework.check_alive();
    drop(stream);
    framework.check_alive();
}

#[test]
fn what_does_not_fit_is_refused() {
    let _turn = take_turn();
    let (framework, other) = (Framework::new(false, None), Framework::new(false, None));
    for around in [null_mut(), framework.context, other.context] {
        // SAFETY: what is wrong is refused.
        let refused = within(around, || unsafe { Cuda::from_raw(framework.context, other.stream) }).map(drop);
        assert_eq!(refused, Err(Error::Device { what: "stream", given: 0, expected: 0 }));
        // SAFETY: as above.
        let refused = within(around, || unsafe { Cuda::from_raw(null_mut(), null_mut()) }).map(drop);
        assert!(matches!(&refused, Err(Error::Cuda { call: "cuCtxGetDevice", .. })), "{refused:?}");
    }
    framework.check_alive();
    other.check_alive();
}
