//! Alternatives to what `tuning.rs` chooses, for the bench that times them (`benches/tuning.rs`). With the feature `tuning` only,
//! and no part of what this crate promises: none of it changes a bit of the results.

use crate::cuda::linear::workspace::LinearChunks;
use crate::cuda::row_sharing::RowSharing;
use crate::cuda::{Cuda, tuning};
use crate::element::Dtype;

impl Cuda {
    /// A clone whose token log-probs are launched so, by the kernels of `file`, one of [`Cuda::token_log_prob_files`]. The table is
    /// never freed.
    #[must_use]
    pub fn with_row_sharing(&self, file: &'static str, sharing: RowSharing) -> Self {
        let otherwise = tuning::TokenLogProb { sharing, ..tuning::OF_LAUNCH_BOUNDS };
        let table = Box::leak(Box::new(tuning::Table { file, rows: &[], otherwise }));
        Self { token_log_prob_tuning: table, ..self.clone() }
    }

    /// What the table has for this device: the file and the rule.
    pub fn row_sharing(&self, dtype: Dtype, vocab: usize) -> (&'static str, RowSharing) {
        let key = tuning::Key { dtype, vocab, capability: self.capability };
        let (file, entry) = self.token_log_prob_tuning.choose(key, |file| self.kernels.has(file));
        (file, entry.sharing)
    }

    /// The files whose kernels this device can launch: the one for every architecture, and any of its own.
    pub fn token_log_prob_files(&self) -> Vec<&'static str> {
        let table = &tuning::TOKEN_LOG_PROB;
        let mut files = vec![table.file];
        for row in table.rows {
            if self.kernels.has(row.file) && !files.contains(&row.file) {
                files.push(row.file);
            }
        }
        files
    }

    /// Multiprocessors of the device, and how many blocks of the kernel without softcap and entropy each holds.
    pub fn resident_blocks(&self) -> (usize, usize) {
        (self.multiprocessors, tuning::OF_LAUNCH_BOUNDS.plain_blocks)
    }
}

/// Columns of a slice of a row.
pub const SLICE: usize = tuning::SLICE;

impl LinearChunks {
    /// In place of `LINEAR_ROWS`, at least 1.
    #[must_use]
    pub fn with_rows(mut self, rows: usize) -> Self {
        self.rows = rows.max(1);
        self
    }

    /// In place of `LINEAR_INVARIANT_ROWS`, at least 1.
    #[must_use]
    pub fn with_invariant_rows(mut self, rows: usize) -> Self {
        self.invariant_rows = rows.max(1);
        self
    }

    /// `LINEAR_LOGITS`, `LINEAR_ROWS`, `LINEAR_ROW_BYTES` and `LINEAR_INVARIANT_ROWS`, as they are here.
    pub fn constants(&self) -> [usize; 4] {
        [self.logits, self.rows, self.row_bytes, self.invariant_rows]
    }
}
