//! Token log-probs against the f64 reference, in every type and option, on rows made to go wrong: forward and backward
//! within the bounds of `exo_kernels::reference::bounds`, on every backend and instruction set.

use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Element, LogitOptions};
use half::{bf16, f16};
use support::adversarial::{Row, adversarial};
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    f32_is_within_bounds,
    f16_is_within_bounds,
    bf16_is_within_bounds,
    target_gradient_keeps_its_digits_near_one,
    entropy_gradient_is_within_bounds,
);

/// Below, at and above the widths of vectors (8), lanes and warps (32), blocks (256 threads; 512 columns), chunks (2048)
/// and slices (32768). On CUDA without those of the CPU.
const VOCABULARIES: (&[usize], &[usize]) = (
    &[1, 2, 31, 32, 33, 511, 513, 2047, 2048, 2049, 5000, 32_769, 70_001],
    &[1, 2, 7, 8, 9, 31, 33, 255, 257, 4099, 32_767, 32_768, 32_769, 70_001],
);

/// Temperature and softcap.
type Settings = &'static [(f64, f64)];

const OPTIONS: (Settings, Settings) = (
    &[(1.0, 0.0), (0.8, 0.0), (37.5, 0.0), (1.0, 30.0), (0.7, 2.5)],
    &[(1.0, 0.0), (0.8, 0.0), (1.0, 30.0), (0.7, 2.5)],
);

/// With an entropy gradient.
const ENTROPY_VOCABULARIES: (&[usize], &[usize]) = (&[31, 5000], &[1, 2, 31, 33, 257, 4099]);

fn options<B: TestBackend>() -> impl Iterator<Item = LogitOptions> {
    B::pick(OPTIONS.0, OPTIONS.1).iter().map(|&(temperature, softcap)| {
        let options = LogitOptions::default().with_temperature(temperature);
        options.and_then(|options| options.with_softcap(softcap)).expect("valid")
    })
}

fn together<T: Element>(rows: &[Row<T>]) -> Rows<T> {
    let logits = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
    Rows::new(logits, rows.iter().map(|row| row.target as i64).collect(), rows[0].logits.len())
}

/// Largest shares of the bounds, printed so that a reader sees how tight they are.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    log_prob: f64,
    log_sum_exp: f64,
    entropy: f64,
    gradient: f64,
}

/// |computed − expected| as a share of the bound; equal values, infinities among them, are no error.
fn share(computed: f64, expected: f64, bound: f64) -> f64 {
    if computed == expected || (computed.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    let error = (computed - expected).abs();
    if error.is_nan() { f64::INFINITY } else { error / bound }
}

fn check<B: TestBackend, T: Element>(backend: &B, vocab: usize, options: &LogitOptions, shares: &mut Shares) {
    check_rows(backend, &adversarial::<T>(vocab, vocab as u64), options, shares);
}

/// That log-probs, states, entropies and gradients of rows of one length are within their bounds.
pub(crate) fn check_rows<B: TestBackend, T: Element>(
    backend: &B,
    rows: &[Row<T>],
    options: &LogitOptions,
    shares: &mut Shares,
) {
    let vocab = rows[0].logits.len();
    let packed = together(rows);
    let forward = backend.forward(&packed, options, true);
    // d loss / d log-prob alone: the bound of the gradient has no entropy term.
    let g = -0.37f32;
    let gradients = backend.backward(&packed, options, &forward, (&vec![g; rows.len()], None), false);
    for (index, row) in rows.iter().enumerate() {
        let exact = token_log_prob::forward(&row.logits, row.target, options);
        let bound = bounds::row(B::ARITHMETIC, &exact, options);
        let context = || format!("{} {:?} V={vocab} {options:?} {}", row.name, T::DTYPE, backend.name());
        let hold = |what: &str, computed: f64, expected: f64, bound: f64, largest: &mut f64| {
            let share = share(computed, expected, bound);
            assert!(share <= 1.0, "{what} {computed:e}, {expected:e} expected, {share} of its bound: {}", context());
            *largest = largest.max(share);
        };
        let (log_prob, state, entropy) = (forward.log_probs[index], forward.states[index], forward.entropies[index]);
        hold("log-prob", log_prob.into(), exact.log_prob, bound.log_prob, &mut shares.log_prob);
        hold("log-sum-exp", state.log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp, &mut shares.log_sum_exp);
        hold("entropy", entropy.into(), exact.entropy, bound.entropy, &mut shares.entropy);
        assert!(log_prob <= 0.0 && entropy >= 0.0, "{}", context());
        assert!(state.r == state.r.round(), "r = {} is an integer: {}", state.r, context());

        let expected = token_log_prob::backward(&row.logits, row.target, options, g.into(), 0.0);
        let scaled = token_log_prob::scaled_logits(&row.logits, options);
        let gradient = packed.row(&gradients, index);
        for column in 0..vocab {
            let value = expected[column];
            let logit = f64::from(row.logits[column].to_f32());
            let unrounded = bound.grad_logit(value, logit, scaled[column] - exact.log_sum_exp, g.into(), 0.0);
            let bound = unrounded + bounds::rounding(value.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
            let computed = gradient[column].to_f32();
            hold("gradient", computed.into(), value, bound, &mut shares.gradient);
            if logit == f64::NEG_INFINITY && column != row.target {
                assert_eq!(computed, 0.0, "excluded column {column}: {}", context());
            }
        }
    }
}

fn within_bounds<B: TestBackend, T: Element>(backend: &B) {
    for backend in backend.variants() {
        let mut shares = Shares::default();
        for &vocab in B::pick(VOCABULARIES.0, VOCABULARIES.1) {
            options::<B>().for_each(|options| check::<B, T>(&backend, vocab, &options, &mut shares));
        }
        println!("{} {:?} {shares:.3?}", backend.name(), T::DTYPE);
    }
}

fn f32_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, f32>(backend);
}

fn f16_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, f16>(backend);
}

fn bf16_is_within_bounds(backend: &impl TestBackend) {
    within_bounds::<_, bf16>(backend);
}

/// Next to p = 1 the target's gradient is g·(1 − p), not what is left of g after subtracting a rounded g·p
/// (Liger-Kernel
/// #1329).
fn target_gradient_keeps_its_digits_near_one(backend: &impl TestBackend) {
    let options = LogitOptions::default();
    for gap in [4.0f32, 8.0, 10.0] {
        let mut logits = vec![bf16::from_f32(0.0); 64];
        logits[7] = bf16::from_f32(gap);
        let row = Rows::one(&logits, 7);
        let forward = backend.forward(&row, &options, false);
        let gradient = backend.backward(&row, &options, &forward, (&[1.0], None), false)[7];
        let expected = token_log_prob::backward(&logits, 7, &options, 1.0, 0.0)[7];
        let error = (f64::from(gradient.to_f32()) - expected).abs() / expected;
        // One rounding to bf16, and f32's error of p over 1 − p.
        assert!(error <= bf16::UNIT_ROUNDOFF + 30.0 * f64::from(f32::EPSILON) / expected, "gap {gap}: {error}");
    }
}

/// The entropy's gradient −e·p_j·(log p_j + H), alone and beside a log-prob's. Each error of p, log p and H is relative
/// to terms no larger than p·(|log p| + H), so that is what the bound scales with.
fn entropy_gradient_is_within_bounds<B: TestBackend>(backend: &B) {
    for backend in backend.variants() {
        for &vocab in B::pick(ENTROPY_VOCABULARIES.0, ENTROPY_VOCABULARIES.1) {
            let rows = adversarial::<f32>(vocab, vocab as u64);
            for options in options::<B>() {
                for (g, e) in [(0.0f32, 0.25f32), (-0.6, 0.1)] {
                    entropy_gradient(&backend, &rows, &options, g, e);
                }
            }
        }
    }
}

fn entropy_gradient<B: TestBackend>(backend: &B, rows: &[Row<f32>], options: &LogitOptions, g: f32, e: f32) {
    let packed = together(rows);
    let forward = backend.forward(&packed, options, true);
    let (of_log_probs, of_entropies) = (vec![g; rows.len()], vec![e; rows.len()]);
    let gradients = backend.backward(&packed, options, &forward, (&of_log_probs, Some(&of_entropies)), false);
    let Arithmetic { unit_roundoff: u, .. } = B::ARITHMETIC;
    for (index, row) in rows.iter().enumerate() {
        let exact = token_log_prob::forward(&row.logits, row.target, options);
        let bound = bounds::row(B::ARITHMETIC, &exact, options);
        let expected = token_log_prob::backward(&row.logits, row.target, options, g.into(), e.into());
        let of_g = token_log_prob::backward(&row.logits, row.target, options, g.into(), 0.0);
        let scaled = token_log_prob::scaled_logits(&row.logits, options);
        let gradient = packed.row(&gradients, index);
        for column in 0..row.logits.len() {
            let log_p = scaled[column] - exact.log_sum_exp;
            let logit = f64::from(row.logits[column]);
            // As for a coefficient as large as the whole factor: g and e·(|log p| + H), with the entropy's own error
            // beside it.
            let factor = f64::from(g.abs())
                + f64::from(e) * (if log_p.is_finite() { log_p.abs() } else { 0.0 } + exact.entropy + 1.0);
            let of_factor = bound.grad_logit(of_g[column], logit, log_p, factor, 0.0);
            let of_entropy =
                f64::from(e) * log_p.exp() / options.temperature() * (bound.entropy + 4.0 * u * factor / f64::from(e));
            let limit = of_factor + of_entropy + u * expected[column].abs();
            let share = share(gradient[column].into(), expected[column], limit);
            assert!(
                share <= 1.0,
                "{} column {column} {options:?} {g} {e} {}: {} vs {}, {share}",
                row.name,
                backend.name(),
                gradient[column],
                expected[column]
            );
        }
    }
}
