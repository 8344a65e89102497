//! What is refused under a rank's rows of a head, and that a refused call writes nothing. Each call has one thing wrong.

use exo_kernels::backend::{
    GatheredRows, Head, LinearGradients, LinearOutputs, LinearParts, Matrix, MatrixMut, RowGradients, RowLosses,
    SavedLinear, SavedRows, Targets, TokenLogProbs, UnitSums, kept_logit_words,
};
use exo_kernels::{Backend, Dtype, Error, LogitOptions, Result, RowLoss, Shard, SoftmaxState};
use support::backend::{TestBackend, download, on_every_backend, upload};

on_every_backend!(
    what_does_not_fit_is_refused_and_writes_nothing,
    a_part_is_refused_where_all_columns_are_needed,
    ids_are_columns_of_the_whole_vocabulary,
);

const N: usize = 3;
const H: usize = 4;

/// Rows of a head that are held, the last of them padding; of a vocabulary of 12 from column 7 on.
const HELD: usize = 6;

fn shard() -> LogitOptions {
    LogitOptions::default().with_shard(Shard::new(7, 12).expect("a shard"))
}

/// Operands in the backend's memory, and buffers of any length, all of whose words are 9.
struct Operands<B: TestBackend> {
    backend: B,
    hidden: B::Buffer<f32>,
    weight: B::Buffer<f32>,
    ids: B::Buffer<i64>,
    states: B::Buffer<SoftmaxState>,
    gathered: B::Buffer<B::PartialRow>,
}

/// Lengths, what stands for the rank, and ids.
#[derive(Clone, Copy)]
struct Given {
    ids: usize,
    hidden_size: usize,
    parts: usize,
    sums: usize,
    rests: usize,
    gathered: usize,
    states: usize,
    ranks: usize,
    rank: usize,
}

const GOOD: Given =
    Given { ids: N, hidden_size: H, parts: N, sums: N * H, rests: N, gathered: 2 * N, states: N, ranks: 2, rank: 1 };

/// Partial rows, unit sums, and their rests.
type Outputs<B> = (
    <B as Backend>::Buffer<<B as Backend>::PartialRow>,
    <B as Backend>::Buffer<f32>,
    <B as Backend>::Buffer<<B as Backend>::PartialRow>,
);

impl<B: TestBackend> Operands<B> {
    fn new(backend: &B, ids: &[i64]) -> Self {
        Self {
            backend: backend.clone(),
            hidden: upload(backend, &[0.5; N * H]),
            weight: upload(backend, &[0.25; HELD * H]),
            ids: upload(backend, ids),
            states: upload(backend, &[SoftmaxState { r: 1.0, s: 1.0 }; N + 1]),
            gathered: upload(backend, &[B::PartialRow::default(); 4 * N]),
        }
    }

    fn head(&self) -> Head<'_, f32, B::Memory> {
        Head::new(Matrix::new(self.backend.view(&self.weight, HELD * H), H).expect("rows")).expect("a head")
    }

    fn targets(&self, count: usize) -> Targets<'_, B::Memory> {
        Targets::I64(self.backend.view(&self.ids, count))
    }

    /// Both calls, and that neither has written anything where it was refused.
    fn call(&self, options: &LogitOptions, given: Given) -> (Result<()>, Result<()>) {
        let backend = &self.backend;
        let hidden = Matrix::new(backend.view(&self.hidden, N * H), given.hidden_size).expect("rows");
        let nine = |count: usize| {
            let mut rows = vec![B::PartialRow::default(); count];
            bytemuck::cast_slice_mut::<_, u8>(&mut rows).fill(9);
            rows
        };
        let (parts, sums, rests) = (nine(given.parts), vec![9.0; given.sums], nine(given.rests));
        let unchanged = |what: &str, buffers: &Outputs<B>| {
            assert_eq!(download(backend, &buffers.0, given.parts), parts, "{what} has written");
            assert_eq!(download(backend, &buffers.1, given.sums), sums, "{what} has written");
            assert_eq!(download(backend, &buffers.2, given.rests), rests, "{what} has written");
        };
        let placed = || -> Outputs<B> { (upload(backend, &parts), upload(backend, &sums), upload(backend, &rests)) };
        let mut buffers = placed();
        let outputs = LinearParts {
            partial_rows: backend.view_mut(&mut buffers.0, given.parts),
            unit_sums: Some(UnitSums {
                sums: backend.view_mut(&mut buffers.1, given.sums),
                rests: backend.view_mut(&mut buffers.2, given.rests),
            }),
        };
        let targets = || self.targets(given.ids);
        let of_parts = backend.linear_partial_rows(&hidden, &self.head(), targets(), options, true, outputs);
        if of_parts.is_err() {
            unchanged("linear_partial_rows", &buffers);
        }
        let mut buffers = placed();
        let gathered = GatheredRows {
            partial_rows: backend.view(&self.gathered, given.gathered),
            ranks: given.ranks,
            rank: given.rank,
            states: backend.view(&self.states, given.states),
        };
        let unit_sums = UnitSums {
            sums: backend.view_mut(&mut buffers.1, given.sums),
            rests: backend.view_mut(&mut buffers.2, given.rests),
        };
        let of_units = backend.linear_unit_gradients(&hidden, &self.head(), targets(), options, &gathered, unit_sums);
        if of_units.is_err() {
            unchanged("linear_unit_gradients", &buffers);
        }
        (of_parts, of_units)
    }
}

fn what_does_not_fit_is_refused_and_writes_nothing<B: TestBackend>(backend: &B) {
    let operands = Operands::new(backend, &[7, 1, 11, 0]);
    let call = |given: Given| operands.call(&shard(), given);
    assert_eq!(call(GOOD), (Ok(()), Ok(())));
    let length = |what: &'static str, given: usize, expected: usize| Err(Error::Length { what, given, expected });
    for (given, expected) in [(0, 3), (2, 3), (4, 3), (5, 3)] {
        assert_eq!(call(Given { parts: given, ..GOOD }), (length("partial rows", given, expected), Ok(())));
    }
    assert_eq!(call(Given { parts: 2 * N, ..GOOD }), (Ok(()), Ok(())), "two to a row");
    let both = |error: Result<()>| (error.clone(), error);
    assert_eq!(call(Given { ids: 2, ..GOOD }), both(length("targets", 2, 3)));
    assert_eq!(call(Given { ids: 4, ..GOOD }), both(length("targets", 4, 3)));
    assert_eq!(call(Given { sums: N * H - 1, ..GOOD }), both(length("unit sums", N * H - 1, N * H)));
    assert_eq!(call(Given { rests: N + 1, ..GOOD }), both(length("rests of the unit sums", N + 1, N)));
    let (of_parts, of_units) = call(Given { hidden_size: 3, ..GOOD });
    assert!(of_parts.is_err() && of_units.is_err(), "another hidden size");
    assert_eq!(call(Given { states: 2, ..GOOD }), (Ok(()), length("softmax states", 2, 3)));
    assert_eq!(call(Given { gathered: 7, ..GOOD }), (Ok(()), length("partial rows", 7, 6)));
    assert_eq!(call(Given { gathered: 4 * N, ..GOOD }), (Ok(()), Ok(())), "two to a row");
    for (ranks, rank, name) in [(0, 0, "ranks"), (2, 2, "rank"), (1, usize::MAX, "rank")] {
        let (of_parts, of_units) = call(Given { ranks, rank, ..GOOD });
        let names = matches!(&of_units, Err(Error::Parameter { name: found, .. }) if *found == name);
        assert!(of_parts.is_ok() && names, "{of_units:?}");
    }
}

fn a_part_is_refused_where_all_columns_are_needed<B: TestBackend>(backend: &B) {
    let operands = Operands::new(backend, &[7, 1, 11, 0]);
    let refused = Error::PartOfVocabulary { start: 7, columns: HELD, vocab: 12 };
    let hidden = Matrix::new(backend.view(&operands.hidden, N * H), H).expect("rows");
    let words = kept_logit_words(Dtype::F32, N, HELD);
    let mut log_probs = upload(backend, &[9.0; N]);
    let mut states = upload(backend, &[SoftmaxState { r: 9.0, s: 9.0 }; N]);
    let outputs = LinearOutputs::from(TokenLogProbs {
        log_probs: backend.view_mut(&mut log_probs, N),
        states: backend.view_mut(&mut states, N),
        entropies: None,
    });
    let head = operands.head();
    let result = backend.linear_token_log_probs(&hidden, &head, operands.targets(N), &shard(), outputs);
    assert_eq!(result, Err(refused.clone()));
    let mut losses = upload(backend, &[9.0; N]);
    let ones = upload(backend, &[1.0; N]);
    let loss = RowLoss::Weighted { weights: backend.view(&ones, N) };
    let outputs =
        RowLosses { log_probs: backend.view_mut(&mut log_probs, N), losses: backend.view_mut(&mut losses, N) };
    let gradients = LinearGradients::<f32, f32, _>::new(None, None);
    let result = backend.linear_row_loss(&hidden, &head, operands.targets(N), &shard(), &loss, outputs, gradients);
    assert_eq!(result, Err(refused.clone()));
    // No rank keeps gradients of logits.
    let kept = upload(backend, &vec![0_u32; words]);
    let units = upload(backend, &[0.0; N * H]);
    let saved = SavedLinear {
        rows: SavedRows { states: backend.view(&operands.states, N), entropies: None },
        unit_gradients: Some(backend.view(&units, N * H)),
        logit_gradients: Some(backend.view(&kept, words)),
    };
    let upstream = RowGradients::PerRow { log_probs: backend.view(&ones, N), entropies: None };
    let mut weight = upload(backend, &[9.0; HELD * H]);
    let view = backend.view_mut(&mut weight, HELD * H);
    let gradients = LinearGradients::<f32, f32, _>::new(None, Some(MatrixMut::new(view, H).expect("rows")));
    let targets = operands.targets(N);
    let result =
        backend.linear_token_log_probs_backward(&hidden, &head, targets, &shard(), saved, &upstream, gradients);
    assert_eq!(result, Err(refused));
    for (buffer, length) in [(&log_probs, N), (&losses, N), (&weight, HELD * H)] {
        assert!(download(backend, buffer, length).iter().all(|number| *number == 9.0), "a refused call has written");
    }
    // All columns, said so, with padding after them.
    assert!(Shard::new(12, 12).is_err());
    let whole = LogitOptions::default().with_shard(Shard::new(0, HELD).expect("a shard"));
    let operands = Operands::new(backend, &[5, 1, 2]);
    assert_eq!(operands.call(&whole, Given { gathered: N, ranks: 1, rank: 0, ..GOOD }), (Ok(()), Ok(())));
}

fn ids_are_columns_of_the_whole_vocabulary<B: TestBackend>(backend: &B) {
    for (id, is_column) in [(-100, true), (0, true), (6, true), (7, true), (11, true), (12, false), (i64::MAX, false)] {
        let operands = Operands::new(backend, &[1, id, 11]);
        let hidden = Matrix::new(backend.view(&operands.hidden, N * H), H).expect("rows");
        let checked = backend.check_linear_shard(&(&hidden).into(), &operands.head(), &operands.targets(N), &shard());
        let (of_parts, of_units) = operands.call(&shard(), GOOD);
        if is_column || !B::SEES_NUMBERS {
            assert_eq!((checked, of_parts, of_units), (Ok(()), Ok(()), Ok(())), "{id}");
        } else {
            let refused = Err(Error::Target { row: 1, target: id, vocab: 12 });
            assert_eq!((checked, of_parts, of_units), (refused.clone(), refused.clone(), refused), "{id}");
        }
        if !is_column && !B::SEES_NUMBERS {
            assert!(!backend.has_counted_nothing(), "{id} is not counted");
            let _ = backend.found();
        }
    }
}
