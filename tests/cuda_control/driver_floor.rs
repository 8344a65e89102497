//! A driver that is older than the nvcc of the kernels, and a device that they were not compiled for: the error says what is
//! needed. On a real device nothing can be set: then this says so and stops.

use cudarc::driver::CudaContext;
use exo_kernels::Error;
use exo_kernels::cuda::Cuda;
use softcuda::Settings;
use support::device;
use support::turn;

#[test]
fn a_driver_that_refuses_the_kernels_is_told_which_one_would_not() {
    let _turn = turn::take();
    drop(device::cuda());
    let Some(control) = softcuda::control() else {
        println!("NOT RUN: this device and its driver are what they are");
        return;
    };
    // PTX of CUDA 13 on a driver for 12.4; the one for 8.0 and later on a device of 7.5.
    let old_driver = Settings { driver_version: (12, 4), ..Settings::default() };
    let old_device = Settings { compute_capability: (7, 5), ..Settings::default() };
    let mut found = Vec::new();
    for settings in [&old_driver, &old_device] {
        control.configure(settings);
        // Of its own: the primary one may have the kernels already.
        let context = CudaContext::new_non_primary(0, 0).expect("a context");
        let stream = context.new_stream().expect("a stream");
        found.push(Cuda::new(&stream).map(drop));
        drop(stream);
    }
    control.configure(&Settings::default());
    let [of_driver, of_device] = &found[..] else { unreachable!() };
    for (found, code, driver, capability) in [(of_driver, 222, 12_040, (9, 0)), (of_device, 209, 13_000, (7, 5))] {
        let Err(
            error @ Error::KernelsRefused {
                code: given,
                nvcc,
                oldest_driver,
                driver: of_driver,
                capability: of_device,
                ..
            },
        ) = found
        else {
            panic!("{found:?}")
        };
        assert_eq!((*given, *of_driver, *of_device), (code, driver, capability));
        let oldest = match nvcc.expect("nvcc has said which it is").split('.').next() {
            Some("13") => "R580",
            Some("12") => "R525",
            other => panic!("{other:?}"),
        };
        assert_eq!(*oldest_driver, Some(oldest));
        let text = error.to_string();
        for part in
            [oldest, "compute capability 8.0", "NVCC", &format!("CUDA {}.{}", driver / 1000, driver % 1000 / 10)]
        {
            assert!(text.contains(part), "{text}: no {part}");
        }
        println!("{text}");
    }
}
