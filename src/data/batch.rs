//! How rows make up sequences, and sequences groups.

use crate::error::{Error, Result};
use std::ops::Range;

/// The structure of a batch: rows → sequences → groups, validated once and reused while it stays the same.
///
/// A *sequence* is the rows of one completion, a *group* the K completions of one prompt. Both are consecutive and
/// given by offsets: sequence i is rows `sequence_offsets[i]..sequence_offsets[i + 1]`, group g is sequences
/// `group_offsets[g]..group_offsets[g + 1]`. A sequence may be empty, a group may not, and K may differ by group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    sequence_offsets: Vec<usize>,
    group_offsets: Vec<usize>,
    /// Whether the first group began on the rank before, and whether the last one goes on on the next.
    open_ends: (bool, bool),
}

impl Default for Batch {
    /// A batch of nothing.
    fn default() -> Self {
        Self { sequence_offsets: vec![0], group_offsets: vec![0], open_ends: (false, false) }
    }
}

impl AsRef<Batch> for Batch {
    fn as_ref(&self) -> &Batch {
        self
    }
}

impl Batch {
    /// Becomes the same as another, in the memory that it has.
    pub(crate) fn become_same(&mut self, other: &Batch) {
        self.sequence_offsets.clone_from(&other.sequence_offsets);
        self.group_offsets.clone_from(&other.group_offsets);
        self.open_ends = other.open_ends;
    }

    /// From S + 1 sequence offsets (in rows) and G + 1 group offsets (in sequences). Any integer type will do.
    ///
    /// # Errors
    /// [`Error::OffsetsStart`], [`Error::OffsetsOrder`], [`Error::OffsetsEnd`] or [`Error::OffsetRange`] if the offsets
    /// do not begin with 0, go back, disagree about the number of sequences, or are negative; [`Error::EmptyGroup`].
    ///
    /// ```
    /// // Three completions of 3, 0 and 2 rows; the first two answer one prompt.
    /// let batch = exo_kernels::Batch::new(&[0, 3, 3, 5], &[0, 2, 3])?;
    /// assert_eq!((batch.rows(), batch.sequences(), batch.groups()), (5, 3, 2));
    /// # Ok::<(), exo_kernels::Error>(())
    /// ```
    pub fn new<A, B>(sequence_offsets: &[A], group_offsets: &[B]) -> Result<Self>
    where
        A: Copy + TryInto<usize>,
        B: Copy + TryInto<usize>,
    {
        let sequence_offsets = offsets("sequence offsets", sequence_offsets)?;
        let group_offsets = offsets("group offsets", group_offsets)?;
        let (sequences, last) = (sequence_offsets.len() - 1, group_offsets[group_offsets.len() - 1]);
        if last != sequences {
            return Err(Error::OffsetsEnd { what: "group offsets", last, expected: sequences });
        }
        match group_offsets.windows(2).position(|pair| pair[0] == pair[1]) {
            Some(group) => Err(Error::EmptyGroup { group }),
            None => Ok(Batch { sequence_offsets, group_offsets, open_ends: (false, false) }),
        }
    }

    /// A padded `[B, T]` batch: `sequences` sequences of `length` rows each, in groups of `k`. Padding and prompt are
    /// told by the targets ([`shifted_targets`](crate::shifted_targets)): a masked row is never read.
    ///
    /// # Errors
    /// [`Error::EmptyGroup`] if `k` is 0; [`Error::OffsetsEnd`] if `k` does not divide `sequences`;
    /// [`Error::OffsetRange`] if there are more rows than a `usize` counts, or more sequences than there is memory for
    /// their offsets.
    pub fn padded(sequences: usize, length: usize, k: usize) -> Result<Self> {
        if k == 0 {
            return Err(Error::EmptyGroup { group: 0 });
        }
        if !sequences.is_multiple_of(k) {
            let last = sequences - sequences % k;
            return Err(Error::OffsetsEnd { what: "group offsets", last, expected: sequences });
        }
        if sequences.checked_mul(length).is_none() {
            return Err(Error::OffsetRange { what: "sequence offsets", index: sequences });
        }
        Ok(Batch {
            sequence_offsets: multiples("sequence offsets", sequences, length)?,
            group_offsets: multiples("group offsets", sequences / k, k)?,
            open_ends: (false, false),
        })
    }

    /// Groups of sequences of which no rows are known, by their offsets.
    pub(crate) fn of_groups(group_offsets: Vec<usize>) -> Self {
        let sequences = group_offsets.last().copied().unwrap_or(0);
        Self { sequence_offsets: vec![0; sequences + 1], group_offsets, open_ends: (false, false) }
    }

    /// What a rank has of a batch whose groups lie on several ranks ([`ranks::Ranks`](crate::ranks::Ranks)): whether its first group is the rest of
    /// one that began on the rank before, and whether its last group goes on on the next rank. A batch without groups has no ends.
    #[must_use]
    pub fn with_open_ends(self, begins_before: bool, goes_on: bool) -> Self {
        let any = self.groups() > 0;
        Self { open_ends: (begins_before && any, goes_on && any), ..self }
    }

    /// Whether the first group began on the rank before, and whether the last one goes on on the next.
    pub fn open_ends(&self) -> (bool, bool) {
        self.open_ends
    }

    /// Rows, N.
    pub fn rows(&self) -> usize {
        self.sequence_offsets[self.sequences()]
    }

    /// Sequences, S.
    pub fn sequences(&self) -> usize {
        self.sequence_offsets.len() - 1
    }

    /// Groups, G.
    pub fn groups(&self) -> usize {
        self.group_offsets.len() - 1
    }

    /// The S + 1 offsets of the sequences, in rows.
    pub fn sequence_offsets(&self) -> &[usize] {
        &self.sequence_offsets
    }

    /// The G + 1 offsets of the groups, in sequences.
    pub fn group_offsets(&self) -> &[usize] {
        &self.group_offsets
    }

    pub(crate) fn sequence_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.sequence_offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    pub(crate) fn group_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.group_offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// 0, `step`, ..., `count`·`step`, the last of which a `usize` counts. Where sequences have no rows nothing but memory
/// bounds how many are asked for.
fn multiples(what: &'static str, count: usize, step: usize) -> Result<Vec<usize>> {
    let mut offsets = Vec::new();
    // Saturated it is more than any allocation may have.
    if offsets.try_reserve_exact(count.saturating_add(1)).is_err() {
        return Err(Error::OffsetRange { what, index: count });
    }
    offsets.extend((0..=count).map(|i| i * step));
    Ok(offsets)
}

fn offsets<I: Copy + TryInto<usize>>(what: &'static str, given: &[I]) -> Result<Vec<usize>> {
    let mut offsets = Vec::with_capacity(given.len());
    for (index, &offset) in given.iter().enumerate() {
        let offset: usize = offset.try_into().map_err(|_| Error::OffsetRange { what, index })?;
        match offsets.last() {
            None if offset != 0 => return Err(Error::OffsetsStart { what, first: Some(offset) }),
            Some(&previous) if offset < previous => {
                return Err(Error::OffsetsOrder { what, index, previous, given: offset });
            }
            _ => offsets.push(offset),
        }
    }
    if offsets.is_empty() { Err(Error::OffsetsStart { what, first: None }) } else { Ok(offsets) }
}
