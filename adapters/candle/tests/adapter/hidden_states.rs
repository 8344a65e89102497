//! What the candle adapter does from hidden states, on any device: gradients reach hidden states, weight and bias and are
//! the reference's.

use exo_kernels::reference::{linear_log_prob, token_log_prob};
use exo_kernels::{Batch, Betas, Element, Head, LogitOptions, LossOptions, Matrix, Objective, Reference};
use exo_kernels_candle::candle_core::{DType, Device, Tensor, Var};
use exo_kernels_candle::{
    linear_preference_loss, linear_token_log_probs, linear_token_log_probs_and_entropies, preference_loss,
};
use half::{bf16, f16};

use crate::logits::{Setting, wide};

const ROWS: usize = 6;
const SIZE: usize = 10;
const VOCAB: usize = 41;
const TARGETS: [i64; ROWS] = [0, 40, -100, 7, 7, 13];

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919) % 512) as f32 / 256.0 - 1.0).collect()
}

fn options() -> LogitOptions {
    LogitOptions::default().with_temperature(0.8).expect("valid")
}

struct Inputs {
    hidden: Var,
    weight: Var,
    bias: Var,
    targets: Tensor,
}

impl Inputs {
    fn new(setting: &Setting, dtype: DType) -> Self {
        let variable = |shape: &[usize], seed: usize| {
            let values = numbers(shape.iter().product(), seed);
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
            let tensor = tensor.and_then(|tensor| tensor.to_device(&setting.device)).expect("a tensor");
            Var::from_tensor(&tensor).expect("a variable")
        };
        Self {
            hidden: variable(&[ROWS, SIZE], 1),
            weight: variable(&[VOCAB, SIZE], 2),
            bias: variable(&[VOCAB], 3),
            targets: Tensor::new(&TARGETS, &setting.device).expect("a tensor"),
        }
    }
}

/// log-probs and entropies of the rows, and the gradients of Σ w·log p + v·H.
fn expected<T: Element>(w: &[f64], v: f64, bias: bool) -> (Vec<f64>, Vec<f64>, linear_log_prob::Gradients) {
    let stored = |count, seed| -> Vec<T> { numbers(count, seed).into_iter().map(T::from_f32).collect() };
    let (hidden, weight, bias_values) = (stored(ROWS * SIZE, 1), stored(VOCAB * SIZE, 2), stored(VOCAB, 3));
    let hidden = Matrix::new(&hidden, SIZE).expect("rows");
    let mut head = Head::new(Matrix::new(&weight, SIZE).expect("rows")).expect("a head");
    if bias {
        head = head.with_bias(&bias_values).expect("a bias");
    }
    let (mut log_probs, mut entropies, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..ROWS {
        let logits = linear_log_prob::logits(hidden.row(row), &head);
        let Ok(target) = usize::try_from(TARGETS[row]) else {
            log_probs.push(0.0);
            entropies.push(0.0);
            gradients.extend(vec![0.0; VOCAB]);
            continue;
        };
        let exact = token_log_prob::forward_f64(&logits, target, &options());
        log_probs.push(exact.log_prob);
        entropies.push(exact.entropy);
        gradients.extend(token_log_prob::backward_f64(&logits, target, &options(), w[row], v));
    }
    (log_probs, entropies, linear_log_prob::backward(&gradients, &hidden, &head))
}

/// Sums of some tens of products of numbers below 4 in f32, each of them off by 1e-6 or so; gradients of 16-bit tensors
/// are rounded, and on a GPU made from rounded logits' gradients too, which sum to at most `size` each.
fn assert_close(computed: &[f64], expected: &[f64], unit_roundoff: f64, what: &str) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    assert!(expected.iter().any(|value| value.abs() > 0.05), "{what}: nothing to compare");
    let size = expected.iter().fold(4.0f64, |size, value| size.max(value.abs()));
    for (index, (computed, expected)) in computed.iter().zip(expected).enumerate() {
        let bound = 4e-5 + 2.0 * unit_roundoff * size;
        assert!((computed - expected).abs() <= bound, "{what} {index}: {computed} vs {expected}");
    }
}

fn gradients_of<T: Element>(setting: &Setting, dtype: DType, bias: bool) {
    let inputs = Inputs::new(setting, dtype);
    let weights = [0.5f32, -1.0, 3.0, 0.25, 1.0, -0.5];
    let bias_tensor = bias.then(|| inputs.bias.as_tensor());
    let (log_probs, entropies) =
        linear_token_log_probs_and_entropies(&inputs.hidden, &inputs.weight, bias_tensor, &inputs.targets, &options())
            .expect("forward");
    let (expected_log_probs, expected_entropies, expected) = expected::<T>(&weights.map(f64::from), 0.25, bias);
    assert_close(&wide(&log_probs), &expected_log_probs, 0.0, "log-probs");
    assert_close(&wide(&entropies), &expected_entropies, 0.0, "entropies");
    let weighted = (log_probs * Tensor::new(&weights, &setting.device).expect("weights")).expect("product");
    let loss = weighted.sum_all().expect("sum") + (entropies.sum_all().expect("sum") * 0.25).expect("scale");
    let gradients = loss.expect("sum").backward().expect("backward");
    let found = |variable: &Var| {
        let gradient = gradients.get(variable).expect("a gradient reaches it");
        assert_eq!((gradient.dtype(), gradient.shape()), (dtype, variable.shape()));
        assert!(gradient.device().same_device(&setting.device));
        wide(gradient)
    };
    let u = if dtype == DType::F32 { 0.0 } else { T::UNIT_ROUNDOFF };
    assert_close(&found(&inputs.hidden), &expected.hidden, u, "hidden");
    assert_close(&found(&inputs.weight), &expected.weight, u, "weight");
    if bias {
        assert_close(&found(&inputs.bias), &expected.bias, u, "bias");
    }
}

pub(crate) fn gradients_reach_hidden_weight_and_bias(setting: &Setting) {
    for bias in [false, true] {
        gradients_of::<f32>(setting, DType::F32, bias);
        gradients_of::<f16>(setting, DType::F16, bias);
        gradients_of::<bf16>(setting, DType::BF16, bias);
    }
}

/// A head that is no variable gets no gradient, and a model that is none either.
pub(crate) fn what_is_frozen_gets_none(setting: &Setting) {
    let inputs = Inputs::new(setting, DType::F32);
    let (frozen, bias) = (inputs.weight.as_detached_tensor(), inputs.bias.as_detached_tensor());
    let log_probs = linear_token_log_probs(&inputs.hidden, &frozen, Some(&bias), &inputs.targets, &options());
    let gradients = log_probs.and_then(|log_probs| log_probs.sum_all()?.backward()).expect("backward");
    assert!(gradients.get(&inputs.hidden).is_some());
    assert!(gradients.get(&frozen).is_none() && gradients.get(&bias).is_none());
    let all = linear_token_log_probs(&inputs.hidden, &inputs.weight, Some(&inputs.bias), &inputs.targets, &options());
    let all = all.and_then(|log_probs| log_probs.sum_all()?.backward()).expect("backward");
    assert_eq!(wide(gradients.get(&inputs.hidden).expect("one")), wide(all.get(&inputs.hidden).expect("one")));

    let hidden = inputs.hidden.as_detached_tensor();
    let log_probs = linear_token_log_probs(&hidden, &inputs.weight, None, &inputs.targets, &options());
    let gradients = log_probs.and_then(|log_probs| log_probs.sum_all()?.backward()).expect("backward");
    assert!(gradients.get(&inputs.weight).is_some() && gradients.get(&hidden).is_none());
}

/// The loss from hidden states beside the loss over logits that candle makes of them.
pub(crate) fn the_preference_loss_is_that_of_the_logits(setting: &Setting) {
    let inputs = Inputs::new(setting, DType::F32);
    let batch = Batch::new(&[0, 2, 4, 6], &[0, 3]).expect("valid");
    let rewards = [0.9f32, -0.3, 0.2];
    let objective = Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("valid");
    let loss_options = LossOptions::from(objective).with_logits(options());
    let linear = linear_preference_loss(
        &inputs.hidden,
        &inputs.weight,
        Some(&inputs.bias),
        &inputs.targets,
        &batch,
        Reference::None,
        &rewards,
        loss_options,
    );
    let (linear, linear_report) = linear.expect("forward");
    let logits = inputs.weight.t().and_then(|transposed| inputs.hidden.matmul(&transposed));
    let logits = logits.and_then(|logits| logits.broadcast_add(&inputs.bias)).expect("logits");
    let (plain, report) =
        preference_loss(&logits, &inputs.targets, &batch, Reference::None, &rewards, loss_options).expect("forward");
    assert!((linear_report.loss - report.loss).abs() <= 1e-5 * report.loss.abs().max(1.0));
    assert_eq!(linear_report.scored_rows, report.scored_rows);
    let of_linear = (linear * 3.0).and_then(|loss| loss.backward()).expect("backward");
    let of_plain = (plain * 3.0).and_then(|loss| loss.backward()).expect("backward");
    for (what, variable) in [("hidden", &inputs.hidden), ("weight", &inputs.weight), ("bias", &inputs.bias)] {
        let (a, b) = (of_linear.get(variable).expect(what), of_plain.get(variable).expect(what));
        assert_close(&wide(a), &wide(b), 0.0, what);
    }
}

pub(crate) fn strided_and_batched_layouts(setting: &Setting) {
    let inputs = Inputs::new(setting, DType::F32);
    let plain = linear_token_log_probs(&inputs.hidden, &inputs.weight, None, &inputs.targets, &options());
    let plain = wide(&plain.expect("forward"));
    let batched = inputs.hidden.reshape((2, 3, SIZE)).expect("reshape");
    let targets = inputs.targets.reshape((2, 3)).expect("reshape");
    let log_probs = linear_token_log_probs(&batched, &inputs.weight, None, &targets, &options()).expect("forward");
    assert_eq!((log_probs.dims(), wide(&log_probs)), (&[2, 3][..], plain.clone()));
    // [B, T, H] inside of a wider one: the gradient comes back in its shape, with the same bits.
    let gradient = |hidden: &Tensor, targets: &Tensor, of: &Var| {
        let log_probs = linear_token_log_probs(hidden, &inputs.weight, None, targets, &options()).expect("forward");
        let gradients = log_probs.sum_all().and_then(|sum| sum.backward()).expect("backward");
        let (hidden, weight) = (gradients.get(of).expect("hidden"), gradients.get(&inputs.weight).expect("weight"));
        (wide(&log_probs), hidden.clone(), wide(weight))
    };
    let padding = Tensor::zeros((ROWS, 6), DType::F32, &setting.device).expect("padding");
    let wider =
        Tensor::cat(&[inputs.hidden.as_tensor(), &padding], 1).and_then(|wider| wider.reshape((2, 3, SIZE + 6)));
    let wider = Var::from_tensor(&wider.expect("reshape")).expect("a variable");
    let (_, of_hidden, of_weight) = gradient(&inputs.hidden, &inputs.targets, &inputs.hidden);
    let (log_probs, of_wider, weight_again) = gradient(&wider.narrow(2, 0, SIZE).expect("narrow"), &targets, &wider);
    assert_eq!((log_probs, of_wider.dims(), weight_again), (plain.clone(), &[2, 3, SIZE + 6][..], of_weight));
    assert_eq!(wide(&of_wider.narrow(2, 0, SIZE).expect("narrow")), wide(&of_hidden));
    assert!(wide(&of_wider.narrow(2, SIZE, 6).expect("narrow")).iter().all(|value| *value == 0.0));
    // A weight inside of a wider one, and one that is stored transposed.
    let padding = Tensor::zeros((VOCAB, 3), DType::F32, &setting.device).expect("padding");
    let wider = Tensor::cat(&[inputs.weight.as_tensor(), &padding], 1).expect("cat");
    let narrowed = wider.narrow(1, 0, SIZE).expect("narrow");
    let transposed = inputs.weight.t().and_then(|t| t.contiguous()).and_then(|t| t.t()).expect("transpose");
    for weight in [narrowed, transposed] {
        let log_probs = linear_token_log_probs(&inputs.hidden, &weight, None, &inputs.targets, &options());
        assert_eq!(wide(&log_probs.expect("forward")), plain);
    }
}

pub(crate) fn what_does_not_fit_is_refused(setting: &Setting) {
    let inputs = Inputs::new(setting, DType::F32);
    let (hidden, weight, targets) = (inputs.hidden.as_tensor(), inputs.weight.as_tensor(), &inputs.targets);
    let message = |hidden: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
        let result = linear_token_log_probs(hidden, weight, bias, targets, &options());
        result.expect_err("refused").to_string()
    };
    let narrow = weight.narrow(1, 0, 9).expect("narrow");
    assert!(message(hidden, &narrow, None).contains("weight: shape [41, 9] given, [V, 10] expected"));
    let half = weight.to_dtype(DType::BF16).expect("cast");
    assert!(message(hidden, &half, None).contains("weight: dtype BF16 given, F32"));
    let short = inputs.bias.narrow(0, 0, 40).expect("narrow");
    assert!(message(hidden, weight, Some(&short)).contains("bias: shape [40] given, [41] expected"));
    let fewer = hidden.narrow(0, 0, 5).expect("narrow");
    assert!(message(&fewer, weight, None).contains("targets: shape [6]"));
    let wide = hidden.to_dtype(DType::F64).expect("cast");
    let wide_weight = weight.to_dtype(DType::F64).expect("cast");
    assert!(message(&wide, &wide_weight, None).contains("f32, f16 or bf16 expected"));
}
