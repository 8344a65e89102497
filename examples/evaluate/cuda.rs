//! The CUDA device that fixtures are computed on.

use cudarc::driver::CudaContext;
use exo_kernels::cuda::Cuda;

/// The first one; softcuda, a software device, where there is no driver.
pub(crate) fn device() -> Cuda {
    let installed = softcuda::install().expect("softcuda can be loaded where there is no driver");
    eprintln!("CUDA device: {installed:?}");
    let context = CudaContext::new(0).expect("device 0");
    Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load")
}
