//! Losses over rows in one pass: bit for bit what the two passes give, for a loss and gradients that are what their
//! formulas say.

use exo_kernels::reference::bounds;
use exo_kernels::reference::row_loss::{Clipping, clipped_ratio};
use exo_kernels::{
    Cpu, DEFAULT_LOG_RATIO_LIMIT, Element, LinearGradients, LogitOptions, MatrixMut, RowGradients, RowLoss, RowLosses,
    SavedRows, SoftmaxState, TokenLogProbs,
};
use half::bf16;
use support::linear::Case;

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

struct OnePass<T, G> {
    log_probs: Vec<f32>,
    losses: Vec<f32>,
    hidden: Vec<T>,
    weight: Vec<G>,
}

fn one_pass<T: Element, W: Element, G: Element>(case: &Case<T, W>, loss: RowLoss<&[f32]>) -> OnePass<T, G> {
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let mut result = OnePass {
        log_probs: vec![f32::NAN; n],
        losses: vec![f32::NAN; n],
        hidden: vec![T::NAN; n * h],
        weight: vec![G::NAN; v * h],
    };
    let outputs = RowLosses { log_probs: &mut result.log_probs, losses: &mut result.losses };
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(&mut result.hidden, h).expect("rows")),
        Some(MatrixMut::new(&mut result.weight, h).expect("rows")),
    );
    Cpu::default()
        .linear_row_loss(case.hidden(), &case.head(), &case.targets, &options(), loss, outputs, gradients)
        .expect("a pass");
    result
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.9).expect("valid")
}

fn two_passes<T: Element, W: Element, G: Element>(case: &Case<T, W>, g: &[f32]) -> (Vec<f32>, Vec<T>, Vec<G>) {
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let cpu = Cpu::default();
    let (mut log_probs, mut states) = (vec![0.0; n], vec![SoftmaxState::default(); n]);
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
    cpu.linear_token_log_probs(case.hidden(), &case.head(), &case.targets, &options(), outputs).expect("forward");
    let (mut hidden, mut weight) = (vec![T::NAN; n * h], vec![G::NAN; v * h]);
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(&mut hidden, h).expect("rows")),
        Some(MatrixMut::new(&mut weight, h).expect("rows")),
    );
    let saved = SavedRows { states: &states, entropies: None };
    let rows = RowGradients { log_probs: g, entropies: None };
    cpu.linear_token_log_probs_backward(case.hidden(), &case.head(), &case.targets, &options(), saved, rows, gradients)
        .expect("backward");
    (log_probs, hidden, weight)
}

#[test]
fn one_pass_has_the_bits_of_two() {
    fn check<T: Element, W: Element, G: Element>() {
        for (n, h, v) in [(1, 3, 5), (5, 600, 513), (530, 8, 1030), (9, 5, 33 * 512 + 1)] {
            let case = Case::<T, W>::random(n, h, v, true, n as u64);
            let weights: Vec<f32> = (0..n).map(|row| (row % 5) as f32 * 0.3 - 0.5).collect();
            let g: Vec<f32> = weights.iter().map(|weight| -weight).collect();
            let one = one_pass::<T, W, G>(&case, RowLoss::Weighted { weights: &weights });
            let (log_probs, hidden, weight) = two_passes::<T, W, G>(&case, &g);
            let context = format!("N={n} H={h} V={v} {:?} {:?}", T::DTYPE, G::DTYPE);
            assert_eq!(bits(&one.log_probs), bits(&log_probs), "{context}");
            assert!(bits(&one.hidden) == bits(&hidden), "hidden gradient, {context}");
            assert!(bits(&one.weight) == bits(&weight), "weight gradient, {context}");
            for row in 0..n {
                let expected = if case.targets[row] < 0 { 0.0 } else { -weights[row] * log_probs[row] };
                assert_eq!(one.losses[row], expected, "row {row}, {context}");
            }
        }
    }
    check::<f32, f32, f32>();
    check::<bf16, bf16, bf16>();
    check::<f32, bf16, f32>();
}

/// PPO's loss by its formula in f64, for ratios inside, below and above the range under advantages of both signs.
#[test]
fn the_clipped_ratio() {
    let (low, high) = (0.2f32, 0.3f32);
    let mut case = Case::<f32, f32>::random(12, 6, 40, false, 8);
    case.targets = (0..12).collect();
    case.hidden = (0..72).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let plain = one_pass::<f32, f32, f32>(&case, RowLoss::Weighted { weights: &[1.0; 12] });
    let shift = |row: usize| [0.0, 0.1, -0.1, 0.7, -0.7, 2.0][row % 6];
    let old: Vec<f32> = (0..12).map(|row| plain.log_probs[row] - shift(row)).collect();
    let advantages: Vec<f32> = (0..12).map(|row| if row < 6 { 0.8 } else { -1.1 }).collect();
    let weights: Vec<f32> = (0..12).map(|row| if row == 2 { 0.0 } else { 0.25 + row as f32 * 0.01 }).collect();
    let loss: RowLoss<&[f32]> = RowLoss::ClippedRatio {
        weights: &weights,
        advantages: &advantages,
        old_log_probs: &old,
        low,
        high,
        log_ratio_limit: DEFAULT_LOG_RATIO_LIMIT,
    };
    let result = one_pass::<f32, f32, f32>(&case, loss);
    let clipping = Clipping { low: low.into(), high: high.into(), log_ratio_limit: DEFAULT_LOG_RATIO_LIMIT.into() };
    let mut g = Vec::new();
    let mut clipped_rows = 0;
    for row in 0..12 {
        let (w, a) = (f64::from(weights[row]), f64::from(advantages[row]));
        let exact = clipped_ratio(f64::from(plain.log_probs[row]), w, a, f64::from(old[row]), clipping);
        let error = (f64::from(result.losses[row]) - exact.loss).abs();
        assert!(error <= bounds::row_loss::loss(exact.loss, exact.loss.abs(), 0.0), "row {row}: {error}");
        clipped_rows += usize::from(exact.gradient == 0.0 && w != 0.0);
        g.push(exact.gradient as f32);
    }
    assert_eq!(clipped_rows, 3, "both sides are clipped, each under the sign that it matters for");
    let (_, hidden, weight) = two_passes::<f32, f32, f32>(&case, &g);
    assert_eq!(bits(&result.hidden), bits(&hidden));
    assert_eq!(bits(&result.weight), bits(&weight));
}

/// A row that the loss does not weigh costs nothing, though its target be impossible.
#[test]
fn a_weight_of_zero() {
    let mut case = Case::<f32, f32>::random(3, 4, 7, true, 9);
    case.targets = vec![2, 3, 4];
    case.hidden = vec![0.3; 12];
    if let Some(bias) = &mut case.bias {
        bias[2] = f32::NEG_INFINITY;
    }
    let result = one_pass::<f32, f32, f32>(&case, RowLoss::Weighted { weights: &[0.0, 0.5, 0.0] });
    assert_eq!(result.log_probs[0], f32::NEG_INFINITY);
    assert_eq!((result.losses[0], result.losses[2]), (0.0, 0.0));
    assert!(result.hidden[..4].iter().chain(&result.hidden[8..]).all(|x| *x == 0.0));
    assert!(result.hidden[4..8].iter().any(|x| *x != 0.0) && result.weight.iter().all(|x| x.is_finite()));
}
