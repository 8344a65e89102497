//! The token log-prob stage on CUDA, what is its own beside the contracts that all backends share: what the device counts
//! of bad rows, and that who reduces a row changes no bit.

use exo_kernels::{LogitOptions, SoftmaxState};
use half::f16;
use support::backend::TestBackend;
use support::device::{self};
use support::host_rows::Rows;

/// Masked rows are not read: their logits are NaN.
#[test]
fn masked_rows_cost_and_give_nothing() {
    let cuda = device::cuda();
    let vocab = 1000;
    let mut logits = vec![f32::NAN; 3 * vocab];
    logits[vocab..2 * vocab].fill(0.5);
    let packed = Rows::new(logits, vec![-100, 7, -1], vocab);
    let options = LogitOptions::default();
    let forward = cuda.forward(&packed, &options, true);
    assert_eq!([forward.log_probs[0], forward.log_probs[2]], [0.0; 2]);
    assert_eq!([forward.states[0], forward.states[2]], [SoftmaxState::default(); 2]);
    assert_eq!([forward.entropies[0], forward.entropies[2]], [0.0; 2]);
    let gradients = cuda.backward(&packed, &options, &forward, (&[f32::NAN, 1.0, f32::NAN], None), false);
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
    let forward = cuda.forward(&packed, &LogitOptions::default(), true);
    let nan: Vec<bool> = forward.log_probs.iter().map(|log_prob| log_prob.is_nan()).collect();
    assert_eq!(nan, [false, true, true, true, true, false]);
    let status = cuda.status().expect("status");
    assert_eq!((status.non_finite_rows(), status.first_non_finite_row()), (4, Some(1)));
    let gradients = cuda.backward(&packed, &LogitOptions::default(), &forward, (&[1.0; 6], None), false);
    assert!(gradients[vocab..5 * vocab].iter().all(|gradient| gradient.is_nan()));
    assert!(gradients[..vocab].iter().chain(&gradients[5 * vocab..]).all(|gradient| gradient.is_finite()));
}

/// A target beyond the vocabulary is never an address.
#[test]
fn targets_beyond_the_vocabulary_are_counted() {
    let cuda = device::cuda();
    let packed = Rows::new(vec![0.0_f32; 40], vec![3, 10, 1 << 40, 0], 10);
    let forward = cuda.forward(&packed, &LogitOptions::default(), false);
    assert!(forward.log_probs[1].is_nan() && forward.log_probs[2].is_nan());
    assert!(forward.log_probs[0].is_finite() && forward.log_probs[3].is_finite());
    let status = cuda.status().expect("status");
    assert_eq!((status.bad_targets(), status.first_bad_target_row()), (2, Some(1)));
}

/// A row's bits are its own: alone (its slices go to several blocks), or among 800 (one block walks all of them; on
/// softcuda's 132 multiprocessors that begins at 792).
#[test]
fn bits_do_not_depend_on_the_batch() {
    let cuda = device::cuda();
    let vocab = 33_000;
    let row: Vec<f16> = (0..vocab).map(|i| f16::from_f32(((i * 31) % 977) as f32 * 0.02)).collect();
    let options = LogitOptions::default();
    let alone = cuda.forward(&Rows::new(row.clone(), vec![32_999], vocab), &options, true);
    let many = 800;
    let batch = cuda.forward(&Rows::new(row.repeat(many), vec![32_999; many], vocab), &options, true);
    for index in [0, 1, many - 1] {
        assert_eq!(batch.log_probs[index].to_bits(), alone.log_probs[0].to_bits());
        assert_eq!(batch.states[index], alone.states[0]);
        assert_eq!(batch.entropies[index].to_bits(), alone.entropies[0].to_bits());
    }
}
