//! A step's rewards, status word and results in one block: one copy brings the rewards and clears the word, another reads word
//! and results.

use crate::backend::{ReadResults, RowSummary, ScoredLogProbs, StageResults, StepBuffers};
use crate::cuda::buffer::Block;
use crate::cuda::memory::{Address, View};
use crate::cuda::status_word::STATUS_BYTES;
use crate::cuda::{Cuda, Device, DeviceRewards, RewardBuffers, Rewards, Status};
use crate::data::batch::Batch;
use crate::element::Number;
use crate::error::{Error, Result};
use crate::stage::objective::GroupStatistics;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Where the parts of a block begin, in bytes. All but the last are whole f64.
struct Layout {
    proposal_offsets: usize,
    values: usize,
    status: usize,
    group_losses: usize,
    log_ratios: usize,
    statistics: usize,
    entropy_sums: usize,
    scored_rows: usize,
    end: usize,
}

impl Layout {
    /// None where it is longer than any memory.
    fn new(sequences: usize, groups: usize, entropy: bool) -> Option<Self> {
        let of_sequences = sequences.checked_mul(size_of::<f64>())?;
        let of_groups = groups.checked_mul(size_of::<f64>())?;
        let values = of_sequences;
        let status = values.checked_add(of_sequences)?;
        let group_losses = status.checked_add(STATUS_BYTES)?;
        let log_ratios = group_losses.checked_add(of_groups)?;
        let statistics = log_ratios.checked_add(of_sequences)?;
        let entropy_sums = statistics.checked_add(groups.checked_mul(size_of::<GroupStatistics>())?)?;
        let scored_rows = entropy_sums.checked_add(if entropy { of_sequences } else { 0 })?;
        let end = scored_rows.checked_add(sequences.checked_mul(size_of::<i32>())?)?;
        Some(Self {
            proposal_offsets: 0,
            values,
            status,
            group_losses,
            log_ratios,
            statistics,
            entropy_sums,
            scored_rows,
            end,
        })
    }
}

/// [`Backend::reserve_step`](crate::Backend::reserve_step). The block is kept where it is long enough; the status word, wherever it goes, is cleared by the
/// step that begins.
pub(super) fn reserve(
    cuda: &Cuda,
    buffers: &mut StepBuffers<Cuda>,
    sequences: usize,
    groups: usize,
    entropy: bool,
) -> Result<()> {
    let layout = Layout::new(sequences, groups, entropy).ok_or(Error::Memory { elements: sequences.max(groups) })?;
    let fits = |block: &&Arc<Block>| block.is_of(&cuda.stream) && block.bytes() >= layout.end;
    let block = &match buffers.scored_rows.block().filter(fits) {
        Some(block) => block.clone(),
        None => Block::new(&cuda.stream, layout.end)?,
    };
    buffers.rewards.proposal_offsets.become_part(block, layout.proposal_offsets, sequences);
    buffers.rewards.values.become_part(block, layout.values, sequences);
    cuda.status.place(block, block.range().start + layout.status as Address);
    buffers.group_losses.become_part(block, layout.group_losses, groups);
    buffers.log_ratios.become_part(block, layout.log_ratios, sequences);
    buffers.statistics.become_part(block, layout.statistics, groups);
    buffers.entropy_sums.become_part(block, layout.entropy_sums, if entropy { sequences } else { 0 });
    buffers.scored_rows.become_part(block, layout.scored_rows, sequences);
    Ok(())
}

/// [`Backend::begin_step`](crate::Backend::begin_step).
pub(super) fn begin<'a>(
    cuda: &Cuda,
    rewards: &'a Rewards<'_>,
    buffers: &'a mut RewardBuffers,
) -> Result<DeviceRewards<'a>> {
    if let Rewards::Host(of_host) = rewards {
        let status = cuda.status.address(&cuda.stream)?;
        if buffers.bring_with_status(of_host, &cuda.stream, status)? {
            return Ok(buffers.view(of_host));
        }
    }
    cuda.status.clear(&cuda.stream)?;
    rewards.on_device(&cuda.stream, buffers)
}

/// [`Backend::read_results`](crate::Backend::read_results).
pub(super) fn read<'a>(
    cuda: &Cuda,
    rows: &ScoredLogProbs<'_, Device>,
    results: &StageResults<'_, Device>,
    batch: &Batch,
) -> Result<ReadResults<'a>> {
    rows.check(cuda, batch)?;
    results.check(cuda, batch)?;
    let stream = &cuda.stream;
    let status = cuda.status.address(stream)?;
    let ((scored_rows, _read_rows), (log_ratios, _read_ratios)) =
        (bytes_of(&rows.scored_rows, cuda), bytes_of(&results.log_ratios, cuda));
    let ((group_losses, _read_losses), (statistics, _read_statistics)) =
        (bytes_of(&results.group_losses, cuda), bytes_of(&results.statistics, cuda));
    let (entropy_sums, _read_sums) = rows.entropy_sums.as_ref().map(|sums| bytes_of(sums, cuda)).unzip();
    let ranges = [
        status..status + size_of::<Status>() as Address,
        scored_rows,
        entropy_sums.unwrap_or_default(),
        log_ratios,
        group_losses,
        statistics,
    ];
    cuda.status.read_with(stream, &ranges, |parts| {
        let status: Status = bytemuck::pod_read_unaligned(parts[0]);
        check_status(&status, rows.vocab)?;
        Ok(ReadResults {
            rows: counted(&status)
                .with_sequences(&numbers(parts[1]), rows.entropy_sums.as_ref().map(|_| numbers(parts[2])).as_deref()),
            log_ratios: Cow::Owned(numbers(parts[3])),
            group_losses: Cow::Owned(numbers(parts[4])),
            statistics: Cow::Owned(numbers(parts[5])),
        })
    })?
}

/// Where the numbers of a view lie, and what keeps them in order.
fn bytes_of<'v, T: Number>(view: &'v View<'_, T>, cuda: &'v Cuda) -> (Range<Address>, crate::cuda::memory::Held<'v>) {
    let (address, held) = view.address(&cuda.stream);
    (address..address + (view.len() * size_of::<T>()) as Address, held)
}

fn numbers<T: Number>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// What the device has counted in the rows.
pub(super) fn counted(status: &Status) -> RowSummary {
    RowSummary {
        non_finite_rows: status.non_finite_rows(),
        first_non_finite_row: status.first_non_finite_row(),
        impossible_targets: status.minus_infinite_targets(),
        ..RowSummary::default()
    }
}

/// Inputs that were on the device, and that the host would have refused.
pub(super) fn check_status(status: &Status, vocab: usize) -> Result<()> {
    if let Some(row) = status.first_bad_target_row() {
        return Err(Error::DeviceTarget { row, count: status.bad_targets(), vocab });
    }
    if status.unplaced_rows() > 0 {
        return Err(Error::ScoredRows { beyond: status.unplaced_rows() });
    }
    if let Some(sequence) = status.first_non_finite_reference_sequence() {
        return Err(Error::NotFinite { what: "reference log-prob", sequence, value: f64::NAN });
    }
    if let Some(sequence) = status.first_bad_reward_sequence() {
        return Err(Error::NotFinite { what: "reward", sequence, value: f64::NAN });
    }
    Ok(())
}
