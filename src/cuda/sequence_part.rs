//! What ranks exchange of their sequences, over views of device memory.

use crate::backend::{CountPart, Ranked, RewardsMut, RowSummary, RowsOfRanks, SequencePart, Sequences, SequencesMut};
use crate::cuda::context::bind;
use crate::cuda::driver::called;
use crate::cuda::raw;
use crate::cuda::raw::sequence_part::{ADD, AddRanks, COUNT, PLACE, SequenceParts, WRITE, add_ranks, sequence_parts};
use crate::cuda::step::{check_status, counted};
use crate::cuda::token_log_prob::{optional, optional_mut};
use crate::cuda::{Cuda, Device, DeviceRewards, Status, Targets, View, ViewMut};
use crate::data::memory::{Place, check_view, check_view_mut};
use crate::element::Number;
use crate::error::{Error, Result};
use crate::options::LogRatio;
use crate::stage::log_ratio::check_targets;
use crate::stage::sequence_part::{check_parts, check_rewards};
use cudarc::driver::result;

impl Ranked for Cuda {
    fn put<T: Number>(&self, from: &View<'_, T>, mut to: ViewMut<'_, T>) -> Result<()> {
        check_view(self, "numbers to copy", from, to.len())?;
        self.check_place_mut("numbers to copy to", &to)?;
        if from.is_empty() {
            return Ok(());
        }
        let _current = crate::Backend::enter(self)?;
        bind(self.stream.context())?;
        let bytes = from.len() * size_of::<T>();
        let (source, _read) = from.address(&self.stream);
        let (target, _write) = to.address(&self.stream);
        // SAFETY: both hold as many numbers of this type, and one is borrowed mutably.
        let copied = unsafe { result::memcpy_dtod_async(target, source, bytes, self.stream.cu_stream()) };
        called("cuMemcpyDtoDAsync", copied)
    }

    fn clear_words(&self, mut words: ViewMut<'_, u32>) -> Result<()> {
        self.check_place_mut("words to clear", &words)?;
        if words.is_empty() {
            return Ok(());
        }
        let _current = crate::Backend::enter(self)?;
        bind(self.stream.context())?;
        let bytes = words.len() * size_of::<u32>();
        let (address, _write) = words.address(&self.stream);
        // SAFETY: the view is as long as that.
        let cleared = unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) };
        called("cuMemsetD8Async", cleared)
    }

    fn add_ranks(&self, numbers: &View<'_, f32>, mut sums: ViewMut<'_, f32>) -> Result<()> {
        let count = sums.len();
        let ranks = numbers.len().checked_div(count).unwrap_or(0);
        check_view(self, "numbers of ranks", numbers, ranks * count)?;
        check_view_mut(self, "sums over ranks", &sums, count)?;
        let Ok(ranks) = i32::try_from(ranks) else {
            return Err(Error::Parameter { name: "ranks", given: ranks as f64, expected: "at most 2^31 - 1" });
        };
        let _current = crate::Backend::enter(self)?;
        let (numbers, _read) = numbers.address(&self.stream);
        let (sums, _write) = sums.address(&self.stream);
        // SAFETY: the views are as long as was checked, borrowed until the launch is in the stream.
        unsafe { add_ranks(self, &AddRanks { numbers, sums, count: count as i64, ranks, reserved: 0 }) }
    }

    fn write_sequence_parts(
        &self,
        own: &Sequences<'_, Device>,
        rewards: Option<&DeviceRewards<'_>>,
        first: usize,
        mut parts: ViewMut<'_, SequencePart>,
    ) -> Result<()> {
        let sequences = own.check(self)?;
        check_rewards(self, rewards, sequences)?;
        check_parts(self, &parts, sequences)?;
        let (_current, stream, count) = (crate::Backend::enter(self)?, &self.stream, parts.len());
        let (log_ratios, _read_ratios) = own.log_ratios.address(stream);
        let (log_prob_sums, _read_log_probs) = own.log_prob_sums.address(stream);
        let (entropy_sums, _read_entropies) = optional(own.entropy_sums.as_ref(), stream);
        let (scored_rows, _read_scored) = own.scored_rows.address(stream);
        let rewards = rewards.map(|rewards| rewards.addresses(stream));
        let (rewards, proposal_offsets) =
            rewards.as_ref().map_or((raw::Rewards::F64(0), 0), |(rewards, offsets, _)| (*rewards, *offsets));
        let (rewards, reward_bytes) = rewards.parts();
        let (parts, _write) = parts.address(stream);
        let arguments = SequenceParts {
            parts,
            log_ratios,
            log_prob_sums,
            entropy_sums,
            scored_rows,
            rewards,
            proposal_offsets,
            count: count as i64,
            sequences: sequences as i64,
            first: first as i64,
            reward_bytes,
            ..SequenceParts::default()
        };
        // SAFETY: the views are as long as was checked, and borrowed until the launch is in the stream.
        unsafe { sequence_parts(self, WRITE, count, arguments) }
    }

    /// The status word, as the kernels of the rows have left it.
    fn write_count_part(
        &self,
        log_probs: &View<'_, f32>,
        targets: &Targets<'_>,
        first: usize,
        mut part: ViewMut<'_, SequencePart>,
    ) -> Result<()> {
        check_targets(self, targets, log_probs.len())?;
        check_view_mut(self, "parts of counts", &part, 1)?;
        let _current = crate::Backend::enter(self)?;
        let (parts, _write) = part.address(&self.stream);
        let arguments = SequenceParts { parts, first: first as i64, ..SequenceParts::default() };
        // SAFETY: as above.
        unsafe { sequence_parts(self, COUNT, 1, arguments) }
    }

    fn counted(part: &CountPart, vocab: usize) -> Result<RowSummary> {
        let status: Status = bytemuck::pod_read_unaligned(&bytemuck::bytes_of(&part.counts)[..size_of::<Status>()]);
        check_status(&status, vocab)?;
        Ok(counted(&status))
    }

    fn check_counts(&self, vocab: usize) -> Result<()> {
        check_status(&self.unchecked_status()?, vocab)
    }

    fn add_sequences(
        &self,
        parts: &View<'_, SequencePart>,
        rows: &RowsOfRanks<'_, Device>,
        mut out: SequencesMut<'_, Device>,
    ) -> Result<()> {
        let sequences = out.check(self)?;
        rows.check(self, parts, sequences)?;
        let Ok(ranks) = i32::try_from(rows.ranks) else {
            return Err(Error::Parameter { name: "ranks", given: rows.ranks as f64, expected: "at most 2^31 - 1" });
        };
        let (_current, stream) = (crate::Backend::enter(self)?, &self.stream);
        let (parts, _read) = parts.address(stream);
        let (references, _read_references) = optional(rows.reference.as_ref(), stream);
        let (log_ratios, _write_ratios) = out.log_ratios.address(stream);
        let (log_prob_sums, _write_log_probs) = out.log_prob_sums.address(stream);
        let (entropy_sums, _write_entropies) = optional_mut(out.entropy_sums.as_mut(), stream);
        let (scored_rows, _write_scored) = out.scored_rows.address(stream);
        let arguments = SequenceParts {
            parts,
            log_ratios,
            log_prob_sums,
            entropy_sums,
            scored_rows,
            references,
            sequences: sequences as i64,
            ranks,
            mean: i32::from(rows.log_ratio == LogRatio::Mean),
            ..SequenceParts::default()
        };
        // SAFETY: as above.
        unsafe { sequence_parts(self, ADD, sequences, arguments) }
    }

    fn place_sequences(
        &self,
        parts: &View<'_, SequencePart>,
        mut out: SequencesMut<'_, Device>,
        mut rewards: RewardsMut<'_, Device>,
    ) -> Result<()> {
        let (sequences, count) = (out.check(self)?, parts.len());
        rewards.check(self, sequences)?;
        self.check_place("parts of sequences", parts)?;
        let (_current, stream) = (crate::Backend::enter(self)?, &self.stream);
        let (parts, _read) = parts.address(stream);
        let (log_ratios, _write_ratios) = out.log_ratios.address(stream);
        let (log_prob_sums, _write_log_probs) = out.log_prob_sums.address(stream);
        let (entropy_sums, _write_entropies) = optional_mut(out.entropy_sums.as_mut(), stream);
        let (scored_rows, _write_scored) = out.scored_rows.address(stream);
        let (values, _write_values) = rewards.values.address(stream);
        let (proposal_offsets, _write_offsets) = optional_mut(rewards.proposal_offsets.as_mut(), stream);
        let arguments = SequenceParts {
            parts,
            log_ratios,
            log_prob_sums,
            entropy_sums,
            scored_rows,
            rewards: values,
            proposal_offsets,
            count: count as i64,
            sequences: sequences as i64,
            ..SequenceParts::default()
        };
        // SAFETY: as above.
        unsafe { sequence_parts(self, PLACE, count, arguments) }
    }
}

// SAFETY: numbers, nothing else, without gaps.
unsafe impl cudarc::driver::DeviceRepr for SequencePart {}
