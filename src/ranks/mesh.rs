//! The ranks that a loss is divided among, and what they agree about before a step.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::ranks::Communicator;
use crate::ranks::agreement::{Agreement, Divided, Notes, Standing};
use std::sync::Arc;

/// The ranks that a [`PreferenceLoss`](crate::PreferenceLoss) is divided among, in any combination: by columns, by rows, by groups. Where there
/// are several, the ranks make a mesh, as those of Megatron or of `MPI_Cart_sub` do: a rank is in one line of ranks of each kind,
/// and the ranks of a line differ in nothing else.
///
/// | | the ranks of a line have | and exchange |
/// |---|---|---|
/// | `vocab` | the same rows; each some columns ([`LogitOptions::with_shard`](crate::LogitOptions::with_shard)) | [`Backend::partial_rows`]; from hidden states also the gradient of these, once |
/// | `rows` | the same sequences and groups; each some rows of them, or none, in the order of the ranks | 64 bytes for each sequence |
/// | `groups` | each some groups; or some sequences of a group ([`Batch::with_open_ends`]) | 64 bytes for each sequence |
///
/// Targets, reference and rewards are a rank's own: along `vocab` they are the same on all ranks, along `rows` the rewards and a
/// [`Reference::PerSequence`](crate::Reference::PerSequence) are, which is that of the whole sequence.
#[derive(Debug)]
pub struct Ranks<B: Backend> {
    /// Ranks with other columns of the same rows.
    pub vocab: Option<Arc<dyn Communicator<B>>>,
    /// Ranks with other rows of the same sequences.
    pub rows: Option<Arc<dyn Communicator<B>>>,
    /// Ranks with other sequences.
    pub groups: Option<Arc<dyn Communicator<B>>>,
}

impl<B: Backend> Default for Ranks<B> {
    /// None at all.
    fn default() -> Self {
        Self { vocab: None, rows: None, groups: None }
    }
}

/// Where a rank's rows, sequences and groups lie among those of all ranks: what ranks have agreed about for a step.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// The most columns that a rank holds.
    pub(crate) columns: usize,
    /// Index of this rank's first row.
    pub(crate) first_row: usize,
    /// Index of this rank's first sequence.
    pub(crate) first_sequence: usize,
    /// Of the rank that has most.
    pub(crate) most_sequences: usize,
    /// This rank's, without its rows.
    own: Batch,
    /// The groups of all ranks; nothing is known of the rows of their sequences.
    pub(crate) batch: Batch,
}

impl<B: Backend> Ranks<B> {
    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.vocab.is_some() || self.divide_sequences()
    }

    /// Whether sequences are exchanged.
    pub(crate) fn divide_sequences(&self) -> bool {
        self.rows.is_some() || self.groups.is_some()
    }

    /// Ranks among which the rows of a sequence are divided.
    pub(crate) fn ranks_of_rows(&self) -> usize {
        self.rows.as_ref().map_or(1, |line| line.ranks())
    }

    /// Where a step's rows, columns and groups lie, once all ranks have agreed about it. `checked`: whether this rank's call can be
    /// made; if not, or if one of another rank cannot, that is every rank's error. `layout`: that of the step before.
    pub(crate) fn agree(
        &self,
        mut agreement: Agreement,
        checked: Result<()>,
        columns: usize,
        batch: &Batch,
        layout: &mut Layout,
    ) -> Result<()> {
        let along = |line: &Option<Arc<dyn Communicator<B>>>, divided, agreement: &Agreement, standing: &mut _| {
            let line = line.as_ref()?;
            Some((line.rank(), agreement.exchange(divided, line.as_ref(), standing)))
        };
        let mut standing = Standing::from(checked);
        // Every line, also after a refusal: what one rank refuses the ranks of its lines are told, and then those of theirs.
        let of_columns = along(&self.vocab, Divided::Vocab, &agreement, &mut standing);
        let of_rows = along(&self.rows, Divided::Rows, &agreement, &mut standing);
        let (rows_before, rows) = match &of_rows {
            Some((rank, Some(notes))) => notes.rows(*rank),
            Some((rank, None)) => (rank * batch.rows(), self.ranks_of_rows() * batch.rows()),
            None => (0, batch.rows()),
        };
        agreement.set_rows_of_sequences(rows);
        let of_groups = along(&self.groups, Divided::Groups, &agreement, &mut standing);
        if standing.is_broken {
            // Ranks that this one has no line with know nothing of it, and would wait in the exchanges that follow.
            self.abort();
        }
        standing.checked?;

        let columns = of_columns.and_then(|(_, notes)| notes).map_or(columns, |notes| notes.most_columns());
        let is_same = layout.is_of(batch);
        let first_row = match (&self.groups, of_groups.and_then(|(_, notes)| notes)) {
            (None, _) => {
                if !is_same {
                    layout.become_whole(batch);
                }
                rows_before
            }
            (Some(line), None) => {
                if !is_same {
                    // Nobody can say otherwise.
                    let own = Groups::of(batch);
                    layout.become_part(batch, line.rank(), &vec![own; line.ranks()]);
                }
                line.rank() * rows + rows_before
            }
            (Some(line), Some(notes)) => {
                if notes.are_new() {
                    let groups = exchange_groups(line.as_ref(), &notes, batch).inspect_err(|_| self.abort())?;
                    layout.become_part(batch, line.rank(), &groups);
                }
                notes.rows(line.rank()).0 + rows_before
            }
        };
        (layout.columns, layout.first_row) = (columns, first_row);
        Ok(())
    }

    /// This rank has failed where the others wait for it.
    pub(crate) fn abort(&self) {
        [&self.vocab, &self.rows, &self.groups].into_iter().flatten().for_each(|line| line.abort());
    }
}

/// A rank's groups.
#[derive(Debug, Clone)]
struct Groups {
    /// Sequences of each.
    sizes: Vec<usize>,
    /// Whether the first is the rest of one of the rank before.
    begins_open: bool,
}

impl Groups {
    fn of(batch: &Batch) -> Self {
        Self { sizes: batch.group_ranges().map(|group| group.len()).collect(), begins_open: batch.open_ends().0 }
    }
}

/// The groups of all ranks, in their order.
fn exchange_groups<B: Backend>(line: &dyn Communicator<B>, notes: &Notes, batch: &Batch) -> Result<Vec<Groups>> {
    let most = notes.most_groups();
    let mut own: Vec<u32> = batch.group_ranges().map(|group| group.len() as u32).collect();
    own.resize(most, 0);
    let found = if most == 0 { Some(Vec::new()) } else { line.exchange(&own)? };
    let Some(words) = found.filter(|words| words.len() == most * line.ranks()) else {
        let reason = "it has exchanged notes, and not the sizes of its groups".to_owned();
        return Err(Error::Rank { rank: line.rank(), reason });
    };
    let groups = notes.groups().enumerate().map(|(rank, (count, begins_open))| {
        let sizes = words[rank * most..][..count].iter().map(|size| *size as usize).collect();
        Groups { sizes, begins_open }
    });
    Ok(groups.collect())
}

impl Layout {
    /// Whether a rank's batch has the groups of the step before.
    pub(crate) fn is_of(&self, batch: &Batch) -> bool {
        self.own.group_offsets() == batch.group_offsets() && self.own.open_ends() == batch.open_ends()
    }

    /// The groups are all this rank's.
    fn become_whole(&mut self, batch: &Batch) {
        self.own.become_same(batch);
        self.batch.become_same(batch);
        (self.first_sequence, self.most_sequences) = (0, batch.sequences());
    }

    /// The groups are those of several ranks.
    fn become_part(&mut self, batch: &Batch, rank: usize, ranks: &[Groups]) {
        let sequences = |groups: &Groups| groups.sizes.iter().sum::<usize>();
        self.own.become_same(batch);
        self.first_sequence = ranks.iter().take(rank).map(sequences).sum();
        self.most_sequences = ranks.iter().map(sequences).max().unwrap_or(0);
        let mut offsets = vec![0];
        for groups in ranks {
            for (index, size) in groups.sizes.iter().enumerate() {
                let last = offsets[offsets.len() - 1];
                if index == 0 && groups.begins_open && offsets.len() > 1 {
                    offsets.pop();
                }
                offsets.push(last + size);
            }
        }
        self.batch = Batch::of_groups(offsets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_ranks_come_together() {
        let groups = |sizes: &[usize], begins_open| Groups { sizes: sizes.to_vec(), begins_open };
        let ranks = [groups(&[2, 1], false), groups(&[3], true), groups(&[], false), groups(&[1, 4], true)];
        let own = Batch::padded(3, 0, 3).expect("a batch").with_open_ends(true, true);
        let mut layout = Layout::default();
        layout.become_part(&own, 1, &ranks);
        assert_eq!(layout.batch.group_offsets(), [0, 2, 7, 11]);
        assert_eq!((layout.first_sequence, layout.most_sequences), (3, 5));
        assert!(layout.is_of(&own) && !layout.is_of(&own.clone().with_open_ends(true, false)));
    }
}
