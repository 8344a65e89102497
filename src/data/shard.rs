//! Which columns of a vocabulary a rank holds.

use crate::data::matrix::check_vocab;
use crate::error::{Error, Result};

/// Columns of a slice: a row is reduced slice by slice, and a rank's columns have the bits that they have without ranks where the
/// rank begins at a multiple of this.
pub const SLICE: usize = 32_768;

/// The columns of a vocabulary that a rank holds, of logits or of a head: from `start` on, as many as there are. Target ids stay
/// those of the whole vocabulary.
///
/// A row whose target lies elsewhere is scored all the same: its columns have their part in its softmax, and the gradient
/// −g·p. Columns beyond the end of the vocabulary are padding: they are not read, and their gradient is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    start: usize,
    vocab: usize,
}

impl Shard {
    /// Columns from `start` on of a vocabulary of `vocab`.
    ///
    /// # Errors
    /// [`Error::Vocabulary`]; [`Error::ShardStart`] if it begins at the end of the vocabulary or beyond.
    pub fn new(start: usize, vocab: usize) -> Result<Self> {
        check_vocab(vocab)?;
        if start < vocab { Ok(Self { start, vocab }) } else { Err(Error::ShardStart { start, vocab }) }
    }

    /// What rank `rank` of `ranks` holds where each has as many whole slices as the others, or one more: then its rows have
    /// the bits that they have without ranks.
    ///
    /// # Errors
    /// [`Error::Vocabulary`]; [`Error::ShardStart`] if there are fewer slices of [`SLICE`] columns than ranks, or no such rank.
    pub fn of_slices(vocab: usize, rank: usize, ranks: usize) -> Result<(Self, usize)> {
        check_vocab(vocab)?;
        let slices = vocab.div_ceil(SLICE);
        if rank >= ranks || slices < ranks {
            return Err(Error::ShardStart { start: rank.saturating_mul(SLICE), vocab });
        }
        let first = |rank: usize| (slices / ranks * rank + rank.min(slices % ranks)) * SLICE;
        Ok((Self::new(first(rank), vocab)?, first(rank + 1).min(vocab) - first(rank)))
    }

    /// All of a vocabulary, whose size has been checked.
    pub(crate) fn whole(vocab: usize) -> Self {
        Self { start: 0, vocab }
    }

    /// The first column.
    pub fn start(self) -> usize {
        self.start
    }

    /// Columns of the whole vocabulary.
    pub fn vocab(self) -> usize {
        self.vocab
    }

    /// How many of the columns that are held are no padding.
    pub(crate) fn columns(self, held: usize) -> usize {
        held.min(self.vocab - self.start)
    }

    /// Where among the columns that are held a target is; `None` if it is elsewhere.
    pub(crate) fn column_of(self, target: usize, held: usize) -> Option<usize> {
        target.checked_sub(self.start).filter(|column| *column < self.columns(held))
    }
}
