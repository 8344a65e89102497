//! Shapes and values at the edge: one column, odd widths, unaligned rows, leading −inf, lone peaks, large offsets, rows
//! beyond 2³² elements.

use approx::{abs_diff_eq, assert_abs_diff_eq, assert_relative_eq};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{
    Backend, Cpu, Element, LogitOptions, Matrix, MatrixMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use support::backend::{Forward, Rows, TestBackend, on_backend, on_every_training_backend};

on_every_training_backend!(
    a_single_column_is_certain,
    equal_logits_are_uniform_at_every_width,
    a_common_offset_changes_nothing,
    leading_and_scattered_minus_infinities,
    columns_far_below_the_others_count_for_nothing,
    logits_at_the_end_of_f32,
    a_gradient_of_nan_stays_nan_whatever_its_bits,
    upstream_gradients_that_do_not_fit_give_nan,
    an_entropy_without_a_gradient_is_not_looked_at,
);
// All but one: how far below a half s lies at such logits is a matter of how a backend rounds 1/ln 2.
on_backend!(
    specification,
    exo_kernels::reference::ReferenceBackend,
    an_entropy_without_a_gradient_is_not_looked_at,
    a_single_column_is_certain,
    equal_logits_are_uniform_at_every_width,
    a_common_offset_changes_nothing,
    leading_and_scattered_minus_infinities,
    columns_far_below_the_others_count_for_nothing,
    logits_at_the_end_of_f32,
    a_gradient_of_nan_stays_nan_whatever_its_bits,
);

/// One row, with its entropy.
fn forward<T: Element>(backend: &impl TestBackend, logits: &[T], target: usize) -> Forward {
    backend.forward(&Rows::one(logits, target), &LogitOptions::default(), true)
}

fn a_single_column_is_certain<B: TestBackend>(backend: &B) {
    // The power's own error: the CPU's log-prob is free of it, CUDA's is not where the column's power is not exactly 1.
    let log_prob_error = B::pick(0.0, B::ARITHMETIC.exp2 * B::ARITHMETIC.unit_roundoff) as f32;
    for value in [0.0f32, -3000.0, 65_000.0, 5e8, -5e8, f32::MIN_POSITIVE] {
        let rows = forward(backend, &[value], 0);
        let log_prob = rows.log_probs[0];
        assert!(log_prob <= 0.0 && -log_prob <= log_prob_error, "{value}: {log_prob:e}");
        assert!(rows.entropies[0] <= 2.0 * f32::EPSILON, "{value}: {}", rows.entropies[0]);
    }
    let rows = Rows::new(vec![f16::from_f32(3.0), f16::from_f32(-1.0)], vec![0, 0], 1);
    let options = LogitOptions::default();
    let found = backend.forward(&rows, &options, false);
    let gradient = backend.backward(&rows, &options, &found, (&[0.5, -0.5], None), false);
    assert!(gradient.iter().all(|gradient| gradient.to_f32() == 0.0));
}

/// Every width up to some, and those around a chunk, a slice, three slices.
fn widths<B: TestBackend>(_: &B) -> impl Iterator<Item = usize> {
    (1..=B::pick(130, 40)).chain([2047, 2048, 2049, 32_767, 32_768, 32_769, 100_003])
}

fn equal_logits_are_uniform_at_every_width(backend: &impl TestBackend) {
    for vocab in widths(backend) {
        let values = [0.0f32, 2999.5, -1e6];
        let logits = values.iter().flat_map(|value| vec![*value; vocab]).collect();
        let rows = Rows::new(logits, vec![vocab as i64 - 1; 3], vocab);
        let found = backend.forward(&rows, &LogitOptions::default(), true);
        let expected = -(vocab as f64).ln();
        // t is the same in every column and its 2^t too: the sum is V times that, exactly or to its few roundings.
        let bound = 30.0 * f64::from(f32::EPSILON) * expected.abs().max(1.0);
        for (row, value) in values.iter().enumerate() {
            let (log_prob, entropy) = (f64::from(found.log_probs[row]), f64::from(found.entropies[row]));
            assert!((log_prob - expected).abs() <= bound, "V={vocab} {value}: {log_prob}");
            assert!((entropy + expected).abs() <= 4.0 * bound, "V={vocab} {value}: {entropy}");
        }
    }
}

/// A maximum that starts at 0 underflows here (as in verl's kernel); x − log-sum-exp in f32 would be off by 1e-4.
fn a_common_offset_changes_nothing(backend: &impl TestBackend) {
    let base: Vec<f32> = (0..1000).map(|j| (j * 37 % 64) as f32 / 8.0).collect();
    let expected = forward(backend, &base, 500);
    for offset in [3000.0f32, -3000.0, 65_536.0, -65_536.0] {
        // Multiples of 1/8: the sum is exact.
        let moved: Vec<f32> = base.iter().map(|x| x + offset).collect();
        let rows = forward(backend, &moved, 500);
        let error = (rows.log_probs[0] - expected.log_probs[0]).abs();
        assert!(error <= 8.0 * f32::EPSILON * expected.log_probs[0].abs(), "{offset}: {error}");
    }
}

/// (−inf) − (−inf) in the first tile (flash-attention #1930).
fn leading_and_scattered_minus_infinities(backend: &impl TestBackend) {
    for vocab in [3usize, 40, 3000, 40_000] {
        let mut logits = vec![f32::NEG_INFINITY; vocab];
        logits[vocab - 1] = 1.0;
        logits[vocab / 2] = 1.0;
        let rows = forward(backend, &logits, vocab - 1);
        assert!(
            abs_diff_eq!(f64::from(rows.log_probs[0]), -std::f64::consts::LN_2, epsilon = 1e-7),
            "V={vocab}: {}",
            rows.log_probs[0]
        );
        assert!(abs_diff_eq!(f64::from(rows.entropies[0]), std::f64::consts::LN_2, epsilon = 1e-6), "V={vocab}");
    }
}

/// The processor's own (for CUDA it stands in `cuda_determinism.rs`): element offsets past 2³¹ and 2³². The rows between are never touched, so the pages of this allocation are
/// never there.
#[test]
fn rows_beyond_32_bits_of_elements() {
    let vocab = 50;
    for stride in [(1usize << 31) + 3, (1 << 32) + 5] {
        let elements = stride + vocab;
        // Zeroed pages straight from the allocator: none of them exists before it is written to.
        let mut data = vec![0u16; elements];
        let data: &mut [bf16] = bytemuck::cast_slice_mut(&mut data);
        for column in 0..vocab {
            data[column] = bf16::from_f32(column as f32 * 0.25);
            data[stride + column] = bf16::from_f32(-(column as f32) * 0.25);
        }
        let targets = [7i64, 7];
        let logits = Matrix::strided(data, 2, vocab, stride).expect("fits");
        let (mut log_probs, mut states) = ([f32::NAN; 2], [SoftmaxState::default(); 2]);
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
        Cpu::default().token_log_probs(&logits, &targets, &LogitOptions::default(), outputs).expect("forward");
        let near: Vec<bf16> = data[..vocab].iter().chain(&data[stride..]).copied().collect();
        let expected =
            Cpu::default().forward(&Rows::new(near.clone(), targets.to_vec(), vocab), &LogitOptions::default(), false);
        assert_eq!(log_probs[..], expected.log_probs);
        assert_ne!(log_probs[0], log_probs[1]);

        let saved = SavedRows { states: &states, entropies: None };
        let gradients = RowGradients::PerRow { log_probs: &[1.0, 1.0], entropies: None };
        let mut grad = vec![bf16::NAN; 2 * vocab];
        let (view, out) = (Matrix::new(&near, vocab).expect("two"), MatrixMut::new(&mut grad, vocab).expect("two"));
        Cpu::default()
            .token_log_probs_backward(&view, &targets, &LogitOptions::default(), &saved, &gradients, out)
            .expect("backward");
        let far = MatrixMut::strided(data, 2, vocab, stride).expect("fits");
        Cpu::default()
            .token_log_probs_backward_in_place(far, &targets, &LogitOptions::default(), &saved, &gradients)
            .expect("backward");
        assert_eq!(&data[stride..], &grad[vocab..]);
        assert_eq!(data[vocab].to_f32(), 0.0, "behind the first row");
    }
}

/// f32's integers are 128 apart at 2³⁰: beyond it no exponent keeps the sum in range, and the row says so.
/// Columns at heights that mask them, of which all that is summed at first has no others: relative to the largest of them the powers
/// are no numbers.
fn columns_far_below_the_others_count_for_nothing(backend: &impl TestBackend) {
    const COLUMNS: usize = 9001;
    let row = |height: f32| {
        let column = move |j: usize| if j < 5017 { height } else { (j % 13) as f32 * 0.3 };
        (0..COLUMNS).map(column).collect::<Vec<f32>>()
    };
    let heights = (0..100).map(|k| -(10.0f32.powf(9.4 + 0.29 * k as f32)));
    let logits: Vec<f32> = heights.chain([f32::NEG_INFINITY]).flat_map(row).collect();
    let found = backend.forward(&Rows::new(logits, vec![8000; 101], COLUMNS), &LogitOptions::default(), true);
    assert!(found.log_probs[100].is_finite() && found.entropies[100].is_finite());
    for row in 0..100 {
        let of_row = (found.log_probs[row], found.states[row], found.entropies[row]);
        assert_eq!(of_row, (found.log_probs[100], found.states[100], found.entropies[100]), "row {row}");
    }
}

fn logits_at_the_end_of_f32(backend: &impl TestBackend) {
    let options = LogitOptions::default();
    let log_prob = |logits: [f32; 2], target: usize, options: &LogitOptions| {
        let rows = backend.forward(&Rows::one(&logits, target), options, true);
        let exact = token_log_prob::forward(&logits, target, options).log_prob;
        let computed = f64::from(rows.log_probs[0]);
        assert!(computed.is_nan() == exact.is_nan(), "{logits:?}: {computed}, {exact} in the reference");
        computed
    };
    for beyond in [f32::MAX, 1e9, -1e9, f32::MIN] {
        assert!(log_prob([beyond, beyond], 0, &options).is_nan(), "{beyond}");
    }
    for within in [7e8f32, -7e8] {
        assert_abs_diff_eq!(log_prob([within, within], 0, &options), -std::f64::consts::LN_2, epsilon = 1e-6);
    }
    let cool = options.with_temperature(1e30).expect("valid");
    assert_eq!(log_prob([f32::MAX, 0.0], 0, &cool), 0.0);
    // What masks are filled with: a probability of 0, whatever it is.
    for fill in [f32::MIN, -1e30, -1e9, -65_504.0] {
        assert_eq!(log_prob([fill, 0.0], 1, &options), 0.0, "{fill}");
        assert!(log_prob([fill, 0.0], 0, &options) <= f64::from(fill) * 0.999_999, "{fill}");
    }
}

/// A NaN of the caller's, with bits that rounding to bf16 would carry into the sign.
fn a_gradient_of_nan_stays_nan_whatever_its_bits(backend: &impl TestBackend) {
    let logits = [bf16::from_f32(0.5), bf16::from_f32(-1.0), bf16::NEG_INFINITY];
    let row = Rows::one(&logits, 0);
    let options = LogitOptions::default();
    let found = backend.forward(&row, &options, true);
    let nan = [f32::from_bits(0x7fff_ffff)];
    for (g, e) in [(&nan, None), (&[1.0], Some(&nan[..]))] {
        let gradient = backend.backward(&row, &options, &found, (g, e), false);
        assert!(gradient.iter().all(|gradient| gradient.to_f32().is_nan()), "{gradient:?}");
    }
}

fn an_entropy_without_a_gradient_is_not_looked_at(backend: &impl TestBackend) {
    let (row, options) = (Rows::one(&[0.5_f32, -1.0, 2.0], 1), LogitOptions::default());
    let kept = backend.forward(&row, &options, true);
    let expected = backend.backward(&row, &options, &kept, (&[0.75], Some(&[0.0])), false);
    assert!(expected.iter().all(|number| number.is_finite() && *number != 0.0));
    for entropy in [f32::NAN, f32::INFINITY] {
        let kept = Forward { entropies: vec![entropy], ..kept.clone() };
        for in_place in [false, true] {
            let found = backend.backward(&row, &options, &kept, (&[0.75], Some(&[0.0])), in_place);
            assert_eq!(found, expected, "{entropy}");
        }
    }
}

/// Where something of a row's gradient does not fit f32, all of it is NaN: not here an infinity, there a NaN, and 0 between.
fn upstream_gradients_that_do_not_fit_give_nan(backend: &impl TestBackend) {
    let minus_infinity = f32::NEG_INFINITY;
    let run = |logits: &[f32], g: f32, in_place: bool| {
        let row = Rows::one(logits, 0);
        let forward = backend.forward(&row, &LogitOptions::default(), false);
        assert!(forward.log_probs[0].is_finite());
        backend.backward(&row, &LogitOptions::default(), &forward, (&[g], None), in_place)
    };
    for (logits, g) in [
        (&[0.1_f32, 0.2][..], f32::INFINITY),
        (&[0.1, minus_infinity, 0.2], f32::NEG_INFINITY),
        (&[0.1, 50.0], 2.5e38),
        // Beyond 2^24 in base 2 no f32 next to the largest logit keeps s above a half: here it is 2.7e-10.
        (&[0.0, 6.098e8], 1e29),
        (&[0.0, 5e8, -7.2e8], 1e37),
    ] {
        for in_place in [false, true] {
            let gradient = run(logits, g, in_place);
            assert!(gradient.iter().all(|value| value.is_nan()), "{logits:?} {g}: {gradient:?}");
        }
    }
    let close = |found: f32, expected: f32| assert_relative_eq!(found, expected, epsilon = 0.0, max_relative = 1e-5);
    for (logits, g) in [(&[0.1_f32, 50.0][..], f32::MAX / 2.0), (&[0.0, 6.098e8], 1e28)] {
        let gradient = run(logits, g, false);
        close(gradient[0], g);
        close(gradient[1], -g);
    }
    assert_eq!(run(&[0.1, minus_infinity, 0.2], f32::MAX / 2.0, false)[1], 0.0);
}
