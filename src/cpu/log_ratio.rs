//! Sequence log-ratios on the CPU: policy minus reference per token first, then the sum, in f64 and in row order.
//!
//! The sum of the policy's log-probs less the sum of the reference's would be the difference of two numbers near −5000
//! whose f32 neighbours are 4.9e-4 apart; near the optimum the loss is made of less than that.

use crate::cpu::Cpu;
use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::data::targets::TokenId;
use crate::error::{Result, check_length};
use crate::options::LogRatio;
use crate::stage::log_ratio::{check_reference, check_rows};

impl Cpu {
    /// Token log-probs `[N]`, the reference's, and which rows are scored (target id ≥ 0) → log-ratios `[S]`.
    ///
    /// A sequence without a scored row has log-ratio 0.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) or [`Error::OffsetsEnd`](crate::Error::OffsetsEnd) for buffers that do
    /// not fit the batch; [`Error::NotFinite`](crate::Error::NotFinite) for a reference log-prob that is not finite.
    pub fn log_ratios<I: TokenId>(
        &self,
        log_probs: &[f32],
        targets: &[I],
        reference: Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
        log_ratios: &mut [f64],
    ) -> Result<()> {
        let scored = |row: usize| targets[row].id() >= 0;
        check_rows(batch, log_probs.len())?;
        check_length("targets", targets.len(), batch.rows())?;
        check_length("log-ratios", log_ratios.len(), batch.sequences())?;
        check_reference(reference, batch, scored)?;
        for (sequence, rows) in batch.sequence_ranges().enumerate() {
            let (mut sum, mut count) = (0.0, 0usize);
            for row in rows.filter(|&row| scored(row)) {
                let reference = match reference {
                    Reference::PerToken(reference) => f64::from(reference[row]),
                    Reference::PerSequence(_) | Reference::None => 0.0,
                };
                sum += f64::from(log_probs[row]) - reference;
                count += 1;
            }
            if let Reference::PerSequence(reference) = reference
                && count > 0
            {
                sum -= reference[sequence];
            }
            log_ratios[sequence] = match log_ratio {
                LogRatio::Sum => sum,
                LogRatio::Mean => sum / count.max(1) as f64,
            };
        }
        Ok(())
    }
}
