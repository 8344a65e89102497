//! The README's example: a planted race, found. The output that the README shows is what this test gets.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

#[test]
fn block_sum_adds_up() -> Result<(), Box<dyn std::error::Error>> {
    softcuda::install_always()?;
    let control = softcuda::control().expect("the software device");
    // One block after the other, so that the first fault is always the same.
    control.configure(&softcuda::Settings { host_threads: 1, ..Default::default() });
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(include_str!("driver_support/block_sum.ptx")))?;
    let values = stream.clone_htod(&vec![1.0f32; 1024])?;
    let mut sums = stream.alloc_zeros::<f32>(4)?;
    let four_blocks = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };

    // The repaired kernel is clean.
    let repaired = module.load_function("block_sum_repaired")?;
    // SAFETY: the arguments are those of the kernel.
    unsafe { stream.launch_builder(&repaired).arg(&values).arg(&mut sums).launch(four_blocks)? };
    assert_eq!(stream.clone_dtoh(&sums)?, [256.0; 4]);
    let report = control.take_launches().pop().expect("a launch");
    assert_eq!(report.counters.global.bytes_loaded, 4096);
    assert_eq!(report.counters.shared.bank_conflicts, 0);
    assert_eq!(report.counters.block_barriers, 4 * 9);

    // The other one is not, and says where.
    let faulty = module.load_function("block_sum")?;
    // SAFETY: as above.
    unsafe { stream.launch_builder(&faulty).arg(&values).arg(&mut sums).launch(four_blocks)? };
    assert!(stream.synchronize().is_err());
    let fault = control.take_fault().expect("a fault");
    let readme = include_str!("../README.md");
    assert!(readme.contains(&fault.to_string()), "README.md does not show this:\n{fault}");
    control.clear_fault();
    Ok(())
}
