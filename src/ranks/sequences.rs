//! Sequences of several ranks: what of them is exchanged in a step of a loss, and the buffers for it.

use crate::backend::{Backend, Rewards};
use crate::data::memory::{Memory, View};
use crate::data::rewards::Values;
use crate::data::targets::Targets;
use crate::error::{Error, Result};
use crate::options::LogRatio;
use crate::ranks::gather::{gather, part, whole};
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
        if entropy {
            backend.reserve(entropy_sums, sequences)?;
        }
        backend.reserve(scored_rows, sequences)?;
        if ranks.groups.is_some() {
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
        let of_rows = ranks.ranks_of_rows();
        // Of each line of groups those of all its ranks of rows; of a line of rows each rank's own.
        let (parts, sequences, counts, lines) = match &ranks.groups {
            Some(line) => (&self.of_groups, layout.most_sequences, of_rows, line.ranks()),
            None => (&self.of_rows, layout.batch.sequences(), 1, of_rows),
        };
        let stride = sequences + counts;
        let all = backend.read(&backend.view(parts, stride * lines))?;
        Ok(all.chunks_exact(stride).flat_map(|parts| &parts[sequences..]).copied().collect())
    }
}

impl<B: Backend> Exchange<'_, B> {
    /// This rank's sequences, in `buffers.own` → those of all ranks, in `all`. Its rows' log-probs and targets. `reference`: of whole
    /// sequences, where their rows are divided.
    pub(crate) fn run(
        &self,
        buffers: &mut RankBuffers<B>,
        (log_probs, targets): (<B::Memory as Memory>::View<'_, f32>, Targets<'_, B::Memory>),
        reference: Option<<B::Memory as Memory>::View<'_, f64>>,
        rewards: &Rewards<'_, B::Memory>,
        all: SequencesMut<'_, B::Memory>,
    ) -> Result<()> {
        let Self { backend, ranks, layout, sequences, entropy, .. } = *self;
        let RankBuffers { own: sequences_of_rank, of_rows, of_groups, rewards: of_all, proposal_offsets, .. } = buffers;
        if let Some(line) = &ranks.rows {
            let parts = gather(backend, line.as_ref(), of_rows, sequences + 1, |mut own| {
                let of_rank = views(backend, sequences_of_rank, sequences, entropy);
                backend.write_sequence_parts(&of_rank, None, 0, whole::<B, _>(&mut own)?)?;
                backend.write_count_part(&log_probs, &targets, layout.first_row, part::<B, _>(&mut own, sequences, 1)?)
            })?;
            let of_rows = RowsOfRanks { ranks: line.ranks(), log_ratio: self.log_ratio, reference };
            if ranks.groups.is_none() {
                return backend.add_sequences(&parts, &of_rows, all);
            }
            backend.add_sequences(&parts, &of_rows, sequences_of_rank.views_mut(backend, sequences, entropy))?;
        }
        let Some(line) = &ranks.groups else { return Ok(()) };
        let (most, counts) = (layout.most_sequences, ranks.ranks_of_rows());
        let parts = gather(backend, line.as_ref(), of_groups, most + counts, |mut own| {
            let of_rank = views(backend, sequences_of_rank, sequences, entropy);
            let of_sequences = part::<B, _>(&mut own, 0, most)?;
            backend.write_sequence_parts(&of_rank, Some(rewards), layout.first_sequence, of_sequences)?;
            if ranks.rows.is_none() {
                return backend.write_count_part(
                    &log_probs,
                    &targets,
                    layout.first_row,
                    part::<B, _>(&mut own, most, 1)?,
                );
            }
            let of_rows = backend.view(of_rows, counts * (sequences + 1));
            for rank in 0..counts {
                let at = rank * (sequences + 1) + sequences;
                let counted = B::Memory::part(&of_rows, at..at + 1).ok_or(Error::Memory { elements: at + 1 })?;
                backend.put(&counted, part::<B, _>(&mut own, most + rank, 1)?)?;
            }
            Ok(())
        })?;
        let count = layout.batch.sequences();
        let proposal_offsets = rewards.proposal.is_some().then(|| backend.view_mut(proposal_offsets, count));
        let of_all = RewardsMut { values: backend.view_mut(of_all, count), proposal_offsets };
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
    let entropy_sums = entropy_sums.map(|sums| backend.read(&sums)).transpose()?;
    let rows = rows.with_sequences(&backend.read(scored_rows)?, entropy_sums.as_deref());
    Ok(ReadResults {
        rows,
        log_ratios: backend.read(&results.log_ratios)?,
        group_losses: backend.read(&results.group_losses)?,
        statistics: backend.read(&results.statistics)?,
    })
}
