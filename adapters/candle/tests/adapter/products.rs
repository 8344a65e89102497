//! candle's matrix products on softcuda, by softcublas: the CPU's numbers in every layout that candle sends.

use exo_kernels_candle::candle_core::{Device, Tensor, Var};

/// Small integers: sums of their products are exact in any order.
fn integers(shape: &[usize], device: &Device) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, device).expect("a tensor")).expect("a variable")
}

/// A product and the gradients of its operands.
fn product(device: &Device, shapes: [&[usize]; 2], transposed: [bool; 2]) -> Vec<Vec<f32>> {
    let operands = shapes.map(|shape| integers(shape, device));
    let [left, right] = [0, 1].map(|i| {
        let operand = operands[i].as_tensor();
        if transposed[i] { operand.t().expect("transpose") } else { operand.clone() }
    });
    let product = left.matmul(&right).expect("product");
    let gradients = product.sqr().and_then(|square| square.sum_all()).and_then(|sum| sum.backward()).expect("backward");
    let tensors = [&product, gradients.get(&operands[0]).expect("left"), gradients.get(&operands[1]).expect("right")];
    let host = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
    tensors.map(|tensor| host(tensor).expect("numbers")).to_vec()
}

#[test]
fn products_are_the_cpus() {
    let device = crate::cuda_device();
    let shapes: [[&[usize]; 2]; 4] =
        [[&[3, 5], &[5, 4]], [&[1, 7], &[7, 1]], [&[2, 3, 4], &[2, 4, 6]], [&[2, 2, 1, 3], &[2, 2, 3, 5]]];
    for [left, right] in shapes {
        let reversed = |shape: &[usize]| {
            let mut shape = shape.to_vec();
            shape.reverse();
            let (matrix, rest) = shape.split_at(2);
            [rest.iter().rev().copied().collect::<Vec<_>>(), matrix.to_vec()].concat()
        };
        let (left_turned, right_turned) = (reversed(left), reversed(right));
        for transposed in [[false, false], [true, false], [false, true], [true, true]] {
            let given =
                [if transposed[0] { &left_turned } else { left }, if transposed[1] { &right_turned } else { right }];
            let expected = product(&Device::Cpu, given, transposed);
            assert_eq!(product(&device, given, transposed), expected, "{given:?} {transposed:?}");
        }
    }
}
