//! Sequences of several ranks: what of them is exchanged in a step of a loss, and the buffers for it.

use crate::backend::{Backend, Rewards};
use crate::data::memory::{Memory, View, ViewMut};
use crate::data::rewards::Values;
use crate::data::targets::Targets;
use crate::error::{Error, Result};
use crate::options::LogRatio;
use crate::ranks::Communicator;
use crate::ranks::mesh::{Layout, Ranks};
use crate::report::{ReadResults, RowSummary, StageResults};
use crate::stage::sequence_part::{RewardsMut, RowsOfRanks, SequencePart, Sequences, SequencesMut};

/// Buffers of a loss that is divided among ranks; empty without any.
#[derive(Debug)]
pub(crate) struct RankBuffers<B: Backend> {
    /// `[P, N, k]` of the vocabulary's ranks.
    pub(crate) partial_rows: B::Buffer<B::PartialRow>,
    /// `[M]`: what belongs to this rank's unit sums.
    pub(crate) rests: B::Buffer<B::PartialRow>,
    /// This rank's sequences.
    pub(crate) own: OwnSequences<B>,
    /// `[P, S + 1]` of the rows' ranks.
    of_rows: B::Buffer<SequencePart>,
    /// `[P, most S + counts]` of the groups' ranks.
    of_groups: B::Buffer<SequencePart>,
    rewards: B::Buffer<f64>,
    proposal_offsets: B::Buffer<f64>,
    /// The groups of all ranks.
    pub(crate) batch: B::Batch,
}

/// Of one rank, `[S]` each.
#[derive(Debug)]
pub(crate) struct OwnSequences<B: Backend> {
    pub(crate) log_ratios: B::Buffer<f64>,
    pub(crate) log_prob_sums: B::Buffer<f64>,
    pub(crate) entropy_sums: B::Buffer<f64>,
    pub(crate) scored_rows: B::Buffer<i32>,
}

impl<B: Backend> Default for RankBuffers<B> {
    fn default() -> Self {
        Self {
            partial_rows: B::Buffer::default(),
            rests: B::Buffer::default(),
            own: OwnSequences {
                log_ratios: B::Buffer::default(),
                log_prob_sums: B::Buffer::default(),
                entropy_sums: B::Buffer::default(),
                scored_rows: B::Buffer::default(),
            },
            of_rows: B::Buffer::default(),
            of_groups: B::Buffer::default(),
            rewards: B::Buffer::default(),
            proposal_offsets: B::Buffer::default(),
            batch: B::Batch::default(),
        }
    }
}

impl<B: Backend> OwnSequences<B> {
    /// To write S sequences.
    fn views_mut<'a>(&'a mut self, backend: &B, sequences: usize, entropy: bool) -> SequencesMut<'a, B::Memory> {
        SequencesMut {
            log_ratios: backend.view_mut(&mut self.log_ratios, sequences),
            log_prob_sums: backend.view_mut(&mut self.log_prob_sums, sequences),
            entropy_sums: entropy.then(|| backend.view_mut(&mut self.entropy_sums, sequences)),
            scored_rows: backend.view_mut(&mut self.scored_rows, sequences),
        }
    }
}

/// A step's sequences while they are exchanged.
pub(crate) struct Exchange<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) ranks: &'a Ranks<B>,
    pub(crate) layout: &'a Layout,
    /// Of this rank.
    pub(crate) sequences: usize,
    pub(crate) entropy: bool,
    pub(crate) log_ratio: LogRatio,
}

impl<B: Backend> RankBuffers<B> {
    /// Makes room for a step.
    pub(crate) fn reserve(&mut self, step: &Exchange<'_, B>) -> Result<()> {
        let Exchange { backend, ranks, layout, sequences, entropy, .. } = *step;
        if !ranks.divide_sequences() {
            return Ok(());
        }
        backend.place_batch(&layout.batch, &mut self.batch)?;
        let OwnSequences { log_ratios, log_prob_sums, entropy_sums, scored_rows } = &mut self.own;
        backend.reserve(log_ratios, sequences)?;
        backend.reserve(log_prob_sums, sequences)?;
        backend.reserve(entropy_sums, if entropy { sequences } else { 0 })?;
        backend.reserve(scored_rows, sequences)?;
        if let Some(line) = &ranks.rows {
            backend.reserve(&mut self.of_rows, line.ranks() * (sequences + 1))?;
        }
        if let Some(line) = &ranks.groups {
            backend.reserve(&mut self.of_groups, line.ranks() * step.parts_of_rank())?;
            backend.reserve(&mut self.rewards, layout.batch.sequences())?;
            backend.reserve(&mut self.proposal_offsets, layout.batch.sequences())?;
        }
        Ok(())
    }

    /// The rewards of all ranks' sequences; `own` where groups lie on one rank.
    pub(crate) fn rewards<'a>(&'a self, step: &Exchange<'_, B>, own: Rewards<'a, B::Memory>) -> Rewards<'a, B::Memory> {
        if step.ranks.groups.is_none() {
            return own;
        }
        let (backend, sequences) = (step.backend, step.layout.batch.sequences());
        let offsets = own.proposal.map(|_| backend.view(&self.proposal_offsets, sequences));
        Rewards { values: Values::F64(backend.view(&self.rewards, sequences)), proposal: offsets }
    }

    /// The parts that say what each rank has counted in its rows, of all ranks.
    pub(crate) fn counts(&self, ranks: &Ranks<B>, layout: &Layout, backend: &B) -> Result<Vec<SequencePart>> {
        let of_rows = ranks.rows.as_ref().map_or(1, |line| line.ranks());
        let (parts, stride, lines) = match (&ranks.groups, &ranks.rows) {
            (Some(line), _) => (&self.of_groups, layout.most_sequences + of_rows, line.ranks()),
            (None, _) => (&self.of_rows, layout.batch.sequences() + 1, of_rows),
        };
        let all = backend.read(&backend.view(parts, stride * lines))?;
        let per_line = if ranks.groups.is_some() { of_rows } else { 1 };
        Ok(all.chunks_exact(stride).flat_map(|parts| &parts[stride - per_line..]).copied().collect())
    }
}

impl<B: Backend> Exchange<'_, B> {
    /// Ranks among which rows are divided.
    fn ranks_of_rows(&self) -> usize {
        self.ranks.rows.as_ref().map_or(1, |line| line.ranks())
    }

    /// Parts that a rank brings along a line of groups: its sequences, and what the ranks of its rows have counted.
    fn parts_of_rank(&self) -> usize {
        self.layout.most_sequences + self.ranks_of_rows()
    }

    /// This rank's sequences, in `buffers.own` → those of all ranks, in `all`. Its rows' log-probs and targets. `reference`: of whole
    /// sequences, where their rows are divided.
    pub(crate) fn run(
        &self,
        buffers: &mut RankBuffers<B>,
        (log_probs, targets): (<B::Memory as Memory>::View<'_, f32>, Targets<'_, B::Memory>),
        reference: Option<<B::Memory as Memory>::View<'_, f64>>,
        rewards: &Rewards<'_, B::Memory>,
        mut all: SequencesMut<'_, B::Memory>,
    ) -> Result<()> {
        let Self { backend, ranks, layout, sequences, entropy, .. } = *self;
        if let Some(line) = &ranks.rows {
            let of_rank = sequences + 1;
            let mut parts = backend.view_mut(&mut buffers.of_rows, line.ranks() * of_rank);
            let mut own = part_of_rank::<B>(&mut parts, line.as_ref(), of_rank)?;
            let sequences_of_rank = views(backend, &buffers.own, sequences, entropy);
            backend.write_sequence_parts(&sequences_of_rank, None, 0, reborrow::<B>(&mut own)?)?;
            drop(sequences_of_rank);
            let count = B::Memory::part_mut(&mut own, sequences..of_rank).ok_or_else(no_part)?;
            backend.write_count_part(&log_probs, &targets, layout.first_row, count)?;
            drop(own);
            line.all_gather(backend, B::Memory::words_mut(&mut parts))?;
            drop(parts);
            let parts = backend.view(&buffers.of_rows, line.ranks() * of_rank);
            let of_rows = RowsOfRanks { ranks: line.ranks(), log_ratio: self.log_ratio, reference };
            if ranks.groups.is_none() {
                return backend.add_sequences(&parts, &of_rows, all);
            }
            backend.add_sequences(&parts, &of_rows, buffers.own.views_mut(backend, sequences, entropy))?;
        }
        let Some(line) = &ranks.groups else { return Ok(()) };
        let (of_rank, most) = (self.parts_of_rank(), layout.most_sequences);
        let mut parts = backend.view_mut(&mut buffers.of_groups, line.ranks() * of_rank);
        let mut own = part_of_rank::<B>(&mut parts, line.as_ref(), of_rank)?;
        let sequences_of_rank = views(backend, &buffers.own, sequences, entropy);
        let of_sequences = B::Memory::part_mut(&mut own, 0..most).ok_or_else(no_part)?;
        backend.write_sequence_parts(&sequences_of_rank, Some(rewards), layout.first_sequence, of_sequences)?;
        if ranks.rows.is_some() {
            for rank in 0..self.ranks_of_rows() {
                let at = rank * (sequences + 1) + sequences;
                let counted = backend.view(&buffers.of_rows, at + 1);
                let counted = B::Memory::part(&counted, at..at + 1).ok_or_else(no_part)?;
                let count = B::Memory::part_mut(&mut own, most + rank..most + rank + 1).ok_or_else(no_part)?;
                backend.put(&counted, count)?;
            }
        } else {
            let count = B::Memory::part_mut(&mut own, most..of_rank).ok_or_else(no_part)?;
            backend.write_count_part(&log_probs, &targets, layout.first_row, count)?;
        }
        drop(own);
        line.all_gather(backend, B::Memory::words_mut(&mut parts))?;
        drop(parts);
        let count = layout.batch.sequences();
        let parts = backend.view(&buffers.of_groups, line.ranks() * of_rank);
        let of_all = RewardsMut {
            values: backend.view_mut(&mut buffers.rewards, count),
            proposal_offsets: rewards
                .proposal
                .is_some()
                .then(|| backend.view_mut(&mut buffers.proposal_offsets, count)),
        };
        if !entropy {
            all.entropy_sums = None;
        }
        backend.place_sequences(&parts, all, of_all)
    }
}

fn views<'a, B: Backend>(
    backend: &B,
    own: &'a OwnSequences<B>,
    sequences: usize,
    entropy: bool,
) -> Sequences<'a, B::Memory> {
    Sequences {
        log_ratios: backend.view(&own.log_ratios, sequences),
        log_prob_sums: backend.view(&own.log_prob_sums, sequences),
        entropy_sums: entropy.then(|| backend.view(&own.entropy_sums, sequences)),
        scored_rows: backend.view(&own.scored_rows, sequences),
    }
}

/// A rank's parts among those of all.
fn part_of_rank<'a, B: Backend>(
    parts: &'a mut ViewMut<'_, B, SequencePart>,
    line: &dyn Communicator<B>,
    of_rank: usize,
) -> Result<ViewMut<'a, B, SequencePart>> {
    let rank = line.rank();
    let own = B::Memory::part_mut(parts, rank * of_rank..(rank + 1) * of_rank);
    own.ok_or(Error::Parameter { name: "rank", given: rank as f64, expected: "below the number of ranks" })
}

/// The same, borrowed for less long.
fn reborrow<'a, B: Backend>(parts: &'a mut ViewMut<'_, B, SequencePart>) -> Result<ViewMut<'a, B, SequencePart>> {
    let length = B::Memory::length_mut(parts);
    B::Memory::part_mut(parts, 0..length).ok_or_else(no_part)
}

/// A buffer that a backend's `reserve` has made too short.
fn no_part() -> Error {
    Error::Memory { elements: 0 }
}

/// What a report is made of, where sequences are divided among ranks: `counts` are what each of them has counted in its rows, in the
/// order of the ranks, and the rest is of all sequences.
pub(crate) fn read_results_of_ranks<'a, B: Backend>(
    backend: &B,
    ranks: &Ranks<B>,
    counts: &[SequencePart],
    vocab: usize,
    results: &StageResults<'a, B::Memory>,
    scored_rows: &View<'a, B, i32>,
    entropy_sums: Option<View<'a, B, f64>>,
) -> Result<ReadResults<'a>> {
    let of_rows = ranks.rows.as_ref().map_or((0, 1), |line| (line.rank(), line.ranks()));
    let own = ranks.groups.as_ref().map_or(0, |line| line.rank()) * of_rows.1 + of_rows.0;
    let mut rows = RowSummary::default();
    for (rank, part) in counts.iter().enumerate() {
        let found = match B::counted(&bytemuck::cast(*part), vocab) {
            Err(error) if rank != own => return Err(Error::Rank { rank, reason: error.to_string() }),
            found => found?,
        };
        rows.non_finite_rows += found.non_finite_rows;
        rows.impossible_targets += found.impossible_targets;
        rows.first_non_finite_row = rows.first_non_finite_row.or(found.first_non_finite_row);
    }
    backend.check_counts(vocab)?;
    let scored = backend.read(scored_rows)?;
    rows.scored_rows = scored.iter().map(|rows| usize::try_from(*rows).unwrap_or(0)).sum();
    rows.empty_sequences = scored.iter().filter(|rows| **rows == 0).count();
    if let Some(sums) = entropy_sums.filter(|_| rows.scored_rows > 0) {
        rows.entropy = Some(backend.read(&sums)?.iter().sum());
    }
    Ok(ReadResults {
        rows,
        log_ratios: backend.read(&results.log_ratios)?,
        group_losses: backend.read(&results.group_losses)?,
        statistics: backend.read(&results.statistics)?,
    })
}
