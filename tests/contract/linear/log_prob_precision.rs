//! Token log-probs from hidden states against the f64 reference, forward and backward, within bounds derived from rounding,
//! in every type: V below, at and above the borders of what a backend sums as one, H odd and even and beyond one product's
//! depth, row counts around those of tiles.

use exo_kernels::cpu::InstructionSet;
use exo_kernels::cuda::Cuda;
use exo_kernels::reference::bounds::{self, linear_log_prob as linear_bounds};
use exo_kernels::reference::{ReferenceBackend, linear_log_prob as reference, token_log_prob};
use exo_kernels::{Cpu, Dtype, Element, Head, LogitOptions, Matrix};
use half::{bf16, f16};
use support::adversarial::adversarial;
use support::backend::{Placed, TestBackend, on_every_backend};
use support::host_rows::Forward;
use support::linear::{ALL, Case, Gradients, Wanted};

on_every_backend!(f32_within_bounds, bf16_within_bounds, f16_within_bounds, adversarial_logits_within_bounds);

/// What only hosts take: a head of another type than the hidden states.
mod of_several_types {
    use super::other_heads_within_bounds as within_bounds;
    use support::backend::on_every_host;

    on_every_host!(within_bounds);
}

/// N, H, V, with a bias, columns of a chunk.
pub(super) type Shape = (usize, usize, usize, bool, usize);

/// Borders of a processor's tiles: 256 rows, 512 columns, 512 terms of a product.
pub(super) const TILES: [Shape; 12] = [
    (1, 8, 1, false, 512),
    (1, 1, 40, true, 512),
    (2, 2, 300, false, 512),
    (3, 33, 63, true, 512),
    (5, 16, 511, false, 512),
    (9, 17, 512, true, 512),
    (8, 24, 513, false, 512),
    (33, 7, 1025, true, 512),
    (300, 5, 700, false, 512),
    (530, 3, 100, true, 512),
    (4, 1100, 600, false, 512),
    (6, 9, 33 * 512 + 7, true, 512),
];

/// Borders of a device's units (512 columns), chunks and a block's round (4096).
pub(super) const CHUNKS: [Shape; 12] = [
    (1, 8, 1, false, 512),
    (1, 1, 40, true, 512),
    (2, 2, 300, false, 8192),
    (3, 33, 63, true, 512),
    (5, 16, 511, false, 512),
    (9, 17, 512, true, 512),
    (8, 24, 513, false, 512),
    (33, 7, 1025, true, 512),
    (300, 5, 700, false, 512),
    (6, 9, 4096, true, 8192),
    (4, 1100, 600, false, 512),
    (6, 9, 9 * 1024 + 7, true, 8192),
];

pub(super) const OPTIONS: [(f64, f64); 3] = [(1.0, 0.0), (0.7, 0.0), (1.3, 4.0)];

/// What a backend's products sum, and in what type.
pub(super) trait Products: TestBackend {
    /// The most roundings that a term of the hidden gradient goes through, of V.
    const OF_HIDDEN: fn(usize) -> usize;

    /// Of the weight's gradient, of N.
    const OF_WEIGHT: fn(usize) -> usize;

    /// The most roundings that a term of Σ' e goes through, of what is kept.
    const OF_REST: f64;

    /// Unit roundoff and smallest number of the gradient of the logits that is multiplied, whose largest is `largest`.
    fn rounding<T: Element, W: Element>(&self, largest: f64) -> (f64, f64);

    /// The same of −g·p_j/T where it is formed from e_j·σ_j in this type: for what is left of 1 without the target, and g/T.
    fn unit_rounding<T: Element, W: Element>(&self, rest: f64, factor: f64) -> (f64, f64);

    /// The same where it is kept, and then multiplied.
    fn kept_rounding<T: Element, W: Element>(&self, rest: f64, factor: f64) -> (f64, f64) {
        self.unit_rounding::<T, W>(rest, factor)
    }

    /// What a product of so many terms loses of numbers below the normal ones; `largest` is that of the operands.
    fn lost<T: Element, W: Element>(&self, _terms: usize, _largest: f64) -> f64 {
        0.0
    }
}

/// Whether the processor multiplies pairs of these types.
fn multiplies_pairs<T: Element, W: Element>(cpu: Cpu) -> bool {
    cpu.instruction_set() == InstructionSet::Avx512Bf16 && (T::DTYPE, W::DTYPE) == (Dtype::Bf16, Dtype::Bf16)
}

/// Tiles are multiplied in f32: a sum in a tile, the sum over tiles. Where bf16 is multiplied in pairs, D is rounded to it.
impl Products for Cpu {
    const OF_HIDDEN: fn(usize) -> usize = |vocab| 512 + vocab / 512 + 2;
    const OF_WEIGHT: fn(usize) -> usize = |rows| 256 + rows / 256 + 2;

    /// 16 additions in a lane and 5 across lanes; then f64.
    const OF_REST: f64 = 21.0;

    fn rounding<T: Element, W: Element>(&self, _: f64) -> (f64, f64) {
        if multiplies_pairs::<T, W>(*self) {
            return (f32::UNIT_ROUNDOFF + bf16::UNIT_ROUNDOFF, 2.0 * f64::from(f32::MIN_POSITIVE));
        }
        (f32::UNIT_ROUNDOFF, f32::SMALLEST)
    }

    fn unit_rounding<T: Element, W: Element>(&self, _: f64, factor: f64) -> (f64, f64) {
        let (unit_roundoff, smallest) = self.rounding::<T, W>(0.0);
        (unit_roundoff, smallest * (1.0 + factor.abs()))
    }

    /// Once to the head's type besides. f16: e is at most 1 relative to a power of two that is at most twice the rest, and kept
    /// 2^14 times as large; where it is subnormal it is rounded, and once more where it is rescaled.
    fn kept_rounding<T: Element, W: Element>(&self, rest: f64, factor: f64) -> (f64, f64) {
        let (unit_roundoff, smallest) = self.unit_rounding::<T, W>(rest, factor);
        let of_kept = if W::DTYPE == Dtype::F16 { 4.0 * W::SMALLEST / 16384.0 * rest * factor.abs() } else { 0.0 };
        (unit_roundoff + W::UNIT_ROUNDOFF, smallest + of_kept)
    }

    fn lost<T: Element, W: Element>(&self, terms: usize, largest: f64) -> f64 {
        if multiplies_pairs::<T, W>(*self) { linear_bounds::flushed(terms, largest) } else { 0.0 }
    }
}

/// All is in f64, rounded once to f32 when it is written.
impl Products for ReferenceBackend {
    const OF_HIDDEN: fn(usize) -> usize = |_| 1;
    const OF_WEIGHT: fn(usize) -> usize = |_| 1;
    const OF_REST: f64 = 0.0;

    fn rounding<T: Element, W: Element>(&self, _: f64) -> (f64, f64) {
        (f64::EPSILON, f32::SMALLEST)
    }

    fn unit_rounding<T: Element, W: Element>(&self, _: f64, _: f64) -> (f64, f64) {
        (f64::EPSILON, f32::SMALLEST)
    }
}

/// A sum over a chunk at most, the sum over chunks, a product with alpha.
impl Products for Cuda {
    const OF_HIDDEN: fn(usize) -> usize = |vocab| vocab + vocab / 512 + 2;
    const OF_WEIGHT: fn(usize) -> usize = |rows| rows + rows / 64 + 3;

    /// 32 columns of a thread, its warp, the warps of its block, and the rounding of the sum over blocks in f64.
    const OF_REST: f64 = 32.0 + 5.0 + 7.0 + 1.0;

    /// f16: the smallest number is that of gradients scaled to lie below 2^15, the largest of them at 2^14 or above.
    fn rounding<T: Element, W: Element>(&self, largest: f64) -> (f64, f64) {
        let smallest = if T::DTYPE == Dtype::F16 { T::SMALLEST * largest / 16384.0 } else { T::SMALLEST };
        (T::UNIT_ROUNDOFF, smallest)
    }

    /// f16: the rounding of e_j·2^k is 2^-25 at most where it is subnormal, and 2^-k is at most 2^-13 of s·(rest + 2^-20),
    /// with some room for the exponential that rest is made with.
    fn unit_rounding<T: Element, W: Element>(&self, rest: f64, factor: f64) -> (f64, f64) {
        let is_f16 = T::DTYPE == Dtype::F16;
        let of_one = if is_f16 { (rest + 2.0 / 1_048_576.0) / 8192.0 * factor.abs() } else { 1.0 + factor.abs() };
        (T::UNIT_ROUNDOFF, T::SMALLEST * of_one)
    }
}

/// The largest shares of their bounds that the errors had.
#[derive(Debug, Default)]
pub(super) struct Shares {
    pub(super) log_prob: f64,
    pub(super) log_sum_exp: f64,
    pub(super) entropy: f64,
    pub(super) hidden: f64,
    pub(super) weight: f64,
    pub(super) bias: f64,
}

#[track_caller]
pub(super) fn hold(what: &str, (computed, expected): (f64, f64), bound: f64, largest: &mut f64, context: &str) {
    let share = if computed == expected { 0.0 } else { (computed - expected).abs() / bound };
    assert!(share <= 1.0, "{what}: {computed:e}, {expected:e} expected, {share} of its bound; {context}");
    *largest = largest.max(share);
}

/// Checks the forward pass. Gives D, and how far that of the backend may be off.
pub(super) fn of_logits<T: Element, W: Element, B: Products>(
    backend: &B,
    case: &Case<T, W>,
    options: &LogitOptions,
    (g, e): (&[f32], Option<&[f32]>),
    forward: &Forward,
    shares: &mut Shares,
) -> LogitGradients {
    let (n, h, v, head) = (case.rows, case.hidden_size, case.vocab, case.head());
    let at_most =
        |row: usize| f64::from(g[row].abs()) + e.map_or(0.0, |e| f64::from(e[row].abs()) * (0.4 + (v as f64).ln()));
    let largest = (0..n).map(at_most).fold(0.0, f64::max) / options.temperature();
    let (unit_roundoff, smallest) = backend.rounding::<T, W>(largest);
    let (mut exact_d, mut bound_d) = (vec![0.0; n * v], vec![0.0; n * v]);
    for row in 0..n {
        let context = format!("row {row}, N={n} H={h} V={v} {:?} {:?} {options:?}", T::DTYPE, W::DTYPE);
        let Ok(target) = usize::try_from(case.targets[row]) else {
            assert_eq!((forward.log_probs[row], forward.states[row].s, forward.entropies[row]), (0.0, 0.0, 0.0));
            continue;
        };
        let hidden = case.hidden().row(row);
        let logits = reference::logits(hidden, &head);
        let magnitudes = reference::magnitudes(hidden, &head);
        let lost = backend.lost::<T, W>(h, largest_of(hidden).max(largest_of(&case.weight)));
        let delta = magnitudes.iter().map(|size| linear_bounds::logit(*size, h) + lost).fold(0.0, f64::max);
        let exact = token_log_prob::forward_f64(&logits, target, options);
        let bound = bounds::row(B::LINEAR_ARITHMETIC, &exact, options).with_logit_error(&exact, delta);
        let log_prob = (f64::from(forward.log_probs[row]), exact.log_prob);
        hold("log-prob", log_prob, bound.log_prob, &mut shares.log_prob, &context);
        let log_sum_exp = (forward.states[row].log_sum_exp(), exact.log_sum_exp);
        hold("log-sum-exp", log_sum_exp, bound.log_sum_exp, &mut shares.log_sum_exp, &context);
        let entropy = (f64::from(forward.entropies[row]), exact.entropy);
        hold("entropy", entropy, bound.entropy, &mut shares.entropy, &context);
        assert!(forward.log_probs[row] <= 0.0 && forward.entropies[row] >= 0.0, "{context}");

        let (g, e) = (f64::from(g[row]), e.map_or(0.0, |e| f64::from(e[row])));
        let gradient = token_log_prob::backward_f64(&logits, target, options, g, e);
        for column in 0..v {
            let (value, x) = (gradient[column], logits[column]);
            let capped = if options.softcap() > 0.0 { options.softcap() * (x / options.softcap()).tanh() } else { x };
            let log_p = capped / options.temperature() - exact.log_sum_exp;
            // An entropy gradient is g - e (log p + H) in place of g, with the errors of log p and H in it.
            let size = g.abs() + e.abs() * ((log_p + exact.entropy).abs() + 1.0);
            let of_entropy =
                e.abs() * log_p.exp() * (bound.entropy + bound.log_sum_exp + 2.0 * delta) / options.temperature();
            let of_d = bound.grad_logit(value, x, log_p, size, 0.0)
                + bound.grad_logit_of_logit_error(log_p, size, delta)
                + of_entropy;
            exact_d[row * v + column] = value;
            bound_d[row * v + column] = of_d + bounds::rounding(value.abs() + of_d, unit_roundoff, smallest);
        }
    }
    LogitGradients {
        exact: exact_d,
        of_hidden: bound_d.clone(),
        of_weight: bound_d.clone(),
        of_bias: bound_d,
        of_weight_rows: vec![0.0; v],
    }
}

pub(super) fn largest_of<T: Element>(numbers: &[T]) -> f64 {
    numbers.iter().map(|number| f64::from(number.to_f32().abs())).fold(0.0, f64::max)
}

fn absolute<T: Element>(numbers: &[T]) -> Vec<T> {
    numbers.iter().map(|number| T::from_f32(number.to_f32().abs())).collect()
}

/// D, the exact gradient of the logits, `[N, V]`, and how far the factors that a backend has for it may be off.
pub(super) struct LogitGradients {
    pub(super) exact: Vec<f64>,
    /// In the product that gives the gradient of the hidden states.
    pub(super) of_hidden: Vec<f64>,
    /// In that of the weight, and in the sums of the bias.
    pub(super) of_weight: Vec<f64>,
    pub(super) of_bias: Vec<f64>,
    /// What any number of a row of the weight's gradient may be off by besides, `[V]`.
    pub(super) of_weight_rows: Vec<f64>,
}

/// Products with D: what D is off by goes in as it is, and each term through the roundings of its sum.
pub(super) fn check_gradients<T: Element, W: Element, G: Element, B: Products>(
    backend: &B,
    case: &Case<T, W>,
    of_logits: &LogitGradients,
    gradients: &Gradients<T, G>,
    accumulated: f64,
    shares: &mut Shares,
    context: &str,
) {
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let clean = |i: usize| if case.targets[i / h] < 0 { T::from_f32(0.0) } else { case.hidden[i] };
    let clean: Vec<T> = (0..n * h).map(clean).collect();
    let exact = reference::backward(&of_logits.exact, &Matrix::new(&clean, h).expect("rows"), &case.head());
    let largest = |bounds: &[f64]| -> Vec<f64> {
        of_logits.exact.iter().zip(bounds).map(|(value, bound)| value.abs() + bound).collect()
    };
    let (hidden, weight) = (absolute(&clean), absolute(&case.weight));
    let hidden = Matrix::new(&hidden, h).expect("rows");
    let head = Head::new(Matrix::new(&weight, h).expect("rows")).expect("a head");
    let product = |factors: &[f64]| reference::backward(factors, &hidden, &head);
    let (of_d, sizes) = (product(&of_logits.of_hidden).hidden, product(&largest(&of_logits.of_hidden)).hidden);
    let (of_hidden, of_weight) = (B::OF_HIDDEN(v) as f64, B::OF_WEIGHT(n) as f64);
    let operands = largest_of(&clean).max(largest_of(&case.weight));
    let lost = |terms: usize, bounds: &[f64]| {
        backend.lost::<T, W>(terms, largest(bounds).into_iter().fold(operands, f64::max))
    };
    let (lost_hidden, lost_weight) = (lost(v, &of_logits.of_hidden), lost(n, &of_logits.of_weight));
    for i in 0..n * h {
        let unrounded = of_d[i] + linear_bounds::product(sizes[i], of_hidden) + lost_hidden;
        let bound = unrounded + bounds::rounding(exact.hidden[i].abs() + unrounded, T::UNIT_ROUNDOFF, T::SMALLEST);
        let pair = (f64::from(gradients.hidden[i].to_f32()), exact.hidden[i]);
        hold("hidden gradient", pair, bound, &mut shares.hidden, &format!("{i}, {context}"));
    }
    // What was there before is a term of the sum like the others, and rounded once more where these come to it.
    let before = accumulated.abs();
    let narrow = |value: f64, unrounded: f64| {
        let unrounded = unrounded + before * f64::from(f32::EPSILON);
        unrounded + bounds::rounding(value.abs() + unrounded, G::UNIT_ROUNDOFF, G::SMALLEST)
    };
    let (of_d, sizes) = (product(&of_logits.of_weight).weight, product(&largest(&of_logits.of_weight)).weight);
    for i in 0..v * h {
        let expected = exact.weight[i] + accumulated;
        let of_terms = of_d[i] + of_logits.of_weight_rows[i / h] + lost_weight;
        let bound = narrow(expected, of_terms + linear_bounds::product(sizes[i] + before, of_weight));
        let pair = (f64::from(gradients.weight[i].to_f32()), expected);
        hold("weight gradient", pair, bound, &mut shares.weight, &format!("{i}, {context}"));
    }
    let (of_d, sizes) = (product(&of_logits.of_bias).bias, product(&largest(&of_logits.of_bias)).bias);
    for i in 0..v {
        // Summed in f64, rounded to f32 and to the type.
        let expected = exact.bias[i] + accumulated;
        let bound = narrow(expected, of_d[i] + linear_bounds::product(sizes[i], 1.0));
        let pair = (f64::from(gradients.bias[i].to_f32()), expected);
        hold("bias gradient", pair, bound, &mut shares.bias, &format!("{i}, {context}"));
    }
}

fn check<T: Element, W: Element, G: Element, B: Products>(backend: &B) {
    let mut shares = Shares::default();
    for (index, (n, h, v, bias, columns)) in B::pick(TILES, CHUNKS).into_iter().enumerate() {
        backend.set_chunks(columns, 1 << 30);
        let case = Case::<T, W>::random(n, h, v, bias, index as u64);
        let g: Vec<f32> = (0..n).map(|row| (row % 7) as f32 * 0.3 - 0.8).collect();
        let e: Vec<f32> = (0..n).map(|row| (row % 5) as f32 * 0.2 - 0.5).collect();
        let mut placed = Placed::new(backend, &case);
        if index % 2 == 1 {
            placed.scored_rows = Some(case.targets.iter().filter(|target| **target >= 0).count());
        }
        for (temperature, softcap) in OPTIONS {
            let options = LogitOptions::default().with_temperature(temperature).expect("valid");
            let options = options.with_softcap(softcap).expect("valid");
            let context = format!("N={n} H={h} V={v} {:?} {:?} {:?} {options:?}", T::DTYPE, W::DTYPE, G::DTYPE);
            let forward = placed.forward(&options, true);
            let plain = placed.forward(&options, false);
            assert_eq!((&plain.log_probs, &plain.states), (&forward.log_probs, &forward.states), "{context}");
            let of_logits_of_g = of_logits(backend, &case, &options, (&g, None), &forward, &mut shares);
            let gradients = placed.backward::<G>(&options, &plain, (&g, None), ALL);
            check_gradients(backend, &case, &of_logits_of_g, &gradients, 0.0, &mut shares, &context);

            let added = Wanted { accumulate: Some(0.5), ..ALL };
            let gradients = placed.backward::<G>(&options, &forward, (&g, Some(&e)), added);
            let of_logits_of_e = of_logits(backend, &case, &options, (&g, Some(&e)), &forward, &mut shares);
            let context = format!("entropy, {context}");
            check_gradients(backend, &case, &of_logits_of_e, &gradients, 0.5, &mut shares, &context);
        }
    }
    println!("{}, {:?} {:?} {:?}: {shares:.2?}", backend.name(), T::DTYPE, W::DTYPE, G::DTYPE);
}

fn f32_within_bounds(backend: &impl Products) {
    check::<f32, f32, f32, _>(backend);
}

fn bf16_within_bounds(backend: &impl Products) {
    check::<bf16, bf16, f32, _>(backend);
    check::<bf16, bf16, bf16, _>(backend);
}

fn f16_within_bounds(backend: &impl Products) {
    check::<f16, f16, f32, _>(backend);
    check::<f16, f16, f16, _>(backend);
}

fn other_heads_within_bounds(backend: &impl Products) {
    check::<f32, bf16, f32, _>(backend);
    check::<bf16, f16, bf16, _>(backend);
}

/// Rows that have broken other systems, exactly: one hidden state of 1, the logits for a weight.
fn adversarial_logits_within_bounds(backend: &impl TestBackend) {
    fn check<T: Element, B: TestBackend>(backend: &B, vocab: usize, options: &LogitOptions) {
        backend.set_chunks(512, 1 << 30);
        for row in adversarial::<T>(vocab, vocab as u64) {
            let case = Case::<T, T> {
                rows: 1,
                hidden_size: 1,
                vocab,
                hidden: vec![T::from_f32(1.0)],
                weight: row.logits.clone(),
                bias: None,
                targets: vec![row.target as i64],
            };
            let forward = Placed::new(backend, &case).forward(options, true);
            let exact = token_log_prob::forward(&row.logits, row.target, options);
            let bound = bounds::row(B::LINEAR_ARITHMETIC, &exact, options);
            let context = format!("{} {:?} V={vocab} {options:?}", row.name, T::DTYPE);
            let hold = |what: &str, computed: f64, expected: f64, bound: f64| {
                let good = computed == expected || (computed - expected).abs() <= bound;
                assert!(good, "{what} {computed:e}, {expected:e} +- {bound:e} expected: {context}");
            };
            hold("log-prob", forward.log_probs[0].into(), exact.log_prob, bound.log_prob);
            hold("log-sum-exp", forward.states[0].log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp);
            hold("entropy", forward.entropies[0].into(), exact.entropy, bound.entropy);
            assert!(forward.log_probs[0] <= 0.0 && forward.entropies[0] >= 0.0, "{context}");
            assert!(forward.states[0].r == forward.states[0].r.round(), "{context}");
        }
    }
    let capped = LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0));
    for vocab in [1, 2, 9, 511, 513, 4099] {
        for options in [LogitOptions::default(), capped.clone().expect("valid")] {
            check::<f32, _>(backend, vocab, &options);
            check::<f16, _>(backend, vocab, &options);
            check::<bf16, _>(backend, vocab, &options);
        }
    }
}
