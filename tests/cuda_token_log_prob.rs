//! Token log-probs on CUDA against the f64 reference, on rows made to go wrong: forward and backward within the bounds
//! of
//! `exo_kernels::reference::bounds`. On a real device where there is one, on softcuda elsewhere.

#![cfg(feature = "cuda")]

#[path = "support/device.rs"]
mod device;
#[path = "support/rows.rs"]
mod rows;

use cudarc::driver::DeviceRepr;
use device::Rows;
use exo_kernels::cuda::Cuda;
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use rows::adversarial;

/// Around the widths of vectors (8), warps (32), threads of a block (256, 512), and slices (32768).
const VOCABULARIES: [usize; 14] = [1, 2, 7, 8, 9, 31, 33, 255, 257, 4099, 32_767, 32_768, 32_769, 70_001];

const OPTIONS: [(f64, f64); 4] = [(1.0, 0.0), (0.8, 0.0), (1.0, 30.0), (0.7, 2.5)];

fn options(temperature: f64, softcap: f64) -> LogitOptions {
    let options = LogitOptions::default().with_temperature(temperature);
    options.and_then(|options| options.with_softcap(softcap)).expect("valid")
}

/// Panics unless the error is within its bound; equal values, infinities among them, are no error.
#[track_caller]
fn hold(what: &str, computed: f64, expected: f64, bound: f64, context: &dyn Fn() -> String) {
    if computed == expected || computed.is_nan() && expected.is_nan() {
        return;
    }
    let error = (computed - expected).abs();
    assert!(error <= bound, "{what} {computed:e}, {expected:e} +- {bound:e} expected: {}", context());
}

fn check<T: Element + DeviceRepr>(cuda: &Cuda, vocab: usize, options: &LogitOptions) {
    let rows = adversarial::<T>(vocab, vocab as u64);
    let logits: Vec<T> = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
    let targets: Vec<i64> = rows.iter().map(|row| row.target as i64).collect();
    let packed = Rows::new(logits, targets, vocab);
    let forward = packed.forward(cuda, options, true);
    let g = -0.37_f32;
    let upstream = vec![g; rows.len()];
    let plain = packed.forward(cuda, options, false);
    assert_eq!((&plain.log_probs, &plain.states), (&forward.log_probs, &forward.states), "with and without entropies");
    let gradients = packed.backward(cuda, options, &plain, (&upstream, None), false);
    let in_place = packed.backward(cuda, options, &plain, (&upstream, None), true);
    let bits = |values: &[T]| values.iter().map(|value| value.to_f32().to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&gradients), bits(&in_place), "in place and out of place");
    for (index, row) in rows.iter().enumerate() {
        let exact = token_log_prob::forward(&row.logits, row.target, options);
        let bound = bounds::row(Arithmetic::CUDA, &exact, options);
        let context = || format!("{} {:?} V={vocab} {options:?}", row.name, T::DTYPE);
        let (log_prob, state) = (forward.log_probs[index], forward.states[index]);
        hold("log-prob", log_prob.into(), exact.log_prob, bound.log_prob, &context);
        hold("log-sum-exp", state.log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp, &context);
        hold("entropy", forward.entropies[index].into(), exact.entropy, bound.entropy, &context);
        assert!(log_prob <= 0.0 && forward.entropies[index] >= 0.0, "{}", context());
        assert!(state.r == state.r.round(), "r = {} is an integer: {}", state.r, context());
        let expected = token_log_prob::backward(&row.logits, row.target, options, g.into(), 0.0);
        let scaled = token_log_prob::scaled_logits(&row.logits, options);
        for column in 0..vocab {
            let value = expected[column];
            let logit = f64::from(row.logits[column].to_f32());
            let unrounded = bound.grad_logit(value, logit, scaled[column] - exact.log_sum_exp, g.into(), 0.0);
            let bound = unrounded + bounds::rounding(value.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
            let computed = gradients[index * vocab + column].to_f32();
            hold("gradient", computed.into(), value, bound, &|| format!("column {column}, {}", context()));
            if logit == f64::NEG_INFINITY && column != row.target {
                assert_eq!(computed, 0.0, "excluded column {column}: {}", context());
            }
        }
    }
}

fn check_all<T: Element + DeviceRepr>() {
    let cuda = device::cuda();
    for vocab in VOCABULARIES {
        for (temperature, softcap) in OPTIONS {
            check::<T>(&cuda, vocab, &options(temperature, softcap));
        }
    }
}

#[test]
fn f32_within_bounds() {
    check_all::<f32>();
}

#[test]
fn f16_within_bounds() {
    check_all::<f16>();
}

#[test]
fn bf16_within_bounds() {
    check_all::<bf16>();
}

/// Entropy gradients against the reference.
#[test]
fn entropy_gradients_within_bounds() {
    let cuda = device::cuda();
    for vocab in [1, 2, 33, 257, 4099] {
        for (temperature, softcap) in OPTIONS {
            let options = options(temperature, softcap);
            let rows = adversarial::<f32>(vocab, 5);
            let logits: Vec<f32> = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
            let packed = Rows::new(logits, rows.iter().map(|row| row.target as i64).collect(), vocab);
            let forward = packed.forward(&cuda, &options, true);
            let (g, h) = (0.6_f32, -0.25_f32);
            let (of_log_probs, of_entropies) = (vec![g; rows.len()], vec![h; rows.len()]);
            let gradients = packed.backward(&cuda, &options, &forward, (&of_log_probs, Some(&of_entropies)), false);
            for (index, row) in rows.iter().enumerate() {
                let exact = token_log_prob::forward(&row.logits, row.target, &options);
                if !exact.log_prob.is_finite() {
                    continue;
                }
                let bound = bounds::row(Arithmetic::CUDA, &exact, &options);
                let expected = token_log_prob::backward(&row.logits, row.target, &options, g.into(), h.into());
                let of_log_prob = token_log_prob::backward(&row.logits, row.target, &options, g.into(), 0.0);
                let scaled = token_log_prob::scaled_logits(&row.logits, &options);
                for column in 0..vocab {
                    let value = expected[column];
                    let logit = f64::from(row.logits[column]);
                    let log_p = scaled[column] - exact.log_sum_exp;
                    let of_g = bound.grad_logit(of_log_prob[column], logit, log_p, g.into(), 0.0);
                    // -h p (log p + H): the error of p, as the gradient -p of a log-prob elsewhere has it, times the
                    // bracket; and p times the bracket's own error: that of log p, of H, and the rounding of their sum.
                    let p = log_p.exp();
                    let slope =
                        if options.softcap() == 0.0 { 1.0 } else { (logit / options.softcap()).cosh().powi(-2) };
                    let slope = slope / options.temperature();
                    let of_p = bound.grad_logit(-p * slope, logit, log_p, 1.0, 0.0);
                    let size = if p == 0.0 { 0.0 } else { log_p.abs() + exact.entropy };
                    let u = f32::UNIT_ROUNDOFF;
                    let bracket = bound.log_sum_exp + bound.entropy + 3.0 * u * (size + 1.0) + bound.log_prob;
                    let of_h = f64::from(h).abs() * (size * of_p + p * slope * bracket);
                    let unrounded = (of_g + of_h) * 1.01 + 4.0 * u * value.abs();
                    let bound = unrounded + bounds::rounding(value.abs() + unrounded, u, f32::SMALLEST);
                    let computed = gradients[index * vocab + column];
                    let context = || format!("column {column}, {} V={vocab} {options:?}", row.name);
                    hold("gradient", computed.into(), value, bound, &context);
                }
            }
        }
    }
}

/// Masked rows are not read: their logits are NaN.
#[test]
fn masked_rows_cost_and_give_nothing() {
    let cuda = device::cuda();
    let vocab = 1000;
    let mut logits = vec![f32::NAN; 3 * vocab];
    logits[vocab..2 * vocab].fill(0.5);
    let packed = Rows::new(logits, vec![-100, 7, -1], vocab);
    let options = LogitOptions::default();
    let forward = packed.forward(&cuda, &options, true);
    assert_eq!([forward.log_probs[0], forward.log_probs[2]], [0.0; 2]);
    assert_eq!([forward.states[0], forward.states[2]], [SoftmaxState::default(); 2]);
    assert_eq!([forward.entropies[0], forward.entropies[2]], [0.0; 2]);
    let gradients = packed.backward(&cuda, &options, &forward, (&[f32::NAN, 1.0, f32::NAN], None), false);
    assert!(gradients[..vocab].iter().chain(&gradients[2 * vocab..]).all(|gradient| *gradient == 0.0));
    assert_eq!(cuda.status().expect("status"), exo_kernels::cuda::Status::CLEAR);
}

/// Rows without a softmax: NaN for that row, counted, and no other row changes.
#[test]
fn rows_without_a_softmax_are_nan_and_counted() {
    let cuda = device::cuda();
    let vocab = 300;
    let mut logits = vec![0.25_f32; 6 * vocab];
    logits[vocab + 17] = f32::NAN;
    logits[2 * vocab + 299] = f32::INFINITY;
    logits[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
    logits[4 * vocab] = 3e9;
    let packed = Rows::new(logits, vec![5; 6], vocab);
    let forward = packed.forward(&cuda, &LogitOptions::default(), true);
    let nan: Vec<bool> = forward.log_probs.iter().map(|log_prob| log_prob.is_nan()).collect();
    assert_eq!(nan, [false, true, true, true, true, false]);
    let status = cuda.status().expect("status");
    assert_eq!((status.non_finite_rows(), status.first_non_finite_row()), (4, Some(1)));
    let gradients = packed.backward(&cuda, &LogitOptions::default(), &forward, (&[1.0; 6], None), false);
    assert!(gradients[vocab..5 * vocab].iter().all(|gradient| gradient.is_nan()));
    assert!(gradients[..vocab].iter().chain(&gradients[5 * vocab..]).all(|gradient| gradient.is_finite()));
}

/// A target beyond the vocabulary is never an address.
#[test]
fn targets_beyond_the_vocabulary_are_counted() {
    let cuda = device::cuda();
    let packed = Rows::new(vec![0.0_f32; 40], vec![3, 10, 1 << 40, 0], 10);
    let forward = packed.forward(&cuda, &LogitOptions::default(), false);
    assert!(forward.log_probs[1].is_nan() && forward.log_probs[2].is_nan());
    assert!(forward.log_probs[0].is_finite() && forward.log_probs[3].is_finite());
    let status = cuda.status().expect("status");
    assert_eq!((status.bad_targets(), status.first_bad_target_row()), (2, Some(1)));
}

/// Any alignment and stride gives the bits of the aligned, contiguous row; what lies between the rows is not touched.
#[test]
fn alignment_and_stride_do_not_change_bits() {
    let cuda = device::cuda();
    let options = LogitOptions::default();
    for vocab in [9_usize, 250, 1003, 33_000] {
        let values: Vec<bf16> = (0..2 * vocab).map(|i| bf16::from_f32(((i * 7919) % 1013) as f32 * 0.01)).collect();
        let packed = Rows::new(values.clone(), vec![4, vocab as i64 - 1], vocab);
        let expected = packed.forward(&cuda, &options, true);
        let gradient = packed.backward(&cuda, &options, &expected, (&[0.5, -1.5], None), false);
        for offset in 0..8 {
            let row_stride = vocab + 3;
            let mut logits = vec![bf16::NAN; offset + 2 * row_stride];
            for row in 0..2 {
                logits[offset + row * row_stride..][..vocab].copy_from_slice(&values[row * vocab..][..vocab]);
            }
            let strided = Rows { logits, row_stride, offset, ..packed.clone() };
            assert_eq!(strided.forward(&cuda, &options, true), expected, "V={vocab}, offset {offset}");
            for in_place in [false, true] {
                let computed = strided.backward(&cuda, &options, &expected, (&[0.5, -1.5], None), in_place);
                for (index, value) in computed.iter().enumerate() {
                    let place = index.checked_sub(offset).map(|place| (place / row_stride, place % row_stride));
                    match place {
                        Some((row, column)) if column < vocab && row < 2 => {
                            assert_eq!(
                                value.to_bits(),
                                gradient[row * vocab + column].to_bits(),
                                "V={vocab}, offset {offset}"
                            );
                        }
                        _ => assert_eq!(value.to_bits(), bf16::NAN.to_bits(), "padding at {index} was touched"),
                    }
                }
            }
        }
    }
}

/// A row's bits are its own: alone (its slices go to several blocks), or among 800 (one block walks all of them; on
/// softcuda's 132 multiprocessors that begins at 792).
#[test]
fn bits_do_not_depend_on_the_batch() {
    let cuda = device::cuda();
    let vocab = 33_000;
    let row: Vec<f16> = (0..vocab).map(|i| f16::from_f32(((i * 31) % 977) as f32 * 0.02)).collect();
    let options = LogitOptions::default();
    let alone = Rows::new(row.clone(), vec![32_999], vocab).forward(&cuda, &options, true);
    let many = 800;
    let batch = Rows::new(row.repeat(many), vec![32_999; many], vocab).forward(&cuda, &options, true);
    for index in [0, 1, many - 1] {
        assert_eq!(batch.log_probs[index].to_bits(), alone.log_probs[0].to_bits());
        assert_eq!(batch.states[index], alone.states[0]);
        assert_eq!(batch.entropies[index].to_bits(), alone.entropies[0].to_bits());
    }
}
