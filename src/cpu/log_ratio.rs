//! Sequence log-ratios on the CPU: policy minus reference per token first, then the sum, in f64 and in row order.
//!
//! The sum of the policy's log-probs less the sum of the reference's would be the difference of two numbers near −5000
//! whose f32 neighbours are 4.9e-4 apart; near the optimum the loss is made of less than that.

use crate::cpu::Cpu;
use crate::data::batch::Batch;
use crate::data::targets::narrowed;
use crate::error::Result;
use crate::host::{LogRatioOutputs, Reference, RowLogProbs};
use crate::options::LogRatio;
use crate::stage::log_ratio::{check_finite_reference, check_reference, check_rows};

/// [`Backend::log_ratios`](crate::Backend::log_ratios).
pub(super) fn log_ratios(
    cpu: Cpu,
    inputs: &RowLogProbs<'_>,
    reference: &Reference<'_>,
    batch: &Batch,
    log_ratio: LogRatio,
    mut outputs: LogRatioOutputs<'_>,
) -> Result<()> {
    let RowLogProbs { log_probs, entropies, targets } = *inputs;
    check_rows(batch, log_probs.len())?;
    inputs.check(&cpu, batch.rows())?;
    outputs.check(&cpu, batch, inputs)?;
    check_reference(&cpu, reference, batch)?;
    check_finite_reference(reference, &targets, batch)?;
    for (sequence, rows) in batch.sequence_ranges().enumerate() {
        let (mut sum, mut log_prob_sum, mut entropy_sum, mut count) = (0.0, 0.0, 0.0, 0usize);
        outputs.row_sequences[rows.clone()].fill(sequence as i32);
        rows.clone().for_each(|row| outputs.row_targets[row] = narrowed(targets.id(row)));
        for row in rows.filter(|row| targets.is_scored(*row)) {
            let reference = match reference {
                Reference::PerToken(reference) => f64::from(reference[row]),
                Reference::PerSequence(_) | Reference::None => 0.0,
            };
            sum += f64::from(log_probs[row]) - reference;
            log_prob_sum += f64::from(log_probs[row]);
            entropy_sum += entropies.map_or(0.0, |entropies| f64::from(entropies[row]));
            count += 1;
        }
        if let Reference::PerSequence(reference) = reference
            && count > 0
        {
            sum -= reference[sequence];
        }
        outputs.log_ratios[sequence] = match log_ratio {
            LogRatio::Sum => sum,
            LogRatio::Mean => sum / count.max(1) as f64,
        };
        outputs.log_prob_sums[sequence] = log_prob_sum;
        outputs.scored_rows[sequence] = count as i32;
        if let Some(sums) = &mut outputs.entropy_sums {
            sums[sequence] = entropy_sum;
        }
    }
    Ok(())
}
