//! The objective on the device: launches `kernels/objective.cu`.

use crate::cuda::context::CurrentContext;
use crate::cuda::driver::called;
use crate::cuda::log_ratio::DeviceBatch;
use crate::cuda::raw::objective::DeviceGroupStatistics;
use crate::cuda::rewards::{DeviceRewards, Rewards};
use crate::cuda::{Cuda, raw};
use crate::error::Result;
use crate::objective::Objective;
use crate::options::Reduction;
use cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

/// Where the objective stage writes.
pub struct ObjectiveOutputs<'a> {
    /// Loss of each group, G, before the reduction.
    pub group_losses: CudaViewMut<'a, f64>,
    /// d loss / d log-ratio of each sequence, S, with β_π and the reduction's weight in it.
    pub coefficients: CudaViewMut<'a, f64>,
    /// What a trainer logs of each group, G.
    pub statistics: CudaViewMut<'a, DeviceGroupStatistics>,
}

impl Cuda {
    /// Log-ratios `[S]` on the device and rewards `[S]` → group losses, coefficients, statistics. Rewards on the host are
    /// brought to the device in new memory: [`PreferenceLoss`](crate::PreferenceLoss) does so without allocating.
    ///
    /// # Errors
    /// As [`Cpu::objective`](crate::Cpu::objective); [`Error::Device`](crate::Error::Device) for what lies elsewhere;
    /// [`Error::Cuda`](crate::Error::Cuda). What is wrong with rewards on the device is in [`Cuda::status`].
    pub fn objective<'a>(
        &self,
        objective: &Objective,
        log_ratios: &CudaView<'_, f64>,
        batch: &DeviceBatch,
        rewards: impl Into<Rewards<'a>>,
        reduction: Reduction,
        outputs: &mut ObjectiveOutputs<'_>,
    ) -> Result<()> {
        let _current = CurrentContext::keep()?;
        let rewards = rewards.into();
        let (sequences, groups) = (batch.batch.sequences(), batch.batch.groups());
        self.check_view("log-ratios", log_ratios, sequences)?;
        self.check_view("coefficients", &outputs.coefficients, sequences)?;
        self.check_view("group losses", &outputs.group_losses, groups)?;
        self.check_view("statistics", &outputs.statistics, groups)?;
        self.check_context("batch", &*batch.group_offsets)?;
        rewards.check(self, objective, &batch.batch)?;
        reduction.check()?;
        if groups == 0 {
            // Nothing to launch, and the driver copies no numbers of none.
            return Ok(());
        }
        let stream = &self.stream;
        let upload = |value: &dyn Fn(usize) -> f64| {
            let numbers: Vec<f64> = (0..sequences).map(value).collect();
            called("cuMemcpyHtoDAsync", stream.clone_htod(&numbers))
        };
        let (values, offsets, uploaded);
        let on_device = match &rewards {
            Rewards::Device(rewards) => rewards,
            Rewards::Host(rewards) => {
                values = upload(&|sequence| rewards.value(sequence))?;
                let mut brought = DeviceRewards::from(values.as_view());
                if rewards.has_proposal() {
                    offsets = upload(&|sequence| rewards.offset(sequence))?;
                    brought = brought.with_proposal(offsets.as_view());
                }
                uploaded = brought;
                &uploaded
            }
        };
        let (rewards, proposal_offsets, _read_rewards) = on_device.addresses(stream);
        let (log_ratios, _read_log_ratios) = log_ratios.device_ptr(stream);
        let (group_offsets, _read_offsets) = batch.group_offsets.device_ptr(stream);
        let (group_losses, _write_losses) = outputs.group_losses.device_ptr_mut(stream);
        let (coefficients, _write_coefficients) = outputs.coefficients.device_ptr_mut(stream);
        let (statistics, _write_statistics) = outputs.statistics.device_ptr_mut(stream);
        let inputs = raw::ObjectiveInputs {
            log_ratios,
            rewards,
            proposal_offsets,
            group_offsets,
            scored_rows: 0,
            groups,
            mean: false,
            weight: reduction.weight(groups),
        };
        let outputs = raw::ObjectiveOutputs { group_losses, coefficients, sequence_weights: 0, statistics };
        // SAFETY: the lengths and the rewards were checked, the offsets are a valid batch's, and everything is borrowed
        // until the launch is in the stream; the uploaded numbers are freed in the stream's order, behind it.
        unsafe { raw::objective(self, objective, inputs, outputs) }
    }
}
