//! Contracts of what a forward pass of the linear stage keeps for its backward pass: what its bits depend on, masked rows, rows
//! without a softmax, what is frozen, and that a gradient of entropies does without it.

use exo_kernels::backend::{LinearOutputs, RowGradients, SavedLinear};
use exo_kernels::{Element, Error, LinearKept, LogitOptions};
use half::{bf16, f16};
use support::backend::{BackwardInputs, ForwardBuffers, Placed, TestBackend, on_every_backend, upload};
use support::linear::{ALL, Case, Gradients, KEPT, Wanted};

on_every_backend!(
    a_row_depends_on_itself_alone,
    masked_rows_and_no_rows,
    a_row_without_a_softmax_stays_alone,
    what_is_frozen_is_left_out,
    a_gradient_of_entropies_does_not_use_it,
    small_and_large_gradients_keep_their_digits,
    buffers_that_do_not_fit_are_refused,
);

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn capped() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).and_then(|options| options.with_softcap(6.0)).expect("valid")
}

fn upstream(rows: usize) -> Vec<f32> {
    (0..rows).map(|row| ((row * 7) % 11) as f32 * 0.2 - 0.9).collect()
}

fn kept<B: TestBackend, T: Element>(backend: &B, case: &Case<T, T>, kept: LinearKept) -> Placed<B, T, T> {
    let mut placed = Placed::new(backend, case);
    placed.kept = kept;
    placed
}

/// Rows of a batch, alone, and with or without the number of scored rows; in chunks of other sizes.
fn a_row_depends_on_itself_alone(backend: &impl TestBackend) {
    fn check<T: Element, B: TestBackend>(backend: &B, kept: LinearKept) {
        let (rows, shapes) = B::pick((300, [(9, 1030), (600, 513)]), (40, [(9, 1030), (2, 20)]));
        for (size, vocab) in shapes {
            let case = Case::<T, T>::random(rows, size, vocab, true, 2);
            let g = upstream(rows);
            let run = |case: &Case<T, T>, g: &[f32], said: Option<usize>| {
                let mut placed = self::kept(backend, case, kept);
                placed.scored_rows = said;
                let forward = placed.forward(&capped(), false);
                let gradients: Gradients<T, T> = placed.backward(&capped(), &forward, (g, None), ALL);
                (bits(&forward.log_probs), bits(&gradients.hidden))
            };
            let whole = run(&case, &g, None);
            let scored = case.targets.iter().filter(|target| **target >= 0).count();
            for said in [scored, scored + 3, usize::MAX] {
                assert!(run(&case, &g, Some(said)) == whole, "{said} said, {scored} there, H={size} V={vocab}");
            }
            for (first, count) in [(0, 1), (rows - 2, 1), (17, 1), (4, 2), (11, 20)] {
                let part = Case {
                    rows: count,
                    hidden: case.hidden[first * size..(first + count) * size].to_vec(),
                    targets: case.targets[first..first + count].to_vec(),
                    ..case.clone()
                };
                let alone = run(&part, &g[first..first + count], None);
                assert_eq!(alone.0, whole.0[first..first + count]);
                assert!(
                    alone.1 == whole.1[first * size..(first + count) * size],
                    "rows {first}.. of H={size} V={vocab}"
                );
            }
            backend.set_chunks(512, 3 * 4 * vocab);
            assert!(run(&case, &g, None) == whole, "chunks of three rows, H={size} V={vocab}");
            backend.set_chunks(8192, 1 << 30);
        }
    }
    if !backend.products_are_elementwise() {
        return;
    }
    for kept in [LinearKept::UnitGradients, LinearKept::LogitGradients] {
        check::<f32, _>(backend, kept);
        check::<bf16, _>(backend, kept);
    }
}

fn masked_rows_and_no_rows(backend: &impl TestBackend) {
    fn check<T: Element>(backend: &impl TestBackend, kept: LinearKept) {
        let mut case = Case::<T, T>::random(6, 10, 530, true, 6);
        case.targets.fill(-1);
        case.hidden.fill(T::NAN);
        let g = upstream(6);
        // cuBLAS may give a zero a sign.
        let are_zero = |gradients: &Gradients<T, f32>| {
            gradients.hidden.iter().all(|x| x.to_f32() == 0.0)
                && gradients.weight.iter().chain(&gradients.bias).all(|x| *x == 0.0)
        };
        for scored_rows in [None, Some(0), Some(3)] {
            let mut placed = self::kept(backend, &case, kept);
            placed.scored_rows = scored_rows;
            let forward = placed.forward(&capped(), false);
            assert!(forward.log_probs.iter().all(|log_prob| *log_prob == 0.0));
            assert!(are_zero(&placed.backward(&capped(), &forward, (&g, None), ALL)), "{scored_rows:?} {kept:?}");
            let added: Gradients<T, f32> =
                placed.backward(&capped(), &forward, (&g, None), Wanted { accumulate: Some(0.5), ..ALL });
            assert!(added.weight.iter().chain(&added.bias).all(|number| *number == 0.5));
        }
        let none = Case::<T, T> { rows: 0, hidden: Vec::new(), targets: Vec::new(), ..case };
        let placed = self::kept(backend, &none, kept);
        let forward = placed.forward(&capped(), false);
        assert!(are_zero(&placed.backward(&capped(), &forward, (&[], None), ALL)));
    }
    for kept in KEPT {
        check::<f32>(backend, kept);
        check::<f16>(backend, kept);
    }
    assert!(backend.has_counted_nothing());
}

/// A row that is not finite is NaN, and no other row is: but every row of the weight's gradient has a share of it. A target
/// without probability, and a column without any, are no such rows.
fn a_row_without_a_softmax_stays_alone(backend: &impl TestBackend) {
    fn check<T: Element>(backend: &impl TestBackend, kept: LinearKept) {
        let case = Case::<T, T>::random(9, 10, 1100, true, 7);
        let g = upstream(9);
        let run = |case: &Case<T, T>| -> (Vec<f32>, Gradients<T, f32>) {
            let placed = self::kept(backend, case, kept);
            let forward = placed.forward(&LogitOptions::default(), false);
            let gradients = placed.backward(&LogitOptions::default(), &forward, (&g, None), ALL);
            (forward.log_probs, gradients)
        };
        let clean = run(&case);
        for poison in [f32::NAN, f32::INFINITY] {
            let mut broken = case.clone();
            broken.hidden[40..50].fill(T::from_f32(poison));
            let result = run(&broken);
            for row in (0..9).filter(|row| *row != 4) {
                assert_eq!(result.0[row], clean.0[row]);
                let hidden = row * 10..(row + 1) * 10;
                assert!(bits(&result.1.hidden[hidden.clone()]) == bits(&clean.1.hidden[hidden]), "row {row}");
            }
            assert!(result.0[4].is_nan() && result.1.hidden[40..50].iter().all(|x| x.to_f32().is_nan()));
            assert!(result.1.weight.iter().chain(&result.1.bias).all(|x| x.is_nan()));
        }
        let mut excluded = case.clone();
        excluded.targets = (0..9).map(|row| if row == 0 { 600 } else { 8 }).collect();
        excluded.hidden = (0..90).map(|i| T::from_f32(0.01 * i as f32)).collect();
        if let Some(bias) = &mut excluded.bias {
            bias[600] = T::NEG_INFINITY;
        }
        for options in [LogitOptions::default(), capped()] {
            let placed = self::kept(backend, &excluded, kept);
            let forward = placed.forward(&options, false);
            let gradients: Gradients<T, f32> = placed.backward(&options, &forward, (&g, None), ALL);
            assert_eq!(forward.log_probs[0], f32::NEG_INFINITY);
            assert!(gradients.hidden.iter().all(|x| x.to_f32().is_finite()));
            assert!(gradients.weight.iter().chain(&gradients.bias).all(|x| x.is_finite()));
        }
    }
    for kept in KEPT {
        check::<f32>(backend, kept);
        check::<bf16>(backend, kept);
        check::<f16>(backend, kept);
    }
}

/// What is frozen keeps its buffer, and the rest its bits.
fn what_is_frozen_is_left_out(backend: &impl TestBackend) {
    fn check<T: Element, G: Element>(backend: &impl TestBackend, kept: LinearKept) {
        let case = Case::<T, T>::random(20, 12, 700, true, 4);
        let g = upstream(20);
        let placed = self::kept(backend, &case, kept);
        let forward = placed.forward(&capped(), false);
        let run = |wanted| placed.backward::<G>(&capped(), &forward, (&g, None), wanted);
        let all = run(ALL);
        let untouched = |values: &[G]| values.iter().all(|value| value.to_f32().is_nan());
        for (hidden, weight, bias) in [
            (true, false, false),
            (false, true, false),
            (false, false, true),
            (true, true, false),
            (false, false, false),
        ] {
            let part = run(Wanted { hidden, weight, bias, accumulate: None });
            let of_hidden_untouched = part.hidden.iter().all(|value| value.to_f32().is_nan());
            assert!(if hidden { bits(&part.hidden) == bits(&all.hidden) } else { of_hidden_untouched });
            assert!(if weight { bits(&part.weight) == bits(&all.weight) } else { untouched(&part.weight) });
            assert!(if bias { bits(&part.bias) == bits(&all.bias) } else { untouched(&part.bias) });
        }
    }
    for kept in KEPT {
        check::<f32, f32>(backend, kept);
        check::<bf16, bf16>(backend, kept);
    }
}

/// The gradient of an entropy is no multiple of what was kept: it is that of a pass which kept nothing.
fn a_gradient_of_entropies_does_not_use_it(backend: &impl TestBackend) {
    let case = Case::<bf16, bf16>::random(12, 12, 700, true, 4);
    let (g, e) = (upstream(12), vec![0.3; 12]);
    let run = |kept: LinearKept| {
        let placed = self::kept(backend, &case, kept);
        let forward = placed.forward(&capped(), true);
        let gradients: Gradients<bf16, f32> = placed.backward(&capped(), &forward, (&g, Some(&e)), ALL);
        (bits(&gradients.hidden), bits(&gradients.weight), bits(&gradients.bias))
    };
    let expected = run(LinearKept::Nothing);
    assert!(KEPT.into_iter().all(|kept| run(kept) == expected));
}

/// Gradients of a loss over many rows are small, those under a loss scale large: by a power of two, so that every rounding is the
/// same, also in f16, whose own range is narrow.
fn small_and_large_gradients_keep_their_digits(backend: &impl TestBackend) {
    fn check<T: Element>(backend: &impl TestBackend, kept: LinearKept) {
        let mut case = Case::<T, T>::random(8, 10, 600, true, 8);
        // Of rows that are nearly certain, too.
        for (row, hidden) in case.hidden.chunks_exact_mut(10).enumerate().filter(|(row, _)| row % 4 == 2) {
            let target = case.targets[row] as usize;
            for (state, weight) in hidden.iter_mut().zip(&case.weight[target * 10..]) {
                *state = T::from_f32(weight.to_f32() * 5.0);
            }
        }
        let placed = self::kept(backend, &case, kept);
        let forward = placed.forward(&LogitOptions::default(), false);
        let run = |factor: f32| -> Gradients<f32, f32> {
            let g: Vec<f32> = upstream(8).iter().map(|g| g * factor).collect();
            let gradients: Gradients<T, f32> = placed.backward(&LogitOptions::default(), &forward, (&g, None), ALL);
            let divided = |numbers: &[f32]| numbers.iter().map(|number| number / factor).collect();
            Gradients { hidden: Vec::new(), weight: divided(&gradients.weight), bias: divided(&gradients.bias) }
        };
        let expected = run(1.0);
        assert!(expected.weight.iter().any(|number| *number != 0.0));
        for factor in [-40, -20, 40].map(|exponent| 2.0_f32.powi(exponent)) {
            let scaled = run(factor);
            assert!(bits(&scaled.weight) == bits(&expected.weight), "weight, {factor:e} {kept:?} {:?}", T::DTYPE);
            assert!(bits(&scaled.bias) == bits(&expected.bias), "bias, {factor:e} {kept:?} {:?}", T::DTYPE);
        }
    }
    for kept in KEPT {
        check::<f32>(backend, kept);
        check::<bf16>(backend, kept);
        check::<f16>(backend, kept);
    }
}

/// Lengths are checked before anything is written.
fn buffers_that_do_not_fit_are_refused<B: TestBackend>(backend: &B) {
    let case = Case::<f32, f32>::random(4, 5, 30, false, 3);
    let (units, words) = (4 * 5, exo_kernels::backend::kept_logit_words(f32::DTYPE, 4, 30));
    let placed = Placed::new(backend, &case);
    let options = LogitOptions::default();
    let forward = placed.forward(&options, false);
    for (of_units, of_logits, what) in [
        (Some(units - 1), None, "unit gradients"),
        (Some(units + 1), Some(words), "unit gradients"),
        (Some(units), Some(words - 1), "kept gradients of the logits"),
        (None, Some(words), "unit gradients"),
    ] {
        let mut unit_gradients = upload(backend, &vec![f32::MAX; of_units.unwrap_or(0)]);
        let mut logit_gradients = upload(backend, &vec![u32::MAX; of_logits.unwrap_or(0)]);
        let mut buffers = ForwardBuffers::new(backend, 4);
        let found = placed.with(|hidden, head| {
            let outputs = LinearOutputs {
                rows: buffers.views(backend, 4, false),
                unit_gradients: of_units.map(|length| backend.view_mut(&mut unit_gradients, length)),
                logit_gradients: of_logits.map(|length| backend.view_mut(&mut logit_gradients, length)),
            };
            backend.linear_token_log_probs(hidden, head, placed.targets(), &options, outputs)
        });
        assert!(
            matches!(&found, Err(Error::Length { what: found, .. }) if *found == what),
            "{found:?}, {what} expected"
        );
        assert!(buffers.download(backend, 4, false).log_probs.iter().all(|number| *number == f32::MAX), "written");

        let g = [0.5; 4];
        let inputs = BackwardInputs::new(backend, &forward, (&g, None));
        let upstream: RowGradients<'_, B::Memory> = inputs.upstream(backend);
        let mut weight = upload(backend, &vec![7.0_f32; 30 * 5]);
        let found = placed.with(|hidden, head| {
            let saved = SavedLinear {
                rows: inputs.saved(backend),
                unit_gradients: of_units.map(|length| backend.view(&unit_gradients, length)),
                logit_gradients: of_logits.map(|length| backend.view(&logit_gradients, length)),
            };
            let of_weight = exo_kernels::backend::MatrixMut::new(backend.view_mut(&mut weight, 150), 5).expect("rows");
            let gradients = exo_kernels::backend::LinearGradients::<f32, f32, _>::new(None, Some(of_weight));
            backend.linear_token_log_probs_backward(
                hidden,
                head,
                placed.targets(),
                &options,
                saved,
                &upstream,
                gradients,
            )
        });
        // Kept gradients of logits are of use without the others: only their length counts.
        if of_units.is_some() {
            assert!(matches!(found, Err(Error::Length { .. })), "{found:?}");
        }
    }
}
