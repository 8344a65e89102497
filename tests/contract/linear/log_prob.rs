//! Contracts of the linear stage: what its bits depend on, masked rows, what is frozen, added to and strided, and rows
//! without a softmax.

use exo_kernels::backend::{Head, Hidden, LinearGradients, Matrix, MatrixMut};
use exo_kernels::{Cpu, Element, LogitOptions};
use half::{bf16, f16};
use support::backend::{BackwardInputs, ForwardBuffers, Placed, TestBackend, download, on_every_backend, upload};
use support::linear::{ALL, Case, Gradients, Wanted};

on_every_backend!(
    a_row_depends_on_itself_alone,
    masked_rows_and_no_rows,
    an_earlier_call_leaves_nothing_behind,
    a_row_without_a_softmax_stays_alone,
    what_is_frozen_is_left_out,
    accumulating_adds_to_weight_and_bias_and_overwrites_hidden,
    small_f16_gradients_do_not_vanish,
    strided_matrices_are_used_as_they_are,
);

/// What only hosts take: a head of another type than the hidden states, gradients of a third.
mod of_several_types {
    use super::{
        accumulating_into_other_types as accumulating_adds_to_weight_and_bias_and_overwrites_hidden,
        masked_rows_under_another_head as masked_rows_and_no_rows,
        rows_under_another_head as a_row_depends_on_itself_alone,
    };
    use support::backend::on_every_host;

    on_every_host!(
        a_row_depends_on_itself_alone,
        masked_rows_and_no_rows,
        accumulating_adds_to_weight_and_bias_and_overwrites_hidden,
    );
}

/// Outputs of both passes, with the entropies and their gradient.
#[derive(Debug, Clone, PartialEq)]
struct Bits {
    log_probs: Vec<u32>,
    states: Vec<(u32, u32)>,
    entropies: Vec<u32>,
    hidden: Vec<u32>,
    weight: Vec<u32>,
    bias: Vec<u32>,
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn floats(bits: &[u32]) -> impl Iterator<Item = f32> {
    bits.iter().copied().map(f32::from_bits)
}

fn upstream(rows: usize) -> (Vec<f32>, Vec<f32>) {
    let at = |row: usize, shift: usize| ((row * 7 + shift) % 11) as f32 * 0.2 - 0.9;
    ((0..rows).map(|row| at(row, 0)).collect(), (0..rows).map(|row| at(row, 5)).collect())
}

fn capped() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0)).expect("valid")
}

fn run<T: Element, W: Element, G: Element>(
    placed: &Placed<impl TestBackend, T, W>,
    (g, e): (&[f32], Option<&[f32]>),
    wanted: Wanted,
) -> Bits {
    let forward = placed.forward(&capped(), true);
    let gradients: Gradients<T, G> = placed.backward(&capped(), &forward, (g, e), wanted);
    Bits {
        log_probs: bits(&forward.log_probs),
        states: forward.states.iter().map(|state| (state.r.to_bits(), state.s.to_bits())).collect(),
        entropies: bits(&forward.entropies),
        hidden: bits(&gradients.hidden),
        weight: bits(&gradients.weight),
        bias: bits(&gradients.bias),
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = Case::<f32, f32>::random(530, 40, 33 * 512 + 100, true, 1);
    let (g, e) = upstream(case.rows);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| run::<f32, f32, f32>(&Placed::new(&Cpu::default(), &case), (&g, Some(&e)), ALL))
    };
    let one = on(1);
    for threads in [2, 3, 11] {
        assert!(on(threads) == one, "{threads} threads");
    }
}

fn a_row_depends_on_itself_alone(backend: &impl TestBackend) {
    rows_alone::<f32, f32, f32, _>(backend);
    rows_alone::<bf16, bf16, f32, _>(backend);
}

fn rows_under_another_head(backend: &impl TestBackend) {
    rows_alone::<bf16, f16, f16, _>(backend);
}

/// N; H and V; first rows and counts of parts.
type Sizes = (usize, &'static [(usize, usize)], [(usize, usize); 5]);

/// Rows of a batch, alone, elsewhere in another batch, and with or without the number of scored rows. H = 1100 takes three
/// products on the processor, and one row alone is where matrix products take other loops.
fn rows_alone<T: Element, W: Element, G: Element, B: TestBackend>(backend: &B) {
    if !backend.products_are_elementwise() {
        return;
    }
    let fast: Sizes = (
        70,
        &[(1, 5), (2, 20), (9, 3), (24, 40), (9, 1030), (1100, 1030), (3, 513), (16, 514)],
        [(0, 1), (69, 1), (17, 1), (40, 2), (11, 30)],
    );
    let slow: Sizes = (40, &[(9, 1030), (2, 20)], [(0, 1), (39, 1), (17, 1), (4, 2), (11, 20)]);
    let (rows, shapes, parts) = B::pick(fast, slow);
    for &(hidden_size, vocab) in shapes {
        let case = Case::<T, W>::random(rows, hidden_size, vocab, true, 2);
        let (g, e) = upstream(case.rows);
        let mut placed = Placed::new(backend, &case);
        let whole = run::<T, W, G>(&placed, (&g, Some(&e)), ALL);
        let scored = case.targets.iter().filter(|target| **target >= 0).count();
        for said in [scored, scored + 3, case.rows, usize::MAX] {
            placed.scored_rows = Some(said);
            let bits = run::<T, W, G>(&placed, (&g, Some(&e)), ALL);
            assert!(bits == whole, "{said} scored rows said, {scored} there, H={hidden_size} V={vocab}");
        }
        for (first, count) in parts {
            let last = first + count;
            let mut part = case.clone();
            part.rows = count;
            part.hidden = case.hidden[first * hidden_size..last * hidden_size].to_vec();
            part.targets = case.targets[first..last].to_vec();
            let placed = Placed::new(backend, &part);
            let alone = run::<T, W, G>(&placed, (&g[first..last], Some(&e[first..last])), ALL);
            let context = format!("rows {first}..{last} of H={hidden_size} V={vocab}");
            assert_eq!(alone.log_probs, whole.log_probs[first..last], "{context}");
            assert_eq!(alone.states, whole.states[first..last], "{context}");
            assert_eq!(alone.entropies, whole.entropies[first..last], "{context}");
            let of_rows = first * hidden_size..last * hidden_size;
            assert!(alone.hidden == whole.hidden[of_rows], "hidden gradient, {context}");
        }
    }
    assert!(backend.has_counted_nothing());
}

fn masked_rows_and_no_rows(backend: &impl TestBackend) {
    nothing_scored::<f32, f32, f32>(backend);
    nothing_scored::<f16, f16, f32>(backend);
}

fn masked_rows_under_another_head(backend: &impl TestBackend) {
    nothing_scored::<f32, bf16, bf16>(backend);
}

fn nothing_scored<T: Element, W: Element, G: Element>(backend: &impl TestBackend) {
    let mut case = Case::<T, W>::random(6, 10, 530, true, 6);
    case.targets.fill(-1);
    case.hidden.fill(T::NAN);
    let (g, e) = upstream(case.rows);
    // cuBLAS may give a zero a sign.
    let are_positive = backend.products_are_elementwise();
    let is_zero = |bits: &u32| if are_positive { *bits == 0 } else { bits << 1 == 0 };
    for scored_rows in [None, Some(0), Some(3)] {
        let mut placed = Placed::new(backend, &case);
        placed.scored_rows = scored_rows;
        let masked = run::<T, W, G>(&placed, (&g, Some(&e)), ALL);
        assert!(masked.log_probs.iter().chain(&masked.entropies).all(|bits| *bits == 0));
        assert!(masked.states.iter().all(|state| *state == (0, 0)));
        assert!(masked.hidden.iter().chain(&masked.weight).chain(&masked.bias).all(is_zero));
        let added = run::<T, W, G>(&placed, (&g, Some(&e)), Wanted { accumulate: Some(0.5), ..ALL });
        assert!(floats(&added.weight).chain(floats(&added.bias)).all(|number| number == 0.5));
    }
    let none = Case::<T, W> { rows: 0, hidden: Vec::new(), targets: Vec::new(), ..case };
    let placed = Placed::new(backend, &none);
    for e in [None, Some(&[][..])] {
        let none = run::<T, W, G>(&placed, (&[], e), ALL);
        assert!(none.log_probs.is_empty() && none.weight.iter().chain(&none.bias).all(|bits| *bits == 0));
    }
    assert!(backend.has_counted_nothing());
}

/// What an earlier call has left in the kept buffers has no effect: neither infinite hidden states nor their gradients,
/// where there are fewer scored rows now.
fn an_earlier_call_leaves_nothing_behind(backend: &impl TestBackend) {
    let case = Case::<bf16, bf16>::random(10, 6, 700, true, 11);
    let (g, e) = upstream(case.rows);
    let run = |case: &Case<bf16, bf16>| run::<bf16, bf16, f32>(&Placed::new(backend, case), (&g, Some(&e)), ALL);
    let expected = run(&case);
    let mut infinite = case.clone();
    infinite.targets.fill(3);
    infinite.hidden.fill(bf16::INFINITY);
    run(&infinite);
    assert!(run(&case) == expected);
}

/// A row that is not finite is NaN, and no other row is: but every row of the weight's gradient has a share of it.
fn a_row_without_a_softmax_stays_alone(backend: &impl TestBackend) {
    let case = Case::<f32, f32>::random(9, 10, 1100, true, 7);
    let (g, e) = upstream(case.rows);
    backend.set_chunks(512, 1 << 30);
    let run =
        |case: &Case<f32, f32>, e: Option<&[f32]>| run::<f32, f32, f32>(&Placed::new(backend, case), (&g, e), ALL);
    let clean = run(&case, Some(&e));
    assert!(backend.has_counted_nothing());
    for poison in [f32::NAN, f32::INFINITY] {
        for columns in [43..44, 40..50] {
            let mut broken = case.clone();
            broken.hidden[columns].fill(poison);
            broken.targets[4] = 17;
            let result = run(&broken, Some(&e));
            for row in (0..9).filter(|row| *row != 4) {
                assert_eq!(result.log_probs[row], clean.log_probs[row]);
                let hidden = row * 10..(row + 1) * 10;
                assert!(result.hidden[hidden.clone()] == clean.hidden[hidden], "row {row}");
            }
            let of_row = [result.log_probs[4], result.states[4].1, result.entropies[4]];
            assert!(floats(&of_row).all(f32::is_nan));
            assert!(floats(&result.hidden[40..50]).chain(floats(&result.weight)).all(f32::is_nan));
        }
    }

    // A bias of -inf excludes its column, and makes it impossible as a target.
    let mut excluded = case.clone();
    excluded.targets = (0..9).map(|row| if row == 0 { 600 } else { 8 }).collect();
    for (row, hidden) in excluded.hidden.chunks_exact_mut(10).enumerate() {
        hidden.fill(0.1 * row as f32);
    }
    if let Some(bias) = &mut excluded.bias {
        bias[600] = f32::NEG_INFINITY;
    }
    for e in [None, Some(&[0.0; 9][..])] {
        let result = run(&excluded, e);
        assert_eq!(f32::from_bits(result.log_probs[0]), f32::NEG_INFINITY);
        assert!(floats(&result.log_probs[1..]).all(f32::is_finite));
        let gradients = result.weight.iter().chain(&result.hidden).chain(&result.bias);
        assert!(gradients.into_iter().all(|bits| f32::from_bits(*bits).is_finite()));
        assert!(floats(&result.weight[6000..6010]).all(|number| number == 0.0), "an excluded column has no gradient");
    }
    // Only -inf: no softmax.
    excluded.bias = Some(vec![f32::NEG_INFINITY; 1100]);
    assert!(floats(&run(&excluded, None).log_probs).all(f32::is_nan));
}

/// What is frozen keeps its buffer, and the rest its bits.
fn what_is_frozen_is_left_out(backend: &impl TestBackend) {
    fn check<T: Element, G: Element>(backend: &impl TestBackend) {
        backend.set_chunks(512, 1 << 30);
        let case = Case::<T, T>::random(20, 12, 700, true, 4);
        let (g, e) = upstream(case.rows);
        let placed = Placed::new(backend, &case);
        let forward = placed.forward(&capped(), true);
        let run = |wanted| placed.backward::<G>(&capped(), &forward, (&g, Some(&e)), wanted);
        let all = run(ALL);
        let untouched = |values: &[G]| values.iter().all(|value| value.to_f32().is_nan());
        for (hidden, weight, bias) in
            [(true, false, false), (false, true, false), (false, false, true), (false, false, false)]
        {
            let part = run(Wanted { hidden, weight, bias, accumulate: None });
            let of_hidden_untouched = part.hidden.iter().all(|value| value.to_f32().is_nan());
            assert!(if hidden { bits(&part.hidden) == bits(&all.hidden) } else { of_hidden_untouched });
            assert!(if weight { bits(&part.weight) == bits(&all.weight) } else { untouched(&part.weight) });
            assert!(if bias { bits(&part.bias) == bits(&all.bias) } else { untouched(&part.bias) });
        }
    }
    check::<f32, f32>(backend);
    check::<bf16, f32>(backend);
}

fn accumulating_adds_to_weight_and_bias_and_overwrites_hidden(backend: &impl TestBackend) {
    accumulating::<f32, f32, _>(backend);
    accumulating::<bf16, bf16, _>(backend);
    accumulating::<f16, f16, _>(backend);
}

fn accumulating_into_other_types(backend: &impl TestBackend) {
    accumulating::<f32, bf16, _>(backend);
    accumulating::<f32, f16, _>(backend);
}

/// Adding to what is there: in f32 the same as adding afterwards, but for the last rounding; in 16 bits one rounding of
/// the sum in f32.
fn accumulating<T: Element, G: Element, B: TestBackend>(backend: &B) {
    if !backend.products_are_elementwise() {
        return;
    }
    // One chunk: the sum over columns is one product.
    backend.set_chunks(1 << 20, 1 << 30);
    let case = Case::<T, T>::random(B::pick(300, 40), 9, 600, true, 5);
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let (options, (g, _)) = (LogitOptions::default(), upstream(n));
    let placed = Placed::new(backend, &case);
    let forward = placed.forward(&options, false);
    let fresh: Gradients<T, f32> = placed.backward(&options, &forward, (&g, None), Wanted { bias: false, ..ALL });

    let start = |i: usize| G::from_f32((i % 13) as f32 * 0.125 - 0.5);
    let mut hidden = upload(backend, &vec![T::from_f32(3.0); n * h]);
    let mut weight = upload(backend, &(0..v * h).map(start).collect::<Vec<G>>());
    let mut bias = upload(backend, &(0..v).map(start).collect::<Vec<G>>());
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(backend.view_mut(&mut hidden, n * h), h).expect("rows")),
        Some(MatrixMut::new(backend.view_mut(&mut weight, v * h), h).expect("rows")),
    )
    .with_bias(backend.view_mut(&mut bias, v))
    .accumulating();
    let inputs = BackwardInputs::new(backend, &forward, (&g, None));
    let (saved, upstream) = (inputs.saved(backend), inputs.upstream(backend));
    placed
        .with(|hidden, head| {
            let targets = placed.targets();
            backend.linear_token_log_probs_backward(hidden, head, targets, &options, &saved, &upstream, gradients)
        })
        .expect("backward");

    assert!(bits(&download(backend, &hidden, n * h)) == bits(&fresh.hidden), "hidden is overwritten");
    for (i, weight) in download(backend, &weight, v * h).into_iter().enumerate() {
        let sum = start(i).to_f32() + fresh.weight[i];
        if G::DTYPE == f32::DTYPE {
            // 300 rows are two tiles: the sum went through two more roundings, each of a number below 2.
            let bound = 3.0 * f32::EPSILON * (1.0 + fresh.weight[i].abs());
            assert!((weight.to_f32() - sum).abs() <= bound, "weight {i}: {} {sum}", weight.to_f32());
        } else {
            assert_eq!(weight.to_f32(), G::from_f32(sum).to_f32(), "weight {i}");
        }
    }
    let bias = download(backend, &bias, v);
    assert!((0..v).any(|i| bias[i].to_f32() != start(i).to_f32()));
}

/// Gradients of 1e-9 are below what f16 holds. Where products take them in f16, they divide a power of two out again, so
/// that the head's gradient in f32 has its digits.
fn small_f16_gradients_do_not_vanish(backend: &impl TestBackend) {
    let case = Case::<f16, f16>::random(13, 9, 600, true, 8);
    let placed = Placed::new(backend, &case);
    let options = LogitOptions::default();
    let forward = placed.forward(&options, false);
    let run = |g: f32| placed.backward::<f32>(&options, &forward, (&vec![g; case.rows], None), ALL);
    let (large, small) = (run(1.0), run(1.0 / (1u64 << 30) as f32));
    // By a power of two, so that every rounding is the same.
    let scaled =
        |values: &[f32]| values.iter().map(|value| (value / (1u64 << 30) as f32).to_bits()).collect::<Vec<_>>();
    assert!(large.weight.iter().any(|value| *value != 0.0));
    assert!(large.weight.iter().chain(&small.weight).all(|value| value.is_finite()), "the power of two is too large");
    assert!(bits(&small.weight) == scaled(&large.weight));
    assert!(bits(&small.bias) == scaled(&large.bias));
}

/// Strided operands and gradients: the results are those of contiguous ones, and what lies between rows is not touched.
fn strided_matrices_are_used_as_they_are(backend: &impl TestBackend) {
    /// Elements from row to row: of the hidden states, the weight, and their gradients.
    const STRIDES: [usize; 4] = [13, 11, 17, 12];
    fn check<T: Element, G: Element>(backend: &impl TestBackend) {
        let case = Case::<T, T>::random(7, 10, 600, false, 9);
        let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
        let (options, (g, _)) = (LogitOptions::default(), upstream(n));
        let placed = Placed::new(backend, &case);
        let expected = placed.forward(&options, false);
        let of_expected: Gradients<T, G> =
            placed.backward(&options, &expected, (&g, None), Wanted { bias: false, ..ALL });

        let spread = |numbers: &[T], stride: usize| -> Vec<T> {
            numbers.chunks(h).flat_map(|row| row.iter().copied().chain(vec![T::NAN; stride - h])).collect()
        };
        let (hidden, weight) = (spread(&case.hidden, STRIDES[0]), spread(&case.weight, STRIDES[1]));
        let (hidden_on, weight_on) = (upload(backend, &hidden), upload(backend, &weight));
        let states = Matrix::strided(backend.view(&hidden_on, hidden.len()), n, h, STRIDES[0]).expect("rows");
        let weight = Matrix::strided(backend.view(&weight_on, weight.len()), v, h, STRIDES[1]).expect("rows");
        let (hidden, head) = (Hidden::new(&states), Head::new(weight).expect("a head"));
        let mut outputs = ForwardBuffers::new(backend, n);
        let views = outputs.views(backend, n, false);
        backend.linear_token_log_probs(hidden, &head, placed.targets(), &options, views).expect("forward");
        let forward = outputs.download(backend, n, false);
        assert_eq!(bits(&forward.log_probs), bits(&expected.log_probs));

        // The last row needs no padding after it.
        let (hidden_length, weight_length) = (n * STRIDES[2] - 7, v * STRIDES[3] - 2);
        let mut of_hidden = upload(backend, &vec![T::from_f32(7.0); hidden_length]);
        let mut of_weight = upload(backend, &vec![G::from_f32(7.0); weight_length]);
        let inputs = BackwardInputs::new(backend, &forward, (&g, None));
        let (saved, upstream) = (inputs.saved(backend), inputs.upstream(backend));
        let gradients = LinearGradients::new(
            Some(MatrixMut::strided(backend.view_mut(&mut of_hidden, hidden_length), n, h, STRIDES[2]).expect("rows")),
            Some(MatrixMut::strided(backend.view_mut(&mut of_weight, weight_length), v, h, STRIDES[3]).expect("rows")),
        );
        let targets = placed.targets();
        backend
            .linear_token_log_probs_backward(hidden, &head, targets, &options, &saved, &upstream, gradients)
            .expect("backward");
        for (row, padded) in download(backend, &of_hidden, hidden_length).chunks(STRIDES[2]).enumerate() {
            assert!(bits(&padded[..h]) == bits(&of_expected.hidden[row * h..(row + 1) * h]), "hidden row {row}");
            assert!(padded[h..].iter().all(|x| x.to_f32() == 7.0), "after hidden row {row}");
        }
        for (row, padded) in download(backend, &of_weight, weight_length).chunks(STRIDES[3]).enumerate() {
            assert!(bits(&padded[..h]) == bits(&of_expected.weight[row * h..(row + 1) * h]), "weight row {row}");
            assert!(padded[h..].iter().all(|x| x.to_f32() == 7.0), "after weight row {row}");
        }
    }
    check::<f32, f32>(backend);
    check::<bf16, f32>(backend);
}
