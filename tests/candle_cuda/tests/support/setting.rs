//! candle's CUDA device, on softcuda.

use candle_core::Device;

/// The first device, opened anew.
pub(crate) fn cuda_device() -> Device {
    let device = Device::new_cuda(0).expect("device 0");
    let context = device.as_cuda_device().expect("CUDA").cuda_stream().context().clone();
    assert!(context.name().expect("a name").contains("softcuda"), "the program is linked with another driver");
    device
}
