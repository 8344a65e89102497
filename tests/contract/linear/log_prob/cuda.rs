//! Contracts of the linear stage on CUDA: what its bits depend on, masked rows, what is frozen and accumulated, and what
//! bad input gets.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{
    Head, Hidden, LinearChunks, LinearGradients, Matrix, MatrixMut, RowGradients, SavedRows, Status, TokenLogProbs,
};
use exo_kernels::reference::bounds::{self, Arithmetic};
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Dtype, Element, Error, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use support::adversarial::adversarial;
use support::device::{Forward, download, upload};
use support::linear::Case;
use support::linear_device::{self, ALL, Gradients, OnDevice, Wanted, set_chunks};

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn forward_bits(forward: &Forward) -> Vec<u32> {
    let states = forward.states.iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]);
    bits(&forward.log_probs).into_iter().chain(states).chain(bits(&forward.entropies)).collect()
}

fn capped() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0)).expect("valid")
}

fn upstream(rows: usize) -> (Vec<f32>, Vec<f32>) {
    let at = |row: usize, shift: usize| ((row * 7 + shift) % 11) as f32 * 0.2 - 0.9;
    ((0..rows).map(|row| at(row, 0)).collect(), (0..rows).map(|row| at(row, 5)).collect())
}

/// Whether an element of a product has bits of its own, whatever the product's other rows and columns: softcublas's
/// have, those of cuBLAS need not.
fn products_are_elementwise() -> bool {
    let software = softcuda::control().is_some();
    if !software {
        println!("NOT RUN: cuBLAS does not promise an element's bits");
    }
    software
}

#[test]
fn the_size_of_a_chunk_changes_no_bit_of_the_forward_pass() {
    fn check<T: Element + DeviceRepr>(vocab: usize) {
        let cuda = linear_device::cuda();
        if !products_are_elementwise() {
            return;
        }
        let case = Case::<T, T>::random(9, 6, vocab, true, 1);
        let on_device = OnDevice::new(&cuda, &case);
        for options in [LogitOptions::default(), capped()] {
            let at = |columns: usize| {
                set_chunks(&cuda, columns, 1 << 30);
                forward_bits(&on_device.forward(&options, true))
            };
            let expected = at(512);
            for columns in [1024, 1536, 4096, 8192, 1 << 20] {
                assert!(at(columns) == expected, "V={vocab}, chunks of {columns}");
            }
        }
    }
    for vocab in [511, 512, 513, 4096, 4097, 9 * 1024 + 5] {
        check::<f32>(vocab);
        check::<bf16>(vocab);
    }
}

/// Alone, elsewhere in another batch, and with or without the number of scored rows.
#[test]
fn a_row_depends_on_itself_alone() {
    let cuda = linear_device::cuda();
    if !products_are_elementwise() {
        return;
    }
    let case = Case::<bf16, bf16>::random(40, 9, 1030, true, 2);
    let (g, e) = upstream(case.rows);
    let run = |case: &Case<bf16, bf16>, g: &[f32], e: &[f32], scored_rows: Option<usize>| {
        let mut on_device = OnDevice::new(&cuda, case);
        on_device.scored_rows = scored_rows;
        let forward = on_device.forward(&capped(), true);
        let gradients: Gradients<bf16, f32> = on_device.backward(&capped(), &forward, (g, Some(e)), ALL);
        (forward, bits(&gradients.hidden), bits(&gradients.weight))
    };
    let whole = run(&case, &g, &e, None);
    let scored = case.targets.iter().filter(|target| **target >= 0).count();
    for said in [scored, scored + 3, case.rows, usize::MAX] {
        assert!(run(&case, &g, &e, Some(said)) == whole, "{said} scored rows said, {scored} there");
    }
    for (first, count) in [(0, 1), (39, 1), (17, 1), (4, 2), (11, 20)] {
        let last = first + count;
        let mut part = case.clone();
        part.rows = count;
        part.hidden = case.hidden[first * 9..last * 9].to_vec();
        part.targets = case.targets[first..last].to_vec();
        let (forward, hidden, _) = run(&part, &g[first..last], &e[first..last], None);
        let context = format!("rows {first}..{last}");
        assert_eq!(bits(&forward.log_probs), bits(&whole.0.log_probs[first..last]), "{context}");
        assert_eq!(forward.states, whole.0.states[first..last], "{context}");
        assert!(hidden == whole.1[first * 9..last * 9], "hidden gradient, {context}");
    }
    assert_eq!(cuda.status().expect("status"), Status::CLEAR);
}

/// Logits that have broken other systems, exactly: one hidden state of 1, the logits for a weight.
#[test]
fn adversarial_logits_within_bounds() {
    fn check<T: Element + DeviceRepr>(vocab: usize, options: &LogitOptions) {
        let cuda = linear_device::cuda();
        set_chunks(&cuda, 512, 1 << 30);
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
            let forward = OnDevice::new(&cuda, &case).forward(options, true);
            let exact = token_log_prob::forward(&row.logits, row.target, options);
            let bound = bounds::row(Arithmetic { additions: 10.0, ..Arithmetic::CUDA }, &exact, options);
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
    for vocab in [1, 2, 9, 511, 513, 4099] {
        for options in [LogitOptions::default(), capped()] {
            check::<f32>(vocab, &options);
            check::<f16>(vocab, &options);
            check::<bf16>(vocab, &options);
        }
    }
}

#[test]
fn masked_rows_and_no_rows() {
    let cuda = linear_device::cuda();
    let mut case = Case::<f16, f16>::random(6, 10, 530, true, 6);
    case.targets.fill(-1);
    case.hidden.fill(f16::NAN);
    let (g, e) = upstream(case.rows);
    for scored_rows in [None, Some(0), Some(3)] {
        let mut on_device = OnDevice::new(&cuda, &case);
        on_device.scored_rows = scored_rows;
        let forward = on_device.forward(&capped(), true);
        assert!(forward_bits(&forward).iter().all(|bits| *bits == 0));
        let gradients: Gradients<f16, f32> = on_device.backward(&capped(), &forward, (&g, Some(&e)), ALL);
        let head = bits(&gradients.weight).into_iter().chain(bits(&gradients.bias));
        assert!(bits(&gradients.hidden).into_iter().chain(head).all(|bits| bits << 1 == 0), "{scored_rows:?}");
        let added = Wanted { accumulate: Some(0.5), ..ALL };
        let gradients: Gradients<f16, f32> = on_device.backward(&capped(), &forward, (&g, Some(&e)), added);
        assert!(gradients.weight.iter().chain(&gradients.bias).all(|number| *number == 0.5));
    }
    let none = Case::<f16, f16> { rows: 0, hidden: Vec::new(), targets: Vec::new(), ..case };
    let on_device = OnDevice::new(&cuda, &none);
    let forward = on_device.forward(&capped(), false);
    let gradients: Gradients<f16, f32> = on_device.backward(&capped(), &forward, (&[], None), ALL);
    assert!(bits(&gradients.weight).into_iter().chain(bits(&gradients.bias)).all(|bits| bits == 0));
    assert_eq!(cuda.status().expect("status"), Status::CLEAR);
}

/// What an earlier call has left in the kept buffers has no effect: neither infinite hidden states nor their gradients,
/// where there are fewer scored rows now.
#[test]
fn an_earlier_call_leaves_nothing_behind() {
    let case = Case::<bf16, bf16>::random(10, 6, 700, true, 11);
    let (g, e) = upstream(case.rows);
    let run = |cuda: &exo_kernels::cuda::Cuda, case: &Case<bf16, bf16>| {
        let on_device = OnDevice::new(cuda, case);
        let forward = on_device.forward(&capped(), true);
        let gradients: Gradients<bf16, f32> = on_device.backward(&capped(), &forward, (&g, Some(&e)), ALL);
        (forward_bits(&forward), bits(&gradients.hidden), bits(&gradients.weight), bits(&gradients.bias))
    };
    let expected = run(&linear_device::cuda(), &case);
    let mut infinite = case.clone();
    infinite.targets.fill(3);
    infinite.hidden.fill(bf16::INFINITY);
    let cuda = linear_device::cuda();
    run(&cuda, &infinite);
    assert!(run(&cuda, &case) == expected);
}

/// The rows behind the number that was said are NaN, those before it have the bits that they have otherwise.
#[test]
fn more_scored_rows_than_said_are_counted() {
    let cuda = linear_device::cuda();
    let case = Case::<f32, f32>::random(11, 5, 700, false, 7);
    let scored: Vec<usize> = (0..case.rows).filter(|row| case.targets[*row] >= 0).collect();
    let (g, _) = upstream(case.rows);
    let mut on_device = OnDevice::new(&cuda, &case);
    let options = LogitOptions::default();
    let whole = on_device.forward(&options, true);
    let of_whole: Gradients<f32, f32> = on_device.backward(&options, &whole, (&g, None), ALL);
    let said = scored.len() - 3;
    on_device.scored_rows = Some(said);
    let part = on_device.forward(&options, true);
    let status = cuda.status().expect("status");
    assert_eq!(status.unplaced_rows(), 3);
    let of_part: Gradients<f32, f32> = on_device.backward(&options, &part, (&g, None), ALL);
    for row in 0..case.rows {
        let is_unplaced = scored[said..].contains(&row);
        let hidden = row * 5..(row + 1) * 5;
        if is_unplaced {
            assert!(part.log_probs[row].is_nan() && part.states[row].s.is_nan() && part.entropies[row].is_nan());
            assert!(of_part.hidden[hidden].iter().all(|number| number.is_nan()), "row {row}");
        } else if products_are_elementwise() {
            assert_eq!(part.log_probs[row].to_bits(), whole.log_probs[row].to_bits());
            assert!(bits(&of_part.hidden[hidden.clone()]) == bits(&of_whole.hidden[hidden]), "row {row}");
        }
    }
    cuda.clear_status().expect("cleared");
}

#[test]
fn a_row_without_a_softmax_stays_alone() {
    let cuda = linear_device::cuda();
    let case = Case::<f32, f32>::random(9, 10, 1100, true, 7);
    let (g, e) = upstream(case.rows);
    set_chunks(&cuda, 512, 1 << 30);
    let run = |case: &Case<f32, f32>, e: Option<&[f32]>| {
        let on_device = OnDevice::new(&cuda, case);
        let forward = on_device.forward(&capped(), true);
        let gradients: Gradients<f32, f32> = on_device.backward(&capped(), &forward, (&g, e), ALL);
        (forward, gradients)
    };
    let clean = run(&case, Some(&e));
    assert_eq!(cuda.status().expect("status"), Status::CLEAR);
    let mut broken = [f32::NAN, f32::INFINITY].map(|poison| {
        let mut broken = case.clone();
        broken.hidden[40..50].fill(poison);
        broken
    });
    // And one whose target is no column.
    let mut bad_target = case.clone();
    bad_target.targets[4] = 1100;
    for (index, broken) in broken.iter_mut().chain([&mut bad_target]).enumerate() {
        if index < 2 {
            broken.targets[4] = 17;
        }
        let (forward, gradients) = run(broken, Some(&e));
        let status = cuda.status().expect("status");
        let counted = if index < 2 { status.first_non_finite_row() } else { status.first_bad_target_row() };
        assert_eq!(counted, Some(4), "{status:?}");
        cuda.clear_status().expect("cleared");
        for row in (0..9).filter(|row| *row != 4) {
            assert_eq!(bits(&forward.log_probs)[row], bits(&clean.0.log_probs)[row]);
            let hidden = row * 10..(row + 1) * 10;
            assert!(bits(&gradients.hidden[hidden.clone()]) == bits(&clean.1.hidden[hidden]), "row {row}");
        }
        assert!(forward.log_probs[4].is_nan() && forward.states[4].s.is_nan() && forward.entropies[4].is_nan());
        assert!(gradients.hidden[40..50].iter().chain(&gradients.weight).all(|number| number.is_nan()));
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
    let (forward, gradients) = run(&excluded, None);
    assert_eq!(forward.log_probs[0], f32::NEG_INFINITY);
    assert_eq!(cuda.status().expect("status").minus_infinite_targets(), 1);
    assert!(forward.log_probs[1..].iter().all(|number| number.is_finite()));
    let numbers = gradients.weight.iter().chain(&gradients.hidden).chain(&gradients.bias);
    assert!({ numbers }.all(|number| number.is_finite()));
    assert!(gradients.weight[6000..6010].iter().all(|number| *number == 0.0), "an excluded column has no gradient");
    cuda.clear_status().expect("cleared");
    // Only -inf: no softmax.
    excluded.bias = Some(vec![f32::NEG_INFINITY; 1100]);
    let (forward, _) = run(&excluded, None);
    assert!(forward.log_probs.iter().all(|number| number.is_nan()));
    assert_eq!(cuda.status().expect("status").non_finite_rows(), 9);
}

/// What is frozen keeps its buffer, and the rest its bits.
#[test]
fn what_is_frozen_is_left_out() {
    let cuda = linear_device::cuda();
    set_chunks(&cuda, 512, 1 << 30);
    let case = Case::<bf16, bf16>::random(20, 12, 700, true, 4);
    let (g, e) = upstream(case.rows);
    let on_device = OnDevice::new(&cuda, &case);
    let forward = on_device.forward(&capped(), true);
    let run = |wanted| on_device.backward::<f32>(&capped(), &forward, (&g, Some(&e)), wanted);
    let all = run(ALL);
    for (hidden, weight, bias) in
        [(true, false, false), (false, true, false), (false, false, true), (false, false, false)]
    {
        let part = run(Wanted { hidden, weight, bias, accumulate: None });
        let untouched = |values: &[f32]| values.iter().all(|value| value.is_nan());
        assert!(if hidden { bits(&part.hidden) == bits(&all.hidden) } else { part.hidden.iter().all(|x| x.is_nan()) });
        assert!(if weight { bits(&part.weight) == bits(&all.weight) } else { untouched(&part.weight) });
        assert!(if bias { bits(&part.bias) == bits(&all.bias) } else { untouched(&part.bias) });
    }
}

/// Gradients of 1e-9 are below what f16 holds. The products divide the power of two out again, so that the head's gradient
/// in f32 has its digits.
#[test]
fn small_f16_gradients_do_not_vanish() {
    let cuda = linear_device::cuda();
    let case = Case::<f16, f16>::random(13, 9, 600, true, 8);
    let on_device = OnDevice::new(&cuda, &case);
    let options = LogitOptions::default();
    let forward = on_device.forward(&options, false);
    let run = |g: f32| on_device.backward::<f32>(&options, &forward, (&vec![g; case.rows], None), ALL);
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
#[test]
fn strided_matrices_are_used_as_they_are() {
    let cuda = linear_device::cuda();
    let case = Case::<bf16, bf16>::random(7, 10, 600, false, 9);
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let (g, _) = upstream(n);
    let options = LogitOptions::default();
    let on_device = OnDevice::new(&cuda, &case);
    let expected = on_device.forward(&options, false);
    let gradients: Gradients<bf16, f32> =
        on_device.backward(&options, &expected, (&g, None), Wanted { bias: false, ..ALL });

    let spread = |numbers: &[bf16], stride: usize| -> Vec<bf16> {
        numbers.chunks(h).flat_map(|row| row.iter().copied().chain(vec![bf16::NAN; stride - h])).collect()
    };
    let hidden = upload(&cuda, &spread(&case.hidden, 13));
    let weight = upload(&cuda, &spread(&case.weight, 11));
    let targets = upload(&cuda, &case.targets);
    let mut hidden_gradient = upload(&cuda, &vec![bf16::from_f32(7.0); n * 17]);
    let mut weight_gradient = upload(&cuda, &vec![7.0_f32; v * 12]);
    let (mut log_probs, mut states) =
        (upload(&cuda, &vec![0.0_f32; n]), upload(&cuda, &vec![SoftmaxState::default(); n]));
    let states_before = Matrix::strided(hidden.as_view(), n, h, 13).expect("rows");
    let head = Head::new(Matrix::strided(weight.as_view(), v, h, 11).expect("rows")).expect("a head");
    let mut outputs =
        TokenLogProbs { log_probs: log_probs.as_view_mut(), states: states.as_view_mut(), entropies: None };
    cuda.linear_token_log_probs(&states_before, &head, &targets.as_view(), &options, &mut outputs).expect("forward");
    assert_eq!(bits(&download(&cuda, &log_probs)), bits(&expected.log_probs));
    let upstream = upload(&cuda, &g);
    let saved = SavedRows { states: states.as_view(), entropies: None };
    let upstream = RowGradients { log_probs: upstream.as_view(), entropies: None };
    let buffers = LinearGradients::new(
        Some(MatrixMut::strided(hidden_gradient.as_view_mut(), n, h, 17).expect("rows")),
        Some(MatrixMut::strided(weight_gradient.as_view_mut(), v, h, 12).expect("rows")),
    );
    let hidden = Hidden::new(&states_before);
    cuda.linear_token_log_probs_backward(hidden, &head, &targets.as_view(), &options, &saved, &upstream, buffers)
        .expect("backward");
    for (row, padded) in download(&cuda, &hidden_gradient).chunks(17).enumerate() {
        assert!(bits(&padded[..h]) == bits(&gradients.hidden[row * h..(row + 1) * h]), "hidden row {row}");
        assert!(padded[h..].iter().all(|x| x.to_f32() == 7.0), "behind hidden row {row}");
    }
    for (row, padded) in download(&cuda, &weight_gradient).chunks(12).enumerate() {
        assert!(bits(&padded[..h]) == bits(&gradients.weight[row * h..(row + 1) * h]), "weight row {row}");
        assert!(padded[h..].iter().all(|x| *x == 7.0), "behind weight row {row}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_writes_nothing() {
    let cuda = linear_device::cuda();
    let (n, h, v) = (3, 4, 6);
    let (hidden, weight) = (upload(&cuda, &vec![f16::ONE; n * h]), upload(&cuda, &vec![f16::ONE; v * h]));
    let targets = upload(&cuda, &[0_i64, 1, 2]);
    let bias = upload(&cuda, &[f16::ONE; 5]);
    assert!(matches!(Matrix::new(hidden.as_view(), 5), Err(Error::Matrix { elements: 12, columns: 5, .. })));
    assert!(matches!(Matrix::strided(hidden.as_view(), 3, 4, 3), Err(Error::Matrix { row_stride: 3, .. })));
    let matrix = |columns| Matrix::new(hidden.as_view(), columns).expect("rows");
    let head = || Head::new(Matrix::new(weight.as_view(), h).expect("rows")).expect("a head");
    assert!(matches!(
        head().with_bias(bias.as_view()).map(drop),
        Err(Error::Length { what: "bias", given: 5, expected: 6 })
    ));
    assert!(matches!(LinearChunks::default().with_columns(700), Err(Error::Parameter { .. })));

    let options = LogitOptions::default();
    let (mut log_probs, mut states) =
        (upload(&cuda, &[9.0_f32; 3]), upload(&cuda, &[SoftmaxState { r: 9.0, s: 9.0 }; 3]));
    let head = head();
    let mut forward = |hidden: &Matrix<'_, f16>, rows: usize, results: usize| {
        let mut outputs =
            TokenLogProbs { log_probs: log_probs.slice_mut(..results), states: states.as_view_mut(), entropies: None };
        cuda.linear_token_log_probs(hidden, &head, &targets.slice(..rows), &options, &mut outputs)
    };
    assert!(matches!(forward(&matrix(6), 2, 2), Err(Error::Length { what: "softmax states", .. })));
    assert!(matches!(forward(&matrix(4), 2, 3), Err(Error::Length { what: "targets", given: 2, expected: 3 })));
    assert!(matches!(forward(&matrix(4), 3, 2), Err(Error::Length { what: "log-probs", given: 2, expected: 3 })));

    let (saved, upstream) = (upload(&cuda, &[SoftmaxState::default(); 3]), upload(&cuda, &[1.0_f32; 3]));
    let mut of_hidden = upload(&cuda, &vec![f16::ONE; n * h]);
    let mut of_weight = upload(&cuda, &vec![bf16::ONE; v * h]);
    let saved = SavedRows { states: saved.as_view(), entropies: None };
    let view = upload(&cuda, &[1.0_f32; 3]);
    let rows =
        |entropy: bool| RowGradients { log_probs: upstream.as_view(), entropies: entropy.then(|| view.as_view()) };
    let mut backward = |columns: usize, entropy: bool| {
        let gradients = LinearGradients::new(
            Some(MatrixMut::new(of_hidden.as_view_mut(), columns).expect("rows")),
            Some(MatrixMut::new(of_weight.as_view_mut(), h).expect("rows")),
        );
        let (hidden, targets) = (matrix(4), targets.as_view());
        cuda.linear_token_log_probs_backward(&hidden, &head, &targets, &options, &saved, &rows(entropy), gradients)
    };
    // bf16 for an f16 head.
    assert_eq!(backward(4, false), Err(Error::GradientType { given: Dtype::Bf16, head: Dtype::F16 }));
    assert!(matches!(
        backward(2, false),
        Err(Error::Length { what: "rows of the hidden gradient", given: 6, expected: 3 })
    ));
    let numbers = download(&cuda, &of_weight);
    assert!(numbers.iter().all(|number| *number == bf16::ONE), "a refused call has written");
    assert!(download(&cuda, &of_hidden).iter().all(|number| *number == f16::ONE), "a refused call has written");
    assert!(download(&cuda, &log_probs).iter().all(|number| *number == 9.0), "a refused call has written");
}
