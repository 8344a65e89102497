//! Rewards on the host or on the device.

use crate::cuda::{Cuda, memory, raw};
use crate::data::batch::Batch;
use crate::data::rewards;
use crate::error::Result;
use crate::objective::Objective;
use crate::stage::objective;
use crate::stage::objective::check_rewards;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr, SyncOnDrop};

/// Rewards `[S]`, or log q for [`Target::Distribution`](crate::Target::Distribution): wherever they are.
///
/// From the host they are checked before anything runs, and copied; the memory is pageable, for which CUDA says no more
/// than that such a copy might not wait. On the device, where a reward model leaves them, they are read as they are and
/// checked by the kernel: what the host would have refused makes its group NaN, and is an error of the report. A CUDA
/// graph can hold a step with rewards on the device only.
pub enum Rewards<'a> {
    /// On the host.
    Host(rewards::Rewards<'a>),
    /// On the device.
    Device(DeviceRewards<'a>),
}

/// Rewards on the device, one number per sequence.
pub struct DeviceRewards<'a> {
    values: Values<'a>,
    proposal: Option<CudaView<'a, f64>>,
}

enum Values<'a> {
    F32(CudaView<'a, f32>),
    F64(CudaView<'a, f64>),
}

/// Keeps the rewards borrowed until a launch that reads them is in the stream.
pub(super) type Held<'a> = [Option<SyncOnDrop<'a>>; 2];

impl<'a> DeviceRewards<'a> {
    /// As [`Rewards::with_proposal`](crate::Rewards::with_proposal), with the offsets `[S]` on the device too.
    #[must_use]
    pub fn with_proposal(self, offsets: CudaView<'a, f64>) -> Self {
        Self { proposal: Some(offsets), ..self }
    }

    /// Their addresses: the rewards', and the proposal's or 0.
    pub(super) fn addresses<'b>(&'b self, stream: &'b CudaStream) -> (raw::Rewards, memory::Address, Held<'b>) {
        let (rewards, values) = match &self.values {
            Values::F32(view) => {
                let (address, held) = view.device_ptr(stream);
                (raw::Rewards::F32(address), held)
            }
            Values::F64(view) => {
                let (address, held) = view.device_ptr(stream);
                (raw::Rewards::F64(address), held)
            }
        };
        let (offsets, proposal) = self.proposal.as_ref().map(|view| view.device_ptr(stream)).unzip();
        (rewards, offsets.unwrap_or(0), [Some(values), proposal])
    }
}

impl Rewards<'_> {
    /// What the host can see of them: the numbers, or only how many there are and where.
    pub(super) fn check(&self, cuda: &Cuda, objective: &Objective, batch: &Batch) -> Result<()> {
        match self {
            Self::Host(rewards) => check_rewards(objective, *rewards, batch),
            Self::Device(rewards) => {
                let sequences = batch.sequences();
                match &rewards.values {
                    Values::F32(view) => cuda.check_view("rewards", view, sequences)?,
                    Values::F64(view) => cuda.check_view("rewards", view, sequences)?,
                }
                if let Some(offsets) = &rewards.proposal {
                    cuda.check_view("proposal offsets", offsets, sequences)?;
                }
                objective::check_group_sizes(objective, batch)
            }
        }
    }
}

macro_rules! rewards_from {
    ($($number:ty => $variant:ident),*) => {$(
        impl<'a> From<CudaView<'a, $number>> for DeviceRewards<'a> {
            fn from(values: CudaView<'a, $number>) -> Self {
                Self { values: Values::$variant(values), proposal: None }
            }
        }

        impl<'a> From<CudaView<'a, $number>> for Rewards<'a> {
            fn from(values: CudaView<'a, $number>) -> Self {
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

impl<'a> From<rewards::Rewards<'a>> for Rewards<'a> {
    fn from(rewards: rewards::Rewards<'a>) -> Self {
        Self::Host(rewards)
    }
}
