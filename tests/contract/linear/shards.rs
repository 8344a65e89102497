//! A head whose rows lie on several ranks: their parts of each row, their shares in the unit gradients, and the gradients of what each
//! of them holds.
//!
//! One rank gives the bits of one call; so do, for log-probs, states and entropies, any number of ranks that begin at slices; others,
//! and the sum of the shares, are within the bounds that hold for one call. Padding is not read, and has no gradient.

use crate::linear::kept_precision::{check_digits, digits_case, of_units};
use crate::linear::log_prob_precision::{LogitGradients, Products, Shares, check_gradients, of_logits};
use exo_kernels::backend::{SLICE, partial_rows_of};
use exo_kernels::{Element, LinearKept, LogitOptions};
use half::{bf16, f16};
use support::backend::{Forward, HeadRanks, Layout, OfRanks, Placed, TestBackend, on_every_backend};
use support::linear::{ALL, Case, Wanted};

on_every_backend!(
    one_rank_gives_the_bits_of_one_call,
    ranks_of_whole_slices_give_the_bits_of_one_call,
    ranks_of_any_columns_are_within_the_bounds,
    digits_are_kept_next_to_certainty,
    padding_is_not_read_and_has_no_gradient,
    a_rank_of_excluded_columns_has_no_share,
    a_rank_far_below_the_others_changes_nothing,
    rows_without_a_softmax_are_nan_and_others_are_not,
    parts_depend_on_their_row_alone,
);

/// Temperature and softcap.
const OPTIONS: [(f64, f64); 3] = [(1.0, 0.0), (0.8, 0.0), (1.3, 4.0)];

fn options((temperature, softcap): (f64, f64)) -> LogitOptions {
    LogitOptions::default().with_temperature(temperature).and_then(|some| some.with_softcap(softcap)).expect("valid")
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// The same bits; of plain loops in f64, which add up in another order, what is as near as f32 has it.
fn assert_same<B: TestBackend>(what: &str, found: &[f32], expected: &[f32], context: &str) {
    if B::KEEPS_BITS_OF_RANKS {
        assert_eq!(bits(found), bits(expected), "{what}, {context}");
        return;
    }
    assert_eq!(found.len(), expected.len(), "{what}, {context}");
    for (found, expected) in found.iter().zip(expected) {
        let near = found == expected || (found - expected).abs() <= 1e-6 * expected.abs().max(1.0);
        assert!(near || found.is_nan() && expected.is_nan(), "{what}: {found}, {expected} expected, {context}");
    }
}

fn assert_same_forward<B: TestBackend>(found: &Forward, expected: &Forward, context: &str) {
    assert_same::<B>("log-probs", &found.log_probs, &expected.log_probs, context);
    let numbers = |forward: &Forward| forward.states.iter().flat_map(|state| [state.r, state.s]).collect::<Vec<_>>();
    assert_same::<B>("states", &numbers(found), &numbers(expected), context);
    assert_same::<B>("entropies", &found.entropies, &expected.entropies, context);
}

fn scored<T, W>(case: &Case<T, W>) -> usize {
    case.targets.iter().filter(|target| **target >= 0).count()
}

fn one_rank_gives_the_bits_of_one_call<B: TestBackend>(backend: &B) {
    fn check<B: TestBackend, T: Element>(backend: &B, vocab: usize, chunk: usize, index: usize) {
        backend.set_chunks(chunk, 1 << 30);
        let case = Case::<T, T>::random(6, 5, vocab, index.is_multiple_of(2), index as u64);
        let options = options(OPTIONS[index % OPTIONS.len()]);
        for scored_rows in [None, Some(scored(&case))] {
            let mut placed = Placed::new(backend, &case);
            placed.scored_rows = scored_rows;
            let layout = Layout { padding: index % 3, ..Layout::new(&[0]) };
            let mut ranks = HeadRanks::new(backend, &case, &layout, scored_rows);
            let context = format!("{} V={vocab} {:?} {options:?} {layout:?}", backend.name(), T::DTYPE);
            for entropies in [false, true] {
                placed.kept = LinearKept::Nothing;
                let expected = placed.forward(&options, entropies);
                let found = ranks.forward(&options, entropies, false);
                assert_same_forward::<B>(&found.forward, &expected, &context);
            }
            placed.kept = LinearKept::UnitGradients;
            let expected = placed.forward(&options, true);
            let found = ranks.forward(&options, true, true);
            assert_same_forward::<B>(&found.forward, &expected, &context);
            let of_scored = |units: &[f32]| units[..scored(&case) * case.hidden_size].to_vec();
            let units = placed.units();
            assert_same::<B>("unit gradients", &of_scored(&found.shares[0]), &of_scored(&units), &context);

            let g: Vec<f32> = (0..case.rows).map(|row| 0.7 - 0.4 * row as f32).collect();
            let wanted = Wanted { accumulate: index.is_multiple_of(2).then_some(0.25), ..ALL };
            let expected = placed.backward::<f32>(&options, &expected, (&g, None), wanted);
            let found = ranks.backward::<f32>(&options, &found.forward, Some(&units), (&g, None), wanted);
            let (found, _) = ranks.whole(&found, false);
            let wide = |numbers: &[T]| numbers.iter().map(|number| number.to_f32()).collect::<Vec<_>>();
            assert_same::<B>("hidden gradient", &wide(&found.hidden), &wide(&expected.hidden), &context);
            assert_same::<B>("weight gradient", &found.weight, &expected.weight, &context);
            assert_same::<B>("bias gradient", &found.bias, &expected.bias, &context);
        }
    }
    for backend in backend.variants() {
        for (index, vocab) in [1, 31, 513, 2049, 9001, B::pick(SLICE + 700, 4097)].into_iter().enumerate() {
            check::<B, f32>(&backend, vocab, 1024, index);
            check::<B, bf16>(&backend, vocab, 8192, index + 1);
            check::<B, f16>(&backend, vocab, 512, index + 2);
        }
    }
}

/// A head whose tiles of 512 columns, and slices, differ so much in size that the order in which they are added up shows, also in f64.
fn of_many_sizes<T: Element>(vocab: usize) -> Case<T, T> {
    let heights = [0.0, 14.0, 7.0, 30.0, 22.0, 3.0, 27.0, 11.0];
    let mut case = Case::<T, T>::random(3, 2, vocab, true, 5);
    case.targets = vec![(SLICE + 3) as i64, (vocab - 1) as i64, 17];
    case.hidden = (0..6).map(|i| T::from_f32(0.3 + 0.2 * i as f32)).collect();
    let bias =
        (0..vocab).map(|j| T::from_f32(heights[j / 512 % 8] + (j / SLICE * 3 + (j * 7919) % 10_007) as f32 * 1.7e-4));
    case.bias = Some(bias.collect());
    case
}

/// The words of the parts of each row, by slices of the whole vocabulary.
fn slices<T, W>(found: &OfRanks, case: &Case<T, W>, starts: &[usize]) -> Vec<Vec<u32>> {
    let words_of_row = found.parts[0].len() / case.rows;
    let columns = starts.iter().skip(1).chain([&case.vocab]).zip(starts).map(|(end, start)| end - start);
    let columns: Vec<usize> = columns.collect();
    let most = columns.iter().map(|columns| partial_rows_of(*columns)).max().expect("a rank");
    let of_row = |row: usize| {
        let ranks = found.parts.iter().zip(&columns);
        let of_rank = |(parts, columns): (&Vec<u32>, &usize)| {
            let count = partial_rows_of(*columns) * words_of_row / most;
            parts[row * words_of_row..][..count].to_vec()
        };
        ranks.flat_map(of_rank).collect()
    };
    (0..case.rows).map(of_row).collect()
}

fn ranks_of_whole_slices_give_the_bits_of_one_call<B: TestBackend>(backend: &B) {
    fn check<B: TestBackend, T: Element>(backend: &B, starts: &[usize], chunk: usize, options: &LogitOptions) {
        let case = of_many_sizes::<T>(2 * SLICE + 1001);
        backend.set_chunks(chunk, 1 << 30);
        let expected = Placed::new(backend, &case).forward(options, true);
        let ranks = HeadRanks::new(backend, &case, &Layout::new(starts), None);
        let whole = HeadRanks::new(backend, &case, &Layout::new(&[0]), None).forward(options, true, false);
        for keeps in [false, true] {
            // One unit less to a chunk: no border of a slice is one of a chunk.
            backend.set_chunks(chunk - 512, 1 << 30);
            let found = ranks.forward(options, true, keeps);
            let context = format!("{} {starts:?} {:?} {options:?}", backend.name(), T::DTYPE);
            assert_same_forward::<B>(&found.forward, &expected, &context);
            if B::KEEPS_BITS_OF_RANKS {
                assert_eq!(
                    slices(&found, &case, starts),
                    slices(&whole, &case, &[0]),
                    "parts, kept: {keeps}, {context}"
                );
            }
        }
    }
    for backend in backend.variants() {
        if !backend.products_are_elementwise() {
            continue;
        }
        check::<B, f32>(&backend, &[0, SLICE], 8192, &options(OPTIONS[0]));
        check::<B, f32>(&backend, &[0, SLICE, 2 * SLICE], 16_384, &options(OPTIONS[2]));
        check::<B, bf16>(&backend, &[0, 2 * SLICE], 8192, &options(OPTIONS[1]));
    }
}

/// What the ranks add to the errors of one call: their sums and shares are rounded to f32, and added up.
fn of_shares(of_units: LogitGradients, ranks: usize, unit_roundoff: f64) -> LogitGradients {
    let more = (ranks as f64 + 4.0) * unit_roundoff;
    let of_hidden = of_units.of_hidden.iter().zip(&of_units.exact).map(|(bound, value)| bound + more * value.abs());
    LogitGradients { of_hidden: of_hidden.collect(), ..of_units }
}

/// Where ranks may begin: in the middle of everything, one column.
const STARTS: [&[usize]; 4] = [&[0, 1], &[0, 300, 701], &[0, 33, 34, 600], &[0, 512, 1024]];

fn ranks_of_any_columns_are_within_the_bounds<B: Products>(backend: &B) {
    fn check<T: Element, G: Element, B: Products>(backend: &B, index: usize, offset: f32) {
        let (starts, n, h) = (STARTS[index % 4], 9, 17);
        let vocab = starts[starts.len() - 1] + 431;
        backend.set_chunks([512, 1024][index % 2], if index.is_multiple_of(3) { 5 * 4 * vocab } else { 1 << 30 });
        let mut case = Case::<T, T>::random(n, h, vocab, true, index as u64);
        // Targets on each rank.
        for (row, start) in starts.iter().enumerate().filter(|(row, _)| row % 4 != 3) {
            case.targets[row] = *start as i64;
        }
        for bias in case.bias.iter_mut().flatten() {
            *bias = T::from_f32(bias.to_f32() + offset);
        }
        let options = options(if offset == 0.0 { OPTIONS[index % 3] } else { OPTIONS[index % 2] });
        let layout = Layout { padding: index % 4, ..Layout::new(starts) };
        let scored_rows = index.is_multiple_of(2).then(|| scored(&case));
        let mut ranks = HeadRanks::new(backend, &case, &layout, scored_rows);
        let context = format!("{} {:?} {:?} {layout:?} {options:?} {offset}", backend.name(), T::DTYPE, G::DTYPE);
        let g: Vec<f32> = (0..n).map(|row| (row % 7) as f32 * 0.3 - 0.8).collect();
        let e: Vec<f32> = (0..n).map(|row| (row % 5) as f32 * 0.2 - 0.5).collect();
        let mut shares = Shares::default();
        let wanted = Wanted { accumulate: (index % 2 == 1).then_some(0.5), ..ALL };
        let accumulated = f64::from(wanted.accumulate.unwrap_or(0.0));
        let untouched = wanted.accumulate.unwrap_or(0.0);

        let found = ranks.forward(&options, true, true);
        let plain = ranks.forward(&options, true, false);
        assert_same_forward::<B>(&found.forward, &plain.forward, &context);
        let of_g = || of_logits(backend, &case, &options, (&g, None), &found.forward, &mut Shares::default());
        let bounds = of_units(backend, &case, &options, &g, LinearKept::UnitGradients, of_g());
        let bounds = of_shares(bounds, starts.len(), f32::UNIT_ROUNDOFF);
        let units = found.units();
        let gradients = ranks.backward::<G>(&options, &found.forward, Some(&units), (&g, None), wanted);
        assert!(
            gradients.iter().all(|of_rank| format!("{:?}", of_rank.hidden) == format!("{:?}", gradients[0].hidden))
        );
        let (whole, padding) = ranks.whole(&gradients, false);
        assert!(padding.iter().all(|value| value.to_f32().to_bits() == untouched.to_bits()), "{context}");
        check_gradients(backend, &case, &bounds, &whole, accumulated, &mut shares, &context);

        // Without unit gradients each rank has its share of the hidden states' gradient, in their type.
        if T::DTYPE == f16::DTYPE {
            return;
        }
        let mut ranks = HeadRanks::new(backend, &case, &layout, scored_rows);
        for e in [None, Some(e.as_slice())] {
            let gradients = ranks.backward::<G>(&options, &found.forward, None, (&g, e), wanted);
            let (whole, _) = ranks.whole(&gradients, true);
            let of_logits = of_logits(backend, &case, &options, (&g, e), &found.forward, &mut Shares::default());
            let bounds = of_shares(of_logits, starts.len(), T::UNIT_ROUNDOFF);
            check_gradients(backend, &case, &bounds, &whole, accumulated, &mut shares, &context);
        }
    }
    for backend in backend.variants() {
        for index in 0..4 {
            check::<f32, f32, B>(&backend, index, 0.0);
            check::<f32, f32, B>(&backend, index, 3000.0);
            check::<bf16, f32, B>(&backend, index + 1, 0.0);
            check::<bf16, bf16, B>(&backend, index, 0.0);
            check::<f16, f32, B>(&backend, index, 0.0);
        }
    }
}

/// Target 400 with a rank of its own, at both ends of one, and in the middle.
fn digits_are_kept_next_to_certainty<B: Products>(backend: &B) {
    fn check<T: Element, B: Products>(backend: &B, starts: &[usize]) {
        check_digits::<T, B>(backend, &digits_case(), starts.len() as f64 + 4.0, |case, options| {
            HeadRanks::new(backend, case, &Layout::new(starts), None).forward(options, false, true).units()
        });
    }
    for starts in [&[0, 300, 700][..], &[0, 401], &[0, 400], &[0, 399, 400, 401]] {
        check::<f32, _>(backend, starts);
        check::<bf16, _>(backend, starts);
        check::<f16, _>(backend, starts);
    }
}

fn padding_is_not_read_and_has_no_gradient<B: TestBackend>(backend: &B) {
    let case = Case::<bf16, bf16>::random(6, 9, 2049, true, 3);
    let (options, g) = (options(OPTIONS[1]), vec![0.5; 6]);
    for starts in [&[0][..], &[0, 1000], &[0, 2048]] {
        let bare = Layout::new(starts);
        let of_bare = HeadRanks::new(backend, &case, &bare, None).forward(&options, true, true);
        for padding in [1, 15, 1100] {
            let layout = Layout { padding, ..Layout::new(starts) };
            let found = HeadRanks::new(backend, &case, &layout, None).forward(&options, true, true);
            assert_eq!(format!("{found:?}"), format!("{of_bare:?}"), "{layout:?}");
            for (accumulate, units) in [(None, true), (Some(2.5), true), (None, false), (Some(2.5), false)] {
                let wanted = Wanted { accumulate, ..ALL };
                let units = units.then(|| found.units());
                let of = |layout: &Layout| {
                    let mut ranks = HeadRanks::new(backend, &case, layout, None);
                    let units = units.as_deref();
                    let gradients = ranks.backward::<f32>(&options, &found.forward, units, (&g, None), wanted);
                    ranks.whole(&gradients, units.is_none())
                };
                let ((expected, _), (found, padding)) = (of(&bare), of(&layout));
                assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{layout:?}");
                let untouched = accumulate.unwrap_or(0.0);
                assert!(padding.iter().all(|value| value.to_bits() == untouched.to_bits()), "{layout:?}");
            }
            // No row at all.
            let masked = Case { targets: vec![-100; 6], ..case.clone() };
            let mut ranks = HeadRanks::new(backend, &masked, &layout, None);
            let found = ranks.forward(&options, true, true).forward;
            assert!(found.log_probs.iter().chain(&found.entropies).all(|number| *number == 0.0));
            let gradients = ranks.backward::<f32>(&options, &found, None, (&g, None), ALL);
            let (whole, padding) = ranks.whole(&gradients, true);
            assert!(whole.hidden.iter().all(|value| value.to_f32() == 0.0));
            assert!(whole.weight.iter().chain(&whole.bias).chain(&padding).all(|value| *value == 0.0));
        }
    }
}

/// The second of three ranks has nothing but -inf: also where the target is, of the second row.
fn a_rank_of_excluded_columns_has_no_share<B: TestBackend>(backend: &B) {
    for given in OPTIONS {
        let options = options(given);
        let mut case = Case::<f32, f32>::random(2, 7, 1500, true, 8);
        case.bias.as_mut().expect("a bias")[500..1000].fill(f32::NEG_INFINITY);
        case.targets = vec![1300, 700];
        let found = HeadRanks::new(backend, &case, &Layout::new(&[0, 500, 1000]), None).forward(&options, true, true);
        assert_eq!(found.forward.log_probs[1], f32::NEG_INFINITY);
        let mut placed = Placed::new(backend, &case);
        placed.kept = LinearKept::UnitGradients;
        let whole = placed.forward(&options, true);
        assert!((whole.log_probs[0] - found.forward.log_probs[0]).abs() < 1e-5);
        for (found, expected) in found.units().iter().zip(placed.units()) {
            assert!((found - expected).abs() < 1e-5, "{found}, {expected} expected, {options:?}");
        }
        assert!(found.shares[1][..7].iter().all(|share| *share == 0.0), "{:?}", found.shares[1]);
        // As if the columns were not there.
        let mut left = case.clone();
        left.vocab = 1000;
        left.weight.drain(500 * 7..1000 * 7);
        left.bias.as_mut().expect("a bias").drain(500..1000);
        left.targets = vec![800, -1];
        let expected = HeadRanks::new(backend, &left, &Layout::new(&[0, 500]), None).forward(&options, true, true);
        assert_eq!(found.forward.log_probs[0].to_bits(), expected.forward.log_probs[0].to_bits());
        assert_eq!(found.forward.states[0], expected.forward.states[0]);
        assert_eq!(bits(&found.shares[2][..7]), bits(&expected.shares[1][..7]));
    }
}

/// Relative to the largest of its own columns the powers of such a rank are no numbers.
fn a_rank_far_below_the_others_changes_nothing<B: TestBackend>(backend: &B) {
    let options = options(OPTIONS[1]);
    let of_height = |height: f32| {
        let mut case = Case::<f32, f32>::random(2, 7, 1500, true, 8);
        case.bias.as_mut().expect("a bias")[500..1000].fill(height);
        case.targets = vec![1300, 30];
        HeadRanks::new(backend, &case, &Layout::new(&[0, 500, 1000]), None).forward(&options, true, true)
    };
    let expected = of_height(f32::NEG_INFINITY);
    assert!(expected.forward.entropies.iter().chain(&expected.units()).all(|number| number.is_finite()));
    for k in 0..B::pick(60, 20) {
        let height = -(10.0f32.powf(9.4 + 0.47 * k as f32));
        let found = of_height(height);
        assert_eq!(found.forward, expected.forward, "{height:e}");
        for (found, expected) in found.shares.iter().zip(&expected.shares) {
            assert!(found == expected, "{height:e}: {found:?}, {expected:?} expected");
        }
    }
}

/// A hidden state with a NaN, and a logit beyond all range on one rank alone, which a component of the hidden states chooses.
fn rows_without_a_softmax_are_nan_and_others_are_not<B: TestBackend>(backend: &B) {
    let mut case = Case::<f32, f32>::random(7, 6, 900, false, 9);
    case.hidden[6..12].fill(f32::NAN);
    for (row, hidden) in case.hidden.chunks_exact_mut(6).enumerate().filter(|(row, _)| row % 4 != 3) {
        hidden[5] = if row == 4 { 1.0 } else { 0.0 };
    }
    case.weight[450 * 6 + 5] = 1e30;
    let bad = |row: usize| row == 1 || row == 4;
    let options = options(OPTIONS[0]);
    let mut ranks = HeadRanks::new(backend, &case, &Layout::new(&[0, 400, 500]), None);
    let found = ranks.forward(&options, true, true);
    let positions: Vec<usize> = (0..7).filter(|row| case.targets[*row] >= 0).collect();
    let units = found.units();
    for (position, row) in positions.iter().enumerate() {
        assert_eq!(found.forward.log_probs[*row].is_nan(), bad(*row), "row {row}");
        assert_eq!(found.forward.states[*row].s.is_nan(), bad(*row), "row {row}");
        let units = &units[position * 6..(position + 1) * 6];
        assert!(units.iter().all(|unit| unit.is_nan() == bad(*row)), "row {row}: {units:?}");
    }
    let g = vec![0.5; 7];
    for units in [Some(units.as_slice()), None] {
        for accumulate in [None, Some(1.5)] {
            let wanted = Wanted { accumulate, ..ALL };
            let gradients = ranks.backward::<f32>(&options, &found.forward, units, (&g, None), wanted);
            for of_rank in &gradients {
                for row in 0..7 {
                    let hidden = &of_rank.hidden[row * 6..(row + 1) * 6];
                    assert!(hidden.iter().all(|value| value.is_nan() == bad(row)), "row {row}, {units:?}: {hidden:?}");
                }
                let mut of_head = of_rank.weight.iter().chain(&of_rank.bias);
                assert!(of_head.all(|value| value.is_nan() == accumulate.is_none()), "{accumulate:?}");
            }
            // A new one: what was kept is used from then on.
            ranks = HeadRanks::new(backend, &case, &Layout::new(&[0, 400, 500]), None);
        }
    }
    // What was found is no fault of another test's.
    let _ = backend.found();
}

/// Alone, among others, and in chunks of rows.
fn parts_depend_on_their_row_alone<B: TestBackend>(backend: &B) {
    if !backend.products_are_elementwise() {
        return;
    }
    let case = Case::<f32, f32>::random(9, 6, 1700, true, 10);
    let (options, layout) = (options(OPTIONS[1]), Layout::new(&[0, 600]));
    backend.set_chunks(512, 1 << 30);
    let together = HeadRanks::new(backend, &case, &layout, Some(scored(&case))).forward(&options, true, true);
    backend.set_chunks(1024, 2 * 4 * 1700);
    for (position, row) in (0..9).filter(|row| case.targets[*row] >= 0).enumerate() {
        let alone = Case {
            rows: 1,
            hidden: case.hidden[row * 6..(row + 1) * 6].to_vec(),
            targets: vec![case.targets[row]],
            ..case.clone()
        };
        let found = HeadRanks::new(backend, &alone, &layout, None).forward(&options, true, true);
        assert_eq!(found.forward.log_probs[0].to_bits(), together.forward.log_probs[row].to_bits());
        assert_eq!(found.forward.states[0], together.forward.states[row]);
        for (found, together) in found.shares.iter().zip(&together.shares) {
            assert_eq!(bits(found), bits(&together[position * 6..(position + 1) * 6]), "row {row}");
        }
    }
}
