//! Every gradient of the f64 reference against central differences of its own forward pass, in f64; the backends are
//! held to the reference in the precision tests.
//!
//! Central differences with step h are off by about h²·(third derivative)/6 + ε·|value|/h. With values and derivatives
//! of order 1 and h = 6e-6, the cube root of f64's ε, both are below 1e-10.

use approx::abs_diff_eq;
use exo_kernels::reference::{linear_log_prob, preference_loss, token_log_prob};
use exo_kernels::{Batch, Betas, Head, LogRatio, LogitOptions, LossOptions, Matrix, Objective, Reduction, Reference};

/// Steps that are exact in f32, in which logits are stored: 2⁻¹⁷ next to logits that are multiples of 2⁻⁶ below 8.
const STEP: f64 = 1.0 / 131_072.0;
const TOLERANCE: f64 = 2e-9;

/// Deterministic logits: multiples of 1/64 between −4 and 4.
fn logits(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 977)) >> 23) as f32 / 64.0 - 4.0)
        .collect()
}

fn settings() -> Vec<LogitOptions> {
    [(1.0, 0.0), (0.8, 0.0), (1.0, 5.0), (1.7, 2.0)]
        .into_iter()
        .map(|(temperature, softcap)| {
            let options = LogitOptions::default().with_temperature(temperature).expect("valid");
            options.with_softcap(softcap).expect("valid")
        })
        .collect()
}

/// d value / d logit by central differences.
fn difference(logits: &[f32], column: usize, value: impl Fn(&[f32]) -> f64) -> f64 {
    let mut moved = logits.to_vec();
    let at = |moved: &mut Vec<f32>, logit: f64| {
        moved[column] = logit as f32;
        assert_eq!(f64::from(moved[column]), logit, "the step is exact");
        value(moved)
    };
    let logit = f64::from(logits[column]);
    let above = at(&mut moved, logit + STEP);
    let below = at(&mut moved, logit - STEP);
    (above - below) / (2.0 * STEP)
}

#[test]
fn token_log_prob_and_entropy() {
    for options in settings() {
        for (g, e) in [(1.0, 0.0), (0.0, 1.0), (-0.7, 0.3)] {
            let row = logits(9, 3);
            let target = 4;
            let gradient = token_log_prob::backward(&row, target, &options, g, e);
            for column in 0..row.len() {
                let numeric = difference(&row, column, |row| {
                    let row = token_log_prob::forward(row, target, &options);
                    g * row.log_prob + e * row.entropy
                });
                let error = (gradient[column] - numeric).abs();
                assert!(error <= TOLERANCE, "{options:?} {g} {e} column {column}: {} {numeric}", gradient[column]);
            }
        }
    }
}

#[test]
fn whole_loss() {
    let betas = Betas { policy: 0.6, reward: 0.7 };
    let objectives = [
        Objective::exo(betas),
        Objective::exo_pref(0.6, 1e-3),
        Objective::exo_pref_official(0.6),
        Objective::dpo_rw(betas),
        Objective::dpo_pref(0.6, 0.0),
        Objective::alpha(0.3, betas),
        Objective::jensen_shannon(betas),
    ];
    let vocab = 7;
    let targets = [3i64, 1, -100, 6, 0, 5, 2];
    let batch = Batch::new(&[0, 2, 4, 5, 7], &[0, 2, 4]).expect("valid");
    let rewards = [0.4f32, -0.3, 0.1, 0.9];
    let reference = [-2.0f32, -1.5, 0.0, -2.5, -1.0, -3.0, -2.0];
    for (index, objective) in objectives.into_iter().enumerate() {
        let options = LossOptions::from(objective.expect("valid"))
            .with_logits(settings()[index % 4])
            .with_log_ratio(if index % 2 == 0 { LogRatio::Sum } else { LogRatio::Mean })
            .with_reduction(if index % 3 == 0 { Reduction::Sum } else { Reduction::Mean })
            .expect("valid");
        let logits = logits(targets.len() * vocab, 8);
        let step = |logits: &[f32]| {
            let view = Matrix::new(logits, vocab).expect("rows");
            preference_loss::forward(&options, &view, &targets, &batch, &Reference::PerToken(&reference), &rewards)
                .expect("inputs that fit")
        };
        let exact = step(&logits);
        let view = Matrix::new(&logits, vocab).expect("rows");
        let mut largest: f64 = 0.0;
        for row in 0..targets.len() {
            for (column, gradient) in exact.grad_logits(&options, &view, &targets, row).into_iter().enumerate() {
                let numeric = difference(&logits, row * vocab + column, |logits| step(logits).loss);
                assert!(
                    abs_diff_eq!(gradient, numeric, epsilon = TOLERANCE),
                    "{options:?} row {row} column {column}: {gradient} {numeric}"
                );
                largest = largest.max(gradient.abs());
            }
        }
        assert!(largest > 1e-3, "{options:?}: a gradient of nothing proves nothing");
    }
}

/// W·h + b through the softmax: by each hidden state, each weight and each bias.
#[test]
fn linear_log_prob() {
    let (n, h, v) = (3, 4, 5);
    let (hidden, weight, bias) = (logits(n * h, 21), logits(v * h, 22), logits(v, 23));
    let targets = [4, 0, 2];
    let upstream = [(0.7, 0.2), (-1.1, 0.0), (0.3, -0.4)];
    let options = LogitOptions::default().with_temperature(3.0).and_then(|options| options.with_softcap(9.0));
    let options = options.expect("valid");
    let rows_of = |hidden: &[f32], weight: &[f32], bias: &[f32]| -> Vec<Vec<f64>> {
        let head = Head::new(Matrix::new(weight, h).expect("rows")).and_then(|head| head.with_bias(bias));
        let head = head.expect("a head");
        hidden.chunks(h).map(|hidden| linear_log_prob::logits(hidden, &head)).collect()
    };
    let value = |hidden: &[f32], weight: &[f32], bias: &[f32]| -> f64 {
        let rows = rows_of(hidden, weight, bias);
        let rows = rows.iter().zip(targets).zip(upstream);
        rows.map(|((row, target), (g, e))| {
            let row = token_log_prob::forward_f64(row, target, &options);
            g * row.log_prob + e * row.entropy
        })
        .sum()
    };
    let d: Vec<f64> = rows_of(&hidden, &weight, &bias)
        .iter()
        .zip(targets)
        .zip(upstream)
        .flat_map(|((row, target), (g, e))| token_log_prob::backward_f64(row, target, &options, g, e))
        .collect();
    let head = Head::new(Matrix::new(&weight, h).expect("rows")).and_then(|head| head.with_bias(&bias));
    let gradients = linear_log_prob::backward(&d, &Matrix::new(&hidden, h).expect("rows"), &head.expect("a head"));
    let check = |what: &str, gradients: &[f64], values: &[f32], value: &dyn Fn(&[f32]) -> f64| {
        for (at, gradient) in gradients.iter().enumerate() {
            let numeric = difference(values, at, value);
            // Derivatives are up to 4^3 times those of the logits.
            assert!(abs_diff_eq!(*gradient, numeric, epsilon = 64.0 * TOLERANCE), "{what} {at}: {gradient} {numeric}");
        }
    };
    check("hidden", &gradients.hidden, &hidden, &|hidden| value(hidden, &weight, &bias));
    check("weight", &gradients.weight, &weight, &|weight| value(&hidden, weight, &bias));
    check("bias", &gradients.bias, &bias, &|bias| value(&hidden, &weight, bias));
}
