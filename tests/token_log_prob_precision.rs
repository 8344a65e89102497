//! Token log-probs on the CPU against the f64 reference, in every type, option and instruction set, on rows made to go
//! wrong: forward and backward within the bounds of `exo_kernels::reference::bounds`.

#[path = "support/rows.rs"]
mod rows;

use exo_kernels::cpu::InstructionSet;
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{
    Cpu, Element, LogitOptions, Logits, LogitsMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use rows::{Row, adversarial};

/// Below, at and above the widths of lanes (32), blocks (512), chunks (2048) and slices (32768).
const VOCABULARIES: [usize; 13] = [1, 2, 31, 32, 33, 511, 513, 2047, 2048, 2049, 5000, 32_769, 70_001];

const OPTIONS: [(f64, f64); 5] = [(1.0, 0.0), (0.8, 0.0), (37.5, 0.0), (1.0, 30.0), (0.7, 2.5)];

/// Largest shares of the bounds, printed so that a reader sees how tight they are.
#[derive(Debug, Default)]
struct Shares {
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

/// Log-prob, state and entropy of one row.
fn forward<T: Element>(cpu: Cpu, row: &Row<T>, options: &LogitOptions) -> ([f32; 1], [SoftmaxState; 1], [f32; 1]) {
    let logits = Logits::new(&row.logits, row.logits.len()).expect("one row");
    let (mut log_probs, mut states, mut entropies) = ([f32::NAN], [SoftmaxState::default()], [f32::NAN]);
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    cpu.token_log_probs(logits, &[row.target as i64], options, outputs).expect("forward");
    (log_probs, states, entropies)
}

/// The gradient of one row's logits.
fn backward<T: Element>(
    cpu: Cpu,
    row: &Row<T>,
    options: &LogitOptions,
    saved: SavedRows<'_>,
    gradients: RowGradients<'_>,
) -> Vec<T> {
    let vocab = row.logits.len();
    let mut grad = vec![T::NAN; vocab];
    let logits = Logits::new(&row.logits, vocab).expect("one row");
    let out = LogitsMut::new(&mut grad, vocab).expect("one row");
    cpu.token_log_probs_backward(logits, &[row.target as i64], options, saved, gradients, out).expect("backward");
    grad
}

fn check_row<T: Element>(cpu: Cpu, row: &Row<T>, options: &LogitOptions, shares: &mut Shares) {
    let vocab = row.logits.len();
    let (log_prob, state, entropy) = forward(cpu, row, options);

    let exact = token_log_prob::forward(&row.logits, row.target, options);
    let bound = bounds::row(Arithmetic::BACKEND, &exact, options);
    let context = || format!("{} {:?} V={vocab} {options:?} {:?}", row.name, T::DTYPE, cpu.instruction_set());
    let hold = |what: &str, computed: f64, expected: f64, bound: f64, largest: &mut f64| {
        let share = share(computed, expected, bound);
        assert!(share <= 1.0, "{what} {computed:e}, {expected:e} expected, {share} of its bound: {}", context());
        *largest = largest.max(share);
    };
    hold("log-prob", log_prob[0].into(), exact.log_prob, bound.log_prob, &mut shares.log_prob);
    hold("log-sum-exp", state[0].log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp, &mut shares.log_sum_exp);
    hold("entropy", entropy[0].into(), exact.entropy, bound.entropy, &mut shares.entropy);
    assert!(log_prob[0] <= 0.0 && entropy[0] >= 0.0, "{}", context());

    // d loss / d log-prob alone: the bound of the gradient has no entropy term.
    let g = -0.37f32;
    let saved = SavedRows { states: &state, entropies: None };
    let grad = backward(cpu, row, options, saved, RowGradients { log_probs: &[g], entropies: None });
    let expected = token_log_prob::backward(&row.logits, row.target, options, g.into(), 0.0);
    let scaled = token_log_prob::scaled_logits(&row.logits, options);
    for column in 0..vocab {
        let value = expected[column];
        let logit = f64::from(row.logits[column].to_f32());
        let unrounded = bound.grad_logit(value, logit, scaled[column] - exact.log_sum_exp, g.into(), 0.0);
        let bound = unrounded + bounds::rounding(value.abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
        hold("gradient", grad[column].to_f32().into(), value, bound, &mut shares.gradient);
        if logit == f64::NEG_INFINITY && column != row.target {
            assert_eq!(grad[column].to_f32(), 0.0, "excluded column {column}: {}", context());
        }
    }
}

fn check_all<T: Element>(cpu: Cpu) -> Shares {
    let mut shares = Shares::default();
    for vocab in VOCABULARIES {
        for (temperature, softcap) in OPTIONS {
            let options = LogitOptions::default()
                .with_temperature(temperature)
                .and_then(|options| options.with_softcap(softcap))
                .expect("valid");
            for row in adversarial::<T>(vocab, vocab as u64) {
                check_row(cpu, &row, &options, &mut shares);
            }
        }
    }
    shares
}

#[test]
fn within_bounds_on_every_instruction_set() {
    for set in InstructionSet::ALL {
        let cpu = match Cpu::with_instruction_set(set) {
            Ok(cpu) => cpu,
            Err(error) => {
                println!("NOT RUN: {error}");
                continue;
            }
        };
        println!("{:8} f32  {:.3?}", set.name(), check_all::<f32>(cpu));
        println!("{:8} f16  {:.3?}", set.name(), check_all::<f16>(cpu));
        println!("{:8} bf16 {:.3?}", set.name(), check_all::<bf16>(cpu));
    }
}

/// Next to p = 1 the target's gradient is g·(1 − p), not what is left of g after subtracting a rounded g·p
/// (Liger-Kernel
/// #1329).
#[test]
fn target_gradient_keeps_its_digits_near_one() {
    let cpu = Cpu::default();
    let options = LogitOptions::default();
    for gap in [4.0f32, 8.0, 10.0] {
        let mut logits = vec![bf16::from_f32(0.0); 64];
        logits[7] = bf16::from_f32(gap);
        let (mut log_prob, mut state) = ([0.0], [SoftmaxState::default()]);
        let view = Logits::new(&logits, 64).expect("one row");
        let outputs = TokenLogProbs { log_probs: &mut log_prob, states: &mut state, entropies: None };
        cpu.token_log_probs(view, &[7i64], &options, outputs).expect("forward");
        let mut grad = vec![bf16::NAN; 64];
        let saved = SavedRows { states: &state, entropies: None };
        let gradients = RowGradients { log_probs: &[1.0], entropies: None };
        let out = LogitsMut::new(&mut grad, 64).expect("one row");
        cpu.token_log_probs_backward(view, &[7i64], &options, saved, gradients, out).expect("backward");
        let expected = token_log_prob::backward(&logits, 7, &options, 1.0, 0.0)[7];
        let error = (f64::from(grad[7].to_f32()) - expected).abs() / expected;
        // One rounding to bf16, and f32's error of p over 1 − p.
        assert!(error <= bf16::UNIT_ROUNDOFF + 30.0 * f64::from(f32::EPSILON) / expected, "gap {gap}: {error}");
    }
}

/// The entropy's gradient −e·p_j·(log p_j + H), alone and beside a log-prob's. Each error of p, log p and H is relative
/// to terms no larger than p·(|log p| + H), so that is what the bound scales with.
#[test]
fn entropy_gradient_is_within_bounds() {
    for set in InstructionSet::ALL {
        let Ok(cpu) = Cpu::with_instruction_set(set) else {
            println!("NOT RUN: {}", set.name());
            continue;
        };
        for (temperature, softcap) in OPTIONS {
            let options = LogitOptions::default()
                .with_temperature(temperature)
                .and_then(|options| options.with_softcap(softcap))
                .expect("valid");
            for row in adversarial::<f32>(5000, 3).into_iter().chain(adversarial(31, 4)) {
                for (g, e) in [(0.0f32, 0.25f32), (-0.6, 0.1)] {
                    entropy_gradient(cpu, &row, &options, g, e);
                }
            }
        }
    }
}

fn entropy_gradient(cpu: Cpu, row: &Row<f32>, options: &LogitOptions, g: f32, e: f32) {
    let vocab = row.logits.len();
    let (_, state, entropy) = forward(cpu, row, options);
    let saved = SavedRows { states: &state, entropies: Some(&entropy) };
    let grad = backward(cpu, row, options, saved, RowGradients { log_probs: &[g], entropies: Some(&[e]) });

    let exact = token_log_prob::forward(&row.logits, row.target, options);
    let bound = bounds::row(Arithmetic::BACKEND, &exact, options);
    let expected = token_log_prob::backward(&row.logits, row.target, options, g.into(), e.into());
    let of_g = token_log_prob::backward(&row.logits, row.target, options, g.into(), 0.0);
    let scaled = token_log_prob::scaled_logits(&row.logits, options);
    let u = Arithmetic::BACKEND.unit_roundoff;
    for column in 0..vocab {
        let log_p = scaled[column] - exact.log_sum_exp;
        let logit = f64::from(row.logits[column]);
        // As for a coefficient as large as the whole factor: g and e·(|log p| + H), with the entropy's own error beside
        // it.
        let factor = f64::from(g.abs())
            + f64::from(e) * (if log_p.is_finite() { log_p.abs() } else { 0.0 } + exact.entropy + 1.0);
        let of_factor = bound.grad_logit(of_g[column], logit, log_p, factor, 0.0);
        let of_entropy =
            f64::from(e) * log_p.exp() / options.temperature() * (bound.entropy + 4.0 * u * factor / f64::from(e));
        let limit = of_factor + of_entropy + u * expected[column].abs();
        let share = share(grad[column].into(), expected[column], limit);
        assert!(
            share <= 1.0,
            "{} column {column} {options:?} {g} {e}: {} vs {}, {share}",
            row.name,
            grad[column],
            expected[column]
        );
    }
}
