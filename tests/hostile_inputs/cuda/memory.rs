//! The memory verbs of the device, and buffers that are another backend's.

use super::cuda;
use crate::hostile::{Choices, memory};
use cudarc::driver::CudaContext;
use exo_kernels::backend::{Backend, Place};
use exo_kernels::cuda::{Cuda, Grown};
use exo_kernels::{Betas, Error, Objective, Reduction};

pub(super) fn walk(choices: &mut Choices<'_>) {
    const DEVICE: memory::Kind =
        memory::Kind { verbs: "cuda/backend::Cuda", memory: "cuda/memory::Device", sees_numbers: false };
    memory::walk(choices, &cuda(), &DEVICE);
}

/// A buffer's view is refused in another context; a buffer that another backend writes becomes that backend's.
#[test]
fn buffers_of_another_backend() {
    let cuda = cuda();
    let context = CudaContext::new_non_primary(0, 0).expect("another context of device 0");
    let streams = [context.new_stream(), cuda.stream().context().new_stream()];
    for (stream, is_elsewhere) in streams.into_iter().zip([true, false]) {
        let other = Cuda::new(&stream.expect("a stream")).expect("the kernels load");
        let (mut buffer, mut copy) = (Grown::<f64>::default(), Grown::<f64>::default());
        other.upload(&[1.0, 2.0, 3.0], &mut buffer).expect("memory");
        assert_eq!(cuda.check_memory_of("buffers", &other).is_err(), is_elsewhere);
        if is_elsewhere {
            let view = other.view(&buffer, 3);
            let refused = |result: exo_kernels::Result<()>| assert!(matches!(result, Err(Error::Device { .. })));
            refused(cuda.check_place("numbers", &view));
            refused(cuda.read(&view).map(drop));
            refused(cuda.copy(&view, &mut copy));
            refused(objective(&cuda, &view));
            refused(cuda.check_place_mut("numbers", &other.view_mut(&mut buffer, 3)));
        }
        cuda.upload(&[4.0, 5.0], &mut buffer).expect("memory");
        let view = cuda.view(&buffer, 2);
        cuda.check_place("numbers", &view).expect("its own");
        assert_eq!(*cuda.read(&view).expect("no fault"), [4.0, 5.0]);
        if is_elsewhere {
            assert!(matches!(other.check_place("numbers", &view), Err(Error::Device { .. })));
        }
    }
}

/// Of one pair, with outputs that fit.
fn objective(cuda: &Cuda, log_ratios: &exo_kernels::cuda::View<'_, f64>) -> exo_kernels::Result<()> {
    let batch = exo_kernels::Batch::padded(3, 1, 3).expect("a group");
    let placed = cuda.upload_batch(&batch)?;
    let (mut losses, mut coefficients) = (Grown::default(), Grown::default());
    let (mut statistics, mut rewards) = (Grown::default(), Grown::<f64>::default());
    cuda.reserve(&mut losses, 1)?;
    cuda.reserve(&mut coefficients, 3)?;
    cuda.reserve(&mut statistics, 1)?;
    cuda.upload(&[1.0, 0.5, 0.0], &mut rewards)?;
    let outputs = exo_kernels::cuda::ObjectiveOutputs {
        group_losses: cuda.view_mut(&mut losses, 1),
        coefficients: cuda.view_mut(&mut coefficients, 3),
        statistics: cuda.view_mut(&mut statistics, 1),
        row_weights: None,
    };
    let exo = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("usual betas");
    cuda.objective(&exo, log_ratios, &placed, &cuda.view(&rewards, 3).into(), Reduction::Mean, outputs)
}
