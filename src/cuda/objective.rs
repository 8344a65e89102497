//! The objective on the device: launches `kernels/objective.cu`.

use crate::cuda::log_ratio::DeviceBatch;
use crate::cuda::token_log_prob::{optional, optional_mut};
use crate::cuda::{Cuda, DeviceRewards, ObjectiveOutputs, View, raw};
use crate::data::memory::check_view;
use crate::error::Result;
use crate::objective::Objective;
use crate::options::{LogRatio, Reduction};

/// [`Backend::objective`](crate::Backend::objective).
pub(super) fn objective(
    cuda: &Cuda,
    objective: &Objective,
    log_ratios: &View<'_, f64>,
    batch: &DeviceBatch,
    rewards: &DeviceRewards<'_>,
    reduction: Reduction,
    outputs: ObjectiveOutputs<'_>,
) -> Result<()> {
    let groups = batch.as_ref().groups();
    check_view(cuda, "log-ratios", log_ratios, batch.as_ref().sequences())?;
    outputs.check(cuda, batch.as_ref())?;
    cuda.check_context("batch", batch.group_offsets.context())?;
    rewards.check(cuda, objective, batch.as_ref())?;
    reduction.check()?;
    let stream = &cuda.stream;
    let (rewards, proposal_offsets, _read_rewards) = rewards.addresses(stream);
    let (log_ratios, _read_log_ratios) = log_ratios.address(stream);
    let ObjectiveOutputs { mut group_losses, mut coefficients, mut statistics, row_weights } = outputs;
    let mean = row_weights.as_ref().is_some_and(|weights| weights.log_ratio == LogRatio::Mean);
    let (scored_rows, mut weights) = row_weights.map(|weights| (weights.scored_rows, weights.weights)).unzip();
    let (group_losses, _write_losses) = group_losses.address(stream);
    let (coefficients, _write_coefficients) = coefficients.address(stream);
    let (statistics, _write_statistics) = statistics.address(stream);
    let (scored_rows, _read_scored) = optional(scored_rows.as_ref(), stream);
    let (sequence_weights, _write_weights) = optional_mut(weights.as_mut(), stream);
    let inputs = raw::ObjectiveInputs {
        log_ratios,
        rewards,
        proposal_offsets,
        group_offsets: batch.group_offsets.view(groups + 1).address(stream).0,
        scored_rows,
        groups,
        mean,
        weight: reduction.weight(groups),
    };
    let outputs = raw::ObjectiveOutputs { group_losses, coefficients, sequence_weights, statistics };
    // SAFETY: the lengths were checked, the offsets are a valid batch's, and everything is borrowed until the launch is in
    // the stream.
    unsafe { raw::objective(cuda, objective, inputs, outputs) }
}
