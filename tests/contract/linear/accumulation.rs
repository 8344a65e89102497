//! Gradients of a head that are added to: a row that would add NaN leaves them as if it were not there, and is reported;
//! without adding, they become NaN, which is what loss scaling looks for.

use exo_kernels::{DEFAULT_LOG_RATIO_LIMIT, Element, Error, LinearKept, LogitOptions, RowLoss};
use half::{bf16, f16};
use support::backend::{Outcome, TestBackend, on_backend, on_every_training_backend};
use support::linear::{ALL, Case, Gradients, KEPT, Wanted};
use support::{backend, linear};

on_every_training_backend!(
    rows_without_a_softmax_add_nothing,
    one_pass_is_two,
    upstream_gradients_that_are_not_finite_add_nothing,
    upstream_gradients_that_do_not_fit_at_large_logits_add_nothing,
    a_batch_of_nothing_but_such_rows_changes_nothing,
    a_head_without_a_softmax_changes_nothing,
    overwritten_gradients_become_nan,
);
// All but one: how far below a half s lies at such logits is a matter of how a backend rounds 1/ln 2.
on_backend!(
    specification,
    exo_kernels::reference::ReferenceBackend,
    rows_without_a_softmax_add_nothing,
    one_pass_is_two,
    upstream_gradients_that_are_not_finite_add_nothing,
    a_batch_of_nothing_but_such_rows_changes_nothing,
    a_head_without_a_softmax_changes_nothing,
    overwritten_gradients_become_nan,
);

const ADDED: Wanted = Wanted { accumulate: Some(0.25), ..ALL };
const COLUMNS: usize = 6;

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

/// Two tiles of 256 rows on the processor, fewer rows where a software device has to do them; and two of them to spoil.
fn case<T: Element, B: TestBackend>(_: &B) -> (Case<T, T>, [usize; 2]) {
    let (rows, spoilt) = B::pick((300, [5, 290]), (24, [5, 21]));
    let case = Case::random(rows, COLUMNS, 40, true, 12);
    assert!(spoilt.iter().all(|row| case.targets[*row] >= 0));
    (case, spoilt)
}

fn with_hidden<T: Element>(case: &Case<T, T>, rows: &[usize], state: [f32; COLUMNS]) -> Case<T, T> {
    let mut case = case.clone();
    for row in rows {
        case.hidden[row * COLUMNS..][..COLUMNS].copy_from_slice(&state.map(T::from_f32));
    }
    case
}

/// Gradients of the head are those of `expected`, bit for bit; those of the hidden states are, too, but for NaN in `rows`.
fn check<T: Element, G: Element>(given: &Gradients<T, G>, expected: &Gradients<T, G>, rows: &[usize], context: &str) {
    assert!(expected.weight.iter().chain(&expected.bias).all(|number| number.to_f32().is_finite()), "{context}");
    assert!(bits(&given.weight) == bits(&expected.weight), "weight, {context}");
    assert!(bits(&given.bias) == bits(&expected.bias), "bias, {context}");
    for (row, (given, expected)) in given.hidden.chunks(COLUMNS).zip(expected.hidden.chunks(COLUMNS)).enumerate() {
        if rows.contains(&row) {
            assert!(given.iter().all(|number| number.to_f32().is_nan()), "hidden {row}, {context}");
        } else {
            assert_eq!(bits(given), bits(expected), "hidden {row}, {context}");
        }
    }
}

/// What is found of withheld rows: on a device, since on the host the log-prob or the upstream gradient says so.
fn found<B: TestBackend>(_: &B, row: usize, count: usize) -> Result<(), Error> {
    if B::SEES_NUMBERS { Ok(()) } else { Err(Error::WithheldRows { row, count }) }
}

fn clipped<'a>(weights: &'a [f32], ones: &'a [f32], old_log_probs: &'a [f32]) -> RowLoss<&'a [f32]> {
    let (low, high, log_ratio_limit) = (0.2, 0.3, DEFAULT_LOG_RATIO_LIMIT);
    RowLoss::ClippedRatio { weights, advantages: ones, old_log_probs, low, high, log_ratio_limit }
}

/// Where rows are left out, too, one pass is two, bit for bit.
fn one_pass_is_two(backend: &impl TestBackend) {
    fn of_types<T: Element, G: Element>(backend: &impl TestBackend) {
        let options = LogitOptions::default();
        let (case, rows) = case::<T, _>(backend);
        let spoilt = with_hidden(&case, &rows, [f32::NAN; COLUMNS]);
        let weights: Vec<f32> = (0..spoilt.rows).map(|row| (row % 5) as f32 * 0.3 - 0.5).collect();
        let g: Vec<f32> = weights.iter().map(|weight| -weight).collect();
        let two: Outcome<T, G> = backend.two_passes(&spoilt, &options, LinearKept::UnitGradients, (&g, None), ADDED);
        let one: Outcome<T, G> = backend.row_loss(&spoilt, &options, RowLoss::Weighted { weights: &weights }, ADDED);
        check(&one.gradients, &two.gradients, &rows, "one pass, two passes");
        assert_eq!(bits(&one.log_probs), bits(&two.log_probs));
    }
    of_types::<f32, f32>(backend);
    of_types::<bf16, bf16>(backend);
    of_types::<f16, f32>(backend);
}

/// Rows in chunks, and columns: each chunk leaves its own out.
#[test]
fn rows_in_chunks_on_cuda() {
    let cuda = backend::cuda();
    linear::set_chunks(&cuda, 512, 7 * 4 * 40);
    rows_without_a_softmax_add_nothing(&cuda);
    a_batch_of_nothing_but_such_rows_changes_nothing(&cuda);
}

/// Expected is what a hidden state of zeros gives with an upstream gradient of 0: two exact zeros in every product.
fn rows_without_a_softmax_add_nothing(backend: &impl TestBackend) {
    fn of_types<T: Element, G: Element>(backend: &impl TestBackend) {
        let options = LogitOptions::default().with_temperature(0.9).expect("valid");
        let (case, rows) = case::<T, _>(backend);
        let clean = with_hidden(&case, &rows, [0.0; COLUMNS]);
        let g: Vec<f32> = (0..case.rows).map(|row| (row % 5) as f32 * 0.3 - 0.5).collect();
        let mut g_without = g.clone();
        for row in rows {
            g_without[row] = 0.0;
        }
        let weights: Vec<f32> = g.iter().map(|g| -g).collect();
        let weights_without: Vec<f32> = g_without.iter().map(|g| -g).collect();
        let (ones, old) = (vec![1.0; case.rows], vec![-3.5; case.rows]);

        let two: Vec<Outcome<T, G>> =
            KEPT.map(|kept| backend.two_passes(&clean, &options, kept, (&g_without, None), ADDED)).into();
        let weighted = RowLoss::Weighted { weights: weights_without.as_slice() };
        let one: Outcome<T, G> = backend.row_loss(&clean, &options, weighted, ADDED);
        let ratio: Outcome<T, G> = backend.row_loss(&clean, &options, clipped(&weights_without, &ones, &old), ADDED);
        assert!(two[0].gradients.weight.iter().any(|number| number.to_f32() != 0.25));

        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (name, state) in [
            ("NaN", [0.1, nan, 0.2, 0.3, 0.1, 0.2]),
            ("all NaN", [nan; COLUMNS]),
            ("+inf", [0.1, 0.2, inf, 0.2, 0.3, 0.1]),
            ("-inf", [-inf, 0.2, 0.3, 0.1, 0.2, 0.3]),
        ] {
            let spoilt = with_hidden(&case, &rows, state);
            let context = |call: &str| format!("{name}, {call}, {:?} {:?}", T::DTYPE, G::DTYPE);
            for (kept, two) in KEPT.into_iter().zip(&two) {
                let outcome: Outcome<T, G> = backend.two_passes(&spoilt, &options, kept, (&g, None), ADDED);
                check(&outcome.gradients, &two.gradients, &rows, &context(&format!("two passes, {kept:?}")));
                assert_eq!(outcome.found, found(backend, rows[0], 2));
                assert!(rows.iter().all(|row| outcome.log_probs[*row].is_nan()));
            }
            let weighted = RowLoss::Weighted { weights: weights.as_slice() };
            let outcome: Outcome<T, G> = backend.row_loss(&spoilt, &options, weighted, ADDED);
            check(&outcome.gradients, &one.gradients, &rows, &context("weighted"));
            assert!(rows.iter().all(|row| outcome.losses[*row].is_nan() && outcome.log_probs[*row].is_nan()));
            let outcome: Outcome<T, G> = backend.row_loss(&spoilt, &options, clipped(&weights, &ones, &old), ADDED);
            check(&outcome.gradients, &ratio.gradients, &rows, &context("clipped ratio"));
            assert_eq!(outcome.found, found(backend, rows[0], 2));
        }
    }
    of_types::<f32, f32>(backend);
    of_types::<bf16, f32>(backend);
    of_types::<bf16, bf16>(backend);
    of_types::<f16, f16>(backend);
}

fn upstream_gradients_that_are_not_finite_add_nothing(backend: &impl TestBackend) {
    for kept in KEPT {
        of_upstream_gradients(backend, kept);
    }
}

fn of_upstream_gradients(backend: &impl TestBackend, kept: LinearKept) {
    let options = LogitOptions::default();
    let (case, rows) = case::<f32, _>(backend);
    let (g, e) = (vec![-0.01_f32; case.rows], vec![0.003_f32; case.rows]);
    let with = |numbers: &[f32], value: f32| {
        let mut numbers = numbers.to_vec();
        for row in rows {
            numbers[row] = value;
        }
        numbers
    };
    // Without the rows: no gradient of theirs. Their hidden states are numbers, and times 0 are 0.
    let (g_none, e_none) = (with(&g, 0.0), with(&e, 0.0));
    let of_g: Outcome<f32, f32> = backend.two_passes(&case, &options, kept, (&g_none, None), ADDED);
    let of_both: Outcome<f32, f32> = backend.two_passes(&case, &options, kept, (&g_none, Some(&e_none)), ADDED);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
        let bad_g = with(&g, bad);
        let outcome: Outcome<f32, f32> = backend.two_passes(&case, &options, kept, (&bad_g, None), ADDED);
        check(&outcome.gradients, &of_g.gradients, &rows, &format!("g = {bad}"));
        assert_eq!(outcome.found, found(backend, rows[0], 2), "g = {bad}");
        let outcome: Outcome<f32, f32> = backend.two_passes(&case, &options, kept, (&bad_g, Some(&e)), ADDED);
        check(&outcome.gradients, &of_both.gradients, &rows, &format!("g = {bad} with entropy"));
        let outcome: Outcome<f32, f32> = backend.two_passes(&case, &options, kept, (&g, Some(&with(&e, bad))), ADDED);
        check(&outcome.gradients, &of_both.gradients, &rows, &format!("e = {bad}"));
        assert_eq!(outcome.found, found(backend, rows[0], 2), "e = {bad}");
    }
    // What overflows only once it is divided by the temperature; and the largest that does not.
    let cold = LogitOptions::default().with_temperature(1e-3).expect("valid");
    let without: Outcome<f32, f32> = backend.two_passes(&case, &cold, kept, (&g_none, None), ADDED);
    let outcome: Outcome<f32, f32> = backend.two_passes(&case, &cold, kept, (&with(&g, 2e35), None), ADDED);
    check(&outcome.gradients, &without.gradients, &rows, "g/T does not fit");
    for wanted in [ADDED, ALL] {
        let outcome: Outcome<f32, f32> = backend.two_passes(&case, &cold, kept, (&with(&g, 1.5e35), None), wanted);
        assert_eq!(outcome.found, Ok(()));
        assert!(outcome.gradients.bias.iter().all(|number| number.is_finite()), "{wanted:?}");
        let of_entropy = (&g[..], Some(&with(&e, 1e33)[..]));
        let outcome: Outcome<f32, f32> = backend.two_passes(&case, &cold, kept, of_entropy, wanted);
        assert_eq!(outcome.found, Ok(()));
        assert!(outcome.gradients.bias.iter().all(|number| number.is_finite()), "{wanted:?}");
    }
}

/// Beyond 2^24 in base 2 the softmax's s may be far below a half, and less fits.
fn upstream_gradients_that_do_not_fit_at_large_logits_add_nothing(backend: &impl TestBackend) {
    let mut case = Case::<f32, f32>::random(1, 1, 3, false, 3);
    case.hidden = vec![1.0];
    case.weight = vec![0.0, 5e8, -7.2e8];
    case.targets = vec![0];
    let wanted = Wanted { bias: false, ..ADDED };
    for kept in KEPT {
        let outcome: Outcome<f32, f32> =
            backend.two_passes(&case, &LogitOptions::default(), kept, (&[1e37], None), wanted);
        assert!(outcome.log_probs[0].is_finite());
        assert_eq!(outcome.found, found(backend, 0, 1));
        assert!(outcome.gradients.weight.iter().all(|number| *number == 0.25), "{:?}", outcome.gradients.weight);
        assert!(outcome.gradients.hidden[0].is_nan());
    }
}

fn a_batch_of_nothing_but_such_rows_changes_nothing(backend: &impl TestBackend) {
    fn of_types<T: Element, G: Element>(backend: &impl TestBackend) {
        for rows in [1, 9] {
            let mut case = Case::<T, T>::random(rows, COLUMNS, 600, true, 2);
            case.hidden.fill(T::NAN);
            case.targets.fill(7);
            let ones = vec![1.0; rows];
            let weighted = RowLoss::Weighted { weights: ones.as_slice() };
            let options = LogitOptions::default();
            let two = KEPT.map(|kept| backend.two_passes::<T, T, G>(&case, &options, kept, (&ones, None), ADDED));
            for outcome in two.into_iter().chain([backend.row_loss(&case, &options, weighted, ADDED)]) {
                assert_eq!(outcome.found, found(backend, 0, rows));
                let mut of_head = outcome.gradients.weight.iter().chain(&outcome.gradients.bias);
                assert!(of_head.all(|number| number.to_f32() == 0.25));
                assert!(outcome.gradients.hidden.iter().all(|number| number.to_f32().is_nan()));
            }
        }
    }
    of_types::<f32, f32>(backend);
    of_types::<bf16, bf16>(backend);
    of_types::<f16, f32>(backend);
}

/// A NaN in the head is one in every row.
fn a_head_without_a_softmax_changes_nothing(backend: &impl TestBackend) {
    let (clean, _) = case::<f32, _>(backend);
    let mut of_weight = clean.clone();
    of_weight.weight[9] = f32::NAN;
    let mut of_bias = clean;
    of_bias.bias = Some(vec![f32::INFINITY; of_bias.vocab]);
    let scored = of_weight.targets.iter().filter(|target| **target >= 0).count();
    let ones = vec![1.0; of_weight.rows];
    for case in [of_weight, of_bias] {
        let loss = RowLoss::Weighted { weights: ones.as_slice() };
        let outcome: Outcome<f32, f32> = backend.row_loss(&case, &LogitOptions::default(), loss, ADDED);
        assert_eq!(outcome.found, found(backend, 0, scored));
        let mut of_head = outcome.gradients.weight.iter().chain(&outcome.gradients.bias);
        assert!(of_head.all(|number| *number == 0.25));
    }
}

fn overwritten_gradients_become_nan(backend: &impl TestBackend) {
    let ((case, rows), options) = (case::<f32, _>(backend), LogitOptions::default());
    let spoilt = with_hidden(&case, &rows, [f32::NAN; COLUMNS]);
    let ones = vec![1.0; case.rows];
    let weighted = RowLoss::Weighted { weights: ones.as_slice() };
    let mut upstream = ones.clone();
    upstream[rows[1]] = f32::NAN;
    let mut outcomes = vec![backend.row_loss::<f32, f32, f32>(&spoilt, &options, weighted, ALL)];
    for kept in KEPT {
        outcomes.push(backend.two_passes(&spoilt, &options, kept, (&ones, None), ALL));
        outcomes.push(backend.two_passes(&case, &options, kept, (&upstream, None), ALL));
    }
    for outcome in outcomes {
        assert_eq!(outcome.found, Ok(()));
        assert!(outcome.gradients.weight.iter().chain(&outcome.gradients.bias).all(|number| number.is_nan()));
        assert!(outcome.gradients.hidden[..COLUMNS].iter().all(|number| number.is_finite()));
    }
}
