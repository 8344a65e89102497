//! The linear stage on CUDA, what is its own beside the contracts that all backends share: the size of its chunks, what the
//! device counts of rows, and the types that cuBLAS does not multiply.

use exo_kernels::cuda::{LinearChunks, LinearPrecision, Status};
use exo_kernels::reference::linear_log_prob;
use exo_kernels::{Batch, Betas, Dtype, Element, Error, LogitOptions, Objective, Reference, Rewards, RowLoss};
use half::{bf16, f16};
use support::backend::{self, Forward, Placed, TestBackend};
use support::linear::{ALL, Case, Gradients, Wanted, set_chunks};

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

#[test]
fn the_size_of_a_chunk_changes_no_bit_of_the_forward_pass() {
    fn check<T: Element>(vocab: usize) {
        let cuda = backend::cuda();
        if !cuda.products_are_elementwise() {
            return;
        }
        let case = Case::<T, T>::random(9, 6, vocab, true, 1);
        let placed = Placed::new(&cuda, &case);
        for options in [LogitOptions::default(), capped()] {
            let at = |columns: usize| {
                set_chunks(&cuda, columns, 1 << 30);
                forward_bits(&placed.forward(&options, true))
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

/// f32 is multiplied as f32 unless something else is allowed. TF32 moves a logit by up to 2^-10 of the sum of its terms' sizes,
/// and nothing else; products by bf16 parts are as exact as f32's; 16-bit heads are not touched.
#[test]
fn f32_is_f32_unless_tf32_is_allowed() {
    let cuda = backend::cuda();
    let options = LogitOptions::default();
    let case = Case::<f32, f32>::random(9, 33, 700, true, 5);
    let placed = Placed::new(&cuda, &case);
    let exact = placed.forward(&options, true);
    cuda.set_linear_precision(LinearPrecision::Tf32).expect("TF32");
    let rounded = placed.forward(&options, true);
    assert!(bits(&rounded.log_probs) != bits(&exact.log_probs) || softcuda::control().is_none(), "no TF32");
    for row in (0..case.rows).filter(|row| case.targets[*row] >= 0) {
        let sizes = linear_log_prob::magnitudes(case.hidden().row(row), &case.head());
        let largest = sizes.into_iter().fold(0.0, f64::max);
        // A log-prob moves by twice what each of its logits does.
        let bound = 2.0 * largest / 1024.0 + 1e-5;
        let distance = f64::from((rounded.log_probs[row] - exact.log_probs[row]).abs());
        assert!(distance <= bound, "row {row}: {distance:e} of {bound:e}");
    }
    cuda.set_linear_precision(LinearPrecision::Bf16x9).expect("built for CUDA 13");
    let emulated = placed.forward(&options, true);
    let of_16_bits = Case::<bf16, bf16>::random(9, 33, 700, true, 5);
    let placed_16 = Placed::new(&cuda, &of_16_bits);
    let narrow = placed_16.forward(&options, true);
    cuda.set_linear_precision(LinearPrecision::F32).expect("f32");
    if cuda.products_are_elementwise() {
        assert_eq!(forward_bits(&emulated), forward_bits(&exact), "on this emulator they are f32");
        assert_eq!(forward_bits(&placed.forward(&options, true)), forward_bits(&exact));
        assert_eq!(forward_bits(&placed_16.forward(&options, true)), forward_bits(&narrow));
    }
}

#[test]
fn a_chunk_is_of_units() {
    assert!(matches!(LinearChunks::default().with_columns(700), Err(Error::Parameter { .. })));
}

/// A row loss in chunks of rows is that of one chunk, within what its sums may differ by.
#[test]
fn chunks_of_rows_of_a_row_loss_sum_up_to_one() {
    fn check<T: Element, G: Element>((n, h, v): (usize, usize, usize), wanted: Wanted) {
        let cuda = backend::cuda();
        set_chunks(&cuda, 1 << 20, 1 << 30);
        let case = Case::<T, T>::random(n, h, v, true, n as u64);
        let weights: Vec<f32> = (0..n).map(|row| (row % 5) as f32 * 0.3 - 0.6).collect();
        let options = LogitOptions::default().with_temperature(0.9).expect("valid");
        let placed = Placed::new(&cuda, &case);
        let loss = RowLoss::Weighted { weights: weights.as_slice() };
        let (log_probs, _, of_one): (_, _, Gradients<T, G>) = placed.row_loss(&options, loss, wanted);
        let context = format!("N={n} H={h} V={v} {:?} {:?} {wanted:?}", T::DTYPE, G::DTYPE);
        // Chunks of three rows, and of one: 4 * V bytes a row.
        for rows_at_once in [3, 1] {
            set_chunks(&cuda, 1 << 20, rows_at_once * 4 * v);
            let (again, _, of_chunks): (_, _, Gradients<T, G>) = placed.row_loss(&options, loss, wanted);
            if cuda.products_are_elementwise() {
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

/// The rows after the number that was said are NaN, those before it have the bits that they have otherwise.
#[test]
fn more_scored_rows_than_said_are_counted() {
    let cuda = backend::cuda();
    let case = Case::<f32, f32>::random(11, 5, 700, false, 7);
    let scored: Vec<usize> = (0..case.rows).filter(|row| case.targets[*row] >= 0).collect();
    let g: Vec<f32> = (0..case.rows).map(|row| ((row * 7) % 11) as f32 * 0.2 - 0.9).collect();
    let mut placed = Placed::new(&cuda, &case);
    let options = LogitOptions::default();
    let whole = placed.forward(&options, true);
    let of_whole: Gradients<f32, f32> = placed.backward(&options, &whole, (&g, None), ALL);
    let said = scored.len() - 3;
    placed.scored_rows = Some(said);
    let part = placed.forward(&options, true);
    let status = cuda.status().expect("status");
    assert_eq!(status.unplaced_rows(), 3);
    let of_part: Gradients<f32, f32> = placed.backward(&options, &part, (&g, None), ALL);
    let elementwise = cuda.products_are_elementwise();
    for row in 0..case.rows {
        let is_unplaced = scored[said..].contains(&row);
        let hidden = row * 5..(row + 1) * 5;
        if is_unplaced {
            assert!(part.log_probs[row].is_nan() && part.states[row].s.is_nan() && part.entropies[row].is_nan());
            assert!(of_part.hidden[hidden].iter().all(|number| number.is_nan()), "row {row}");
        } else if elementwise {
            assert_eq!(part.log_probs[row].to_bits(), whole.log_probs[row].to_bits());
            assert!(bits(&of_part.hidden[hidden.clone()]) == bits(&of_whole.hidden[hidden]), "row {row}");
        }
    }
}

/// A row without a softmax, one whose target is no column, and one whose target is impossible. What a target that is no
/// column gets is NaN, and no other row changes.
#[test]
fn bad_rows_are_counted() {
    let cuda = backend::cuda();
    let case = Case::<f32, f32>::random(9, 10, 1100, true, 7);
    let (g, e) = (vec![0.4_f32; 9], vec![-0.3_f32; 9]);
    set_chunks(&cuda, 512, 1 << 30);
    let run = |case: &Case<f32, f32>| {
        cuda.clear_status().expect("cleared");
        let placed = Placed::new(&cuda, case);
        let forward = placed.forward(&capped(), true);
        let status = cuda.status().expect("status");
        let gradients: Gradients<f32, f32> = placed.backward(&capped(), &forward, (&g, Some(&e)), ALL);
        (forward, gradients, status)
    };
    let clean = run(&case);
    assert_eq!(clean.2, Status::CLEAR);
    for poison in [f32::NAN, f32::INFINITY] {
        let mut broken = case.clone();
        broken.hidden[40..50].fill(poison);
        broken.targets[4] = 17;
        let status = run(&broken).2;
        assert_eq!((status.non_finite_rows(), status.first_non_finite_row()), (1, Some(4)), "{status:?}");
    }

    let mut broken = case.clone();
    broken.targets[4] = 1100;
    let (forward, gradients, status) = run(&broken);
    assert_eq!((status.bad_targets(), status.first_bad_target_row()), (1, Some(4)), "{status:?}");
    for row in (0..9).filter(|row| *row != 4) {
        assert_eq!(bits(&forward.log_probs)[row], bits(&clean.0.log_probs)[row]);
        let hidden = row * 10..(row + 1) * 10;
        assert!(bits(&gradients.hidden[hidden.clone()]) == bits(&clean.1.hidden[hidden]), "row {row}");
    }
    assert!(forward.log_probs[4].is_nan() && forward.states[4].s.is_nan() && forward.entropies[4].is_nan());
    assert!(gradients.hidden[40..50].iter().chain(&gradients.weight).all(|number| number.is_nan()));

    let mut excluded = case;
    excluded.targets = (0..9).map(|row| if row == 0 { 600 } else { 8 }).collect();
    excluded.hidden.fill(0.1);
    if let Some(bias) = &mut excluded.bias {
        bias[600] = f32::NEG_INFINITY;
    }
    let status = run(&excluded).2;
    assert_eq!((status.minus_infinite_targets(), status.non_finite_rows()), (1, 0));
    excluded.bias = Some(vec![f32::NEG_INFINITY; 1100]);
    assert_eq!(run(&excluded).2.non_finite_rows(), 9);
}

/// cuBLAS multiplies matrices of one type: hidden states are of the head's, and the head's gradients of it, or f32.
#[test]
fn several_types_are_refused_and_nothing_is_written() {
    fn refused<T: Element, W: Element, G: Element>(upstream: Option<&Forward>) -> Forward {
        let cuda = backend::cuda();
        let case = Case::<T, W>::random(3, 4, 6, true, 1);
        let placed = Placed::new(&cuda, &case);
        let options = LogitOptions::default();
        let check = |result: exo_kernels::Result<()>| match result {
            Err(Error::GradientType { given, head }) => assert_ne!(given, head),
            other => panic!("{other:?}, {:?} {:?} {:?}", T::DTYPE, W::DTYPE, G::DTYPE),
        };
        let untouched = |gradients: &Gradients<T, G>| {
            let of_head = gradients.weight.iter().chain(&gradients.bias);
            gradients.hidden.iter().all(|x| x.to_f32().is_nan()) && { of_head }.all(|x| x.to_f32() == 0.5)
        };
        let (forward, found) = placed.try_forward(&options, true);
        if T::DTYPE != W::DTYPE {
            check(found);
            assert!(forward.log_probs.iter().chain(&forward.entropies).all(|number| *number == f32::MAX), "written");
        }
        let wanted = Wanted { accumulate: Some(0.5), ..ALL };
        for wanted in [wanted, Wanted { bias: false, ..wanted }, Wanted { weight: false, ..wanted }] {
            let saved = upstream.unwrap_or(&forward);
            let (gradients, found) = placed.try_backward::<G>(&options, saved, (&[1.0; 3], None), wanted);
            check(found);
            assert!(untouched(&gradients), "written");
            let loss = RowLoss::Weighted { weights: &[1.0; 3][..] };
            let ((log_probs, losses, gradients), found) = placed.try_row_loss::<G>(&options, loss, wanted);
            check(found);
            assert!(log_probs.iter().chain(&losses).all(|number| *number == f32::MAX), "written");
            assert!(untouched(&gradients), "written");
        }
        forward
    }
    // Gradients of a third type.
    let forward = refused::<f16, f16, bf16>(None);
    refused::<bf16, bf16, f16>(Some(&forward));
    refused::<f32, f32, bf16>(Some(&forward));
    // Heads of another type.
    refused::<f32, bf16, f32>(Some(&forward));
    refused::<bf16, f32, f32>(Some(&forward));
    refused::<bf16, f16, bf16>(Some(&forward));

    let cuda = backend::cuda();
    let case = Case::<f32, bf16>::random(3, 4, 6, true, 1);
    let placed = Placed::new(&cuda, &case);
    let batch = Batch::new(&[0u32, 1, 3], &[0u32, 2]).expect("a batch");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.7 }).expect("valid");
    let step =
        cuda.loss(objective).forward_linear(&placed, &placed, &batch, Reference::None, Rewards::from(&[0.5, -0.5]));
    assert_eq!(step.map(drop), Err(Error::GradientType { given: Dtype::F32, head: Dtype::Bf16 }));
}
