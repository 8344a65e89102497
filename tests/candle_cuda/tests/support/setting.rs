//! candle's CUDA device, on softcuda.

use candle_core::Device;

/// The first device, opened anew.
pub(crate) fn cuda_device() -> Device {
    softcuda::install_always().expect("the program is linked with softcuda");
    Device::new_cuda(0).expect("device 0")
}
