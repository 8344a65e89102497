//! Losses over rows in one pass: bit for bit what the two passes give with the loss's gradient, and the unit gradients of the
//! hidden states, between them, for a loss and
//! gradients that are what their formulas say.

use exo_kernels::reference::bounds;
use exo_kernels::reference::row_loss::{Clipping, clipped_ratio};
use exo_kernels::{DEFAULT_LOG_RATIO_LIMIT, Element, LinearKept, LogitOptions, RowLoss};
use half::{bf16, f16};
use support::backend::{Placed, TestBackend, on_every_backend};
use support::linear::{ALL, Case, Gradients, Wanted};

on_every_backend!(
    one_pass_is_two,
    the_clipped_ratio,
    the_clipped_ratio_between_masked_rows,
    a_weight_of_zero,
    an_impossible_target,
);

/// What only hosts take: a head of another type than the hidden states.
mod of_several_types {
    use super::one_pass_is_two_under_another_head as one_pass_is_two;
    use support::backend::on_every_host;

    on_every_host!(one_pass_is_two);
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.9).expect("valid")
}

/// 0 among them.
fn weights(rows: usize) -> Vec<f32> {
    (0..rows).map(|row| (row % 5) as f32 * 0.3 - 0.6).collect()
}

/// N, H, V.
type Shape = (usize, usize, usize);

fn shapes<B: TestBackend>() -> &'static [Shape] {
    B::pick(&[(1, 3, 5), (5, 600, 513), (530, 8, 1030), (9, 5, 33 * 512 + 1)], &[(1, 3, 5), (5, 60, 513), (9, 5, 4097)])
}

fn one_pass_is_two<B: TestBackend>(backend: &B) {
    for shape in shapes::<B>() {
        for accumulate in [None, Some(0.25)] {
            let wanted = Wanted { accumulate, ..ALL };
            compare::<f32, f32, f32>(backend, *shape, wanted);
            compare::<bf16, bf16, f32>(backend, *shape, wanted);
            compare::<bf16, bf16, bf16>(backend, *shape, wanted);
            compare::<f16, f16, f16>(backend, *shape, wanted);
        }
        compare::<bf16, bf16, bf16>(backend, *shape, Wanted { hidden: false, ..ALL });
        compare::<bf16, bf16, bf16>(backend, *shape, Wanted { weight: false, bias: false, ..ALL });
    }
}

fn one_pass_is_two_under_another_head<B: TestBackend>(backend: &B) {
    for shape in shapes::<B>() {
        compare::<f32, bf16, f32>(backend, *shape, ALL);
    }
}

fn compare<T: Element, W: Element, G: Element>(backend: &impl TestBackend, (n, h, v): Shape, wanted: Wanted) {
    // One chunk of columns: the sums over columns are then the same in both.
    backend.set_chunks(1 << 20, 1 << 30);
    let case = Case::<T, W>::random(n, h, v, true, n as u64);
    let weights = weights(n);
    let g: Vec<f32> = weights.iter().map(|weight| -weight).collect();
    let mut placed = Placed::new(backend, &case);
    placed.kept = LinearKept::UnitGradients;
    let two = placed.forward(&options(), false);
    let of_two: Gradients<T, G> = placed.backward(&options(), &two, (&g, None), wanted);
    let loss = RowLoss::Weighted { weights: weights.as_slice() };
    let (log_probs, losses, of_one): (_, _, Gradients<T, G>) = placed.row_loss(&options(), loss, wanted);
    let context = format!("N={n} H={h} V={v} {:?} {:?} {:?} {wanted:?}", T::DTYPE, W::DTYPE, G::DTYPE);
    assert_eq!(bits(&log_probs), bits(&two.log_probs), "{context}");
    for row in 0..n {
        let expected = if case.targets[row] < 0 || weights[row] == 0.0 { 0.0 } else { -weights[row] * log_probs[row] };
        assert_eq!(losses[row], expected, "loss {row}, {context}");
    }
    assert!(bits(&of_one.hidden) == bits(&of_two.hidden), "hidden gradient, {context}");
    assert!(bits(&of_one.weight) == bits(&of_two.weight), "weight gradient, {context}");
    assert!(bits(&of_one.bias) == bits(&of_two.bias), "bias gradient, {context}");
}

/// PPO's loss by its formula in f64: losses within bounds, gradients bit for bit those of two passes with the formula's
/// gradient between them. `shift` is log π − log π_old of a row. Gives the number of clipped rows.
fn check_clipped_ratio<B: TestBackend>(
    backend: &B,
    case: &Case<f32, f32>,
    (weights, advantages): (&[f32], &[f32]),
    shift: impl Fn(usize) -> f32,
) -> usize {
    backend.set_chunks(1 << 20, 1 << 30);
    let mut placed = Placed::new(backend, case);
    placed.kept = LinearKept::UnitGradients;
    let plain = placed.forward(&options(), false);
    let old_log_probs: Vec<f32> = (0..case.rows).map(|row| plain.log_probs[row] - shift(row)).collect();
    let (old_log_probs, log_ratio_limit, low, high) = (old_log_probs.as_slice(), DEFAULT_LOG_RATIO_LIMIT, 0.2, 0.3);
    let loss = RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit };
    let (log_probs, losses, gradients): (_, _, Gradients<f32, f32>) = placed.row_loss(&options(), loss, ALL);
    assert_eq!(bits(&log_probs), bits(&plain.log_probs));
    let clipping = Clipping { low: low.into(), high: high.into(), log_ratio_limit: log_ratio_limit.into() };
    let mut g = vec![0.0_f32; case.rows];
    let mut clipped_rows = 0;
    for row in (0..case.rows).filter(|row| case.targets[*row] >= 0) {
        let (weight, advantage) = (f64::from(weights[row]), f64::from(advantages[row]));
        let exact =
            clipped_ratio(f64::from(log_probs[row]), weight, advantage, f64::from(old_log_probs[row]), clipping);
        let error = (f64::from(losses[row]) - exact.loss).abs();
        let bound = bounds::row_loss::loss(exact.loss, exact.loss.abs(), 0.0);
        assert!(error <= bound, "row {row}: {} {}", losses[row], exact.loss);
        let is_clipped = exact.gradient == 0.0 && weight != 0.0;
        clipped_rows += usize::from(is_clipped);
        // Where it is not clipped the loss is its own derivative, with the exponential that the backend has.
        g[row] = if B::SEES_NUMBERS {
            exact.gradient as f32
        } else if is_clipped {
            0.0
        } else {
            losses[row]
        };
    }
    let of_two: Gradients<f32, f32> = placed.backward(&options(), &plain, (&g, None), ALL);
    assert_eq!(bits(&gradients.hidden), bits(&of_two.hidden));
    assert_eq!(bits(&gradients.weight), bits(&of_two.weight));
    clipped_rows
}

/// For ratios inside, below and above the range under advantages of both signs.
fn the_clipped_ratio(backend: &impl TestBackend) {
    let mut case = Case::<f32, f32>::random(12, 6, 40, false, 8);
    case.targets = (0..12).collect();
    case.hidden = (0..72).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let advantages: Vec<f32> = (0..12).map(|row| if row < 6 { 0.8 } else { -1.1 }).collect();
    let weights: Vec<f32> = (0..12).map(|row| if row == 2 { 0.0 } else { 0.25 + row as f32 * 0.01 }).collect();
    let shift = |row: usize| [0.0, 0.1, -0.1, 0.7, -0.7, 2.0][row % 6];
    let clipped_rows = check_clipped_ratio(backend, &case, (&weights, &advantages), shift);
    assert_eq!(clipped_rows, 3, "both sides are clipped, each under the sign that it matters for");
}

/// For weights of both signs.
fn the_clipped_ratio_between_masked_rows(backend: &impl TestBackend) {
    let case = Case::<f32, f32>::random(24, 6, 520, false, 3);
    let advantages: Vec<f32> = (0..24).map(|row| if row % 2 == 0 { 1.5 } else { -0.7 }).collect();
    let shift = |row: usize| ((row % 6) as f32 - 2.5) * 0.2;
    let clipped_rows = check_clipped_ratio(backend, &case, (&weights(24), &advantages), shift);
    assert!(clipped_rows > 2, "both branches are there");
}

/// A row that the loss does not weigh costs nothing, though its target be impossible.
fn a_weight_of_zero(backend: &impl TestBackend) {
    let mut case = Case::<f32, f32>::random(3, 4, 7, true, 9);
    case.targets = vec![2, 3, 4];
    case.hidden = vec![0.3; 12];
    if let Some(bias) = &mut case.bias {
        bias[2] = f32::NEG_INFINITY;
    }
    let loss = RowLoss::Weighted { weights: [0.0, 0.5, 0.0].as_slice() };
    let (log_probs, losses, gradients): (_, _, Gradients<f32, f32>) =
        Placed::new(backend, &case).row_loss(&options(), loss, ALL);
    assert_eq!(log_probs[0], f32::NEG_INFINITY);
    assert_eq!((losses[0], losses[2]), (0.0, 0.0));
    assert!(gradients.hidden[..4].iter().chain(&gradients.hidden[8..]).all(|x| *x == 0.0));
    assert!(gradients.hidden[4..8].iter().any(|x| *x != 0.0) && gradients.weight.iter().all(|x| x.is_finite()));
}

/// A target that has no probability: infinite loss, and a gradient that is finite; none at all with a weight of 0.
fn an_impossible_target(backend: &impl TestBackend) {
    let mut case = Case::<f32, f32>::random(2, 4, 600, true, 5);
    case.targets = vec![7, 7];
    if let Some(bias) = &mut case.bias {
        bias[7] = f32::NEG_INFINITY;
    }
    let loss = RowLoss::Weighted { weights: [1.0, 0.0].as_slice() };
    let (log_probs, losses, gradients): (_, _, Gradients<f32, f32>) =
        Placed::new(backend, &case).row_loss(&options(), loss, ALL);
    assert_eq!((log_probs[0], log_probs[1]), (f32::NEG_INFINITY, f32::NEG_INFINITY));
    assert_eq!((losses[0], losses[1]), (f32::INFINITY, 0.0));
    assert!(gradients.weight.iter().chain(&gradients.hidden).all(|number| number.is_finite()));
    assert!(gradients.hidden[4..].iter().all(|number| *number == 0.0));
}
