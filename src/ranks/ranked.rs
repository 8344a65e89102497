//! What a backend does with what ranks exchange, besides its stages.

use crate::data::memory::{Place, View, ViewMut};
use crate::data::rewards::Rewards;
use crate::data::targets::Targets;
use crate::element::Number;
use crate::error::Result;
use crate::report::RowSummary;
use crate::stage::sequence_part::{CountPart, RewardsMut, RowsOfRanks, SequencePart, Sequences, SequencesMut};

/// The verbs of a [`Backend`](crate::Backend) that have to do with ranks: numbers laid out so that they can be exchanged, and what all
/// ranks have brought taken apart again. As with the stages a refused call has written nothing, and nothing is allocated.
pub trait Ranked: Place {
    /// Copies numbers to as many.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length); [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn put<T: Number>(&self, from: &View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()>;

    /// Sets words to 0.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn clear_words(&self, words: ViewMut<'_, Self, u32>) -> Result<()>;

    /// Numbers of P ranks, `[P, n]` → their sums, `[n]`: added up in the order of the ranks in f64, and rounded once.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for a number of numbers that is no multiple of n;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn add_ranks(&self, numbers: &View<'_, Self, f32>, sums: ViewMut<'_, Self, f32>) -> Result<()>;

    /// S sequences of this rank, and their rewards if they are exchanged → a part of each. `first` is the index of the first of them among all ranks' sequences. Parts beyond
    /// S are filled up.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) for buffers that do not fit one another;
    /// [`Error::Device`](crate::Error::Device); [`Error::Cuda`](crate::Error::Cuda).
    fn write_sequence_parts(
        &self,
        sequences: &Sequences<'_, Self::Memory>,
        rewards: Option<&Rewards<'_, Self::Memory>>,
        first: usize,
        parts: ViewMut<'_, Self, SequencePart>,
    ) -> Result<()>;

    /// What this rank's backend has found in its rows, log-probs `[N]` and targets `[N]` → one part, a [`CountPart`]. `first` is the index of its first row among all ranks'
    /// rows.
    ///
    /// # Errors
    /// As [`Ranked::write_sequence_parts`].
    fn write_count_part(
        &self,
        log_probs: &View<'_, Self, f32>,
        targets: &Targets<'_, Self::Memory>,
        first: usize,
        part: ViewMut<'_, Self, SequencePart>,
    ) -> Result<()>;

    /// What a rank has found in its rows, as far as a [`CountPart`] says: scored rows, empty sequences and entropies are said by the
    /// sequences.
    ///
    /// # Errors
    /// What a device has found in inputs that the host would have refused.
    fn counted(part: &CountPart, vocab: usize) -> Result<RowSummary>;

    /// What the device has found in the inputs of the stages after the rows.
    ///
    /// # Errors
    /// As [`Ranked::counted`]; [`Error::Cuda`](crate::Error::Cuda).
    fn check_counts(&self, vocab: usize) -> Result<()>;

    /// Parts of S sequences whose rows lie on P ranks, `[P, S + 1]` → the sequences: sums over the ranks in their order, in f64.
    ///
    /// # Errors
    /// As [`Ranked::write_sequence_parts`].
    fn add_sequences(
        &self,
        parts: &View<'_, Self, SequencePart>,
        rows: &RowsOfRanks<'_, Self::Memory>,
        sequences: SequencesMut<'_, Self::Memory>,
    ) -> Result<()>;

    /// Parts of all ranks' sequences, in any order → the sequences in the order of their indices, each of which is that of one part.
    ///
    /// # Errors
    /// As [`Ranked::write_sequence_parts`].
    fn place_sequences(
        &self,
        parts: &View<'_, Self, SequencePart>,
        sequences: SequencesMut<'_, Self::Memory>,
        rewards: RewardsMut<'_, Self::Memory>,
    ) -> Result<()>;
}
