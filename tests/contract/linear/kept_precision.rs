//! Gradients from what the forward pass kept, against the f64 reference: within bounds derived from rounding, in every type, and
//! with their digits where the target has nearly all of the probability.

use crate::linear::log_prob_precision::{
    CHUNKS, LogitGradients, OPTIONS, Products, Shares, TILES, check_gradients, hold, largest_of, of_logits,
};
use exo_kernels::backend::{LinearOutputs, Memory};
use exo_kernels::reference::bounds::{self, linear_log_prob as linear_bounds};
use exo_kernels::reference::{linear_log_prob as reference, token_log_prob};
use exo_kernels::{Element, LinearKept, LogitOptions, Matrix};
use half::{bf16, f16};
use support::backend::{ForwardBuffers, Placed, TestBackend, download, on_every_backend, upload};
use support::linear::{ALL, Case, Wanted};

on_every_backend!(f32_within_bounds, bf16_within_bounds, f16_within_bounds, digits_are_kept_next_to_certainty,);

/// The bounds of the factors that are formed as e_j·σ_j and Σ' e_j: of rows that the forward pass has been checked for.
pub(super) fn of_units<T: Element, W: Element, B: Products>(
    backend: &B,
    case: &Case<T, W>,
    options: &LogitOptions,
    g: &[f32],
    kept: LinearKept,
    of_logits: LogitGradients,
) -> LogitGradients {
    let (n, h, v, head) = (case.rows, case.hidden_size, case.vocab, case.head());
    let mut of_units = vec![0.0; n * v];
    let mut of_kept = vec![0.0; n * v];
    let (mut shares_of_rest, mut largest) = (vec![0.0; v], 0.0_f64);
    for row in (0..n).filter(|row| case.targets[*row] >= 0) {
        let target = case.targets[row] as usize;
        let logits = reference::logits(case.hidden().row(row), &head);
        let magnitudes = reference::magnitudes(case.hidden().row(row), &head);
        let lost = backend.lost::<T, W>(h, largest_of(case.hidden().row(row)).max(largest_of(&case.weight)));
        let delta = magnitudes.iter().map(|size| linear_bounds::logit(*size, h) + lost).fold(0.0, f64::max);
        let exact = token_log_prob::forward_f64(&logits, target, options);
        let bound = bounds::row(B::LINEAR_ARITHMETIC, &exact, options).with_logit_error(&exact, delta);
        let g = f64::from(g[row]);
        let (factor, rest) = (g / options.temperature(), -exact.log_prob.exp_m1());
        let log_p = |column: usize| {
            let (x, softcap) = (logits[column], options.softcap());
            let capped = if softcap > 0.0 { softcap * (x / softcap).tanh() } else { x };
            capped / options.temperature() - exact.log_sum_exp
        };
        let round = |value: f64, of_d: f64, (unit_roundoff, smallest): (f64, f64)| {
            of_d + bounds::rounding(value.abs() + of_d, unit_roundoff, smallest)
        };
        let (of_product, of_keeping) =
            (backend.unit_rounding::<T, W>(rest, factor), backend.kept_rounding::<T, W>(rest, factor));
        // The hidden states are multiplied with c, and rounded to their type.
        let of_hidden_states = if B::SEES_NUMBERS { 0.0 } else { T::UNIT_ROUNDOFF };
        largest = largest.max((factor * rest).abs());
        for column in 0..v {
            let (index, value, x) = (row * v + column, of_logits.exact[row * v + column], logits[column]);
            if column == target {
                let others = (0..v).filter(|column| *column != target).map(log_p);
                of_units[index] = bound.unit_target(value, x, others, g, delta, B::OF_REST);
                of_kept[index] = round(value, of_units[index], of_keeping) + value.abs() * of_hidden_states;
                shares_of_rest[column] += 1.0;
            } else {
                let of_column = bound.unit_column(value, x, log_p(column), g, delta);
                of_units[index] = round(value, of_column, of_product);
                of_kept[index] = round(value, of_column, of_keeping) + value.abs() * of_hidden_states;
                shares_of_rest[column] += log_p(column).exp() / rest;
            }
        }
    }
    if kept == LinearKept::UnitGradients {
        return LogitGradients { of_hidden: of_units, ..of_logits };
    }
    // f16: a product of c and a hidden state is off by 2^-25 at most where it is subnormal, with the largest c·2^-k just below
    // 1; the two powers of two are within a factor of two of |c|·rest of the one row and of the other.
    let of_weight_rows = shares_of_rest.iter().map(|share| {
        let is_subnormal = T::DTYPE == f16::DTYPE && !B::SEES_NUMBERS;
        if is_subnormal { share * largest * 4.0 * 0.5 * T::SMALLEST } else { 0.0 }
    });
    LogitGradients {
        of_weight_rows: of_weight_rows.collect(),
        of_hidden: of_units,
        of_bias: of_kept.clone(),
        of_weight: of_kept,
        ..of_logits
    }
}

fn check<T: Element, G: Element, B: Products>(backend: &B) {
    let mut shares = Shares::default();
    for (index, (n, h, v, bias, columns)) in B::pick(TILES, CHUNKS).into_iter().enumerate() {
        // Chunks of five rows, where rows are taken whole.
        backend.set_chunks(columns, if index % 3 == 0 { 5 * 4 * v } else { 1 << 30 });
        let case = Case::<T, T>::random(n, h, v, bias, index as u64);
        let g: Vec<f32> = (0..n).map(|row| (row % 7) as f32 * 0.3 - 0.8).collect();
        let mut placed = Placed::new(backend, &case);
        if index % 2 == 1 {
            placed.scored_rows = Some(case.targets.iter().filter(|target| **target >= 0).count());
        }
        let (temperature, softcap) = OPTIONS[index % OPTIONS.len()];
        let options = LogitOptions::default().with_temperature(temperature).expect("valid");
        let options = options.with_softcap(softcap).expect("valid");
        let plain = placed.forward(&options, true);
        let wanted = Wanted { accumulate: (index % 2 == 0).then_some(0.5), ..ALL };
        for kept in [LinearKept::UnitGradients, LinearKept::LogitGradients] {
            placed.kept = kept;
            let context = format!("N={n} H={h} V={v} {:?} {:?} {options:?} {kept:?}", T::DTYPE, G::DTYPE);
            let forward = placed.forward(&options, true);
            assert_eq!((&plain.log_probs, &plain.states), (&forward.log_probs, &forward.states), "{context}");
            let gradients = placed.backward::<G>(&options, &forward, (&g, None), wanted);
            let of_logits = of_logits(backend, &case, &options, (&g, None), &forward, &mut shares);
            let of_units = of_units(backend, &case, &options, &g, kept, of_logits);
            let accumulated = f64::from(wanted.accumulate.unwrap_or(0.0));
            check_gradients(backend, &case, &of_units, &gradients, accumulated, &mut shares, &context);
        }
    }
    println!("{}, {:?} {:?}: {shares:.2?}", backend.name(), T::DTYPE, G::DTYPE);
}

fn f32_within_bounds(backend: &impl Products) {
    check::<f32, f32, _>(backend);
}

fn bf16_within_bounds(backend: &impl Products) {
    check::<bf16, f32, _>(backend);
    check::<bf16, bf16, _>(backend);
}

fn f16_within_bounds(backend: &impl Products) {
    check::<f16, f32, _>(backend);
    check::<f16, f16, _>(backend);
}

/// T·∂ log π/∂h of every scored row, as the forward pass leaves them.
fn unit_gradients<T: Element, B: TestBackend>(backend: &B, case: &Case<T, T>, options: &LogitOptions) -> Vec<f32> {
    let placed = Placed::new(backend, case);
    let length = case.rows * case.hidden_size;
    let mut units = upload(backend, &vec![f32::MAX; length]);
    let mut outputs = ForwardBuffers::new(backend, case.rows);
    placed
        .with(|hidden, head| {
            let outputs = LinearOutputs {
                rows: outputs.views(backend, case.rows, false),
                unit_gradients: Some(backend.view_mut(&mut units, length)),
                logit_gradients: None,
            };
            backend.linear_token_log_probs(hidden, head, placed.targets(), options, outputs)
        })
        .expect("forward");
    assert_eq!(B::Memory::length(&backend.view(&units, length)), length);
    download(backend, &units, length)
}

/// A target's logit that grows from row to row, until all but 3e-8 of the probability is its: a relative error of its
/// gradient's norm that does not grow with it, as W_t − Σ p_j W_j would have.
fn digits_are_kept_next_to_certainty(backend: &impl Products) {
    fn check<T: Element, B: Products>(backend: &B) {
        check_digits::<T, B>(backend, &digits_case(), 0.0, |case, options| unit_gradients(backend, case, options));
    }
    check::<f32, _>(backend);
    check::<bf16, _>(backend);
    check::<f16, _>(backend);
}

/// Rows whose target, column 400 of 1000, has more of the probability each.
pub(super) fn digits_case<T: Element>() -> Case<T, T> {
    let (h, v) = (24, 1000);
    let mut case = Case::<T, T>::random(8, h, v, false, 21);
    for (row, hidden) in case.hidden.chunks_exact_mut(h).enumerate() {
        // The last component is the target's alone.
        hidden.iter_mut().enumerate().for_each(|(i, x)| *x = T::from_f32(((i * 7 + row) % 11) as f32 * 0.15 - 0.7));
        hidden[h - 1] = T::from_f32(3.5 * row as f32);
    }
    case.targets = vec![400; 8];
    for (column, weight) in case.weight.chunks_exact_mut(h).enumerate() {
        weight[h - 1] = T::from_f32(if column == 400 { 1.0 } else { 0.0 });
    }
    case
}

/// Holds unit gradients of these rows to their bounds, with so many roundings to f32 more, and to a relative error of their norm.
pub(super) fn check_digits<T: Element, B: Products>(
    backend: &B,
    case: &Case<T, T>,
    more_roundings: f64,
    units: impl Fn(&Case<T, T>, &LogitOptions) -> Vec<f32>,
) {
    let (h, v) = (case.hidden_size, case.vocab);
    let options = LogitOptions::default().with_temperature(0.9).expect("valid");
    let units = units(case, &options);
    let g = vec![0.9_f32; 8];
    let forward = Placed::new(backend, case).forward(&options, true);
    let of_logits = of_logits(backend, case, &options, (&g, None), &forward, &mut Shares::default());
    let of_units = of_units(backend, case, &options, &g, LinearKept::UnitGradients, of_logits);
    let clean = Matrix::new(&case.hidden, h).expect("rows");
    let exact = reference::backward(&of_units.exact, &clean, &case.head()).hidden;
    let absolute: Vec<T> = case.weight.iter().map(|weight| T::from_f32(weight.to_f32().abs())).collect();
    let sizes = Case { weight: absolute, ..case.clone() };
    let of_d = reference::backward(&of_units.of_hidden, &clean, &sizes.head()).hidden;
    let size_of_d: Vec<f64> = of_units.exact.iter().map(|value| value.abs()).collect();
    let size_of_d = reference::backward(&size_of_d, &clean, &sizes.head()).hidden;
    for row in 0..8 {
        let (mut error, mut size) = (0.0, 0.0);
        for i in row * h..(row + 1) * h {
            let roundings = B::OF_HIDDEN(v) as f64 + 4.0 + more_roundings;
            let lost = backend.lost::<T, T>(v, 1.0_f64.max(largest_of(&case.weight)));
            let bound = of_d[i] + linear_bounds::product(size_of_d[i], roundings) + lost;
            let pair = (f64::from(units[i]), exact[i]);
            hold("unit gradient", pair, bound, &mut 0.0, &format!("row {row}, {:?}", T::DTYPE));
            error += (pair.0 - pair.1).powi(2);
            size += pair.1.powi(2);
        }
        let (relative, rest) = ((error / size).sqrt(), -f64::from(forward.log_probs[row]).exp_m1());
        println!("{}, {:?}: 1 - p = {rest:.1e}, off by {relative:.1e}", backend.name(), T::DTYPE);
        // Less than one rounding of it to the head's type, wherever the probability is.
        assert!(
            relative < T::UNIT_ROUNDOFF.max(64.0 * f32::UNIT_ROUNDOFF),
            "row {row}, 1 - p = {rest:e}: {relative:e}"
        );
    }
}
