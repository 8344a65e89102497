//! Rows whose columns lie on two ranks: each rank's part, and the whole of them.

use super::choices::Choices;
use super::guarded::Sentinel;
use super::rows::{Kind, Rows, VOCAB, are_columns};
use super::settings::{self, HostBackend};
use super::token_log_prob::Outputs;
use exo_kernels::backend::{Host, SLICE, partial_rows_of};
use exo_kernels::ranks::{self, Threads};
use exo_kernels::{Cpu, Element, Error, LogitOptions, Matrix, Shard};
use half::bf16;

/// Shards, made from any numbers.
pub(crate) fn shards(choices: &mut Choices<'_>) {
    choices.calls(&[
        "data/shard::Shard::new",
        "data/shard::Shard::of_slices",
        "stage/partial_row::partial_rows_of",
        "options::LogitOptions::with_shard",
    ]);
    let most = i32::MAX as usize;
    let (start, vocab) = (choices.size(3), choices.size(10));
    let made = Shard::new(start, vocab);
    match made {
        Ok(shard) => {
            assert!(start < vocab && vocab <= most, "{shard:?}");
            assert_eq!((shard.start(), shard.vocab()), (start, vocab));
            assert_eq!(LogitOptions::default().with_shard(shard).shard(), Some(shard));
        }
        Err(Error::Vocabulary { vocab: given }) => assert!(given == vocab && (vocab == 0 || vocab > most)),
        Err(error) => assert_eq!((error, start >= vocab), (Error::ShardStart { start, vocab }, true)),
    }
    let (vocab, rank, ranks) = (choices.size(3 * SLICE + 5), choices.size(1), choices.size(2));
    match Shard::of_slices(vocab, rank, ranks) {
        Ok((shard, columns)) => {
            assert!(rank < ranks && columns > 0 && shard.start().is_multiple_of(SLICE), "{shard:?}, {columns}");
            let end = shard.start() + columns;
            let next = if rank + 1 == ranks {
                vocab
            } else {
                Shard::of_slices(vocab, rank + 1, ranks).expect("a rank").0.start()
            };
            assert_eq!(end, next);
        }
        Err(_) => assert!(vocab == 0 || vocab > most || rank >= ranks || vocab.div_ceil(SLICE) < ranks),
    }
    let columns = choices.size(5);
    assert_eq!(partial_rows_of(columns), columns.div_ceil(SLICE));
}

/// One rank, from end to end: it has to be told of nothing that another refuses.
pub(crate) fn one_rank(choices: &mut Choices<'_>) {
    choices.calls(&["ranks/mod::token_log_probs", "ranks/threads::Threads::new"]);
    let given = choices.size(1);
    let made = Threads::new(given.min(1 << 17));
    assert_eq!(made.is_ok(), given <= 1 << 16);
    let communicator = Threads::new(1).expect("few").pop().expect("one rank");
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<f32>::choose(choices, count);
    let options = settings::logit_options(choices);
    let vocab = choices.of(VOCAB, &[1, 2, VOCAB + 1]);
    let options = options.with_shard(Shard::new(choices.of(0, &[1]).min(vocab - 1), vocab).expect("a shard"));
    let whole = options.shard() == Shard::new(0, VOCAB).ok();
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    let short = usize::from(count > 0 && choices.yes());
    let targets = &rows.targets[..count - short];
    let mut outputs = Outputs::choose(choices, count);
    let logits = Matrix::strided(&rows.data, count, VOCAB, rows.stride).expect("room for the rows");
    // Fewer columns than there are are another vocabulary, with padding.
    let is_all = options.shard().is_some_and(|shard| shard.start() == 0 && shard.vocab() <= VOCAB);
    let refused = short > 0 || !outputs.fit(count) || !are_columns(targets, vocab) || !is_all;
    let cpu = Cpu::default();
    let result =
        ranks::token_log_probs(&cpu, &communicator, &logits, targets, &options, outputs.views(), &mut Vec::new());
    if whole || result.is_err() {
        outputs.check(result, refused, &kinds, VOCAB);
    } else {
        assert!(!refused, "accepted");
    }
}

/// How the columns of a row lie on ranks, and what is asked for.
pub(crate) struct Ranks {
    /// Where the second rank begins; 0: there is but one.
    border: usize,
    /// Parts of each row.
    per_row: usize,
    /// Parts that there are: of each rank, and when they are merged.
    pub(crate) given: usize,
    pub(crate) merged: usize,
    /// Ranks that are merged.
    pub(crate) count: usize,
    pub(crate) entropy: bool,
}

impl Ranks {
    pub(crate) fn choose(choices: &mut Choices<'_>, rows: usize) -> Self {
        let border = choices.of(1, &[0, 2]);
        let count = if border == 0 { 1 } else { 2 };
        let per_row = choices.of(1, &[2, 3]);
        let given = choices.length(rows * per_row);
        let merged = choices.length(count * rows * per_row);
        Self { border, per_row, given, merged, count: choices.of(count, &[0, usize::MAX]), entropy: !choices.yes() }
    }

    /// Columns of each rank.
    pub(crate) fn columns(&self) -> Vec<std::ops::Range<usize>> {
        let ends = [self.border, VOCAB];
        let first = usize::from(self.border == 0);
        [0, self.border].into_iter().zip(ends).skip(first).map(|(start, end)| start..end).collect()
    }

    /// Whether so many parts are those of some rows.
    fn fits(given: usize, rows: usize) -> bool {
        if rows == 0 { given == 0 } else { given >= rows && given.is_multiple_of(rows) }
    }

    pub(crate) fn parts_are_refused(&self, rows: usize) -> bool {
        !Self::fits(self.given, rows)
    }

    pub(crate) fn merging_is_refused(&self, rows: usize) -> bool {
        self.count == 0 || !Self::fits(self.merged, rows.saturating_mul(self.count))
    }

    /// Whether what is merged are the parts that were made, of rows that stay what they are.
    pub(crate) fn are_all(&self, rows: usize) -> bool {
        self.given == rows * self.per_row && self.merged == self.columns().len() * self.given
    }
}

pub(crate) fn walk<B: HostBackend>(choices: &mut Choices<'_>) {
    if choices.yes() { walk_of::<B, bf16>(choices) } else { walk_of::<B, f32>(choices) }
}

fn walk_of<B: HostBackend, T: Element + Sentinel>(choices: &mut Choices<'_>) {
    choices.calls_of(B::VERBS, &["partial_rows", "merge_rows"]);
    let count = choices.of(4, &[0, 1]);
    let rows = Rows::<T>::choose(choices, count);
    let options = settings::logit_options(choices);
    let backend = B::choose(choices);
    let kinds: Vec<Kind> = (0..count).map(|row| rows.kind(row, &options)).collect();
    let ranks = Ranks::choose(choices, count);
    let refused = ranks.parts_are_refused(count) || !are_columns(&rows.targets, VOCAB);
    let mut all = Vec::new();
    for columns in ranks.columns() {
        let data = &rows.data[columns.start.min(rows.data.len())..];
        let logits = Matrix::<T>::strided(data, count, columns.len(), rows.stride).expect("room for the rows");
        let options = options.with_shard(Shard::new(columns.start, VOCAB).expect("a shard"));
        // No result: a part has 0 as its r for a scored row of no logit but 0 alone.
        let before: Vec<u8> = vec![0xa5; ranks.given * size_of::<B::PartialRow>()];
        let mut parts = vec![B::PartialRow::default(); ranks.given];
        bytemuck::cast_slice_mut(&mut parts).copy_from_slice(&before);
        let targets = exo_kernels::backend::Targets::<Host>::from(&rows.targets);
        match backend.partial_rows(&logits, targets, &options, ranks.entropy, &mut parts) {
            Err(error) => {
                assert!(refused, "refused: {error:?}");
                assert_eq!(bytemuck::cast_slice::<_, u8>(&parts), before, "a refused call wrote");
                return;
            }
            Ok(()) => assert!(!refused, "accepted"),
        }
        all.extend(parts);
    }
    all.resize(ranks.merged, B::PartialRow::default());
    let mut outputs = Outputs::choose(choices, count);
    // Entropies need parts that were made for them.
    let wants_entropies = outputs.entropies.is_some() && !ranks.entropy;
    let refused = ranks.merging_is_refused(count) || !outputs.fit(count);
    let result = backend.merge_rows(&all.as_slice(), ranks.count, &rows.targets, &options, outputs.views());
    if result.is_ok() && (!ranks.are_all(count) || wants_entropies) {
        // Other parts than there are: nothing is promised but that nothing breaks.
        assert!(!refused, "accepted");
        return;
    }
    outputs.check(result, refused, &kinds, VOCAB);
}
