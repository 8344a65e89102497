//! The contract of the log-ratio stage: what it refuses.

use crate::data::batch::Batch;
use crate::data::reference::Reference;
use crate::error::{Error, Result, check_length};
use crate::stage::objective::check_finite;

/// That the batch divides exactly the rows that there are.
pub(crate) fn check_rows(batch: &Batch, rows: usize) -> Result<()> {
    if batch.rows() == rows {
        Ok(())
    } else {
        Err(Error::OffsetsEnd { what: "sequence offsets", last: batch.rows(), expected: rows })
    }
}

/// That the reference has the right length and is finite wherever a row is scored. `scored(row)` tells masked rows.
pub(crate) fn check_reference(reference: Reference<'_>, batch: &Batch, scored: impl Fn(usize) -> bool) -> Result<()> {
    match reference {
        Reference::PerToken(log_probs) => {
            check_length("reference log-probs per token", log_probs.len(), batch.rows())?;
            for (sequence, rows) in batch.sequence_ranges().enumerate() {
                for row in rows {
                    let value = f64::from(log_probs[row]);
                    if !value.is_finite() && scored(row) {
                        return Err(Error::NotFinite { what: "reference log-prob", sequence, value });
                    }
                }
            }
            Ok(())
        }
        Reference::PerSequence(log_probs) => {
            check_length("reference log-probs per sequence", log_probs.len(), batch.sequences())?;
            check_finite("reference log-prob", log_probs.iter().copied())
        }
        Reference::None => Ok(()),
    }
}
