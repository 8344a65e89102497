//! The forward kernel of compute capability 10.x: how many exponentials it takes, and how close the polynomial that saves the others
//! is, as the kernel computes it.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{Cuda, Matrix, TokenLogProbs};
use exo_kernels::{Backend, Dtype, Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use softcuda::Settings;
use support::device::{self, download, upload};
use support::turn::{self, Turn};

const OWN: &str = "sm100/token_log_prob";

/// A device of 10.0 with its kernel.
fn device() -> Option<(Turn, Cuda)> {
    let turn = turn::take();
    drop(device::cuda());
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: a real device is what it is");
        return None;
    };
    control.configure(&Settings { compute_capability: (10, 0), ..Settings::default() });
    let cuda = device::cuda();
    let (file, _) = cuda.row_sharing(Dtype::Bf16, 100);
    // Whether a build that should have it does, tests/contract/other_devices.rs asks.
    if file != OWN {
        println!("NOT RUN: the kernels are not built for 10.x");
        return None;
    }
    Some((turn, cuda))
}

/// States of packed rows.
fn states<T: Element + DeviceRepr>(
    cuda: &Cuda,
    logits: &[T],
    vocab: usize,
    options: &LogitOptions,
    entropy: bool,
) -> Vec<SoftmaxState> {
    let rows = logits.len() / vocab;
    let (logits, targets) = (upload(cuda, logits), upload(cuda, &vec![0u32; rows]));
    let mut log_probs = upload(cuda, &vec![f32::MAX; rows]);
    let mut states = upload(cuda, &vec![SoftmaxState::default(); rows]);
    let mut entropies = upload(cuda, &vec![f32::MAX; rows]);
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: entropy.then(|| entropies.as_view_mut().into()),
    };
    let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
    cuda.clone().token_log_probs(&view, &targets, options, outputs).expect("forward");
    download(cuda, &states)
}

fn exponentials<T: Element + DeviceRepr>(cuda: &Cuda, softcap: f64, entropy: bool) -> f64 {
    let (rows, vocab) = (4, 65_536);
    let logits: Vec<T> = (0..rows * vocab).map(|i| T::from_f32(((i * 7919) % 1013) as f32 * 0.02 - 9.0)).collect();
    let control = softcuda::control().expect("softcuda");
    control.take_launches();
    let options = LogitOptions::default().with_softcap(softcap).expect("a softcap");
    states(cuda, &logits, vocab, &options, entropy);
    let launches = control.take_launches();
    launches[0].counters.special_function_results as f64 / (rows * vocab) as f64
}

/// Three of four 16-bit logits, and every one of 32 bits.
#[test]
fn every_fourth_exponential_of_16_bit_logits_is_a_polynomial() {
    let Some((_turn, cuda)) = device() else { return };
    for (softcap, entropy) in [(0.0, false), (0.0, true), (30.0, false), (30.0, true)] {
        let found = [
            exponentials::<bf16>(&cuda, softcap, entropy),
            exponentials::<f16>(&cuda, softcap, entropy),
            exponentials::<f32>(&cuda, softcap, entropy),
        ];
        println!("softcap {softcap}, entropy {entropy}: {found:.4?} exponentials per logit");
        // Besides the logits' there is what 1/softcap and a row's results take.
        for (found, logits) in found.into_iter().zip([0.75, 0.75, 1.0]) {
            assert!((logits..logits + 0.01).contains(&found), "{found} exponentials per logit, {logits} expected");
        }
    }
}

/// Rows whose only logits are in columns that take the polynomial: its value is then the state's s, for arguments all over
/// [−1, 0]; and next to the smallest powers, beside a logit of 0, it is nothing or no more than it should be.
#[test]
fn the_polynomial_in_the_kernel_is_as_close_as_an_exponential() {
    const VOCAB: usize = 8;
    let Some((_turn, cuda)) = device() else { return };
    let mut largest: f64 = 0.0;
    for step in 0..24 {
        let temperature = 1.0 + f64::from(step) * 0.045;
        let options = LogitOptions::default().with_temperature(temperature).expect("a temperature");
        let scale = std::f64::consts::LOG2_E / temperature;
        let values: Vec<f16> = (0..1024).map(|i| f16::from_f32(-0.69 * i as f32 / 1024.0)).collect();
        let mut logits = vec![f16::NEG_INFINITY; values.len() * VOCAB];
        for (row, &value) in values.iter().enumerate() {
            logits[row * VOCAB + 6 + row % 2] = value;
        }
        let states = states(&cuda, &logits, VOCAB, &options, step % 2 == 1);
        for (value, state) in values.iter().zip(states) {
            let exponent = f64::from(value.to_f32()) * scale - f64::from(state.r);
            let expected = exponent.exp2();
            let u = 1.0 / (1u64 << 24) as f64;
            // 4 u as the bounds have it for ex2.approx; the factor and the argument are each rounded once.
            let rounded = 4.0 + std::f64::consts::LN_2 * 2.0;
            let share = (f64::from(state.s) / expected - 1.0).abs() / (rounded * u);
            assert!(share <= 1.0, "2^{exponent}: {} for {expected}, {share} of the bound", state.s);
            largest = largest.max(share);
        }
    }
    println!("{largest:.3} of the bound");
}

/// Arguments from 0 down to −200, infinities and NaN: what is below the smallest power counts as 0, and nothing else comes of
/// the exponent's field.
#[test]
fn the_polynomial_goes_to_zero_and_keeps_nan() {
    const VOCAB: usize = 8;
    let Some((_turn, cuda)) = device() else { return };
    let options = LogitOptions::default().with_temperature(std::f64::consts::LOG2_E).expect("a temperature");
    let values: Vec<bf16> = (0..800).map(|i| bf16::from_f32(-0.25 * i as f32)).collect();
    let special = [f32::NEG_INFINITY, -3e38, -1e30, f32::NAN].map(bf16::from_f32);
    let values: Vec<bf16> = values.into_iter().chain(special).collect();
    let mut logits = vec![bf16::NEG_INFINITY; values.len() * VOCAB];
    for (row, &value) in values.iter().enumerate() {
        // In both columns that take it, beside the largest, whose power is 1.
        logits[row * VOCAB] = bf16::ZERO;
        logits[row * VOCAB + 6] = value;
        logits[row * VOCAB + 7] = value;
    }
    for entropy in [false, true] {
        for (value, state) in values.iter().zip(states(&cuda, &logits, VOCAB, &options, entropy)) {
            let value = f64::from(value.to_f32());
            let expected = 1.0 + 2.0 * value.exp2();
            let s = f64::from(state.s) * f64::from(state.r).exp2();
            assert_eq!(s.is_nan(), value.is_nan(), "2^{value}: {state:?}");
            assert!(s.is_nan() || (s / expected - 1.0).abs() < 1e-6, "2^{value}: {s} for {expected}");
        }
    }
}
