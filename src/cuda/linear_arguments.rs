//! The arguments of the linear stage's kernels, member for member as in `kernels/`.

use super::arguments::passed_by_value;
use cudarc::driver::DeviceRepr;

/// `kernels/linear_rows.cu`: which rows are scored.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ScoredRows {
    pub(super) targets: u64,
    pub(super) rows: u64,
    pub(super) positions: u64,
    pub(super) log_probs: u64,
    pub(super) states: u64,
    pub(super) entropies: u64,
    pub(super) losses: u64,
    pub(super) status: u64,
    pub(super) count: i32,
    pub(super) capacity: i32,
    pub(super) target_bytes: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_rows.cu`: hidden states of the scored rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GatherRows {
    pub(super) hidden: u64,
    pub(super) gathered: u64,
    pub(super) rows: u64,
    pub(super) row_stride: i64,
    pub(super) gathered_stride: i64,
    pub(super) columns: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_rows.cu`: gradients of all rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ScatterRows {
    pub(super) sums: u64,
    pub(super) gradients: u64,
    pub(super) positions: u64,
    pub(super) sums_stride: i64,
    pub(super) row_stride: i64,
    pub(super) columns: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_rows.cu`: the bias in f32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct WidenBias {
    pub(super) bias: u64,
    pub(super) wide: u64,
    pub(super) columns: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_log_prob.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct LinearLogProb {
    pub(super) logits: u64,
    pub(super) bias: u64,
    pub(super) targets: u64,
    pub(super) rows: u64,
    pub(super) sums: u64,
    pub(super) log_probs: u64,
    pub(super) states: u64,
    pub(super) entropies: u64,
    pub(super) status: u64,
    pub(super) row_stride: i64,
    pub(super) begin: i32,
    pub(super) columns: i32,
    pub(super) vocab: i32,
    pub(super) target_bytes: i32,
    pub(super) scale: f32,
    pub(super) softcap: f32,
}

/// `kernels/linear_log_prob_backward.cu`: where the upstream gradient of a row comes from.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UpstreamOfRows {
    pub(super) row_gradients: u64,
    pub(super) entropy_gradients: u64,
    pub(super) entropies: u64,
    pub(super) row_sequences: u64,
    pub(super) sequence_weights: u64,
    pub(super) loss_scale: f64,
}

/// `kernels/linear_log_prob_backward.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct LinearLogProbBackward {
    pub(super) logits: u64,
    pub(super) bias: u64,
    pub(super) gradients: u64,
    pub(super) factor: u64,
    pub(super) targets: u64,
    pub(super) rows: u64,
    pub(super) states: u64,
    pub(super) upstream: UpstreamOfRows,
    pub(super) row_stride: i64,
    pub(super) gradient_row_stride: i64,
    pub(super) largest_upstream: f64,
    pub(super) begin: i32,
    pub(super) columns: i32,
    pub(super) vocab: i32,
    pub(super) target_bytes: i32,
    pub(super) scale: f32,
    pub(super) inverse_temperature: f32,
    pub(super) softcap: f32,
    pub(super) reserved: i32,
}

/// `kernels/linear_log_prob_backward.cu`: rows that are left out of gradients that are added to.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct WithholdRows {
    pub(super) rows: u64,
    pub(super) positions: u64,
    pub(super) gathered: u64,
    pub(super) states: u64,
    pub(super) upstream: UpstreamOfRows,
    pub(super) status: u64,
    pub(super) largest_upstream: f64,
    pub(super) gathered_words: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_log_prob_backward.cu`: the power of two for f16 gradients.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GradientScale {
    pub(super) rows: u64,
    pub(super) upstream: UpstreamOfRows,
    pub(super) factors: u64,
    pub(super) count: i32,
    pub(super) inverse_temperature: f32,
}

/// `kernels/linear_gradients.cu`: sums over rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct BiasGradient {
    pub(super) gradients: u64,
    pub(super) factor: u64,
    pub(super) sums: u64,
    pub(super) target: u64,
    pub(super) row_stride: i64,
    pub(super) rows: i32,
    pub(super) columns: i32,
    pub(super) is_first: i32,
    pub(super) is_last: i32,
    pub(super) accumulate: i32,
    pub(super) reserved: i32,
}

/// `kernels/linear_gradients.cu`: the rounding of a sum in f32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RoundWeight {
    pub(super) sums: u64,
    pub(super) gradients: u64,
    pub(super) sums_stride: i64,
    pub(super) row_stride: i64,
    pub(super) columns: i32,
    pub(super) accumulate: i32,
}

/// `kernels/row_loss.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RowLossArguments {
    pub(super) rows: u64,
    pub(super) log_probs: u64,
    pub(super) weights: u64,
    pub(super) advantages: u64,
    pub(super) old_log_probs: u64,
    pub(super) losses: u64,
    pub(super) gradients: u64,
    pub(super) status: u64,
    pub(super) largest_product: f64,
    pub(super) count: i32,
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) log_ratio_limit: f32,
}

passed_by_value!(ScoredRows, GatherRows, ScatterRows, WidenBias, LinearLogProb, LinearLogProbBackward);
passed_by_value!(WithholdRows, GradientScale, BiasGradient, RoundWeight, RowLossArguments);
