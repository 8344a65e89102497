//! Contracts of the linear stage: what its bits depend on, what is frozen and accumulated, what bad input gets, and that
//! it is the token log-prob stage where the product is exact.

use exo_kernels::{
    Cpu, Element, Error, Head, LinearGradients, LogitOptions, Logits, LogitsMut, Matrix, MatrixMut, RowGradients,
    RowLoss, RowLosses, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};
use support::linear::Case;

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

fn upstream(rows: usize) -> (Vec<f32>, Vec<f32>) {
    let at = |row: usize, shift: usize| ((row * 7 + shift) % 11) as f32 * 0.2 - 0.9;
    ((0..rows).map(|row| at(row, 0)).collect(), (0..rows).map(|row| at(row, 5)).collect())
}

fn run<T: Element, W: Element>(case: &Case<T, W>, options: &LogitOptions, g: &[f32], e: &[f32]) -> Bits {
    let cpu = Cpu::default();
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let (mut log_probs, mut states, mut entropies) = (vec![0.0; n], vec![SoftmaxState::default(); n], vec![0.0; n]);
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    cpu.linear_token_log_probs(case.hidden(), &case.head(), &case.targets, options, outputs).expect("forward");
    let (mut hidden, mut weight, mut bias) = (vec![T::NAN; n * h], vec![W::NAN; v * h], vec![W::NAN; v]);
    let gradients = LinearGradients::new(
        Some(MatrixMut::new(&mut hidden, h).expect("rows")),
        Some(MatrixMut::new(&mut weight, h).expect("rows")),
    )
    .with_bias(&mut bias);
    let saved = SavedRows { states: &states, entropies: Some(&entropies) };
    let rows = RowGradients { log_probs: g, entropies: Some(e) };
    cpu.linear_token_log_probs_backward(case.hidden(), &case.head(), &case.targets, options, saved, rows, gradients)
        .expect("backward");
    Bits {
        log_probs: bits(&log_probs),
        states: states.iter().map(|state| (state.r.to_bits(), state.s.to_bits())).collect(),
        entropies: bits(&entropies),
        hidden: bits(&hidden),
        weight: bits(&weight),
        bias: bits(&bias),
    }
}

fn capped() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0)).expect("valid")
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = Case::<f32, f32>::random(530, 40, 33 * 512 + 100, true, 1);
    let (g, e) = upstream(case.rows);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| run(&case, &capped(), &g, &e))
    };
    let one = on(1);
    for threads in [2, 3, 11] {
        assert!(on(threads) == one, "{threads} threads");
    }
}

/// Rows of a batch, alone and elsewhere in another batch. H = 1100 takes three products, and one row alone is where
/// matrix products take other loops.
#[test]
fn a_row_depends_on_itself_alone() {
    fn check<T: Element, W: Element>(hidden_size: usize, vocab: usize) {
        let case = Case::<T, W>::random(70, hidden_size, vocab, true, 2);
        let (g, e) = upstream(case.rows);
        let whole = run(&case, &capped(), &g, &e);
        for (first, count) in [(0, 1), (69, 1), (17, 1), (40, 2), (11, 30)] {
            let last = first + count;
            let mut part = case.clone();
            part.rows = count;
            part.hidden = case.hidden[first * hidden_size..last * hidden_size].to_vec();
            part.targets = case.targets[first..last].to_vec();
            let alone = run(&part, &capped(), &g[first..last], &e[first..last]);
            let context = format!("rows {first}..{last} of H={hidden_size} V={vocab}");
            assert_eq!(alone.log_probs, whole.log_probs[first..last], "{context}");
            assert_eq!(alone.states, whole.states[first..last], "{context}");
            assert_eq!(alone.entropies, whole.entropies[first..last], "{context}");
            let of_rows = first * hidden_size..last * hidden_size;
            assert!(alone.hidden == whole.hidden[of_rows], "hidden gradient, {context}");
        }
    }
    for (hidden_size, vocab) in [(1, 5), (2, 20), (9, 3), (24, 40), (1100, 1030), (3, 513), (16, 514)] {
        check::<f32, f32>(hidden_size, vocab);
        check::<bf16, f16>(hidden_size, vocab);
    }
}

/// With the identity for weight the logits are the hidden states and D is the hidden gradient, exactly: every digit must
/// be the token log-prob stage's.
#[test]
fn an_identity_for_a_head_is_the_token_log_prob_stage() {
    fn check<T: Element>(vocab: usize, options: &LogitOptions) {
        let mut case = Case::<T, T>::random(21, vocab, vocab, false, 3);
        for value in &mut case.hidden {
            *value = T::from_f32(value.to_f32() * 5.0);
        }
        case.weight = (0..vocab * vocab).map(|i| T::from_f32(if i / vocab == i % vocab { 1.0 } else { 0.0 })).collect();
        let (g, e) = upstream(case.rows);
        let linear = run(&case, options, &g, &e);

        let cpu = Cpu::default();
        let logits = Logits::new(&case.hidden, vocab).expect("rows");
        let (mut log_probs, mut states) = (vec![0.0; case.rows], vec![SoftmaxState::default(); case.rows]);
        let mut entropies = vec![0.0; case.rows];
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
        cpu.token_log_probs(logits, &case.targets, options, outputs).expect("forward");
        let mut gradient = vec![T::NAN; case.rows * vocab];
        let saved = SavedRows { states: &states, entropies: Some(&entropies) };
        let rows = RowGradients { log_probs: &g, entropies: Some(&e) };
        let out = LogitsMut::new(&mut gradient, vocab).expect("rows");
        cpu.token_log_probs_backward(logits, &case.targets, options, saved, rows, out).expect("backward");
        // One unit of 512 columns is summed alike by both stages.
        assert_eq!(linear.log_probs, bits(&log_probs));
        assert_eq!(linear.entropies, bits(&entropies));
        // Zeros may differ in sign: a sum that begins with +0 stays +0.
        let same = linear.hidden.iter().zip(bits(&gradient)).all(|(a, b)| *a == b || (a << 1 == 0 && b << 1 == 0));
        assert!(same, "hidden gradient, V={vocab} {options:?}");
    }
    for vocab in [1, 2, 37, 300, 512] {
        for options in [LogitOptions::default(), capped()] {
            check::<f32>(vocab, &options);
            check::<f16>(vocab, &options);
            check::<bf16>(vocab, &options);
        }
    }
}

#[test]
fn what_is_frozen_is_left_out_and_the_rest_unchanged() {
    let case = Case::<f32, f32>::random(20, 12, 700, true, 4);
    let (g, e) = upstream(case.rows);
    let all = run(&case, &capped(), &g, &e);
    let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
    let cpu = Cpu::default();
    let (mut log_probs, mut states, mut entropies) = (vec![0.0; n], vec![SoftmaxState::default(); n], vec![0.0; n]);
    let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
    cpu.linear_token_log_probs(case.hidden(), &case.head(), &case.targets, &capped(), outputs).expect("forward");
    let backward = |gradients: LinearGradients<'_, f32, f32>| {
        let saved = SavedRows { states: &states, entropies: Some(&entropies) };
        let rows = RowGradients { log_probs: &g, entropies: Some(&e) };
        let (hidden, head) = (case.hidden(), case.head());
        cpu.linear_token_log_probs_backward(hidden, &head, &case.targets, &capped(), saved, rows, gradients)
            .expect("backward");
    };

    let mut hidden = vec![f32::NAN; n * h];
    backward(LinearGradients::new(Some(MatrixMut::new(&mut hidden, h).expect("rows")), None));
    assert!(bits(&hidden) == all.hidden, "frozen head");

    // A padded gradient: what lies between its rows is not touched.
    let stride = h + 3;
    let mut weight = vec![7.0f32; v * stride - 3];
    backward(LinearGradients::new(None, Some(MatrixMut::strided(&mut weight, v, h, stride).expect("rows"))));
    for (row, padded) in weight.chunks(stride).enumerate() {
        assert!(bits(&padded[..h]) == all.weight[row * h..(row + 1) * h], "weight row {row}");
        assert!(padded[h..].iter().all(|x| *x == 7.0), "behind weight row {row}");
    }

    let mut bias = vec![f32::NAN; v];
    backward(LinearGradients::new(None, None).with_bias(&mut bias));
    assert_eq!(bits(&bias), all.bias);
    backward(LinearGradients::new(None, None));
}

/// Adding to what is there: in f32 the same as adding afterwards, but for the last rounding; in 16 bits one rounding of
/// the sum in f32.
#[test]
fn accumulating_adds_to_weight_and_bias_and_overwrites_hidden() {
    fn check<G: Element>(exact: bool) {
        let case = Case::<f32, f32>::random(300, 9, 600, true, 5);
        let (n, h, v) = (case.rows, case.hidden_size, case.vocab);
        let (g, _) = upstream(n);
        let cpu = Cpu::default();
        let (mut log_probs, mut states) = (vec![0.0; n], vec![SoftmaxState::default(); n]);
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
        let options = LogitOptions::default();
        cpu.linear_token_log_probs(case.hidden(), &case.head(), &case.targets, &options, outputs).expect("forward");
        let backward = |weight: &mut Vec<f32>, accumulated: Option<(&mut Vec<G>, &mut Vec<G>)>| {
            let saved = SavedRows { states: &states, entropies: None };
            let rows = RowGradients { log_probs: &g, entropies: None };
            let mut hidden = vec![3.0f32; n * h];
            let (matrix, head) = (case.hidden(), case.head());
            let hidden_gradient = Some(MatrixMut::new(&mut hidden, h).expect("rows"));
            match accumulated {
                None => {
                    let weight = Some(MatrixMut::new(weight, h).expect("rows"));
                    let gradients = LinearGradients::new(hidden_gradient, weight);
                    cpu.linear_token_log_probs_backward(matrix, &head, &case.targets, &options, saved, rows, gradients)
                }
                Some((weight, bias)) => {
                    let weight = Some(MatrixMut::new(weight, h).expect("rows"));
                    let gradients = LinearGradients::new(hidden_gradient, weight).with_bias(bias).accumulating();
                    cpu.linear_token_log_probs_backward(matrix, &head, &case.targets, &options, saved, rows, gradients)
                }
            }
            .expect("backward");
            bits(&hidden)
        };
        let mut fresh = vec![0.0f32; v * h];
        let hidden = backward(&mut fresh, None);
        let start = |i: usize| G::from_f32((i % 13) as f32 * 0.125 - 0.5);
        let mut weight: Vec<G> = (0..v * h).map(start).collect();
        let mut bias: Vec<G> = (0..v).map(start).collect();
        assert!(backward(&mut Vec::new(), Some((&mut weight, &mut bias))) == hidden, "hidden is overwritten");
        for i in 0..v * h {
            let sum = start(i).to_f32() + fresh[i];
            if exact {
                assert_eq!(weight[i].to_f32(), G::from_f32(sum).to_f32(), "weight {i}");
            } else {
                // 300 rows are two tiles: the sum went through two more roundings, each of a number below 2.
                let bound = 3.0 * f32::EPSILON * (1.0 + fresh[i].abs());
                assert!((weight[i].to_f32() - sum).abs() <= bound, "weight {i}: {} {sum}", weight[i].to_f32());
            }
        }
        assert!((0..v).any(|i| bias[i].to_f32() != start(i).to_f32()));
    }
    check::<f32>(false);
    check::<bf16>(true);
    check::<f16>(true);
}

#[test]
fn masked_rows_and_no_rows() {
    let mut case = Case::<f32, bf16>::random(6, 10, 530, true, 6);
    case.targets.fill(-1);
    case.hidden.fill(f32::NAN);
    let (g, e) = upstream(case.rows);
    let masked = run(&case, &capped(), &g, &e);
    assert!(masked.log_probs.iter().chain(&masked.entropies).all(|bits| *bits == 0));
    assert!(masked.hidden.iter().chain(&masked.weight).chain(&masked.bias).all(|bits| *bits == 0));

    let none = Case::<f32, bf16> { rows: 0, hidden: Vec::new(), targets: Vec::new(), ..case };
    let none = run(&none, &capped(), &[], &[]);
    assert!(none.log_probs.is_empty() && none.weight.iter().chain(&none.bias).all(|bits| *bits == 0));
}

/// A row that is not finite is NaN, and no other row is: but every row of the weight's gradient has a share of it.
#[test]
fn a_row_without_a_softmax_stays_alone() {
    let case = Case::<f32, f32>::random(9, 10, 600, true, 7);
    let (g, e) = upstream(case.rows);
    let clean = run(&case, &capped(), &g, &e);
    for poison in [f32::NAN, f32::INFINITY] {
        let mut broken = case.clone();
        broken.hidden[4 * 10 + 3] = poison;
        broken.targets[4] = 17;
        let result = run(&broken, &capped(), &g, &e);
        for row in (0..9).filter(|row| *row != 4) {
            assert_eq!(result.log_probs[row], clean.log_probs[row]);
            assert!(result.hidden[row * 10..(row + 1) * 10] == clean.hidden[row * 10..(row + 1) * 10], "row {row}");
        }
        assert!(f32::from_bits(result.log_probs[4]).is_nan());
        assert!(result.hidden[40..50].iter().all(|bits| f32::from_bits(*bits).is_nan()));
    }

    // A bias of -inf excludes its column, and makes it impossible as a target.
    let mut excluded = case.clone();
    excluded.targets = (0..9).map(|row| if row == 0 { 5 } else { 8 }).collect();
    for (row, hidden) in excluded.hidden.chunks_exact_mut(10).enumerate() {
        hidden.fill(0.1 * row as f32);
    }
    if let Some(bias) = &mut excluded.bias {
        bias[5] = f32::NEG_INFINITY;
    }
    let result = run(&excluded, &capped(), &g, &[0.0; 9]);
    assert_eq!(f32::from_bits(result.log_probs[0]), f32::NEG_INFINITY);
    assert!(result.log_probs[1..].iter().all(|bits| f32::from_bits(*bits).is_finite()));
    assert!(result.weight.iter().chain(&result.hidden).all(|bits| f32::from_bits(*bits).is_finite()));
}

#[test]
fn what_does_not_fit_is_refused_and_writes_nothing() {
    let (n, h, v) = (3, 4, 6);
    let (hidden, weight, bias) = (vec![0.5f32; n * h], vec![0.25f32; v * h], vec![0.0f32; v]);
    let matrix = |data| Matrix::new(data, h).expect("rows");
    let head = Head::new(matrix(&weight)).and_then(|head| head.with_bias(&bias)).expect("a head");
    let cpu = Cpu::default();
    let options = LogitOptions::default();

    assert!(matches!(Matrix::new(&hidden, 5), Err(Error::Matrix { elements: 12, columns: 5, .. })));
    assert!(matches!(Matrix::new(&hidden, 0), Err(Error::Matrix { columns: 0, .. })));
    assert!(matches!(Matrix::strided(&hidden, 3, 4, 3), Err(Error::Matrix { row_stride: 3, .. })));
    assert!(matches!(Matrix::strided(&hidden, 4, 4, 4), Err(Error::Matrix { rows: Some(4), .. })));
    assert!(matches!(Matrix::strided(&hidden, usize::MAX, 4, usize::MAX), Err(Error::Matrix { .. })));
    assert!(matches!(Head::new(Matrix::new(&weight[..0], h).expect("no rows")), Err(Error::Vocabulary { vocab: 0 })));
    assert!(matches!(
        Head::new(matrix(&weight)).and_then(|head| head.with_bias(&bias[..5])),
        Err(Error::Length { what: "bias", given: 5, expected: 6 })
    ));

    let (mut log_probs, mut states) = (vec![9.0f32; n], vec![SoftmaxState { r: 9.0, s: 9.0 }; n]);
    let mut forward = |hidden: Matrix<'_, f32>, targets: &[i64], log_probs: &mut [f32]| {
        let outputs = TokenLogProbs { log_probs, states: &mut states, entropies: None };
        cpu.linear_token_log_probs(hidden, &head, targets, &options, outputs)
    };
    let narrow = Matrix::new(&hidden, 3).expect("rows");
    assert!(matches!(
        forward(narrow, &[0; 4], &mut log_probs),
        Err(Error::Length { what: "hidden size", given: 3, expected: 4 })
    ));
    assert!(matches!(
        forward(matrix(&hidden), &[0, 6, 1], &mut log_probs),
        Err(Error::Target { row: 1, target: 6, vocab: 6 })
    ));
    assert!(matches!(forward(matrix(&hidden), &[0; 2], &mut log_probs), Err(Error::Length { what: "targets", .. })));
    assert!(matches!(
        forward(matrix(&hidden), &[0; 3], &mut log_probs[..2]),
        Err(Error::Length { what: "log-probs", .. })
    ));
    assert!(log_probs.iter().all(|x| *x == 9.0) && states.iter().all(|state| state.s == 9.0));

    let saved = SavedRows { states: &states, entropies: None };
    let (mut grad_hidden, mut grad_weight) = (vec![9.0f32; n * h], vec![9.0f32; v * h]);
    let mut backward = |g: &[f32], entropies: Option<&[f32]>, hidden_rows: usize, weight_columns: usize| {
        let gradients = LinearGradients::new(
            Some(MatrixMut::new(&mut grad_hidden[..hidden_rows * h], h).expect("rows")),
            Some(MatrixMut::new(&mut grad_weight[..v * weight_columns], weight_columns).expect("rows")),
        );
        let upstream = RowGradients { log_probs: g, entropies };
        cpu.linear_token_log_probs_backward(matrix(&hidden), &head, &[0i64; 3], &options, saved, upstream, gradients)
    };
    assert!(matches!(backward(&[1.0; 2], None, 3, 4), Err(Error::Length { what: "log-prob gradients", .. })));
    assert!(matches!(backward(&[1.0; 3], None, 2, 4), Err(Error::Length { what: "rows of the hidden gradient", .. })));
    assert!(matches!(
        backward(&[1.0; 3], None, 3, 3),
        Err(Error::Length { what: "columns of the weight gradient", given: 3, expected: 4 })
    ));
    assert!(matches!(backward(&[1.0; 3], Some(&[1.0; 3]), 3, 4), Err(Error::EntropiesNotKept)));

    let mut losses = vec![9.0f32; n];
    let mut row_loss = |loss: RowLoss<&[f32]>, losses: &mut [f32]| {
        let outputs = RowLosses { log_probs: &mut log_probs, losses };
        let gradients = LinearGradients::new(Some(MatrixMut::new(&mut grad_hidden, h).expect("rows")), None);
        cpu.linear_row_loss::<_, _, f32, _>(matrix(&hidden), &head, &[0i64; 3], &options, loss, outputs, gradients)
    };
    let weights = RowLoss::Weighted { weights: [1.0f32; 2].as_slice() };
    assert!(matches!(row_loss(weights, &mut losses), Err(Error::Length { what: "row weights", .. })));
    let ones = [1.0f32; 3].as_slice();
    for (low, high, log_ratio_limit) in [
        (-0.1, 0.2, 20.0),
        (1.1, 0.2, 20.0),
        (0.2, -0.1, 20.0),
        (f32::NAN, 0.2, 20.0),
        (0.2, f32::NAN, 20.0),
        (0.2, 0.2, 0.0),
        (0.2, 0.2, -20.0),
        (0.2, 0.2, 88.1),
        (0.2, 0.2, f32::INFINITY),
        (0.2, 0.2, f32::NAN),
    ] {
        let (weights, advantages, old_log_probs) = (ones, ones, ones);
        let loss = RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit };
        let refused = row_loss(loss, &mut losses);
        assert!(matches!(refused, Err(Error::Parameter { .. })), "{low} {high} {log_ratio_limit}");
    }
    assert!(losses.iter().chain(&grad_hidden).chain(&grad_weight).all(|x| *x == 9.0));
}
