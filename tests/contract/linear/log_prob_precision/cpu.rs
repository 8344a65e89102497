//! Token log-probs from hidden states against the f64 reference, forward and backward, within bounds derived from
//! rounding, in every type, with V below, at and above the borders of tiles (512 columns) and slices, H beyond one
//! product's depth (512), and row counts around those of tiles (256).

use exo_kernels::reference::bounds::{self, Arithmetic, linear_log_prob as linear_bounds};
use exo_kernels::reference::linear_log_prob as reference;
use exo_kernels::reference::token_log_prob;
use exo_kernels::{
    Cpu, Element, LinearGradients, LogitOptions, MatrixMut, RowGradients, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use support::linear::Case;

/// N, H, V, with a bias.
const SHAPES: [(usize, usize, usize, bool); 12] = [
    (1, 8, 1, false),
    (1, 1, 40, true),
    (2, 2, 300, false),
    (3, 33, 63, true),
    (5, 16, 511, false),
    (9, 17, 512, true),
    (8, 24, 513, false),
    (33, 7, 1025, true),
    (300, 5, 700, false),
    (530, 3, 100, true),
    (4, 1100, 600, false),
    (6, 9, 33 * 512 + 7, true),
];

const OPTIONS: [(f64, f64); 3] = [(1.0, 0.0), (0.7, 0.0), (1.3, 4.0)];

fn share(computed: f64, expected: f64, bound: f64) -> f64 {
    if computed == expected { 0.0 } else { (computed - expected).abs() / bound }
}

/// Results of the stage, forward and backward.
struct Results<T, G> {
    log_probs: Vec<f32>,
    states: Vec<SoftmaxState>,
    entropies: Vec<f32>,
    grad_hidden: Vec<T>,
    grad_weight: Vec<G>,
    grad_bias: Vec<G>,
}

fn run<T: Element, W: Element, G: Element>(case: &Case<T, W>, options: &LogitOptions, g: &[f32]) -> Results<T, G> {
    let cpu = Cpu::default();
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let mut results = Results {
        log_probs: vec![f32::NAN; n],
        states: vec![SoftmaxState::default(); n],
        entropies: vec![f32::NAN; n],
        grad_hidden: vec![T::NAN; n * h],
        grad_weight: vec![G::NAN; v * h],
        grad_bias: vec![G::NAN; v],
    };
    let outputs = TokenLogProbs {
        log_probs: &mut results.log_probs,
        states: &mut results.states,
        entropies: Some(&mut results.entropies),
    };
    let (hidden, head) = (case.hidden(), case.head());
    cpu.linear_token_log_probs(hidden, &head, &case.targets, options, outputs).expect("forward");
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(&mut results.grad_hidden, h).expect("rows")),
        Some(MatrixMut::new(&mut results.grad_weight, h).expect("rows")),
    )
    .with_bias(&mut results.grad_bias);
    let saved = SavedRows { states: &results.states, entropies: None };
    let upstream = RowGradients { log_probs: g, entropies: None };
    cpu.linear_token_log_probs_backward(hidden, &head, &case.targets, options, saved, upstream, gradients)
        .expect("backward");
    results
}

#[derive(Debug, Default)]
struct Shares {
    log_prob: f64,
    log_sum_exp: f64,
    entropy: f64,
    grad_hidden: f64,
    grad_weight: f64,
    grad_bias: f64,
}

fn check<T: Element, W: Element, G: Element>(shares: &mut Shares) {
    for (index, (n, h, v, bias)) in SHAPES.into_iter().enumerate() {
        let case = Case::<T, W>::random(n, h, v, bias, index as u64);
        for (temperature, softcap) in OPTIONS {
            let options = LogitOptions::default().with_temperature(temperature).expect("valid");
            check_case::<T, W, G>(&case, &options.with_softcap(softcap).expect("valid"), shares);
        }
    }
}

fn check_case<T: Element, W: Element, G: Element>(case: &Case<T, W>, options: &LogitOptions, shares: &mut Shares) {
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let head = case.head();
    let g: Vec<f32> = (0..n).map(|row| (row % 7) as f32 * 0.3 - 0.8).collect();
    let results = run::<T, W, G>(case, options, &g);
    let hold = |what: &str, at: usize, computed: f64, expected: f64, bound: f64, largest: &mut f64| {
        let share = share(computed, expected, bound);
        let types = (T::DTYPE, W::DTYPE, G::DTYPE);
        assert!(
            share <= 1.0,
            "{what} {at}: {computed:e}, {expected:e} expected, {share} of its bound; N={n} H={h} V={v} {types:?} {options:?}"
        );
        *largest = largest.max(share);
    };
    let (mut exact_d, mut bound_d) = (vec![0.0; n * v], vec![0.0; n * v]);
    for row in 0..n {
        let Ok(target) = usize::try_from(case.targets[row]) else {
            assert_eq!((results.log_probs[row], results.entropies[row]), (0.0, 0.0));
            assert_eq!(results.states[row], SoftmaxState::default());
            assert!(results.grad_hidden[row * h..(row + 1) * h].iter().all(|x| x.to_f32() == 0.0), "masked row {row}");
            continue;
        };
        let hidden = case.hidden().row(row);
        let logits = reference::logits(hidden, &head);
        let magnitudes = reference::magnitudes(hidden, &head);
        let delta = magnitudes.iter().map(|size| linear_bounds::logit(*size, h)).fold(0.0, f64::max);
        let exact = token_log_prob::forward_f64(&logits, target, options);
        let bound = bounds::row(Arithmetic::BACKEND, &exact, options).with_logit_error(&exact, delta);
        hold("log-prob", row, results.log_probs[row].into(), exact.log_prob, bound.log_prob, &mut shares.log_prob);
        let log_sum_exp = results.states[row].log_sum_exp();
        hold("log-sum-exp", row, log_sum_exp, exact.log_sum_exp, bound.log_sum_exp, &mut shares.log_sum_exp);
        hold("entropy", row, results.entropies[row].into(), exact.entropy, bound.entropy, &mut shares.entropy);

        let gradient = token_log_prob::backward_f64(&logits, target, options, g[row].into(), 0.0);
        for column in 0..v {
            let (value, x) = (gradient[column], logits[column]);
            let capped = if options.softcap() > 0.0 { options.softcap() * (x / options.softcap()).tanh() } else { x };
            let log_p = capped / options.temperature() - exact.log_sum_exp;
            let of_d = bound.grad_logit(value, x, log_p, g[row].into(), 0.0)
                + bound.grad_logit_of_logit_error(log_p, g[row].into(), delta);
            exact_d[row * v + column] = value;
            bound_d[row * v + column] = of_d + bounds::rounding(value.abs() + of_d, f32::UNIT_ROUNDOFF, f32::SMALLEST);
        }
    }
    // Products with D: what D is off by goes in as it is, and each term through the roundings of a sum divided in tiles.
    let masked = |row: usize| case.targets[row] < 0;
    let clean: Vec<T> = (0..n * h).map(|i| if masked(i / h) { T::from_f32(0.0) } else { case.hidden[i] }).collect();
    let clean = exo_kernels::Matrix::new(&clean, h).expect("rows");
    let exact = reference::backward(&exact_d, clean, &head);
    let largest_d: Vec<f64> = exact_d.iter().zip(&bound_d).map(|(value, bound)| value.abs() + bound).collect();
    let absolute = |weight: &[W]| -> Vec<W> { weight.iter().map(|x| W::from_f32(x.to_f32().abs())).collect() };
    let absolute_hidden: Vec<T> = clean_abs(clean, n, h);
    let absolute_hidden = exo_kernels::Matrix::new(&absolute_hidden, h).expect("rows");
    let weight = absolute(&case.weight);
    let absolute_head = exo_kernels::Head::new(exo_kernels::Matrix::new(&weight, h).expect("rows")).expect("a head");
    let of_d = reference::backward(&bound_d, absolute_hidden, &absolute_head);
    let sizes = reference::backward(&largest_d, absolute_hidden, &absolute_head);
    let depth_hidden = (512 + v / 512 + 2) as f64;
    let depth_weight = (256 + n / 256 + 2) as f64;
    for i in 0..n * h {
        let unrounded = of_d.hidden[i] + linear_bounds::product(sizes.hidden[i], depth_hidden);
        let bound = unrounded + bounds::rounding(exact.hidden[i].abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
        let computed = results.grad_hidden[i].to_f32().into();
        hold("hidden gradient", i, computed, exact.hidden[i], bound, &mut shares.grad_hidden);
    }
    let narrow = |value: f64, unrounded: f64| {
        unrounded + bounds::rounding(value.abs() + unrounded, G::UNIT_ROUNDOFF, G::SMALLEST)
    };
    for i in 0..v * h {
        let bound = narrow(exact.weight[i], of_d.weight[i] + linear_bounds::product(sizes.weight[i], depth_weight));
        let computed = results.grad_weight[i].to_f32().into();
        hold("weight gradient", i, computed, exact.weight[i], bound, &mut shares.grad_weight);
    }
    for i in 0..v {
        // Summed in f64, rounded to f32 and to the type.
        let bound = narrow(exact.bias[i], of_d.bias[i] + linear_bounds::product(sizes.bias[i], 1.0));
        hold("bias gradient", i, results.grad_bias[i].to_f32().into(), exact.bias[i], bound, &mut shares.grad_bias);
    }
}

fn clean_abs<T: Element>(hidden: exo_kernels::Matrix<'_, T>, n: usize, h: usize) -> Vec<T> {
    (0..n * h).map(|i| T::from_f32(hidden.row(i / h)[i % h].to_f32().abs())).collect()
}

#[test]
fn within_bounds_in_f32() {
    let mut shares = Shares::default();
    check::<f32, f32, f32>(&mut shares);
    println!("f32: {shares:.2?}");
}

#[test]
fn within_bounds_with_16_bit_heads_and_gradients_of_every_type() {
    let mut shares = Shares::default();
    check::<bf16, bf16, f32>(&mut shares);
    check::<bf16, bf16, bf16>(&mut shares);
    check::<f16, f16, f16>(&mut shares);
    check::<f32, bf16, f32>(&mut shares);
    check::<bf16, f16, bf16>(&mut shares);
    println!("16 bits: {shares:.2?}");
}
