//! Losses over rows on CUDA in one pass: bit for bit what the two passes give with the loss's gradient between them, for
//! one chunk of rows; and for several within what their sums may differ by.

use cudarc::driver::DeviceRepr;
use exo_kernels::reference::bounds;
use exo_kernels::reference::row_loss::{Clipping, clipped_ratio};
use exo_kernels::{DEFAULT_LOG_RATIO_LIMIT, Element, LogitOptions, RowLoss};
use half::{bf16, f16};
use support::linear::Case;
use support::linear_device::{self, ALL, Gradients, OnDevice, Wanted, set_chunks};

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

#[test]
fn one_pass_is_two() {
    fn check<T: Element + DeviceRepr, G: Element + DeviceRepr>(shape: (usize, usize, usize), wanted: Wanted) {
        let (n, h, v) = shape;
        let cuda = linear_device::cuda();
        // One chunk of columns: the sums over columns are then the same in both.
        set_chunks(&cuda, 1 << 20, 1 << 30);
        let case = Case::<T, T>::random(n, h, v, true, n as u64);
        let weights = weights(n);
        let g: Vec<f32> = weights.iter().map(|weight| -weight).collect();
        let on_device = OnDevice::new(&cuda, &case);
        let two = on_device.forward(&options(), false);
        let of_two: Gradients<T, G> = on_device.backward(&options(), &two, (&g, None), wanted);
        let loss = RowLoss::Weighted { weights: weights.as_slice() };
        let (log_probs, losses, of_one): (_, _, Gradients<T, G>) = on_device.row_loss(&options(), loss, wanted);
        let context = format!("N={n} H={h} V={v} {:?} {:?} {wanted:?}", T::DTYPE, G::DTYPE);
        assert_eq!(bits(&log_probs), bits(&two.log_probs), "{context}");
        for row in 0..n {
            let expected =
                if case.targets[row] < 0 || weights[row] == 0.0 { 0.0 } else { -weights[row] * log_probs[row] };
            assert_eq!(losses[row], expected, "loss {row}, {context}");
        }
        assert!(bits(&of_one.hidden) == bits(&of_two.hidden), "hidden gradient, {context}");
        assert!(bits(&of_one.weight) == bits(&of_two.weight), "weight gradient, {context}");
        assert!(bits(&of_one.bias) == bits(&of_two.bias), "bias gradient, {context}");

        // Chunks of three rows, and of one: 4 * V bytes a row.
        for rows_at_once in [3, 1] {
            set_chunks(&cuda, 1 << 20, rows_at_once * 4 * v);
            let (again, _, of_chunks): (_, _, Gradients<T, G>) = on_device.row_loss(&options(), loss, wanted);
            if softcuda::control().is_some() {
                assert_eq!(bits(&again), bits(&log_probs), "{context}");
            }
            // Both are sums of the same terms in f32 (|D h| <= |w| / T), in another order, rounded to G. f16 gradients of
            // a chunk are scaled by a power of two of its own: they differ where they are subnormal, by less than
            // 2^-38 of the largest, which is less than one rounding.
            let largest: f32 = weights.iter().map(|weight| weight.abs()).sum::<f32>() / 0.9;
            let size = f64::from(largest + wanted.accumulate.unwrap_or(0.0));
            let close = |one: f32, other: f32| {
                let bound = (n + 4) as f64 * f64::from(f32::EPSILON) * size;
                let bound = bound + 2.0 * (f64::from(one.abs()) + bound) * G::UNIT_ROUNDOFF;
                one.is_nan() && other.is_nan() || f64::from((one - other).abs()) <= bound
            };
            for column in 0..v {
                for i in column * h..(column + 1) * h {
                    let (one, other) = (of_one.weight[i].to_f32(), of_chunks.weight[i].to_f32());
                    assert!(close(one, other), "weight {i}: {one} {other}, {context}");
                }
                let (one, other) = (of_one.bias[column].to_f32(), of_chunks.bias[column].to_f32());
                assert!(close(one, other), "bias {column}: {one} {other}, {context}");
            }
        }
    }
    for shape in [(1, 3, 5), (5, 60, 513), (9, 5, 4097)] {
        for accumulate in [None, Some(0.25)] {
            let wanted = Wanted { accumulate, ..ALL };
            check::<f32, f32>(shape, wanted);
            check::<bf16, f32>(shape, wanted);
            check::<bf16, bf16>(shape, wanted);
            check::<f16, f16>(shape, wanted);
        }
        check::<bf16, bf16>(shape, Wanted { hidden: false, ..ALL });
        check::<bf16, bf16>(shape, Wanted { weight: false, bias: false, ..ALL });
    }
}

/// Loss and gradient of the clipped ratio, against their formulas in f64: on both sides of the range, inside it, for both
/// signs of the advantage.
#[test]
fn the_clipped_ratio_is_what_its_formula_says() {
    let cuda = linear_device::cuda();
    let case = Case::<f32, f32>::random(24, 6, 520, false, 3);
    let on_device = OnDevice::new(&cuda, &case);
    let plain = on_device.forward(&options(), false);
    let weights = weights(24);
    let advantages: Vec<f32> = (0..24).map(|row| if row % 2 == 0 { 1.5 } else { -0.7 }).collect();
    let shift = |row: usize| ((row % 6) as f32 - 2.5) * 0.2;
    let old_log_probs: Vec<f32> = (0..24).map(|row| plain.log_probs[row] - shift(row)).collect();
    let (low, high) = (0.2, 0.3);
    let loss = RowLoss::ClippedRatio {
        weights: weights.as_slice(),
        advantages: &advantages,
        old_log_probs: &old_log_probs,
        low,
        high,
        log_ratio_limit: DEFAULT_LOG_RATIO_LIMIT,
    };
    let (log_probs, losses, gradients): (_, _, Gradients<f32, f32>) = on_device.row_loss(&options(), loss, ALL);
    let clipping = Clipping { low: low.into(), high: high.into(), log_ratio_limit: DEFAULT_LOG_RATIO_LIMIT.into() };
    let mut g = vec![0.0_f32; 24];
    let mut clipped_rows = 0;
    for row in (0..24).filter(|row| case.targets[*row] >= 0) {
        let (weight, advantage) = (f64::from(weights[row]), f64::from(advantages[row]));
        let exact =
            clipped_ratio(f64::from(log_probs[row]), weight, advantage, f64::from(old_log_probs[row]), clipping);
        let error = (f64::from(losses[row]) - exact.loss).abs();
        let bound = bounds::row_loss::loss(exact.loss, exact.loss.abs(), 0.0);
        assert!(error <= bound, "row {row}: {} {}", losses[row], exact.loss);
        let is_clipped = exact.gradient == 0.0 && weight != 0.0;
        clipped_rows += usize::from(is_clipped);
        g[row] = if is_clipped { 0.0 } else { losses[row] };
    }
    assert!(clipped_rows > 2, "both branches are there");
    // The gradient is that of two passes with these.
    set_chunks(&cuda, 1 << 20, 1 << 30);
    let of_two: Gradients<f32, f32> = on_device.backward(&options(), &plain, (&g, None), ALL);
    let (_, _, of_one): (_, _, Gradients<f32, f32>) = on_device.row_loss(&options(), loss, ALL);
    assert!(bits(&of_one.hidden) == bits(&of_two.hidden) && bits(&of_one.weight) == bits(&of_two.weight));
    drop(gradients);
}

/// A target that has no probability: infinite loss, and a gradient that is finite; none at all with a weight of 0.
#[test]
fn an_impossible_target() {
    let cuda = linear_device::cuda();
    let mut case = Case::<f32, f32>::random(2, 4, 600, true, 5);
    case.targets = vec![7, 7];
    if let Some(bias) = &mut case.bias {
        bias[7] = f32::NEG_INFINITY;
    }
    let on_device = OnDevice::new(&cuda, &case);
    let loss = RowLoss::Weighted { weights: [1.0, 0.0].as_slice() };
    let (log_probs, losses, gradients): (_, _, Gradients<f32, f32>) = on_device.row_loss(&options(), loss, ALL);
    assert_eq!((log_probs[0], log_probs[1]), (f32::NEG_INFINITY, f32::NEG_INFINITY));
    assert_eq!((losses[0], losses[1]), (f32::INFINITY, 0.0));
    assert!(gradients.weight.iter().chain(&gradients.hidden).all(|number| number.is_finite()));
    assert!(gradients.hidden[4..].iter().all(|number| *number == 0.0));
}
