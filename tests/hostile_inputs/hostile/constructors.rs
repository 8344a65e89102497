//! What makes the values that calls take.

use super::choices::Choices;
use super::settings::{self, Fit};
use exo_kernels::backend::{Backend, Host};
use exo_kernels::reference::ReferenceBackend;
use exo_kernels::{
    Batch, Betas, Cpu, Element, Error, GroupStatistics, Head, IGNORE_INDEX, LinearGradients, LinearKept, LogRatio,
    LogitOptions, LossOptions, Matrix, MatrixMut, Objective, PreferenceLoss, Reduction, Rewards, SoftmaxState, TokenId,
    TokenLogProbs, shifted_targets,
};
use half::{bf16, f16};

/// Offsets from every integer type, and padded batches.
pub(crate) fn batches(choices: &mut Choices<'_>) {
    choices.calls(&[
        "data/batch::Batch::new",
        "data/batch::Batch::padded",
        "data/batch::Batch::rows",
        "data/batch::Batch::sequences",
        "data/batch::Batch::groups",
        "data/batch::Batch::sequence_offsets",
        "data/batch::Batch::group_offsets",
    ]);
    let mut offsets = |usual: [i64; 4]| -> Vec<i64> {
        let mut offsets = usual.to_vec();
        for offset in &mut offsets {
            *offset = choices.of(*offset, &[0, -1, 1, 2, 3, 7, i64::MAX, i64::MIN, *offset + 1, *offset - 1]);
        }
        offsets.truncate(choices.of(4, &[3, 2, 1, 0]));
        offsets
    };
    let (sequences, groups) = (offsets([0, 2, 3, 3]), offsets([0, 1, 2, 3]));
    let ascends = |offsets: &[i64]| offsets.first() == Some(&0) && offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let strictly = groups.windows(2).all(|pair| pair[0] < pair[1]);
    let valid = ascends(&sequences)
        && ascends(&groups)
        && strictly
        && groups.last().copied() == i64::try_from(sequences.len()).ok().map(|length| length - 1);
    match Batch::new(&sequences, &groups) {
        Ok(batch) => {
            assert!(valid, "{sequences:?} and {groups:?} were accepted");
            check(&batch);
            assert_eq!(batch.rows() as i64, sequences[sequences.len() - 1]);
        }
        Err(error) => assert!(!valid, "{sequences:?} and {groups:?} were refused: {error}"),
    }

    let (count, length, k) = (choices.size(6), choices.size(4), choices.size(3));
    // What cannot be held is not asked for: an answer that a machine has no memory for is an abort. The limit is that
    // of an address space; up to it there is nothing between "refused" and "held".
    let held = count <= 1 << 16;
    let fits = k > 0 && count.is_multiple_of(k) && count.checked_mul(length).is_some();
    if held || !fits || count > isize::MAX as usize / 8 {
        match Batch::padded(count, length, k) {
            Ok(batch) => {
                assert!(fits && held, "{count} sequences of {length} rows by {k} were accepted");
                check(&batch);
                assert_eq!((batch.rows(), batch.sequences(), batch.groups()), (count * length, count, count / k));
            }
            Err(error) => assert!(!(fits && held), "{count} sequences of {length} rows by {k}: {error}"),
        }
    }
}

fn check(batch: &Batch) {
    assert_eq!(batch.sequence_offsets().len(), batch.sequences() + 1);
    assert_eq!(batch.group_offsets().len(), batch.groups() + 1);
    assert!(batch.groups() <= batch.sequences());
}

/// The shift by one.
pub(crate) fn targets(choices: &mut Choices<'_>) {
    choices.calls(&["data/targets::shifted_targets"]);
    let ends = [0, 1, 2, 3, 4, 5, usize::MAX];
    let mut range = |usual: std::ops::Range<usize>| {
        let start = choices.of(usual.start, &ends);
        start..choices.of(usual.end, &ends)
    };
    let mut scored = vec![range(2..4), range(1..2)];
    scored.truncate(choices.of(2, &[1, 0]));
    let length = choices.size(4);
    let ids: Vec<u32> = (0..choices.length(8) as u32).map(|token| token + 5).collect();
    let right_length = scored.len().checked_mul(length) == Some(ids.len());
    let forwards = scored.iter().all(|range| range.start <= range.end);
    let within = scored.iter().all(|range| range.is_empty() || (range.start > 0 && range.end <= length));
    // An empty range says that nothing is scored, wherever it lies.
    match shifted_targets(&ids, length, &scored) {
        Ok(targets) => {
            assert!(right_length && forwards && within, "{scored:?} of {length} was accepted");
            assert_eq!(targets.len(), ids.len());
            let count: usize = scored.iter().map(ExactSizeIterator::len).sum();
            assert_eq!(targets.iter().filter(|target| **target != IGNORE_INDEX).count(), count);
        }
        Err(error) => {
            let empty = scored.iter().any(std::ops::Range::is_empty);
            assert!(!(right_length && forwards && within) || empty, "{scored:?} of {length}: {error}");
            assert!(matches!(error, Error::Length { .. } | Error::TokenRange { .. }), "{error:?}");
        }
    }
    assert_eq!((u32::IGNORE.id(), i64::IGNORE.id()), (-100, -100));
}

/// Views of logits and matrices over a small buffer.
pub(crate) fn views(choices: &mut Choices<'_>) {
    match choices.choose(3) {
        0 => views_of::<f32>(choices),
        1 => views_of::<f16>(choices),
        _ => views_of::<bf16>(choices),
    }
}

fn views_of<T: Element>(choices: &mut Choices<'_>) {
    choices.calls(&[
        "data/matrix::Matrix::new",
        "data/matrix::Matrix::strided",
        "data/matrix::Matrix::rows",
        "data/matrix::Matrix::columns",
        "data/matrix::Matrix::row",
        "data/matrix::MatrixMut::new",
        "data/matrix::MatrixMut::strided",
        "data/matrix::MatrixMut::rows",
        "data/matrix::MatrixMut::columns",
        "data/matrix::MatrixMut::as_matrix",
        "data/head::Head::new",
        "data/head::Head::with_bias",
        "data/head::Head::weight",
        "data/head::Head::bias",
        "data/head::Head::vocab",
        "data/head::LinearGradients::new",
        "data/head::LinearGradients::with_bias",
        "data/head::LinearGradients::accumulating",
    ]);
    let mut data = vec![T::from_f32(1.0); choices.of(12, &[0, 1, 2, 11, 13])];
    let (rows, columns, stride) = (choices.size(3), choices.size(4), choices.size(4));
    let elements = data.len();
    let divides = columns > 0 && elements.is_multiple_of(columns);
    let needed = rows.checked_sub(1).map_or(Some(0), |before| before.checked_mul(stride)?.checked_add(columns));
    let fits = columns > 0 && stride >= columns && needed.is_some_and(|needed| needed <= elements);

    let given = format!("{elements} elements, {rows} rows of {columns}, stride {stride}");
    let check = |what: &str, made: Option<(usize, usize)>, expected: Option<(usize, usize)>| {
        assert_eq!(made, expected, "{what}: {given}");
    };
    let contiguous = divides.then(|| (elements / columns.max(1), columns));
    let strided = fits.then_some((rows, columns));
    let shape = |matrix: &Matrix<'_, T>| {
        for row in [0, 1, matrix.rows().wrapping_sub(1), matrix.rows(), usize::MAX] {
            let expected = if row < matrix.rows() { matrix.columns() } else { 0 };
            assert_eq!(matrix.row(row).len(), expected, "row {row}");
        }
        (matrix.rows(), matrix.columns())
    };
    check("Matrix::new", Matrix::new(&data, columns).ok().as_ref().map(shape), contiguous);
    let view = Matrix::strided(&data, rows, columns, stride);
    check("Matrix::strided", view.as_ref().ok().map(shape), strided);
    for logits in [Matrix::new(&data, columns), Matrix::strided(&data, rows, columns, stride)].into_iter().flatten() {
        vocabulary(&Cpu::default(), &logits);
        vocabulary(&ReferenceBackend, &logits);
    }
    if let Ok(weight) = view {
        let bias = vec![T::from_f32(0.5); choices.length(rows.min(16))];
        match Head::new(weight) {
            Ok(head) => {
                assert!((1..=i32::MAX as usize).contains(&rows), "{rows} columns of a head");
                assert!(head.bias().is_none() && (head.vocab(), head.weight().rows()) == (rows, rows));
                assert_eq!(head.with_bias(&bias).is_ok(), bias.len() == rows, "a bias of {} for {rows}", bias.len());
            }
            Err(error) => assert!(!(1..=i32::MAX as usize).contains(&rows), "{rows} columns of a head: {error}"),
        }
    }

    let shape = |matrix: MatrixMut<'_, T>| {
        let read = matrix.as_matrix();
        let shape = (matrix.rows(), matrix.columns());
        assert_eq!((read.rows(), read.columns(), read.row_stride()), (shape.0, shape.1, matrix.row_stride()));
        shape
    };
    check("MatrixMut::new", MatrixMut::new(&mut data, columns).ok().map(shape), contiguous);
    let view = MatrixMut::strided(&mut data, rows, columns, stride);
    check("MatrixMut::strided", view.ok().map(shape), strided);
    let mut bias = [T::from_f32(0.0); 3];
    let _ =
        LinearGradients::<T, T>::new(MatrixMut::new(&mut data, columns).ok(), None).with_bias(&mut bias).accumulating();
}

/// Without rows a matrix may have any number of columns; the stage takes as many as there are ids.
fn vocabulary<B: Backend<Memory = Host>, T: Element>(backend: &B, logits: &Matrix<'_, T>) {
    if logits.rows() > 0 {
        return;
    }
    let outputs = TokenLogProbs { log_probs: &mut [], states: &mut [], entropies: None };
    let result = backend.token_log_probs(logits, &[0i64; 0], &LogitOptions::default(), outputs);
    let vocab = logits.columns();
    let expected = if vocab > i32::MAX as usize { Err(Error::Vocabulary { vocab }) } else { Ok(()) };
    assert_eq!(result, expected);
}

/// Options of a loss, and the loss itself before any forward pass.
pub(crate) fn settings(choices: &mut Choices<'_>) {
    choices.calls(&[
        "options::LossOptions::with_logits",
        "options::LossOptions::with_log_ratio",
        "options::LossOptions::with_entropy",
        "options::LossOptions::with_linear_kept",
        "options::LossOptions::objective",
        "options::LossOptions::logits",
        "loss::PreferenceLoss::new",
        "loss::PreferenceLoss::with_temperature",
        "loss::PreferenceLoss::with_softcap",
        "loss::PreferenceLoss::with_log_ratio",
        "loss::PreferenceLoss::with_reduction",
        "loss::PreferenceLoss::with_entropy",
        "loss::PreferenceLoss::with_linear_kept",
        "loss::PreferenceLoss::set_loss_scale",
        "loss::PreferenceLoss::options",
        "loss::PreferenceLoss::unchecked_report",
        "loss::PreferenceLoss::report",
        "data/rewards::Rewards::with_proposal",
        "stage/token_log_prob::SoftmaxState::log_sum_exp",
        "stage/objective::GroupStatistics::new",
    ]);
    let objective = settings::objective(choices);
    let logits = settings::logit_options(choices);
    let reduction = settings::reduction(choices, objective);
    let options = LossOptions::from(objective)
        .with_logits(logits)
        .with_log_ratio(LogRatio::Mean)
        .with_entropy(choices.yes())
        .with_linear_kept(settings::linear_kept(choices))
        .with_reduction(reduction)
        .expect("as before");
    assert_eq!((options.objective(), options.logits()), (objective, logits));

    let mut loss = PreferenceLoss::new(Cpu::default(), options);
    assert_eq!(loss.options(), &options);
    assert_eq!(loss.report().err(), Some(Error::NoForward));
    assert_eq!(loss.unchecked_report().err(), Some(Error::NoForward));
    loss.set_loss_scale(choices.f64(1024.0));
    let (temperature, softcap, normalizer) = (choices.f64(1.5), choices.f64(30.0), choices.f64(8.0));
    let loss = Fit::of_scale(temperature).check("temperature", loss.with_temperature(temperature));
    let of_softcap = if softcap == 0.0 { Fit::Useful } else { Fit::of_scale(softcap) };
    let loss = loss.and_then(|loss| of_softcap.check("softcap", loss.with_softcap(softcap)));
    let _ = loss.and_then(|loss| {
        let loss = loss.with_log_ratio(LogRatio::Sum).with_entropy(true);
        let loss = loss.with_linear_kept(LinearKept::Nothing);
        Fit::of_scale(normalizer).check("normalizer", loss.with_reduction(Reduction::Normalizer(normalizer)))
    });

    // Plain values, which nothing checks until a call takes them.
    let _ = Rewards::from(&[choices.f32(1.0)]).with_proposal(&[choices.f64(0.0), 1.0]);
    let tied = choices.yes();
    assert_eq!(GroupStatistics::new(choices.f64(1.0), choices.f64(0.5), choices.f64(0.5), tied).tied(), tied);
    let _ = SoftmaxState { r: choices.f32(1.0), s: choices.f32(1.0) }.log_sum_exp();
    let _ = Objective::exo(Betas { policy: 1.0, reward: 1.0 });
}
