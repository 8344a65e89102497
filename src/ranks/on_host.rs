//! What backends of the host do with what ranks exchange: nothing but copying and adding, so that there is one of it.

use crate::backend::Host;
use crate::data::memory::Place;
use crate::error::{Result, check_length};
use crate::host::{Rewards, Targets};
use crate::options::LogRatio;
use crate::report::RowSummary;
use crate::stage::sequence_part::{
    CountPart, RewardsMut, RowsOfRanks, SequencePart, Sequences, SequencesMut, check_parts, check_rewards,
};

/// Nobody.
const NONE: u64 = u64::MAX;

pub(crate) fn add_ranks(numbers: &[f32], sums: &mut [f32]) -> Result<()> {
    let count = sums.len();
    check_length("numbers of ranks", numbers.len(), numbers.len().checked_div(count).unwrap_or(0) * count)?;
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum = numbers.iter().skip(index).step_by(count).map(|number| f64::from(*number)).sum::<f64>() as f32;
    }
    Ok(())
}

pub(crate) fn write_sequence_parts<P: Place<Memory = Host>>(
    place: &P,
    own: &Sequences<'_, Host>,
    rewards: Option<&Rewards<'_>>,
    first: usize,
    parts: &mut [SequencePart],
) -> Result<()> {
    let sequences = own.check(place)?;
    check_rewards(place, rewards, sequences)?;
    check_parts(place, &parts, sequences)?;
    let (of_sequences, rest) = parts.split_at_mut(sequences);
    for (sequence, part) in of_sequences.iter_mut().enumerate() {
        *part = SequencePart {
            index: (first + sequence) as i64,
            scored_rows: i64::from(own.scored_rows[sequence]),
            log_ratio: own.log_ratios[sequence],
            log_prob_sum: own.log_prob_sums[sequence],
            entropy_sum: own.entropy_sums.map_or(0.0, |sums| sums[sequence]),
            reward: rewards.map_or(0.0, |rewards| rewards.value(sequence)),
            proposal_offset: rewards.map_or(0.0, |rewards| rewards.offset(sequence)),
            reserved: 0.0,
        };
    }
    rest.fill(SequencePart { index: -1, ..SequencePart::default() });
    Ok(())
}

pub(crate) fn write_count_part(
    log_probs: &[f32],
    targets: Targets<'_>,
    first: usize,
    part: &mut [SequencePart],
) -> Result<()> {
    check_length("parts of counts", part.len(), 1)?;
    check_length("targets", targets.len(), log_probs.len())?;
    let found = RowSummary::of_rows(log_probs, &targets);
    let first = found.first_non_finite_row.map_or(NONE, |row| (first + row) as u64);
    let counts = [found.non_finite_rows as u64, first, found.impossible_targets as u64, 0, 0, 0, 0];
    part[0] = bytemuck::cast(CountPart { index: -1, counts: bytemuck::cast(counts) });
    Ok(())
}

pub(crate) fn counted(part: &CountPart) -> RowSummary {
    let [non_finite, first, impossible, ..]: [u64; 7] = bytemuck::cast(part.counts);
    RowSummary {
        non_finite_rows: non_finite as usize,
        first_non_finite_row: (first != NONE).then_some(first as usize),
        impossible_targets: impossible as usize,
        ..RowSummary::default()
    }
}

pub(crate) fn add_sequences<P: Place<Memory = Host>>(
    place: &P,
    parts: &[SequencePart],
    rows: &RowsOfRanks<'_, Host>,
    mut out: SequencesMut<'_, Host>,
) -> Result<()> {
    let sequences = out.check(place)?;
    rows.check(place, &parts, sequences)?;
    for sequence in 0..sequences {
        let mut sum = SequencePart::default();
        for part in parts.iter().skip(sequence).step_by(sequences + 1) {
            sum.scored_rows += part.scored_rows;
            sum.log_ratio += part.log_ratio;
            sum.log_prob_sum += part.log_prob_sum;
            sum.entropy_sum += part.entropy_sum;
        }
        if let Some(reference) = rows.reference
            && sum.scored_rows > 0
        {
            sum.log_ratio -= reference[sequence];
        }
        if rows.log_ratio == LogRatio::Mean {
            sum.log_ratio /= sum.scored_rows.max(1) as f64;
        }
        write(&mut out, sequence, &sum);
    }
    Ok(())
}

pub(crate) fn place_sequences<P: Place<Memory = Host>>(
    place: &P,
    parts: &[SequencePart],
    mut out: SequencesMut<'_, Host>,
    rewards: RewardsMut<'_, Host>,
) -> Result<()> {
    let sequences = out.check(place)?;
    rewards.check(place, sequences)?;
    let RewardsMut { values, mut proposal_offsets } = rewards;
    for part in parts {
        let Some(sequence) = usize::try_from(part.index).ok().filter(|sequence| *sequence < sequences) else {
            continue;
        };
        write(&mut out, sequence, part);
        values[sequence] = part.reward;
        if let Some(offsets) = proposal_offsets.as_deref_mut() {
            offsets[sequence] = part.proposal_offset;
        }
    }
    Ok(())
}

fn write(out: &mut SequencesMut<'_, Host>, sequence: usize, part: &SequencePart) {
    out.log_ratios[sequence] = part.log_ratio;
    out.log_prob_sums[sequence] = part.log_prob_sum;
    out.scored_rows[sequence] = part.scored_rows as i32;
    if let Some(sums) = out.entropy_sums.as_deref_mut() {
        sums[sequence] = part.entropy_sum;
    }
}

/// [`Ranked`](crate::ranks::Ranked) for a backend of the host.
macro_rules! host_ranked {
    ($backend:ty) => {
        impl crate::ranks::Ranked for $backend {
            fn put<T: Number>(&self, from: &&[T], to: &mut [T]) -> Result<()> {
                crate::error::check_length("numbers to copy", from.len(), to.len())?;
                to.copy_from_slice(from);
                Ok(())
            }

            fn clear_words(&self, words: &mut [u32]) -> Result<()> {
                words.fill(0);
                Ok(())
            }

            fn add_ranks(&self, numbers: &&[f32], sums: &mut [f32]) -> Result<()> {
                crate::ranks::on_host::add_ranks(numbers, sums)
            }

            fn write_sequence_parts(
                &self,
                sequences: &crate::backend::Sequences<'_, Host>,
                rewards: Option<&Rewards<'_>>,
                first: usize,
                parts: &mut [crate::backend::SequencePart],
            ) -> Result<()> {
                crate::ranks::on_host::write_sequence_parts(self, sequences, rewards, first, parts)
            }

            fn write_count_part(
                &self,
                log_probs: &&[f32],
                targets: &Targets<'_>,
                first: usize,
                part: &mut [crate::backend::SequencePart],
            ) -> Result<()> {
                crate::ranks::on_host::write_count_part(log_probs, *targets, first, part)
            }

            fn counted(part: &crate::backend::CountPart, _: usize) -> Result<crate::backend::RowSummary> {
                Ok(crate::ranks::on_host::counted(part))
            }

            fn check_counts(&self, _: usize) -> Result<()> {
                Ok(())
            }

            fn add_sequences(
                &self,
                parts: &&[crate::backend::SequencePart],
                rows: &crate::backend::RowsOfRanks<'_, Host>,
                sequences: crate::backend::SequencesMut<'_, Host>,
            ) -> Result<()> {
                crate::ranks::on_host::add_sequences(self, parts, rows, sequences)
            }

            fn place_sequences(
                &self,
                parts: &&[crate::backend::SequencePart],
                sequences: crate::backend::SequencesMut<'_, Host>,
                rewards: crate::backend::RewardsMut<'_, Host>,
            ) -> Result<()> {
                crate::ranks::on_host::place_sequences(self, parts, sequences, rewards)
            }
        }
    };
}

pub(crate) use host_ranked;
