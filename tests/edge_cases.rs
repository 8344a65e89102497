//! Shapes and values at the edge: one column, odd widths, unaligned rows, leading −inf, lone peaks, large offsets, rows
//! beyond 2³² elements.

use exo_kernels::reference::token_log_prob;
use exo_kernels::{
    Cpu, Element, LogitOptions, Logits, LogitsMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};

struct Rows {
    log_probs: Vec<f32>,
    states: Vec<SoftmaxState>,
    entropies: Vec<f32>,
}

fn forward<T: Element>(logits: Logits<'_, T>, targets: &[i64], options: &LogitOptions) -> Rows {
    let n = logits.rows();
    let mut rows =
        Rows { log_probs: vec![f32::NAN; n], states: vec![SoftmaxState::default(); n], entropies: vec![f32::NAN; n] };
    let outputs = TokenLogProbs {
        log_probs: &mut rows.log_probs,
        states: &mut rows.states,
        entropies: Some(&mut rows.entropies),
    };
    Cpu::default().token_log_probs(logits, targets, options, outputs).expect("forward");
    rows
}

#[test]
fn a_single_column_is_certain() {
    for value in [0.0f32, -3000.0, 65_000.0, 5e8, -5e8, f32::MIN_POSITIVE] {
        let rows = forward(Logits::new(&[value], 1).expect("one"), &[0], &LogitOptions::default());
        assert_eq!(rows.log_probs[0], 0.0, "{value}");
        // The power's own error, which the log-prob is free of.
        assert!(rows.entropies[0] <= 2.0 * f32::EPSILON, "{value}: {}", rows.entropies[0]);
    }
    let logits = [f16::from_f32(3.0), f16::from_f32(-1.0)];
    let rows = forward(Logits::new(&logits, 1).expect("two"), &[0, 0], &LogitOptions::default());
    let mut grad = [f16::NAN; 2];
    let saved = SavedRows { states: &rows.states, entropies: None };
    let gradients = RowGradients { log_probs: &[0.5, -0.5], entropies: None };
    let view = LogitsMut::new(&mut grad, 1).expect("two");
    let logits = Logits::new(&logits, 1).expect("two");
    Cpu::default()
        .token_log_probs_backward(logits, &[0i64, 0], &LogitOptions::default(), saved, gradients, view)
        .expect("backward");
    assert!(grad.iter().all(|grad| grad.to_f32() == 0.0));
}

#[test]
fn equal_logits_are_uniform_at_every_width() {
    for vocab in (1..=130).chain([2047, 2048, 2049, 32_767, 32_768, 32_769, 100_003]) {
        for value in [0.0f32, 2999.5, -1e6] {
            let logits = vec![value; vocab];
            let rows =
                forward(Logits::new(&logits, vocab).expect("one"), &[vocab as i64 - 1], &LogitOptions::default());
            let expected = -(vocab as f64).ln();
            // t is the same in every column and its 2^t too: the sum is V times that, exactly or to its few roundings.
            let bound = 30.0 * f64::from(f32::EPSILON) * expected.abs().max(1.0);
            assert!(
                (f64::from(rows.log_probs[0]) - expected).abs() <= bound,
                "V={vocab} {value}: {}",
                rows.log_probs[0]
            );
            assert!(
                (f64::from(rows.entropies[0]) + expected).abs() <= 4.0 * bound,
                "V={vocab} {value}: {}",
                rows.entropies[0]
            );
        }
    }
}

/// A maximum that starts at 0 underflows here (as in verl's kernel); x − log-sum-exp in f32 would be off by 1e-4.
#[test]
fn a_common_offset_changes_nothing() {
    let base: Vec<f32> = (0..1000).map(|j| (j * 37 % 64) as f32 / 8.0).collect();
    let expected = forward(Logits::new(&base, 1000).expect("one"), &[500], &LogitOptions::default());
    for offset in [3000.0f32, -3000.0, 65_536.0, -65_536.0] {
        // Multiples of 1/8: the sum is exact.
        let moved: Vec<f32> = base.iter().map(|x| x + offset).collect();
        let rows = forward(Logits::new(&moved, 1000).expect("one"), &[500], &LogitOptions::default());
        let error = (rows.log_probs[0] - expected.log_probs[0]).abs();
        assert!(error <= 8.0 * f32::EPSILON * expected.log_probs[0].abs(), "{offset}: {error}");
    }
}

/// (−inf) − (−inf) in the first tile (flash-attention #1930).
#[test]
fn leading_and_scattered_minus_infinities() {
    for vocab in [3usize, 40, 3000, 40_000] {
        let mut logits = vec![f32::NEG_INFINITY; vocab];
        logits[vocab - 1] = 1.0;
        logits[vocab / 2] = 1.0;
        let rows = forward(Logits::new(&logits, vocab).expect("one"), &[vocab as i64 - 1], &LogitOptions::default());
        assert!(
            (f64::from(rows.log_probs[0]) + std::f64::consts::LN_2).abs() < 1e-7,
            "V={vocab}: {}",
            rows.log_probs[0]
        );
        assert!((f64::from(rows.entropies[0]) - std::f64::consts::LN_2).abs() < 1e-6, "V={vocab}");
    }
}

/// Element offsets past 2³¹ and 2³². The rows between are never touched, so the pages of this allocation are
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
        let logits = Logits::strided(data, 2, vocab, stride).expect("fits");
        let rows = forward(logits, &targets, &LogitOptions::default());
        let near: Vec<bf16> = data[..vocab].iter().chain(&data[stride..]).copied().collect();
        let expected = forward(Logits::new(&near, vocab).expect("two"), &targets, &LogitOptions::default());
        assert_eq!(rows.log_probs, expected.log_probs);
        assert_ne!(rows.log_probs[0], rows.log_probs[1]);

        let saved = SavedRows { states: &rows.states, entropies: None };
        let gradients = RowGradients { log_probs: &[1.0, 1.0], entropies: None };
        let mut grad = vec![bf16::NAN; 2 * vocab];
        let (view, out) = (Logits::new(&near, vocab).expect("two"), LogitsMut::new(&mut grad, vocab).expect("two"));
        Cpu::default()
            .token_log_probs_backward(view, &targets, &LogitOptions::default(), saved, gradients, out)
            .expect("backward");
        let far = LogitsMut::strided(data, 2, vocab, stride).expect("fits");
        Cpu::default()
            .token_log_probs_backward_in_place(far, &targets, &LogitOptions::default(), saved, gradients)
            .expect("backward");
        assert_eq!(&data[stride..], &grad[vocab..]);
        assert_eq!(data[vocab].to_f32(), 0.0, "behind the first row");
    }
}

/// f32's integers are 128 apart at 2³⁰: beyond it no exponent keeps the sum in range, and the row says so.
#[test]
fn logits_at_the_end_of_f32() {
    let options = LogitOptions::default();
    let log_prob = |logits: [f32; 2], target: i64, options: &LogitOptions| {
        let rows = forward(Logits::new(&logits, 2).expect("one"), &[target], options);
        let exact = token_log_prob::forward(&logits, target as usize, options).log_prob;
        let computed = f64::from(rows.log_probs[0]);
        assert!(computed.is_nan() == exact.is_nan(), "{logits:?}: {computed}, {exact} in the reference");
        computed
    };
    for beyond in [f32::MAX, 1e9, -1e9, f32::MIN] {
        assert!(log_prob([beyond, beyond], 0, &options).is_nan(), "{beyond}");
    }
    for within in [7e8f32, -7e8] {
        assert!((log_prob([within, within], 0, &options) + std::f64::consts::LN_2).abs() < 1e-6, "{within}");
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
#[test]
fn a_gradient_of_nan_stays_nan_whatever_its_bits() {
    let logits = [bf16::from_f32(0.5), bf16::from_f32(-1.0), bf16::NEG_INFINITY];
    let view = Logits::new(&logits, 3).expect("one");
    let rows = forward(view, &[0], &LogitOptions::default());
    let saved = SavedRows { states: &rows.states, entropies: Some(&rows.entropies) };
    let nan = [f32::from_bits(0x7fff_ffff)];
    for gradients in
        [RowGradients { log_probs: &nan, entropies: None }, RowGradients { log_probs: &[1.0], entropies: Some(&nan) }]
    {
        let mut grad = [bf16::from_f32(0.0); 3];
        let out = LogitsMut::new(&mut grad, 3).expect("one");
        Cpu::default()
            .token_log_probs_backward(view, &[0i64], &LogitOptions::default(), saved, gradients, out)
            .expect("backward");
        assert!(grad.iter().all(|grad| grad.to_f32().is_nan()), "{grad:?}");
    }
}
