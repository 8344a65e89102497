//! A CUDA device for tests: a real one where there is a driver, softcuda elsewhere.

use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DeviceRepr};
use exo_kernels::cuda::Cuda;
use softcuda::Settings;
use std::sync::Once;

/// The variable that names another compute capability than 9.0 for softcuda, such as 100: all of a process's.
pub const CAPABILITY: &str = "EXO_KERNELS_TEST_CAPABILITY";

/// A backend on a stream of its own.
pub fn cuda() -> Cuda {
    static CONFIGURED: Once = Once::new();
    let installed = softcuda::install().expect("softcuda can be loaded where there is no driver");
    eprintln!("CUDA device: {installed:?}");
    CONFIGURED.call_once(|| {
        let (Ok(number), Some(control)) = (std::env::var(CAPABILITY), softcuda::control()) else { return };
        let number: u32 = number.parse().expect("a compute capability such as 100");
        control.configure(&Settings { compute_capability: (number / 10, number % 10), ..control.settings() });
    });
    let context = CudaContext::new(0).expect("device 0");
    Cuda::new(&context.new_stream().expect("a stream")).expect("the kernels load")
}

/// Host numbers on the device.
pub fn upload<T: DeviceRepr + Copy>(cuda: &Cuda, numbers: &[T]) -> CudaSlice<T> {
    // An allocation of nothing is none: empty inputs get one element that nobody reads.
    if numbers.is_empty() {
        // SAFETY: it is never read.
        return unsafe { cuda.stream().alloc(1) }.expect("memory");
    }
    cuda.stream().clone_htod(numbers).expect("upload")
}

/// Device numbers on the host, behind everything in the stream. A fault on softcuda fails the test with its text.
pub fn download<T: DeviceRepr + Clone>(cuda: &Cuda, numbers: &impl DevicePtr<T>) -> Vec<T> {
    let numbers = cuda.stream().clone_dtoh(numbers).and_then(|numbers| cuda.stream().synchronize().map(|()| numbers));
    numbers.unwrap_or_else(|error| match softcuda::control().and_then(|control| control.take_fault()) {
        Some(fault) => panic!("{fault}"),
        None => panic!("{error}"),
    })
}
