//! Rows whose columns lie on several ranks: what each rank's part and their merging promise.
//!
//! One rank gives the bits of a call over all columns; so do any number of ranks that begin at slices; others are within the
//! bounds that hold for one. Gradients have the bits that the columns have without ranks. What a rank pads its columns with is
//! not read.

use exo_kernels::backend::SLICE;
use exo_kernels::reference::bounds;
use exo_kernels::reference::token_log_prob;
use exo_kernels::{Element, Error, LogitOptions, Shard};
use half::{bf16, f16};
use support::adversarial::{Row, adversarial};
use support::backend::{Forward, Layout, Rows, TestBackend, on_every_backend};

on_every_backend!(
    one_rank_gives_the_bits_of_one_call,
    ranks_of_whole_slices_give_the_bits_of_one_call,
    ranks_of_any_columns_are_within_the_bounds,
    gradients_have_the_bits_of_one_call,
    padding_is_not_read_and_has_no_gradient,
    a_rank_of_excluded_columns_changes_nothing,
    what_is_wrong_on_one_rank_is_wrong_in_the_whole_row,
    a_part_is_refused_where_all_columns_are_needed,
    buffers_that_do_not_fit_are_refused,
);

fn together<T: Element>(rows: &[Row<T>]) -> Rows<T> {
    let logits = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
    Rows::new(logits, rows.iter().map(|row| row.target as i64).collect(), rows[0].logits.len())
}

/// Adversarial rows, the second of them masked.
fn rows<T: Element>(vocab: usize) -> Rows<T> {
    let mut rows = together(&adversarial::<T>(vocab, vocab as u64));
    if let Some(target) = rows.targets.get_mut(1) {
        *target = -100;
    }
    rows
}

/// Temperature 0.8; and a softcap besides, with an offset that an exponent rounded to f32 would lose.
fn options() -> [LogitOptions; 2] {
    let plain = LogitOptions::default().with_temperature(0.8).expect("valid");
    [plain, plain.with_softcap(20.0).expect("valid")]
}

fn same(found: f32, expected: f32, exact: bool) -> bool {
    let units = (i64::from(found.to_bits()) - i64::from(expected.to_bits())).abs();
    found.to_bits() == expected.to_bits() || !exact && (units <= 1 || found.is_nan() && expected.is_nan())
}

/// The same bits; of plain loops in f64, whose sums in another order may round to the next f32, that one too.
fn assert_same<B: TestBackend>(found: &Forward, expected: &Forward, context: &str) {
    let exact = B::KEEPS_BITS_OF_RANKS;
    for row in 0..expected.log_probs.len() {
        let states = [found, expected].map(|forward| (forward.states[row].r.to_bits(), forward.states[row].s));
        assert!(
            states[0].0 == states[1].0 && same(states[0].1, states[1].1, exact),
            "row {row}, {context}: {states:?}"
        );
        let log_probs = [found, expected].map(|forward| forward.log_probs[row]);
        assert!(same(log_probs[0], log_probs[1], exact), "row {row}, {context}: {log_probs:?}");
        if !expected.entropies.is_empty() {
            let entropies = [found, expected].map(|forward| forward.entropies[row]);
            let close = !exact && (entropies[0] - entropies[1]).abs() <= 1e-6;
            assert!(close || same(entropies[0], entropies[1], exact), "row {row}, {context}: {entropies:?}");
        }
    }
}

fn check_same<B: TestBackend, T: Element>(backend: &B, vocab: usize, layouts: &[Layout]) {
    for backend in backend.variants() {
        for (mut rows, options) in options().into_iter().map(|options| (rows::<T>(vocab), options)) {
            for entropies in [false, true] {
                rows.targets_in_32_bits = entropies;
                let expected = backend.forward(&rows, &options, entropies);
                for layout in layouts {
                    let found = backend.try_forward_of_ranks(&rows, &options, layout, entropies).expect("ranks");
                    let context = format!("{} {:?} V={vocab} {layout:?} {options:?}", backend.name(), T::DTYPE);
                    assert_same::<B>(&found, &expected, &context);
                }
            }
        }
    }
}

fn one_rank_gives_the_bits_of_one_call<B: TestBackend>(backend: &B) {
    for &vocab in B::pick(&[1, 31, 2049, SLICE, SLICE + 1][..], &[1, 33, SLICE + 1]) {
        check_same::<B, f32>(backend, vocab, &[Layout::new(&[0])]);
        check_same::<B, bf16>(backend, vocab, &[Layout::new(&[0])]);
    }
}

fn ranks_of_whole_slices_give_the_bits_of_one_call<B: TestBackend>(backend: &B) {
    let vocab = 3 * SLICE + 1001;
    let mut layouts = vec![Layout::new(&[0, 3 * SLICE]), Layout::new(&[0, SLICE, 2 * SLICE])];
    for ranks in 2..=4 {
        let of_rank = |rank| Shard::of_slices(vocab, rank, ranks).expect("as many slices").0.start();
        layouts.push(Layout::new(&(0..ranks).map(of_rank).collect::<Vec<_>>()));
    }
    check_same::<B, bf16>(backend, vocab, &layouts[..B::pick(5, 3)]);
    check_same::<B, f32>(backend, vocab, &layouts[..B::pick(5, 2)]);
}

/// Where ranks may begin: in the middle of everything, one column, most of a slice and more than one.
const STARTS: [&[usize]; 4] = [&[0, 1], &[0, 700, 1401], &[0, 33, 34, 2050, 4000], &[0, SLICE - 1, SLICE + 2]];

fn ranks_of_any_columns_are_within_the_bounds<B: TestBackend>(backend: &B) {
    fn check<B: TestBackend, T: Element>(backend: &B, starts: &[usize], options: &LogitOptions) {
        let vocab = starts[starts.len() - 1] + 1031;
        let rows = adversarial::<T>(vocab, vocab as u64);
        let layout = Layout::new(starts);
        let found = backend.try_forward_of_ranks(&together(&rows), options, &layout, true).expect("ranks");
        for (index, row) in rows.iter().enumerate() {
            let exact = token_log_prob::forward(&row.logits, row.target, options);
            let bound = bounds::row(B::ARITHMETIC, &exact, options);
            let hold = |what: &str, found: f64, expected: f64, bound: f64| {
                let near =
                    found == expected || found.is_nan() && expected.is_nan() || (found - expected).abs() <= bound;
                assert!(
                    near,
                    "{what}: {found}, {expected} expected: {} {starts:?} {options:?} {}",
                    row.name,
                    backend.name()
                );
            };
            hold("log-prob", found.log_probs[index].into(), exact.log_prob, bound.log_prob);
            hold("log-sum-exp", found.states[index].log_sum_exp(), exact.log_sum_exp, bound.log_sum_exp);
            hold("entropy", found.entropies[index].into(), exact.entropy, bound.entropy);
            assert!(found.log_probs[index] <= 0.0 || exact.log_prob.is_nan(), "a probability above 1");
        }
    }
    for backend in backend.variants() {
        for starts in &STARTS[..B::pick(4, 3)] {
            for options in options() {
                check::<B, f32>(&backend, starts, &options);
                check::<B, f16>(&backend, starts, &options);
            }
        }
    }
}

/// Written to another buffer and in place, with and without a gradient of the entropy; rows whose target is elsewhere among
/// them, and a masked one.
fn gradients_have_the_bits_of_one_call<B: TestBackend>(backend: &B) {
    fn check<B: TestBackend, T: Element>(backend: &B, starts: &[usize], options: &LogitOptions) {
        let vocab = starts[starts.len() - 1] + 1031;
        let (rows, layout) = (rows::<T>(vocab), Layout { padding: 5, ..Layout::new(starts) });
        let forward = backend.forward(&rows, options, true);
        let g: Vec<f32> = (0..rows.count()).map(|row| 0.3 - 0.07 * (row % 5) as f32).collect();
        let e: Vec<f32> = (0..rows.count()).map(|row| 0.02 * (row % 3) as f32).collect();
        for upstream in [(g.as_slice(), None), (g.as_slice(), Some(e.as_slice()))] {
            let expected = backend.backward(&rows, options, &forward, upstream, false);
            for in_place in [false, true] {
                let found = backend.try_backward_of_ranks(&rows, options, &layout, (&forward, upstream), in_place);
                let found = found.expect("gradients");
                for (rank, columns) in layout.ranks(vocab).into_iter().enumerate() {
                    let width = found[rank].len() / rows.count();
                    for row in 0..rows.count() {
                        let found = &found[rank][row * width..(row + 1) * width];
                        let (of_columns, padding) = found.split_at(columns.len());
                        let expected = &rows.row(&expected, row)[columns.clone()];
                        let near = |(found, expected): (&T, &T)| near::<B, T>(*found, *expected);
                        assert!(
                            of_columns.iter().zip(expected).all(near),
                            "row {row} of rank {rank}: {starts:?} {options:?} {}",
                            backend.name()
                        );
                        assert!(padding.iter().all(|value| value.to_f32().to_bits() == 0), "padding of row {row}");
                    }
                }
            }
        }
    }
    for backend in backend.variants() {
        for starts in &STARTS[..B::pick(4, 3)] {
            for options in options() {
                check::<B, f32>(&backend, starts, &options);
                check::<B, bf16>(&backend, starts, &options);
            }
        }
    }
}

/// The same bits; of the specification, which sees of other ranks no more than their state in f32, about that many digits.
fn near<B: TestBackend, T: Element>(found: T, expected: T) -> bool {
    let (found, expected) = (found.to_f32(), expected.to_f32());
    let exact = B::KEEPS_BITS_OF_RANKS;
    let error = 4.0 * T::UNIT_ROUNDOFF as f32 * expected.abs() + 1e-6;
    found.to_bits() == expected.to_bits()
        || found.is_nan() && expected.is_nan()
        || !exact && (found - expected).abs() <= error
}

fn padding_is_not_read_and_has_no_gradient<B: TestBackend>(backend: &B) {
    let (rows, options) = (rows::<bf16>(2049), options()[0]);
    let expected = backend.forward(&rows, &options, true);
    for starts in [&[0][..], &[0, 1000], &[0, 2048]] {
        // NaN, and with the last of them more than there are columns.
        for padding in [1, 15, 1100] {
            let layout = Layout { padding, ..Layout::new(starts) };
            let bare = backend.try_forward_of_ranks(&rows, &options, &Layout::new(starts), true).expect("ranks");
            let found = backend.try_forward_of_ranks(&rows, &options, &layout, true).expect("ranks");
            assert_eq!(format!("{found:?}"), format!("{bare:?}"), "{layout:?}");
            if starts.len() == 1 {
                assert_same::<B>(&found, &expected, "one rank with padding");
            }
        }
    }
}

fn a_rank_of_excluded_columns_changes_nothing<B: TestBackend>(backend: &B) {
    let mut logits: Vec<f32> = (0..3000).map(|j| ((j * 7919) % 1013) as f32 * 0.01 - 3.0).collect();
    logits[1000..2000].fill(f32::NEG_INFINITY);
    let options = LogitOptions::default();
    // The target of the second row is excluded.
    let rows = Rows::new([logits.clone(), logits.clone()].concat(), vec![2500, 1500], 3000);
    let found = backend.try_forward_of_ranks(&rows, &options, &Layout::new(&[0, 1000, 2000]), true).expect("ranks");
    logits.drain(1000..2000);
    let left = Rows::new(logits, vec![1500], 2000);
    let expected = backend.try_forward_of_ranks(&left, &options, &Layout::new(&[0, 1000]), true).expect("ranks");
    assert_eq!(found.log_probs[0].to_bits(), expected.log_probs[0].to_bits());
    assert_eq!(found.entropies[0].to_bits(), expected.entropies[0].to_bits());
    assert_eq!(found.states[0], expected.states[0]);
    assert_eq!(found.log_probs[1], f32::NEG_INFINITY);
}

/// NaN, +inf and nothing but −inf.
fn what_is_wrong_on_one_rank_is_wrong_in_the_whole_row<B: TestBackend>(backend: &B) {
    let good: Vec<f32> = (0..100).map(|j| j as f32 * 0.1).collect();
    let mut logits = Vec::new();
    for (value, columns) in [(f32::NAN, 70..71), (f32::INFINITY, 99..100), (f32::NEG_INFINITY, 0..100), (3e30, 5..6)] {
        let mut row = good.clone();
        row[columns].fill(value);
        logits.extend(row);
        logits.extend(&good);
    }
    let rows = Rows::new(logits, vec![7; 8], 100);
    let layout = Layout::new(&[0, 10, 60]);
    let found = backend.try_forward_of_ranks(&rows, &LogitOptions::default(), &layout, true).expect("ranks");
    for row in 0..8 {
        let is_bad = row % 2 == 0;
        assert_eq!(found.log_probs[row].is_nan(), is_bad, "row {row}");
        assert_eq!(found.states[row].s.is_nan(), is_bad, "row {row}");
        assert_eq!(found.entropies[row].is_nan(), is_bad, "row {row}");
    }
    let g = vec![0.5; 8];
    let gradients =
        backend.try_backward_of_ranks(&rows, &LogitOptions::default(), &layout, (&found, (&g, None)), false);
    for (rank, gradient) in gradients.expect("gradients").iter().enumerate() {
        let width = gradient.len() / 8;
        for row in 0..8 {
            let of_row = &gradient[row * width..(row + 1) * width];
            assert!(of_row.iter().all(|value| value.is_nan() == (row % 2 == 0)), "row {row} of rank {rank}");
        }
    }
}

fn a_part_is_refused_where_all_columns_are_needed<B: TestBackend>(backend: &B) {
    let rows = Rows::new(vec![0.5_f32; 10], vec![7, 1], 5);
    let options = LogitOptions::default().with_shard(Shard::new(5, 12).expect("a shard"));
    let error = backend.try_forward(&rows, &options, false).expect_err("a part has no log-prob");
    assert_eq!(error, Error::PartOfVocabulary { start: 5, columns: 5, vocab: 12 });
    assert_eq!(Shard::new(12, 12), Err(Error::ShardStart { start: 12, vocab: 12 }));
    assert_eq!(Shard::new(0, 0), Err(Error::Vocabulary { vocab: 0 }));
    assert_eq!(Shard::of_slices(SLICE + 1, 2, 3), Err(Error::ShardStart { start: 2 * SLICE, vocab: SLICE + 1 }));
    assert_eq!(Shard::of_slices(SLICE + 1, 1, 2), Ok((Shard::new(SLICE, SLICE + 1).expect("a shard"), 1)));
    // All columns, said so.
    let whole = LogitOptions::default().with_shard(Shard::new(0, 5).expect("a shard"));
    let rows = Rows::new(vec![0.5_f32; 10], vec![3, 1], 5);
    let expected = backend.forward(&rows, &LogitOptions::default(), false);
    assert_eq!(backend.try_forward(&rows, &whole, false), Ok(expected));
}

fn buffers_that_do_not_fit_are_refused<B: TestBackend>(backend: &B) {
    use support::backend::{ForwardBuffers, place, upload};
    let rows = Rows::new(vec![0.5_f32; 15], vec![7, 1, 3], 5);
    let options = LogitOptions::default().with_shard(Shard::new(5, 12).expect("a shard"));
    let (logits, ids) = (upload(backend, &rows.logits), upload(backend, &rows.targets));
    let view = place(backend, &logits, &rows, 3).expect("rows");
    let ids = || exo_kernels::backend::Targets::I64(backend.view(&ids, 3));
    let poison = B::PartialRow::default();
    for given in [0, 2, 4, 5] {
        let mut partial = upload(backend, &vec![poison; given]);
        let out = backend.view_mut(&mut partial, given);
        let error = backend.partial_rows(&view, ids(), &options, false, out).expect_err("too few, or no multiple");
        assert!(matches!(error, Error::Length { what: "partial rows", .. }), "{error}");
        let mut outputs = ForwardBuffers::new(backend, 3);
        let partial = backend.view(&partial, given);
        let error = backend.merge_rows(&partial, 1, ids(), &options, outputs.views(backend, 3, false));
        assert!(matches!(error, Err(Error::Length { what: "partial rows", .. })), "{error:?}");
    }
    let partial = upload(backend, &[poison; 6]);
    let mut outputs = ForwardBuffers::new(backend, 3);
    let error = backend.merge_rows(&backend.view(&partial, 6), 0, ids(), &options, outputs.views(backend, 3, false));
    assert!(matches!(error, Err(Error::Parameter { name: "ranks", .. })), "{error:?}");
    if B::SEES_NUMBERS {
        // No column of the whole vocabulary; columns elsewhere are fine.
        for (target, is_column) in [(0, true), (11, true), (12, false)] {
            let ids = upload(backend, &[target, 1, 3]);
            let mut partial = upload(backend, &[poison; 3]);
            let out = backend.view_mut(&mut partial, 3);
            let targets = exo_kernels::backend::Targets::I64(backend.view(&ids, 3));
            let result = backend.partial_rows(&view, targets, &options, false, out);
            let expected = if is_column { Ok(()) } else { Err(Error::Target { row: 0, target: 12, vocab: 12 }) };
            assert_eq!(result, expected);
        }
    }
}
