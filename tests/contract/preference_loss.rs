//! `PreferenceLoss` against the f64 reference: composition, options, references, reductions, reports.

use approx::{assert_abs_diff_eq, assert_relative_eq, relative_eq};
use exo_kernels::reference::preference_loss;
use exo_kernels::{
    Batch, Betas, Divergence, IGNORE_INDEX, LogRatio, LogitOptions, LossOptions, Matrix, Objective, Reduction,
    Reference, Report, Rewards,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::backend::{Rows, TestBackend, on_every_backend};

on_every_backend!(
    agrees_with_the_reference_in_every_option,
    micro_batches_with_a_normalizer_add_up_to_the_mean,
    report_holds_what_a_trainer_logs,
    powers_of_two_scale_exactly,
);

const VOCAB: usize = 67;

struct Step {
    rows: Rows<f32>,
    batch: Batch,
    reference: Vec<f32>,
    sums: Vec<f64>,
    rewards: Vec<f64>,
    offsets: Vec<f64>,
}

/// Ragged groups of 1 to 4 completions of 0 to 6 rows, some masked.
fn step(seed: u64) -> Step {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut sequences, mut groups) = (vec![0usize], vec![0usize]);
    for _ in 0..5 {
        for _ in 0..random.random_range(1..=4) {
            sequences.push(sequences[sequences.len() - 1] + random.random_range(0..=6));
        }
        groups.push(sequences.len() - 1);
    }
    let batch = Batch::new(&sequences, &groups).expect("valid");
    let (rows, s) = (batch.rows(), batch.sequences());
    let logits = (0..rows * VOCAB).map(|_| random.random_range(-4.0..4.0)).collect();
    let mut target = || if random.random_bool(0.2) { IGNORE_INDEX } else { random.random_range(0..VOCAB as i64) };
    let targets = (0..rows).map(|_| target()).collect();
    Step {
        rows: Rows::new(logits, targets, VOCAB),
        reference: (0..rows).map(|_| random.random_range(-7.0..0.0)).collect(),
        sums: (0..s).map(|_| random.random_range(-20.0..0.0)).collect(),
        rewards: (0..s).map(|_| random.random_range(-1.0..1.0)).collect(),
        offsets: (0..s).map(|_| random.random_range(-0.5..0.5)).collect(),
        batch,
    }
}

fn options() -> Vec<LossOptions> {
    let betas = Betas { policy: 0.3, reward: 0.5 };
    let objectives = [
        Objective::exo(betas),
        Objective::exo_pref(0.3, 1e-3),
        Objective::dpo_rw(betas),
        Objective::dpo_pref(0.3, 0.1),
        Objective::alpha(0.4, betas),
        Objective::jensen_shannon(betas),
        Objective::distribution(Divergence::ReverseKl, 0.3),
    ]
    .map(|objective| objective.expect("valid"));
    let logits =
        LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(15.0)).expect("valid");
    let reductions = [Reduction::Mean, Reduction::Sum, Reduction::Normalizer(7.0)];
    let mut all = Vec::new();
    for (index, objective) in objectives.into_iter().enumerate() {
        for log_ratio in [LogRatio::Sum, LogRatio::Mean] {
            let options = LossOptions::from(objective)
                .with_log_ratio(log_ratio)
                .with_reduction(reductions[index % 3])
                .expect("valid");
            all.push(if index % 2 == 0 { options } else { options.with_logits(logits) });
        }
    }
    all
}

/// f32 token log-probs are good to 3e-6 at these sizes, of which at most six add up in a sequence; everything behind
/// them is f64. Losses and gradients here are of order 1, so errors of order 1e-5 are rounding and anything wrong is
/// larger.
const TOLERANCE: f64 = 3e-5;

fn close(computed: f64, expected: f64, what: &str) {
    let close = relative_eq!(computed, expected, epsilon = TOLERANCE, max_relative = TOLERANCE);
    assert!(close, "{what}: {computed} vs {expected}");
}

fn agrees_with_the_reference_in_every_option(backend: &impl TestBackend) {
    for (seed, options) in options().into_iter().enumerate() {
        let Step { rows, batch, reference, sums, rewards, offsets } = step(seed as u64);
        let references = [Reference::PerToken(&reference), Reference::PerSequence(&sums), Reference::None];
        let view = Matrix::new(&rows.logits, VOCAB).expect("rows");
        for reference in references {
            for rewards in [Rewards::from(&rewards), Rewards::from(&rewards).with_proposal(&offsets)] {
                let exact = preference_loss::forward(&options, &view, &rows.targets, &batch, &reference, rewards);
                let exact = exact.expect("inputs that fit");
                let mut loss = backend.loss(options);
                let forward = loss.forward(&rows, &batch, reference, rewards).expect("forward");
                let report = loss.report().expect("finite");
                close(report.loss, exact.loss, "loss");
                for (computed, exact) in report.group_losses.iter().zip(&exact.groups) {
                    close(*computed, exact.loss, "group loss");
                }
                for (computed, exact) in report.implicit_rewards.iter().zip(&exact.log_ratios) {
                    close(*computed, options.objective().beta_policy() * exact, "implicit reward");
                }
                let grad = loss.backward(&forward, &rows).expect("backward");
                for row in 0..batch.rows() {
                    let expected = exact.grad_logits(&options, &view, &rows.targets, row);
                    for (computed, expected) in rows.row(&grad, row).iter().zip(expected) {
                        close(f64::from(*computed), expected, "gradient");
                    }
                }
            }
        }
    }
}

/// Factors that are powers of two change exponents and nothing else.
fn powers_of_two_scale_exactly(backend: &impl TestBackend) {
    // Two groups of two completions of four rows, all scored.
    let logits = (0..16 * VOCAB).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let rows: Rows<f32> = Rows::new(logits, (0..16).map(|row| (row * 7) % VOCAB as i64).collect(), VOCAB);
    let reference: Vec<f32> = (0..16).map(|row| -2.0 - 0.1 * row as f32).collect();
    let batch = Batch::padded(4, 4, 2).expect("valid");
    let rewards = [1.0, -0.5, 0.25, 2.0];
    let run = |options: LossOptions, loss_scale: f64| -> (Report, Vec<f32>) {
        let mut loss = backend.loss(options);
        loss.set_loss_scale(loss_scale);
        let reference = Reference::PerToken(&reference);
        let forward = loss.forward(&rows, &batch, reference, Rewards::from(&rewards)).expect("forward");
        let gradient = loss.backward(&forward, &rows).expect("backward");
        (loss.report().expect("finite"), gradient)
    };
    let exo = |beta: f64| LossOptions::from(Objective::exo(Betas { policy: beta, reward: 0.5 }).expect("valid"));
    let reduced = |reduction| exo(0.5).with_reduction(reduction).expect("valid");
    let (report, gradient) = run(exo(0.5), 1.0);
    assert!(report.loss > 0.0 && gradient.iter().any(|value| *value != 0.0));
    let times = |factor: f32| gradient.iter().map(|value| factor * value).collect::<Vec<_>>();
    let (unscaled, scaled) = run(exo(0.5), 1024.0);
    assert_eq!((&unscaled, scaled), (&report, times(1024.0)), "a loss scale is the gradient's alone");
    let (summed, gradient_of_sum) = run(reduced(Reduction::Sum), 1.0);
    assert_eq!((summed.loss, gradient_of_sum), (2.0 * report.loss, times(2.0)), "sum over two groups");
    assert_eq!(run(reduced(Reduction::Normalizer(8.0)), 1.0).1, times(0.25), "a normaliser of eight for two groups");
    // A mean over four rows with four times the beta: the same implicit rewards, and the same gradient.
    let (of_mean, gradient_of_mean) = run(exo(2.0).with_log_ratio(LogRatio::Mean), 1.0);
    assert_eq!((of_mean.loss, of_mean.implicit_rewards), (report.loss, report.implicit_rewards), "mean over rows");
    assert_eq!(gradient_of_mean, gradient, "mean over rows");
}

fn micro_batches_with_a_normalizer_add_up_to_the_mean(backend: &impl TestBackend) {
    // Two groups of two completions of two rows.
    let mut random = StdRng::seed_from_u64(9);
    let logits: Vec<f32> = (0..8 * VOCAB).map(|_| random.random_range(-4.0..4.0)).collect();
    let targets: Vec<i64> = (0..8).map(|_| random.random_range(0..VOCAB as i64)).collect();
    let rewards = [0.3f32, -0.2, 0.9, 0.1];
    let objective = Objective::dpo_rw(Betas { policy: 0.3, reward: 0.5 }).expect("valid");
    let run = |groups: std::ops::Range<usize>, reduction| {
        let rows = groups.start * 4..groups.end * 4;
        let logits = logits[rows.start * VOCAB..rows.end * VOCAB].to_vec();
        let rows = Rows::new(logits, targets[rows].to_vec(), VOCAB);
        let batch = Batch::padded(groups.len() * 2, 2, 2).expect("valid");
        let mut loss = backend.loss(LossOptions::from(objective).with_reduction(reduction).expect("valid"));
        let rewards = Rewards::from(&rewards[groups.start * 2..groups.end * 2]);
        let forward = loss.forward(&rows, &batch, Reference::None, rewards).expect("forward");
        let grad = loss.backward(&forward, &rows).expect("backward");
        (loss.report().expect("finite").loss, grad)
    };
    let (loss, grad) = run(0..2, Reduction::Mean);
    let (first, mut parts) = run(0..1, Reduction::Normalizer(2.0));
    let (second, after) = run(1..2, Reduction::Normalizer(2.0));
    parts.extend(after);
    assert_relative_eq!(first + second, loss, epsilon = 0.0, max_relative = 4.0 * f64::EPSILON);
    assert_eq!(parts, grad);
}

fn report_holds_what_a_trainer_logs(backend: &impl TestBackend) {
    // Logits that make each log-prob known: two columns, the target's logit 0 against one of −x gives −log(1 + e^(−x)).
    let log_ratio = |x: f64| -(-x).exp().ln_1p();
    let x = [2.0f32, 0.5, 1.0, 3.0];
    let logits: Vec<f32> = x.iter().flat_map(|x| [0.0, -x]).collect();
    let batch = Batch::new(&[0, 1, 2, 3, 4], &[0, 2, 4]).expect("valid");
    let rewards = [1.0f32, 0.0, 1.0, 0.0];
    let objective = Objective::exo(Betas { policy: 0.5, reward: 1.0 }).expect("valid");
    let mut loss = backend.loss(LossOptions::from(objective).with_entropy(true));
    let rows = Rows::new(logits, vec![0; 4], 2);
    loss.forward(&rows, &batch, Reference::None, Rewards::from(&rewards)).expect("forward");
    let report = loss.report().expect("finite");

    let f: Vec<f64> = x.iter().map(|&x| 0.5 * log_ratio(f64::from(x))).collect();
    let close = |computed: f64, expected: f64| assert_abs_diff_eq!(computed, expected, epsilon = 1e-6);
    for (computed, expected) in report.implicit_rewards.iter().zip(&f) {
        close(*computed, *expected);
    }
    close(report.margins[0], f[0] - f[1]);
    close(report.margins[1], f[2] - f[3]);
    assert_eq!(report.accuracy, 0.5, "the first group's winner is the policy's favourite, the second's is not");
    close(report.mean_log_ratio, f.iter().sum::<f64>() / 2.0);
    let effective = |a: f64, b: f64| {
        let p = 1.0 / (1.0 + (b - a).exp());
        1.0 / (p * p + (1.0 - p) * (1.0 - p))
    };
    close(report.effective_sample_size, 0.5 * (effective(f[0], f[1]) + effective(f[2], f[3])));
    let entropy = |x: f64| {
        let p = 1.0 / (1.0 + (-x).exp());
        -p * p.ln() - (1.0 - p) * (1.0 - p).ln()
    };
    close(report.entropy.expect("asked for"), x.iter().map(|&x| entropy(f64::from(x))).sum::<f64>() / 4.0);
    assert_eq!(report.scored_rows, 4);
    close(report.loss, report.group_losses.iter().sum::<f64>() / 2.0);
}
