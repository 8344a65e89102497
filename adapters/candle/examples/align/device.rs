//! Where the model and the loss live.

use anyhow::{Context, Result};
use candle_core::Device;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// The processor
    Cpu,
    /// The first CUDA device; needs a build with the feature `cuda`
    Cuda,
}

impl DeviceName {
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda if !candle_core::utils::cuda_is_available() => anyhow::bail!(
                "--device cuda needs a build with the feature cuda: \
                 cargo run --release -p exo-kernels-candle --features cuda --example align -- --device cuda"
            ),
            Self::Cuda => Device::new_cuda(0).context("cannot open the first CUDA device"),
        }
    }
}

#[test]
fn a_device_opens_or_the_error_says_what_is_missing() {
    assert!(DeviceName::Cpu.open().expect("always there").is_cpu());
    match DeviceName::Cuda.open() {
        Ok(device) => assert!(device.is_cuda()),
        Err(error) => assert!(error.to_string().contains("feature cuda"), "{error}"),
    }
}
