//! A softmax that Triton compiled (see `kernels/triton_softmax.py`): PTX of another compiler, with its debugging
//! sections.

mod support;

use cudarc::driver::PushKernelArg;
use cudarc::nvrtc::Ptx;
use half::bf16;
use support::compile::data;
use support::device::{Device, function, shape};
use support::random::Random;

#[test]
fn softmax() {
    let device = Device::new();
    let module = device.module_of(Ptx::from_src(data("triton_softmax.ptx")));
    let kernel = function(&module, "softmax");
    let (rows, columns, stride, programs) = (7usize, 781usize, 1024usize, 3u32);
    let mut random = Random::new(40);
    let logits: Vec<bf16> = (0..rows * stride).map(|_| bf16::from_f64(random.real(-10.0, 10.0))).collect();
    let on_device = device.upload(&logits);
    // Ones where nothing may be written.
    let mut output = device.upload(&vec![bf16::ONE; rows * stride]);
    let (row_stride, row_count, column_count) = (stride as i32, rows as i32, columns as i32);
    // Triton's scratch space, of which this kernel uses none.
    let none = 0u64;
    let report = device.run(&kernel, shape(programs, 128).with_shared(16), |arguments| {
        arguments
            .arg(&mut output)
            .arg(&on_device)
            .arg(&row_stride)
            .arg(&row_count)
            .arg(&column_count)
            .arg(&none)
            .arg(&none);
    });
    let output = device.download(&output);
    for row in 0..rows {
        let values: Vec<f64> = logits[row * stride..][..columns].iter().map(|value| value.to_f64()).collect();
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = values.iter().map(|value| (value - greatest).exp()).sum();
        for column in 0..stride {
            let got = output[row * stride + column].to_f64();
            if column >= columns {
                assert_eq!(got, 1.0, "row {row}, column {column} is outside the row");
                continue;
            }
            let exact = (values[column] - greatest).exp() / sum;
            // bf16 rounds by at most 2^-8 of its binade's beginning. Before that in f32: the argument (|x| up to 20 in
            // bits times two roundings, 29 * 2^-23), exponentials and quotient of 2 units each, 13 additions: 50 *
            // 2^-23 in all.
            let bound = exact * (2f64.powi(-8) + 50.0 * 2f64.powi(-23));
            assert!((got - exact).abs() <= bound, "row {row}, column {column}: {got}, not {exact} +- {bound:e}");
        }
    }
    if let Some(report) = report {
        assert_eq!(report.counters.global.distinct_bytes_read, (rows * columns * 2) as u64);
        assert_eq!(report.counters.global.bytes_stored, (rows * columns * 2) as u64);
    }
}
