//! The candle adapter: a gradient reaches the logits and is the reference's; what cannot have one is refused.

#![cfg(feature = "candle")]

use candle_core::{DType, Device, Tensor, Var};
use exo_kernels::candle::{preference_loss, token_log_probs, token_log_probs_and_entropies};
use exo_kernels::reference::{preference_loss as reference_loss, token_log_prob};
use exo_kernels::{Batch, Betas, Element, LogitOptions, Logits, LossOptions, Objective, Reference};
use half::{bf16, f16};

const ROWS: usize = 6;
const VOCAB: usize = 41;
const TARGETS: [i64; ROWS] = [0, 40, -100, 7, 7, 13];

fn values() -> Vec<f32> {
    (0..ROWS * VOCAB).map(|i| ((i * 7919) % 512) as f32 / 64.0 - 4.0).collect()
}

fn logit_options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).expect("valid")
}

fn variable(dtype: DType) -> Var {
    let logits = Tensor::from_vec(values(), (ROWS, VOCAB), &Device::Cpu).expect("a tensor");
    Var::from_tensor(&logits.to_dtype(dtype).expect("cast")).expect("a variable")
}

fn targets() -> Tensor {
    Tensor::new(&TARGETS, &Device::Cpu).expect("a tensor")
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all());
    flat.and_then(|flat| flat.to_vec1()).expect("values")
}

/// The gradient of one row through Σ w_i·log p_i + v_i·H_i.
fn expected_row<T: Element>(row: usize, w: f64, v: f64) -> Vec<f64> {
    let logits: Vec<T> = values()[row * VOCAB..(row + 1) * VOCAB].iter().map(|&x| T::from_f32(x)).collect();
    match usize::try_from(TARGETS[row]) {
        Ok(target) => token_log_prob::backward(&logits, target, &logit_options(), w, v),
        Err(_) => vec![0.0; VOCAB],
    }
}

fn assert_close(computed: &[f64], expected: &[f64], unit_roundoff: f64, what: &str) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (computed, expected) in computed.iter().zip(expected) {
        // f32's errors are below 1e-5 of a gradient of order 1; then one rounding to the tensor's type.
        let bound = 1e-5 + unit_roundoff * expected.abs();
        assert!((computed - expected).abs() <= bound, "{what}: {computed} vs {expected}");
    }
}

fn token_gradient<T: Element>(dtype: DType) {
    let logits = variable(dtype);
    let weights = [0.5f32, -1.0, 3.0, 0.25, 1.0, -0.5];
    let log_probs = token_log_probs(logits.as_tensor(), &targets(), &logit_options()).expect("forward");
    assert_eq!((log_probs.dims(), log_probs.dtype()), (&[ROWS][..], DType::F32));
    assert_eq!(log_probs.to_vec1::<f32>().expect("values")[2], 0.0, "masked");
    let weighted = (log_probs * Tensor::new(&weights, &Device::Cpu).expect("weights")).expect("product");
    let gradients = weighted.sum_all().expect("sum").backward().expect("backward");
    let gradient = gradients.get(&logits).expect("a gradient reaches the logits");
    assert_eq!((gradient.dims(), gradient.dtype()), (&[ROWS, VOCAB][..], dtype));
    let expected: Vec<f64> = (0..ROWS).flat_map(|row| expected_row::<T>(row, weights[row].into(), 0.0)).collect();
    assert!(expected.iter().any(|value| value.abs() > 0.1));
    assert_close(&wide(gradient), &expected, T::UNIT_ROUNDOFF, &format!("{dtype:?}"));
}

#[test]
fn gradient_of_token_log_probs_is_the_references() {
    token_gradient::<f32>(DType::F32);
    token_gradient::<f16>(DType::F16);
    token_gradient::<bf16>(DType::BF16);
}

#[test]
fn gradient_of_entropies_is_the_references() {
    let logits = variable(DType::F32);
    let (log_probs, entropies) =
        token_log_probs_and_entropies(logits.as_tensor(), &targets(), &logit_options()).expect("forward");
    let loss =
        (log_probs.sum_all().expect("sum") + (entropies.sum_all().expect("sum") * 0.25).expect("scale")).expect("sum");
    let gradients = loss.backward().expect("backward");
    let expected: Vec<f64> = (0..ROWS).flat_map(|row| expected_row::<f32>(row, 1.0, 0.25)).collect();
    assert_close(&wide(gradients.get(&logits).expect("a gradient")), &expected, 0.0, "entropy");
}

fn loss_gradient<T: Element>(dtype: DType) {
    let logits = variable(dtype);
    let batch = Batch::new(&[0, 2, 4, 6], &[0, 3]).expect("valid");
    let rewards = [0.9f32, -0.3, 0.2];
    let options = LossOptions::from(Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid"))
        .with_logits(logit_options());
    let (loss, report) =
        preference_loss(logits.as_tensor(), &targets(), &batch, Reference::None, &rewards, options).expect("forward");

    let stored: Vec<T> = values().iter().map(|&x| T::from_f32(x)).collect();
    let view = Logits::new(&stored, VOCAB).expect("rows");
    let exact = reference_loss::forward(&options, view, &TARGETS, &batch, Reference::None, &rewards);
    assert_close(&[f64::from(loss.to_scalar::<f32>().expect("a scalar"))], &[exact.loss], 0.0, "loss");
    assert_close(&[report.check().expect("finite").loss], &[exact.loss], 0.0, "report");
    // Upstream of 3: whatever the trainer does to the loss comes back.
    let gradients = (loss * 3.0).expect("scale").backward().expect("backward");
    let expected: Vec<f64> =
        (0..ROWS).flat_map(|row| exact.grad_logits(&options, view, &TARGETS, row)).map(|g| 3.0 * g).collect();
    assert!(expected.iter().any(|value| value.abs() > 0.1));
    assert_close(
        &wide(gradients.get(&logits).expect("a gradient")),
        &expected,
        T::UNIT_ROUNDOFF,
        &format!("{dtype:?}"),
    );
}

#[test]
fn gradient_of_the_preference_loss_is_the_references() {
    loss_gradient::<f32>(DType::F32);
    loss_gradient::<f16>(DType::F16);
    loss_gradient::<bf16>(DType::BF16);
}

#[test]
fn layouts_of_all_kinds() {
    let dense = variable(DType::F32);
    let expected = wide(&token_log_probs(dense.as_tensor(), &targets(), &logit_options()).expect("forward"));
    let padded = Tensor::zeros((ROWS, 9), DType::F32, &Device::Cpu).expect("padding");
    let padded = Var::from_tensor(&Tensor::cat(&[dense.as_tensor(), &padded], 1).expect("cat")).expect("a variable");
    let transposed = Var::from_tensor(&dense.t().and_then(|t| t.contiguous()).expect("transpose")).expect("a variable");
    let layouts: [(&str, &Var, Tensor, Tensor); 4] = [
        ("padded vocabulary", &padded, padded.narrow(1, 0, VOCAB).expect("narrow"), targets()),
        ("transposed", &transposed, transposed.t().expect("transpose"), targets()),
        (
            "[B, T, V]",
            &dense,
            dense.reshape((2, 3, VOCAB)).expect("reshape"),
            targets().reshape((2, 3)).expect("reshape"),
        ),
        (
            "u32 targets",
            &dense,
            dense.as_tensor().clone(),
            Tensor::new(&TARGETS.map(|id| id as u32), &Device::Cpu).expect("targets"),
        ),
    ];
    for (name, variable, logits, targets) in layouts {
        let log_probs = token_log_probs(&logits, &targets, &logit_options()).expect(name);
        assert_eq!(log_probs.dims(), targets.dims(), "{name}");
        assert_eq!(wide(&log_probs), expected, "{name}");
        let gradients = log_probs.sum_all().expect("sum").backward().expect("backward");
        let gradient = gradients.get(variable).expect(name);
        assert!(wide(gradient).iter().any(|value| value.abs() > 0.1), "{name}: no gradient");
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let logits = variable(DType::F32);
    let message = |result: candle_core::Result<Tensor>| result.expect_err("refused").to_string();
    for (dtype, name) in [(DType::F64, "F64"), (DType::U32, "U32")] {
        let logits = logits.to_dtype(dtype).expect("cast");
        let message = message(token_log_probs(&logits, &targets(), &logit_options()));
        assert!(message.contains(name) && message.contains("f32, f16 or bf16"), "{message}");
    }
    let floats = targets().to_dtype(DType::F32).expect("cast");
    assert!(message(token_log_probs(&logits, &floats, &logit_options())).contains("u32 or i64"));
    let fewer = targets().narrow(0, 0, 5).expect("narrow");
    assert!(message(token_log_probs(&logits, &fewer, &logit_options())).contains("targets: shape [5]"));
    let beyond = Tensor::new(&[0i64, 0, 0, 41, 0, 0], &Device::Cpu).expect("targets");
    assert!(message(token_log_probs(&logits, &beyond, &logit_options())).contains("target of row 3: 41 given"));
    let batch = Batch::padded(2, 2, 2).expect("valid");
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let refused = preference_loss(&logits, &targets(), &batch, Reference::None, &[0.0f32, 1.0], objective);
    assert!(refused.expect_err("refused").to_string().contains("the last offset is 4, 6 expected"));
}
