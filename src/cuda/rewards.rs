//! Rewards on the host or on the device.

use crate::cuda::buffer::{Grown, copy_to_device};
use crate::cuda::memory::{Address, Held};
use crate::cuda::status_word::STATUS_BYTES;
use crate::cuda::{Cuda, Device, raw};
use crate::data::batch::Batch;
use crate::data::memory::check_view;
use crate::data::rewards;
use crate::data::rewards::Values;
use crate::error::Result;
use crate::objective::Objective;
use crate::stage::objective;
use crate::stage::objective::check_rewards;
use cudarc::driver::{CudaSlice, CudaStream, CudaView};
use std::sync::Arc;

/// Rewards `[S]`, or log q for [`Target::Distribution`](crate::Target::Distribution): wherever they are.
///
/// From the host they are checked before anything runs, and copied; the memory is pageable, for which CUDA says no more
/// than that such a copy might not wait. On the device, where a reward model leaves them, they are read as they are and
/// checked by the kernel: what the host would have refused makes its group NaN, and is an error of the report. A CUDA
/// graph can hold a step with rewards on the device only.
#[derive(Debug, Clone)]
pub enum Rewards<'a> {
    /// On the host.
    Host(crate::host::Rewards<'a>),
    /// On the device.
    Device(DeviceRewards<'a>),
}

/// Rewards on the device, one number per sequence.
pub type DeviceRewards<'a> = rewards::Rewards<'a, Device>;

/// What rewards of the host are copied to.
#[derive(Debug, Default)]
pub struct RewardBuffers {
    pub(super) values: Grown<f64>,
    pub(super) proposal_offsets: Grown<f64>,
    /// On the host: what one copy brings, proposal offsets, values and the zeros of a status word.
    staging: Vec<f64>,
}

impl RewardBuffers {
    /// Brings rewards and clears the status word in one copy, where the three lie one after the other: as
    /// [`Backend::reserve_step`](crate::Backend::reserve_step) lays them. Whether they do.
    pub(super) fn bring_with_status(
        &mut self,
        rewards: &crate::host::Rewards<'_>,
        stream: &Arc<CudaStream>,
        status: Address,
    ) -> Result<bool> {
        let Self { values, proposal_offsets, staging } = self;
        let (sequences, of_values) = (rewards.len(), values.address());
        let offsets = rewards.proposal.unwrap_or_default();
        let bytes = |count: usize| (count * size_of::<f64>()) as Address;
        let with_room =
            values.fits(stream, sequences) && (offsets.is_empty() || proposal_offsets.fits(stream, sequences));
        let together = of_values + bytes(sequences) == status
            && (offsets.is_empty() || proposal_offsets.address() + bytes(offsets.len()) == of_values);
        if !with_room || !together {
            return Ok(false);
        }
        staging.clear();
        staging.extend_from_slice(offsets);
        staging.extend((0..sequences).map(|sequence| rewards.value(sequence)));
        staging.resize(staging.len() + STATUS_BYTES / size_of::<f64>(), 0.0);
        copy_to_device(stream, of_values - bytes(offsets.len()), staging)?;
        Ok(true)
    }

    /// Rewards that have been brought.
    pub(super) fn view(&self, rewards: &crate::host::Rewards<'_>) -> DeviceRewards<'_> {
        let proposal = rewards.proposal.map(|offsets| self.proposal_offsets.view(offsets.len()));
        DeviceRewards { values: Values::F64(self.values.view(rewards.len())), proposal }
    }
}

impl DeviceRewards<'_> {
    /// The same, borrowed for less long.
    pub(super) fn borrowed(&self) -> DeviceRewards<'_> {
        let values = match &self.values {
            Values::F32(view) => Values::F32(view.clone()),
            Values::F64(view) => Values::F64(view.clone()),
        };
        DeviceRewards { values, proposal: self.proposal.clone() }
    }

    /// Their addresses: the rewards', and the proposal's or 0.
    pub(super) fn addresses<'b>(&'b self, stream: &'b CudaStream) -> (raw::Rewards, Address, [Held<'b>; 2]) {
        let (rewards, values) = match &self.values {
            Values::F32(view) => {
                let (address, held) = view.address(stream);
                (raw::Rewards::F32(address), held)
            }
            Values::F64(view) => {
                let (address, held) = view.address(stream);
                (raw::Rewards::F64(address), held)
            }
        };
        let (offsets, proposal) = self.proposal.as_ref().map_or((0, None), |view| view.address(stream));
        (rewards, offsets, [values, proposal])
    }

    /// Checks what the host can see of them: how many there are and where.
    pub(super) fn check(&self, cuda: &Cuda, objective: &Objective, batch: &Batch) -> Result<()> {
        let sequences = batch.sequences();
        match &self.values {
            Values::F32(view) => check_view(cuda, "rewards", view, sequences)?,
            Values::F64(view) => check_view(cuda, "rewards", view, sequences)?,
        }
        if let Some(offsets) = &self.proposal {
            check_view(cuda, "proposal offsets", offsets, sequences)?;
        }
        objective::check_group_sizes(objective, batch)
    }
}

impl Rewards<'_> {
    /// Checks what the host can see of them: the numbers, or only how many there are and where.
    pub(super) fn check(&self, cuda: &Cuda, objective: &Objective, batch: &Batch) -> Result<()> {
        match self {
            Self::Host(rewards) => check_rewards(objective, rewards, batch),
            Self::Device(rewards) => rewards.check(cuda, objective, batch),
        }
    }

    /// The same on the device: where they are, or in `buffers`.
    pub(super) fn on_device<'b>(
        &'b self,
        stream: &Arc<CudaStream>,
        buffers: &'b mut RewardBuffers,
    ) -> Result<DeviceRewards<'b>> {
        let rewards = match self {
            Self::Device(rewards) => return Ok(rewards.borrowed()),
            Self::Host(rewards) => rewards,
        };
        let values: Vec<f64> = (0..rewards.len()).map(|sequence| rewards.value(sequence)).collect();
        buffers.values.upload(stream, &values)?;
        if let Some(offsets) = rewards.proposal {
            buffers.proposal_offsets.upload(stream, offsets)?;
        }
        Ok(buffers.view(rewards))
    }
}

macro_rules! rewards_from {
    ($($number:ty => $variant:ident),*) => {$(
        impl<'a> From<CudaView<'a, $number>> for DeviceRewards<'a> {
            fn from(values: CudaView<'a, $number>) -> Self {
                Self { values: Values::$variant(values.into()), proposal: None }
            }
        }

        impl<'a> From<crate::cuda::View<'a, $number>> for DeviceRewards<'a> {
            fn from(values: crate::cuda::View<'a, $number>) -> Self {
                Self { values: Values::$variant(values), proposal: None }
            }
        }

        impl<'a> From<CudaView<'a, $number>> for Rewards<'a> {
            fn from(values: CudaView<'a, $number>) -> Self {
                Self::Device(values.into())
            }
        }

        impl<'a> From<crate::cuda::View<'a, $number>> for Rewards<'a> {
            fn from(values: crate::cuda::View<'a, $number>) -> Self {
                Self::Device(values.into())
            }
        }

        impl<'a> From<&'a CudaSlice<$number>> for Rewards<'a> {
            fn from(values: &'a CudaSlice<$number>) -> Self {
                values.as_view().into()
            }
        }

        impl<'a> From<&'a [$number]> for Rewards<'a> {
            fn from(values: &'a [$number]) -> Self {
                Self::Host(values.into())
            }
        }

        impl<'a> From<&'a Vec<$number>> for Rewards<'a> {
            fn from(values: &'a Vec<$number>) -> Self {
                Self::Host(values.into())
            }
        }

        impl<'a, const S: usize> From<&'a [$number; S]> for Rewards<'a> {
            fn from(values: &'a [$number; S]) -> Self {
                Self::Host(values.into())
            }
        }
    )*};
}

rewards_from!(f32 => F32, f64 => F64);

impl<'a> From<DeviceRewards<'a>> for Rewards<'a> {
    fn from(rewards: DeviceRewards<'a>) -> Self {
        Self::Device(rewards)
    }
}

impl<'a> From<crate::host::Rewards<'a>> for Rewards<'a> {
    fn from(rewards: crate::host::Rewards<'a>) -> Self {
        Self::Host(rewards)
    }
}
